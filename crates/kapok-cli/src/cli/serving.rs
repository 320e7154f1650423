//! Serving, and the load for it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use kapok_lab::{AcceptMode, Model, Protocol};

use super::values::{
    Engine, address, at_least_one, engine, microseconds, milliseconds, named, seconds,
};

/// Serve echo or HTTP on one I/O model.
///
/// Prints one line, `listening on ADDR`, when connections are accepted. SIGINT or SIGTERM stops
/// accepting, lets requests in progress end, and exits with 0. On models of fibers SIGUSR2 prints
/// every fiber to standard error: what it waits for, on which connection, since when, and where.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kapok serve                                      echo on Kapok's fibers
  kapok serve --protocol http --model epoll        HTTP on an event loop by hand
  kapok serve --engine epoll                       fibers on epoll, whatever else there is
  kapok serve --addr 127.0.0.1:0 --model tokio     any free port; read it from the first line
  kapok serve --protocol http --body 1800 --threads 2 --accept worker
  kapok serve --protocol files --dir docs          the files of a directory
  kapok serve --protocol http --delay-ms 5         each request waits for another server, for 5 ms
  kapok serve --cpu-us 200000 --watchdog-ms 100    tells which fiber keeps the others waiting")]
pub(crate) struct ServeOptions {
    /// The address to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    pub(crate) addr: String,
    /// What to speak: echo, http or files
    #[arg(long, default_value = "echo", value_parser = named::<Protocol>)]
    pub(crate) protocol: Protocol,
    /// How to wait: fiber, threads, thread-pool, busy-poll, select, poll, epoll, mio, uring, tokio,
    /// fiber-uring, fiber-epoll, fiber-poll or fiber-select
    #[arg(long, default_value = "fiber", value_parser = named::<Model>)]
    pub(crate) model: Model,
    /// The engine below the model fiber: auto (io_uring, or epoll where it is denied; KAPOK_ENGINE comes
    /// before that), uring, epoll, poll or select
    #[arg(long, default_value = "auto", value_parser = engine)]
    pub(crate) engine: Engine,
    /// Workers
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) threads: usize,
    /// Who accepts when there are several workers: thread (one for all) or worker (each for itself)
    #[arg(long, default_value = "thread", value_parser = named::<AcceptMode>)]
    pub(crate) accept: AcceptMode,
    /// The directory of the files
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// CPU time to burn for each request, in microseconds, such as 50 or 0.5: a loop that is timed as the
    /// server starts, or once for all servers by who compares them
    #[arg(long, default_value = "0", value_parser = microseconds, value_name = "U")]
    pub(crate) cpu_us: Duration,
    /// Ask this server, any echo server, and wait for its answer before each reply
    #[arg(long, value_parser = address, value_name = "ADDR")]
    pub(crate) backend: Option<SocketAddr>,
    /// The same with a server of our own, a thread of this process, that answers after so many
    /// milliseconds
    #[arg(long, value_parser = milliseconds, conflicts_with = "backend", value_name = "D")]
    pub(crate) delay_ms: Option<Duration>,
    /// Body of the HTTP reply, in bytes
    #[arg(long, default_value_t = 13, value_name = "BYTES")]
    pub(crate) body: usize,
    /// Buffer to read into, in bytes
    #[arg(long, default_value_t = 16 * 1024, value_name = "BYTES")]
    pub(crate) buffer: usize,
    /// Close a connection on which nothing moved for so many seconds; 0: never
    #[arg(long, default_value = "60", value_parser = seconds, value_name = "S")]
    pub(crate) idle_timeout: Duration,
    /// Models of fibers: warn, with a backtrace, of a fiber that runs for so many milliseconds
    /// without waiting, which keeps the others of its loop from running; 0: never. Without it
    /// KAPOK_WATCHDOG_MS says
    #[arg(long, value_name = "N")]
    pub(crate) watchdog_ms: Option<u64>,
    /// Print the ready line and the closing account as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Send verified requests to a server and measure it.
