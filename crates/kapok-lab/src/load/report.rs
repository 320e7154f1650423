//! What a run found.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::slices::{Slice, Slices};

/// Above this share of its core the load generator is what limits the throughput.
const LIMITING_CPU_SHARE: f64 = 0.9;

/// How many faults are described in full.
const EXAMPLES: usize = 5;

/// The result of one run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LoadReport {
    /// The server.
    pub addr: String,
    /// `echo` or `http`.
    pub protocol: String,
    /// Connections that were asked for.
    pub connections: usize,
    /// Connections that carried traffic.
    pub active: usize,
    /// Connections that were served once before the measured interval.
    pub served: usize,
    /// Requests kept outstanding on an active connection.
    pub pipeline: usize,
    /// Requests per second asked for; `None` for the closed loop.
    pub rate: Option<f64>,
    /// Length of the measured interval in seconds.
    pub seconds: f64,
    /// Replies that were verified in the measured interval.
    pub requests: u64,
    /// `requests` over `seconds`.
    pub requests_per_second: f64,
    /// Replies on the slowest active connection, relative to the mean over all of them: 1 is
    /// perfectly fair, 0 is a connection that had none.
    pub slowest_share: f64,
    /// Bytes received in the measured interval.
    pub bytes_received: u64,
    /// Bytes sent in the measured interval.
    pub bytes_sent: u64,
    /// Faults by kind, over the whole run.
    pub errors: Errors,
    /// Replies over the whole run that had another body than the first one, of the same length, where
    /// nobody has said that bodies do not change: no errors. 0 in results that are older than this field.
    #[serde(default)]
    pub other_bodies: u64,
    /// Latency of the requests that were issued (fixed rate: intended) within the measured interval.
    pub latency: Latency,
    /// Connections that were opened again, by `churn` or after a fault.
    pub reopened: u64,
    /// Fixed rate only: requests that were due and not sent.
    pub backlog: Option<Backlog>,
    /// The load generator's own CPU time over the measured interval, as a share of its threads'
    /// cores. In a comparison the server that requests wait for is in it, which has the same core.
    pub cpu_share: f64,
    /// The share of the interval in which the generator was ready and its cores ran something else, that
    /// server left out: what else this machine does is in the latencies by as much.
    pub waited_share: f64,
    /// The load generator's own CPU time per verified reply, in microseconds.
    pub cpu_us_per_request: f64,
    /// The load generator used 90 % of its cores or more: it is what limits, not the server.
    pub generator_limited: bool,
    /// The run was stopped before its time.
    pub stopped_early: bool,
    /// The measured interval in slices of a tenth of a second, or of a hundredth of the interval.
    pub series: Vec<Slice>,
    /// The latencies that the percentiles are of. Not in the JSON: see [`Slices::write_log`].
    #[serde(skip)]
    pub slices: Slices,
}

impl LoadReport {
    /// Counts in what a thread used of the generator's core that belongs to the load as well. The generator
    /// waited for it, and not for something else that this machine does.
    pub(crate) fn count_in(&mut self, cpu: Duration) {
        if self.seconds > 0.0 {
            let share = cpu.as_secs_f64() / self.seconds;
            self.cpu_share += share;
            self.waited_share = (self.waited_share - share).max(0.0);
            self.generator_limited = self.cpu_share >= LIMITING_CPU_SHARE;
        }
    }
}

/// Faults by kind.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Errors {
    /// Connections that could not be opened.
    pub connect: u64,
    /// Connections that failed or ended while replies were due, or before they should.
    pub read: u64,
    /// Connections that failed while requests were being written.
    pub write: u64,
    /// Requests without their reply in time.
    pub timeout: u64,
    /// Replies that were wrong, incomplete or too many.
    pub verify: u64,
    /// The first few faults in words.
    pub examples: Vec<String>,
}

/// Which counter a fault belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorKind {
    Connect,
    Read,
    Write,
    Timeout,
    Verify,
}

impl Errors {
    /// All kinds together.
    pub fn total(&self) -> u64 {
        self.connect + self.read + self.write + self.timeout + self.verify
    }

    pub(super) fn count(&mut self, kind: ErrorKind, what: impl FnOnce() -> String) {
        let (counter, name) = match kind {
            ErrorKind::Connect => (&mut self.connect, "connect"),
            ErrorKind::Read => (&mut self.read, "read"),
            ErrorKind::Write => (&mut self.write, "write"),
            ErrorKind::Timeout => (&mut self.timeout, "timeout"),
            ErrorKind::Verify => (&mut self.verify, "verify"),
        };
        *counter += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(format!("{name}: {}", what()));
        }
    }

    pub(super) fn add(&mut self, other: Errors) {
        self.connect += other.connect;
        self.read += other.read;
        self.write += other.write;
        self.timeout += other.timeout;
        self.verify += other.verify;
        self.examples.extend(other.examples);
        self.examples.truncate(EXAMPLES);
    }
}

/// Requests that the schedule had due before they could be sent, because their connection still
/// awaited earlier replies.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Backlog {
    /// The most that were due and not sent at any time.
    pub most: u64,
    /// How many were never sent. They are missing from the latencies, which are too good by them.
    pub unsent: u64,
}

/// Latency percentiles in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Latency {
    /// Requests that were measured.
    pub count: u64,
    /// Their mean.
    pub mean_us: f64,
    /// The median.
    pub p50_us: f64,
    /// The 90th percentile.
    pub p90_us: f64,
    /// The 99th percentile.
    pub p99_us: f64,
    /// The 99.9th percentile.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
}

impl Latency {
    pub(crate) fn of(nanoseconds: &Histogram<u64>) -> Latency {
        let at = |quantile| nanoseconds.value_at_quantile(quantile) as f64 / 1e3;
        Latency {
            count: nanoseconds.len(),
            mean_us: nanoseconds.mean() / 1e3,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: nanoseconds.max() as f64 / 1e3,
        }
    }
}

