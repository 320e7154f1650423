//! How long things take on this machine: from an instruction to a disk and a network, and what it costs
//! to switch to and to make threads, tasks and fibers.
//!
//! Every line is measured many times, one after the other in rounds, so that drift of the machine falls
//! on all of them; the table has the median of the rounds and their spread. Each round of a line does
//! enough of it to take about a millisecond or more, unless one alone takes longer. A line that is slow, as
//! those of a disk may be, sits out rounds.
//!
//! Every line is in every table. What this machine does not have, a disk that rotates or a peer, has the
//! reason in place of figures.
//!
//! What does not wait is measured in CPU time of its thread, so that other processes on its core are
//! not in it; what waits is measured on the clock, and wants a machine with nothing else to do.

mod disk;
mod kernel;
mod network;
mod processor;
mod seek;
mod tasks;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::Stop;
use crate::compare::Environment;
use crate::compare::environment::{Bound, allowed_cores};
use crate::meters::thread_cpu_time;

/// What to measure.
#[derive(Clone, Debug)]
pub struct LatencyConfig {
    /// Version and commit of this program, for the record.
    pub build: String,
    /// A file on the disk to measure, overwritten and left behind; `None`: a temporary one in the
    /// current directory.
    pub file: Option<PathBuf>,
    /// An echo server elsewhere.
    pub peer: Option<SocketAddr>,
    /// Only lines whose name contains one of these; empty: all.
    pub only: Vec<String>,
    /// Rounds.
    pub repeats: usize,
    /// Ends it early.
    pub stop: Option<Stop>,
}

/// The table.
#[derive(Clone, Debug, Serialize)]
pub struct Latencies {
    /// Where it was measured.
    pub environment: Environment,
    /// The lines, from the fastest kind of thing to the slowest.
    pub lines: Vec<Line>,
    /// Ended by a signal.
    pub stopped_early: bool,
}

/// One line.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// What takes that long.
    pub name: &'static str,
    /// The median of the rounds, in nanoseconds; `None` if it could not be measured.
    pub median_ns: Option<f64>,
    /// The fastest round.
    pub least_ns: Option<f64>,
    /// A quarter of the rounds was faster.
    pub quarter_ns: Option<f64>,
    /// A quarter of the rounds was slower.
    pub three_quarters_ns: Option<f64>,
    /// The slowest round.
    pub most_ns: Option<f64>,
    /// In how many rounds it was measured.
    pub rounds: usize,
    /// What books say, in nanoseconds, where they say something.
    pub book_ns: Option<f64>,
    /// How it was measured.
    pub method: String,
    /// Why there is nothing, or not everything: what went wrong.
    pub trouble: Option<String>,
    /// Why there was nothing to measure: what the line is about is not here, or was not named.
    pub absent: Option<String>,
}

/// One round of a line: nanoseconds of what it is about.
type Measure = Box<dyn FnMut() -> io::Result<f64>>;

/// What has to be done before the first round.
type Prepare = dyn FnOnce() -> io::Result<Measure>;

/// How a line is measured.
struct Subject {
    name: &'static str,
    book_ns: Option<f64>,
    method: String,
    /// Made when it is its line's turn for the first time; or why there is nothing to measure.
    prepare: Result<Box<Prepare>, String>,
}

impl Subject {
    fn new(
        name: &'static str,
        book_ns: impl Into<Option<f64>>,
        method: impl Into<String>,
        prepare: impl FnOnce() -> io::Result<Measure> + 'static,
    ) -> Subject {
        let prepare: Box<Prepare> = Box::new(prepare);
        Subject { name, book_ns: book_ns.into(), method: method.into(), prepare: Ok(prepare) }
    }

    /// A line of the table that there is nothing to measure for.
    fn absent(name: &'static str, book_ns: f64, reason: impl Into<String>) -> Subject {
        let prepare = Err(reason.into());
        Subject { name, book_ns: Some(book_ns), method: String::new(), prepare }
    }
}

/// The most rounds.
const MAX_REPEATS: usize = 100_000;

/// A line that takes longer than this in all its rounds sits out some, evenly, down to [`FEWEST`].
const LONGEST: Duration = Duration::from_secs(2);
const FEWEST: usize = 15;

