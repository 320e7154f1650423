//! From measured rounds to one model: which is best, by how much, and from whom it is not told apart.
//!
//! 1. The *fastest* is who has the lowest cost, by the median of each model's costs relative to the
//!    round's mean.
//! 2. Who is *alike* the fastest is no more than 5 % behind, by the whole 95 % interval: compare's
//!    margin, below which a difference does not matter. Of those the one is advised that is simplest
//!    to write and to keep, by [`effort`]: nobody should write an event loop by hand for nothing.
//! 3. Who is *unsettled* is not chosen over the fastest: the rounds do not say that it is alike.

use serde::{Deserialize, Serialize};

use super::figures::Observed;
use super::{Objective, figures};
use crate::Model;
use crate::compare::{MARGIN, Ratio, Verdict};

/// Another model, relative to the advised one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Versus {
    /// The other model.
    pub model: String,
    /// Its cost over the advised model's: above 1 it loses.
    pub ratio: Ratio,
}

/// One model, and how the others stand to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// The model that is advised.
    pub model: String,
    /// The model of the lowest cost: another one if the advised is no more than 5 % behind it, and
    /// simpler.
    pub fastest: String,
    /// The others, best first.
    pub others: Vec<Versus>,
}

/// How much work a model is for who writes the server; less is less. Calls that block, on threads or on
/// fibers, are written down as they are; async functions colour what calls them; an event loop by hand
/// is a program of its own.
fn effort(model: &str, auto: Model) -> u32 {
    let Ok(model) = model.parse::<Model>() else { return u32::MAX };
    match model {
        Model::Threads | Model::ThreadPool => 0,
        // The engine that is taken without asking, before one that has to be asked for.
        _ if model == auto => 1,
        Model::Fiber | Model::FiberUring | Model::FiberEpoll => 2,
        Model::FiberPoll | Model::FiberSelect => 3,
        Model::Tokio => 4,
        Model::Mio => 5,
        Model::Epoll | Model::Poll | Model::Select => 6,
        Model::Uring => 7,
        Model::BusyPoll => 8,
    }
}

/// Where each model stands, relative to the mean of its rounds: medians, lowest first.
pub(super) fn ranking(observed: &[Observed], objective: Objective) -> Vec<(String, f64)> {
    let mut relative: Vec<(String, Vec<f64>)> = Vec::new();
    for one in observed {
        let logarithms = one.samples.iter().filter_map(|sample| {
            let cost = sample.cost(objective)?;
            let round = observed.iter().filter_map(|other| {
                other.samples.iter().find(|other| other.round == sample.round)?.cost(objective)
            });
            let round: Vec<f64> = round.map(f64::ln).collect();
            Some(cost.ln() - round.iter().sum::<f64>() / round.len() as f64)
        });
        relative.push((one.model.clone(), logarithms.collect()));
    }
    let mut ranked: Vec<(String, f64)> = relative
        .into_iter()
        .filter_map(|(model, values)| {
            Some((model, crate::compare::Spread::of(values)?.median.exp()))
        })
        .collect();
    ranked.sort_by(|a, b| a.1.total_cmp(&b.1));
    ranked
}

/// Decides by the rule above; `None` when nothing was measured.
pub(super) fn decide(observed: &[Observed], objective: Objective, auto: Model) -> Option<Decision> {
    let ranked = ranking(observed, objective);
    let find = |model: &str| observed.iter().find(|one| one.model == model);
    let fastest = find(&ranked.first()?.0)?;
    let alike = |one: &&figures::Observed| {
        one.ratio(fastest, objective).is_some_and(|ratio| {
            let (_, most) = ratio.interval.unwrap_or((0.0, f64::INFINITY));
            ratio.verdict != Verdict::Unsettled && most <= 1.0 + MARGIN
        })
    };
    let advised = observed
        .iter()
        .filter(|one| one.model != fastest.model)
        .filter(alike)
        .chain([fastest])
        .min_by_key(|one| effort(&one.model, auto))?;
    let mut others: Vec<Versus> = observed
        .iter()
        .filter(|one| one.model != advised.model)
        .filter_map(|one| {
            Some(Versus { model: one.model.clone(), ratio: one.ratio(advised, objective)? })
        })
        .collect();
    others.sort_by(|a, b| a.ratio.estimate.total_cmp(&b.ratio.estimate));
    Some(Decision { model: advised.model.clone(), fastest: fastest.model.clone(), others })
}

impl Decision {
    /// The best of the others: what the margin is to.
    #[must_use]
    pub fn next(&self) -> Option<&Versus> {
        self.others.first()
    }

    /// Models that the measurement does not tell from the advised one, within the margin.
    #[must_use]
    pub fn indistinguishable(&self) -> Vec<&str> {
        self.with(|ratio| ratio.verdict == Verdict::Indistinguishable)
    }

    /// Models of which the rounds say neither that they cost the same nor that they do not.
    #[must_use]
    pub fn unsettled(&self) -> Vec<&str> {
        self.with(|ratio| ratio.verdict == Verdict::Unsettled)
    }

    fn with(&self, which: impl Fn(&Ratio) -> bool) -> Vec<&str> {
        let those = self.others.iter().filter(|other| which(&other.ratio));
        those.map(|other| other.model.as_str()).collect()
    }
}

/// How an advice fared in a measurement that it did not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The best measured model.
    Best,
    /// Not told apart from the best, and within 5 % of it.
    Indistinguishable,
    /// Told apart or unsettled, and no more than 5 % behind by the estimate.
    Within,
    /// Anything else.
    Miss,
}

