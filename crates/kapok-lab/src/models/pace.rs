//! What an event loop does by the clock: sweep for idle connections, resume accepting, end a drain.
//!
//! No timer a connection and no clock a request: a connection remembers in which sweep it was last
//! active, and a sweep looks at all of them.

use std::time::{Duration, Instant};

use super::table::Table;
use crate::serve::ServeConfig;

const LONGEST_SWEEP_PERIOD: Duration = Duration::from_secs(1);
const SHORTEST_SWEEP_PERIOD: Duration = Duration::from_millis(10);

/// Sweeps in an idle time-out, if it is short enough for that.
const SWEEPS: u32 = 4;

#[derive(Clone, Debug)]
pub(super) struct Pace {
    period: Duration,
    /// A connection inactive for more sweeps than this is closed; it was inactive for at least the
    /// time-out then, and at most for two sweeps more.
    sweeps: u32,
    now: u32,
    sweep_at: Option<Instant>,
    resume_at: Option<Instant>,
    cut_at: Option<Instant>,
    clock: fn() -> Instant,
}

/// What is due.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// Close the connections that [`Pace::idle`] names.
    pub(super) sweep: bool,
    /// Look at the listener again.
    pub(super) resume: bool,
    /// The drain has lasted long enough: close everything.
    pub(super) cut: bool,
}

impl Pace {
    pub(super) fn new(config: &ServeConfig) -> Pace {
        Pace::by(Instant::now, config)
    }

    /// A pace by another clock than the machine's.
    pub(super) fn by(clock: fn() -> Instant, config: &ServeConfig) -> Pace {
        let period =
            (config.idle_timeout / SWEEPS).clamp(SHORTEST_SWEEP_PERIOD, LONGEST_SWEEP_PERIOD);
        let sweeps = config.idle_timeout.as_nanos().div_ceil(period.as_nanos());
        Pace {
            period,
            sweeps: sweeps.try_into().unwrap_or(u32::MAX),
            now: 0,
            sweep_at: (!config.idle_timeout.is_zero()).then(|| clock() + period),
            resume_at: None,
            cut_at: None,
            clock,
        }
    }

    /// The number of the current sweep.
    #[inline]
    pub(super) fn now(&self) -> u32 {
        self.now
    }

    /// The connections to close on a sweep.
    pub(super) fn idle(&self, table: &Table<'_>) -> Vec<usize> {
        table.idle(self.now, self.sweeps)
    }

    /// Whether something active in sweep `active` has been idle for too long.
    pub(super) fn is_idle(&self, active: u32) -> bool {
        self.now.wrapping_sub(active) > self.sweeps
    }

    /// Out of descriptors: accept again after `pause`.
    pub(super) fn pause_accepting(&mut self, pause: Duration) {
        self.resume_at = Some((self.clock)() + pause);
    }

    pub(super) fn accepts(&self) -> bool {
        self.resume_at.is_none() && self.cut_at.is_none()
    }

    /// The server stops: accept no more, and end after `limit`.
    pub(super) fn drain(&mut self, limit: Duration) {
        self.cut_at = Some((self.clock)() + limit);
        self.resume_at = None;
    }

    pub(super) fn drains(&self) -> bool {
        self.cut_at.is_some()
    }

    /// How long to wait for events: until something is due, or without limit.
    pub(super) fn timeout(&self, empty: bool) -> Option<Duration> {
        // Without connections there is nothing to sweep, and an idle server never wakes.
        let sweep_at = if empty { None } else { self.sweep_at };
        let next = [sweep_at, self.resume_at, self.cut_at].into_iter().flatten().min()?;
        Some(next.saturating_duration_since((self.clock)()))
    }

    /// What has become due since the last call.
    #[inline]
    pub(super) fn due(&mut self) -> Due {
        let now = (self.clock)();
        let passed = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let due = Due {
            sweep: passed(self.sweep_at),
            resume: passed(self.resume_at),
            cut: passed(self.cut_at),
        };
        if due.sweep {
            self.now = self.now.wrapping_add(1);
            self.sweep_at = Some(now + self.period);
        }
        if due.resume {
            self.resume_at = None;
        }
        due
    }
}

/// A time-out for `poll` and `epoll_wait`: milliseconds, rounded up lest the loop spins through the
/// last one; -1 is without limit.
pub(super) fn milliseconds(timeout: Option<Duration>) -> i32 {
    match timeout {
        Some(timeout) => timeout.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as i32,
        None => -1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_never_round_down() {
        assert_eq!(milliseconds(None), -1);
        assert_eq!(milliseconds(Some(Duration::ZERO)), 0);
        assert_eq!(milliseconds(Some(Duration::from_nanos(1))), 1);
        assert_eq!(milliseconds(Some(Duration::from_micros(1001))), 2);
        assert_eq!(milliseconds(Some(Duration::MAX)), i32::MAX);
    }

    #[test]
    fn idle_means_at_least_the_timeout() {
        for millis in [1, 20, 100, 999, 4_000, 60_000] {
            let idle_timeout = Duration::from_millis(millis);
            let pace = Pace::new(&ServeConfig { idle_timeout, ..ServeConfig::default() });
            // Active just before a sweep, found idle on the one that first exceeds the count: the
            // full periods between the two are `sweeps`.
            assert!(pace.period * pace.sweeps >= idle_timeout, "{millis} ms");
            assert!(!pace.is_idle(0u32.wrapping_sub(pace.sweeps)), "{millis} ms");
            assert!(pace.is_idle(0u32.wrapping_sub(pace.sweeps + 1)), "{millis} ms");
        }
    }
}
