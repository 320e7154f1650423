//! What the words are made of at which threads meet: std's, or loom's when its models are run
//! (`RUSTFLAGS="--cfg loom"`).

#[cfg(not(loom))]
pub(crate) mod atomic {
    pub(crate) use std::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU8, AtomicUsize, Ordering, fence,
    };
}
#[cfg(not(loom))]
pub(crate) use std::sync::{Mutex, MutexGuard};
#[cfg(not(loom))]
pub(crate) use std::thread;

#[cfg(loom)]
pub(crate) mod atomic {
    pub(crate) use loom::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU8, AtomicUsize, Ordering, fence,
    };
}
#[cfg(loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard};

/// The threads of a model, which know no time.
#[cfg(loom)]
pub(crate) mod thread {
    pub(crate) use loom::thread::{Thread, current, park};

    pub(crate) fn park_timeout(_limit: std::time::Duration) {
        park();
    }
}