/// Measures. The callback hears what is measured now, and how far it has come. The calling thread is bound
/// to one core meanwhile: one that moves leaves its caches behind, and is now on the core of whom it talks
/// to, now on another.
///
/// # Errors
///
/// `InvalidInput` for no rounds, too many, or a name that no line has; what binding the thread gives. What
/// goes wrong with single lines is in them.
pub fn run(
    config: &LatencyConfig,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> io::Result<Latencies> {
    let refuse = |message: String| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    if config.repeats == 0 || config.repeats > MAX_REPEATS {
        return refuse(format!("{} repeats: from 1 to {MAX_REPEATS}", config.repeats));
    }
    let environment = Environment::look(&config.build, &[]);
    let cores = allowed_cores();
    let mut subjects = subjects(config, &cores, environment.virtual_machine);
    if !config.only.is_empty() {
        let names: Vec<&str> = subjects.iter().map(|subject| subject.name).collect();
        if let Some(word) =
            config.only.iter().find(|word| !names.iter().any(|name| name.contains(&word[..])))
        {
            return refuse(format!("no line is about `{word}`; there are {}", names.join(", ")));
        }
        subjects.retain(|subject| config.only.iter().any(|word| subject.name.contains(&word[..])));
    }
    let _bound = Bound::to(&cores[..cores.len().min(1)], &cores)?;
    let stopped = || config.stop.as_ref().is_some_and(Stop::requested);
    let mut lines = Vec::new();
    let mut measures: Vec<(Option<Measure>, Vec<f64>, Duration)> = Vec::new();
    let total = subjects.len() * (config.repeats + 1);
    for (number, subject) in subjects.into_iter().enumerate() {
        progress(subject.name, number, total);
        let (measure, trouble, absent) = match subject.prepare {
            Err(reason) => (None, None, Some(reason)),
            Ok(_) if stopped() => {
                (None, Some(io::Error::from(io::ErrorKind::Interrupted).to_string()), None)
            }
            // The first round warms up.
            Ok(prepare) => match prepare().and_then(|mut measure| measure().map(|_| measure)) {
                Ok(measure) => (Some(measure), None, None),
                Err(error) => (None, Some(error.to_string()), None),
            },
        };
        measures.push((measure, Vec::new(), Duration::ZERO));
        lines.push(Line {
            name: subject.name,
            median_ns: None,
            least_ns: None,
            quarter_ns: None,
            three_quarters_ns: None,
            most_ns: None,
            rounds: 0,
            book_ns: subject.book_ns,
            method: subject.method,
            trouble,
            absent,
        });
    }
    for round in 0..config.repeats {
        for (number, (measure, times, spent)) in measures.iter_mut().enumerate() {
            if stopped() {
                break;
            }
            if !is_due(times.len(), *spent, round, config.repeats) {
                continue;
            }
            let begun = Instant::now();
            progress(lines[number].name, lines.len() * (round + 1) + number, total);
            match measure.as_mut().map(|measure| measure()) {
                Some(Ok(time)) => times.push(time),
                Some(Err(error)) => {
                    lines[number].trouble.get_or_insert(error.to_string());
                    *measure = None;
                }
                None => {}
            }
            *spent += begun.elapsed();
        }
    }
    for (line, (_, mut times, _)) in lines.iter_mut().zip(measures) {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let last = times.len().checked_sub(1)?;
            Some(times[(last as f64 * share).round() as usize])
        };
        line.rounds = times.len();
        line.least_ns = at(0.0);
        line.quarter_ns = at(0.25);
        line.median_ns = at(0.5);
        line.three_quarters_ns = at(0.75);
        line.most_ns = at(1.0);
    }
    Ok(Latencies { environment, lines, stopped_early: stopped() })
}

/// Whether a line that was measured in so many of `round` rounds, and took so long, is measured in this
/// one as well: it has its part of the time left, or of the fewest rounds.
fn is_due(measured: usize, spent: Duration, round: usize, repeats: usize) -> bool {
    let part = round as f64 / repeats as f64;
    measured == 0
        || spent <= LONGEST.mul_f64(part)
        || (measured as f64) < FEWEST.min(repeats) as f64 * (round + 1) as f64 / repeats as f64
}

fn subjects(config: &LatencyConfig, cores: &[usize], virtual_machine: bool) -> Vec<Subject> {
    let mut subjects = processor::subjects();
    subjects.extend(kernel::subjects(cores));
    subjects.extend(tasks::subjects(cores));
    subjects.extend(disk::subjects(config.file.clone(), virtual_machine));
    subjects.extend(network::subjects(cores, config.peer));
    subjects
}

/// The CPU time of this thread that `times` turns take, in nanoseconds for each: what else runs on
/// this core meanwhile is not in it. Turns must not wait.
fn each(times: u64, mut turn: impl FnMut()) -> f64 {
    let begun = thread_cpu_time();
    for _ in 0..times {
        turn();
    }
    nanoseconds(thread_cpu_time() - begun) / times as f64
}

/// The same for turns that can fail; they must not wait either.
fn try_each_cpu(times: u64, mut turn: impl FnMut() -> io::Result<()>) -> io::Result<f64> {
    let mut outcome = Ok(());
    let time = each(times, || {
        if outcome.is_ok() {
            outcome = turn();
        }
    });
    outcome.map(|()| time)
}

/// The time on the clock that `times` turns take, in nanoseconds for each.
fn try_each(times: u64, mut turn: impl FnMut() -> io::Result<()>) -> io::Result<f64> {
    let begun = Instant::now();
    for _ in 0..times {
        turn()?;
    }
    Ok(nanoseconds(begun.elapsed()) / times as f64)
}

/// The time on the clock of the middle one of `times` turns, in nanoseconds: one that a core was late for is
/// not in it.
fn middle_of(times: usize, mut turn: impl FnMut() -> io::Result<()>) -> io::Result<f64> {
    let mut took = Vec::with_capacity(times);
    for _ in 0..times {
        let begun = Instant::now();
        turn()?;
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    Ok(took.get(times / 2).copied().map_or(0.0, nanoseconds))
}

fn nanoseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rounds in which a line is measured that takes `each`.
    fn rounds(each: Duration, repeats: usize) -> Vec<usize> {
        let mut measured = Vec::new();
        for round in 0..repeats {
            if is_due(measured.len(), each * measured.len() as u32, round, repeats) {
                measured.push(round);
            }
        }
        measured
    }

    #[test]
    fn slow_lines_sit_out_rounds_and_quick_ones_none() {
        let millis = Duration::from_millis;
        assert_eq!(rounds(millis(10), 151).len(), 151);
        // Two seconds of them, from the first rounds to the last.
        let slow = rounds(millis(50), 151);
        assert!((38..=42).contains(&slow.len()), "{slow:?}");
        assert!(slow[0] == 0 && slow[slow.len() - 1] > 145, "{slow:?}");
        assert!(slow.windows(2).all(|pair| pair[1] - pair[0] <= 5), "{slow:?}");
        // However long it takes: who asked for a few has them all.
        assert_eq!(rounds(millis(900), 151).len(), FEWEST);
        assert_eq!(rounds(millis(900), 5).len(), 5);
        assert_eq!(rounds(Duration::ZERO, 1), [0]);
    }
}
