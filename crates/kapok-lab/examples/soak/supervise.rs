//! One server and everything around it: the storms, the lulls, and what is read from `/proc`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use kapok_lab::Stop;

use crate::guests::{self, Findings, GUESTS, Ledger};
use crate::nuisance;
use crate::options::{Options, Subject};
use crate::random::Random;
use crate::server::Server;
use crate::verdict;

/// The head of the CSV file.
pub(crate) const COLUMNS: &str = "seconds,server,engine,lull,resident_bytes,page_table_bytes,\
                                  descriptors,threads,exchanges,connections,famines,findings";
/// Between two samples of a storm.
const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// How soon after a kill the descriptors must be those of a lull: the server closes what was reset
/// at once, and what it did not hear of when its patience is over.
const SETTLES_WITHIN: Duration = Duration::from_secs(20);
/// Descriptors that a server may come to need by itself: signals, threads for what blocks.
const SPARE_DESCRIPTORS: u64 = 6;
const STEP: Duration = Duration::from_millis(50);

/// What `/proc` says about a server.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    seconds: f64,
    resident_bytes: u64,
    page_table_bytes: u64,
    descriptors: u64,
    threads: u64,
}

/// Runs one server to the end.
pub(crate) struct Supervisor {
    number: u64,
    subject: Subject,
    options: Options,
    stop: Stop,
    began: Instant,
    state: Mutex<State>,
}

/// What can be asked while it runs.
#[derive(Default)]
struct State {
    lulls: Vec<Sample>,
    latest: Sample,
    exchanges: u64,
    connections: u64,
    longest: Duration,
    famines: u64,
    findings: Findings,
    complaints: Vec<String>,
}

impl Supervisor {
    pub(crate) fn new(
        number: u64,
        subject: Subject,
        options: &Options,
        stop: &Stop,
        began: Instant,
    ) -> Supervisor {
        let (options, stop) = (options.clone(), stop.clone());
        Supervisor { number, subject, options, stop, began, state: Mutex::default() }
    }

    /// Runs it for the time that is asked for. What goes wrong is a finding.
    pub(crate) fn run(&self, csv: Option<&Mutex<BufWriter<File>>>) {
        if let Err(error) = self.try_run(csv) {
            let mut state = self.state();
            state.findings.count += 1;
            state.findings.kept.push(error.to_string());
        }
    }

    fn try_run(&self, csv: Option<&Mutex<BufWriter<File>>>) -> io::Result<()> {
        let mut server = Server::start(&self.subject, self.options.descriptors)?;
        let alone = read(server.pid(), 0.0)?;
        let ledger = Ledger {
            server: format!("{} on {}", self.subject.speech.name(), self.subject.engine),
            addr: server.addr,
            patience: self.options.patience,
            rate: self.options.rate,
            began: self.began,
            done: AtomicBool::new(false),
            exchanges: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            longest_micros: AtomicU64::new(0),
            findings: Mutex::default(),
        };
        let outcome = thread::scope(|scope| {
            // The members of a chat room are one group, and one thread.
            let threads = if self.subject.speech.name() == "chat" { 1 } else { GUESTS as u64 };
            for thread in 0..threads {
                let random = Random::new(self.options.seed, self.number * 100 + thread);
                let (ledger, speech) = (&ledger, self.subject.speech);
                scope.spawn(move || guests::visit(ledger, speech, random));
            }
            let outcome = self.storms_and_lulls(&mut server, &ledger, alone, csv);
            ledger.done.store(true, Ordering::Relaxed);
            outcome
        });
        // A server that has ended by itself says why in its last words, not by its status alone.
        match server.end() {
            Some(status) if status.success() => {}
            status => ledger.found(&format!("the server's end: {status:?}")),
        }
        self.publish(&server, &ledger);
        let mut state = self.state();
        state.complaints = server.complaints();
        state.findings = ledger.findings.into_inner().unwrap_or_else(PoisonError::into_inner);
        outcome
    }

    fn storms_and_lulls(
        &self,
        server: &mut Server,
        ledger: &Ledger,
        alone: Sample,
        csv: Option<&Mutex<BufWriter<File>>>,
    ) -> io::Result<()> {
        let mut random = Random::new(self.options.seed, self.number * 100 + 99);
        let mut next_sample = SAMPLE_EVERY;
        let most = alone.descriptors + GUESTS as u64 + SPARE_DESCRIPTORS;
        while !self.is_over(ledger, server) {
            let storm = Killed(nuisance::start(
                self.subject.speech,
                server.addr,
                random.next(),
                self.options.rate,
                self.options.descriptors,
            )?);
            let storm_ends = Instant::now() + random.around(self.options.period);
            while Instant::now() < storm_ends && !self.is_over(ledger, server) {
                thread::sleep(STEP);
                if self.began.elapsed() >= next_sample {
                    next_sample += SAMPLE_EVERY;
                    self.sample(server, ledger, false, csv)?;
                }
            }
            drop(storm);
            let settles_until = Instant::now() + SETTLES_WITHIN;
            let mut lull = self.sample(server, ledger, false, None)?;
            while lull.descriptors > most && server.ended().is_none() {
                if Instant::now() > settles_until {
                    ledger.found(&format!(
                        "{} descriptors {SETTLES_WITHIN:?} after everybody else has gone; \
                         {} without any client, {GUESTS} clients are there",
                        lull.descriptors, alone.descriptors
                    ));
                    break;
                }
                thread::sleep(STEP);
                lull = self.sample(server, ledger, false, None)?;
            }
            self.sample(server, ledger, true, csv)?;
        }
        Ok(())
    }

