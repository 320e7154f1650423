//! The same load on server after server, so that what differs is the model.
//!
//! - Every server is a process of its own on one core (or on `threads` of them), the load on
//!   another. Where there is one core only, both share it, and the result says so.
//! - All servers of a table live through all rounds; the idle ones use no CPU, except `busy-poll`,
//!   which is stopped (SIGSTOP) while it is not its turn.
//! - Rounds are interleaved and their order rotates: drift of the machine falls on all models alike.
//!   Ratios are taken within a round and averaged over rounds.
//! - What counting disturbs is counted apart: system calls and memory are read in an untimed run
//!   before the rounds.
//! - A model that cannot hold the connections, or fails, says why; the others go on.

mod against;
mod bench;
mod contender;
pub(crate) mod environment;
#[cfg(test)]
pub(crate) mod fixture;
mod network;
mod point;
mod rank_sum;
#[cfg(test)]
mod schema;
mod server;
mod signed_rank;
mod slope;
mod statistics;
mod table;
mod verdict;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use against::{Change, Changes, Metric};
pub use contender::{Contender, External, NoServer};
pub use environment::Environment;
pub use network::Network;
pub use point::Point;
pub use slope::{Growth, Slope};
pub use statistics::{Ratio, Spread};
pub use table::{Measured, Percentile, Row, Standing, Table, Untimed};
pub use verdict::{MARGIN, Rounds, SIGNIFICANCE, Verdict};

use network::Namespaces;

use crate::load::LoadConfig;
use crate::serve::MAX_BYTES;
use crate::{DelayServer, Protocol, Stop};

const MAX_ROUNDS: usize = 100_000;

/// Less measured time for each model than this is a first look, however it is divided.
const FIRST_LOOK: Duration = Duration::from_secs(4);

/// What the JSON calls itself, and the version of its schema: see docs/report-schema.md.
const FORMAT: &str = "kapok-compare";
const VERSION: u32 = 1;

/// What to compare, and how long.
#[derive(Clone, Debug)]
pub struct CompareConfig {
    /// The `kapok` binary, whose `serve` is started for models.
    pub program: PathBuf,
    /// Version and commit of it, for the record.
    pub build: String,
    /// Versions of what it was built with, for the record.
    pub versions: Vec<String>,
    /// One table for each.
    pub protocols: Vec<Protocol>,
    /// The rows.
    pub contenders: Vec<Contender>,
    /// The name of the row that the others are relative to; `None`: tokio's, if it is there, and
    /// otherwise the first.
    pub baseline: Option<String>,
    /// One table for each.
    pub points: Vec<Point>,
    /// What is served by the protocol [`Files`](Protocol::Files): its `index.html` is asked for.
    pub directory: Option<PathBuf>,
    /// Body of the HTTP reply.
    pub body_bytes: usize,
    /// Requests outstanding on a connection.
    pub pipeline: usize,
    /// Requests per second over all connections, at fixed times and with latencies from then; `None`
    /// is saturation.
    pub rate: Option<f64>,
    /// Workers of each server.
    pub threads: usize,
    /// How often each model is measured. What decides, where they go on until enough is known, is the
    /// ratio of CPU time per request.
    pub rounds: Rounds,
    /// Traffic before each measured interval.
    pub warmup: Duration,
    /// Each measured interval.
    pub duration: Duration,
    /// No round is begun that would end later than this; what was measured until then is reported.
    pub time_limit: Option<Duration>,
    /// What is looked at beside the rounds.
    pub beside: Beside,
    /// Whether to count what a request costs, in a run of its own for each model.
    pub costs: bool,
    /// Ends the comparison early.
    pub stop: Option<Stop>,
}

/// What is looked at beside the timed rounds, and takes time of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// Nothing: rows have no [`Untimed`].
    Nothing,
    /// Memory and threads with all connections open, which takes one message on each.
    Memory,
    /// That, system calls per request, and what servers use while they are idle: about half a second
    /// for each model, and a second more for one that never waits.
    Everything,
}

impl CompareConfig {
    /// Fewer or shorter rounds than it takes to believe a difference.
    #[must_use]
    pub fn is_first_look(&self) -> bool {
        match self.rounds {
            Rounds::Fixed(rounds) => {
                rounds < signed_rank::FEWEST || self.duration * (rounds as u32) < FIRST_LOOK
            }
            Rounds::Until { .. } => false,
        }
    }

