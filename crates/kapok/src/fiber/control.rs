//! The control block of a fiber.
//!
//! ```text
//!   Arc<Fiber> ── held by: its loop while it is not over · its JoinHandle · its Wakers
//!   ┌─ shared, any thread ─────────────────────────────────────────────────────────────┐
//!   │ word: park word    cancel: requested    home: the loop it runs on    inbox link   │
//!   ├─ local, only the home thread (before the start: only who holds the closure) ─────┤
//!   │ coroutine + stack   what it waits for   what landed   deadline   fiber-locals     │
//!   └──────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A fiber is in one of four places: unstarted in a queue, running, ready in its loop's queue, or
//! suspended. Suspended it waits for exactly one thing: an operation, which must land before it may
//! be resumed, or its park word.
//!
//! # The park word
//!
//! Three states, changed by read-modify-write only:
//!
//! ```text
//!            park: CAS, then suspend
//!   EMPTY ───────────────────────────► PARKED
//!     ▲ │ unpark: swap                   │ unpark: swap, and whoever swapped makes it ready
//!     │ └──────────► NOTIFIED ◄──────────┘
//!     └──────────────────┘ park or resume: swap
//! ```
//!
//! Only the unpark that swaps `PARKED` out makes the fiber ready, so it is queued once. A token
//! left while the fiber waits for an operation is taken by its next park.

use std::cell::UnsafeCell;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Wake, Waker};
use std::time::Instant;

use corosensei::{Coroutine, Yielder};
use kapok_engine::Key;

use super::join::Abandon;
use super::local::Locals;
use crate::primitives::atomic::{AtomicBool, AtomicPtr, AtomicU8, Ordering, fence};
use crate::runtime::Remote;
use crate::stack::{FiberLabel, PooledStack, StackSize};

pub(crate) type FiberCoroutine = Coroutine<Resume, (), (), PooledStack>;

/// What a suspended fiber is resumed for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Resume {
    /// What it waited for has come.
    GoOn,
    /// It is to take its own backtrace and to suspend again: see `Loop::suspend`.
    Report,
}

const EMPTY: u8 = 0;
const PARKED: u8 = 1;
const NOTIFIED: u8 = 2;

/// What a suspended fiber waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Waiting {
    /// Nothing: it runs or is ready to.
    Nothing,
    /// This operation. Nothing but its landing resumes the fiber.
    Operation(Key),
    /// Its park word. Cancellation and deadlines unpark it too; whoever waits decides whether that
    /// ends the wait.
    Park,
}

/// What only the home thread touches.
pub(crate) struct Local {
    /// Not started yet.
    pub(crate) entry: Option<Box<dyn FnOnce()>>,
    /// Started and not over.
    pub(crate) coroutine: Option<FiberCoroutine>,
    /// How the fiber leaves its own stack; set when it first runs.
    pub(crate) yielder: Option<NonNull<Yielder<Resume, ()>>>,
    /// Its place in the loop's table of fibers.
    pub(crate) index: u32,
    pub(crate) waiting: Waiting,
    /// When it was suspended last, to about a turn.
    pub(crate) since: Instant,
    /// What its operation landed with.
    pub(crate) result: i32,
    /// The nearest deadline around the code that runs now.
    pub(crate) deadline: Option<Instant>,
    /// How many waits for futures are inside each other.
    pub(crate) waits: u32,
    /// How many shields are around the code that runs now.
    pub(crate) shields: u32,
    pub(crate) locals: Locals,
    /// Who is told if the fiber never ends. Weak: what the fiber comes to is not the fiber's to keep.
    pub(crate) packet: Weak<dyn Abandon>,
}

pub(crate) struct Fiber {
    word: AtomicU8,
    cancel: AtomicBool,
    /// The peer of the connection that this fiber serves is gone.
    peer_gone: AtomicBool,
    /// Links fibers in the inbox of their loop. Used by whoever swapped `PARKED` out of `word`.
    pub(crate) inbox_next: AtomicPtr<Fiber>,
    /// Set when the fiber starts, for good.
    pub(crate) home: OnceLock<Arc<Remote>>,
    pub(crate) label: FiberLabel,
    pub(crate) stack_size: StackSize,
    /// What it runs may borrow from code that waits for it to end.
    pub(crate) borrows: bool,
    /// When it was spawned, to about a turn.
    pub(crate) born: Instant,
    local: UnsafeCell<Local>,
}

// SAFETY: `local` is only reached through `Fiber::local`, whose callers are on the home thread (or
// hold the unstarted fiber alone); everything else is atomic or never changes. What `local` still
// holds when the last reference goes, on whichever thread, is inert: the loop has taken out the
// entry, the coroutine and the fiber-locals, and a weak reference frees memory at most.
unsafe impl Send for Fiber {}
// SAFETY: as for `Send`.
unsafe impl Sync for Fiber {}