    /// Whether there is no more to do; a server that has ended by itself is a finding.
    fn is_over(&self, ledger: &Ledger, server: &mut Server) -> bool {
        if let Some(status) = server.ended() {
            if !ledger.done.swap(true, Ordering::Relaxed) {
                ledger.found(&format!("the server ended by itself: {status}"));
            }
            return true;
        }
        self.stop.requested() || self.began.elapsed() >= self.options.duration
    }

    fn sample(
        &self,
        server: &Server,
        ledger: &Ledger,
        lull: bool,
        csv: Option<&Mutex<BufWriter<File>>>,
    ) -> io::Result<Sample> {
        let sample = read(server.pid(), self.began.elapsed().as_secs_f64())?;
        self.publish(server, ledger);
        let mut state = self.state();
        state.latest = sample;
        if lull {
            state.lulls.push(sample);
        }
        if let Some(csv) = csv {
            let mut csv = csv.lock().unwrap_or_else(PoisonError::into_inner);
            writeln!(
                csv,
                "{:.1},{},{},{},{},{},{},{},{},{},{},{}",
                sample.seconds,
                self.subject.speech.name(),
                self.subject.engine,
                u8::from(lull),
                sample.resident_bytes,
                sample.page_table_bytes,
                sample.descriptors,
                sample.threads,
                state.exchanges,
                state.connections,
                state.famines,
                state.findings.count,
            )?;
            csv.flush()?;
        }
        Ok(sample)
    }

    /// Copies what the ledger counts to where it can be asked for.
    fn publish(&self, server: &Server, ledger: &Ledger) {
        let mut state = self.state();
        state.exchanges = ledger.exchanges.load(Ordering::Relaxed);
        state.connections = ledger.connections.load(Ordering::Relaxed);
        state.longest = Duration::from_micros(ledger.longest_micros.load(Ordering::Relaxed));
        state.famines = server.famines();
        state.findings.count = ledger.findings.lock().unwrap_or_else(PoisonError::into_inner).count;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One line on how it goes.
    pub(crate) fn progress(&self) -> String {
        let state = self.state();
        let last = state.lulls.last().copied().unwrap_or_default();
        format!(
            "{:<4} {:<6} {:>8} exchanges over {:>6} connections, longest {:>5} ms; lull {:>3}: \
             {:>6} KiB, {:>3} descriptors, {:>2} threads; {} found",
            self.subject.speech.name(),
            self.subject.engine,
            state.exchanges,
            state.connections,
            state.longest.as_millis(),
            state.lulls.len(),
            (last.resident_bytes + last.page_table_bytes) / 1024,
            last.descriptors,
            last.threads,
            state.findings.count,
        )
    }

    /// The verdict, in lines, and whether it is a good one.
    pub(crate) fn report(self) -> (String, bool) {
        let mut lines = format!("{}\n", self.progress());
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut good = state.findings.count == 0;
        for finding in &state.findings.kept {
            lines += &format!("  FOUND {finding}\n");
        }
        let from = verdict::warm_up(self.options.duration).as_secs_f64();
        let lulls: Vec<&Sample> = state.lulls.iter().filter(|lull| lull.seconds >= from).collect();
        type Value = fn(&Sample) -> f64;
        let judged: [(&str, Value, f64); 3] = [
            (
                "bytes of memory",
                |lull| (lull.resident_bytes + lull.page_table_bytes) as f64,
                verdict::MEMORY_BOUND_BYTES,
            ),
            (
                "descriptors",
                |lull| lull.descriptors as f64,
                verdict::descriptors_bound(lulls.len(), GUESTS),
            ),
            ("threads", |lull| lull.threads as f64, verdict::THREADS_BOUND),
        ];
        for (what, value, bound) in judged {
            let samples: Vec<_> = lulls.iter().map(|lull| (lull.seconds, value(lull))).collect();
            match verdict::growth(&samples) {
                Some(growth) if growth > bound => {
                    good = false;
                    lines += &format!("  FOUND {what} grew by {growth:.1}, more than {bound:.1}\n");
                }
                Some(growth) => lines += &format!("  {what}: {growth:+.1}, at most {bound:.1}\n"),
                None => lines += &format!("  {what}: too few lulls to judge\n"),
            }
        }
        lines += &format!("  out of descriptors {} times\n", state.famines);
        for complaint in &state.complaints {
            lines += &format!("  it said: {complaint}\n");
        }
        (lines, good)
    }
}

/// A process that is killed when it is no longer wanted.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn read(pid: u32, seconds: f64) -> io::Result<Sample> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|number| number.parse::<u64>().ok())
            .ok_or_else(|| io::Error::other(format!("/proc/{pid}/status has no {name}")))
    };
    Ok(Sample {
        seconds,
        resident_bytes: field("VmRSS:")? * 1024,
        page_table_bytes: field("VmPTE:")? * 1024,
        descriptors: std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64,
        threads: field("Threads:")?,
    })
}
