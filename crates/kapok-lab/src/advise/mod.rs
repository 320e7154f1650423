//! Which model to choose for a workload, by a short measurement on this machine.
//!
//! Everybody who can serve the workload is measured shortly, the best of them longer, in interleaved
//! rounds; what decides are the ratios of the second measurement, which knows nothing of the first
//! one's luck. Points beside the question tell where another model would win. docs/design/advise.md has
//! the rule and its reasons.

mod choice;
mod crossing;
mod eligible;
mod figures;
mod losses;
mod measure;
mod question;
mod tree;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::compare::{Environment, Ratio};
use crate::{Model, Stop};
pub use choice::{Decision, Outcome, Versus};
pub use crossing::{Axis, Crossing};
pub use eligible::{Excluded, Limits};
pub use figures::{Figures, Observed, Sample};
use measure::{Measure, Servers};
pub use question::{Objective, Preset, Question};
pub use tree::{Branch, Tree, cost};

/// So many go on from the first measurement to the second, the fibers of `auto` not counted.
const FINALISTS: usize = 4;

/// Who costs so many times what the best does in the first measurement is not looked at again.
const HOPELESS: f64 = 1.5;

/// Models that are measured at a neighbour beside the finalists: the best of its kind may be another
/// there.
const KINDS: [Model; 4] = [Model::Threads, Model::Poll, Model::Epoll, Model::Tokio];

const FORMAT: &str = "kapok-advise";
const VERSION: u32 = 1;

/// What to advise on, and how long to measure for it.
#[derive(Clone, Debug)]
pub struct AdviseConfig {
    /// The `kapok` binary, whose `serve` is started for models.
    pub program: PathBuf,
    /// Version and commit of it, for the record.
    pub build: String,
    /// Versions of what it was built with, for the record.
    pub versions: Vec<String>,
    /// The workload, and what is wanted of it.
    pub question: Question,
    /// How long to measure, about: never much longer, and at least one round of every candidate.
    pub time: Duration,
    /// Whether to measure beside the question too, which takes a third of the time.
    pub cross_over: bool,
    /// Ends it early; what was measured until then decides.
    pub stop: Option<Stop>,
}

/// Which engine `auto` takes for fibers, and whether that is right here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AutoEngine {
    /// The fibers on the engine that `auto` takes.
    pub model: String,
    /// Why that engine, by the rule of [`kapok_engine::AUTO`].
    pub reason: String,
    /// Fibers on an engine that costs less, told apart; `None`: `auto` is right, or nothing was measured.
    pub better: Option<Versus>,
}

/// What is advised, and everything that it rests on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Advice {
    /// `kapok-advise`.
    pub format: String,
    /// The version of the schema, which grows when a field changes its meaning or goes.
    pub version: u32,
    /// The workload.
    pub question: Question,
    /// Where it was measured.
    pub environment: Environment,
    /// Models that cannot serve it, or must not.
    pub excluded: Vec<Excluded>,
    /// The model, and how the others stand to it; `None` when nobody could be measured.
    pub decision: Option<Decision>,
    /// Medians of everybody who was measured, the best first: of the second measurement where a model was
    /// in it, otherwise of the first.
    pub figures: Vec<Figures>,
    /// What `auto` makes of fibers.
    pub auto: AutoEngine,
    /// What the neighbours say.
    pub crossings: Vec<Crossing>,
    /// From how many microseconds of CPU a request on the margin is below 5 %, by the cost model and
    /// beyond what was measured.
    pub fades_at_cpu_us: Option<f64>,
    /// Where the advice loses, in words.
    pub losses: Vec<String>,
    /// The book's decision tree with these figures.
    pub tree: Tree,
    /// The rounds that decided.
    pub observed: Vec<Observed>,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Ended by a signal.
    pub stopped_early: bool,
}

/// Measures and advises. The calling thread is bound to the load's core meanwhile.
///
/// `progress` is told what is done, and which part of the time is over.
///
/// # Errors
///
/// [`io::ErrorKind::InvalidInput`] for a question that makes no sense; what starting servers gives. That
/// a single model fails is no error: it is excluded, with the reason.
pub fn run(config: &AdviseConfig, progress: &mut dyn FnMut(&str, f64)) -> io::Result<Advice> {
    config.question.check()?;
    measure::check_program(&config.program)?;
    let environment = Environment::look(&config.build, &config.versions);
    let mut servers = Servers::new(config, progress)?;
    let limits = Limits::look();
    let plan = Times { all: config.time, cross_over: config.cross_over };
    advise(&config.question, &limits, plan, environment, &mut servers)
}

