//! Asking a running server to end: a flag that is also a descriptor.
//!
//! The flag answers a thread that looks, the descriptor wakes a thread that waits, in whatever way
//! its model waits. The byte in the pipe is never read, so the descriptor *stays* readable and any
//! number of threads may wait on it.

use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Ends a server started with [`serve()`](crate::serve()). Clones share one state.
#[derive(Debug, Clone)]
pub struct Stop {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    requested: AtomicBool,
    readable: PipeReader,
    writer: PipeWriter,
}

impl Stop {
    /// A stop that has not been requested.
    ///
    /// # Errors
    ///
    /// The pipe could not be made: the process is out of descriptors.
    pub fn new() -> io::Result<Stop> {
        let (readable, writer) = io::pipe()?;
        let shared = Shared { requested: AtomicBool::new(false), readable, writer };
        Ok(Stop { shared: Arc::new(shared) })
    }

    /// Requests the end. Asking again changes nothing.
    ///
    /// Async-signal-safe: a read-modify-write and, the first time, one `write(2)` of a byte into an
    /// empty pipe, which cannot block.
    pub fn stop(&self) {
        if !self.shared.requested.swap(true, Ordering::SeqCst) {
            // The pipe is empty and both its ends are open in here, so this cannot fail.
            let _ = (&self.shared.writer).write(&[1]);
        }
    }

    /// Whether the end was requested.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.shared.requested.load(Ordering::SeqCst)
    }
}

impl AsFd for Stop {
    /// A descriptor that becomes readable with [`stop`](Stop::stop) and stays so. Wait on it; do not
    /// read it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.readable.as_fd()
    }
}
