//! The rank-sum test of Mann, Whitney and Wilcoxon: whether two samples that are not paired differ.

use statrs::distribution::{ContinuousCDF, Normal};

/// Up to so many pairs all orders are counted. The normal distribution in place of that is no help where
/// one sample is small: two values against any number of others never come below 1.4 % by it.
const MOST_COUNTED: usize = 4_000;

/// What the test finds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct RankSum {
    /// The median of all differences between a value of the second sample and one of the first
    /// (Hodges and Lehmann).
    pub(super) shift: f64,
    /// How likely samples as different as these are if they come from the same source (two-sided).
    pub(super) p: f64,
}

impl RankSum {
    /// Tests whether `second` lies above or below `first`; `None` when one of them is empty.
    pub(super) fn of(first: &[f64], second: &[f64]) -> Option<RankSum> {
        if first.is_empty() || second.is_empty() {
            return None;
        }
        let mut shifts: Vec<f64> = second
            .iter()
            .flat_map(|later| first.iter().map(move |earlier| later - earlier))
            .collect();
        shifts.sort_by(f64::total_cmp);
        let last = shifts.len() - 1;
        let shift = f64::midpoint(shifts[last / 2], shifts[last.div_ceil(2)]);

        // Pairs in which the second is larger; equal ones count half.
        let larger: f64 = shifts
            .iter()
            .map(|shift| {
                if *shift > 0.0 {
                    1.0
                } else if *shift == 0.0 {
                    0.5
                } else {
                    0.0
                }
            })
            .sum();
        let (m, n) = (first.len(), second.len());
        Some(RankSum { shift, p: p_of(larger, m, n, shifts.contains(&0.0)) })
    }
}

/// The smallest `p` that samples of so many values can have: all of one lie above all of the other.
pub(super) fn least_p(m: usize, n: usize) -> f64 {
    if m == 0 || n == 0 { 1.0 } else { p_of(0.0, m, n, false) }
}

/// How few values, of `most` at most, can show a difference from a sample of `m` at such a level.
pub(super) fn fewest(m: usize, level: f64, most: usize) -> Option<usize> {
    (1..=most).find(|n| least_p(m, *n) < level)
}

/// How likely it is that of all pairs the second is larger in as few or as many as `larger`.
fn p_of(larger: f64, m: usize, n: usize, tied: bool) -> f64 {
    let pairs = (m * n) as f64;
    let p = if m * n <= MOST_COUNTED && !tied {
        let ways = ways(m.max(n), m.min(n));
        let all: f64 = ways.iter().sum();
        let smaller = larger.min(pairs - larger) as usize;
        2.0 * ways.iter().take(smaller + 1).sum::<f64>() / all
    } else {
        let deviation = (pairs * (m + n + 1) as f64 / 12.0).sqrt();
        let z = (((larger - pairs / 2.0).abs() - 0.5) / deviation).max(0.0);
        2.0 * Normal::standard().cdf(-z)
    };
    p.min(1.0)
}

/// In how many of the orders of `m` and `n` values so many pairs have the second larger.
fn ways(m: usize, n: usize) -> Vec<f64> {
    // ways[j][u]: with j values of the second sample and those of the first that were placed so far.
    let mut ways = vec![vec![0.0; m * n + 1]; n + 1];
    for row in &mut ways {
        row[0] = 1.0;
    }
    for placed in 1..=m {
        for j in 1..=n {
            // The largest is the second sample's, above all that are placed of the first, or not.
            for u in (0..=placed * j).rev() {
                let second = if u >= placed { ways[j - 1][u - placed] } else { 0.0 };
                ways[j][u] += second;
            }
        }
    }
    ways.swap_remove(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_textbook_example_comes_out_as_in_the_textbook() {
        // Hollander and Wolfe, 69: permeability constants; R: wilcox.test(x, y, alternative = "g")
        // has W = 35 and p = 0.1272, hence 0.2544 two-sided.
        let term = [0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46];
        let earlier = [1.15, 0.88, 0.90, 0.74, 1.21];
        let found = RankSum::of(&earlier, &term).unwrap();
        assert!((found.p - 0.254_412_254_412).abs() < 1e-9, "{found:?}");
        assert!((found.shift - 0.305).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn samples_apart_are_found_if_there_are_enough_of_them() {
        let low = [1.0, 2.0, 3.0];
        let high = [4.0, 5.0, 6.0];
        // 2 of the 20 orders: three against three never suffice.
        assert!((RankSum::of(&low, &high).unwrap().p - 0.1).abs() < 1e-12);
        let low: Vec<f64> = (0..30).map(f64::from).collect();
        let high: Vec<f64> = low.iter().map(|value| value + 15.5).collect();
        let found = RankSum::of(&low, &high).unwrap();
        assert!(found.p < 1e-4 && (found.shift - 15.5).abs() < 1e-9, "{found:?}");
        assert!(RankSum::of(&high, &low).unwrap().shift < 0.0);
        assert!(RankSum::of(&low, &low).unwrap().p > 0.9);
        assert_eq!(RankSum::of(&[], &low), None);
    }

    #[test]
    fn the_least_p_is_that_of_samples_apart() {
        // 2 of C(m + n, n) orders.
        for (m, n, orders) in [(3, 3, 20.0), (5, 5, 252.0), (2, 60, 1_891.0), (60, 2, 1_891.0)] {
            assert!(
                (least_p(m, n) * orders / 2.0 - 1.0).abs() < 1e-9,
                "{m}, {n}: {}",
                least_p(m, n)
            );
            let sample = |from: usize, count: usize| -> Vec<f64> {
                (from..from + count).map(|value| value as f64).collect()
            };
            let found = RankSum::of(&sample(0, m), &sample(m, n)).unwrap();
            assert_eq!(found.p, least_p(m, n));
        }
        assert_eq!((least_p(0, 5), least_p(5, 0), least_p(1, 1)), (1.0, 1.0, 1.0));
        // Where the orders are no longer counted, more values do not make it larger.
        assert!(least_p(64, 64) < 1e-12);
    }

    #[test]
    fn the_fewest_values_that_can_show_something() {
        // C(6, 3) = 20, C(9, 3) = 84, C(10, 3) = 120: 2/84 is above 2 %, 2/120 below.
        assert_eq!(fewest(3, 0.02, 200), Some(7));
        assert_eq!(fewest(5, 0.02, 200), Some(4)); // C(9, 4) = 126
        // One against n: 2 of n + 1.
        assert_eq!(fewest(1, 0.02, 200), Some(100));
        assert_eq!(fewest(1, 0.02, 99), None);
        assert_eq!(fewest(0, 0.02, 200), None);
    }
}
