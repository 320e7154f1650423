//! The control block of a fiber.
//!
//! ```text
//!   FiberRef ── held by: its loop while it is not over · its JoinHandle · its Wakers
//!   ┌─ shared, any thread ─────────────────────────────────────────────────────────────┐
//!   │ word: park word    cancel: requested    home: the loop it runs on    inbox link   │
//!   │ packet: entry, then result, and who waits for it (see `packet`)                   │
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
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use corosensei::{Coroutine, Yielder};
use kapok_engine::{Buffers, Key};

use super::local::Locals;
use super::packet::{Body, Packet};
use super::reference::{FiberRef, References, Spare};
use crate::primitives::atomic::{AtomicBool, AtomicPtr, AtomicU8, Ordering};
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
    /// The end of another fiber of its loop. Whoever makes it ready sets this to `Nothing`, so it is
    /// queued once.
    Join,
    /// Its park word. Cancellation and deadlines unpark it too; whoever waits decides whether that
    /// ends the wait.
    Park,
}

/// A future that a fiber waits for and that is to be dropped although the fiber never ends: one of the
/// crate's own, which stands in a queue where it would be in the way of others.
#[derive(Clone, Copy)]
pub(crate) struct Retiring {
    future: *mut (),
    drop: unsafe fn(*mut ()),
}

impl Retiring {
    pub(crate) fn new<F>(future: *mut F) -> Retiring {
        unsafe fn drop<F>(future: *mut ()) {
            // SAFETY: by the caller.
            unsafe { future.cast::<F>().drop_in_place() };
        }
        Retiring { future: future.cast(), drop: drop::<F> }
    }

    /// # Safety
    ///
    /// Its fiber is suspended between two polls of the future, and is never resumed.
    pub(crate) unsafe fn retire(self) {
        // SAFETY: by the caller: nobody uses the future meanwhile or afterwards, so this is its only
        // drop, and it is where it was pinned.
        unsafe { (self.drop)(self.future) };
    }
}

/// What only the home thread touches; what a switch touches of it first.
#[repr(C)]
pub(crate) struct Local {
    /// Started and not over.
    pub(crate) coroutine: Option<FiberCoroutine>,
    /// How the fiber leaves its own stack; set when it first runs.
    pub(crate) yielder: Option<NonNull<Yielder<Resume, ()>>>,
    /// About where its stack ends while it is suspended.
    pub(crate) suspended_at: *const u8,
    /// Its place in the loop's table of fibers.
    pub(crate) index: u32,
    pub(crate) waiting: Waiting,
    /// When it was suspended last, to about a turn.
    pub(crate) since: Instant,
    /// What its operation landed with.
    pub(crate) result: i32,
    /// The flags of that landing.
    pub(crate) flags: u32,
    /// The engine's buffer that holds it, if the operation was one that lands in such: taken by the
    /// call that made it, so none when the fiber ends.
    pub(crate) buffer: Option<(Rc<Buffers>, u16)>,
    /// The nearest deadline around the code that runs now.
    pub(crate) deadline: Option<Instant>,
    /// How many waits for futures are inside each other.
    pub(crate) waits: u32,
    /// How many shields are around the code that runs now.
    pub(crate) shields: u32,
    /// It is inside a hooked call: see `interpose`.
    pub(crate) inside: bool,
    /// What is dropped if it is left behind where it is suspended.
    pub(crate) retiring: Option<Retiring>,
    pub(crate) locals: Locals,
    /// How to run what it is to run, and whom to tell if it never ends. None once the packet is
    /// settled.
    pub(crate) body: Option<&'static Body>,
}

/// What a fiber is given when it is made.
pub(super) struct Limits {
    pub(super) stack_size: StackSize,
    pub(super) deadline: Option<Instant>,
    pub(super) borrows: bool,
}

/// What a switch touches comes first, on lines of its own; then what a fiber's beginning and end
/// touch, and what hardly anybody asks for.
#[repr(C, align(64))]
pub(crate) struct Fiber {
    pub(super) references: References,
    word: AtomicU8,
    cancel: AtomicBool,
    /// The peer of the connection that this fiber serves is gone.
    peer_gone: AtomicBool,
    /// What it runs may borrow from code that waits for it to end.
    pub(crate) borrows: bool,
    pub(crate) stack_size: StackSize,
    local: UnsafeCell<Local>,
    /// Links fibers in the inbox of their loop. Used by whoever swapped `PARKED` out of `word`.
    pub(crate) inbox_next: AtomicPtr<Fiber>,
    /// The remote side of the loop it runs on: null until it is bound to one, when it starts at the
    /// latest, then for good. A counted reference, which stays with the memory (see [`Spare`]).
    home: AtomicPtr<Remote>,
    pub(crate) label: FiberLabel,
    pub(super) packet: Packet,
    /// When it was spawned, to about a turn.
    pub(crate) born: Instant,
}

// SAFETY: `local` is only reached through `Fiber::local`, whose callers are on the home thread (or
// hold the unstarted fiber alone); the packet is as its state says; everything else is atomic or
// never changes. What `local` still holds when the last reference goes, on whichever thread, is
// inert: the loop has taken out the coroutine and the fiber-locals.
unsafe impl Send for Fiber {}
// SAFETY: as for `Send`.
unsafe impl Sync for Fiber {}

impl Fiber {
    /// How much of a control block a switch touches, from its beginning.
    pub(crate) const SWITCHED_BYTES: usize =
        std::mem::offset_of!(Fiber, local) + std::mem::offset_of!(Local, locals);

