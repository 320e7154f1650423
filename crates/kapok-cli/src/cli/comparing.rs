//! Models beside each other, and which to choose.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
#[cfg(target_os = "linux")]
use kapok_lab::advise::{Objective, Preset};
use kapok_lab::compare::{External, Network};
use kapok_lab::{Model, Protocol};

#[cfg(target_os = "linux")]
use super::values::bytes;
use super::values::{microseconds, milliseconds, named, seconds};

/// Compare the I/O models under the same load on this machine.
///
/// Each model is a server process of its own on one core, the load is on another. Rounds are
/// interleaved and their order rotates, ratios are taken within a round. Without options this is the
/// quick profile: echo and HTTP, 64 connections, all models, short rounds: a first look.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kapok compare                                              a first look, about 70 s
  kapok compare --protocol echo --models tokio,epoll,fiber-uring --rounds 7 --seconds 2
  kapok compare --connections 1,64,1000                      one table each
  kapok compare --full --models tokio,fiber                  until the intervals are narrow
  kapok compare --full --models tokio,fiber --against old.json
  kapok compare --protocol http --delay-ms 5 --rate 2000     each request waits for another server
  kapok compare --connections 10000 --active 10 --models select,poll,epoll,fiber-uring
  kapok compare --c10k                                       10 to 10,000 registered, 10 active
  kapok compare --models tokio,fiber --network loopback,veth
  kapok compare --models tokio,fiber --server mine='./server --listen {addr}'
  kapok compare --protocol echo --models epoll,uring,fiber --costs
  kapok compare --protocol http --body 1800 --pipeline 16 --json result.json
  kapok compare --protocol http,files --dir ./site --body 5000  the same reply from memory and from a file")]