    /// The tables: each protocol at each point, and none twice.
    fn cells(&self) -> Vec<(Point, Protocol)> {
        let mut cells: Vec<(Point, Protocol)> = Vec::new();
        for &point in &self.points {
            for &protocol in &self.protocols {
                let is_same = |&(other, its): &(Point, Protocol)| {
                    // The size is that of messages, which echoes alone have.
                    let size_bytes = if protocol == Protocol::Echo {
                        other.size_bytes
                    } else {
                        point.size_bytes
                    };
                    its == protocol && Point { size_bytes, ..other } == point
                };
                if !cells.iter().any(is_same) {
                    cells.push((point, protocol));
                }
            }
        }
        cells
    }

    /// The size of the file that is asked for.
    fn index_bytes(&self) -> Option<u64> {
        let index = self.directory.as_ref()?.join("index.html");
        std::fs::metadata(index).ok().filter(|file| file.is_file()).map(|file| file.len())
    }

    /// Whether it can be measured at all: [`run`] begins with this, and whoever has something to do before
    /// it, such as to replace a file, can ask first.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`], saying what makes no sense.
    pub fn check(&self) -> io::Result<()> {
        for point in &self.points {
            // What the load would refuse is refused before a server is started for it.
            LoadConfig {
                connections: point.connections,
                active: point.active,
                size_bytes: point.size_bytes,
                pipeline: self.pipeline,
                rate: self.rate,
                churn: point.churn,
                warmup: self.warmup,
                duration: self.duration,
                ..LoadConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)), Protocol::Echo)
            }
            .check()?;
        }
        if let Some(baseline) = &self.baseline
            && !self.contenders.iter().any(|contender| contender.to_string() == *baseline)
        {
            let all: Vec<String> = self.contenders.iter().map(Contender::to_string).collect();
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("no row is called `{baseline}`, but {}", all.join(", ")),
            ));
        }
        if self.protocols.contains(&Protocol::Files) && self.index_bytes().is_none() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "files need a directory with an index.html",
            ));
        }
        let wrong = if self.contenders.is_empty() || self.protocols.is_empty() {
            "there is nothing to compare"
        } else if self.points.is_empty() {
            "there must be at least one number of connections"
        } else if self.rounds.cap() == 0 || self.duration.is_zero() {
            "there must be at least one round, longer than nothing"
        } else if self.rounds.cap() > MAX_ROUNDS {
            "more than 100,000 rounds"
        } else if self.threads == 0 {
            "a server needs at least one thread"
        } else if self.body_bytes > MAX_BYTES {
            "a body of more than 1 GiB"
        } else if self.protocols.contains(&Protocol::Files)
            && self.index_bytes().is_some_and(|bytes| bytes > MAX_BYTES as u64)
        {
            "an index.html of more than 1 GiB"
        } else {
            return Ok(());
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, wrong))
    }
}

/// What is being done now.
#[derive(Clone, Debug)]
pub struct Step {
    /// Runs that are done.
    pub done: usize,
    /// Runs in all.
    pub total: usize,
    /// What runs now.
    pub what: String,
    /// How the models of this table stand so far.
    pub standings: Vec<Standing>,
    /// The model that is being measured, by its place among the standings, and its requests per second
    /// up to now.
    pub running: Option<(usize, f64)>,
}

/// Everything that was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Comparison {
    /// `kapok-compare`.
    pub format: String,
    /// The version of the schema, which grows when a field changes its meaning or goes.
    pub version: u32,
    /// Too little to believe a difference by.
    pub first_look: bool,
    /// Where it was measured.
    pub environment: Environment,
    /// The cores of the servers.
    pub server_cores: Vec<usize>,
    /// The core of the load.
    pub load_cores: Vec<usize>,
    /// Workers of each server; `None` in results that are older than this field.
    #[serde(default)]
    pub workers: Option<usize>,
    /// What was the same for all.
    pub conditions: Vec<String>,
    /// Length of a measured interval in seconds.
    pub seconds: f64,
    /// How system calls were counted, or why not.
    pub syscalls_counted: String,
    /// Ended by a signal.
    pub stopped_early: bool,
    /// One for each protocol and number of connections.
    pub tables: Vec<Table>,
    /// What registered connections cost, where three tables or more differ in them only.
    #[serde(default)]
    pub slopes: Vec<Slope>,
}

impl Comparison {
    /// Whether this program knows what the fields mean.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.format == FORMAT && self.version == VERSION
    }
}