/// What an advice is judged by.
#[derive(Clone, Debug)]
pub struct Survey {
    /// Every candidate, shortly.
    pub everybody: Vec<Observed>,
    /// The best of them and the advised model, longer, in rounds of their own.
    pub best: Vec<Observed>,
}

/// Measures every candidate of a question, and then the best and `advised` again: who comes out first is
/// said by rounds that did not choose who is in them.
///
/// # Errors
///
/// As for [`run`].
pub fn survey(
    config: &AdviseConfig,
    advised: &str,
    progress: &mut dyn FnMut(&str, f64),
) -> io::Result<Survey> {
    config.question.check()?;
    measure::check_program(&config.program)?;
    let (question, limits) = (&config.question, Limits::look());
    let (candidates, mut excluded) = eligible::eligible(question, &limits);
    let mut servers = Servers::new(config, progress)?;
    let times = Times { all: config.time, cross_over: false };
    has_time(question, candidates.len(), times.all, times.first())?;
    let begun = Instant::now();
    let time = times.all.mul_f64(times.first());
    let mut everybody = servers.measure(question, &candidates, time, true, "everybody")?;
    drop_failed(&mut everybody, &mut excluded, question);
    let mut again =
        finalists(&everybody, question.objective, eligible::auto_fiber(question, &limits));
    if let Some(gone) = excluded.iter().find(|gone| gone.model == advised) {
        return Err(io::Error::other(format!("{advised}, which was advised: {}", gone.reason)));
    }
    again.extend(advised.parse::<Model>().ok().filter(|model| !again.contains(model)));
    let left = times.all.saturating_sub(begun.elapsed());
    let best = servers.measure(question, &again, left, false, "the best")?;
    Ok(Survey { everybody, best })
}

/// Measures these models alone, in rounds of their own. The best of several that were measured is partly the
/// luckiest of them: how far another one is behind it is said by rounds that did not choose it.
///
/// # Errors
///
/// As for [`run`]; [`io::ErrorKind::InvalidInput`] for a name that no model has.
pub fn again(
    config: &AdviseConfig,
    models: &[&str],
    progress: &mut dyn FnMut(&str, f64),
) -> io::Result<Vec<Observed>> {
    config.question.check()?;
    measure::check_program(&config.program)?;
    let unknown = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
    let models: Vec<Model> =
        models.iter().map(|name| name.parse().map_err(unknown)).collect::<io::Result<_>>()?;
    let mut servers = Servers::new(config, progress)?;
    servers.measure(&config.question, &models, config.time, false, "once more")
}

/// How the time is divided.
#[derive(Clone, Copy, Debug)]
struct Times {
    all: Duration,
    cross_over: bool,
}

impl Times {
    /// The part that is the first measurement's.
    fn first(self) -> f64 {
        if self.cross_over { 0.25 } else { 0.4 }
    }

    fn neighbours(self) -> Duration {
        if self.cross_over { self.all.mul_f64(0.35) } else { Duration::ZERO }
    }
}

/// Refuses a question whose requests are so slow, or so few, that `part` of the time does not suffice for
/// one round of each model: intervals without a reply would find nobody.
fn has_time(question: &Question, models: usize, all: Duration, part: f64) -> io::Result<()> {
    // Memory is known without a reply.
    if question.objective == Objective::Memory {
        return Ok(());
    }
    let least = match measure::needs(question, models) {
        Some(needs) if needs > all.mul_f64(part) => (needs.as_secs_f64() / part).ceil(),
        _ => return Ok(()),
    };
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!(
            "--seconds {} is too short for replies to come in a round of each of {models} models: it \
             takes --seconds {least}",
            all.as_secs_f64()
        ),
    ))
}