pub(crate) struct CompareOptions {
    /// echo, http or files, or several of them, each with tables of its own; without it the first two, with
    /// --c10k echo. http,files is the same reply out of memory and out of a file, if --body is its length
    #[arg(long, value_delimiter = ',', value_parser = named::<Protocol>, value_name = "P,Q")]
    pub(crate) protocol: Vec<Protocol>,
    /// The models, separated by commas; without it all thirteen, or none beside --server
    #[arg(long, value_delimiter = ',', value_parser = named::<Model>, value_name = "A,B")]
    pub(crate) models: Vec<Model>,
    /// A server of your own: a name and its command line, in which {addr} (or {host} and {port}),
    /// {protocol}, {body}, {dir}, {backend} and {threads} are filled in; may be given several times. The
    /// body of its HTTP replies is as long as --body says, and the same in each
    #[arg(long = "server", value_parser = named::<External>, value_name = "NAME=COMMAND")]
    pub(crate) servers: Vec<External>,
    /// The row that the others are relative to; without it tokio, if it is there
    #[arg(long, value_name = "NAME")]
    pub(crate) baseline: Option<String>,
    /// Connections; a list gives one table each, as it does with the other axes
    #[arg(long, value_delimiter = ',', default_value = "64", value_name = "N,M")]
    pub(crate) connections: Vec<usize>,
    /// How many of them carry traffic; the others stay open after one message
    #[arg(long, value_delimiter = ',', value_name = "A")]
    pub(crate) active: Vec<usize>,
    /// What registered connections cost: 10 to 10,000 of them, of which 10 are active, and for each model
    /// the slope of CPU time per request. Ten rounds of half a second, unless others are asked for
    #[arg(long, conflicts_with_all = ["connections", "active"])]
    pub(crate) c10k: bool,
    /// Bytes of an echo message
    #[arg(long, value_delimiter = ',', default_value = "64", value_name = "B")]
    pub(crate) size: Vec<usize>,
    /// Body of the HTTP reply, in bytes
    #[arg(long, default_value_t = 13, value_name = "BYTES")]
    pub(crate) body: usize,
    /// The directory of the files; its index.html is asked for
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Requests outstanding on each connection
    #[arg(long, default_value_t = 1, value_name = "P")]
    pub(crate) pipeline: usize,
    /// Close a connection after so many requests and open another
    #[arg(long, value_delimiter = ',', value_name = "R")]
    pub(crate) churn: Vec<u64>,
    /// CPU time that the server burns for each request, in microseconds
    #[arg(long, value_delimiter = ',', value_parser = microseconds, value_name = "U")]
    pub(crate) cpu_us: Vec<Duration>,
    /// Each request waits for another server, which answers after so many milliseconds
    #[arg(long, value_delimiter = ',', value_parser = milliseconds, value_name = "D")]
    pub(crate) delay_ms: Vec<Duration>,
    /// What is between the load and the servers: loopback, or veth, two network namespaces joined by a
    /// pair of veth devices, which needs root and ip(8); loopback,veth gives a table of each
    #[arg(long, value_delimiter = ',', value_parser = named::<Network>, value_name = "N,M")]
    pub(crate) network: Vec<Network>,
    /// Requests per second over all connections, at fixed times and with latencies from then; without
    /// it every connection always has its requests outstanding
    #[arg(long, value_name = "R")]
    pub(crate) rate: Option<f64>,
    /// Workers of each server
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) threads: usize,
    /// Length of one measured interval
    #[arg(long, value_parser = seconds, value_name = "S")]
    pub(crate) seconds: Option<Duration>,
    /// Rounds: each model is measured once in each. With --full, the most of them
    #[arg(long, value_name = "N")]
    pub(crate) rounds: Option<usize>,
    /// Short rounds until the 95 % interval of each CPU ratio is ± 2.5 % and its verdict is settled: 10 to
    /// 400, or --rounds
    #[arg(long)]
    pub(crate) full: bool,
    /// Count what a request costs, for each model in a run of its own: CPU time, system calls and
    /// operations of io_uring by kind, wake-ups, copied bytes, memory of a connection, threads
    #[arg(long)]
    pub(crate) costs: bool,
    /// Write everything that was measured to this file as JSON; `-` is standard output
    #[arg(long, value_name = "F")]
    pub(crate) json: Option<PathBuf>,
    /// Write the time series to this file as CSV
    #[arg(long, value_name = "F")]
    pub(crate) csv: Option<PathBuf>,
    /// Write the latencies to this file as an HDR histogram log
    #[arg(long, value_name = "F")]
    pub(crate) hdr: Option<PathBuf>,
    /// Write the page with charts to this file; without it to a new file among the temporary ones
    #[arg(long, value_name = "F")]
    pub(crate) html: Option<PathBuf>,
    /// Compare with what --json wrote before, in as many rounds as can show a change unless --rounds says
    /// how many. Exits with 1 if a model has become worse, if one that was measured then is not now, or if
    /// the two cannot be compared; with 2, before anything is measured, if the rounds could not show a change
    #[arg(long, value_name = "F")]
    pub(crate) against: Option<PathBuf>,
}

/// Look at comparisons that were made before.
///
/// One file is printed as a table. Of two, what has changed from the first to the second: each model's
/// ratio to the baseline of its own rounds, by the rank-sum test. Exits with 1 if a model has become
/// significantly worse, if what was measured in the first is not in the second, if the rounds of the two are
/// too few to show any change, or if servers had other numbers of workers or cores.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kapok report result.json
  kapok report result.json --html result.html
  kapok report before.json after.json")]
