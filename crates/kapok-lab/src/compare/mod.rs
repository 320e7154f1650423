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

mod environment;
mod server;
mod statistics;
mod table;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

pub use environment::Environment;
pub use statistics::{Ratio, Spread};
pub use table::{Measured, Row, Table, Untimed};

use crate::load::LoadConfig;
use crate::serve::MAX_BYTES;
use crate::{Model, Protocol, Stop};

const MAX_ROUNDS: usize = 100_000;

/// What to compare, and how long.
#[derive(Clone, Debug)]
pub struct CompareConfig {
    /// The `kapok` binary, whose `serve` is started.
    pub program: PathBuf,
    /// Version and commit of it, for the record.
    pub build: String,
    /// One table for each.
    pub protocols: Vec<Protocol>,
    /// The rows.
    pub models: Vec<Model>,
    /// One table for each number of connections.
    pub connections: Vec<usize>,
    /// How many of them carry traffic (`None`: all).
    pub active: Option<usize>,
    /// Bytes of an echo message.
    pub size_bytes: usize,
    /// Body of the HTTP reply.
    pub body_bytes: usize,
    /// Requests outstanding on a connection.
    pub pipeline: usize,
    /// Close a connection after so many requests.
    pub churn: Option<u64>,
    /// CPU time that servers burn for each request.
    pub cpu_per_request: Duration,
    /// Workers of each server.
    pub threads: usize,
    /// How often each model is measured.
    pub rounds: usize,
    /// Traffic before each measured interval.
    pub warmup: Duration,
    /// Each measured interval.
    pub duration: Duration,
    /// No round is begun that would end later than this; what was measured until then is reported.
    pub time_limit: Option<Duration>,
    /// Ends the comparison early.
    pub stop: Option<Stop>,
}

impl CompareConfig {
    /// Fewer or shorter rounds than it takes to believe a difference.
    #[must_use]
    pub fn is_first_look(&self) -> bool {
        self.rounds < 5 || self.duration < Duration::from_secs(2)
    }

    fn check(&self) -> io::Result<()> {
        if let Some(&connections) = self.connections.first() {
            // What the load would refuse is refused before a server is started for it.
            LoadConfig {
                connections,
                active: self.active,
                size_bytes: self.size_bytes,
                pipeline: self.pipeline,
                churn: self.churn,
                warmup: self.warmup,
                duration: self.duration,
                ..LoadConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)), Protocol::Echo)
            }
            .check()?;
        }
        let wrong = if self.models.is_empty() || self.protocols.is_empty() {
            "there is nothing to compare"
        } else if self.connections.is_empty() || self.connections.contains(&0) {
            "there must be at least one connection"
        } else if self.rounds == 0 || self.duration.is_zero() {
            "there must be at least one round, longer than nothing"
        } else if self.rounds > MAX_ROUNDS {
            "more than 100,000 rounds"
        } else if self.threads == 0 {
            "a server needs at least one thread"
        } else if self.body_bytes > MAX_BYTES {
            "a body of more than 1 GiB"
        } else if self
            .active
            .is_some_and(|active| active == 0 || self.connections.iter().any(|&all| all < active))
        {
            "active connections must be at least one and no more than there are connections"
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
}

/// Everything that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Too little to believe a difference by.
    pub first_look: bool,
    /// Where it was measured.
    pub environment: Environment,
    /// The cores of the servers.
    pub server_cores: Vec<usize>,
    /// The core of the load.
    pub load_cores: Vec<usize>,
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
}

/// Compares. The calling thread is bound to the load's core from then on.
///
/// # Errors
///
/// [`io::ErrorKind::InvalidInput`] for a configuration that makes no sense. What goes wrong with
/// single models is in their rows.
pub fn run(config: &CompareConfig, progress: &mut dyn FnMut(&Step)) -> io::Result<Comparison> {
    config.check()?;
    let begun = Instant::now();
    let environment = Environment::look(&config.build);
    let (server_cores, load_cores) = share_out(&environment.cores, config.threads);
    if !load_cores.is_empty() {
        environment::pin(&load_cores)?;
    }

    let mut tables = Vec::new();
    let mut counted = None;
    let all = config.protocols.len() * config.connections.len();
    let mut step = Step {
        done: 0,
        total: all * config.models.len() * (config.rounds + 1),
        what: String::new(),
    };
    for &connections in &config.connections {
        for &protocol in &config.protocols {
            let limit = config
                .time_limit
                .map(|limit| begun + limit.mul_f64((tables.len() + 1) as f64 / all as f64));
            let mut bench = table::Bench {
                config,
                protocol,
                connections,
                cores: &server_cores,
                step: &mut step,
                progress,
                counted: &mut counted,
                limit,
            };
            tables.push(bench.run()?);
        }
    }
    Ok(Comparison {
        first_look: config.is_first_look(),
        conditions: conditions(config, &server_cores, &load_cores),
        environment,
        server_cores,
        load_cores,
        seconds: config.duration.as_secs_f64(),
        syscalls_counted: counted.unwrap_or_else(|| "nothing was counted".to_owned()),
        stopped_early: config.stop.as_ref().is_some_and(Stop::requested),
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
        format!(
            "the same for all: {} worker(s), 16 KiB read buffers, TCP_NODELAY, httparse, replies of \
             {} bytes of body, {} outstanding per connection",
            config.threads, config.body_bytes, config.pipeline
        ),
        "every byte of every echo and every reply's status and length were verified".to_owned(),
        "memory: own pages and page tables a connection adds after one message; the kernel's \
         sockets and thread stacks are not in it"
            .to_owned(),
    ];
    if servers.len() < config.threads {
        conditions.push(format!(
            "{} workers share {} core(s): this says nothing about scaling",
            config.threads,
            servers.len()
        ));
    }
    if !config.cpu_per_request.is_zero() {
        conditions.push(format!("each request burns {:?} of CPU", config.cpu_per_request));
    }
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_shared_out_and_one_core_is_shared() {
        assert_eq!(share_out(&[0, 1], 1), (vec![0], vec![1]));
        assert_eq!(share_out(&[0, 1], 4), (vec![0], vec![1]));
        assert_eq!(share_out(&[0, 1, 2, 3], 2), (vec![0, 1], vec![3]));
        assert_eq!(share_out(&[5], 1), (vec![5], vec![5]));
    }
}
