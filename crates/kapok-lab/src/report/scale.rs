//! From values to places on paper.

/// Round values for the lines of an axis from 0: at most six, the last at or above `most`.
pub(super) fn ticks(most: f64) -> Vec<f64> {
    if !(most > 0.0 && most.is_finite()) {
        return vec![0.0, 1.0];
    }
    let power = 10_f64.powf((most / 4.0).log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| most / step <= 5.0)
        .unwrap_or(10.0 * power);
    let count = (most / step - 1e-9).ceil() as usize;
    (0..=count).map(|index| index as f64 * step).collect()
}

/// Powers of ten from at or below `least` to at or above `most`.
pub(super) fn decades(least: f64, most: f64) -> Vec<f64> {
    if !(least > 0.0 && most >= least && most.is_finite()) {
        return vec![1.0, 10.0];
    }
    let first = (least.log10() + 1e-9).floor() as i32;
    let last = ((most.log10() - 1e-9).ceil() as i32).max(first + 1);
    (first..=last).map(|power| 10_f64.powi(power)).collect()
}

/// Three digits and a suffix.
pub(super) fn short(value: f64) -> String {
    let digits = |value: f64| {
        let text = match value.abs() {
            size if size >= 100.0 => format!("{value:.0}"),
            size if size >= 10.0 => format!("{value:.1}"),
            _ => format!("{value:.2}"),
        };
        if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text
        }
    };
    match value.abs() {
        size if size >= 1e6 => format!("{}M", digits(value / 1e6)),
        size if size >= 1e4 => format!("{}k", digits(value / 1e3)),
        _ => digits(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_reaches_its_largest_value_in_a_few_round_steps() {
        for most in [0.003, 0.7, 1.0, 4.9, 9.99, 57_801.0, 172_000.0, 1e9] {
            let ticks = ticks(most);
            let last = *ticks.last().unwrap();
            assert!(last >= most * (1.0 - 1e-9) && last < most * 2.0, "{most}: {ticks:?}");
            assert!((3..=7).contains(&ticks.len()), "{most}: {ticks:?}");
        }
        for nothing in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(ticks(nothing), [0.0, 1.0]);
        }
    }

    #[test]
    fn decades_enclose_their_values() {
        assert_eq!(decades(3.0, 4_000.0), [1.0, 10.0, 100.0, 1_000.0, 10_000.0]);
        assert_eq!(decades(10.0, 10.0), [10.0, 100.0]);
        assert_eq!(decades(0.0, 5.0), [1.0, 10.0]);
    }

    #[test]
    fn numbers_are_short() {
        let cases =
            [(0.0, "0"), (6.724, "6.72"), (43.16, "43.2"), (399.0, "399"), (57_801.0, "57.8k")];
        for (value, text) in cases {
            assert_eq!(short(value), text);
        }
        assert_eq!(short(1_500_000.0), "1.5M");
        assert_eq!(short(100.0), "100");
    }
}
