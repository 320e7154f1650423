//! One table: a protocol, a number of connections, and every model under them.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::server::Server;
use super::statistics::{Ratio, Spread};
use super::{CompareConfig, Step};
use crate::load::{self, LoadConfig, LoadReport, Phase};
use crate::meters::{Memory, SyscallCounter, Usage};
use crate::{Model, Protocol, Stop};

/// The untimed run: long enough for stable counts per request.
const UNTIMED: Duration = Duration::from_millis(200);
const UNTIMED_WARMUP: Duration = Duration::from_millis(100);

/// For how long idle servers are watched.
const IDLE: Duration = Duration::from_millis(300);

/// When no further connection is served for so long, the model holds no more.
const PATIENCE: Duration = Duration::from_millis(1500);

/// One protocol and number of connections.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// `echo` or `http`.
    pub protocol: String,
    /// Connections.
    pub connections: usize,
    /// Connections that carry traffic.
    pub active: usize,
    /// Bytes of an echo message or of an HTTP body.
    pub bytes: usize,
    /// Rounds that were measured.
    pub rounds: usize,
    /// The model that the ratios are relative to.
    pub baseline: Option<String>,
    /// One for each model.
    pub rows: Vec<Row>,
}

/// One model.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The model's name.
    pub model: String,
    /// Why there is nothing, or not everything, about this model.
    pub trouble: Option<String>,
    /// Requests per second.
    pub requests_per_second: Option<Spread>,
    /// Median latency in microseconds.
    pub p50_us: Option<Spread>,
    /// 99th percentile of the latency in microseconds.
    pub p99_us: Option<Spread>,
    /// 99.9th percentile of the latency in microseconds.
    pub p999_us: Option<Spread>,
    /// The server's CPU time per request in microseconds, user and system.
    pub cpu_us_per_request: Option<Spread>,
    /// The part of it in the kernel, from 0 to 1.
    pub system_share: Option<f64>,
    /// `cpu_us_per_request` relative to the baseline's in the same round.
    pub cpu_ratio: Option<Ratio>,
    /// Context switches per request: the server waited.
    pub voluntary_switches: Option<Spread>,
    /// Context switches per request: the server was taken off its core.
    pub involuntary_switches: Option<Spread>,
    /// The server's use of its cores while under load, in cores.
    pub server_cores_used: Option<Spread>,
    /// What was read in the untimed run.
    pub untimed: Option<Untimed>,
    /// The server's use of a core while nothing is asked of it, from 0 to 1.
    pub idle_cpu_share: Option<f64>,
    /// The load generator was what limited, in half of the rounds or more.
    pub generator_limited: bool,
    /// The share of the interval for which other work kept the load from its core.
    pub load_waited_share: Option<Spread>,
    /// The rounds.
    pub measured: Vec<Measured>,
}

/// What counting disturbs, counted apart from the rounds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Untimed {
    /// System calls of the server per request.
    pub syscalls_per_request: Option<f64>,
    /// Bytes of own memory and page tables that one more connection takes; `None` for a single one.
    pub memory_per_connection: Option<f64>,
    /// Bytes resident with all connections open.
    pub resident_bytes: u64,
    /// Bytes of address space with all connections open.
    pub reserved_bytes: u64,
    /// Threads with all connections open.
    pub threads: u64,
}

/// One round of one model.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// The round, from 0.
    pub round: usize,
    /// The server's CPU time per request in microseconds.
    pub cpu_us_per_request: f64,
    /// The server's CPU time over the interval, in seconds.
    pub cpu_seconds: f64,
    /// The part of it in the kernel, from 0 to 1.
    pub system_share: Option<f64>,
    /// Context switches per request: the server waited.
    pub voluntary_switches: f64,
    /// Context switches per request: the server was taken off its core.
    pub involuntary_switches: f64,
    /// What the load generator found.
    pub load: LoadReport,
}

/// A model on its way through the rounds.
struct Subject {
    model: Model,
    server: Option<Server>,
    trouble: Option<String>,
    untimed: Option<Untimed>,
    idle_cpu_share: Option<f64>,
    measured: Vec<Measured>,
}

/// Makes one table.
pub(super) struct Bench<'a> {
    pub(super) config: &'a CompareConfig,
    pub(super) protocol: Protocol,
    pub(super) connections: usize,
    pub(super) cores: &'a [usize],
    pub(super) step: &'a mut Step,
    pub(super) progress: &'a mut dyn FnMut(&Step),
    /// How system calls are counted, or why not: once for all.
    pub(super) counted: &'a mut Option<String>,
    pub(super) limit: Option<Instant>,
}

