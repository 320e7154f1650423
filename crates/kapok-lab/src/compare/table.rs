//! What was measured: a table for each protocol and point, a row for each model.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::Network;
use super::statistics::{Ratio, Spread};
use crate::load::LoadReport;

/// One protocol and number of connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Table {
    /// `echo` or `http`.
    pub protocol: String,
    /// Connections.
    pub connections: usize,
    /// Connections that carry traffic.
    pub active: usize,
    /// Bytes of an echo message or of an HTTP body.
    pub bytes: usize,
    /// Requests outstanding on a connection.
    pub pipeline: usize,
    /// A connection was closed after so many requests.
    pub churn: Option<u64>,
    /// CPU time in microseconds that servers burnt for each request.
    pub cpu_us: f64,
    /// Milliseconds that each request waited for another server.
    pub delay_ms: f64,
    /// Requests per second at fixed times; `None` is saturation.
    pub rate: Option<f64>,
    /// What was between the load and the server.
    #[serde(default)]
    pub network: Network,
    /// Rounds that were measured.
    pub rounds: usize,
    /// The rounds ended at their cap, or at the time limit, before every ratio was known well enough.
    pub capped: bool,
    /// The model that the ratios are relative to.
    pub baseline: Option<String>,
    /// One for each model.
    pub rows: Vec<Row>,
}

/// One model.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
    /// Replies on the slowest connection, relative to the mean over all.
    pub slowest_share: Option<Spread>,
    /// The server's CPU time per request in microseconds, user and system.
    pub cpu_us_per_request: Option<Spread>,
    /// The part of it in the kernel, from 0 to 1.
    pub system_share: Option<f64>,
    /// `cpu_us_per_request` relative to the baseline's in the same round.
    pub cpu_ratio: Option<Ratio>,
    /// `requests_per_second` relative to the baseline's in the same round.
    pub rate_ratio: Option<Ratio>,
    /// `p99_us` relative to the baseline's in the same round.
    pub p99_ratio: Option<Ratio>,
    /// Context switches per request: the server waited.
    pub voluntary_switches: Option<Spread>,
    /// Context switches per request: the server was taken off its core.
    pub involuntary_switches: Option<Spread>,
    /// The server's use of its cores while under load, in cores.
    pub server_cores_used: Option<Spread>,
    /// What was read in the untimed run.
    pub untimed: Option<Untimed>,
    /// What a request costs, if it was asked for.
    #[cfg(target_os = "linux")]
    pub costs: Option<crate::costs::Costs>,
    /// The server's use of a core while nothing is asked of it, from 0 to 1: of the time that the core had,
    /// without what the host of a virtual machine kept from it.
    pub idle_cpu_share: Option<f64>,
    /// The load generator's use of its core, from 0 to 1, and that of the server that requests wait for, which
    /// has the same one: what is left is its headroom.
    pub generator_cpu_share: Option<Spread>,
    /// The load generator was what limited, in half of the rounds or more.
    pub generator_limited: bool,
    /// The share of the interval for which other work kept the load from its core.
    pub load_waited_share: Option<Spread>,
    /// Latencies of all rounds together.
    pub percentiles: Vec<Percentile>,
    /// Rounds that are missing because no reply came in the whole interval: the machine stood still.
    pub dropped_rounds: usize,
    /// The rounds.
    pub measured: Vec<Measured>,
    /// Latencies of all rounds together, in nanoseconds. Not in the JSON.
    #[serde(skip)]
    pub latencies: Option<Histogram<u64>>,
}

/// A point of a distribution of latencies.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Percentile {
    /// From 0 to 100.
    pub percentile: f64,
    /// So many microseconds or less.
    pub us: f64,
}

/// How a model stands while rounds are still measured.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The model.
    pub model: String,
    /// Rounds that it was measured in.
    pub rounds: usize,
    /// Requests per second, the median so far.
    pub requests_per_second: Option<f64>,
    /// The 99th percentile of the latency in microseconds, the median so far.
    pub p99_us: Option<f64>,
    /// CPU time per request relative to the baseline's, so far.
    pub cpu_ratio: Option<Ratio>,
    /// It could not be measured, or not to the end.
    pub failed: bool,
}

impl Table {
    /// The row that the others are relative to.
    #[must_use]
    pub fn baseline_row(&self) -> Option<&Row> {
        self.rows.iter().find(|row| Some(&row.model) == self.baseline.as_ref())
    }

    /// Why there was nothing more, or nothing at all, to be relative to before the end: the baseline failed.
    /// From then on the others were measured for the least number of rounds only.
    #[must_use]
    pub fn baseline_trouble(&self) -> Option<&str> {
        self.baseline_row()?.trouble.as_deref()
    }

    /// Whether most models spend so much of their time in the kernel that what is measured is loopback: 90 %
    /// of it, in more than half of them.
    #[must_use]
    pub fn is_loopback_limited(&self) -> bool {
        let kernel = |row: &&Row| row.system_share.is_some_and(|share| share >= 0.9);
        self.rows.iter().filter(kernel).count() * 2 > self.rows.len()
    }

    /// The protocol and the point, in words.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text =
            format!("{} · {} bytes · {} connections", self.protocol, self.bytes, self.connections);
        if self.active != self.connections {
            text += &format!(", {} active", self.active);
        }
        if self.pipeline > 1 {
            text += &format!(" · {} outstanding", self.pipeline);
        }
        if let Some(churn) = self.churn {
            text += &format!(" · {churn} requests a connection");
        }
        if self.cpu_us > 0.0 {
            text += &format!(" · {} µs of CPU a request", self.cpu_us);
        }
        if self.delay_ms > 0.0 {
            text += &format!(" · {} ms at a backend", self.delay_ms);
        }
        if let Some(rate) = self.rate {
            text += &format!(" · {rate} requests/s");
        }
        if self.network == Network::Veth {
            text += " · between two namespaces";
        }
        text
    }

    /// Whether the other was measured under the same protocol and point.
    #[must_use]
    pub fn is_like(&self, other: &Table) -> bool {
        self.describe() == other.describe()
    }
}

impl Row {
    /// What `pick` takes from a round, relative to the baseline's, for the rounds that both were
    /// measured in.
    #[must_use]
    pub fn paired(&self, baseline: Option<&Row>, pick: fn(&Measured) -> f64) -> Vec<f64> {
        baseline.map_or_else(Vec::new, |baseline| paired(&self.measured, &baseline.measured, pick))
    }
}

/// What counting disturbs, counted apart from the rounds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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

/// What `pick` takes, relative to the baseline's, for the rounds that both were measured in.
pub(super) fn paired(
    measured: &[Measured],
    baseline: &[Measured],
    pick: fn(&Measured) -> f64,
) -> Vec<f64> {
    measured
        .iter()
        .filter_map(|ours| {
            let theirs = baseline.iter().find(|theirs| theirs.round == ours.round)?;
            Some(pick(ours) / pick(theirs))
        })
        .collect()
}