impl Outcome {
    /// Looks where `advised` stands in an independent measurement; `None` if it is not in it. Also the best
    /// measured model, and the advised one's cost relative to it.
    #[must_use]
    pub fn of(
        advised: &str,
        observed: &[Observed],
        objective: Objective,
    ) -> Option<(Outcome, String, Option<Ratio>)> {
        let best = ranking(observed, objective).into_iter().next()?.0;
        let find = |model: &str| observed.iter().find(|one| one.model == model);
        let (ours, theirs) = (find(advised)?, find(&best)?);
        if advised == best {
            return Some((Outcome::Best, best, None));
        }
        let ratio = ours.ratio(theirs, objective)?;
        let outcome = if ratio.verdict == Verdict::Indistinguishable {
            Outcome::Indistinguishable
        } else if ratio.estimate <= 1.0 + MARGIN {
            Outcome::Within
        } else {
            Outcome::Miss
        };
        Some((outcome, best, Some(ratio)))
    }

    /// Whether the advice was right.
    #[must_use]
    pub fn is_right(self) -> bool {
        self != Outcome::Miss
    }
}

#[cfg(test)]
mod tests {
    use super::figures::Sample;
    use super::*;

    /// Recorded: what one server did in 20 rounds of a quiet machine, relative to its median.
    const NOISE: [f64; 20] = [
        1.00, 1.03, 0.98, 1.01, 0.99, 1.05, 0.97, 1.02, 1.00, 0.96, 1.04, 0.99, 1.01, 0.98, 1.02,
        1.00, 0.97, 1.03, 0.99, 1.01,
    ];

    /// A model of a known cost in rounds of that machine; its own noise is the machine's, shifted.
    fn model(model: Model, cost: f64, shift: usize) -> Observed {
        let samples = NOISE.iter().enumerate().map(|(round, machine)| {
            let own = NOISE[(round + shift) % NOISE.len()].powf(0.5);
            let us = cost * machine * own;
            Sample { round, us_per_request: us, p99_us: us, cpu_us: us, memory_bytes: None }
        });
        Observed { samples: samples.collect(), ..Observed::none(model) }
    }

    fn decided(observed: &[Observed]) -> Decision {
        decide(observed, Objective::Cpu, Model::FiberUring).unwrap()
    }

    #[test]
    fn the_cheapest_is_advised_with_its_margin() {
        let decision = decided(&[
            model(Model::Tokio, 11.5, 3),
            model(Model::Epoll, 10.0, 7),
            model(Model::Threads, 20.0, 5),
        ]);
        assert_eq!((&*decision.model, &*decision.fastest), ("epoll", "epoll"));
        let next = decision.next().unwrap();
        assert_eq!((&*next.model, next.ratio.verdict), ("tokio", Verdict::Higher));
        let (low, high) = next.ratio.interval.unwrap();
        assert!(low <= 1.15 && 1.15 <= high && high - low < 0.06, "{low} {high}");
        assert_eq!(decision.others[1].model, "threads");
    }

    #[test]
    fn who_costs_the_same_wins_by_being_simpler() {
        let decision = decided(&[
            model(Model::Epoll, 10.0, 7),
            model(Model::FiberUring, 10.05, 3),
            model(Model::Tokio, 11.5, 5),
        ]);
        assert_eq!((&*decision.model, &*decision.fastest), ("fiber-uring", "epoll"));
        assert_eq!(decision.indistinguishable(), ["epoll"]);
        // Tokio is simpler than a loop by hand as well, and is told apart.
        let next = decision.others.iter().find(|other| other.model == "tokio").unwrap();
        assert_eq!(next.ratio.verdict, Verdict::Higher);
    }

    #[test]
    fn who_is_unsettled_is_not_taken_for_being_simpler() {
        let few = |mut observed: Observed| {
            observed.samples.truncate(4);
            observed
        };
        let decision =
            decided(&[few(model(Model::Epoll, 10.0, 7)), few(model(Model::Threads, 10.1, 3))]);
        assert_eq!(decision.model, decision.fastest);
        assert_eq!(decision.unsettled().len(), 1);
    }

    #[test]
    fn a_model_that_failed_is_no_answer_and_nobody_is_none() {
        let mut failed = Observed::none(Model::Uring);
        failed.trouble = Some("serves 3 of 64 connections".into());
        let decision = decided(&[failed.clone(), model(Model::Mio, 10.0, 1)]);
        assert_eq!((&*decision.model, decision.next()), ("mio", None));
        assert_eq!(decide(&[failed], Objective::Cpu, Model::Fiber), None);
        assert_eq!(decide(&[], Objective::Cpu, Model::Fiber), None);
    }

    #[test]
    fn an_advice_is_judged_by_what_it_did_not_know() {
        let later = [
            model(Model::Epoll, 10.0, 2),
            model(Model::Mio, 10.05, 9),
            model(Model::Tokio, 10.42, 13),
            model(Model::Threads, 11.0, 6),
        ];
        let outcome = |advised| Outcome::of(advised, &later, Objective::Cpu).unwrap();
        assert_eq!(outcome("epoll").0, Outcome::Best);
        assert_eq!(outcome("mio").0, Outcome::Indistinguishable);
        assert_eq!(outcome("tokio").0, Outcome::Within);
        let (judged, best, ratio) = outcome("threads");
        assert_eq!((judged, &*best, judged.is_right()), (Outcome::Miss, "epoll", false));
        assert!((ratio.unwrap().estimate - 1.1).abs() < 0.02);
        assert_eq!(Outcome::of("uring", &later, Objective::Cpu), None);
    }
}