impl Bench<'_> {
    pub(super) fn run(&mut self) -> io::Result<Table> {
        let mut subjects: Vec<Subject> =
            self.config.models.iter().map(|&model| Subject::new(model)).collect();
        let mut rounds = 0;
        let mut last_round = Duration::ZERO;
        for round in 0..self.config.rounds {
            let begun = Instant::now();
            if self.stopped() || self.limit.is_some_and(|limit| begun + last_round > limit) {
                break;
            }
            let count = subjects.len();
            for place in order(round, count) {
                self.visit(&mut subjects[place], round, self.config.rounds);
            }
            // The first round also starts the servers and is no measure of the next.
            last_round = if round == 0 {
                (self.config.warmup + self.config.duration) * count as u32
            } else {
                begun.elapsed()
            };
            rounds = round + 1;
        }
        self.step.done += (self.config.rounds - rounds) * subjects.len();
        self.watch_idle(&mut subjects);
        for subject in &mut subjects {
            if let Some(server) = &mut subject.server {
                server.ask_to_stop();
            }
        }
        for subject in &mut subjects {
            if let Some(server) = subject.server.take() {
                let said = server.stop();
                if !said.is_empty() {
                    subject.trouble.get_or_insert(said);
                }
            }
        }
        Ok(self.table(rounds, subjects))
    }

    fn stopped(&self) -> bool {
        self.config.stop.as_ref().is_some_and(Stop::requested)
    }

    fn say(&mut self, model: Model, what: &str) {
        self.step.what =
            format!("{} · {} connections · {model} · {what}", self.protocol, self.connections);
        (self.progress)(self.step);
    }

    /// One model's turn in one round.
    fn visit(&mut self, subject: &mut Subject, round: usize, rounds: usize) {
        if subject.untimed.is_none() && subject.trouble.is_none() && !self.stopped() {
            self.say(subject.model, "starting, and counting system calls and memory");
            if let Err(error) = self.begin(subject) {
                self.give_up(subject, error);
            }
            self.step.done += 1;
        }
        if let Some(server) = &mut subject.server
            && !self.stopped()
        {
            self.say(subject.model, &format!("round {} of {rounds}", round + 1));
            server.resume();
            let measured = self.measure(server, round);
            if subject.model == Model::BusyPoll {
                server.pause();
            }
            match measured {
                // An interval that a signal cut short is not comparable.
                Ok(measured) if measured.load.stopped_early => {}
                Ok(measured) => subject.measured.push(measured),
                Err(error) => self.give_up(subject, error),
            }
        }
        self.step.done += 1;
        self.say(subject.model, "done");
    }

    /// Stops a model's server for good and keeps the reason, with what the server said about it.
    fn give_up(&self, subject: &mut Subject, error: io::Error) {
        if self.stopped() {
            return;
        }
        let mut reason = error.to_string();
        if let Some(mut server) = subject.server.take() {
            if let Some(ended) = server.ended() {
                // What the load saw of it is only the consequence.
                reason = ended;
            } else {
                let said = server.stop();
                if !said.is_empty() {
                    reason = format!("{reason} ({said})");
                }
            }
        }
        subject.trouble = Some(reason);
    }

    /// Starts the server and makes the untimed run, which also warms it up.
    fn begin(&mut self, subject: &mut Subject) -> io::Result<()> {
        let server = Server::start(
            &self.config.program,
            &self.arguments(subject.model),
            self.cores,
            self.config.stop.as_ref(),
        )?;
        let server = subject.server.insert(server);
        let mut counter = match SyscallCounter::of(server.pid()) {
            Ok(counter) => {
                self.counted.get_or_insert_with(|| format!("by {}", counter.source()));
                Some(counter)
            }
            Err(error) => {
                self.counted.get_or_insert_with(|| format!("not counted: {error}"));
                None
            }
        };
        let load_config = self.load(server, UNTIMED_WARMUP, UNTIMED);
        let mut untimed = Untimed::default();
        let mut first: Option<Memory> = None;
        let mut calls = (None, None);
        let mut phase = None;
        let pid = server.pid();
        let report = load::run(&load_config, &mut |progress| {
            if phase == Some(progress.phase) {
                return;
            }
            // Connecting is told of all along; what counts is its first connection, served.
            if progress.phase == Phase::Connecting && progress.served == 0 {
                return;
            }
            phase = Some(progress.phase);
            match progress.phase {
                Phase::Connecting => first = Memory::of(pid).ok(),
                Phase::WarmUp => {
                    if let (Some(first), Ok(all)) = (first, Memory::of(pid)) {
                        let own = |memory: Memory| memory.anonymous + memory.page_tables;
                        untimed.resident_bytes = all.resident;
                        untimed.reserved_bytes = all.reserved;
                        untimed.memory_per_connection = (progress.served > 1).then(|| {
                            own(all).saturating_sub(own(first)) as f64
                                / (progress.served - 1) as f64
                        });
                    }
                    untimed.threads = Usage::at_end(pid).map_or(0, |usage| usage.threads);
                }
                Phase::Measuring => {
                    calls.0 = counter.as_mut().and_then(|counter| counter.read().ok());
                }
                Phase::Draining => {
                    calls.1 = counter.as_mut().and_then(|counter| counter.read().ok());
                }
            }
        })?;
        drop(counter);
        self.sound(&report)?;
        untimed.syscalls_per_request = match calls {
            (Some(before), Some(after)) if report.requests > 0 => {
                Some((after - before) as f64 / report.requests as f64)
            }
            _ => None,
        };
        if report.stopped_early {
            return Err(io::ErrorKind::Interrupted.into());
        }
        subject.untimed = Some(untimed);
        Ok(())
    }

    fn measure(&self, server: &mut Server, round: usize) -> io::Result<Measured> {
        let load_config = self.load(server, self.config.warmup, self.config.duration);
        let pid = server.pid();
        let mut phase = Phase::Connecting;
        let (mut before, mut after) = (None, None);
        let report = load::run(&load_config, &mut |progress| {
            if phase != progress.phase {
                phase = progress.phase;
                match phase {
                    Phase::Measuring => before = Usage::at_start(pid).ok(),
                    Phase::Draining => after = Usage::at_end(pid).ok(),
                    Phase::Connecting | Phase::WarmUp => {}
                }
            }
        })?;
        self.sound(&report)?;
        let (Some(before), Some(after)) = (before, after) else {
            return Err(io::Error::other("its meters could not be read"));
        };
        let used = after.since(&before);
        let per_request = |count: f64| count / report.requests.max(1) as f64;
        Ok(Measured {
            round,
            cpu_us_per_request: per_request(used.cpu.as_secs_f64() * 1e6),
            cpu_seconds: used.cpu.as_secs_f64(),
            system_share: used.system_share(),
            voluntary_switches: per_request(used.switches.voluntary as f64),
            involuntary_switches: per_request(used.switches.involuntary as f64),
            load: report,
        })
    }

    /// A run whose figures may stand beside the others'.
    fn sound(&self, report: &LoadReport) -> io::Result<()> {
        if report.stopped_early {
            return Ok(());
        }
        let example = report.errors.examples.first().map_or("", String::as_str);
        if report.served < report.connections {
            let because = if example.is_empty() { String::new() } else { format!(": {example}") };
            return Err(io::Error::other(format!(
                "serves {} of {} connections{because}",
                report.served, report.connections
            )));
        }
        if report.errors.total() > 0 {
            return Err(io::Error::other(format!("{} errors: {example}", report.errors.total())));
        }
        if report.requests == 0 {
            return Err(io::Error::other("no reply in the whole interval"));
        }
        Ok(())
    }

    fn arguments(&self, model: Model) -> Vec<String> {
        let config = self.config;
        let options = [
            ("--addr", "127.0.0.1:0".to_owned()),
            ("--protocol", self.protocol.to_string()),
            ("--model", model.to_string()),
            ("--threads", config.threads.to_string()),
            ("--cpu-us", config.cpu_per_request.as_micros().to_string()),
            ("--body", config.body_bytes.to_string()),
        ];
        let mut arguments = vec!["serve".to_owned()];
        arguments.extend(options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
        arguments
    }

    fn load(&self, server: &Server, warmup: Duration, duration: Duration) -> LoadConfig {
        LoadConfig {
            connections: self.connections,
            active: self.config.active,
            size_bytes: self.config.size_bytes,
            body_bytes: Some(self.config.body_bytes),
            pipeline: self.config.pipeline,
            churn: self.config.churn,
            warmup,
            duration,
            patience: PATIENCE,
            stop: self.config.stop.clone(),
            ..LoadConfig::new(server.addr, self.protocol)
        }
    }

    /// What servers use while nothing is asked of them: all at once, and those that never wait
    /// afterwards, each for itself.
    fn watch_idle(&mut self, subjects: &mut [Subject]) {
        if self.stopped() {
            return;
        }
        let watch = |subjects: &mut [Subject], restless: bool| {
            let mut watched: Vec<(&mut Subject, Usage)> = subjects
                .iter_mut()
                .filter(|subject| (subject.model == Model::BusyPoll) == restless)
                .filter_map(|subject| {
                    let server = subject.server.as_mut()?;
                    server.resume();
                    let usage = Usage::at_start(server.pid()).ok()?;
                    Some((subject, usage))
                })
                .collect();
            if watched.is_empty() {
                return;
            }
            let begun = Instant::now();
            thread::sleep(IDLE);
            for (subject, before) in &mut watched {
                let Some(server) = &mut subject.server else { continue };
                let elapsed = begun.elapsed().as_secs_f64();
                if let Ok(after) = Usage::at_end(server.pid()) {
                    subject.idle_cpu_share = Some(after.since(before).cpu.as_secs_f64() / elapsed);
                }
            }
        };
        self.step.what = format!("{} · all servers idle", self.protocol);
        (self.progress)(self.step);
        // The last one has as many connections to close; it should be done within a second.
        let closing = Duration::from_micros(100) * self.connections.min(9_000) as u32;
        thread::sleep(Duration::from_millis(100) + closing);
        watch(subjects, false);
        watch(subjects, true);
    }

    fn table(&self, rounds: usize, subjects: Vec<Subject>) -> Table {
        let baseline = subjects
            .iter()
            .find(|subject| subject.model == Model::Tokio && !subject.measured.is_empty())
            .map(|subject| (subject.model.to_string(), subject.measured.clone()));
        let rows = subjects
            .into_iter()
            .map(|subject| subject.row(baseline.as_ref().map(|(_, measured)| measured.as_slice())))
            .collect();
        Table {
            protocol: self.protocol.to_string(),
            connections: self.connections,
            active: self.config.active.unwrap_or(self.connections),
            bytes: match self.protocol {
                Protocol::Echo => self.config.size_bytes,
                Protocol::Http => self.config.body_bytes,
            },
            rounds,
            baseline: baseline.map(|(name, _)| name),
            rows,
        }
    }
}

