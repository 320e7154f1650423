//! Points in time as callers of libc name them.

use std::time::{Duration, Instant};

use libc::{clockid_t, timespec};

/// A time by a clock. The realtime clock may be set while somebody waits: set back, the wait is made
/// longer; set forward, that is noticed when it would have ended before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    pub(crate) clock: clockid_t,
    pub(crate) at: timespec,
}

const NANOS: i64 = 1_000_000_000;

impl Deadline {
    /// At `at`, if there is a time, by `clock`.
    ///
    /// # Safety
    ///
    /// `at` is null or points to a time.
    pub(crate) unsafe fn new(clock: clockid_t, at: *const timespec) -> Option<Deadline> {
        // SAFETY: by the caller.
        unsafe { at.as_ref() }.map(|&at| Deadline { clock, at })
    }

    /// So long from now.
    pub(crate) fn after(interval: timespec) -> Deadline {
        let clock = libc::CLOCK_MONOTONIC;
        let now = now(clock);
        let nanos = now.tv_nsec + interval.tv_nsec;
        let at = timespec {
            tv_sec: now.tv_sec.saturating_add(interval.tv_sec).saturating_add(nanos / NANOS),
            tv_nsec: nanos % NANOS,
        };
        Deadline { clock, at }
    }

    /// Whether its nanoseconds are those of a time.
    pub(crate) fn is_valid(&self) -> bool {
        (0..NANOS).contains(&self.at.tv_nsec)
    }

    pub(crate) fn has_passed(&self) -> bool {
        self.left().is_zero()
    }

    /// How long until then.
    fn left(&self) -> Duration {
        let now = now(self.clock);
        let mut seconds = self.at.tv_sec.saturating_sub(now.tv_sec);
        let mut nanos = self.at.tv_nsec - now.tv_nsec;
        if nanos < 0 {
            seconds = seconds.saturating_sub(1);
            nanos += NANOS;
        }
        if seconds < 0 { Duration::ZERO } else { Duration::new(seconds as u64, nanos as u32) }
    }

    /// The same for the engine. None: further than it counts.
    pub(crate) fn instant(&self) -> Option<Instant> {
        Instant::now().checked_add(self.left())
    }
}

fn now(clock: clockid_t) -> timespec {
    let mut now = timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to a local. An unknown clock leaves it zero.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    now
}

/// Whether futexes, and so all timed functions of libc, know the clock.
pub(crate) fn is_known_clock(clock: clockid_t) -> bool {
    [libc::CLOCK_REALTIME, libc::CLOCK_MONOTONIC].contains(&clock)
}
