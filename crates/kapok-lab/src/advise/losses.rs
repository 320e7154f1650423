//! Where an advice loses: what else is measured of its model, and what everybody who takes it should know.

use super::choice::Decision;
use super::crossing::Crossing;
use super::figures::{Figures, Observed};
use super::tree::cost;
use super::{Objective, Question};
use crate::Model;
use crate::compare::MARGIN;

/// What a handler computes that asks a database. The measured handler has none of it.
const BESIDE_AN_ORM: &str = "a driver or an ORM in the handler computes on top of this, about as much on threads \
     as on fibers: beside Diesel, fibers spare up to a fifth of the threads' CPU time with 50 connections, which is \
     hardly worth a change, and a quarter to a third with 5,000; an async driver costs otherwise \
     (docs/design/orm.md)";

/// Everything that speaks against the advice, the measured first.
pub(super) fn losses(
    question: &Question,
    decision: &Decision,
    figures: &[Figures],
    (first, second): (&[Observed], &[Observed]),
    crossings: &[Crossing],
) -> Vec<String> {
    let mut losses = Vec::new();
    let advised = &decision.model;
    for objective in Objective::ALL.into_iter().filter(|one| *one != question.objective) {
        // At a fixed rate they all have the same.
        if objective == Objective::Throughput && question.rate.is_some() {
            continue;
        }
        let others = figures.iter().filter(|one| one.model != *advised);
        let stands = others.filter_map(|one| {
            let stands = |all| Stands::of(&one.model, advised, objective, all);
            let early = || Some(Stands { when: " in the first rounds", ..stands(first)? });
            stands(second).or_else(early)
        });
        let best = stands.min_by(|a, b| a.ratio.total_cmp(&b.ratio));
        if let Some(best) = best.filter(|best| best.ratio * (1.0 + MARGIN) < 1.0) {
            losses.push(format!(
                "for {objective}, {} does better{}: {} instead of {} ({})",
                best.model,
                best.when,
                cost(objective, best.theirs),
                cost(objective, best.own),
                objective.cost()
            ));
        }
    }
    for crossing in crossings.iter().filter(|crossing| crossing.is_crossed()) {
        losses.push(crossed(crossing, advised));
    }
    if figures.iter().any(|one| one.generator_limited)
        && question.objective == Objective::Throughput
    {
        losses.push(
            "the load generator was the limit of some models: what they can do at most is not known, and \
             their CPU time per request says more"
                .to_owned(),
        );
    }
    let unsettled = decision.unsettled();
    if !unsettled.is_empty() {
        losses.push(format!(
            "unsettled: the rounds do not say whether it differs from {}; more --seconds would",
            unsettled.join(", ")
        ));
    }
    for one in second.iter().filter(|one| one.model == *advised) {
        losses.extend(one.trouble.clone());
    }
    losses.extend(advised.parse().ok().map(nature).map(str::to_owned));
    if !question.delay.is_zero() {
        losses.push(BESIDE_AN_ORM.to_owned());
    }
    losses.push(
        "one worker on one core, over loopback: it says nothing about scaling over cores or a network"
            .to_owned(),
    );
    losses
}

/// How another model stands to the advised one, within the rounds that have both: what the machine did
/// meanwhile is nobody's merit.
struct Stands<'a> {
    model: &'a str,
    ratio: f64,
    theirs: f64,
    own: f64,
    when: &'static str,
}

impl<'a> Stands<'a> {
    fn of(
        model: &'a str,
        advised: &str,
        objective: Objective,
        observed: &[Observed],
    ) -> Option<Stands<'a>> {
        let find = |model: &str| observed.iter().find(|one| one.model == model);
        let (them, us) = (find(model)?, find(advised)?);
        let ratio = them.ratio(us, objective)?.estimate;
        let (theirs, own) = (them.cost(objective)?, us.cost(objective)?);
        Some(Stands { model, ratio, theirs, own, when: "" })
    }
}