impl Subject {
    fn new(model: Model) -> Subject {
        Subject {
            model,
            server: None,
            trouble: None,
            untimed: None,
            idle_cpu_share: None,
            measured: Vec::new(),
        }
    }

    fn row(self, baseline: Option<&[Measured]>) -> Row {
        let measured = &self.measured;
        let spread = |pick: fn(&Measured) -> f64| Spread::of(measured.iter().map(pick));
        let shares = measured.iter().filter_map(|measured| measured.system_share);
        let cpu_ratio = baseline.and_then(|baseline| Ratio::of(&paired(measured, baseline)));
        Row {
            model: self.model.to_string(),
            requests_per_second: spread(|measured| measured.load.requests_per_second),
            p50_us: spread(|measured| measured.load.latency.p50_us),
            p99_us: spread(|measured| measured.load.latency.p99_us),
            p999_us: spread(|measured| measured.load.latency.p999_us),
            cpu_us_per_request: spread(|measured| measured.cpu_us_per_request),
            system_share: Spread::of(shares).map(|spread| spread.median),
            cpu_ratio,
            voluntary_switches: spread(|measured| measured.voluntary_switches),
            involuntary_switches: spread(|measured| measured.involuntary_switches),
            server_cores_used: spread(|measured| measured.cpu_seconds / measured.load.seconds),
            generator_limited: !measured.is_empty()
                && measured.iter().filter(|measured| measured.load.generator_limited).count() * 2
                    >= measured.len(),
            load_waited_share: spread(|measured| measured.load.waited_share),
            trouble: self.trouble,
            untimed: self.untimed,
            idle_cpu_share: self.idle_cpu_share,
            measured: self.measured,
        }
    }
}

