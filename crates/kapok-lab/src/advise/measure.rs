//! The short measurement: compare's rounds, as many as fit into a time.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::eligible::KERNEL_STACK_BYTES;
use super::figures::Observed;
use super::{AdviseConfig, Objective, Question};
use crate::compare::{self, Beside, CompareConfig, Contender, Rounds};
use crate::{Model, Protocol, Stop};

/// A measured interval, unless requests take long or time is short. What disturbs a machine lasts longer
/// than a long interval does: ratios of rounds of 20 ms were found to scatter as those of 200 ms do, so
/// that many short ones say more than a few long ones.
const INTERVAL: Duration = Duration::from_millis(40);
const SHORTEST: Duration = Duration::from_millis(30);
const LONGEST: Duration = Duration::from_secs(2);

/// Intervals have room for so many requests of a connection, one after the other, if there is time.
const REQUESTS: u32 = 20;

/// And for so many in any case: an interval without a reply says nothing.
const FEWEST_REQUESTS: u32 = 2;
/// The same at a fixed rate, over all connections.
const FEWEST_DUE: f64 = 3.0;

/// At a fixed rate, an interval has room for so many replies where their 99th percentile is asked for.
const REPLIES_WITH_A_TAIL: f64 = 500.0;

/// Longer than anybody measures, and short enough to be multiplied.
const NEVER: Duration = Duration::from_secs(1 << 40);

/// The first round is begun within it, however little time there is.
const FIRST_ROUND: Duration = Duration::from_millis(200);

/// Fewer rounds than these are not worth being shortened for.
const FEWEST_ROUNDS: u32 = 3;
const MOST_ROUNDS: u32 = 500;

/// Beside traffic: opening a connection and its first message, twice that when it is closed.
const CONNECTING: Duration = Duration::from_micros(50);
const BETWEEN: Duration = Duration::from_millis(10);

/// Memory is looked at once for each start of a server. More of them say nothing new.
const MOST_STARTS: usize = 16;

/// What an advice needs to be measured: for this program its servers, for tests figures of a known answer.
pub(super) trait Measure {
    /// Measures `models` under `question` for about `time`, interleaved in rounds; with `memory`, also
    /// that once. `what` is for the progress.
    fn measure(
        &mut self,
        question: &Question,
        models: &[Model],
        time: Duration,
        memory: bool,
        what: &str,
    ) -> io::Result<Vec<Observed>>;

    /// Whether it was stopped.
    fn stopped(&self) -> bool;
}

/// How a time is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    warmup: Duration,
    interval: Duration,
    rounds: usize,
}

impl Plan {
    fn of(question: &Question, models: usize, time: Duration) -> Plan {
        let models = models.max(1) as u32;
        let queue = question.cpu_per_request * question.active().min(1_000) as u32;
        let slow = (question.delay + question.cpu_per_request) * REQUESTS + queue;
        let tail = match (question.objective, question.rate) {
            (Objective::P99, Some(rate)) => room_for(REPLIES_WITH_A_TAIL, rate),
            _ => Duration::ZERO,
        };
        let fixed = fixed(question);
        let each = time / models;
        let traffic = (each / FEWEST_ROUNDS).saturating_sub(fixed);
        // A fifth of it is warm-up.
        let wanted = INTERVAL.max(slow.max(tail).min(LONGEST)).max(fixed).min(traffic * 4 / 5);
        let interval = wanted.max(shortest(question));
        let warmup = interval / 4;
        let rounds = each.as_secs_f64() / (interval + warmup + fixed).as_secs_f64();
        Plan { warmup, interval, rounds: (rounds as u32).clamp(1, MOST_ROUNDS) as usize }
    }

    /// One start of each server: memory is known before the interval, whatever comes in it.
    fn of_memory(question: &Question, models: usize, time: Duration) -> Plan {
        let interval = match needs(question, models) {
            Some(needs) if needs > time => SHORTEST,
            _ => shortest(question),
        };
        Plan { warmup: Duration::ZERO, interval, rounds: 1 }
    }
}

/// What a round takes beside its traffic.
fn fixed(question: &Question) -> Duration {
    CONNECTING * question.connections.min(100_000) as u32 + BETWEEN
}

/// The shortest interval in which there are replies.
fn shortest(question: &Question) -> Duration {
    let slow = (question.delay + question.cpu_per_request) * FEWEST_REQUESTS;
    let due = question.rate.map_or(Duration::ZERO, |rate| room_for(FEWEST_DUE, rate));
    SHORTEST.max(slow).max(due)
}

