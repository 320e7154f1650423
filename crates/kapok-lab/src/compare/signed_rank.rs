//! Wilcoxon's signed-rank test of paired differences, and the estimate that belongs to it.
//!
//! The differences are logarithms of ratios, each taken within one round. The test asks whether they
//! lie around zero, by their ranks alone: a round in which the machine did something else counts as
//! one round, however far off it is. The estimate is the median of all pairwise means (Hodges and
//! Lehmann, 1963), and its interval holds just the shifts that the test would not reject (Hollander
//! and Wolfe, *Nonparametric Statistical Methods*, 3.1 to 3.3), so that test, estimate and interval
//! never contradict each other.

use statrs::distribution::{ContinuousCDF, Normal};

/// Up to here the distribution of the rank sum is computed exactly.
const EXACT: usize = 60;

/// Fewer differences than these have no interval of 95 %: of `n` signs all agree by chance once in
/// `2^(n-1)` times.
pub(super) const FEWEST: usize = 6;

/// What the test finds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct SignedRank {
    /// The median of the pairwise means.
    pub(super) estimate: f64,
    /// 95 % of such intervals hold the true value; `None` below [`FEWEST`] differences.
    pub(super) interval: Option<(f64, f64)>,
    /// How likely differences as far from zero as these are if zero is the truth (two-sided).
    pub(super) p: f64,
}

impl SignedRank {
    /// Tests `differences`; `None` when there are none.
    pub(super) fn of(differences: &[f64]) -> Option<SignedRank> {
        if differences.is_empty() {
            return None;
        }
        let count = differences.len();
        let mut means = Vec::with_capacity(count * (count + 1) / 2);
        for (index, first) in differences.iter().enumerate() {
            means.extend(differences[index..].iter().map(|second| f64::midpoint(*first, *second)));
        }
        means.sort_by(f64::total_cmp);
        let last = means.len() - 1;
        let estimate = f64::midpoint(means[last / 2], means[last.div_ceil(2)]);
        let interval = (count >= FEWEST).then(|| {
            let outside = lower_quantile(count, 0.025).max(1);
            (means[outside - 1], means[means.len() - outside])
        });
        Some(SignedRank { estimate, interval, p: two_sided(differences) })
    }
}

/// The probability, if zero is the truth, of a rank sum at least as extreme.
fn two_sided(differences: &[f64]) -> f64 {
    // A difference of nothing says nothing about its sign.
    let mut differences: Vec<f64> = differences.iter().copied().filter(|d| *d != 0.0).collect();
    let count = differences.len();
    if count == 0 {
        return 1.0;
    }
    differences.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    let mut positive = 0.0;
    let mut ties = 0.0;
    let mut start = 0;
    while start < count {
        let size =
            differences[start..].iter().take_while(|d| d.abs() == differences[start].abs()).count();
        // Equal sizes share the mean of their ranks.
        let rank = start as f64 + f64::midpoint(1.0, size as f64);
        let above = differences[start..start + size].iter().filter(|d| **d > 0.0).count();
        positive += rank * above as f64;
        ties += (size as f64).powi(3) - size as f64;
        start += size;
    }
    let n = count as f64;
    let all = n * (n + 1.0) / 2.0;
    let smaller = positive.min(all - positive);
    if count <= EXACT && ties == 0.0 { exact(count, smaller) } else { curve(n, smaller, ties) }
}

/// Twice the probability of so small a sum, counted.
fn exact(count: usize, smaller: f64) -> f64 {
    let below: f64 = distribution(count).iter().take(smaller as usize + 1).sum();
    (2.0 * below).min(1.0)
}

/// The same by the normal curve.
fn curve(n: f64, smaller: f64, ties: f64) -> f64 {
    let deviation = (n * (n + 1.0) * (2.0 * n + 1.0) / 24.0 - ties / 48.0).sqrt();
    // Half a rank towards the middle: the sum moves in whole ranks and the curve does not.
    let z = (smaller + 0.5 - n * (n + 1.0) / 4.0).min(0.0) / deviation;
    (2.0 * standard().cdf(z)).min(1.0)
}