fn crossed(crossing: &Crossing, advised: &str) -> String {
    let unit = crossing.axis.unit();
    let Crossing { from, to, winner, .. } = crossing;
    if let Some(obstacle) = &crossing.obstacle {
        return format!("at {to} {unit} it cannot serve: it {obstacle}; {winner} does best there");
    }
    let behind = crossing.ratio.as_ref().map_or_else(String::new, |ratio| {
        format!(", where {advised} costs {:.2} times as much", ratio.estimate)
    });
    match crossing.meet_at() {
        Some(at) => {
            format!("{winner} wins from about {at} {unit} on the way from {from} to {to}{behind}")
        }
        None => format!("{winner} wins somewhere between {from} and {to} {unit}{behind}"),
    }
}

/// What is so of a model by how it is made.
fn nature(model: Model) -> &'static str {
    match model {
        Model::Threads => {
            "a thread for each connection: memory and switches grow with them, and the system limits threads"
        }
        Model::ThreadPool => "a connection holds a worker until it ends, however idle it is",
        Model::BusyPoll => "a whole core is used while nothing is asked of it",
        Model::Select => {
            "no descriptor from 1024 on can be waited for, and each wake-up looks at all"
        }
        Model::Poll => "each wake-up looks at all connections: many idle ones are paid for",
        Model::Epoll | Model::Mio => {
            "an event loop by hand: code is cut into states, and whatever blocks, files too, stops everybody"
        }
        Model::Uring => {
            "io_uring is denied in many containers, and the loop by hand has nothing to fall back on"
        }
        Model::Tokio => "async functions colour what calls them, and files go to a pool of threads",
        Model::FiberUring => {
            "a handler that computes for long holds up the others of its loop; where io_uring is denied it \
             runs on epoll"
        }
        Model::Fiber | Model::FiberEpoll | Model::FiberPoll | Model::FiberSelect => {
            "a handler that computes for long holds up the others of its loop; files go to threads"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advise::Sample;
    use crate::advise::choice::decide;

    fn model(model: Model, p99_us: f64) -> Observed {
        let sample = |round| Sample {
            round,
            us_per_request: p99_us,
            p99_us,
            cpu_us: if model == Model::Epoll { 1.0 } else { 2.0 },
            memory_bytes: None,
        };
        Observed { samples: (0..8).map(sample).collect(), ..Observed::none(model) }
    }

    #[test]
    fn an_orm_is_spoken_of_where_a_handler_waits_for_another_server() {
        let all = [model(Model::Epoll, 100.0), model(Model::Threads, 120.0)];
        let decision = decide(&all, Objective::Cpu, Model::FiberUring).unwrap();
        for (delay, speaks) in [(0, false), (5, true)] {
            let delay = std::time::Duration::from_millis(delay);
            let question = Question { delay, ..Question::default() };
            let said = losses(&question, &decision, &[], (&all, &all), &[]);
            assert_eq!(said.iter().any(|loss| loss.contains("ORM")), speaks, "{said:?}");
        }
    }

    #[test]
    fn who_was_measured_while_the_machine_was_faster_does_not_do_better() {
        let question = Question { objective: Objective::Cpu, ..Question::default() };
        let said = |first: &[Observed], second: &[Observed]| {
            let decision = decide(second, Objective::Cpu, Model::FiberUring).unwrap();
            assert_eq!(decision.model, "epoll");
            let figures = super::super::figures(first, second, Objective::Cpu);
            losses(&question, &decision, &figures, (first, second), &[])
                .into_iter()
                .filter(|loss| loss.starts_with("for p99"))
                .collect::<Vec<_>>()
        };
        // Half as fast in the second rounds: threads, which are in the first only, were behind there.
        let first = [model(Model::Epoll, 100.0), model(Model::Threads, 120.0)];
        let second = [model(Model::Epoll, 200.0), model(Model::Tokio, 210.0)];
        assert_eq!(said(&first, &second), [""; 0]);
        let first = [model(Model::Epoll, 100.0), model(Model::Threads, 50.0)];
        let loss = &said(&first, &second)[0];
        assert!(loss.contains("threads does better in the first rounds: 50"), "{loss}");
        assert!(loss.contains("instead of 100"), "{loss}");
        let second = [model(Model::Epoll, 200.0), model(Model::Threads, 100.0)];
        let loss = &said(&first, &second)[0];
        assert!(loss.contains("threads does better: 100"), "{loss}");
    }
}