pub(crate) struct ReportOptions {
    /// What --json of compare wrote
    #[arg(value_name = "A.json")]
    pub(crate) first: PathBuf,
    /// A later one, to be compared with the first
    #[arg(value_name = "B.json")]
    pub(crate) second: Option<PathBuf>,
    /// Write the page with charts to this file
    #[arg(long, value_name = "F")]
    pub(crate) html: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Ask which model to choose for a workload.
///
/// Whatever is not said is asked for on a terminal, and elsewhere taken from the defaults. Everybody who
/// can serve the workload is measured shortly on this machine, the best of them longer, and points beside
/// it tell where another model would win. Prints the model, its margin with its confidence, the
/// cross-over, where the advice loses, and the textbook's decision tree with this machine's figures.
#[cfg(target_os = "linux")]
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kapok advise                                       asks, then measures for a minute
  kapok advise --connections 1000 --active-share 0.1 --objective p99 --rate 2000
  kapok advise --preset web-server                   what is not said is the preset's
  kapok advise --connections 200 --cpu-us 50 --delay-ms 5 --no-io-uring
  kapok advise --connections 5000 --memory 64M --objective memory --json
  kapok advise --preset control --seconds 20         for who writes the event loop by hand
  printf '200\\n\\n4096\\n' | kapok advise --ask        answers from a file, line by line")]
pub(crate) struct AdviseOptions {
    /// A workload to begin with: cli, database, web-server, web-framework or control. Nothing is asked
    /// then
    #[arg(long, value_parser = named::<Preset>)]
    pub(crate) preset: Option<Preset>,
    /// Connections that are open at once
    #[arg(long, short = 'c', value_name = "N")]
    pub(crate) connections: Option<usize>,
    /// The part of them that carries traffic, such as 0.1
    #[arg(long, value_name = "SHARE")]
    pub(crate) active_share: Option<f64>,
    /// Bytes of a request
    #[arg(long, value_parser = bytes, value_name = "BYTES")]
    pub(crate) request: Option<u64>,
    /// Bytes of a response; another number than the request's makes it HTTP, with requests of its own
    /// size
    #[arg(long, value_parser = bytes, value_name = "BYTES")]
    pub(crate) response: Option<u64>,
    /// Requests on a connection before it is closed and another opened; 0: it stays open
    #[arg(long, value_name = "R")]
    pub(crate) requests_per_connection: Option<u64>,
    /// CPU time that the handler takes for each request, in microseconds
    #[arg(long, value_parser = microseconds, value_name = "U")]
    pub(crate) cpu_us: Option<Duration>,
    /// What each request waits for another server, in milliseconds; 0: there is none
    #[arg(long, value_parser = milliseconds, value_name = "D")]
    pub(crate) delay_ms: Option<Duration>,
    /// The part of the requests that reads a file of the response's size, from 0 to 1
    #[arg(long, value_name = "SHARE")]
    pub(crate) file_share: Option<f64>,
    /// Bytes that the server may use with all connections open; k, M and G are powers of 1,024
    #[arg(long, value_parser = bytes, value_name = "BYTES")]
    pub(crate) memory: Option<u64>,
    /// It must run where io_uring is denied
    #[arg(long)]
    pub(crate) no_io_uring: bool,
    /// Only models that are written by hand, for control over every call
    #[arg(long)]
    pub(crate) by_hand: bool,
    /// A core may be used while there is nothing to do
    #[arg(long)]
    pub(crate) may_spin: bool,
    /// Requests per second over all connections, at fixed times, with latencies from then; without it
    /// every connection always has a request outstanding
    #[arg(long, value_name = "R")]
    pub(crate) rate: Option<f64>,
    /// What is to be best: throughput, p99, memory or cpu (CPU time per request)
    #[arg(long, value_parser = named::<Objective>)]
    pub(crate) objective: Option<Objective>,
    /// For how long to measure, about
    #[arg(long, default_value = "60", value_parser = seconds, value_name = "S")]
    pub(crate) seconds: Duration,
    /// Do not measure beside the workload: no cross-over, and more rounds for the workload itself
    #[arg(long)]
    pub(crate) no_cross_over: bool,
    /// Ask even where standard input is no terminal: a line for each answer, an empty one for the default
    #[arg(long)]
    pub(crate) ask: bool,
    /// Print everything as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}
