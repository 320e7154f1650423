//! Who holds a lock: the fiber, where a fiber runs.
//!
//! The C library writes the number of the holder's thread into a lock. A fiber writes a number of its
//! own there, beyond those that threads can have: so two fibers of one thread are two holders, and a
//! thread's own calls, hooked or not, see that the holder is somebody else.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

/// Numbers of threads end below 2²² (`PID_MAX_LIMIT`).
const FIBERS: u32 = 1 << 30;

thread_local! {
    /// The fiber that called fork, in its child, and its number in the parent: in the child it is a plain
    /// thread that holds what the fiber held.
    static FORKED: Cell<(u64, u32)> = const { Cell::new((0, 0)) };
}

/// Numbers of fibers begin somewhere else in each process, for locks in shared memory.
static BEGIN: AtomicU32 = AtomicU32::new(0);

/// The number of the fiber that runs. None on plain threads, whose locks are the C library's affair.
#[inline]
pub(crate) fn current() -> Option<u32> {
    kapok::current_id().map(number).or_else(|| match FORKED.get() {
        (0, _) => None,
        (_, number) => Some(number),
    })
}

/// The fiber that runs, or that has become this thread by a fork.
#[inline]
pub(crate) fn fiber() -> Option<u64> {
    kapok::current_id().or_else(|| match FORKED.get() {
        (0, _) => None,
        (fiber, _) => Some(fiber),
    })
}

/// The number for a lock in shared memory of whoever goes by `me`. There the fiber that forked, and the
/// thread that it has become in the child, are two.
#[inline]
pub(super) fn in_shared_memory(me: u32) -> u32 {
    match FORKED.get() {
        (fiber, mine) if mine == me && !kapok::on_fiber() => number(fiber),
        _ => me,
    }
}

#[inline]
pub(super) fn number(fiber: u64) -> u32 {
    FIBERS | (fiber as u32).wrapping_add(BEGIN.load(Ordering::Relaxed)) & (FIBERS - 1)
}

/// Begins to count fibers where no other process does, as far as there are numbers.
fn begin() {
    BEGIN.store(std::process::id().wrapping_mul(0x9E37_79B1), Ordering::Relaxed);
}

/// Has the child of a fork go by the number of the fiber that called it.
pub(crate) fn prepare() {
    begin();
    thread_local!(static FORKING: Cell<(u64, u32)> = const { Cell::new((0, 0)) });
    extern "C" fn before() {
        FORKING.set(fiber().zip(current()).unwrap_or((0, 0)));
    }
    extern "C" fn in_child() {
        FORKED.set(FORKING.get());
        begin();
        super::forget();
    }
    // SAFETY: the handlers touch thread-locals that need no initialisation.
    unsafe { libc::pthread_atfork(Some(before), None, Some(in_child)) };
}
