//! Masks of signals, of threads and of fibers.
//!
//! A signal goes to a thread that does not block it. A fiber's mask is its thread's while the fiber
//! runs. While no fiber runs, the thread has the main fiber's mask, the one that it had before fibers
//! had any: so a program that runs as one fiber blocks what it has blocked while it waits. A fiber
//! begins with that too, as a thread begins with its maker's.
//!
//! The masks change places where hooked calls suspend a fiber ([`aside`]). A fiber that blocks a signal
//! and then suspends by a call of Kapok's own takes its mask along.
//!
//! Three things change what the kernel is told, whichever fiber runs: what a fiber waits for by
//! sigwait(3) is blocked; what it lets through by sigsuspend(2) or ppoll(2) is not; and what is
//! [deferred](super::deferred) is, until it is handled.

use std::cell::{Cell, RefCell};
use std::ffi::c_int;
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use kapok::{FiberLocal, interpose};

use super::deferred;
use crate::kernel::kernel;

/// A set of signals as the kernel has it: bit 0 is signal 1.
pub(crate) type Set = u64;

/// Those that a fault of the thread itself raises: blocking them would turn a diagnosis into a kill.
pub(super) const SYNCHRONOUS: [c_int; 7] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGABRT,
];

pub(crate) const fn bit(signal: c_int) -> Set {
    1 << (signal - 1)
}

/// The signals of a set.
pub(super) fn signals(set: Set) -> impl Iterator<Item = c_int> {
    (1..=64).filter(move |&signal| set & bit(signal) != 0)
}

/// Changes the thread's mask as `how` says, and gives the one before.
pub(crate) fn change(how: c_int, set: Option<Set>) -> Set {
    let mut before: Set = 0;
    let new = set.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: sets of the size that is told, of which one is a local that is written.
    let _ =
        unsafe { kernel!(libc::SYS_rt_sigprocmask, how, new, &raw mut before, size_of::<Set>()) };
    before
}

/// Signals of the C library's own, which all its threads have to take: setuid(2) of one thread is that of
/// all, and waits for each of them.
pub(super) const RESERVED: Set = bit(32) | bit(33);

/// Blocks all signals of the thread, but those that it raises itself and the C library's, until it is
/// dropped: for the making of threads that handle none.
pub(crate) struct Blocked(Set);

impl Blocked {
    pub(crate) fn all() -> Blocked {
        let spared = SYNCHRONOUS.iter().fold(RESERVED, |set, &signal| set | bit(signal));
        Blocked(change(libc::SIG_BLOCK, Some(!spared)))
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        change(libc::SIG_SETMASK, Some(self.0));
    }
}

/// A thread that has fibers, and its masks.
struct Thread {
    /// The loop whose fibers they are. 0: not looked at yet.
    of_loop: Cell<u64>,
    /// That of whoever runs: of a fiber, or of none.
    now: Cell<Set>,
    /// That of the main fiber, or of the thread when its loop began: while no fiber runs.
    base: Cell<Set>,
    /// What is blocked, and what is let through, for fibers that wait.
    waits: RefCell<Vec<(u64, Set, Set)>>,
    /// All of `waits` together.
    blocked: Cell<Set>,
    let_through: Cell<Set>,
    /// What the kernel was told last.
    applied: AtomicU64,
    /// A handler has left by a jump, after which the mask is the program's affair.
    may_be_another: Cell<bool>,
    /// The fiber that has put its mask aside last, in order to wait.
    aside: AtomicU64,
}

// Never destroyed: after the thread-locals come the functions of atexit(3), which may wait; and handlers
// of signals look.
thread_local! {
    static THREAD: ManuallyDrop<Thread> = const {
        ManuallyDrop::new(Thread {
            of_loop: Cell::new(0),
            now: Cell::new(0),
            base: Cell::new(0),
            waits: RefCell::new(Vec::new()),
            blocked: Cell::new(0),
            let_through: Cell::new(0),
            applied: AtomicU64::new(0),
            may_be_another: Cell::new(false),
            aside: AtomicU64::new(0),
        })
    };
}

impl Thread {
    /// Begins to follow the mask, if its loop is another than before.
    #[inline]
    fn follow(&self) {
        let lp = interpose::loop_id();
        if self.of_loop.get() != lp {
            self.begin(lp);
        }
        if self.may_be_another.get() {
            self.settle();
        }
    }

    #[cold]
    fn begin(&self, lp: u64) {
        self.of_loop.set(lp);
        self.may_be_another.set(false);
        self.aside.store(0, Ordering::Relaxed);
        *self.waits.borrow_mut() = Vec::new();
        self.sum_up();
        // What the loop before has left behind.
        let left = deferred::forget();
        let mask = change(libc::SIG_BLOCK, None) & !left;
        self.now.set(mask);
        self.base.set(mask);
        self.applied.store(mask | left, Ordering::Relaxed);
        self.apply();
    }

    #[cold]
    fn settle(&self) {
        self.may_be_another.set(false);
        let found = change(libc::SIG_BLOCK, None);
        self.applied.store(found, Ordering::Relaxed);
        let ours = deferred::signals() | self.blocked.get() | self.let_through.get();
        let mine = found & !ours | self.now.get() & ours;
        if mine != self.now.get() {
            end();
            self.now.set(mine);
        }
        self.apply();
    }

    fn sum_up(&self) {
        let waits = self.waits.borrow();
        self.blocked.set(waits.iter().fold(0, |all, (_, blocked, _)| all | blocked));
        self.let_through.set(waits.iter().fold(0, |all, (_, _, let_through)| all | let_through));
    }

    fn set(&self, mask: Set) {
        self.now.set(mask);
        self.apply();
    }

