//! What keeps a descriptor open while an operation is on it.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use kapok_engine::offload;

use crate::hint::Hint;
use crate::thread::is_io_thread;

/// Something that keeps a descriptor open, and is cheap to clone: every operation holds a clone until
/// it has landed. An [`OpenFile`](crate::OpenFile) is one, and so is any object with a descriptor in an
/// [`Arc`]: `Arc<std::fs::File>`, `Arc<UdpSocket>`, `Arc<OwnedFd>`.
///
/// # Safety
///
/// The number of [`raw`](Descriptor::raw) stays open as long as any clone exists.
pub unsafe trait Descriptor: Clone + Send + 'static {
    /// The descriptor's number.
    fn raw(&self) -> RawFd;

    /// Drops a clone on an I/O thread, which must not block: if it is the last one, somewhere else.
    fn leave(self) {
        // A job that no thread takes is dropped here after all.
        let _ = offload::spawn(move || drop(self));
    }

    /// What is known of reads that are tried against the page cache, if it is kept.
    #[doc(hidden)]
    fn hint(&self) -> Option<&Hint> {
        None
    }

    /// The path that it was opened by, if that is known: for errors to name.
    #[doc(hidden)]
    fn path(&self) -> Option<&Path> {
        None
    }
}

// SAFETY: what a shared object lends as its descriptor is open as long as it can be shared.
unsafe impl<T: AsFd + Send + Sync + 'static> Descriptor for Arc<T> {
    #[inline]
    fn raw(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }

    fn leave(self) {
        if let Some(last) = Arc::into_inner(self) {
            let _ = offload::spawn(move || drop(last));
        }
    }
}

/// A clone that a request holds. Dropping it is no trouble on any thread.
pub(crate) struct Held<D: Descriptor>(ManuallyDrop<D>);

impl<D: Descriptor> Held<D> {
    #[inline]
    pub(crate) fn new(descriptor: D) -> Held<D> {
        Held(ManuallyDrop::new(descriptor))
    }
}

impl<D: Descriptor> Deref for Held<D> {
    type Target = D;

    #[inline]
    fn deref(&self) -> &D {
        &self.0
    }
}

impl<D: Descriptor> fmt::Debug for Held<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Held").field(&self.0.raw()).finish()
    }
}

impl<D: Descriptor> Drop for Held<D> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: taken once, as the value is dropped once.
        let descriptor = unsafe { ManuallyDrop::take(&mut self.0) };
        if is_io_thread() {
            descriptor.leave();
        }
    }
}
