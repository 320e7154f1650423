//! fork(2) with a loop running: the child has nothing to do with it.
//!
//! The child of a fork is one thread. An engine cannot follow it: an epoll instance would be shared
//! with the parent, whose registrations and edges the child would take, and the memory of a ring is
//! not inherited at all. Nor should the other fibers: what they serve, the parent goes on serving.
//! So the child's thread leaves its loop behind. The fiber that forked goes on as a plain thread
//! that happens to run on a fiber's stack: its calls block, and it may run a [`Runtime`] of its own.
//!
//! [`Runtime`]: super::Runtime

use std::sync::Once;

use super::event_loop::Loop;

/// Has the children of this process leave their loops behind.
pub(super) fn prepare() {
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| {
        // SAFETY: the handler touches a thread-local that needs no initialisation, and a plain cell.
        let error = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        if error != 0 {
            tracing::error!(error, "children of this process would run its loops");
        }
    });
}

extern "C" fn in_child() {
    Loop::leave_behind();
}

/// Ends the child whose loop was reached after all: through a future or a destructor that forked
/// while the loop, or a wait of its fiber, was in the middle of something.
#[cold]
pub(super) fn refuse() -> ! {
    eprintln!(
        "kapok: a fork in the middle of a wait (a future or a destructor has forked): the child \
         cannot go on with the parent's loop"
    );
    std::process::abort();
}

/// Ends the child whose fiber has ended, as a process ends whose last thread has.
#[cold]
pub(crate) fn end_child(panicked: bool) -> ! {
    std::process::exit(if panicked { 101 } else { 0 })
}