    /// Makes a fiber in `spare`: the references for its loop, and for its handle. It runs `body`
    /// with what `entry` puts into its packet.
    #[inline]
    pub(super) fn create(
        spare: Spare,
        label: FiberLabel,
        limits: Limits,
        born: Instant,
        body: &'static Body,
        write_packet: impl FnOnce(*mut Packet),
    ) -> (FiberRef, FiberRef) {
        let (place, home) = spare.into_parts();
        let fiber: NonNull<Fiber> = place.cast();
        // Field by field: a control block is too large to be made elsewhere and moved.
        // SAFETY: the place is ours, and large enough; each field is written, `packet` by the
        // closure.
        unsafe {
            let at = fiber.as_ptr();
            (&raw mut (*at).references).write(References::new(2));
            (&raw mut (*at).word).write(AtomicU8::new(EMPTY));
            (&raw mut (*at).cancel).write(AtomicBool::new(false));
            (&raw mut (*at).peer_gone).write(AtomicBool::new(false));
            (&raw mut (*at).borrows).write(limits.borrows);
            (&raw mut (*at).stack_size).write(limits.stack_size);
            (&raw mut (*at).local).write(UnsafeCell::new(Local {
                coroutine: None,
                yielder: None,
                suspended_at: std::ptr::null(),
                index: u32::MAX,
                waiting: Waiting::Nothing,
                since: born,
                result: 0,
                flags: 0,
                buffer: None,
                deadline: limits.deadline,
                waits: 0,
                shields: 0,
                inside: false,
                retiring: None,
                locals: Locals::new(),
                body: Some(body),
            }));
            (&raw mut (*at).inbox_next).write(AtomicPtr::new(std::ptr::null_mut()));
            (&raw mut (*at).home).write(AtomicPtr::new(home.cast_mut()));
            (&raw mut (*at).label).write(label);
            write_packet(&raw mut (*at).packet);
            (&raw mut (*at).born).write(born);
            FiberRef::pair(fiber)
        }
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

    /// The fiber as its loop names it. Taken from the reference itself, so that another one may be
    /// made from it again.
    #[inline]
    pub(crate) fn pointer(this: &FiberRef) -> NonNull<Fiber> {
        this.as_pointer()
    }

    pub(crate) fn cancel_requested(&self) -> bool {
        self.cancel.load(Ordering::Acquire)
    }

    pub(crate) fn peer_gone(&self) -> bool {
        self.peer_gone.load(Ordering::Relaxed)
    }

    /// Whether the fiber is bound to the loop of `remote`.
    #[inline]
    pub(crate) fn is_at_home(&self, remote: &Remote) -> bool {
        std::ptr::eq(self.home.load(Ordering::Relaxed), remote)
    }

    /// What is to be given up with the control block: null, or a counted reference.
    #[inline]
    pub(super) fn home_pointer(&self) -> *const Remote {
        self.home.load(Ordering::Relaxed)
    }

    /// Binds a fiber that nobody else knows of yet to the loop that will start it, or to none.
    #[inline]
    pub(crate) fn bind(&self, home: Option<&Arc<Remote>>) {
        let before = self.home_pointer();
        if std::ptr::eq(before, home.map_or(std::ptr::null(), Arc::as_ptr)) {
            return;
        }
        let after = home.map_or(std::ptr::null(), |home| Arc::into_raw(Arc::clone(home)));
        self.home.store(after.cast_mut(), Ordering::Relaxed);
        if !before.is_null() {
            // SAFETY: a counted reference, which nobody else has looked at.
            drop(unsafe { Arc::from_raw(before) });
        }
    }

    /// Binds the fiber to the loop that starts it, if it is not bound yet.
    #[inline]
    pub(crate) fn set_home(&self, home: &Arc<Remote>) {
        if !self.home.load(Ordering::Relaxed).is_null() {
            return;
        }
        self.home.store(Arc::into_raw(Arc::clone(home)).cast_mut(), Ordering::Release);
        // Against `request_cancel`, which swaps the same word: if that comes first, the fiber sees
        // the request from here on; if it comes later, it sees the home.
        self.cancel.fetch_or(false, Ordering::AcqRel);
    }

    /// How reports call the fiber.
    pub(crate) fn title(&self) -> String {
        match &self.label.name {
            Some(name) => format!("{name:?} (#{})", self.label.id),
            None => format!("#{}", self.label.id),
        }
    }
}

impl FiberRef {
    /// Ends the fiber's park, or keeps its next one from waiting. From any thread.
    pub(crate) fn unpark(&self) {
        if self.leave_token() {
            let home = self.home().expect("a fiber that is parked has started");
            home.make_ready(Fiber::pointer(self));
        }
    }

    /// Requests cancellation. From any thread; once is enough.
    pub(crate) fn request_cancel(&self) {
        if !self.cancel.swap(true, Ordering::AcqRel) {
            self.poke();
        }
    }

    /// Tells the fiber that the peer of the connection it serves is gone for good.
    pub(crate) fn set_peer_gone(&self) {
        if !self.peer_gone.swap(true, Ordering::AcqRel) {
            self.poke();
        }
    }

    /// Has the loop look at the fiber again, because a reason to interrupt it has come up.
    pub(crate) fn poke(&self) {
        // An unstarted fiber sees the reason when it first waits.
        if let Some(home) = self.home() {
            home.interrupt(self.clone());
        }
    }

    fn home(&self) -> Option<&Remote> {
        // SAFETY: a counted reference, which lasts as long as the fiber does.
        NonNull::new(self.home.load(Ordering::Acquire)).map(|home| unsafe { &*home.as_ptr() })
    }
}
