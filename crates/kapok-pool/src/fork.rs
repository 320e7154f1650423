//! The child of a fork(2) has the memory of a pool and none of its threads.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// How many forks this process is away from the first.
static GENERATION: AtomicU32 = AtomicU32::new(0);

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// The process that something belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin(u32);

impl Origin {
    /// This process.
    pub(crate) fn here() -> Origin {
        static WATCHED: Once = Once::new();
        WATCHED.call_once(|| {
            // SAFETY: the handler is a function of the program, and changes an atomic only.
            let error = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
            if error != 0 {
                tracing::warn!(error, "forks are not noticed: there is no memory for the handler");
            }
        });
        Origin(GENERATION.load(Ordering::Relaxed))
    }

    /// Whether this process is the child of a fork, or a child of one.
    #[inline]
    pub(crate) fn is_left(self) -> bool {
        GENERATION.load(Ordering::Relaxed) != self.0
    }
}
