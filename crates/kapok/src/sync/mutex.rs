//! Mutual exclusion: one permit, and the data behind it.

use std::cell::UnsafeCell;
use std::fmt;
use std::ops::{Deref, DerefMut};

use super::permits::Permits;
use crate::park::retiring;

/// A lock around data that one fiber, thread or future has at a time.
///
/// Taking a free lock is one compare-and-swap. A guard may be held while its fiber is suspended,
/// and across an `.await`; it may go to another thread. There is no poisoning, and fairness is
/// bounded barging: see [the module](super).
///
/// Locking a mutex twice on one fiber or thread waits forever.
///
/// ```
/// use kapok::sync::Mutex;
///
/// let hits = Mutex::new(0);
/// std::thread::scope(|scope| {
///     for _ in 0..4 {
///         scope.spawn(|| *hits.lock() += 1);
///     }
/// });
/// assert_eq!(hits.into_inner(), 4);
/// ```
pub struct Mutex<T: ?Sized> {
    permit: Permits,
    data: UnsafeCell<T>,
}

// SAFETY: sharing the mutex lets any thread have `&mut T`, one at a time, and take the value out:
// that is sending `T`.
unsafe impl<T: ?Sized + Send> Sync for Mutex<T> {}

/// The lock held; dropping it releases the lock.
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct MutexGuard<'a, T: ?Sized> {
    mutex: &'a Mutex<T>,
}

// SAFETY: a shared guard gives out `&T` only. (That it is `Send` if `T` is follows from its field.)
unsafe impl<T: ?Sized + Sync> Sync for MutexGuard<'_, T> {}

impl<T> Mutex<T> {
    /// A free mutex.
    pub const fn new(value: T) -> Mutex<T> {
        Mutex { permit: Permits::new(1), data: UnsafeCell::new(value) }
    }

    /// The data, without the lock around it.
    pub fn into_inner(self) -> T {
        self.data.into_inner()
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Takes the lock, waiting until it is free.
    ///
    /// Not interrupted by cancellation or by a deadline: see [the module](super).
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        if !self.permit.try_acquire(1) {
            return self.lock_slow();
        }
        MutexGuard { mutex: self }
    }

    #[cold]
    fn lock_slow(&self) -> MutexGuard<'_, T> {
        retiring::block_on(self.lock_async())
    }

    /// Takes the lock, waiting until it is free. A dropped future takes nothing.
    pub async fn lock_async(&self) -> MutexGuard<'_, T> {
        let Ok(()) = self.permit.acquire(1).await else {
            unreachable!("nobody closes the permit of a mutex");
        };
        MutexGuard { mutex: self }
    }

    /// Takes the lock if it is free and not reserved for one who has waited long.
    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        // Lazily: a guard that was made gives a permit back.
        self.permit.try_acquire(1).then(|| MutexGuard { mutex: self })
    }

    /// The data, which nobody else can have: no locking is needed.
    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }
}

impl<'a, T: ?Sized> MutexGuard<'a, T> {
    pub(super) fn mutex(&self) -> &'a Mutex<T> {
        self.mutex
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard has the only permit, so nobody else has a reference but by this guard.
        unsafe { &*self.mutex.data.get() }
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard has the only permit, and it is borrowed exclusively.
        unsafe { &mut *self.mutex.data.get() }
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.mutex.permit.release(1);
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Mutex<T> {
        Mutex::new(T::default())
    }
}

impl<T> From<T> for Mutex<T> {
    fn from(value: T) -> Mutex<T> {
        Mutex::new(value)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Mutex");
        match self.try_lock() {
            Some(guard) => out.field("data", &&*guard),
            None => out.field("data", &format_args!("<locked>")),
        };
        out.finish()
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
