//! Waiting at a futex word: the one wait under mutexes, semaphores, barriers, `pthread_once` and the
//! locks of std.
//!
//! The words stay what the C library makes of them, and the kernel stays the one place where waiters
//! queue. So whoever changes a word and calls `FUTEX_WAKE`, hooked or not, by way of a function that
//! libc calls inside itself, in another process, or as the kernel at the end of a thread, wakes a fiber
//! as it wakes a thread: the kernel compares the word and queues the waiter in one step. Nothing here
//! has to know who may wake whom.
//!
//! A fiber gets into that queue by its ring ([`Op::FutexWait`]), and where the engine has no such wait
//! by a thread that stands in for it ([`stand_in`](super::stand_in)). Code that must not suspend
//! blocks its thread, as it would without fibers.
//!
//! A wake-up is for one waiter, so none may be swallowed by a wait that its fiber has given up: after a
//! deadline, say. Until it has left the kernel's queue such a wait may still be woken, and then it
//! passes the wake-up on ([`pass_on`]).
//!
//! A ring takes operations up in its loop's own time, and by then other fibers may have changed the word: the
//! wait ends for nothing, and its fiber waits again. One does no harm. Of a thousand that wait for a connection
//! of a pool, where each return changes the word of its condition, all would run in each round of the loop, and
//! wait again, for as long as there is anything to do. So after a wait that has ended like this the next ones
//! are handed to the kernel as they are made ([`Haste`]).
//!
//! Every wait may end for no reason. Callers look at their word again.

use std::cell::Cell;
use std::future;
use std::pin::pin;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use kapok::interpose::{self, Ended, Operation};
use kapok_engine::Op;
use libc::{c_int, timespec};

use super::abandoned::{Left, Registered};
use super::deadline::Deadline;
use super::owner;
use super::stand_in::StandIn;
use crate::allocator;
use crate::errno::{self, Errno};
use crate::kernel::kernel;
use crate::signals::mask::aside;

/// Whether waits of this thread's fibers are handed to the kernel at once. Each costs a system call then, as
/// it does a thread.
struct Haste;

thread_local! {
    /// For how many waits more.
    static HASTE: Cell<u32> = const { Cell::new(0) };
}

impl Haste {
    /// So many after one that has ended for nothing: few where that is rare, and where many wait, one in so
    /// many.
    const WAITS: u32 = 256;

    fn take() -> bool {
        let left = HASTE.get();
        HASTE.set(left.saturating_sub(1));
        left > 0
    }

    fn begin() {
        HASTE.set(Self::WAITS);
    }
}

/// What came of a wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// Somebody woke those who wait here, or nobody did: see the module.
    Woken,
    /// The word was not what was expected.
    Changed,
    /// The deadline passed.
    TimedOut,
    /// The deadline is none: its nanoseconds are out of range.
    Invalid,
}

impl Outcome {
    /// The error number of a wait that has failed; 0 for those after which to look again.
    pub(crate) fn error(self) -> c_int {
        match self {
            Outcome::TimedOut => libc::ETIMEDOUT,
            Outcome::Invalid => libc::EINVAL,
            Outcome::Woken | Outcome::Changed => 0,
        }
    }
}

/// A futex word, and for whom it is waited there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Word {
    address: *const u32,
    mask: u32,
    shared: bool,
}

// SAFETY: the address is only passed to the kernel, but for `Word::load`, which says what it needs.
unsafe impl Send for Word {}
// SAFETY: as above.
unsafe impl Sync for Word {}

impl Word {
    /// A word by its address.
    pub(crate) fn new(address: *const u32, mask: u32, shared: bool) -> Word {
        Word { address, mask, shared }
    }

    pub(crate) fn of(word: &AtomicU32, shared: bool) -> Word {
        Word::new(word.as_ptr(), u32::MAX, shared)
    }

    pub(super) fn address(self) -> *const u32 {
        self.address
    }

    pub(super) fn mask(self) -> u32 {
        self.mask
    }

    pub(super) fn is_shared(self) -> bool {
        self.shared
    }

    /// What it is now.
    ///
    /// # Safety
    ///
    /// The word is aligned and valid for reading.
    pub(crate) unsafe fn load(self) -> u32 {
        // SAFETY: by the caller.
        unsafe { AtomicU32::from_ptr(self.address.cast_mut()) }.load(Ordering::SeqCst)
    }

    /// The operation for futex(2) on it.
    pub(super) fn operation(self, operation: c_int) -> c_int {
        operation | if self.shared { 0 } else { libc::FUTEX_PRIVATE_FLAG }
    }

    /// Wakes up to `count` of those who wait at it. It may be gone already: who was woken otherwise
    /// may have freed it, and then at worst somebody else wakes up for no reason.
    pub(crate) fn wake(self, count: i32) {
        let operation = self.operation(libc::FUTEX_WAKE_BITSET);
        let null = ptr::null::<u32>();
        // SAFETY: nothing is read or written at any address.
        let _ = unsafe {
            kernel!(libc::SYS_futex, self.address, operation, count, null, null, self.mask)
        };
    }

    /// Wakes another one in the place of a wait that was woken for nobody.
    pub(super) fn pass_on(self) {
        self.wake(1);
    }

