//! One table on its way: a protocol, a point, and every model under them.

mod due;
mod idle;
mod order;
mod runs;
mod start;
mod subject;

use std::io;
use std::time::{Duration, Instant};

use super::contender::Contender;
use super::network::Namespaces;
use super::statistics::median_of;
use super::table::{Measured, Standing, Table};
use super::{Beside, CompareConfig, Point, Rounds, Step};
use crate::{DelayServer, Model, Protocol, Stop};
use due::due;
use order::order;
use subject::Subject;

/// So many rounds in a row may pass without a single reply before a server is given up.
const MOST_SILENT: usize = 2;

/// Makes one table.
pub(super) struct Bench<'a> {
    pub(super) config: &'a CompareConfig,
    pub(super) protocol: Protocol,
    pub(super) point: Point,
    /// The server that each request waits for. Its thread runs on the load's core.
    pub(super) backend: Option<&'a DelayServer>,
    /// What the server is to be put into, where it is not beside the load.
    pub(super) namespaces: Option<&'a Namespaces>,
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
            self.config.contenders.iter().cloned().map(Subject::new).collect();
        let baseline = self.baseline();
        let (mut rounds, mut capped) = (0, false);
        let mut last_round = Duration::ZERO;
        let cap = self.config.rounds.cap();
        self.step.standings =
            (0..subjects.len()).map(|place| self.standing(&subjects, place)).collect();
        for round in 0..cap {
            let begun = Instant::now();
            let who = due(self.config.rounds, &subjects, baseline);
            if who.is_empty() {
                break;
            }
            capped = matches!(self.config.rounds, Rounds::Until { .. });
            if self.stopped() || self.limit.is_some_and(|limit| begun + last_round > limit) {
                break;
            }
            let count = subjects.len();
            for place in order(round, count).filter(|place| who.contains(place)) {
                self.visit(&mut subjects, place, round);
            }
            // The first round also starts the servers and is no measure of the next.
            last_round = if round == 0 {
                (self.config.warmup + self.config.duration) * count as u32
            } else {
                begun.elapsed()
            };
            rounds = round + 1;
        }
        capped &= !due(self.config.rounds, &subjects, baseline).is_empty() || rounds == cap;
        self.step.done += (cap - rounds) * subjects.len();
        if self.config.beside == Beside::Everything {
            self.watch_idle(&mut subjects);
            for subject in &mut subjects {
                subject.own_up_to_silence();
            }
        }
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
        Ok(self.table(rounds, capped, baseline, subjects))
    }

    fn stopped(&self) -> bool {
        self.config.stop.as_ref().is_some_and(Stop::requested)
    }

    /// The place of the row that the others are relative to.
    fn baseline(&self) -> usize {
        let contenders = &self.config.contenders;
        let place = |name: &str| contenders.iter().position(|one| one.to_string() == name);
        match &self.config.baseline {
            Some(name) => place(name),
            None => place(&Model::Tokio.to_string()),
        }
        .unwrap_or(0)
    }

    fn say(&mut self, contender: &Contender, what: &str) {
        self.step.what = format!(
            "{} · {} connections · {contender} · {what}",
            self.protocol, self.point.connections
        );
        self.step.running = None;
        (self.progress)(self.step);
    }

    /// How a model stands. Rounds are short, and this is done after each: no more than is shown.
    fn standing(&self, subjects: &[Subject], place: usize) -> Standing {
        let subject = &subjects[place];
        let median = |pick: fn(&Measured) -> f64| median_of(subject.measured.iter().map(pick));
        Standing {
            model: subject.contender.to_string(),
            rounds: subject.measured.len(),
            requests_per_second: median(|one| one.load.requests_per_second),
            p99_us: median(|one| one.load.latency.p99_us),
            cpu_ratio: subject.ratio(&subjects[self.baseline()], |one| one.cpu_us_per_request),
            failed: subject.trouble.is_some(),
        }
    }

    /// One model's turn in one round.
    fn visit(&mut self, subjects: &mut [Subject], place: usize, round: usize) {
        let subject = &mut subjects[place];
        if subject.server.is_none() && subject.trouble.is_none() && !self.stopped() {
            self.say(&subject.contender, "starting, and counting system calls and memory");
            if let Err(error) = self.begin(subject) {
                self.give_up(subject, error);
            }
            self.step.done += 1;
        }
        let restless = subject.is_restless();
        if let Some(server) = &mut subject.server
            && !self.stopped()
        {
            let of = match self.config.rounds {
                Rounds::Fixed(rounds) => format!("round {} of {rounds}", round + 1),
                Rounds::Until { cap, .. } => format!("round {} of at most {cap}", round + 1),
            };
            self.say(&subject.contender, &of);
            server.resume();
            let measured = self.measure(server, place, round);
            if restless {
                server.pause();
            }
            match measured {
                // An interval that a signal cut short is not comparable.
                Ok(measured) if measured.load.stopped_early => {}
                Ok(measured) => subject.add(measured),
                // The machine may have stood still for the whole of it.
                Err(error)
                    if error.kind() == io::ErrorKind::TimedOut && subject.silent < MOST_SILENT =>
                {
                    subject.silent += 1;
                    subject.dropped_rounds += 1;
                }
                Err(error) => self.give_up(subject, error),
            }
        }
        self.step.done += 1;
        self.step.standings[place] = self.standing(subjects, place);
        self.step.running = None;
        (self.progress)(self.step);
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

    fn table(&self, rounds: usize, capped: bool, baseline: usize, subjects: Vec<Subject>) -> Table {
        let reference = &subjects[baseline];
        let name = (!reference.measured.is_empty()).then(|| reference.contender.to_string());
        let measured = reference.measured.clone();
        let rows = subjects.into_iter().map(|subject| subject.row(&measured)).collect();
        let point = self.point;
        Table {
            protocol: self.protocol.to_string(),
            connections: point.connections,
            active: point.active.unwrap_or(point.connections),
            bytes: match self.protocol {
                Protocol::Echo => point.size_bytes,
                Protocol::Http => self.config.body_bytes,
                Protocol::Files => self.config.index_bytes().unwrap_or(0) as usize,
            },
            pipeline: self.config.pipeline,
            churn: point.churn,
            cpu_us: micros(point.cpu_per_request),
            delay_ms: point.delay.as_secs_f64() * 1e3,
            rate: self.config.rate,
            network: point.network,
            rounds,
            capped,
            baseline: name,
            rows,
        }
    }
}

fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}
