//! Waits at futexes by syscall(2): the locks of Rust's standard library, and of others that are made
//! without the C library's.
//!
//! Those waits and no others are for the fiber: futex(2), futex_wait(2) and futex_waitv(2). Wakers need
//! nothing: they call the kernel, which has fibers in its queues. `FUTEX_LOCK_PI` and
//! `FUTEX_WAIT_REQUEUE_PI` are for the thread: the kernel makes it the owner.

use std::ffi::{c_int, c_long};

use kapok::interpose::{self, Ended, Inside};
use libc::timespec;

use super::deadline::{Deadline, is_known_clock};
use super::futex::{Outcome, Word};
use super::{parker, several};
use crate::allocator;
use crate::errno::Errno;
use crate::signals::mask::aside;

/// A call on a fiber: what it returns, and errno if it has failed.
///
/// # Safety
///
/// What the system call of this number asks of its arguments.
pub(super) unsafe fn call(number: c_long, arguments: [usize; 6]) -> Result<c_long, Errno> {
    if [libc::SYS_futex, FUTEX_WAIT, libc::SYS_futex_waitv].contains(&number)
        && !allocator::has_called()
        && let Some(inside) = interpose::enter()
    {
        // SAFETY: by the caller, here and below.
        let waited = unsafe {
            match number {
                libc::SYS_futex => futex(&inside, arguments).map(|waited| waited.map(|()| 0)),
                FUTEX_WAIT => futex_wait(&inside, arguments).map(|waited| waited.map(|()| 0)),
                _ => futex_waitv(&inside, arguments),
            }
        };
        if let Some(waited) = waited {
            return waited;
        }
    }
    // SAFETY: by the caller.
    unsafe { crate::kernel::call(number, arguments) }.map(|result| result as c_long)
}

/// A wait on behalf of the fiber. None: it is no wait, or one in which the kernel will find fault.
unsafe fn futex(inside: &Inside, arguments: [usize; 6]) -> Option<Result<(), Errno>> {
    let [address, operation, expected, at, _, mask] = arguments;
    let (operation, expected) = (operation as c_int, expected as u32);
    let address: *const u32 = std::ptr::with_exposed_provenance(address);
    if address.is_null() || !address.is_aligned() {
        return None;
    }
    let command = operation & libc::FUTEX_CMD_MASK;
    if ![libc::FUTEX_WAIT, libc::FUTEX_WAIT_BITSET].contains(&command) {
        // The other arguments are what happened to be in registers.
        return None;
    }
    // SAFETY: by the caller.
    let at: Option<timespec> =
        unsafe { std::ptr::with_exposed_provenance::<timespec>(at).as_ref() }.copied();
    let clock = if operation & libc::FUTEX_CLOCK_REALTIME != 0 {
        libc::CLOCK_REALTIME
    } else {
        libc::CLOCK_MONOTONIC
    };
    let (mask, deadline) = match command {
        libc::FUTEX_WAIT if operation & libc::FUTEX_CLOCK_REALTIME == 0 => {
            (u32::MAX, at.map(|at| (Deadline::after(at), at)))
        }
        libc::FUTEX_WAIT_BITSET => (mask as u32, at.map(|at| (Deadline { clock, at }, at))),
        _ => return None,
    };
    let is_time = |at: timespec| at.tv_sec >= 0 && (0..1_000_000_000).contains(&at.tv_nsec);
    if mask == 0 || deadline.is_some_and(|(_, at)| !is_time(at)) {
        return None;
    }
    let deadline = deadline.map(|(deadline, _)| deadline);
    let word = Word::new(address, mask, operation & libc::FUTEX_PRIVATE_FLAG == 0);
    // SAFETY: by the caller; a word that cannot be read is a fault here, and `EFAULT` in the kernel.
    if unsafe { word.load() } != expected {
        return Some(Err(Errno(libc::EAGAIN)));
    }
    if parker::is_at(address) {
        return Some(parker::park(inside, word, deadline));
    }
    Some(wait(inside, word, expected, deadline))
}