/// Compares. The calling thread is bound to the load's core until this returns.
///
/// # Errors
///
/// [`io::ErrorKind::InvalidInput`] for a configuration that makes no sense. What goes wrong with
/// single models is in their rows.
pub fn run(config: &CompareConfig, progress: &mut dyn FnMut(&Step)) -> io::Result<Comparison> {
    config.check()?;
    if config.points.iter().any(|point| point.network == Network::Veth) {
        // Whether it can be done is known before minutes of measuring.
        Namespaces::make()?;
    }
    let begun = Instant::now();
    let environment = Environment::look(&config.build, &config.versions);
    let (server_cores, load_cores) = share_out(&environment.cores, config.threads);
    let _bound = environment::Bound::to(&load_cores, &environment.cores)?;

    let mut tables = Vec::new();
    let mut counted = None;
    let cells = config.cells();
    let all = cells.len();
    let mut step = Step {
        done: 0,
        total: all * config.contenders.len() * (config.rounds.cap() + 1),
        what: String::new(),
        standings: Vec::new(),
        running: None,
    };
    for (point, protocol) in cells {
        let limit = config
            .time_limit
            .map(|limit| begun + limit.mul_f64((tables.len() + 1) as f64 / all as f64));
        let namespaces = match point.network {
            Network::Loopback => None,
            Network::Veth => Some(Namespaces::make()?),
        };
        let start_backend = || DelayServer::start(point.delay);
        let backend = match (&namespaces, point.delay.is_zero()) {
            (_, true) => None,
            (None, false) => Some(start_backend()?),
            (Some(namespaces), false) => Some(namespaces.beside_server(start_backend)?),
        };
        // The load runs on this thread and on those that it starts.
        let _inside = namespaces.as_ref().map(Namespaces::enter).transpose()?;
        let mut bench = bench::Bench {
            config,
            protocol,
            point,
            backend: backend.as_ref(),
            namespaces: namespaces.as_ref(),
            cores: &server_cores,
            step: &mut step,
            progress,
            counted: &mut counted,
            limit,
        };
        tables.push(bench.run()?);
    }
    Ok(Comparison {
        format: FORMAT.to_owned(),
        version: VERSION,
        first_look: config.is_first_look(),
        conditions: conditions(config, &server_cores, &load_cores),
        environment,
        server_cores,
        load_cores,
        workers: Some(config.threads),
        seconds: config.duration.as_secs_f64(),
        syscalls_counted: counted.unwrap_or_else(|| "nothing was counted".to_owned()),
        stopped_early: config.stop.as_ref().is_some_and(Stop::requested),
        slopes: Slope::over(&tables),
        tables,
    })
}

/// The servers' cores and the load's: the last for the load, as many as there are workers for the
/// servers.
fn share_out(cores: &[usize], threads: usize) -> (Vec<usize>, Vec<usize>) {
    match cores {
        [servers @ .., load] if !servers.is_empty() => {
            (servers[..servers.len().min(threads)].to_vec(), vec![*load])
        }
        one => (one.to_vec(), one.to_vec()),
    }
}