/// What one thread of the generator counted.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) requests: u64,
    /// Replies on the connection that had the fewest.
    pub(super) least: u64,
    pub(super) bytes_received: u64,
    pub(super) bytes_sent: u64,
    pub(super) errors: Errors,
    pub(super) other_bodies: u64,
    pub(super) slices: Slices,
    pub(super) reopened: u64,
    pub(super) served: usize,
    pub(super) backlog: Backlog,
    pub(super) cpu: Duration,
    pub(super) waited: Duration,
    pub(super) measured: Duration,
    pub(super) stopped_early: bool,
}

impl Tally {
    pub(super) fn new(duration: Duration) -> Tally {
        Tally {
            requests: 0,
            least: 0,
            bytes_received: 0,
            bytes_sent: 0,
            errors: Errors::default(),
            other_bodies: 0,
            slices: Slices::new(duration),
            reopened: 0,
            served: 0,
            backlog: Backlog::default(),
            cpu: Duration::ZERO,
            waited: Duration::ZERO,
            measured: Duration::ZERO,
            stopped_early: false,
        }
    }

    /// Takes in what another thread counted over the same interval.
    pub(super) fn merge(&mut self, other: Tally) {
        self.requests += other.requests;
        self.least = self.least.min(other.least);
        self.bytes_received += other.bytes_received;
        self.bytes_sent += other.bytes_sent;
        self.errors.add(other.errors);
        self.other_bodies += other.other_bodies;
        self.slices.merge(&other.slices);
        self.reopened += other.reopened;
        self.served += other.served;
        self.backlog.most += other.backlog.most;
        self.backlog.unsent += other.backlog.unsent;
        self.cpu += other.cpu;
        self.waited += other.waited;
        self.measured = self.measured.max(other.measured);
        self.stopped_early |= other.stopped_early;
    }

    pub(super) fn report(self, config: &super::LoadConfig) -> LoadReport {
        let seconds = self.measured.as_secs_f64();
        let per_second = |count: f64| if seconds > 0.0 { count / seconds } else { 0.0 };
        let cpu_share = per_second(self.cpu.as_secs_f64()) / config.threads as f64;
        LoadReport {
            addr: config.addr.to_string(),
            protocol: config.protocol.to_string(),
            connections: config.connections,
            active: config.active.unwrap_or(config.connections),
            served: self.served,
            pipeline: config.pipeline,
            rate: config.rate,
            seconds,
            requests: self.requests,
            requests_per_second: per_second(self.requests as f64),
            slowest_share: self.least as f64 * config.active.unwrap_or(config.connections) as f64
                / self.requests.max(1) as f64,
            bytes_received: self.bytes_received,
            bytes_sent: self.bytes_sent,
            errors: self.errors,
            other_bodies: self.other_bodies,
            latency: Latency::of(&self.slices.all()),
            reopened: self.reopened,
            backlog: config.rate.map(|_| self.backlog),
            cpu_share,
            waited_share: per_second(self.waited.as_secs_f64()) / config.threads as f64,
            cpu_us_per_request: self.cpu.as_secs_f64() * 1e6 / self.requests.max(1) as f64,
            generator_limited: cpu_share >= LIMITING_CPU_SHARE,
            stopped_early: self.stopped_early,
            series: self.slices.series(seconds),
            slices: self.slices,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::LoadConfig;
    use super::*;
    use crate::Protocol;

    #[test]
    fn percentiles_of_known_latencies() {
        let mut slices = Slices::new(Duration::from_secs(1));
        for microseconds in 1..=1000_u64 {
            slices.record(microseconds * 1000);
        }
        let latency = Latency::of(&slices.all());
        let close = |got: f64, expected: f64| (got / expected - 1.0).abs() < 0.002;
        assert_eq!(latency.count, 1000);
        assert!(close(latency.mean_us, 500.5), "{latency:?}");
        assert!(close(latency.p50_us, 500.0), "{latency:?}");
        assert!(close(latency.p90_us, 900.0), "{latency:?}");
        assert!(close(latency.p99_us, 990.0), "{latency:?}");
        assert!(close(latency.p999_us, 999.0), "{latency:?}");
        assert!(close(latency.max_us, 1000.0), "{latency:?}");
    }

    #[test]
    fn who_shares_the_core_fills_it_and_is_not_what_else_the_machine_does() {
        let config = LoadConfig::new(([127, 0, 0, 1], 9).into(), Protocol::Echo);
        let mut tally = Tally::new(config.duration);
        tally.measured = Duration::from_secs(2);
        tally.cpu = Duration::from_secs(1);
        tally.waited = Duration::from_secs(1);
        let mut report = tally.report(&config);
        let shares =
            |report: &LoadReport| (report.cpu_share, report.waited_share, report.generator_limited);
        assert_eq!(shares(&report), (0.5, 0.5, false));
        report.count_in(Duration::from_millis(500));
        assert_eq!(shares(&report), (0.75, 0.25, false));
        report.count_in(Duration::from_millis(500));
        assert_eq!(shares(&report), (1.0, 0.0, true));
    }

    #[test]
    fn only_the_first_faults_are_described_and_all_are_counted() {
        let mut errors = Errors::default();
        for index in 0..20 {
            errors.count(ErrorKind::Verify, || format!("fault {index}"));
        }
        errors.count(ErrorKind::Read, || "never described".into());
        assert_eq!((errors.verify, errors.read, errors.total()), (20, 1, 21));
        assert_eq!(errors.examples.len(), EXAMPLES);
        assert_eq!(errors.examples[0], "verify: fault 0");
    }
}
