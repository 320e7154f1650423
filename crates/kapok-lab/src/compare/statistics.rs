//! Medians, geometric means, and how far to trust them.

use serde::Serialize;

/// A median and the range it was taken from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The median; of an even number of values the mean of the two in the middle.
    pub median: f64,
    /// The smallest value.
    pub least: f64,
    /// The largest value.
    pub most: f64,
}

impl Spread {
    /// The spread of `values`; `None` when there are none.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Spread { median, least, most })
    }
}

/// The geometric mean of ratios that were each taken within one round, and where it lies with 95 %
/// confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// The geometric mean.
    pub mean: f64,
    /// The 95 % interval (Student's t on the logarithms); `None` for a single round.
    pub interval: Option<(f64, f64)>,
}

impl Ratio {
    /// The mean of `ratios`, which must be positive; `None` when there are none.
    #[must_use]
    pub fn of(ratios: &[f64]) -> Option<Ratio> {
        if ratios.is_empty() || ratios.iter().any(|&ratio| !(ratio > 0.0 && ratio.is_finite())) {
            return None;
        }
        let count = ratios.len() as f64;
        let mean = ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / count;
        let interval = (ratios.len() > 1).then(|| {
            let squares: f64 = ratios.iter().map(|ratio| (ratio.ln() - mean).powi(2)).sum();
            let error = (squares / (count - 1.0) / count).sqrt();
            let half_width = student_t(ratios.len() - 1) * error;
            ((mean - half_width).exp(), (mean + half_width).exp())
        });
        Some(Ratio { mean: mean.exp(), interval })
    }

    /// Whether the rounds do not tell this ratio from 1.
    #[must_use]
    pub fn indistinguishable(&self) -> bool {
        self.interval.is_none_or(|(low, high)| low <= 1.0 && high >= 1.0)
    }
}

/// Two-sided 95 % quantiles of Student's t.
fn student_t(degrees_of_freedom: usize) -> f64 {
    const QUANTILES: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
        2.052, 2.048, 2.045, 2.042,
    ];
    QUANTILES.get(degrees_of_freedom.wrapping_sub(1)).copied().unwrap_or_else(|| {
        // The first terms of its expansion about the normal quantile (Abramowitz and Stegun,
        // 26.7.5): exact to three digits here.
        let z = 1.959_964_f64;
        z + (z.powi(3) + z) / (4.0 * degrees_of_freedom as f64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_numbers_of_values() {
        let odd = Spread::of([9.0, 1.0, 5.0]).unwrap();
        assert_eq!(odd, Spread { median: 5.0, least: 1.0, most: 9.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 8.0]).unwrap().median, 3.0);
        assert_eq!(Spread::of([7.0]).unwrap().median, 7.0);
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn the_geometric_mean_treats_half_and_double_alike() {
        let ratio = Ratio::of(&[0.5, 2.0]).unwrap();
        assert!((ratio.mean - 1.0).abs() < 1e-12);
        assert!(ratio.indistinguishable());
        assert!((Ratio::of(&[1.0, 10.0, 100.0]).unwrap().mean - 10.0).abs() < 1e-9);
    }

    #[test]
    fn an_interval_computed_by_hand() {
        // Logarithms -0.1, -0.2, -0.3: mean -0.2, standard deviation 0.1, standard error 0.057735,
        // t(2) = 4.303, half width 0.248434.
        let ratios = [-0.1_f64, -0.2, -0.3].map(f64::exp);
        let ratio = Ratio::of(&ratios).unwrap();
        assert!((ratio.mean - (-0.2_f64).exp()).abs() < 1e-12);
        let (low, high) = ratio.interval.unwrap();
        assert!((low.ln() + 0.448_434).abs() < 1e-5, "{low}");
        assert!((high.ln() - 0.048_434).abs() < 1e-5, "{high}");
        assert!(ratio.indistinguishable());
        assert!(!Ratio::of(&[0.5, 0.51, 0.49]).unwrap().indistinguishable());
    }

    #[test]
    fn quantiles_go_on_beyond_the_table() {
        for (degrees, quantile) in
            [(30, 2.042), (31, 2.040), (40, 2.021), (60, 2.000), (120, 1.980)]
        {
            assert!((student_t(degrees) - quantile).abs() < 0.005, "{degrees}");
        }
    }

    #[test]
    fn nothing_measured_is_no_ratio_and_one_round_proves_nothing() {
        assert_eq!(Ratio::of(&[]), None);
        assert_eq!(Ratio::of(&[1.0, f64::INFINITY]), None);
        assert_eq!(Ratio::of(&[1.0, 0.0]), None);
        assert!(Ratio::of(&[0.2]).unwrap().indistinguishable());
    }
}
