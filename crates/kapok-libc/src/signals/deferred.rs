//! Signals whose handlers run later, on the fiber that they are for.
//!
//! A handler that came while no fiber runs, or while one is inside Kapok, could leave by siglongjmp(3)
//! over frames of the loop. So it does not run there: the signal is given back to the kernel, pending for
//! the thread and blocked on it, and the fiber that it is for unblocks it when it has left its hooked
//! call. The kernel then makes the handler's frame on the fiber's stack, or on the alternate one, as it
//! would have on a thread's.
//!
//! ```text
//!   signal ──► wrapper, on the loop's stack ──► queued again, blocked; the waiter is told
//!                                                     │
//!   fiber: wakes ──► its call ends (EINTR) ──► unblocks ──► wrapper ──► the handler ──► EINTR, or the
//!                                                                        call again (SA_RESTART)
//! ```
//!
//! Whatever unblocks the signal in between finds the wrapper again, which defers it again.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

use libc::siginfo_t;

use super::mask::{self, Set, bit};
use super::waiters;
use crate::handler;
use crate::kernel::kernel;

struct Deferred {
    signals: AtomicU64,
    /// Those that are to run where they are found next.
    forced: AtomicU64,
    /// For which fiber, by signal.
    fibers: [AtomicU64; 65],
}

// Without destructor: handlers look.
thread_local! {
    static DEFERRED: Deferred = const {
        Deferred {
            signals: AtomicU64::new(0),
            forced: AtomicU64::new(0),
            fibers: [const { AtomicU64::new(0) }; 65],
        }
    };
}

/// What is deferred on this thread.
#[inline]
pub(super) fn signals() -> Set {
    DEFERRED.with(|deferred| deferred.signals.load(Ordering::Relaxed))
}

/// What is deferred for a fiber of this thread.
#[inline]
pub(crate) fn of(fiber: u64) -> Set {
    match signals() {
        0 => 0,
        all => chosen(all, |target| target == fiber),
    }
}

#[cold]
fn chosen(all: Set, is_wanted: impl Fn(u64) -> bool) -> Set {
    DEFERRED.with(|deferred| {
        let target = |signal: c_int| deferred.fibers[signal as usize].load(Ordering::Relaxed);
        mask::signals(all)
            .filter(|&signal| is_wanted(target(signal)))
            .fold(0, |all, signal| all | bit(signal))
    })
}

/// Gives a signal back to the kernel, for a fiber. `false`: the kernel would not have it. In its handler.
///
/// # Safety
///
/// The pointers are those that the kernel has passed.
pub(super) unsafe fn defer(
    signal: c_int,
    info: *mut siginfo_t,
    context: *mut c_void,
    fiber: u64,
) -> bool {
    // A handler may not block its own signal meanwhile (`SA_NODEFER`), and would come at once.
    mask::change(libc::SIG_BLOCK, Some(bit(signal)));
    // SAFETY: by the caller; the thread is the calling one.
    let queued = unsafe {
        let (process, thread) = (libc::getpid(), libc::gettid());
        kernel!(libc::SYS_rt_tgsigqueueinfo, process, thread, signal, info)
    };
    if queued.is_err() {
        return false;
    }
    DEFERRED.with(|deferred| {
        deferred.fibers[signal as usize].store(fiber, Ordering::Relaxed);
        deferred.signals.fetch_or(bit(signal), Ordering::Relaxed);
    });
    mask::note_blocked(signal);
    // SAFETY: by the caller: the mask is what the thread has when the handler returns, and the kernel's
    // signals come first in it.
    unsafe {
        let context = context.cast::<libc::ucontext_t>();
        *(&raw mut (*context).uc_sigmask).cast::<Set>() |= bit(signal);
    }
    true
}

/// Notes that the signal has come again, if it was deferred. Whether its handler is to run now.
pub(super) fn take(signal: c_int) -> bool {
    DEFERRED.with(|deferred| {
        deferred.signals.fetch_and(!bit(signal), Ordering::Relaxed);
        deferred.forced.fetch_and(!bit(signal), Ordering::Relaxed) & bit(signal) != 0
    })
}

/// Forgets everything, and gives what was deferred.
pub(super) fn forget() -> Set {
    DEFERRED.with(|deferred| {
        deferred.forced.store(0, Ordering::Relaxed);
        deferred.signals.swap(0, Ordering::Relaxed)
    })
}

/// Called on a fiber that is in its own code again: runs what is for it.
pub(super) fn on_left(fiber: u64) {
    if signals() != 0 && !handler::runs() {
        run(fiber);
    }
}

/// Runs what is for a fiber that will wait where no signal ends the wait.
#[inline]
pub(super) fn run_before_wait(fiber: u64) {
    if signals() != 0 && !waiters::is_listed(fiber) {
        run(fiber);
    }
}

#[cold]
fn run(fiber: u64) {
    let mine = of(fiber);
    if mine == 0 {
        return;
    }
    DEFERRED.with(|deferred| {
        deferred.forced.fetch_or(mine, Ordering::Relaxed);
        deferred.signals.fetch_and(!mine, Ordering::Relaxed);
    });
    // The handlers run in here.
    mask::change(libc::SIG_UNBLOCK, Some(mine));
    mask::apply_again();
}
