//! What a pool counts.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::primitives::Apart;

/// The sizes of batches are counted by powers of two: 1, 2 to 3, 4 to 7, and so on.
pub(crate) const SIZES: usize = 12;

/// One thread's counts. All but `wake_ups` are written by the thread alone.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) submitted: AtomicU64,
    pub(crate) completed: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) spins: AtomicU64,
    pub(crate) spins_that_found: AtomicU64,
    pub(crate) sleeps: AtomicU64,
    pub(crate) sleeps_to_the_limit: AtomicU64,
    pub(crate) system_calls: AtomicU64,
    pub(crate) batches: [AtomicU64; SIZES],
    pub(crate) wake_ups: WakeUps,
}

/// Counted by whoever submits, so apart from the rest.
pub(crate) type WakeUps = Apart<AtomicU64>;

impl Default for Apart<AtomicU64> {
    fn default() -> Self {
        Apart(AtomicU64::new(0))
    }
}

/// Adds to a count that one thread writes.
#[inline]
pub(crate) fn add(count: &AtomicU64, more: u64) {
    count.store(count.load(Ordering::Relaxed) + more, Ordering::Relaxed);
}

impl Counters {
    #[inline]
    pub(crate) fn batch(&self, size: usize) {
        add(&self.submitted, size as u64);
        add(&self.batches[(size.max(1).ilog2() as usize).min(SIZES - 1)], 1);
    }

    pub(crate) fn read(&self, in_flight: u64, queued: u64, is_serving: bool) -> ThreadStats {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        ThreadStats {
            is_serving,
            queued,
            in_flight,
            submitted: of(&self.submitted),
            completed: of(&self.completed),
            cancelled: of(&self.cancelled),
            spins: of(&self.spins),
            spins_that_found: of(&self.spins_that_found),
            sleeps: of(&self.sleeps),
            sleeps_to_the_limit: of(&self.sleeps_to_the_limit),
            wake_ups: of(&self.wake_ups),
            system_calls: of(&self.system_calls),
            batches: std::array::from_fn(|at| of(&self.batches[at])),
        }
    }
}

/// What one I/O thread has counted since the pool was made, over all times that it was started.
///
/// Read without stopping it, so one count may be a moment older than another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ThreadStats {
    /// Whether operations are handed to it now.
    pub is_serving: bool,
    /// Operations that wait in its channel now.
    pub queued: u64,
    /// Operations that it has taken and not yet completed.
    pub in_flight: u64,
    /// Operations that it gave to its engine.
    pub submitted: u64,
    /// Operations that have landed.
    pub completed: u64,
    /// Operations whose future was dropped before they landed.
    pub cancelled: u64,
    /// How often it looked for work before it would wait (step 3).
    pub spins: u64,
    /// How many of them found some.
    pub spins_that_found: u64,
    /// How often it waited (step 4).
    pub sleeps: u64,
    /// How many of these waits ended at their time limit.
    pub sleeps_to_the_limit: u64,
    /// How often a submitter had to wake it.
    pub wake_ups: u64,
    /// System calls of its engine.
    pub system_calls: u64,
    /// Batches submitted, by size: 1, 2 to 3, 4 to 7, … the last of 2,048 and more.
    pub batches: [u64; SIZES],
}

/// What a pool has counted since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Each of its threads, those that do not run now included.
    pub threads: Vec<ThreadStats>,
    /// Operations that wait for room now: for a slot, or in a channel.
    pub waiting: u64,
    /// Threads started because there was more to do.
    pub grown: u64,
    /// Threads told to retire because there was less to do.
    pub shrunk: u64,
}

impl PoolStats {
    /// How many threads serve now.
    pub fn serving(&self) -> usize {
        self.threads.iter().filter(|thread| thread.is_serving).count()
    }

    /// How many operations are queued or in flight.
    pub fn pending(&self) -> u64 {
        self.threads.iter().map(|thread| thread.queued + thread.in_flight).sum()
    }
}