impl Fiber {
    pub(crate) fn new(
        label: FiberLabel,
        stack_size: StackSize,
        borrows: bool,
        deadline: Option<Instant>,
        born: Instant,
        entry: Box<dyn FnOnce()>,
        packet: Weak<dyn Abandon>,
    ) -> Arc<Fiber> {
        Arc::new(Fiber {
            word: AtomicU8::new(EMPTY),
            cancel: AtomicBool::new(false),
            peer_gone: AtomicBool::new(false),
            inbox_next: AtomicPtr::new(std::ptr::null_mut()),
            home: OnceLock::new(),
            label,
            stack_size,
            borrows,
            born,
            local: UnsafeCell::new(Local {
                entry: Some(entry),
                coroutine: None,
                yielder: None,
                index: u32::MAX,
                waiting: Waiting::Nothing,
                since: born,
                result: 0,
                deadline,
                waits: 0,
                shields: 0,
                locals: Locals::new(),
                packet,
            }),
        })
    }

    /// The part that only the home thread touches.
    ///
    /// # Safety
    ///
    /// The caller is on the fiber's home thread, or holds the unstarted fiber alone, and makes no
    /// second reference to the same field while it uses the first. In particular it keeps none
    /// across a switch or a call to foreign code.
    #[inline]
    pub(crate) unsafe fn local(&self) -> *mut Local {
        self.local.get()
    }

    /// Announces that the fiber is about to suspend. `false`: a token was there and has been taken.
    #[inline]
    pub(crate) fn prepare_park(&self) -> bool {
        match self.word.compare_exchange(EMPTY, PARKED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(_) => {
                self.take_token();
                false
            }
        }
    }

    /// Takes the token, if there is one. What was published before it was left is visible after.
    #[inline]
    pub(crate) fn take_token(&self) {
        self.word.swap(EMPTY, Ordering::AcqRel);
    }

    /// Leaves a token. `true`: the fiber was parked, and the caller must make it ready.
    #[must_use]
    #[inline]
    pub(crate) fn leave_token(&self) -> bool {
        self.word.swap(NOTIFIED, Ordering::AcqRel) == PARKED
    }

    /// Whether the fiber waits for its word. Asked by its home while it is suspended.
    pub(crate) fn is_parked(&self) -> bool {
        self.word.load(Ordering::Relaxed) == PARKED
    }

    /// Ends the fiber's park, or keeps its next one from waiting. From any thread.
    pub(crate) fn unpark(self: &Arc<Self>) {
        if self.leave_token() {
            let home = self.home.get().expect("a fiber that is parked has started");
            home.make_ready(Fiber::pointer(self));
        }
    }

    /// The fiber as its loop names it. Taken from the `Arc` itself, so that another reference may be
    /// made from it again.
    pub(crate) fn pointer(this: &Arc<Self>) -> NonNull<Fiber> {
        // SAFETY: the pointer of an `Arc` is not null.
        unsafe { NonNull::new_unchecked(Arc::as_ptr(this).cast_mut()) }
    }

    pub(crate) fn cancel_requested(&self) -> bool {
        self.cancel.load(Ordering::Acquire)
    }

    /// Requests cancellation. From any thread; once is enough.
    pub(crate) fn request_cancel(self: &Arc<Self>) {
        if !self.cancel.swap(true, Ordering::AcqRel) {
            fence(Ordering::SeqCst);
            self.poke();
        }
    }

    pub(crate) fn peer_gone(&self) -> bool {
        self.peer_gone.load(Ordering::Relaxed)
    }

    /// Tells the fiber that the peer of the connection it serves is gone for good.
    pub(crate) fn set_peer_gone(self: &Arc<Self>) {
        if !self.peer_gone.swap(true, Ordering::AcqRel) {
            self.poke();
        }
    }

    /// Has the loop look at the fiber again, because a reason to interrupt it has come up.
    pub(crate) fn poke(self: &Arc<Self>) {
        // An unstarted fiber sees the reason when it first waits.
        if let Some(home) = self.home.get() {
            home.interrupt(Arc::clone(self));
        }
    }

    /// Binds the fiber to the loop that starts it.
    pub(crate) fn set_home(&self, home: &Arc<Remote>) {
        let fresh = self.home.set(Arc::clone(home)).is_ok();
        debug_assert!(fresh, "a fiber starts once");
        // Against `request_cancel`: either it sees the home, or the fiber sees the request.
        fence(Ordering::SeqCst);
    }

    /// How reports call the fiber.
    pub(crate) fn title(&self) -> String {
        match &self.label.name {
            Some(name) => format!("{name:?} (#{})", self.label.id),
            None => format!("#{}", self.label.id),
        }
    }
}

impl Wake for Fiber {
    fn wake(self: Arc<Self>) {
        self.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.unpark();
    }
}

/// Runs `f` with a waker of `fiber` that costs no reference count unless it is cloned.
///
/// # Safety
///
/// `fiber` came from an `Arc` that is held by someone else until `f` has returned.
pub(crate) unsafe fn with_waker<R>(fiber: NonNull<Fiber>, f: impl FnOnce(&Waker) -> R) -> R {
    // SAFETY: it came from an `Arc`, by the caller. The reference count is not ours, so what we
    // make of it must never be dropped.
    let waker = ManuallyDrop::new(Waker::from(unsafe { Arc::from_raw(fiber.as_ptr()) }));
    f(&waker)
}