/// The smallest rank sum that is reached or undercut with probability `p` or more.
fn lower_quantile(count: usize, p: f64) -> usize {
    if count <= EXACT {
        let mut below = 0.0;
        for (sum, probability) in distribution(count).iter().enumerate() {
            below += probability;
            if below >= p {
                return sum;
            }
        }
    }
    let n = count as f64;
    let deviation = (n * (n + 1.0) * (2.0 * n + 1.0) / 24.0).sqrt();
    let quantile = n * (n + 1.0) / 4.0 + standard().inverse_cdf(p) * deviation;
    quantile.max(0.0) as usize
}

/// The probability of each sum of the positive ranks when every sign is a toss of a coin.
fn distribution(count: usize) -> Vec<f64> {
    let mut probabilities = vec![0.0; count * (count + 1) / 2 + 1];
    probabilities[0] = 1.0;
    let mut largest = 0;
    for rank in 1..=count {
        largest += rank;
        for sum in (0..=largest).rev() {
            let with = if sum >= rank { probabilities[sum - rank] } else { 0.0 };
            probabilities[sum] = f64::midpoint(probabilities[sum], with);
        }
    }
    probabilities
}

fn standard() -> Normal {
    Normal::standard()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hollander and Wolfe's example, which is R's as well: depression before and after.
    const BEFORE: [f64; 9] = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30];
    // One of these measured values happens to look like a circle's.
    #[allow(clippy::approx_constant)]
    const AFTER: [f64; 9] = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29];

    #[test]
    fn the_textbook_example_comes_out_as_in_the_textbook() {
        let differences: Vec<f64> = BEFORE.iter().zip(AFTER).map(|(x, y)| x - y).collect();
        let found = SignedRank::of(&differences).unwrap();
        // R: wilcox.test(x, y, paired = TRUE, conf.int = TRUE): V = 40, p = 0.03906, pseudomedian
        // 0.46, interval 0.010 to 0.786 (95 %).
        assert!((found.p - 0.039_062_5).abs() < 1e-9, "{found:?}");
        assert!((found.estimate - 0.46).abs() < 1e-9, "{found:?}");
        let (low, high) = found.interval.unwrap();
        assert!((low - 0.010).abs() < 1e-9 && (high - 0.786).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn the_exact_probabilities_of_small_samples() {
        // All of n signs alike: 2 of 2^n.
        for count in 1..=12 {
            let differences: Vec<f64> = (1..=count).map(f64::from).collect();
            let p = SignedRank::of(&differences).unwrap().p;
            assert!((p - 2.0 / 2.0_f64.powi(count)).abs() < 1e-12, "{count}: {p}");
        }
        for count in [5, 30, EXACT] {
            let sum: f64 = distribution(count).iter().sum();
            assert!((sum - 1.0).abs() < 1e-12, "{count}: {sum}");
        }
    }

    #[test]
    fn beyond_the_exact_ones_the_curve_takes_over_without_a_step() {
        let all = (EXACT * (EXACT + 1)) as f64 / 2.0;
        for share in [0.3, 0.35, 0.4, 0.45, 0.5] {
            let sum = (all * share).floor();
            let (exact, curve) = (exact(EXACT, sum), curve(EXACT as f64, sum, 0.0));
            assert!((exact - curve).abs() < 0.003, "{share}: {exact} {curve}");
        }
        let (counted, drawn) = (lower_quantile(EXACT, 0.025), lower_quantile(EXACT + 1, 0.025));
        assert!((15..=40).contains(&(drawn - counted)), "{counted} {drawn}");
    }

    #[test]
    fn one_round_gone_wrong_moves_nothing() {
        let mut differences: Vec<f64> = (0..21).map(|index| f64::from(index - 10) * 0.01).collect();
        let before = SignedRank::of(&differences).unwrap();
        differences[20] = 5.0;
        let after = SignedRank::of(&differences).unwrap();
        assert!((before.estimate - after.estimate).abs() < 0.01, "{before:?} {after:?}");
        assert_eq!(before.p, after.p);
    }

    #[test]
    fn nothing_and_no_difference_are_told_apart() {
        assert_eq!(SignedRank::of(&[]), None);
        let same = SignedRank::of(&[0.0; 8]).unwrap();
        assert_eq!((same.estimate, same.interval, same.p), (0.0, Some((0.0, 0.0)), 1.0));
        assert_eq!(SignedRank::of(&[0.1; 5]).unwrap().interval, None);
    }
}
