//! The one source of chance: SplitMix64 (Steele, Lea and Flood 2014), whose output is fixed for
//! good. A generator from a library may change its stream with a release, and old seeds with it.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::sim::config::Chance;

pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`, which is not 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        // The bias of at most `bound` in 2^64 matters to no fault.
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// Whether it happens this time. What never happens draws nothing, so a kind of fault that is
    /// off does not change what the others do.
    pub(super) fn happens(&mut self, chance: Chance) -> bool {
        chance != Chance::NEVER && self.below(Chance::WHOLE) < chance.millionths()
    }

    /// A time in the range, in nanoseconds.
    pub(super) fn nanos(&mut self, range: &RangeInclusive<Duration>) -> u64 {
        let [from, to] = [range.start(), range.end()].map(|time| time.as_nanos() as u64);
        if to <= from { from } else { from + self.below(to - from + 1) }
    }

    /// In another order.
    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at as u64 + 1) as usize);
        }
    }
}

/// SplitMix64's finalizer: each bit of the input changes half of the output's.
pub(super) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_that_of_the_paper() {
        // The reference implementation's first outputs for this seed.
        let mut random = Random::new(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(
            first,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn chances_are_kept() {
        let mut random = Random::new(7);
        let mut hits = |chance| (0..100_000).filter(|_| random.happens(chance)).count();
        assert_eq!(hits(Chance::NEVER), 0);
        assert_eq!(hits(Chance::ALWAYS), 100_000);
        assert!((900..1100).contains(&hits(Chance::one_in(100))));
        assert!((24_000..26_000).contains(&hits(Chance::percent(25))));
    }
}
