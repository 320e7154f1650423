//! Burning CPU time: a loop calibrated once.
//!
//! A loop that watched a clock would count the time in which other threads ran as its own, and so
//! give models with many runnable threads less work.
//!
//! A machine whose clock goes faster and slower gives two processes different loops for the same time, by
//! a third and more. So who compares several measures for all of them, and tells them by [`RATE`].

use std::hint::black_box;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The work for one request, in rounds of [`spin`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Burn {
    rounds: u64,
}

impl Burn {
    pub(crate) fn new(time: Duration) -> Burn {
        if time.is_zero() {
            return Burn { rounds: 0 };
        }
        let rounds = time.as_nanos() as f64 * rounds_per_nanosecond();
        Burn { rounds: (rounds as u64).max(1) }
    }

    #[inline]
    pub(crate) fn burn(self) {
        if self.rounds > 0 {
            spin(self.rounds);
        }
    }
}

/// A chain of dependent multiplications, which no compiler shortens and no core overlaps.
#[inline(never)]
fn spin(rounds: u64) {
    let mut x = black_box(0x9e37_79b9_7f4a_7c15u64);
    for _ in 0..rounds {
        x = black_box(x.wrapping_mul(0xd129_42f0_b3a5_1f2d).rotate_left(17));
    }
    black_box(x);
}

/// The environment variable by which a process is told the rate that another one has measured.
pub(crate) const RATE: &str = "KAPOK_BURN_RATE";

/// The rounds of the loop in a nanosecond: what [`RATE`] says, or measured once a process.
pub(crate) fn rounds_per_nanosecond() -> f64 {
    static ROUNDS: OnceLock<f64> = OnceLock::new();
    *ROUNDS.get_or_init(|| std::env::var(RATE).ok().and_then(told).unwrap_or_else(measured))
}

/// A rate that can be one.
fn told(rate: String) -> Option<f64> {
    rate.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0)
}

/// The fastest of several tries, since whatever disturbs only slows.
fn measured() -> f64 {
    const ROUNDS: u64 = 100_000;
    let fastest = (0..20)
        .map(|_| {
            let start = Instant::now();
            spin(ROUNDS);
            start.elapsed().as_nanos().max(1)
        })
        .min()
        .unwrap_or(1);
    ROUNDS as f64 / fastest as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burns_about_what_was_asked() {
        let burn = Burn::new(Duration::from_millis(2));
        // The fastest of many: a busy machine makes single tries longer, never shorter.
        let fastest = (0..20)
            .map(|_| {
                let start = Instant::now();
                burn.burn();
                start.elapsed()
            })
            .min()
            .unwrap_or_default();
        assert!(fastest >= Duration::from_millis(1), "burnt {fastest:?} only");
        assert!(fastest <= Duration::from_millis(8), "burnt {fastest:?}");
    }

    #[test]
    fn a_rate_that_cannot_be_one_is_measured() {
        assert_eq!(told("0.25".to_owned()), Some(0.25));
        for rate in ["", "fast", "0", "-1", "inf", "NaN"] {
            assert_eq!(told(rate.to_owned()), None, "{rate}");
        }
    }
}
