//! The thread that wakes fibers for handlers of signals, which may not: waking takes locks.
//!
//! A handler leaves what it has to say in words, and wakes the thread by a futex: no descriptor, which a
//! program might close or a child of a fork share. The thread begins when a fiber waits and the program
//! has a handler, whichever comes last; a process without fibers has none, and the child of a fork
//! begins its own.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::handlers;
use super::mask::{self, Blocked, Set};
use crate::kernel::kernel;
use crate::{handler, wait};

/// Whether the program has ever registered a handler.
static HAS_HANDLERS: AtomicBool = AtomicBool::new(false);
/// Whether a fiber has ever waited.
static HAS_WAITERS: AtomicBool = AtomicBool::new(false);
/// Whether the thread runs, in this process.
static LISTENS: AtomicBool = AtomicBool::new(false);

/// Signals whose handlers have run where they end somebody's wait.
static HANDLED: AtomicU64 = AtomicU64::new(0);
/// Changed with each call.
static CALLS: AtomicU32 = AtomicU32::new(0);

/// Notes that a fiber is about to wait.
#[inline]
pub(crate) fn waits() {
    if !HAS_WAITERS.load(Ordering::Relaxed) {
        HAS_WAITERS.store(true, Ordering::Relaxed);
    }
    if HAS_HANDLERS.load(Ordering::Relaxed) && !LISTENS.load(Ordering::Acquire) {
        begin();
    }
}

/// Notes that there is a handler.
pub(super) fn has_handlers() {
    HAS_HANDLERS.store(true, Ordering::Relaxed);
    // A handler that registers another must not allocate; the next wait sees to it.
    if HAS_WAITERS.load(Ordering::Relaxed) && !LISTENS.load(Ordering::Acquire) && !handler::runs() {
        begin();
    }
}

/// Whether somebody is there to be called.
pub(super) fn listens() -> bool {
    LISTENS.load(Ordering::Acquire)
}

/// Whether somebody makes the thread just now. Not a lock: the child of a fork has nobody to unlock it.
static BEGINNING: AtomicBool = AtomicBool::new(false);

struct Beginning;

impl Drop for Beginning {
    fn drop(&mut self) {
        BEGINNING.store(false, Ordering::Release);
    }
}

#[cold]
fn begin() {
    // Who is refused a thread tries again with the next wait; who comes second need not wait for it.
    if BEGINNING.swap(true, Ordering::Acquire) {
        return;
    }
    let _beginning = Beginning;
    if LISTENS.load(Ordering::Acquire) {
        return;
    }
    let _inside = kapok::interpose::enter();
    let _blocked = Blocked::all();
    let thread = std::thread::Builder::new().name("kapok-signals".into()).stack_size(128 << 10);
    LISTENS.store(thread.spawn(listen).is_ok(), Ordering::Release);
}

fn listen() {
    loop {
        let calls = CALLS.load(Ordering::Acquire);
        let handled = HANDLED.swap(0, Ordering::AcqRel);
        for signal in mask::signals(handled) {
            wait::interrupt(signal, handlers::restarts(signal));
        }
        wait::wake_struck();
        let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        // SAFETY: a word that lives as long as the process.
        let _ = unsafe { kernel!(libc::SYS_futex, CALLS.as_ptr(), operation, calls, 0, 0, 0) };
    }
}

/// Says that these signals were handled, by handlers that end one wait each. Async-signal-safe.
pub(super) fn tell(handled: Set) {
    if listens() {
        HANDLED.fetch_or(handled, Ordering::AcqRel);
        call();
    }
}

/// Has the thread look. Async-signal-safe.
pub(crate) fn call() {
    CALLS.fetch_add(1, Ordering::AcqRel);
    let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: as above.
    let _ = unsafe { kernel!(libc::SYS_futex, CALLS.as_ptr(), operation, 1, 0, 0, 0) };
}

/// In the child of a fork there is no such thread, and nobody waits.
pub(crate) fn in_child() {
    BEGINNING.store(false, Ordering::Relaxed);
    LISTENS.store(false, Ordering::Relaxed);
    HAS_WAITERS.store(false, Ordering::Relaxed);
    HANDLED.store(0, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_listens_even_if_somebody_was_about_to_in_its_parent() {
        crate::install();
        BEGINNING.store(true, Ordering::Relaxed);
        // SAFETY: the child makes a thread, which the C library allows there, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            begin();
            // SAFETY: as above.
            unsafe { libc::_exit(libc::c_int::from(!listens())) };
        }
        BEGINNING.store(false, Ordering::Relaxed);
        let mut status = 1;
        // SAFETY: a child of ours; writes to a local.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
    }
}
