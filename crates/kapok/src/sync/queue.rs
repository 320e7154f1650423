//! The wait queue under every primitive: an intrusive list, without an allocation per wait.
//!
//! ```text
//!   Queue ── mutex ── head ──► Node ◄──► Node ◄──► Node ◄── tail
//!                               │         │         │       each inside a pinned `Waiter`,
//!                             Waiter    Waiter    Waiter    on the stack of who waits or in
//!                                                           its future
//! ```
//!
//! A waiter's place is one of three:
//!
//! ```text
//!            push               notify_front
//!    Idle ─────────► Waiting ─────────────────► Notified
//!     ▲                │    ◄─────────────────      │
//!     └────────────────┴── remove (and push)  ──────┘
//! ```
//!
//! Invariants, kept by this file alone (the primitives on top of it hold no `unsafe` for waiting):
//!
//! - A node is linked if and only if its place is `Waiting`, and only into the queue its waiter
//!   borrows. Links, wakers and turns are touched under the queue's mutex only.
//! - A waiter is pinned from its first push, and its destructor removes it: a linked node is alive
//!   and does not move.
//! - A waiter that goes away without having been removed tells the primitive
//!   ([`Protocol::abandoned`]), which passes on what the waiter was notified of.
//! - Wakers are invoked, and replaced ones dropped, after the mutex is released. It is held for a
//!   few instructions and never across a suspension.

use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomPinned;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

/// What a primitive adds to a queue.
pub(super) trait Protocol: Sized {
    /// Guarded by the queue's mutex.
    type State;
    /// What the primitive keeps with each waiter.
    type Turn;

    /// A waiter was dropped in `place`, which is not `Idle`; it has been removed already.
    fn abandoned(queue: &mut Locked<'_, Self>, place: Place, turn: Self::Turn);
}

/// Where a waiter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Idle,
    Waiting,
    Notified,
}

/// A list of waiters and the state that decides about them.
pub(super) struct Queue<P: Protocol> {
    protocol: P,
    inner: Mutex<Inner<P>>,
}

struct Inner<P: Protocol> {
    state: P::State,
    head: Link<P::Turn>,
    tail: Link<P::Turn>,
}

type Link<T> = Option<NonNull<Node<T>>>;

struct Node<T> {
    prev: Link<T>,
    next: Link<T>,
    waker: Option<Waker>,
    /// `Some` unless idle.
    turn: Option<T>,
    place: Place,
}

// SAFETY: the pointers lead to nodes of pinned waiters, which unlink themselves before they end
// and which are touched under the mutex around this only; what a node owns may cross threads.
unsafe impl<P: Protocol> Send for Inner<P>
where
    P::State: Send,
    P::Turn: Send,
{
}

impl<P: Protocol> Queue<P> {
    pub(super) const fn new(protocol: P, state: P::State) -> Queue<P> {
        Queue { protocol, inner: Mutex::new(Inner { state, head: None, tail: None }) }
    }

    /// The part that needs no lock.
    #[inline]
    pub(super) fn protocol(&self) -> &P {
        &self.protocol
    }

    pub(super) fn lock(&self) -> Locked<'_, P> {
        Locked {
            // What can panic under the lock is a user's `Waker::clone`, and no link is half
            // changed then.
            inner: self.inner.lock().unwrap_or_else(PoisonError::into_inner),
            after: AfterUnlock::default(),
            queue: self,
        }
    }

    /// A waiter for this queue, to be pinned.
    pub(super) fn waiter(&self) -> Waiter<'_, P> {
        Waiter {
            queue: self,
            entered: Cell::new(false),
            node: UnsafeCell::new(Node {
                prev: None,
                next: None,
                waker: None,
                turn: None,
                place: Place::Idle,
            }),
            _pinned: PhantomPinned,
        }
    }
}

/// One who waits, or may wait.
pub(super) struct Waiter<'q, P: Protocol> {
    queue: &'q Queue<P>,
    /// Whether the place is other than `Idle`, for the destructor to know without the lock: only
    /// the owner's calls enter and leave `Idle`.
    entered: Cell<bool>,
    node: UnsafeCell<Node<P::Turn>>,
    /// The queue points here.
    _pinned: PhantomPinned,
}

