//! Tables that the child of a fork begins anew.
//!
//! Another thread of the parent's may have been in the middle of changing one, with its lock, and is not
//! there to finish. So the child takes a new table and leaves the old one as it was, which is never freed.

use std::sync::atomic::{AtomicPtr, Ordering};

pub(crate) struct PerProcess<T: 'static>(AtomicPtr<T>);

impl<T: Sync> PerProcess<T> {
    pub(crate) const fn new(first: &'static T) -> PerProcess<T> {
        PerProcess(AtomicPtr::new(std::ptr::from_ref(first).cast_mut()))
    }

    #[inline]
    pub(crate) fn get(&self) -> &'static T {
        // SAFETY: it comes from a reference that lasts for good, here and in `renew`.
        unsafe { &*self.0.load(Ordering::Acquire) }
    }

    /// In the child of a fork, before it has other threads.
    pub(crate) fn renew(&self, table: T) {
        self.0.store(std::ptr::from_mut(Box::leak(Box::new(table))), Ordering::Release);
    }
}