fn conditions(config: &CompareConfig, servers: &[usize], load: &[usize]) -> Vec<String> {
    let servers_have =
        format!("{} worker(s), 16 KiB read buffers, TCP_NODELAY, httparse", config.threads);
    let load_has = format!(
        "replies of {} bytes of body, {} outstanding per connection",
        config.body_bytes, config.pipeline
    );
    let models = config.contenders.iter().filter(|one| matches!(one, Contender::Model(_))).count();
    let mut conditions = vec![
        match (servers, load) {
            (servers, load) if servers == load => {
                "one core only: server and load share it and disturb each other".to_owned()
            }
            (servers, load) => {
                format!("each server a process on core {servers:?}, the load on core {load:?}")
            }
        },
        "loopback is not a network: the kernel's delivery to the peer is charged to whoever sends"
            .to_owned(),
        if models == config.contenders.len() {
            format!("the same for all: {servers_have}, {load_has}")
        } else {
            format!("the same for all: {load_has}")
        },
        "every byte of every reply was verified: an echo against what was sent, an HTTP reply by its \
         status, its length and the body of the first"
            .to_owned(),
        "memory: own pages and page tables a connection adds after one message; the kernel's \
         sockets and thread stacks are not in it"
            .to_owned(),
    ];
    if models > 0 && models < config.contenders.len() {
        // What is inside of others, nobody here knows.
        conditions.push(format!("the same for all models: {servers_have}"));
    }
    if config.cells().len() < config.points.len() * config.protocols.len() {
        conditions.push(
            "what would be measured twice is measured once; sizes of messages are for echoes alone"
                .to_owned(),
        );
    }
    if config.protocols.contains(&Protocol::Files) {
        conditions.push(
            "files come out of the page cache: they were read before, and nobody waits for a disk"
                .to_owned(),
        );
    }
    if config.points.iter().any(|point| point.network == Network::Veth) {
        conditions.push(
            "two namespaces joined by veth are no network either: packets pass two protocol stacks and two \
             devices, in segments of 1,500 bytes that offloading puts together, and never leave the kernel"
                .to_owned(),
        );
    }
    if servers.len() < config.threads {
        conditions.push(format!(
            "{} workers share {} core(s): this says nothing about scaling",
            config.threads,
            servers.len()
        ));
    }
    conditions.push(match config.rate {
        Some(rate) => format!(
            "{rate} requests/s at fixed times, whatever the server does; latency from the intended time"
        ),
        None => "saturation: every active connection always has its requests outstanding; latency from \
                 the moment of sending"
            .to_owned(),
    });
    conditions.push(match config.rounds {
        Rounds::Fixed(rounds) => format!("{rounds} interleaved rounds, the order changing"),
        Rounds::Until { half_width, least, cap } => format!(
            "interleaved rounds, the order changing, {least} to {cap} of them, until the 95 % interval \
             of the CPU ratio is ± {:.1} % and says something; a model that has got there rests",
            half_width * 100.0
        ),
    });
    conditions.push(format!(
        "told apart: by Wilcoxon's signed-rank test of the rounds' ratios at {:.0} %; indistinguishable: \
         not told apart, and the 95 % interval within ± {:.0} %; else unsettled",
        SIGNIFICANCE * 100.0,
        MARGIN * 100.0
    ));
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_servers_have_in_common_is_said_of_those_of_whom_it_is_known() {
        let mut config = fixture::config(vec![crate::Model::Tokio.into()]);
        let says = |config: &CompareConfig, what: &str| {
            conditions(config, &[0], &[1]).iter().filter(|it| it.starts_with(what)).count()
        };
        let inside = "1 worker(s), 16 KiB read buffers, TCP_NODELAY, httparse";
        let outside = "replies of 13 bytes of body, 1 outstanding per connection";
        assert_eq!(says(&config, &format!("the same for all: {inside}, {outside}")), 1);
        assert_eq!(says(&config, "files come out of the page cache"), 0);

        config.contenders.push(Contender::External("mine=./server {addr}".parse().unwrap()));
        config.protocols.push(Protocol::Files);
        assert_eq!(says(&config, &format!("the same for all: {outside}")), 1);
        assert_eq!(says(&config, &format!("the same for all models: {inside}")), 1);
        assert_eq!(says(&config, "files come out of the page cache"), 1);

        config.contenders.remove(0);
        assert_eq!(says(&config, &format!("the same for all: {outside}")), 1);
        assert_eq!(says(&config, "the same for all models"), 0);
    }

    #[test]
    fn no_table_is_made_twice() {
        let mut config = fixture::config(vec![crate::Model::Tokio.into()]);
        config.protocols = vec![Protocol::Echo, Protocol::Http, Protocol::Echo];
        let points = vec![Point::new(1), Point::new(64), Point::new(1)];
        config.points = Point::across(points, &[16, 4096], |point, bytes| point.size_bytes = bytes);
        let of = |protocol| -> Vec<(usize, usize)> {
            let cells = config.cells().into_iter().filter(|cell| cell.1 == protocol);
            cells.map(|(point, _)| (point.connections, point.size_bytes)).collect()
        };
        assert_eq!(of(Protocol::Echo), [(1, 16), (1, 4096), (64, 16), (64, 4096)]);
        // Its requests have no size.
        assert_eq!(of(Protocol::Http), [(1, 16), (64, 16)]);
        let says = |config: &CompareConfig| {
            conditions(config, &[0], &[1])
                .iter()
                .any(|it| it.starts_with("what would be measured twice"))
        };
        assert!(says(&config));
        config.protocols = vec![Protocol::Echo];
        config.points.truncate(4);
        assert!(!says(&config));
    }

    #[test]
    fn a_file_that_no_server_would_send_is_refused_before_one_starts() {
        let directory = std::env::temp_dir().join(format!("kapok-big-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let index = std::fs::File::create(directory.join("index.html")).unwrap();
        let mut config = fixture::config(vec![crate::Model::Tokio.into()]);
        config.protocols = vec![Protocol::Files];
        config.directory = Some(directory.clone());
        index.set_len(MAX_BYTES as u64).unwrap();
        let fits = config.check();
        index.set_len(MAX_BYTES as u64 + 1).unwrap();
        let refused = config.check();
        std::fs::remove_dir_all(directory).unwrap();
        fits.unwrap();
        assert!(refused.unwrap_err().to_string().contains("1 GiB"));
    }

    #[test]
    fn cores_are_shared_out_and_one_core_is_shared() {
        assert_eq!(share_out(&[0, 1], 1), (vec![0], vec![1]));
        assert_eq!(share_out(&[0, 1], 4), (vec![0], vec![1]));
        assert_eq!(share_out(&[0, 1, 2, 3], 2), (vec![0, 1], vec![3]));
        assert_eq!(share_out(&[5], 1), (vec![5], vec![5]));
    }
}
