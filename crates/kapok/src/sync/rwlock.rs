//! The read-write lock: a reader takes one permit, a writer all of them.

use std::cell::UnsafeCell;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};

use super::permits::Permits;
use crate::park::retiring;

/// How many may read at a time: more than fibers fit into memory.
const READERS: usize = (1 << 28) - 1;

/// A lock around data that many may read at a time, or one may change.
///
/// A free lock, and one held by readers for another reader, is taken by one compare-and-swap.
/// Readers may overtake a waiting writer for about a millisecond; then they queue behind it, so
/// writers do not starve. There is no poisoning: see [the module](super).
///
/// Who holds the lock, for reading or for writing, and locks it again on the same fiber or thread
/// may wait forever.
///
/// ```
/// use kapok::sync::RwLock;
///
/// let routes = RwLock::new(vec!["/"]);
/// routes.write().push("/health");
/// assert_eq!(routes.read().len(), 2);
/// ```
pub struct RwLock<T: ?Sized> {
    permits: Permits,
    data: UnsafeCell<T>,
}

// SAFETY: sharing the lock lets any thread have `&mut T` (that is sending `T`) and several at once
// `&T` (that is sharing it).
unsafe impl<T: ?Sized + Send + Sync> Sync for RwLock<T> {}

/// The lock held for reading; dropping it releases the lock.
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct RwLockReadGuard<'a, T: ?Sized> {
    lock: &'a RwLock<T>,
}

/// The lock held for writing; dropping it releases the lock.
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct RwLockWriteGuard<'a, T: ?Sized> {
    lock: &'a RwLock<T>,
}

// SAFETY: a shared guard gives out `&T` only. (When it is `Send` follows from its field.)
unsafe impl<T: ?Sized + Sync> Sync for RwLockReadGuard<'_, T> {}
// SAFETY: likewise.
unsafe impl<T: ?Sized + Sync> Sync for RwLockWriteGuard<'_, T> {}

impl<T> RwLock<T> {
    /// A free lock.
    pub const fn new(value: T) -> RwLock<T> {
        RwLock { permits: Permits::new(READERS), data: UnsafeCell::new(value) }
    }

    /// The data, without the lock around it.
    pub fn into_inner(self) -> T {
        self.data.into_inner()
    }
}

impl<T: ?Sized> RwLock<T> {
    /// Takes the lock for reading, waiting while a writer has it or has waited long for it.
    ///
    /// Not interrupted by cancellation or by a deadline: see [the module](super).
    #[inline]
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        match self.try_read() {
            Some(guard) => guard,
            None => retiring::block_on(self.read_async()),
        }
    }

    /// Takes the lock for writing, waiting while anyone has it.
    ///
    /// Not interrupted by cancellation or by a deadline: see [the module](super).
    #[inline]
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        match self.try_write() {
            Some(guard) => guard,
            None => retiring::block_on(self.write_async()),
        }
    }

    /// As [`read`](RwLock::read), in a future. A dropped future takes nothing.
    pub async fn read_async(&self) -> RwLockReadGuard<'_, T> {
        self.acquire(1).await;
        RwLockReadGuard { lock: self }
    }

    /// As [`write`](RwLock::write), in a future. A dropped future takes nothing.
    pub async fn write_async(&self) -> RwLockWriteGuard<'_, T> {
        self.acquire(READERS).await;
        RwLockWriteGuard { lock: self }
    }

    async fn acquire(&self, permits: usize) {
        let Ok(()) = self.permits.acquire(permits).await else {
            unreachable!("nobody closes the permits of a lock");
        };
    }

    /// Takes the lock for reading if it can be had at once.
    #[inline]
    pub fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
        self.permits.try_acquire(1).then(|| RwLockReadGuard { lock: self })
    }

    /// Takes the lock for writing if it can be had at once.
    #[inline]
    pub fn try_write(&self) -> Option<RwLockWriteGuard<'_, T>> {
        self.permits.try_acquire(READERS).then(|| RwLockWriteGuard { lock: self })
    }

    /// The data, which nobody else can have: no locking is needed.
    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }
}

impl<'a, T: ?Sized> RwLockWriteGuard<'a, T> {
    /// Lets other readers in, and goes on reading; no writer gets in between.
    pub fn downgrade(self) -> RwLockReadGuard<'a, T> {
        let lock = ManuallyDrop::new(self).lock;
        let guard = RwLockReadGuard { lock };
        lock.permits.release(READERS - 1);
        guard
    }
}

impl<T: ?Sized> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard has a permit, so no writer has all of them.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T: ?Sized> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard has all permits, so nobody else has a reference but by this guard.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T: ?Sized> DerefMut for RwLockWriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard has all permits, and it is borrowed exclusively.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T: ?Sized> Drop for RwLockReadGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.permits.release(1);
    }
}

impl<T: ?Sized> Drop for RwLockWriteGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.permits.release(READERS);
    }
}

impl<T: Default> Default for RwLock<T> {
    fn default() -> RwLock<T> {
        RwLock::new(T::default())
    }
}

impl<T> From<T> for RwLock<T> {
    fn from(value: T) -> RwLock<T> {
        RwLock::new(value)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("RwLock");
        match self.try_read() {
            Some(guard) => out.field("data", &&*guard),
            None => out.field("data", &format_args!("<locked>")),
        };
        out.finish()
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLockReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLockWriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