// SAFETY: what is inside the `UnsafeCell` is touched under the queue's mutex only, whichever thread
// the waiter is on; what the node owns may cross threads.
unsafe impl<P: Protocol + Sync> Send for Waiter<'_, P>
where
    P::State: Send,
    P::Turn: Send,
{
}

// SAFETY: a shared waiter offers nothing by itself; the methods of `Locked` touch the node and
// write `entered` under the queue's mutex, and the destructor, which reads it without, is alone.
unsafe impl<P: Protocol + Sync> Sync for Waiter<'_, P>
where
    P::State: Send,
    P::Turn: Send,
{
}

impl<P: Protocol> Drop for Waiter<'_, P> {
    fn drop(&mut self) {
        if !self.entered.get() {
            return;
        }
        // SAFETY: a waiter that was entered was pinned, and is not moved before it is gone.
        let waiter = unsafe { Pin::new_unchecked(&*self) };
        let mut queue = self.queue.lock();
        if let Some((place, turn)) = queue.remove(waiter) {
            P::abandoned(&mut queue, place, turn);
        }
    }
}

/// A queue while its mutex is held: the state by dereference, the list by methods.
///
/// The methods that take a waiter panic if it is of another queue.
pub(super) struct Locked<'q, P: Protocol> {
    // Declared, so dropped, before `after`.
    inner: MutexGuard<'q, Inner<P>>,
    after: AfterUnlock,
    queue: &'q Queue<P>,
}

impl<P: Protocol> Deref for Locked<'_, P> {
    type Target = P::State;

    fn deref(&self) -> &P::State {
        &self.inner.state
    }
}

impl<P: Protocol> DerefMut for Locked<'_, P> {
    fn deref_mut(&mut self) -> &mut P::State {
        &mut self.inner.state
    }
}