fn advise(
    question: &Question,
    limits: &Limits,
    times: Times,
    environment: Environment,
    measure: &mut dyn Measure,
) -> io::Result<Advice> {
    let begun = Instant::now();
    let objective = question.objective;
    let auto = eligible::auto_fiber(question, limits);
    let (candidates, mut excluded) = eligible::eligible(question, limits);
    has_time(question, candidates.len(), times.all, times.first())?;
    let time = times.all.mul_f64(times.first());
    let mut first = match candidates.is_empty() {
        true => Vec::new(),
        false => measure.measure(question, &candidates, time, true, "everybody")?,
    };
    drop_failed(&mut first, &mut excluded, question);

    let finalists = finalists(&first, objective, auto);
    // What the first took, it took: the rest is what is left, less the neighbours'.
    let left = times.all.saturating_sub(begun.elapsed()).saturating_sub(times.neighbours());
    let mut second = match measure.stopped() || finalists.is_empty() {
        true => Vec::new(),
        false => measure.measure(question, &finalists, left, false, "the best")?,
    };
    drop_failed(
        &mut second,
        &mut excluded,
        &Question { memory_limit_bytes: None, ..question.clone() },
    );
    first.retain(|one| excluded.iter().all(|gone| gone.model != one.model));
    if second.iter().all(|one| one.samples.is_empty()) {
        // It was stopped early: what there is decides.
        second = first.iter().filter(|one| !one.samples.is_empty()).cloned().collect();
    }
    let decision = choice::decide(&second, objective, auto);
    let figures = figures(&first, &second, objective);

    let (mut crossings, mut untimely) = (Vec::new(), Vec::new());
    if let Some(decision) = decision.as_ref().filter(|_| times.cross_over) {
        let neighbours = crossing::neighbours(question);
        let count = neighbours.len() as u32;
        for (place, (axis, neighbour)) in neighbours.into_iter().enumerate() {
            let left = times.all.saturating_sub(begun.elapsed()) / (count - place as u32);
            // The first one in any case.
            if measure.stopped() || (left.is_zero() && place > 0) {
                break;
            }
            let home = (question, &first[..], &second[..]);
            match cross(axis, &neighbour, home, decision, limits, left, measure)? {
                Beside::Crossing(crossing) => crossings.push(crossing),
                Beside::Nobody => {}
                Beside::Untimely(point) => untimely.push(point),
            }
        }
    }
    let mut losses = decision.as_ref().map_or_else(Vec::new, |decision| {
        losses::losses(question, decision, &figures, (&first, &second), &crossings)
    });
    if !untimely.is_empty() {
        losses.push(format!(
            "not looked at: {}; --seconds is too short for replies to come there",
            untimely.join(", ")
        ));
    }
    let tree = Tree::draw(question, &figures, &excluded, decision.as_ref());
    Ok(Advice {
        format: FORMAT.to_owned(),
        version: VERSION,
        question: question.clone(),
        environment,
        fades_at_cpu_us: decision.as_ref().and_then(|one| fades(question, one, &second)),
        auto: AutoEngine {
            model: auto.to_string(),
            reason: eligible::auto_engine(question, limits).reason.to_owned(),
            better: better_engine(&second, objective, auto),
        },
        excluded,
        decision,
        figures,
        crossings,
        losses,
        tree,
        observed: second,
        seconds: begun.elapsed().as_secs_f64(),
        stopped_early: measure.stopped(),
    })
}

/// Takes out who failed or takes more memory than there may be.
fn drop_failed(observed: &mut Vec<Observed>, excluded: &mut Vec<Excluded>, question: &Question) {
    let rounds = |one: &Observed| one.rounds(question.objective);
    let most = observed.iter().map(rounds).max().unwrap_or(0);
    observed.retain(|one| {
        let rounds = rounds(one);
        let memory = one.cost(Objective::Memory);
        let reason = match (&one.trouble, question.memory_limit_bytes, memory) {
            (None, ..) if rounds == 0 && most > 0 => "gave no reply in its rounds".to_owned(),
            // What a server that was measured to the end has to say at its end is for the losses.
            (Some(trouble), ..) if rounds * 2 < most || rounds == 0 => trouble.clone(),
            (_, Some(limit), Some(used)) if used > limit as f64 => format!(
                "used {} with all connections open, and the limit is {}",
                cost(Objective::Memory, used),
                cost(Objective::Memory, limit as f64)
            ),
            _ => return true,
        };
        excluded.push(Excluded { model: one.model.clone(), reason });
        false
    });
}

/// Who is measured again: the best, and the fibers of `auto`.
fn finalists(first: &[Observed], objective: Objective, auto: Model) -> Vec<Model> {
    let ranked = choice::ranking(first, objective);
    let best = ranked.first().map_or(1.0, |(_, cost)| *cost);
    let mut chosen: Vec<Model> = ranked
        .iter()
        .enumerate()
        // One beside the best in any case: a margin is to somebody.
        .filter(|(place, (_, cost))| *place < 2 || *cost <= best * HOPELESS)
        .take(FINALISTS)
        .filter_map(|(_, (model, _))| model.parse().ok())
        .collect();
    let is_measured = ranked.iter().any(|(model, _)| *model == auto.to_string());
    if is_measured && !chosen.contains(&auto) {
        chosen.push(auto);
    }
    chosen
}

/// The second measurement's medians, and the first one's of who was not in it; the best first.
fn figures(first: &[Observed], second: &[Observed], objective: Objective) -> Vec<Figures> {
    let find = |all: &[Observed], model: &str| {
        all.iter().find(|one| one.model == model).and_then(Observed::figures)
    };
    let mut figures: Vec<Figures> = first
        .iter()
        .filter_map(|one| {
            let early = find(first, &one.model);
            let Some(mut late) = find(second, &one.model) else { return early };
            // It was looked at in the first only.
            late.memory_bytes = late.memory_bytes.or(early?.memory_bytes);
            Some(late)
        })
        .collect();
    figures.sort_by(|a, b| {
        let cost = |one: &Figures| one.cost(objective).unwrap_or(f64::INFINITY);
        cost(a).total_cmp(&cost(b))
    });
    figures
}

