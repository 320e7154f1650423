//! When two servers are said to differ, when not, and when to go on measuring.
//!
//! The rule, for a ratio taken within each round:
//!
//! 1. *lower* or *higher*: the signed-rank test rejects that the ratio is 1, at a level of 2 %.
//! 2. *indistinguishable*: it does not, and the whole 95 % interval lies within the margin of 5 %. A
//!    difference, if there is one, is smaller than the margin.
//! 3. *unsettled*: neither. The rounds do not suffice for an answer.
//!
//! Measuring goes on until the interval is no wider than plus and minus 2.5 % and the answer is one of
//! the first two, or until a cap. That the width of the interval ends it, and not what the interval
//! says, keeps false alarms near the test's own 2 %: whoever stops at the first significant round finds
//! a difference between any two things. The rates are measured in `tests/rates.rs`, on recordings.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::signed_rank;
use super::statistics::Ratio;

/// A difference that is smaller does not matter here, and one this large is to be found.
pub const MARGIN: f64 = 0.05;

/// How often at most, by the test's own account, two servers that are the same are told apart.
pub const SIGNIFICANCE: f64 = 0.02;

/// What rounds say about a ratio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Below 1.
    Lower,
    /// Above 1.
    Higher,
    /// Not told from 1, and within 5 % of it.
    Indistinguishable,
    /// More rounds are needed.
    Unsettled,
}

impl Verdict {
    /// By the rule above, of the signed-rank test's `p`, the logarithm that it estimates, and the
    /// interval of the ratio.
    pub(super) fn of(
        p: f64,
        estimate: f64,
        interval: Option<(f64, f64)>,
        rounds: usize,
    ) -> Verdict {
        if p < SIGNIFICANCE {
            return if estimate < 0.0 { Verdict::Lower } else { Verdict::Higher };
        }
        match interval {
            // Student's interval, of fewer rounds, is for the eye only.
            Some((low, high))
                if rounds >= signed_rank::FEWEST && low >= 1.0 - MARGIN && high <= 1.0 + MARGIN =>
            {
                Verdict::Indistinguishable
            }
            _ => Verdict::Unsettled,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Lower => "lower",
            Verdict::Higher => "higher",
            Verdict::Indistinguishable => "indistinguishable",
            Verdict::Unsettled => "unsettled",
        })
    }
}

/// How many rounds to measure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rounds {
    /// So many.
    Fixed(usize),
    /// Until every ratio is known well enough, but at least and at most so many.
    Until {
        /// The half-width of the 95 % interval to reach, relative: 0.025 is plus and minus 2.5 %.
        half_width: f64,
        /// Rounds before the first look at the interval.
        least: usize,
        /// Rounds after which it ends in any case.
        cap: usize,
    },
}

impl Rounds {
    /// The full profile's: an interval of plus and minus 2.5 %, in 10 to 400 rounds.
    pub const FULL: Rounds = Rounds::Until { half_width: 0.025, least: 10, cap: 400 };

    /// The most that it can come to.
    #[must_use]
    pub fn cap(self) -> usize {
        match self {
            Rounds::Fixed(rounds) | Rounds::Until { cap: rounds, .. } => rounds,
        }
    }

    /// Whether what a ratio says after its rounds is enough.
    #[must_use]
    pub fn suffice(self, ratio: &Ratio) -> bool {
        match self {
            Rounds::Fixed(rounds) => ratio.rounds >= rounds,
            Rounds::Until { least, cap, .. } if ratio.rounds < least => ratio.rounds >= cap,
            Rounds::Until { cap, .. } if ratio.rounds >= cap => true,
            Rounds::Until { half_width, .. } => {
                ratio.verdict != Verdict::Unsettled
                    && ratio.half_width().is_some_and(|reached| reached <= half_width)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(center: f64, deviation: f64, rounds: usize) -> Ratio {
        let step = |index: usize| (index as f64 / (rounds - 1) as f64 - 0.5) * 3.4 * deviation;
        let ratios: Vec<f64> = (0..rounds).map(|index| center * step(index).exp()).collect();
        Ratio::of(&ratios).unwrap()
    }

    #[test]
    fn each_verdict_where_it_belongs() {
        assert_eq!(spread(1.0, 0.02, 20).verdict, Verdict::Indistinguishable);
        assert_eq!(spread(0.95, 0.02, 20).verdict, Verdict::Lower);
        assert_eq!(spread(1.05, 0.02, 20).verdict, Verdict::Higher);
        assert_eq!(spread(1.0, 0.3, 20).verdict, Verdict::Unsettled);
        // Too few to be sure of anything, however alike they are.
        assert_eq!(spread(1.0, 0.001, 4).verdict, Verdict::Unsettled);
        assert_eq!(spread(2.0, 0.001, 4).verdict, Verdict::Unsettled);
    }

    #[test]
    fn rounds_end_when_the_interval_is_narrow_or_the_cap_is_reached() {
        let until = Rounds::Until { half_width: 0.025, least: 10, cap: 40 };
        assert!(until.suffice(&spread(1.0, 0.02, 20)));
        assert!(!until.suffice(&spread(1.0, 0.02, 8)), "before the least");
        assert!(!until.suffice(&spread(1.5, 0.3, 20)), "significant, and known too roughly");
        assert!(until.suffice(&spread(1.0, 0.3, 40)), "the cap");
        assert!(Rounds::Fixed(3).suffice(&spread(1.0, 0.3, 3)));
        assert!(!Rounds::Fixed(5).suffice(&spread(1.0, 0.001, 4)));
    }
}