/// Waits at a word that is as expected.
fn wait(
    inside: &Inside,
    word: Word,
    expected: u32,
    deadline: Option<Deadline>,
) -> Result<(), Errno> {
    if deadline.is_some_and(|deadline| deadline.has_passed()) {
        return Err(Errno(libc::ETIMEDOUT));
    }
    let until = deadline.and_then(|deadline| deadline.instant());
    // Not cancelled: a lock would only come again, and again. Nor ended by a signal: std's read-write
    // lock counts on it that whoever is woken was waiting.
    super::note_suspension();
    let waited = kapok::shield(|| aside(|| inside.wait(word.waiting(expected), until)));
    match waited {
        Ok(Outcome::Changed) => Err(Errno(libc::EAGAIN)),
        Ok(_) => Ok(()),
        Err(Ended::TimedOut) if deadline.is_some_and(|deadline| !deadline.has_passed()) => Ok(()),
        Err(Ended::TimedOut) => Err(Errno(libc::ETIMEDOUT)),
        Err(Ended::Interrupted(_)) => Ok(()),
    }
}

/// futex_wait(2), of Linux 6.7: futex(2) by another convention.
const FUTEX_WAIT: c_long = 455;

/// A wait on behalf of the fiber; see [`futex`].
unsafe fn futex_wait(inside: &Inside, arguments: [usize; 6]) -> Option<Result<(), Errno>> {
    /// `FUTEX2_SIZE_U32`, `FUTEX2_PRIVATE`.
    const OF_32_BITS: usize = 2;
    const PRIVATE: usize = 128;
    let [address, expected, mask, flags, at, clock] = arguments;
    let address: *const u32 = std::ptr::with_exposed_provenance(address);
    let (expected, mask) = (u32::try_from(expected).ok()?, u32::try_from(mask).ok()?);
    let clock = clock as c_int;
    let understood = !address.is_null()
        && address.is_aligned()
        && flags & !PRIVATE == OF_32_BITS
        && is_known_clock(clock)
        && mask != 0;
    // A kernel that has no such call says so itself.
    // SAFETY: with no mask nothing is waited for, and nothing is read.
    let missing = || unsafe { crate::kernel::call(FUTEX_WAIT, [0; 6]) } == Err(Errno(libc::ENOSYS));
    if !understood || missing() {
        return None;
    }
    // SAFETY: by the caller.
    let deadline = unsafe { Deadline::new(clock, std::ptr::with_exposed_provenance(at)) };
    if deadline.is_some_and(|deadline| !deadline.is_valid() || deadline.at.tv_sec < 0) {
        return None;
    }
    let word = Word::new(address, mask, flags & PRIVATE == 0);
    // SAFETY: by the caller.
    if unsafe { word.load() } != expected {
        return Some(Err(Errno(libc::EAGAIN)));
    }
    Some(wait(inside, word, expected, deadline))
}

/// futex_waitv(2), at several words: a thread waits there for the fiber.
unsafe fn futex_waitv(inside: &Inside, arguments: [usize; 6]) -> Option<Result<c_long, Errno>> {
    let [waiters, count, flags, ..] = arguments;
    // First for no time: there may be nothing to wait for, or something at fault.
    let past = timespec { tv_sec: 0, tv_nsec: 0 };
    let past = (&raw const past).expose_provenance();
    let at_once = [waiters, count, flags, past, libc::CLOCK_MONOTONIC as usize, 0];
    // SAFETY: by the caller; a local.
    match unsafe { crate::kernel::call(libc::SYS_futex_waitv, at_once) } {
        Err(Errno(libc::ETIMEDOUT)) => {}
        done => return Some(done.map(|index| index as c_long)),
    }
    // SAFETY: by the caller, and the kernel has just read them.
    Some(unsafe { several::wait(inside, arguments) })
}
