//! `sem_t` on fibers, in the words in which the C library keeps it.
//!
//! ```text
//!   value: how many are to be had      waiters: how many wait, so that sem_post knows to wake
//!   private: 0, or 128 if of several processes
//! ```
//!
//! Value and waiters are one word of 64 bits, and who waits does so at the half that is the value.
//! sem_post(3) itself needs no hook.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use libc::sem_t;

use super::deadline::Deadline;
use super::futex::{Outcome, Word};
use crate::call::Call;
use crate::errno::Errno;
use crate::real;
use crate::wait::Stopped;

#[repr(C)]
struct Words {
    data: AtomicU64,
    private: AtomicU32,
}

const ONE_WAITER: u64 = 1 << 32;

#[cfg(target_endian = "little")]
const VALUE_AT: usize = 0;
#[cfg(target_endian = "big")]
const VALUE_AT: usize = 4;

/// Takes one, by `deadline`.
///
/// # Safety
///
/// The semaphore is one, and stays one during the call.
pub(crate) unsafe fn wait(
    call: &Call,
    semaphore: *mut sem_t,
    deadline: Option<Deadline>,
) -> Result<i32, Errno> {
    if deadline.is_some_and(|deadline| !deadline.is_valid()) {
        return Err(Errno(libc::EINVAL));
    }
    // SAFETY: by the caller; the words are atomic, and `is_as_expected` has shown where they are.
    let words = unsafe { &*semaphore.cast::<Words>() };
    let data = &words.data;
    let mut now = data.load(Ordering::Relaxed);
    while now as u32 > 0 {
        match data.compare_exchange_weak(now, now - 1, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => return Ok(0),
            Err(other) => now = other,
        }
    }
    let waiter = Waiter::new(data);
    let shared = words.private.load(Ordering::Relaxed) != 0;
    let value = data.as_ptr().cast::<u8>().wrapping_add(VALUE_AT).cast::<u32>();
    let word = Word::new(value, u32::MAX, shared);
    let mut now = data.load(Ordering::Relaxed);
    loop {
        while now as u32 > 0 {
            // The waiter goes with what it takes.
            let after = now - 1 - ONE_WAITER;
            match data.compare_exchange_weak(now, after, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => {
                    std::mem::forget(waiter);
                    return Ok(0);
                }
                Err(other) => now = other,
            }
        }
        if deadline.is_some_and(|deadline| deadline.has_passed()) {
            return Err(Errno(libc::ETIMEDOUT));
        }
        if deadline.is_some() {
            call.never_restarts();
        }
        let until = deadline.and_then(|deadline| deadline.instant());
        match kapok::shield(|| call.wait(word.waiting(0), until)) {
            Ok(Outcome::Woken | Outcome::Changed) | Err(Stopped::TimedOut) => {}
            Ok(Outcome::Invalid | Outcome::TimedOut) => return Err(Errno(libc::EINVAL)),
            Err(stopped) => return Err(stopped.errno()),
        }
        now = data.load(Ordering::Relaxed);
    }
}

/// Counted among those who wait.
struct Waiter<'a>(&'a AtomicU64);

impl<'a> Waiter<'a> {
    fn new(data: &'a AtomicU64) -> Waiter<'a> {
        data.fetch_add(ONE_WAITER, Ordering::SeqCst);
        Waiter(data)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(ONE_WAITER, Ordering::Relaxed);
    }
}

/// Whether the C library of this process has its words where [`Words`] says. On a plain thread.
pub(crate) fn is_as_expected() -> bool {
    // SAFETY: semaphores of our own, initialised before they are used and destroyed after.
    unsafe {
        let mut object: sem_t = std::mem::zeroed();
        let semaphore = &raw mut object;
        let mut seen = Vec::new();
        for shared in [0, 1] {
            libc::sem_init(semaphore, shared, 3);
            libc::sem_post(semaphore);
            real::sem_trywait(semaphore);
            real::sem_trywait(semaphore);
            let words = &*semaphore.cast::<Words>();
            seen.push((words.data.load(Ordering::Relaxed), words.private.load(Ordering::Relaxed)));
            libc::sem_destroy(semaphore);
        }
        seen == [(2, 0), (2, 128)]
    }
}
