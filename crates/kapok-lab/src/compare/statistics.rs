//! Medians and ratios, and how far to trust them.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

use super::signed_rank::SignedRank;
use super::verdict::Verdict;

/// Resamples of a bootstrap interval.
const RESAMPLES: usize = 1000;

/// A median and the range it was taken from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Spread {
    /// The median; of an even number of values the mean of the two in the middle.
    pub median: f64,
    /// The smallest value.
    pub least: f64,
    /// The largest value.
    pub most: f64,
    /// Where the median lies with 95 % confidence, by resampling the values (percentile bootstrap);
    /// `None` below five values, which resampling cannot make more of.
    pub interval: Option<(f64, f64)>,
}

impl Spread {
    /// The spread of `values`; `None` when there are none.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        Some(Spread { median: median(&values), least, most, interval: bootstrap(&values) })
    }
}

/// The median of values in any order; `None` of none.
pub(super) fn median_of(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    (!values.is_empty()).then(|| median(&values))
}

/// The median of values in their order.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    }
}

/// The interval of the median of values in their order. The same values always give the same one.
fn bootstrap(sorted: &[f64]) -> Option<(f64, f64)> {
    if sorted.len() < 5 {
        return None;
    }
    let mut random = fastrand::Rng::with_seed(0x006b_6170_6f6b);
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let mut places: Vec<usize> =
                (0..sorted.len()).map(|_| random.usize(..sorted.len())).collect();
            places.sort_unstable();
            let resampled: Vec<f64> = places.into_iter().map(|place| sorted[place]).collect();
            median(&resampled)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    Some((medians[RESAMPLES / 40], medians[RESAMPLES - 1 - RESAMPLES / 40]))
}

/// A ratio that was taken within each round, over all rounds, and how far to trust it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Ratio {
    /// The geometric mean.
    pub mean: f64,
    /// Where the ratio most likely is: the median of the geometric means of all pairs of rounds
    /// (Hodges and Lehmann), which no single round can move far.
    pub estimate: f64,
    /// Where it lies with 95 % confidence: what the signed-rank test does not reject, from six rounds
    /// on, and Student's t on the logarithms below that; `None` for a single round.
    pub interval: Option<(f64, f64)>,
    /// How likely rounds as far from 1 as these are if 1 is the truth (Wilcoxon's signed-rank test,
    /// two-sided).
    pub p: f64,
    /// How many rounds it is from.
    pub rounds: usize,
    /// What the rounds say.
    pub verdict: Verdict,
}

impl Ratio {
    /// What `ratios`, which must be positive, say together; `None` when there are none.
    #[must_use]
    pub fn of(ratios: &[f64]) -> Option<Ratio> {
        if ratios.is_empty() || ratios.iter().any(|&ratio| !(ratio > 0.0 && ratio.is_finite())) {
            return None;
        }
        let logarithms: Vec<f64> = ratios.iter().map(|ratio| ratio.ln()).collect();
        let mean = logarithms.iter().sum::<f64>() / logarithms.len() as f64;
        let ranked = SignedRank::of(&logarithms)?;
        let interval = ranked.interval.or_else(|| student_interval(&logarithms, mean));
        let interval = interval.map(|(low, high)| (low.exp(), high.exp()));
        Some(Ratio {
            mean: mean.exp(),
            estimate: ranked.estimate.exp(),
            interval,
            p: ranked.p,
            rounds: ratios.len(),
            verdict: Verdict::of(ranked.p, ranked.estimate, interval, ratios.len()),
        })
    }

    /// Half the width of the interval, relative: 0.025 is plus and minus 2.5 %.
    #[must_use]
    pub fn half_width(&self) -> Option<f64> {
        self.interval.map(|(low, high)| (high / low).sqrt() - 1.0)
    }
}

/// The 95 % interval of the mean by Student's t; `None` for a single value.
fn student_interval(values: &[f64], mean: f64) -> Option<(f64, f64)> {
    let freedom = values.len().checked_sub(1).filter(|freedom| *freedom > 0)? as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let error = (squares / freedom / values.len() as f64).sqrt();
    let quantile = StudentsT::new(0.0, 1.0, freedom).ok()?.inverse_cdf(0.975);
    Some((mean - quantile * error, mean + quantile * error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_numbers_of_values() {
        let odd = Spread::of([9.0, 1.0, 5.0]).unwrap();
        assert_eq!((odd.median, odd.least, odd.most, odd.interval), (5.0, 1.0, 9.0, None));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 8.0]).unwrap().median, 3.0);
        assert_eq!(Spread::of([7.0]).unwrap().median, 7.0);
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn the_interval_of_a_median_holds_it_about_as_often_as_it_says() {
        let mut random = fastrand::Rng::with_seed(7);
        let held = (0..400)
            .filter(|_| {
                // Skewed, with the median at ln 2.
                let values: Vec<f64> = (0..25).map(|_| -(1.0 - random.f64()).ln()).collect();
                let (low, high) = Spread::of(values).unwrap().interval.unwrap();
                (low..=high).contains(&std::f64::consts::LN_2)
            })
            .count();
        // 95 % and what a bootstrap of 25 values lacks.
        assert!((360..=398).contains(&held), "{held} of 400");
    }

    #[test]
    fn the_geometric_mean_treats_half_and_double_alike() {
        let ratio = Ratio::of(&[0.5, 2.0]).unwrap();
        assert!((ratio.mean - 1.0).abs() < 1e-12 && (ratio.estimate - 1.0).abs() < 1e-12);
        assert!((Ratio::of(&[1.0, 10.0, 100.0]).unwrap().mean - 10.0).abs() < 1e-9);
    }

    #[test]
    fn a_few_rounds_have_an_interval_by_student() {
        // Logarithms -0.1, -0.2, -0.3: mean -0.2, standard deviation 0.1, standard error 0.057735,
        // t(2) = 4.303, half width 0.248434.
        let ratios = [-0.1_f64, -0.2, -0.3].map(f64::exp);
        let ratio = Ratio::of(&ratios).unwrap();
        assert!((ratio.mean - (-0.2_f64).exp()).abs() < 1e-12);
        let (low, high) = ratio.interval.unwrap();
        assert!((low.ln() + 0.448_414).abs() < 1e-4, "{low}");
        assert!((high.ln() - 0.048_414).abs() < 1e-4, "{high}");
        assert!((ratio.half_width().unwrap() - 0.248_414_f64.exp_m1()).abs() < 1e-4);
    }

    #[test]
    fn nothing_measured_is_no_ratio_and_one_round_proves_nothing() {
        assert_eq!(Ratio::of(&[]), None);
        assert_eq!(Ratio::of(&[1.0, f64::INFINITY]), None);
        assert_eq!(Ratio::of(&[1.0, 0.0]), None);
        let one = Ratio::of(&[0.2]).unwrap();
        assert_eq!((one.interval, one.verdict), (None, Verdict::Unsettled));
    }
}
