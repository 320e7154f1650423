//! What is measured: loads, and the servers under them.

use std::path::Path;
use std::time::Duration;

use kapok_lab::Protocol;
use kapok_lab::compare::{Beside, CompareConfig, Contender, External, Point, Rounds};

/// The row that the others are relative to.
pub(crate) const BASELINE: &str = "tokio";

/// Every server, in the order of the table's rows.
pub(crate) const SERVERS: &[&str] = &[
    "fiber-uring",
    "fiber-epoll",
    "fiber-uring-pooled",
    "fiber-epoll-pooled",
    "uring",
    "epoll",
    "mio",
    "tokio",
    "monoio",
    "compio",
    "glommio",
    "may",
];

/// Other ways for the loop by hand, measured where they are named.
pub(crate) const VARIANTS: &[&str] =
    &["uring-bundles", "uring-once", "uring-own", "uring-sends", "uring-table"];

/// One column of the table.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) protocol: Protocol,
    pub(crate) connections: usize,
    pub(crate) size_bytes: usize,
    pub(crate) pipeline: usize,
    pub(crate) churn: Option<u64>,
    /// Not one of those over which the mean of its protocol goes.
    pub(crate) apart: bool,
}

const fn echo(name: &'static str, connections: usize) -> Case {
    Case {
        name,
        protocol: Protocol::Echo,
        connections,
        size_bytes: 64,
        pipeline: 1,
        churn: None,
        apart: false,
    }
}

const fn http(name: &'static str, connections: usize) -> Case {
    Case { protocol: Protocol::Http, ..echo(name, connections) }
}

pub(crate) const CASES: &[Case] = &[
    echo("echo 1", 1),
    echo("echo 64", 64),
    echo("echo 1k", 1_000),
    echo("echo 10k", 10_000),
    Case { size_bytes: 16 * 1024, ..echo("16 KiB 64", 64) },
    Case { pipeline: 16, ..echo("64 by 16", 64) },
    http("http 64", 64),
    http("http 500", 500),
    Case { pipeline: 16, ..http("http by 16", 64) },
    Case { churn: Some(10), apart: true, ..echo("churn", 64) },
    Case { size_bytes: 1 << 20, apart: true, ..echo("1 MiB", 8) },
    Case { size_bytes: 16 << 20, apart: true, ..echo("16 MiB", 2) },
];

/// How long, how often, and with what.
pub(crate) struct Effort {
    pub(crate) rounds: usize,
    pub(crate) duration: Duration,
    pub(crate) threads: usize,
    pub(crate) buffer_bytes: usize,
}

impl Case {
    /// This load on the named servers, which `program` serves.
    pub(crate) fn config(
        &self,
        program: &Path,
        servers: &[String],
        effort: &Effort,
    ) -> CompareConfig {
        let contender = |name: &String| {
            let arguments = format!(
                "{name} --addr {{addr}} --protocol {{protocol}} --body {{body}} \
                 --threads {{threads}} --buffer {}",
                effort.buffer_bytes
            );
            Contender::External(External {
                name: name.clone(),
                program: program.to_owned(),
                arguments: arguments.split_whitespace().map(str::to_owned).collect(),
            })
        };
        CompareConfig {
            program: program.to_owned(),
            build: format!("kapok {}", env!("CARGO_PKG_VERSION")),
            versions: Vec::new(),
            protocols: vec![self.protocol],
            contenders: servers.iter().map(contender).collect(),
            baseline: Some(BASELINE.to_owned()),
            points: vec![Point {
                size_bytes: self.size_bytes,
                churn: self.churn,
                ..Point::new(self.connections)
            }],
            directory: None,
            body_bytes: 13,
            pipeline: self.pipeline,
            rate: None,
            threads: effort.threads,
            rounds: Rounds::Fixed(effort.rounds),
            warmup: Duration::from_millis(200),
            duration: effort.duration,
            time_limit: None,
            beside: Beside::Everything,
            costs: false,
            stop: None,
        }
    }
}
