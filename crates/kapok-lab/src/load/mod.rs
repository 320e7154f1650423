//! The load generator: verified requests over many connections, and honest latencies.
//!
//! One thread drives all its connections over [`mio`]; more threads share the connections out.
//!
//! - **Closed loop** (`rate: None`): every active connection keeps [`LoadConfig::pipeline`] requests
//!   outstanding. Latency is from the moment a request was issued to its last verified byte.
//! - **Fixed rate**: request *k* is due at `k / rate`, whatever the server does, and its latency is
//!   measured from then (as wrk2 does), so that a server that stalls cannot hide the requests that
//!   would have come meanwhile. What is due and not yet sent is reported as the backlog.
//!
//! Nothing is believed: every byte of every echo is compared with what was sent, every HTTP reply has its
//! status and length checked and every byte of its body compared with the first reply's, and a reply that
//! nobody asked for is an error.
//!
//! Where one machine is not load enough, several generators make one load ([`run_part`]), and
//! [`join`] puts together what they found, without trusting their clocks.
//!
//! Invariants:
//! - the steady state allocates nothing, and makes one `read` and one `write` per batch of replies;
//! - every connection is served once, and verified, before any time is measured;
//! - the window that is measured starts and ends at exact calls of the progress callback
//!   ([`Phase`]), so that a caller can read meters of the server over the same interval.

mod body;
mod connection;
#[cfg(fuzzing)]
pub mod fuzzing;
mod generator;
mod join;
mod limits;
mod member;
mod merge;
mod part;
mod phases;
mod report;
mod schedule;
mod slices;
mod traffic;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

pub(crate) use generator::poll_until;
pub use join::{Gathering, JoinConfig, Joined, join};
pub use limits::raise_descriptor_limit;
pub use part::run_part;
pub use report::{Backlog, Errors, Latency, LoadReport};
pub use slices::{Slice, Slices};

use crate::{Protocol, Stop};

/// Requests per second. A clock that counts nanoseconds in 64 bits has no place for slower ones,
/// and to find faster ones due would itself take longer than they are apart.
const MIN_RATE: f64 = 0.001;
const MAX_RATE: f64 = 10_000_000.0;

/// Threads of the generator: a core's worth of load each.
const MAX_THREADS: usize = 1024;

/// A year.
const MAX_TIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What to send, to whom, over how many connections, for how long.
#[derive(Clone, Debug)]
pub struct LoadConfig {
    /// The server.
    pub addr: SocketAddr,
    /// What it speaks.
    pub protocol: Protocol,
    /// Connections to open.
    pub connections: usize,
    /// How many of them carry traffic (`None`: all). The others stay open after one verified
    /// message each.
    pub active: Option<usize>,
    /// Bytes of an echo message.
    pub size_bytes: usize,
    /// The body length that every HTTP reply must have; then a body that is not the first reply's is an
    /// error. `None` takes the length from the first reply, and bodies that differ are counted
    /// ([`LoadReport::other_bodies`]), unless the first is that of Kapok's own servers, which have no other.
    pub body_bytes: Option<usize>,
    /// Requests outstanding on each active connection.
    pub pipeline: usize,
    /// Requests per second over all connections, at fixed times; `None` is the closed loop.
    pub rate: Option<f64>,
    /// Close a connection after this many requests and open another.
    pub churn: Option<u64>,
    /// Traffic before the measured interval.
    pub warmup: Duration,
    /// The measured interval.
    pub duration: Duration,
    /// A request without its reply for so long is an error, and its connection is opened anew.
    pub timeout: Duration,
    /// While connecting: when no further connection has been served for so long, the rest is
    /// reported as unserved and the run goes on with those that are.
    pub patience: Duration,
    /// Threads that generate load; each is a core's worth of it.
    pub threads: usize,
    /// Ends the run early; what was measured until then is reported.
    pub stop: Option<Stop>,
}

