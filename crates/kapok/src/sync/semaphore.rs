//! Counting permits as such.

use std::error::Error;
use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use super::permits::{MAX_PERMITS, Permits};
use crate::fiber::Interrupted;
use crate::park::retiring;

/// A number of permits, to bound how many do something at a time.
///
/// A permit goes back when it is dropped. Fairness is bounded barging: see [the module](super);
/// who asks for many permits does not starve beside those who ask for few.
///
/// ```
/// use kapok::sync::Semaphore;
///
/// let uploads = Semaphore::new(2);
/// let first = uploads.acquire()?;
/// let second = uploads.acquire()?;
/// assert!(uploads.try_acquire().is_none());
/// drop(first);
/// assert_eq!(uploads.available_permits(), 1);
/// # drop(second);
/// # Ok::<(), kapok::sync::AcquireError>(())
/// ```
pub struct Semaphore {
    permits: Permits,
}

/// Permits held; dropping it gives them back.
#[must_use = "the permits go back as soon as this is dropped"]
#[derive(Debug)]
pub struct SemaphorePermit<'a> {
    semaphore: &'a Semaphore,
    count: usize,
}

/// Permits held, with the semaphore they are of; dropping it gives them back.
#[must_use = "the permits go back as soon as this is dropped"]
#[derive(Debug)]
pub struct OwnedSemaphorePermit {
    semaphore: Arc<Semaphore>,
    count: usize,
}

/// Why a fiber stopped waiting for permits. It holds none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcquireError {
    /// The fiber was canceled.
    Canceled,
    /// The fiber's deadline passed.
    DeadlineElapsed,
}

impl Semaphore {
    /// The most permits a semaphore can have.
    pub const MAX_PERMITS: usize = MAX_PERMITS;

    /// A semaphore with this many permits.
    ///
    /// # Panics
    ///
    /// If they are more than [`MAX_PERMITS`](Semaphore::MAX_PERMITS).
    pub const fn new(permits: usize) -> Semaphore {
        Semaphore { permits: Permits::new(permits) }
    }

    /// How many permits are free at the moment; those who wait may be about to take them.
    pub fn available_permits(&self) -> usize {
        self.permits.available()
    }

    /// Adds permits for good.
    ///
    /// # Panics
    ///
    /// If the free ones become more than [`MAX_PERMITS`](Semaphore::MAX_PERMITS).
    pub fn add_permits(&self, count: usize) {
        assert!(
            count <= MAX_PERMITS - self.available_permits(),
            "{count} more permits than a semaphore can have"
        );
        self.permits.release(count);
    }

    /// Takes a permit, waiting for one.
    ///
    /// # Errors
    ///
    /// The fiber was canceled, or its deadline passed, before there was one. A plain thread gets
    /// no error.
    pub fn acquire(&self) -> Result<SemaphorePermit<'_>, AcquireError> {
        self.acquire_many(1)
    }

    /// Takes `count` permits at once, waiting until so many are free. More than the semaphore has
    /// waits forever, and lets nobody else pass after a while.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Semaphore::acquire).
    pub fn acquire_many(&self, count: usize) -> Result<SemaphorePermit<'_>, AcquireError> {
        match self.try_acquire_many(count) {
            Some(permit) => Ok(permit),
            None => Ok(retiring::block_on_interruptible(self.acquire_many_async(count))?),
        }
    }

    /// As [`acquire`](Semaphore::acquire), in a future. A dropped future takes nothing.
    pub async fn acquire_async(&self) -> SemaphorePermit<'_> {
        self.acquire_many_async(1).await
    }

    /// As [`acquire_many`](Semaphore::acquire_many), in a future. A dropped future takes nothing.
    pub async fn acquire_many_async(&self, count: usize) -> SemaphorePermit<'_> {
        let Ok(()) = self.permits.acquire(count).await else {
            unreachable!("nobody closes the permits of a semaphore");
        };
        SemaphorePermit { semaphore: self, count }
    }

    /// Takes a permit if one is free and not reserved for one who has waited long.
    pub fn try_acquire(&self) -> Option<SemaphorePermit<'_>> {
        self.try_acquire_many(1)
    }

    /// Takes `count` permits if they are free and not reserved for one who has waited long.
    pub fn try_acquire_many(&self, count: usize) -> Option<SemaphorePermit<'_>> {
        self.permits.try_acquire(count).then(|| SemaphorePermit { semaphore: self, count })
    }

    /// As [`acquire`](Semaphore::acquire); the permit may go where a borrow cannot.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Semaphore::acquire).
    pub fn acquire_owned(self: Arc<Self>) -> Result<OwnedSemaphorePermit, AcquireError> {
        self.acquire()?.forget();
        Ok(OwnedSemaphorePermit { semaphore: self, count: 1 })
    }

    /// As [`acquire_owned`](Semaphore::acquire_owned), in a future. A dropped future takes nothing.
    pub async fn acquire_owned_async(self: Arc<Self>) -> OwnedSemaphorePermit {
        self.acquire_async().await.forget();
        OwnedSemaphorePermit { semaphore: self, count: 1 }
    }

    /// As [`try_acquire`](Semaphore::try_acquire); the permit may go where a borrow cannot.
    pub fn try_acquire_owned(self: Arc<Self>) -> Option<OwnedSemaphorePermit> {
        self.try_acquire()?.forget();
        Some(OwnedSemaphorePermit { semaphore: self, count: 1 })
    }
}

impl SemaphorePermit<'_> {
    /// Keeps the permits from going back: the semaphore has fewer from now on.
    pub fn forget(self) {
        let _ = ManuallyDrop::new(self);
    }
}

impl OwnedSemaphorePermit {
    /// Keeps the permits from going back: the semaphore has fewer from now on.
    pub fn forget(mut self) {
        self.count = 0;
    }
}

impl Drop for SemaphorePermit<'_> {
    fn drop(&mut self) {
        self.semaphore.permits.release(self.count);
    }
}

impl Drop for OwnedSemaphorePermit {
    fn drop(&mut self) {
        self.semaphore.permits.release(self.count);
    }
}

impl From<Interrupted> for AcquireError {
    fn from(interrupt: Interrupted) -> AcquireError {
        match interrupt {
            Interrupted::Canceled | Interrupted::PeerGone => AcquireError::Canceled,
            Interrupted::DeadlineElapsed => AcquireError::DeadlineElapsed,
        }
    }
}

impl fmt::Display for AcquireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AcquireError::Canceled => "canceled while waiting for permits of a semaphore",
            AcquireError::DeadlineElapsed => {
                "deadline elapsed while waiting for permits of a semaphore"
            }
        })
    }
}

impl Error for AcquireError {}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore").field("available_permits", &self.available_permits()).finish()
    }
}
