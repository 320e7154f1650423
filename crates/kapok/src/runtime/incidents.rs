//! Counts of what should not happen to a loop, and does when the system withholds something.

use std::sync::atomic::{AtomicU64, Ordering};

pub(super) static ENGINES_REPLACED: AtomicU64 = AtomicU64::new(0);
pub(super) static ABANDONED: AtomicU64 = AtomicU64::new(0);
pub(super) static WITHOUT_STACK: AtomicU64 = AtomicU64::new(0);

/// What the loops of this process have gone through; see [`incidents`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Incidents {
    /// Rings that could no longer be entered, each replaced by a readiness engine.
    pub engines_replaced: u64,
    /// Fibers that were left behind, suspended for good with their stacks: in a dead ring, or when
    /// their loop closed and they did not end.
    pub fibers_abandoned: u64,
    /// Fibers that could not start for want of a stack.
    pub fibers_without_stack: u64,
    /// Offload threads that could not be started. The work ran on others, or failed.
    pub threads_refused: u64,
}

/// What has happened in this process so far. All of it stays 0 on a system that withholds nothing.
///
/// ```
/// assert_eq!(kapok::incidents().engines_replaced, 0);
/// ```
pub fn incidents() -> Incidents {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Incidents {
        engines_replaced: read(&ENGINES_REPLACED),
        fibers_abandoned: read(&ABANDONED),
        fibers_without_stack: read(&WITHOUT_STACK),
        threads_refused: kapok_engine::offload::refused(),
    }
}
