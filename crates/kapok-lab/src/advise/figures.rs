//! What was measured of each model, as costs of which less is better.

use serde::{Deserialize, Serialize};

use super::Objective;
use crate::Model;
use crate::compare::{Ratio, Row, Spread};

/// One round of one model. Rounds of the same number were measured one after the other, so that
/// ratios within a round are fair.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The round.
    pub round: usize,
    /// The interval over the requests of it, in microseconds; 0, as the next two, if there was no reply in
    /// the whole of it.
    pub us_per_request: f64,
    /// The 99th percentile of the latency in microseconds.
    pub p99_us: f64,
    /// The server's CPU time per request in microseconds.
    pub cpu_us: f64,
    /// Bytes with all connections open, if they were looked at in this round.
    pub memory_bytes: Option<f64>,
}

/// Everything that was measured of one model at one point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// The model.
    pub model: String,
    /// The rounds.
    pub samples: Vec<Sample>,
    /// Why there are none, or no more.
    pub trouble: Option<String>,
    /// The load generator limited the throughput.
    pub generator_limited: bool,
}

/// Medians, for the eye: comparisons are made of rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The model.
    pub model: String,
    /// Rounds.
    pub rounds: usize,
    /// Requests per second; 0, as the next two, if no round had a reply and only memory is known.
    pub requests_per_second: f64,
    /// The 99th percentile of the latency in microseconds.
    pub p99_us: f64,
    /// The server's CPU time per request in microseconds.
    pub cpu_us: f64,
    /// Bytes with all connections open.
    pub memory_bytes: Option<f64>,
    /// The load generator limited the throughput.
    pub generator_limited: bool,
}

impl Sample {
    /// A round without a reply.
    fn silent(round: usize) -> Sample {
        Sample { round, us_per_request: 0.0, p99_us: 0.0, cpu_us: 0.0, memory_bytes: None }
    }

    /// What the objective compares; `None` if it was not looked at, or is no positive number.
    #[must_use]
    pub fn cost(&self, objective: Objective) -> Option<f64> {
        let cost = match objective {
            Objective::Throughput => self.us_per_request,
            Objective::P99 => self.p99_us,
            Objective::Memory => self.memory_bytes?,
            Objective::Cpu => self.cpu_us,
        };
        (cost > 0.0 && cost.is_finite()).then_some(cost)
    }

    /// What a mixture costs of which `share` is as in the second sample. Exact for means; for the 99th
    /// percentile the weighted mean of both, which lies between the two as the true one does.
    fn mixed(&self, other: &Sample, share: f64) -> Sample {
        let mix = |one: f64, other: f64| match one > 0.0 && other > 0.0 {
            true => one * (1.0 - share) + other * share,
            false => 0.0,
        };
        Sample {
            round: self.round,
            us_per_request: mix(self.us_per_request, other.us_per_request),
            p99_us: mix(self.p99_us, other.p99_us),
            cpu_us: mix(self.cpu_us, other.cpu_us),
            memory_bytes: self.memory_bytes.zip(other.memory_bytes).map(|(a, b)| a.max(b)),
        }
    }
}

impl Observed {
    /// A model of which nothing is known.
    #[must_use]
    pub fn none(model: Model) -> Observed {
        Observed {
            model: model.to_string(),
            samples: Vec::new(),
            trouble: None,
            generator_limited: false,
        }
    }

    /// What a row of a comparison says, its rounds counted from `first`.
    pub(super) fn of_row(row: &Row, first: usize, kernel_stack_bytes: u64) -> Observed {
        let memory = row
            .untimed
            .map(|untimed| (untimed.resident_bytes + untimed.threads * kernel_stack_bytes) as f64);
        let sample = |measured: &crate::compare::Measured| Sample {
            round: first + measured.round,
            us_per_request: 1e6 / measured.load.requests_per_second,
            p99_us: measured.load.latency.p99_us,
            cpu_us: measured.cpu_us_per_request,
            memory_bytes: None,
        };
        let mut samples: Vec<Sample> = row.measured.iter().map(sample).collect();
        // Looked at once, before the first round: it counts once, and whatever became of that round.
        if let Some(bytes) = memory.filter(|bytes| *bytes > 0.0) {
            if samples.first().is_none_or(|sample| sample.round != first) {
                samples.insert(0, Sample::silent(first));
            }
            samples[0].memory_bytes = Some(bytes);
        }
        Observed {
            model: row.model.clone(),
            samples,
            trouble: row.trouble.clone(),
            generator_limited: row.generator_limited,
        }
    }

    /// Rounds of a mixture of which `share` is as in `other`: those that both were measured in.
    pub(super) fn mixed(&self, other: &Observed, share: f64) -> Observed {
        let samples = self.samples.iter().filter_map(|sample| {
            let with = other.samples.iter().find(|with| with.round == sample.round)?;
            Some(sample.mixed(with, share))
        });
        Observed {
            model: self.model.clone(),
            samples: samples.collect(),
            trouble: self.trouble.clone().or_else(|| other.trouble.clone()),
            generator_limited: self.generator_limited && other.generator_limited,
        }
    }

