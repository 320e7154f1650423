//! Where an advice loses: what else is measured of its model, and what everybody who takes it should know.

use super::choice::Decision;
use super::crossing::Crossing;
use super::figures::{Figures, Observed};
use super::tree::cost;
use super::{Objective, Question};
use crate::Model;
use crate::compare::MARGIN;

/// Everything that speaks against the advice, the measured first.
pub(super) fn losses(
    question: &Question,
    decision: &Decision,
    figures: &[Figures],
    observed: &[Observed],
    crossings: &[Crossing],
) -> Vec<String> {
    let mut losses = Vec::new();
    let advised = &decision.model;
    let ours = figures.iter().find(|one| one.model == *advised);
    for objective in Objective::ALL.into_iter().filter(|one| *one != question.objective) {
        // At a fixed rate they all have the same.
        if objective == Objective::Throughput && question.rate.is_some() {
            continue;
        }
        let costs = figures.iter().filter_map(|one| Some((one, one.cost(objective)?)));
        let best = costs.min_by(|a, b| a.1.total_cmp(&b.1));
        let (Some((best, least)), Some(own)) = (best, ours.and_then(|ours| ours.cost(objective)))
        else {
            continue;
        };
        if own > least * (1.0 + MARGIN) {
            losses.push(format!(
                "for {objective}, {} does better: {} instead of {} ({})",
                best.model,
                cost(objective, least),
                cost(objective, own),
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
    for one in observed.iter().filter(|one| one.model == *advised) {
        losses.extend(one.trouble.clone());
    }
    losses.extend(advised.parse().ok().map(nature).map(str::to_owned));
    losses.push(
        "one worker on one core, over loopback: it says nothing about scaling over cores or a network"
            .to_owned(),
    );
    losses
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