/// How long it takes until so many are due.
fn room_for(replies: f64, rate: f64) -> Duration {
    Duration::try_from_secs_f64(replies / rate).unwrap_or(NEVER)
}

/// The time without which not even one round of so many models would have replies; `None` where requests
/// are so fast that any time has room for it.
pub(super) fn needs(question: &Question, models: usize) -> Option<Duration> {
    let interval = shortest(question);
    let round = (interval + interval / 4 + fixed(question)) * models.max(1) as u32;
    (interval > SHORTEST).then(|| round * question.protocols().len() as u32)
}

/// A directory of its own with one file; removed when dropped.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn with_index(bytes: usize) -> io::Result<Directory> {
        for _ in 0..100 {
            let path =
                std::env::temp_dir().join(format!("kapok-advise-{:016x}", fastrand::u64(..)));
            match fs::create_dir(&path) {
                Ok(()) => {
                    let directory = Directory(path);
                    fs::write(directory.0.join("index.html"), vec![b'k'; bytes])?;
                    return Ok(directory);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("no name is free for a directory among the temporary ones"))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!("{} is left behind: {error}", self.0.display());
        }
    }
}

/// Servers of this program, one process for each model.
pub(super) struct Servers<'a> {
    config: &'a AdviseConfig,
    progress: &'a mut dyn FnMut(&str, f64),
    begun: Instant,
    directory: Option<Directory>,
}

impl Servers<'_> {
    pub(super) fn new<'a>(
        config: &'a AdviseConfig,
        progress: &'a mut dyn FnMut(&str, f64),
    ) -> io::Result<Servers<'a>> {
        let question = &config.question;
        let directory = match question.file_share > 0.0 {
            true => Some(Directory::with_index(question.response_bytes)?),
            false => None,
        };
        Ok(Servers { config, progress, begun: Instant::now(), directory })
    }

    /// One comparison; its rounds are counted from `first`.
    fn compare(
        &mut self,
        question: &Question,
        protocol: Protocol,
        models: &[Model],
        (plan, time, beside, first): (Plan, Duration, Beside, usize),
        what: &str,
    ) -> io::Result<Vec<Observed>> {
        let config = self.config;
        let compare = CompareConfig {
            program: config.program.clone(),
            build: config.build.clone(),
            versions: config.versions.clone(),
            protocols: vec![protocol],
            contenders: models.iter().copied().map(Contender::Model).collect(),
            baseline: None,
            points: vec![question.point()],
            directory: self.directory.as_ref().map(|directory| directory.0.clone()),
            body_bytes: question.response_bytes,
            pipeline: 1,
            rate: question.rate,
            threads: 1,
            rounds: Rounds::Fixed(plan.rounds),
            warmup: plan.warmup,
            duration: plan.interval,
            time_limit: Some(time.max(FIRST_ROUND)),
            beside,
            costs: false,
            stop: config.stop.clone(),
        };
        let (begun, all, progress) = (self.begun, config.time.as_secs_f64(), &mut *self.progress);
        let compared = compare::run(&compare, &mut |step| {
            let share = begun.elapsed().as_secs_f64() / all.max(f64::MIN_POSITIVE);
            progress(&format!("{what} · {}", step.what), share.min(1.0));
        })?;
        let table = compared.tables.first();
        let rows = table.map_or(&[][..], |table| &table.rows[..]);
        Ok(rows.iter().map(|row| Observed::of_row(row, first, KERNEL_STACK_BYTES)).collect())
    }
}

impl Measure for Servers<'_> {
    fn measure(
        &mut self,
        question: &Question,
        models: &[Model],
        time: Duration,
        memory: bool,
        what: &str,
    ) -> io::Result<Vec<Observed>> {
        let mut parts = Vec::new();
        let protocols = question.protocols();
        let each = time / protocols.len() as u32;
        for (protocol, share) in protocols {
            let observed = if question.objective == Objective::Memory {
                // A start has one figure for memory: what repeats are the starts.
                let plan = Plan::of_memory(question, models.len(), each);
                let begun = Instant::now();
                let mut all: Vec<Observed> =
                    models.iter().map(|&model| Observed::none(model)).collect();
                for start in 0..MOST_STARTS {
                    let alive: Vec<Model> = models
                        .iter()
                        .zip(&all)
                        .filter(|(_, known)| known.trouble.is_none())
                        .map(|(model, _)| *model)
                        .collect();
                    let took = begun.elapsed() / (start.max(1)) as u32;
                    if alive.is_empty()
                        || self.stopped()
                        || (start > 0 && begun.elapsed() + took > each)
                    {
                        break;
                    }
                    let how = (plan, each, Beside::Memory, start);
                    for one in self.compare(question, protocol, &alive, how, what)? {
                        if let Some(known) = all.iter_mut().find(|known| known.model == one.model) {
                            known.add(one);
                        }
                    }
                }
                all
            } else {
                let beside = if memory { Beside::Memory } else { Beside::Nothing };
                let how = (Plan::of(question, models.len(), each), each, beside, 0);
                self.compare(question, protocol, models, how, what)?
            };
            parts.push((observed, share));
        }
        let mut parts = parts.into_iter();
        let (first, _) = parts.next().unwrap_or_default();
        Ok(match parts.next() {
            None => first,
            Some((second, share)) => {
                first.iter().zip(&second).map(|(one, other)| one.mixed(other, share)).collect()
            }
        })
    }

    fn stopped(&self) -> bool {
        self.config.stop.as_ref().is_some_and(Stop::requested)
    }
}

