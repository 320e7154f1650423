//! What can be asked for on the command line, and with which words.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use kapok_lab::{AcceptMode, Model, Protocol};

/// Fibers, I/O models and honest measurements of both.
#[derive(Debug, Parser)]
#[command(name = "kapok", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Serve(ServeOptions),
    Load(LoadOptions),
    Compare(CompareOptions),
    Doctor(DoctorOptions),
}

/// Serve echo or HTTP on one I/O model.
///
/// Prints one line, `listening on ADDR`, when connections are accepted. SIGINT or SIGTERM stops
/// accepting, lets requests in progress end, and exits with 0. On models of fibers SIGUSR2 prints
/// every fiber to standard error: what it waits for, on which connection, since when, and where.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kapok serve                                      echo on Kapok's fibers
  kapok serve --protocol http --model epoll        HTTP on an event loop by hand
  kapok serve --addr 127.0.0.1:0 --model tokio     any free port; read it from the first line
  kapok serve --protocol http --body 1800 --threads 2 --accept worker
  kapok serve --cpu-us 200000 --watchdog-ms 100    tells which fiber keeps the others waiting")]
pub(crate) struct ServeOptions {
    /// The address to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    pub(crate) addr: String,
    /// What to speak: echo or http
    #[arg(long, default_value = "echo", value_parser = named::<Protocol>)]
    pub(crate) protocol: Protocol,
    /// How to wait: fiber, threads, thread-pool, busy-poll, select, poll, epoll, mio, uring, tokio,
    /// fiber-uring, fiber-epoll, fiber-poll or fiber-select
    #[arg(long, default_value = "fiber", value_parser = named::<Model>)]
    pub(crate) model: Model,
    /// Workers
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) threads: usize,
    /// Who accepts when there are several workers: thread (one for all) or worker (each for itself)
    #[arg(long, default_value = "thread", value_parser = named::<AcceptMode>)]
    pub(crate) accept: AcceptMode,
    /// CPU time to burn for each request, in microseconds
    #[arg(long, default_value_t = 0, value_name = "U")]
    pub(crate) cpu_us: u64,
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
/// Every byte of every echo is compared, every HTTP reply has its status and length checked, and
/// replies nobody asked for are errors. Exits with 1 when there was any error.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kapok load 127.0.0.1:8080                              echo, 64 connections, 5 s
  kapok load 127.0.0.1:8080 --protocol http --pipeline 16
  kapok load 127.0.0.1:8080 --rate 20000                 at fixed times; latency from the intended one
  kapok load 127.0.0.1:8080 --connections 10000 --active 10
  kapok load 127.0.0.1:8080 --churn 100 --json")]
pub(crate) struct LoadOptions {
    /// The server
    #[arg(value_parser = address, value_name = "ADDR")]
    pub(crate) addr: SocketAddr,
    /// What it speaks: echo or http
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
    /// Body that every HTTP reply must have, in bytes; without it the first reply sets it
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
    /// Print the result as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Compare the I/O models under the same load on this machine.
///
/// Each model is a server process of its own on one core, the load is on another. Rounds are
/// interleaved and their order rotates, ratios are taken within a round. Without options this is the
/// quick profile: echo and HTTP, 64 connections, all models, short rounds: a first look.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kapok compare                                              a first look, about 80 s
  kapok compare --protocol echo --models tokio,epoll,fiber-uring --rounds 7 --seconds 2
  kapok compare --connections 1,64,1000                      one table each
  kapok compare --connections 10000 --active 10 --models select,poll,epoll,fiber-uring
  kapok compare --protocol http --body 1800 --pipeline 16 --json result.json")]
pub(crate) struct CompareOptions {
    /// echo or http; without it both
    #[arg(long, value_parser = named::<Protocol>)]
    pub(crate) protocol: Option<Protocol>,
    /// The models, separated by commas; without it all thirteen
    #[arg(long, value_delimiter = ',', value_parser = named::<Model>, value_name = "A,B")]
    pub(crate) models: Vec<Model>,
    /// Connections; a list gives one table each
    #[arg(long, value_delimiter = ',', default_value = "64", value_name = "N,M")]
    pub(crate) connections: Vec<usize>,
    /// How many of them carry traffic; the others stay open after one message
    #[arg(long, value_name = "A")]
    pub(crate) active: Option<usize>,
    /// Bytes of an echo message
    #[arg(long, default_value_t = 64, value_name = "B")]
    pub(crate) size: usize,
    /// Body of the HTTP reply, in bytes
    #[arg(long, default_value_t = 13, value_name = "BYTES")]
    pub(crate) body: usize,
    /// Requests outstanding on each connection
    #[arg(long, default_value_t = 1, value_name = "P")]
    pub(crate) pipeline: usize,
    /// Close a connection after so many requests and open another
    #[arg(long, value_name = "R")]
    pub(crate) churn: Option<u64>,
    /// CPU time that the server burns for each request, in microseconds
    #[arg(long, default_value_t = 0, value_name = "U")]
    pub(crate) cpu_us: u64,
    /// Workers of each server
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) threads: usize,
    /// Length of one measured interval
    #[arg(long, value_parser = seconds, value_name = "S")]
    pub(crate) seconds: Option<Duration>,
    /// Rounds: each model is measured once in each
    #[arg(long, value_name = "N")]
    pub(crate) rounds: Option<usize>,
    /// Write everything that was measured to this file as JSON; `-` is standard output
    #[arg(long, value_name = "F")]
    pub(crate) json: Option<PathBuf>,
}

/// Find out what this machine allows, and how to allow the rest.
///
/// Tries each thing with a real operation. Exits with 0 if there is an engine to run on.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kapok doctor
  kapok doctor --json")]
pub(crate) struct DoctorOptions {
    /// Print the findings as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// A value by its name. The reason of a refusal lists the names there are.
fn named<T>(name: &str) -> Result<T, String>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    name.parse().map_err(|error: T::Err| error.to_string())
}

/// Whether `NO_COLOR` leaves colours to the terminal: it is unset, or empty (no-color.org).
pub(crate) fn colours_allowed() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A year.
const MAX_SECONDS: f64 = 31_536_000.0;

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .filter(|seconds| *seconds <= MAX_SECONDS)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "a number of seconds, such as 2 or 0.5, and at most a year".to_owned())
}

pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    let mut found = text
        .to_socket_addrs()
        .map_err(|error| format!("{error}; give HOST:PORT, such as 127.0.0.1:8080"))?;
    found.next().ok_or_else(|| "the name has no address".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn seconds_are_positive_numbers() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        for text in ["-1", "soon", "inf", "nan", "1e18"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