/// Who follows whom in a round. Each begins elsewhere and goes around in other strides (A B C D E,
/// B D A C E, …), so that nobody always follows the same neighbour's heat.
fn order(round: usize, count: usize) -> impl Iterator<Item = usize> {
    let coprime = |&stride: &usize| {
        let (mut larger, mut smaller) = (count, stride);
        while smaller > 0 {
            (larger, smaller) = (smaller, larger % smaller);
        }
        larger == 1
    };
    // Only such a stride comes past everybody. One does always.
    let strides: Vec<usize> = (1..count.max(2)).filter(coprime).collect();
    let stride = strides[round % strides.len()];
    (0..count).map(move |place| (round + place * stride) % count)
}

/// CPU per request relative to the baseline's, for the rounds that both were measured in.
fn paired(measured: &[Measured], baseline: &[Measured]) -> Vec<f64> {
    measured
        .iter()
        .filter_map(|ours| {
            let theirs = baseline.iter().find(|theirs| theirs.round == ours.round)?;
            Some(ours.cpu_us_per_request / theirs.cpu_us_per_request)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_round_visits_everybody_once() {
        for count in 1..=20 {
            for round in 0..40 {
                let visited: HashSet<usize> = order(round, count).collect();
                assert_eq!((order(round, count).count(), visited.len()), (count, count));
            }
        }
    }

    #[test]
    fn nobody_follows_the_same_neighbour_in_every_round() {
        let count = Model::ALL.len();
        for model in 0..count {
            let before: Vec<Option<usize>> = (0..3)
                .map(|round| {
                    let order: Vec<usize> = order(round, count).collect();
                    let at = order.iter().position(|&place| place == model)?;
                    at.checked_sub(1).map(|at| order[at])
                })
                .collect();
            let different: HashSet<_> = before.iter().collect();
            assert_eq!(different.len(), 3, "{model} follows {before:?}");
        }
    }
}