/// Fibers on another engine that are told apart from those of `auto` as better.
fn better_engine(second: &[Observed], objective: Objective, auto: Model) -> Option<Versus> {
    let own = second.iter().find(|one| one.model == auto.to_string())?;
    second
        .iter()
        .filter(|one| one.model.parse::<Model>().is_ok_and(Model::has_fibers))
        .filter_map(|one| {
            Some(Versus { model: one.model.clone(), ratio: one.ratio(own, objective)? })
        })
        .filter(|versus| versus.ratio.verdict == crate::compare::Verdict::Lower)
        .min_by(|a, b| a.ratio.estimate.total_cmp(&b.ratio.estimate))
}

/// Where the margin to the next fades, as the handler's own time grows.
fn fades(question: &Question, decision: &Decision, observed: &[Observed]) -> Option<f64> {
    if !matches!(question.objective, Objective::Cpu | Objective::Throughput) {
        return None;
    }
    let told = |versus: &&Versus| versus.ratio.verdict == crate::compare::Verdict::Higher;
    let next = decision.others.iter().find(told)?;
    // CPU time is what the handler's adds to, whatever the objective.
    let own = observed.iter().find(|one| one.model == decision.model)?.cost(Objective::Cpu)?;
    let more = crossing::fades_at(own, own * next.ratio.estimate)?;
    Some(Axis::CpuPerRequest.value(question) + more)
}

/// What came of a neighbour.
enum Beside {
    Crossing(Crossing),
    /// Nobody could be measured there.
    Nobody,
    /// There was no time for it.
    Untimely(String),
}

/// Measures a neighbour and says who wins there.
fn cross(
    axis: Axis,
    neighbour: &Question,
    (question, first, second): (&Question, &[Observed], &[Observed]),
    decision: &Decision,
    limits: &Limits,
    time: Duration,
    measure: &mut dyn Measure,
) -> io::Result<Beside> {
    let objective = question.objective;
    let (able, unable) = eligible::eligible(neighbour, limits);
    let finalists =
        [&decision.model].into_iter().chain(decision.others.iter().map(|one| &one.model));
    let mut models: Vec<Model> =
        finalists.filter_map(|model| model.parse().ok()).take(FINALISTS).collect();
    models.extend(KINDS.into_iter().filter(|kind| !models.contains(kind)).collect::<Vec<_>>());
    models.retain(|model| able.contains(model));
    if models.is_empty() {
        return Ok(Beside::Nobody);
    }
    let (from, to) = (axis.value(question), axis.value(neighbour));
    let unit = axis.unit();
    if has_time(neighbour, models.len(), time, 1.0).is_err() {
        return Ok(Beside::Untimely(format!("{to} {unit}")));
    }
    let what = format!("beside: {to} {unit}");
    let mut there = measure.measure(neighbour, &models, time, false, &what)?;
    let mut failed = Vec::new();
    drop_failed(&mut there, &mut failed, neighbour);
    let ranked = choice::ranking(&there, objective);
    let Some((winner, _)) = ranked.first() else { return Ok(Beside::Nobody) };
    let find = |all: &[Observed], model: &str| -> Option<Observed> {
        all.iter().find(|one| one.model == model).cloned()
    };
    let advised = &decision.model;
    let obstacle = unable.iter().chain(&failed).find(|one| one.model == *advised);
    let (ours, theirs) = (find(&there, advised), find(&there, winner));
    let ratio: Option<Ratio> = match (&ours, &theirs) {
        (Some(ours), Some(theirs)) if winner != advised => ours.ratio(theirs, objective),
        _ => None,
    };
    // Here both costs are needed as well: of the second measurement, or of the first.
    let home = |model: &str| {
        let of = |all: &[Observed]| find(all, model)?.cost(objective);
        of(second).or_else(|| of(first))
    };
    let ends = |model: &str, there: &Option<Observed>| {
        Some((home(model)?, there.as_ref()?.cost(objective)?))
    };
    let at = match (ends(advised, &ours), ends(winner, &theirs)) {
        (Some(ours), Some(theirs)) if winner != advised => {
            crossing::meet(axis, (from, to), ours, theirs)
        }
        _ => None,
    };
    Ok(Beside::Crossing(Crossing {
        axis,
        from,
        to,
        winner: winner.clone(),
        ratio,
        obstacle: obstacle.map(|one| one.reason.clone()),
        at,
    }))
}

#[cfg(test)]
mod tests;