impl<'q, P: Protocol> Locked<'q, P> {
    pub(super) fn protocol(&self) -> &'q P {
        &self.queue.protocol
    }

    /// The waiter's node. It may be dereferenced while `self` is borrowed.
    fn node(&self, waiter: Pin<&Waiter<'_, P>>) -> NonNull<Node<P::Turn>> {
        let queue: *const Queue<P> = waiter.queue;
        assert!(std::ptr::eq(queue, self.queue), "a waiter of another queue");
        NonNull::from(&waiter.get_ref().node).cast()
    }

    pub(super) fn place(&self, waiter: Pin<&Waiter<'_, P>>) -> Place {
        // SAFETY: alive, being borrowed, and we hold its queue's mutex.
        unsafe { (*self.node(waiter).as_ptr()).place }
    }

    /// Puts an idle waiter at the end.
    pub(super) fn push_back(&mut self, waiter: Pin<&Waiter<'_, P>>, turn: P::Turn) {
        self.insert_before(None, waiter, turn);
    }

    /// Puts an idle waiter before the first whose turn is `later`.
    pub(super) fn push_before(
        &mut self,
        waiter: Pin<&Waiter<'_, P>>,
        turn: P::Turn,
        later: impl Fn(&P::Turn) -> bool,
    ) {
        let mut at = self.inner.head;
        while let Some(node) = at {
            // SAFETY: linked, so alive, and we hold the mutex.
            let node = unsafe { &*node.as_ptr() };
            if node.turn.as_ref().is_some_and(&later) {
                break;
            }
            at = node.next;
        }
        self.insert_before(at, waiter, turn);
    }

    fn insert_before(&mut self, next: Link<P::Turn>, waiter: Pin<&Waiter<'_, P>>, turn: P::Turn) {
        let node = self.node(waiter);
        let inner = &mut *self.inner;
        // SAFETY: the node is alive and pinned, its waiter being borrowed and its destructor
        // removing it; `next` and its neighbour are linked, so alive; we hold the mutex. No
        // reference to a node is held here, so writing through the pointers aliases nothing.
        unsafe {
            assert!((*node.as_ptr()).place == Place::Idle, "pushed twice");
            let prev = match next {
                Some(next) => (*next.as_ptr()).prev.replace(node),
                None => inner.tail.replace(node),
            };
            match prev {
                Some(prev) => (*prev.as_ptr()).next = Some(node),
                None => inner.head = Some(node),
            }
            *node.as_ptr() =
                Node { prev, next, waker: None, turn: Some(turn), place: Place::Waiting };
        }
        waiter.entered.set(true);
    }

    /// Whom to wake when the waiter, which is not idle, is notified.
    pub(super) fn watch(&mut self, waiter: Pin<&Waiter<'_, P>>, waker: &Waker) {
        // SAFETY: alive, being borrowed, and we hold its queue's mutex; nothing else refers to the
        // field meanwhile: a waker's `clone` has no way to it but through that mutex.
        let slot = unsafe { &mut (*self.node(waiter).as_ptr()).waker };
        if !slot.as_ref().is_some_and(|watching| watching.will_wake(waker)) {
            self.after.replaced = slot.replace(waker.clone());
        }
    }

    /// The turn of the first who waits.
    pub(super) fn front(&mut self) -> Option<&mut P::Turn> {
        // SAFETY: linked, so alive, and we hold the mutex as long as the reference lives.
        self.inner.head.and_then(|node| unsafe { (*node.as_ptr()).turn.as_mut() })
    }

    /// Notifies the first who waits; it is woken after the unlock. `false`: nobody waits.
    pub(super) fn notify_front(&mut self) -> bool {
        let Some(node) = self.inner.head else {
            return false;
        };
        self.unlink(node);
        // SAFETY: it was linked, so it is alive, and until the mutex is released it stays so: its
        // destructor takes the mutex first.
        let waker = unsafe {
            (*node.as_ptr()).place = Place::Notified;
            (*node.as_ptr()).waker.take()
        };
        self.after.wake(waker);
        true
    }

    /// Makes the waiter idle. `None`: it was.
    pub(super) fn remove(&mut self, waiter: Pin<&Waiter<'_, P>>) -> Option<(Place, P::Turn)> {
        let node = self.node(waiter);
        let place = self.place(waiter);
        if place == Place::Waiting {
            self.unlink(node);
        }
        waiter.entered.set(false);
        // SAFETY: alive, being borrowed, and we hold its queue's mutex.
        let (waker, turn) = unsafe {
            (*node.as_ptr()).place = Place::Idle;
            ((*node.as_ptr()).waker.take(), (*node.as_ptr()).turn.take())
        };
        if waker.is_some() {
            self.after.replaced = waker;
        }
        turn.map(|turn| (place, turn))
    }

    /// Takes a linked node out of the list.
    fn unlink(&mut self, node: NonNull<Node<P::Turn>>) {
        let inner = &mut *self.inner;
        // SAFETY: the callers pass linked nodes; those and their neighbours are alive, and we hold
        // the mutex. No reference to a node is held here.
        unsafe {
            let (prev, next) = ((*node.as_ptr()).prev.take(), (*node.as_ptr()).next.take());
            match prev {
                Some(prev) => (*prev.as_ptr()).next = next,
                None => inner.head = next,
            }
            match next {
                Some(next) => (*next.as_ptr()).prev = prev,
                None => inner.tail = prev,
            }
        }
    }
}

/// What is left to do when the mutex is released: to wake, and to drop a waker (which may end a
/// task, whose destructors may come back to this queue).
#[derive(Default)]
struct AfterUnlock {
    wake: [Option<Waker>; 2],
    /// Beyond the two that suffice for nearly every unlock.
    wake_too: Vec<Waker>,
    replaced: Option<Waker>,
}

impl AfterUnlock {
    fn wake(&mut self, waker: Option<Waker>) {
        let Some(waker) = waker else { return };
        match self.wake.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => *slot = Some(waker),
            None => self.wake_too.push(waker),
        }
    }
}

impl Drop for AfterUnlock {
    #[inline]
    fn drop(&mut self) {
        // Filled in order, and mostly empty.
        for waker in &mut self.wake {
            let Some(waker) = waker.take() else { return };
            waker.wake();
        }
        std::mem::take(&mut self.wake_too).into_iter().for_each(Waker::wake);
    }
}