impl LoadConfig {
    /// A closed loop against `addr`: 64 connections of 64-byte messages, 2 s after 0.5 s of warm-up.
    pub fn new(addr: SocketAddr, protocol: Protocol) -> LoadConfig {
        LoadConfig {
            addr,
            protocol,
            connections: 64,
            active: None,
            size_bytes: 64,
            body_bytes: None,
            pipeline: 1,
            rate: None,
            churn: None,
            warmup: Duration::from_millis(500),
            duration: Duration::from_secs(2),
            timeout: Duration::from_secs(5),
            patience: Duration::from_secs(2),
            threads: 1,
            stop: None,
        }
    }

    pub(crate) fn check(&self) -> io::Result<()> {
        let times = [self.warmup, self.duration, self.timeout, self.patience];
        let active = self.active.unwrap_or(self.connections);
        let wrong = if self.connections == 0 {
            "there must be at least one connection".to_owned()
        } else if active == 0 || active > self.connections {
            format!("{active} active connections of {}: from 1 to all of them", self.connections)
        } else if self.size_bytes == 0 || self.size_bytes > traffic::MAX_MESSAGE_BYTES {
            format!(
                "a message of {} bytes: from 1 to {}",
                self.size_bytes,
                traffic::MAX_MESSAGE_BYTES
            )
        } else if self.pipeline == 0 || self.pipeline > 4096 {
            format!("{} requests outstanding per connection: from 1 to 4096", self.pipeline)
        } else if let Some(rate) = self.rate.filter(|rate| !(MIN_RATE..=MAX_RATE).contains(rate)) {
            format!("{rate} requests per second: from {MIN_RATE} to {MAX_RATE}")
        } else if self.churn == Some(0) {
            "a connection must carry at least one request before it is closed".to_owned()
        } else if self.threads == 0 || self.threads > active.min(MAX_THREADS) {
            format!(
                "{} threads for {active} active connections: from 1 to one each, at most \
                 {MAX_THREADS}",
                self.threads
            )
        } else if self.duration.is_zero() {
            "the measured interval must be longer than nothing".to_owned()
        } else if let Some(long) = times.iter().find(|&&time| time > MAX_TIME) {
            format!("a time of {} s: at most {} s", long.as_secs_f64(), MAX_TIME.as_secs())
        } else {
            return Ok(());
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, wrong))
    }
}

/// Where a run is. The first callback of a phase comes exactly as it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Connections are being opened and served once. The first callback comes when the very first
    /// connection has been served and no other is open yet.
    Connecting,
    /// All that can be served have been; nothing is being sent yet, then traffic starts.
    WarmUp,
    /// The time to read meters that take a while: traffic pauses for the callback, and then goes on for
    /// as long as it takes until what the server has done in the pause is no more to be seen.
    Settling,
    /// The measured interval begins. Traffic pauses for the callback, so that only what is read at once,
    /// as a clock of CPU time, should be read here: what the server does in the meantime is work for
    /// replies that will be counted.
    Measuring,
    /// The measured interval has ended; replies that are still due are awaited.
    Draining,
}

/// How far a run has come: given to the callback of [`run`] at every change of [`Phase`] and about
/// ten times a second.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Where the run is.
    pub phase: Phase,
    /// Connections served so far.
    pub served: usize,
    /// Replies verified so far in the measured interval.
    pub requests: u64,
    /// Replies verified since [`Phase::Settling`] began, those of the measured interval among them: what
    /// meters that were read there are about.
    pub since_settling: u64,
    /// Errors so far, of all kinds.
    pub errors: u64,
    /// Time since the run began.
    pub elapsed: Duration,
}

/// Runs the load and reports what came back. The callback runs on the calling thread, between two
/// turns of the loop: it should be short.
///
/// # Errors
///
/// An [`io::ErrorKind::InvalidInput`] for a configuration that makes no sense; the server's refusal,
/// with its address, when the first connection fails; limits of this machine (descriptors, ports)
/// that the connections do not fit into, with the cure. Faults of a server that does answer are not
/// errors of the run: they are counted in the report.
pub fn run(config: &LoadConfig, progress: &mut dyn FnMut(Progress)) -> io::Result<LoadReport> {
    config.check()?;
    limits::fit_descriptors(config.connections)?;
    phases::run(config, progress)
}
