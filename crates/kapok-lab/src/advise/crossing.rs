//! Where another model would win: neighbouring points, measured shortly, and a cost model between them.
//!
//! The cost model. Along connections a cost is taken as a power of them, `k · n^s`, a straight line in
//! logarithms: an O(n) loop has a slope near 1, one that waits for events a slope near 0. Along CPU time
//! and delay it is a straight line, `a + b · x`: the handler's time is added to what the model itself
//! costs. Both have two parameters, and two points are measured, so the model goes through both and says
//! only where between them two models meet. Nothing is said beyond what was measured, with one
//! exception that is marked as such: [`fades_at`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Question;
use crate::compare::{MARGIN, Ratio};

/// What is changed on the way to a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Axis {
    /// Connections.
    Connections,
    /// CPU time of the handler, in microseconds a request.
    CpuPerRequest,
    /// What each request waits for another server, in milliseconds.
    Delay,
}

impl Axis {
    /// What stands behind a value.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Axis::Connections => "connections",
            Axis::CpuPerRequest => "µs of CPU a request",
            Axis::Delay => "ms at a backend",
        }
    }

    pub(super) fn value(self, question: &Question) -> f64 {
        match self {
            Axis::Connections => question.connections as f64,
            Axis::CpuPerRequest => question.cpu_per_request.as_secs_f64() * 1e6,
            Axis::Delay => question.delay.as_secs_f64() * 1e3,
        }
    }
}

/// The most connections of a neighbour: more than that only if it was asked for.
const MOST_CONNECTIONS: usize = 4096;

/// The points beside the one that was asked for, nearest questions first.
pub(super) fn neighbours(question: &Question) -> Vec<(Axis, Question)> {
    let mut all = Vec::new();
    let connections = |connections| Question { connections, ..question.clone() };
    let more = (question.connections * 8).min(MOST_CONNECTIONS);
    if more >= question.connections * 2 {
        all.push((Axis::Connections, connections(more)));
    }
    let cpu = (question.cpu_per_request * 4).max(Duration::from_micros(50));
    if cpu <= Duration::from_millis(20) {
        all.push((Axis::CpuPerRequest, Question { cpu_per_request: cpu, ..question.clone() }));
    }
    if question.connections >= 8 {
        all.push((Axis::Connections, connections(question.connections / 8)));
    }
    let delay = (question.delay * 4).max(Duration::from_millis(2));
    if delay <= Duration::from_millis(100) {
        all.push((Axis::Delay, Question { delay, ..question.clone() }));
    }
    all
}

/// What the neighbour of one axis says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Crossing {
    /// What was changed.
    pub axis: Axis,
    /// Its value in the question.
    pub from: f64,
    /// Its value at the neighbour.
    pub to: f64,
    /// The best measured model there.
    pub winner: String,
    /// The advised model's cost there over the winner's; `None` if the advised model is the winner, or
    /// cannot serve there.
    pub ratio: Option<Ratio>,
    /// Why the advised model cannot serve there.
    pub obstacle: Option<String>,
    /// Where the two meet by the cost model; `None` if they do not, or one was not measured at both ends.
    pub at: Option<f64>,
}

impl Crossing {
    /// Where the two meet, with at least two significant digits: tenths of a millisecond are a long time.
    /// Connections are whole.
    #[must_use]
    pub fn meet_at(&self) -> Option<String> {
        let at = self.at?;
        let whole = self.axis == Axis::Connections || at >= 9.95 || at <= 0.0;
        let digits = if whole { 0 } else { 1 - (at.log10().floor() as i32).clamp(-5, 0) };
        Some(format!("{at:.0$}", digits as usize))
    }

    /// Whether another model wins at the neighbour: by more than what does not matter, and with 1
    /// outside the interval of 95 %. A single round has none, and proves nothing.
    #[must_use]
    pub fn is_crossed(&self) -> bool {
        let told = |ratio: &Ratio| {
            ratio.estimate > 1.0 + MARGIN && ratio.interval.is_some_and(|(low, _)| low > 1.0)
        };
        self.obstacle.is_some() || self.ratio.as_ref().is_some_and(told)
    }
}

/// Where two costs meet between `from` and `to`: the costs of the advised model at both, then those of
/// the other.
pub(super) fn meet(
    axis: Axis,
    (from, to): (f64, f64),
    advised: (f64, f64),
    other: (f64, f64),
) -> Option<f64> {
    let straight = |x: (f64, f64), ours: (f64, f64), theirs: (f64, f64)| {
        let (before, after) = (theirs.0 - ours.0, theirs.1 - ours.1);
        // On one side each: otherwise they do not meet in between.
        (before >= 0.0 && after < 0.0).then(|| x.0 + (x.1 - x.0) * before / (before - after))
    };
    match axis {
        Axis::Connections => {
            let ln = |(a, b): (f64, f64)| (a.ln(), b.ln());
            straight(ln((from, to)), ln(advised), ln(other)).map(f64::exp)
        }
        Axis::CpuPerRequest | Axis::Delay => straight((from, to), advised, other),
    }
}

