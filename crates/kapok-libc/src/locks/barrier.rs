//! `pthread_barrier_t` on fibers, by the C library's own algorithm in its own words.
//!
//! ```text
//!   in: how many have come, over all rounds      current_round: how many of those were let go
//!   count: how many a round has                  out: how many have gone
//! ```
//!
//! When so many have come that `in` might overflow, the last to go starts anew.

use std::sync::atomic::{AtomicU32, Ordering, fence};

use kapok::interpose;
use libc::{c_int, pthread_barrier_t};

use super::futex::{Word, wait};
use crate::real;
use crate::signals::mask::aside;

#[repr(C)]
struct Words {
    come: AtomicU32,
    current_round: AtomicU32,
    count: AtomicU32,
    shared: AtomicU32,
    gone: AtomicU32,
}

const THRESHOLD: u32 = u32::MAX / 2;

/// Waits for the others, on a fiber.
///
/// # Safety
///
/// The barrier is one, and stays one during the call.
pub(crate) unsafe fn wait_for_all(barrier: *mut pthread_barrier_t) -> c_int {
    // SAFETY: by the caller; the words are atomic, and `is_as_expected` has shown where they are.
    let words = unsafe { &*barrier.cast::<Words>() };
    let count = words.count.load(Ordering::Relaxed);
    let shared = words.shared.load(Ordering::Relaxed) != 0;
    let most = THRESHOLD - THRESHOLD % count;
    let mine = loop {
        let mine = words.come.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
        if mine <= most {
            break mine;
        }
        // Until the last of those before has started anew.
        let mut come = mine;
        while come > most {
            wait(&words.come, come, shared, None);
            come = words.come.load(Ordering::Relaxed);
        }
    };
    let mut current = words.current_round.load(Ordering::Relaxed);
    while current + count <= mine {
        // Everybody of this round is here, and of those before.
        let round = mine - mine % count;
        match words.current_round.compare_exchange_weak(
            current,
            round,
            Ordering::Release,
            Ordering::Relaxed,
        ) {
            Ok(_) => {
                current = round;
                Word::of(&words.current_round, shared).wake(i32::MAX);
                break;
            }
            Err(other) => current = other,
        }
    }
    while mine > current {
        wait(&words.current_round, current, shared, None);
        current = words.current_round.load(Ordering::Relaxed);
    }
    fence(Ordering::Acquire);
    // After this the barrier may be gone, unless it is to start anew: then nobody can have seen it
    // free.
    if words.gone.fetch_add(1, Ordering::Release) + 1 == most {
        fence(Ordering::Acquire);
        words.current_round.store(0, Ordering::Relaxed);
        words.gone.store(0, Ordering::Relaxed);
        words.come.store(0, Ordering::Release);
        Word::of(&words.come, shared).wake(i32::MAX);
    }
    if mine.is_multiple_of(count) { libc::PTHREAD_BARRIER_SERIAL_THREAD } else { 0 }
}

/// Waits, on a fiber, until everybody who was let go has gone: pthread_barrier_destroy(3) would block
/// the thread for that, on which they may be.
///
/// # Safety
///
/// As for [`wait_for_all`].
pub(crate) unsafe fn wait_until_left(barrier: *mut pthread_barrier_t) {
    // SAFETY: by the caller.
    let words = unsafe { &*barrier.cast::<Words>() };
    // Who was let go waits for nothing any more, so this is short.
    while words.gone.load(Ordering::Acquire) < words.current_round.load(Ordering::Relaxed) {
        match interpose::enter() {
            Some(inside) => aside(|| inside.yield_now()),
            // As any lock where nothing may suspend: see docs/design/interposed-locks.md.
            None => std::thread::sleep(std::time::Duration::from_millis(1)),
        }
    }
}

/// Whether the C library of this process has its words where [`Words`] says. On a plain thread.
pub(crate) fn is_as_expected() -> bool {
    // SAFETY: barriers of our own, initialised before they are used and destroyed after; one that has a
    // count of one holds nobody up.
    unsafe {
        let mut object: pthread_barrier_t = std::mem::zeroed();
        let barrier = &raw mut object;
        let words = &*barrier.cast::<Words>();
        let show = || {
            [&words.come, &words.current_round, &words.count, &words.gone]
                .map(|word| word.load(Ordering::Relaxed))
        };
        libc::pthread_barrier_init(barrier, std::ptr::null(), 1);
        let free = show();
        let private = words.shared.load(Ordering::Relaxed);
        real::pthread_barrier_wait(barrier);
        let after = show();
        real::pthread_barrier_destroy(barrier);
        free == [0, 0, 1, 0] && after == [1, 1, 1, 1] && private == 0
    }
}
