//! `pthread_once` on fibers, by the C library's own algorithm in its own word.
//!
//! A fiber that initialises may wait meanwhile, and another one of its thread that comes to the same
//! `pthread_once_t` must wait for it and not block their thread.
//!
//! ```text
//!   0 not yet · 1 in progress, and above it which process (by how many forks) began · 2 done
//! ```

use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use libc::{c_int, pthread_once_t};

use super::futex::{Word, wait};
use crate::real;

const IN_PROGRESS: u32 = 1;
const DONE: u32 = 2;

/// Runs `initialise` unless somebody has, on a fiber. It may unwind; then nobody has.
///
/// # Safety
///
/// `once` is one, and `initialise` may be called.
pub(crate) unsafe fn once(
    once: *mut pthread_once_t,
    initialise: unsafe extern "C-unwind" fn(),
) -> c_int {
    // SAFETY: by the caller.
    let word = unsafe { AtomicU32::from_ptr(once.cast()) };
    let mut now = word.load(Ordering::Acquire);
    if now & DONE != 0 {
        return 0;
    }
    let mine = in_progress_here();
    loop {
        if now & DONE != 0 {
            return 0;
        }
        match word.compare_exchange(now, mine, Ordering::Acquire, Ordering::Acquire) {
            Err(other) => now = other,
            // Somebody of this process is at it.
            Ok(_) if now == mine => {
                wait(word, mine, false, None);
                now = word.load(Ordering::Acquire);
            }
            Ok(_) => break,
        }
    }
    struct Undo<'a>(&'a AtomicU32);
    impl Drop for Undo<'_> {
        fn drop(&mut self) {
            self.0.store(0, Ordering::Relaxed);
            Word::of(self.0, false).wake(i32::MAX);
        }
    }
    let undo = Undo(word);
    // SAFETY: by the caller.
    unsafe { initialise() };
    std::mem::forget(undo);
    word.store(DONE, Ordering::Release);
    Word::of(word, false).wake(i32::MAX);
    0
}

/// What the C library writes while something is initialised: looked at while it is.
fn in_progress_here() -> u32 {
    thread_local! {
        static PROBE: AtomicI32 = const { AtomicI32::new(0) };
        static SEEN: AtomicU32 = const { AtomicU32::new(0) };
    }
    extern "C-unwind" fn look() {
        let seen = PROBE.with(|probe| probe.load(Ordering::Relaxed)) as u32;
        SEEN.with(|word| word.store(seen, Ordering::Relaxed));
    }
    PROBE.with(|probe| {
        probe.store(0, Ordering::Relaxed);
        // SAFETY: a `pthread_once_t` of our own, and a function that may be called.
        unsafe { real::pthread_once(probe.as_ptr(), look) };
    });
    SEEN.with(|word| word.load(Ordering::Relaxed))
}

/// Whether the C library of this process goes by the same word. On a plain thread.
pub(crate) fn is_as_expected() -> bool {
    extern "C-unwind" fn nothing() {}
    let word = AtomicI32::new(0);
    // SAFETY: a `pthread_once_t` of our own.
    unsafe { real::pthread_once(word.as_ptr(), nothing) };
    let now = in_progress_here();
    word.load(Ordering::Relaxed) as u32 == DONE && now & 3 == IN_PROGRESS
}