/// From how many more microseconds of CPU a request on the next model is within the margin, if the
/// handler's time is added to both costs alike; `None` if it is already. This goes beyond what was
/// measured.
pub(super) fn fades_at(advised: f64, next: f64) -> Option<f64> {
    let more = (next - (1.0 + MARGIN) * advised) / MARGIN;
    (more > 0.0 && more.is_finite()).then_some(more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_connections_meet_where_they_are_equal() {
        // 5 µs whatever n is, and 0.25 µs · n^0.5: equal at n = 400.
        let by_root = |n: f64| 0.25 * n.sqrt();
        let at =
            meet(Axis::Connections, (64.0, 512.0), (by_root(64.0), by_root(512.0)), (5.0, 5.0));
        assert!((at.unwrap() - 400.0).abs() < 1e-6, "{at:?}");
        // Downwards as well.
        let at =
            meet(Axis::Connections, (512.0, 64.0), (5.0, 5.0), (by_root(512.0), by_root(64.0)));
        assert!((at.unwrap() - 400.0).abs() < 1e-6, "{at:?}");
    }

    #[test]
    fn lines_meet_where_they_are_equal_and_only_in_between() {
        // 10 + x and 20 + 0.5 x: equal at 20.
        let at = meet(Axis::CpuPerRequest, (0.0, 50.0), (10.0, 60.0), (20.0, 45.0));
        assert_eq!(at, Some(20.0));
        assert_eq!(meet(Axis::Delay, (0.0, 50.0), (10.0, 60.0), (20.0, 70.0)), None, "parallel");
        assert_eq!(meet(Axis::Delay, (0.0, 50.0), (10.0, 60.0), (5.0, 45.0)), None, "never ahead");
    }

    #[test]
    fn one_round_is_no_crossing_and_neither_is_a_wide_interval() {
        let crossed = |ratios: &[f64]| {
            Crossing {
                axis: Axis::Delay,
                from: 0.0,
                to: 2.0,
                winner: "epoll".into(),
                ratio: Ratio::of(ratios),
                obstacle: None,
                at: None,
            }
            .is_crossed()
        };
        assert!(crossed(&[1.3, 1.32, 1.29]));
        assert!(!crossed(&[1.3]), "one round");
        assert!(!crossed(&[0.9, 1.9, 1.2]), "may be anything");
        assert!(!crossed(&[1.03, 1.031, 1.029]), "does not matter");
    }

    #[test]
    fn where_models_meet_is_told_with_two_digits() {
        let meet_at = |axis, at| {
            let (from, to, winner) = (0.0, 2.0, "epoll".to_owned());
            let (ratio, obstacle) = (None, None);
            Crossing { axis, from, to, winner, ratio, obstacle, at: Some(at) }.meet_at().unwrap()
        };
        for (at, said) in
            [(0.437, "0.44"), (1.26, "1.3"), (0.03123, "0.031"), (9.97, "10"), (123.4, "123")]
        {
            assert_eq!(meet_at(Axis::Delay, at), said);
        }
        assert_eq!(meet_at(Axis::Delay, 0.0), "0");
        assert_eq!(meet_at(Axis::Connections, 2.6), "3");
    }

    #[test]
    fn a_margin_fades_as_the_handler_grows() {
        // 10 and 12: (12 + 30) / (10 + 30) is 1.05.
        assert!((fades_at(10.0, 12.0).unwrap() - 30.0).abs() < 1e-9);
        assert_eq!(fades_at(10.0, 10.4), None);
    }

    #[test]
    fn neighbours_differ_in_one_thing_each_and_stay_measurable() {
        let question = Question { connections: 2000, ..Question::default() };
        let found = neighbours(&question);
        let values: Vec<(Axis, f64)> =
            found.iter().map(|(axis, neighbour)| (*axis, axis.value(neighbour))).collect();
        assert_eq!(
            values,
            [
                (Axis::Connections, 4096.0),
                (Axis::CpuPerRequest, 50.0),
                (Axis::Connections, 250.0),
                (Axis::Delay, 2.0)
            ]
        );
        for (axis, neighbour) in &found {
            let others = [Axis::Connections, Axis::CpuPerRequest, Axis::Delay]
                .into_iter()
                .filter(|a| a != axis);
            for other in others {
                assert_eq!(other.value(neighbour), other.value(&question));
            }
        }
        let single = Question { connections: 1, ..Question::default() };
        assert_eq!(neighbours(&single).len(), 3);
    }
}
