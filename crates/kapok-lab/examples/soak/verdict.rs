//! Whether a number that should stay where it is has grown.
//!
//! Memory is never still: the allocator keeps what one busy moment needed, stacks stay warm. What
//! tells a leak from that is that it goes on. So the growth is taken from the slope through all
//! samples after a time to warm up, by Theil and Sen: the median of the slopes between all pairs of
//! samples. Up to 29 % of the samples may be anywhere without moving it, so no burst counts as growth.
//! A step up to a new high-water mark in the middle of a run does move it, but not the slopes of both
//! halves: the least of the three counts, and what rises from lull to lull has all three. Slope times
//! time must stay below a bound, which is what the run can see: 2 MiB in two hours at fifty
//! connections a second is 6 bytes for each of them.

use std::time::Duration;

/// Samples without which a slope says nothing.
const LEAST_OF_A_SLOPE: usize = 3;
/// Samples without which nothing is said: enough for both halves, for without them a step is a slope.
pub(crate) const LEAST_SAMPLES: usize = 2 * LEAST_OF_A_SLOPE;
/// The longest time to warm up; of a shorter run it is a tenth.
const WARM_UP: Duration = Duration::from_secs(600);

/// How far a server's memory (resident, with page tables) may grow from the warm-up to the end.
pub(crate) const MEMORY_BOUND_BYTES: f64 = 2.0 * 1024.0 * 1024.0;
/// How many threads it may gain. The kernel starts workers for io_uring and ends them when idle.
pub(crate) const THREADS_BOUND: f64 = 2.0;

/// How many descriptors it may gain over so many samples: fewer than one, and as many as it may seem
/// to gain because each sample has up to `coming_and_going` of them more or fewer. The slope through
/// independent samples errs with the square root of their number.
pub(crate) fn descriptors_bound(samples: usize, coming_and_going: usize) -> f64 {
    0.9 + 3.0 * coming_and_going as f64 / (samples.max(1) as f64).sqrt()
}

/// When the samples of a run begin to count.
pub(crate) fn warm_up(run: Duration) -> Duration {
    WARM_UP.min(run / 10)
}

/// How much `samples`, pairs of seconds and a number, have grown from the first to the last of them;
/// none if they are too few.
pub(crate) fn growth(samples: &[(f64, f64)]) -> Option<f64> {
    if samples.len() < LEAST_SAMPLES {
        return None;
    }
    let span = samples[samples.len() - 1].0 - samples[0].0;
    let (first, second) = samples.split_at(samples.len() / 2);
    Some(slope(samples).min(slope(first)).min(slope(second)) * span)
}

/// The median of the slopes between all pairs.
fn slope(samples: &[(f64, f64)]) -> f64 {
    let mut slopes = Vec::with_capacity(samples.len() * samples.len() / 2);
    for (index, earlier) in samples.iter().enumerate() {
        for later in &samples[index + 1..] {
            slopes.push((later.1 - earlier.1) / (later.0 - earlier.0));
        }
    }
    slopes.sort_by(f64::total_cmp);
    let middle = slopes.len() / 2;
    if slopes.len() % 2 == 0 {
        f64::midpoint(slopes[middle - 1], slopes[middle])
    } else {
        slopes[middle]
    }
}