    /// Waits while the word is `expected`, as a future for a fiber.
    pub(crate) async fn waiting(self, expected: u32) -> Outcome {
        let op =
            Op::FutexWait { word: self.address, expected, mask: self.mask, shared: self.shared };
        let landed = {
            let heir = Box::new(move |res| {
                if res == 0 {
                    self.pass_on();
                }
            });
            let _registered = Registered::new(Left::Operation(self));
            // SAFETY: the kernel reads the word as it takes the operation up, and nothing later. An
            // operation that is dropped before that is withdrawn, and what became of the word then
            // is the kernel's to find out.
            let mut operation = pin!(unsafe { Operation::new(op, Some(heir)) });
            let mut is_new = true;
            future::poll_fn(|context| {
                let landed = operation.as_mut().poll(context);
                if std::mem::take(&mut is_new) && landed.is_pending() && Haste::take() {
                    interpose::hand_over();
                }
                landed
            })
            .await
        };
        // Negated it is an error, but for one that a dead ring has kept.
        match landed.wrapping_neg() {
            0 => Outcome::Woken,
            libc::EAGAIN => {
                Haste::begin();
                Outcome::Changed
            }
            // The engine has none, or the kernel.
            libc::ENOSYS | libc::EINVAL | libc::EOPNOTSUPP => {
                if StandIn::new(self, expected).await { Outcome::Woken } else { Outcome::Changed }
            }
            _ => Outcome::Woken,
        }
    }
}

/// Waits at `word` while it is `expected`: the fiber, where one may be suspended, and elsewhere the
/// thread. Neither cancellation nor a signal ends it.
pub(crate) fn wait(
    word: &AtomicU32,
    expected: u32,
    shared: bool,
    deadline: Option<Deadline>,
) -> Outcome {
    let word = Word::of(word, shared);
    if deadline.is_some_and(|deadline| !deadline.is_valid()) {
        return Outcome::Invalid;
    }
    let entered = if allocator::has_called() { None } else { interpose::enter() };
    let Some(inside) = entered else {
        // SAFETY: a reference is valid.
        return unsafe { block(word, expected, deadline) };
    };
    // The kernel compares for good; this saves it the trouble, and comes before a deadline that has
    // passed.
    // SAFETY: as above.
    if unsafe { word.load() } != expected {
        return Outcome::Changed;
    }
    if deadline.is_some_and(|deadline| deadline.has_passed()) {
        return Outcome::TimedOut;
    }
    let until = deadline.and_then(|deadline| deadline.instant());
    super::note_suspension();
    match kapok::shield(|| aside(|| inside.wait(word.waiting(expected), until))) {
        Ok(outcome) => outcome,
        // A clock that was set back meanwhile: the caller comes again.
        Err(Ended::TimedOut) if deadline.is_some_and(|deadline| !deadline.has_passed()) => {
            Outcome::Woken
        }
        Err(Ended::TimedOut) => Outcome::TimedOut,
        Err(Ended::Interrupted(_)) => Outcome::Woken,
    }
}

/// Whether `holder` is a fiber of this thread, and the one that runs may be suspended.
pub(super) fn is_held_here(holder: u32) -> bool {
    interpose::enter()
        .is_some_and(|inside| inside.has_fiber(|fiber| owner::number(fiber) == holder))
}

/// For how long a thread is blocked at a time for a fiber: if others of its fibers wait at the word too,
/// a wake-up may go to one of those, which cannot go on meanwhile.
const BLOCKED: timespec = timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// [`wait`] that suspends the fiber only if `holder` is another fiber of its thread, which could not go
/// on otherwise; else it blocks the thread.
pub(crate) fn wait_for_holder(
    word: &AtomicU32,
    expected: u32,
    shared: bool,
    deadline: Option<Deadline>,
    holder: u32,
) -> Outcome {
    if is_held_here(holder) {
        return wait(word, expected, shared, deadline);
    }
    if deadline.is_some_and(|deadline| !deadline.is_valid()) {
        return Outcome::Invalid;
    }
    let soon = Some(Deadline::after(BLOCKED));
    // SAFETY: a reference is valid.
    match unsafe { block(Word::of(word, shared), expected, soon) } {
        Outcome::TimedOut if deadline.is_none_or(|deadline| !deadline.has_passed()) => {
            Outcome::Woken
        }
        outcome => outcome,
    }
}

/// Waits as the thread does.
///
/// # Safety
///
/// The word is valid for reading until the call returns.
unsafe fn block(word: Word, expected: u32, deadline: Option<Deadline>) -> Outcome {
    let mut operation = word.operation(libc::FUTEX_WAIT_BITSET);
    let mut at: *const timespec = ptr::null();
    if let Some(deadline) = &deadline {
        if deadline.at.tv_sec < 0 {
            return Outcome::TimedOut;
        }
        if deadline.clock == libc::CLOCK_REALTIME {
            operation |= libc::FUTEX_CLOCK_REALTIME;
        }
        at = &raw const deadline.at;
    }
    let null = ptr::null::<u32>();
    // SAFETY: by the caller; the time is a local.
    let res =
        unsafe { kernel!(libc::SYS_futex, word.address, operation, expected, at, null, word.mask) };
    match res {
        Err(Errno(libc::EAGAIN)) => Outcome::Changed,
        Err(Errno(libc::ETIMEDOUT)) => Outcome::TimedOut,
        // Woken, or a handler of a signal has run.
        _ => Outcome::Woken,
    }
}

/// Runs what must leave errno alone.
pub(crate) fn keeping_errno<R>(f: impl FnOnce() -> R) -> R {
    let before = errno::get();
    let result = f();
    errno::set(before);
    result
}