/// Whether there is a program to start servers with.
pub(super) fn check_program(program: &Path) -> io::Result<()> {
    match fs::metadata(program) {
        Ok(found) if found.is_file() => Ok(()),
        Ok(_) => Err(io::Error::other(format!("{}: no program", program.display()))),
        Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", program.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(connections: usize) -> Question {
        Question { connections, ..Question::default() }
    }

    #[test]
    fn a_plan_fits_into_its_time() {
        for models in [1, 4, 11] {
            for connections in [1, 64, 4096] {
                for seconds in [3, 10, 60] {
                    let time = Duration::from_secs(seconds);
                    let question = question(connections);
                    let plan = Plan::of(&question, models, time);
                    let fixed = CONNECTING * connections as u32 + BETWEEN;
                    let needs =
                        (plan.interval + plan.warmup + fixed) * (plan.rounds * models) as u32;
                    assert!(plan.rounds == 1 || needs <= time, "{models} {connections}: {plan:?}");
                }
            }
        }
    }

    #[test]
    fn more_time_is_more_rounds_and_slow_requests_longer_ones() {
        let rounds = |seconds| Plan::of(&question(64), 4, Duration::from_secs(seconds)).rounds;
        assert!(rounds(30) >= 2 * rounds(10), "{} {}", rounds(30), rounds(10));
        let slow = Question { delay: Duration::from_millis(50), ..question(64) };
        let plan = Plan::of(&slow, 4, Duration::from_secs(60));
        assert_eq!(plan.interval, Duration::from_secs(1), "twenty requests of 50 ms");
        let seldom = Question { rate: Some(1_000.0), objective: Objective::P99, ..question(64) };
        let plan = Plan::of(&seldom, 4, Duration::from_secs(60));
        assert_eq!(
            plan.interval,
            Duration::from_millis(500),
            "five of 500 are above the 99th in 100"
        );
        // Opening connections takes its time before each: no more than is measured.
        let many = Plan::of(&question(4_000), 4, Duration::from_secs(60));
        assert!(many.interval >= CONNECTING * 4_000, "{many:?}");
    }

    #[test]
    fn an_interval_has_replies_however_little_time_there_is() {
        let time = Duration::from_secs(3);
        let slow = Question { delay: Duration::from_millis(400), ..question(64) };
        assert!(Plan::of(&slow, 11, time).interval >= Duration::from_millis(800));
        let handler = Question { cpu_per_request: Duration::from_millis(30), ..question(1) };
        assert!(Plan::of(&handler, 11, time).interval >= Duration::from_millis(60));
        let seldom = Question { rate: Some(2.0), ..question(64) };
        assert_eq!(Plan::of(&seldom, 11, time).interval, Duration::from_millis(1500));
        // All of which takes its time, and where it does not fit that is known before.
        assert!(needs(&seldom, 11).unwrap() > Duration::from_millis(1500 * 11));
        assert_eq!(needs(&question(64), 11), None);
        let never = Question { rate: Some(1e-300), ..question(64) };
        assert!(needs(&never, 11).unwrap() > Duration::from_secs(1_000_000));
        // Memory is known without.
        assert_eq!(Plan::of_memory(&seldom, 11, time).interval, SHORTEST);
        let delayed = Question { delay: Duration::from_millis(100), ..question(64) };
        assert_eq!(Plan::of_memory(&delayed, 4, time).interval, Duration::from_millis(200));
    }

    #[test]
    fn a_directory_has_its_file_and_goes_when_it_is_done() {
        let directory = Directory::with_index(100).unwrap();
        let path = directory.0.clone();
        assert_eq!(fs::read(path.join("index.html")).unwrap().len(), 100);
        drop(directory);
        assert!(!path.exists());
    }
}