///
/// Every byte of every echo is compared, every HTTP reply has its status and length checked and its body
/// compared with the first one, and replies nobody asked for are errors. Exits with 1 when there was any
/// error, or no answer at all.
///
/// Several generators make one load with --join or --listen: each opens its connections, all begin when
/// the last one is ready, and their latencies are added histogram to histogram. Only durations that each
/// measured itself are used, never the time of day. If one of them fails, there is no result.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kapok load 127.0.0.1:8080                              echo, 64 connections, 5 s
  kapok load 127.0.0.1:8080 --protocol http --pipeline 16
  kapok load 127.0.0.1:8080 --rate 20000                 at fixed times; latency from the intended one
  kapok load 127.0.0.1:8080 --connections 10000 --active 10
  kapok load 127.0.0.1:8080 --churn 100 --json
  kapok load --join 'ssh a kapok load 10.0.0.1:80 --part' --join 'ssh b kapok load 10.0.0.1:80 --part'
  kapok load --listen 0.0.0.0:7411 --generators 4        and elsewhere, four times:
  kapok load 10.0.0.1:80 --part-of 10.0.0.2:7411")]
pub(crate) struct LoadOptions {
    /// The server
    #[arg(value_parser = address, value_name = "ADDR", required_unless_present_any = ["join", "listen"])]
    pub(crate) addr: Option<SocketAddr>,
    /// What it speaks: echo or http (files is http)
    #[arg(long, default_value = "echo", value_parser = named::<Protocol>)]
    pub(crate) protocol: Protocol,
    /// Connections to open
    #[arg(long, short = 'c', default_value_t = 64, value_name = "N")]
    pub(crate) connections: usize,
    /// How many of them carry traffic; the others stay open after one message
    #[arg(long, value_name = "A")]
    pub(crate) active: Option<usize>,
    /// Length of the measured interval
    #[arg(long, default_value = "5", value_parser = seconds, value_name = "S")]
    pub(crate) seconds: Duration,
    /// Traffic before it
    #[arg(long, default_value = "0.5", value_parser = seconds, value_name = "S")]
    pub(crate) warmup: Duration,
    /// Bytes of an echo message
    #[arg(long, default_value_t = 64, value_name = "B")]
    pub(crate) size: usize,
    /// Body that every HTTP reply must have, in bytes, and the same in all; without it the first reply sets
    /// the length, and another body of this length is counted and no error
    #[arg(long, value_name = "BYTES")]
    pub(crate) body: Option<usize>,
    /// Requests outstanding on each connection
    #[arg(long, default_value_t = 1, value_name = "P")]
    pub(crate) pipeline: usize,
    /// Requests per second over all connections, at fixed times
    #[arg(long, value_name = "R")]
    pub(crate) rate: Option<f64>,
    /// Close a connection after so many requests and open another
    #[arg(long, value_name = "R")]
    pub(crate) churn: Option<u64>,
    /// A request without its reply for so long is an error
    #[arg(long, default_value = "5", value_parser = seconds, value_name = "S")]
    pub(crate) timeout: Duration,
    /// Threads of the generator
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) threads: usize,
    /// Join a generator that this command runs: a command line for the shell, which ends in kapok load
    /// with --part; may be given several times
    #[arg(long, value_name = "COMMAND", conflicts_with_all = OF_ONE_GENERATOR)]
    pub(crate) join: Vec<String>,
    /// Join generators that connect to this address; whoever can reach it can take part
    #[arg(long, value_parser = address, value_name = "ADDR", requires = "generators",
          conflicts_with_all = OF_ONE_GENERATOR)]
    pub(crate) listen: Option<SocketAddr>,
    /// How many of them
    #[arg(long, value_name = "N", requires = "listen", value_parser = at_least_one)]
    pub(crate) generators: Option<usize>,
    /// Be a generator that --join has started: say on standard output when the connections are open,
    /// begin at the line `go` on standard input, and say what was found
    #[arg(long, conflicts_with_all = ["json", "part_of"])]
    pub(crate) part: bool,
    /// Be a generator of who listens at this address
    #[arg(long, value_name = "ADDR")]
    pub(crate) part_of: Option<String>,
    /// How long to wait until all generators are ready, or until who listens is there
    #[arg(long, default_value = "60", value_parser = seconds, value_name = "S")]
    pub(crate) wait: Duration,
    /// Print the result as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// What each of several generators is told by its own command line.
const OF_ONE_GENERATOR: [&str; 15] = [
    "addr",
    "protocol",
    "connections",
    "active",
    "seconds",
    "warmup",
    "size",
    "body",
    "pipeline",
    "rate",
    "churn",
    "timeout",
    "threads",
    "part",
    "part_of",
];