    /// Appends rounds that were measured later.
    pub(super) fn add(&mut self, later: Observed) {
        self.samples.extend(later.samples);
        self.trouble = self.trouble.take().or(later.trouble);
        self.generator_limited |= later.generator_limited;
    }

    /// The rounds that have what the objective compares.
    #[must_use]
    pub fn rounds(&self, objective: Objective) -> usize {
        self.samples.iter().filter(|sample| sample.cost(objective).is_some()).count()
    }

    /// The median of what the objective compares.
    #[must_use]
    pub fn cost(&self, objective: Objective) -> Option<f64> {
        let costs = self.samples.iter().filter_map(|sample| sample.cost(objective));
        Spread::of(costs).map(|spread| spread.median)
    }

    /// This model's cost relative to the other's in the same rounds; `None` if they share none.
    #[must_use]
    pub fn ratio(&self, to: &Observed, objective: Objective) -> Option<Ratio> {
        let ratios: Vec<f64> = self
            .samples
            .iter()
            .filter_map(|ours| {
                let theirs = to.samples.iter().find(|theirs| theirs.round == ours.round)?;
                Some(ours.cost(objective)? / theirs.cost(objective)?)
            })
            .collect();
        Ratio::of(&ratios)
    }

    /// Medians over the rounds; `None` if there are none.
    #[must_use]
    pub fn figures(&self) -> Option<Figures> {
        let median = |objective| self.cost(objective);
        let rounds = Objective::ALL.into_iter().map(|objective| self.rounds(objective)).max();
        let rounds = rounds.filter(|rounds| *rounds > 0)?;
        Some(Figures {
            model: self.model.clone(),
            rounds,
            requests_per_second: median(Objective::Throughput).map_or(0.0, |us| 1e6 / us),
            p99_us: median(Objective::P99).unwrap_or(0.0),
            cpu_us: median(Objective::Cpu).unwrap_or(0.0),
            memory_bytes: median(Objective::Memory),
            generator_limited: self.generator_limited,
        })
    }
}

impl Figures {
    /// What the objective compares; `None` if it was not looked at.
    #[must_use]
    pub fn cost(&self, objective: Objective) -> Option<f64> {
        let cost = match objective {
            Objective::Throughput => 1e6 / self.requests_per_second,
            Objective::P99 => self.p99_us,
            Objective::Memory => self.memory_bytes?,
            Objective::Cpu => self.cpu_us,
        };
        (cost > 0.0 && cost.is_finite()).then_some(cost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(costs: &[f64]) -> Observed {
        let sample = |(round, &cost): (usize, &f64)| Sample {
            round,
            us_per_request: cost,
            p99_us: cost * 10.0,
            cpu_us: cost / 2.0,
            memory_bytes: None,
        };
        let samples = costs.iter().enumerate().map(sample).collect();
        Observed { samples, ..Observed::none(Model::Epoll) }
    }

    #[test]
    fn ratios_are_taken_within_rounds_whatever_the_machine_did() {
        // The machine is three times slower in the second round: nobody's fault.
        let (fast, slow) = (observed(&[10.0, 30.0, 10.0]), observed(&[12.0, 36.0, 12.0]));
        for objective in [Objective::Throughput, Objective::P99, Objective::Cpu] {
            let ratio = slow.ratio(&fast, objective).unwrap();
            assert!((ratio.estimate - 1.2).abs() < 1e-9, "{objective}");
        }
        assert_eq!(slow.ratio(&fast, Objective::Memory), None, "it was not looked at");
        assert_eq!(slow.cost(Objective::Cpu), Some(6.0));
    }

    #[test]
    fn a_round_without_a_reply_has_its_memory_and_counts_for_nothing_else() {
        let mut delayed = observed(&[20.0, 20.0]);
        delayed.samples[0] = Sample { memory_bytes: Some(5e6), ..Sample::silent(0) };
        assert_eq!((delayed.rounds(Objective::Memory), delayed.rounds(Objective::P99)), (1, 1));
        assert_eq!(delayed.cost(Objective::Memory), Some(5e6));
        assert_eq!(delayed.cost(Objective::Throughput), Some(20.0));
        let mixed = delayed.mixed(&observed(&[40.0, 40.0]), 0.5);
        assert_eq!(mixed.cost(Objective::Throughput), Some(30.0), "of the other round");
        delayed.samples.truncate(1);
        let figures = delayed.figures().unwrap();
        assert_eq!((figures.rounds, figures.requests_per_second), (1, 0.0));
        assert_eq!(figures.cost(Objective::Throughput), None);
        assert_eq!(figures.cost(Objective::Memory), Some(5e6));
    }

    #[test]
    fn a_mixture_costs_what_its_parts_do_in_the_rounds_of_both() {
        let mut files = observed(&[40.0, 20.0]);
        files.samples[1].round = 7;
        let mixed = observed(&[20.0, 20.0]).mixed(&files, 0.25);
        assert_eq!(mixed.samples.len(), 1, "round 7 has no partner");
        assert_eq!(mixed.samples[0].us_per_request, 25.0);
        assert_eq!(mixed.samples[0].cpu_us, 12.5);
    }
}