    /// Tells the kernel, if that is anything new.
    #[inline]
    fn apply(&self) {
        let mask = self.now.get() | self.blocked.get();
        let mask = mask & !self.let_through.get() | deferred::signals();
        if self.applied.swap(mask, Ordering::Relaxed) != mask {
            change(libc::SIG_SETMASK, Some(mask));
        }
    }
}

/// Whether whoever runs on this thread lets a signal. Async-signal-safe.
pub(super) fn lets(signal: c_int) -> bool {
    THREAD.with(|thread| {
        thread.of_loop.get() != interpose::loop_id() || thread.now.get() & bit(signal) == 0
    })
}

/// The mask of the fiber that runs.
pub(crate) fn mine() -> Set {
    THREAD.with(|thread| {
        thread.follow();
        thread.now.get()
    })
}

/// Gives the fiber that runs another mask.
pub(super) fn set_mine(mask: Set, is_main: bool) {
    THREAD.with(|thread| {
        thread.follow();
        end();
        if is_main {
            thread.base.set(mask);
        }
        thread.set(mask);
    });
}

/// Gives the thread back the mask that it has between fibers, at the end of the one that runs.
fn end() {
    struct End;
    static END: FiberLocal<End> = FiberLocal::new(|| End);
    impl Drop for End {
        fn drop(&mut self) {
            THREAD.with(|thread| thread.set(thread.base.get()));
        }
    }
    if kapok::on_fiber() {
        END.with(|_| ());
    }
}

/// Has the mask looked at before it is relied on again: a handler leaves by a jump.
pub(crate) fn may_be_another() {
    THREAD.with(|thread| thread.may_be_another.set(true));
}

/// Tells the kernel again, which has been told something else. What is no longer deferred is let
/// through then.
pub(super) fn apply_again() {
    THREAD.with(|thread| {
        thread.applied.store(change(libc::SIG_BLOCK, None), Ordering::Relaxed);
        thread.apply();
    });
}

/// Notes that the kernel blocks a signal more, by the context of a handler. Async-signal-safe.
pub(super) fn note_blocked(signal: c_int) {
    THREAD.with(|thread| thread.applied.fetch_or(bit(signal), Ordering::Relaxed));
}

/// Whether a fiber that runs has put its mask aside and is about to be suspended. Async-signal-safe.
pub(super) fn is_aside(fiber: u64) -> bool {
    THREAD.with(|thread| thread.aside.load(Ordering::Relaxed) == fiber)
}

/// Runs a wait of the running fiber, during which its thread has not its mask.
pub(crate) fn aside<R>(wait: impl FnOnce() -> R) -> R {
    let mine = mine();
    let fiber = kapok::current_id().unwrap_or(0);
    THREAD.with(|thread| {
        thread.aside.store(fiber, Ordering::Relaxed);
        // From here on nobody leaves a signal for this fiber unless it waits for signals too.
        deferred::run_before_wait(fiber);
        thread.set(thread.base.get());
    });
    let result = wait();
    THREAD.with(|thread| {
        thread.follow();
        // It may be that of a fiber which did not wait here.
        let _ = thread.aside.compare_exchange(fiber, 0, Ordering::Relaxed, Ordering::Relaxed);
        thread.set(mine);
    });
    result
}

/// Changes of what the thread blocks, whichever fiber runs, while the running one waits for signals;
/// until it is dropped.
pub(crate) struct Waiting {
    fiber: u64,
    is_main: bool,
    /// The fiber's mask of before, if it has another one meanwhile.
    before: Option<Set>,
}

impl Waiting {
    /// Blocks what is to be taken.
    pub(super) fn for_blocked(fiber: u64, blocked: Set) -> Waiting {
        Waiting::enter(fiber, blocked, 0);
        Waiting { fiber, is_main: false, before: None }
    }

    /// Gives the fiber another mask for the duration of a call, as sigsuspend(2) and ppoll(2) do.
    pub(crate) fn with_mask(fiber: u64, is_main: bool, mask: Set) -> Waiting {
        let before = mine();
        THREAD.with(|thread| {
            thread.now.set(mask);
            if is_main {
                thread.base.set(mask);
            }
        });
        // What is pending comes here, and is deferred for this fiber.
        Waiting::enter(fiber, 0, !mask);
        Waiting { fiber, is_main, before: Some(before) }
    }

    fn enter(fiber: u64, blocked: Set, let_through: Set) {
        THREAD.with(|thread| {
            thread.follow();
            thread.waits.borrow_mut().push((fiber, blocked, let_through));
            thread.sum_up();
            thread.apply();
        });
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        THREAD.with(|thread| {
            let mut waits = thread.waits.borrow_mut();
            waits.retain(|(fiber, ..)| *fiber != self.fiber);
            if waits.is_empty() {
                // Nobody frees it at the thread's end.
                *waits = Vec::new();
            }
            drop(waits);
            thread.sum_up();
            if let Some(before) = self.before {
                thread.now.set(before);
                if self.is_main {
                    thread.base.set(before);
                }
            }
            thread.apply();
        });
    }
}

/// In the child of a fork: nobody waits, nothing is deferred, and the thread has the mask of the fiber
/// that forked.
pub(crate) fn in_child() {
    THREAD.with(|thread| {
        let left = deferred::forget();
        if thread.of_loop.get() == 0 {
            return;
        }
        *thread.waits.borrow_mut() = Vec::new();
        thread.sum_up();
        thread.aside.store(0, Ordering::Relaxed);
        thread.applied.fetch_or(left, Ordering::Relaxed);
        thread.apply();
        // Loops of its own begin anew.
        thread.of_loop.set(0);
    });
}
