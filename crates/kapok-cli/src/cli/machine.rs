//! What the machine can do.

use std::ffi::OsString;
#[cfg(target_os = "linux")]
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use kapok::pool::Via;
use kapok_lab::disk::Workload;

#[cfg(target_os = "linux")]
use super::values::address;
use super::values::{bytes, named, seconds};

/// Measure a file through the pool of I/O threads.
///
/// As many operations as --depth says are kept in flight, by fibers on one loop. --via says where they
/// run: tried in the caller (the page cache), on the loop's own ring, on I/O threads, or where the pool
/// thinks best. Nothing is made or overwritten unless it is asked for. Of a file that --size has made,
/// every block that is read is verified, and what was written is read back; of others, what must be in
/// them is not known.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kapok disk --file F --size 1G --op randread            makes F, then reads 4 KiB blocks of it
  kapok disk --file F --op randread --depth 32 --via thread --threads 2
  kapok disk --file F --op cachedread --via caller       from the page cache, without waiting
  kapok disk --file F --op seqread --bs 128k --depth 32 --json
  kapok disk --file F --op fsync --seconds 5             write and fdatasync(2) together
  kapok disk --file F --op dsync --seconds 5             writes that return when they are on the device
  kapok disk --op nop --depth 32 --via ring              what the way to the kernel costs
  kapok disk --op nop --via thread --trace --seconds 0.1 the five steps of an I/O thread")]
pub(crate) struct DiskOptions {
    /// The file; nop needs none
    #[arg(long, value_name = "F")]
    pub(crate) file: Option<PathBuf>,
    /// What to do: randread, randwrite and seqread (past the page cache), cachedread (from it), fsync (a
    /// write and an fdatasync), dsync (writes past the page cache of a file opened with O_DSYNC) or nop
    #[arg(long, default_value = "randread", value_parser = named::<Workload>)]
    pub(crate) op: Workload,
    /// Bytes of a block, a multiple of 512; k, M and G are powers of 1,024
    #[arg(long, default_value = "4k", value_parser = bytes, value_name = "N")]
    pub(crate) bs: u64,
    /// Operations in flight
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) depth: usize,
    /// Length of the measured interval
    #[arg(long, default_value = "2", value_parser = seconds, value_name = "S")]
    pub(crate) seconds: Duration,
    /// Where operations run: auto, caller, ring or thread. What the caller cannot do without waiting goes
    /// to an I/O thread
    #[arg(long, default_value = "auto", value_parser = named::<Via>)]
    pub(crate) via: Via,
    /// I/O threads
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) threads: usize,
    /// Operations that an I/O thread takes before it submits them
    #[arg(long, value_name = "N")]
    pub(crate) take: Option<usize>,
    /// Looks for work that an I/O thread takes before it sleeps; without it the number adapts
    #[arg(long, value_name = "M")]
    pub(crate) spin: Option<u32>,
    /// Completions that an I/O thread hands out before it looks for operations
    #[arg(long, value_name = "C")]
    pub(crate) completion_batch: Option<usize>,
    /// Make the file with so many bytes if there is none; k, M and G are powers of 1,024
    #[arg(long, value_parser = bytes, value_name = "BYTES")]
    pub(crate) size: Option<u64>,
    /// Let randwrite, fsync and dsync destroy what is in a file that --size has not made
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Go through the page cache, for file systems without O_DIRECT
    #[arg(long)]
    pub(crate) buffered: bool,
    /// Print the steps of the I/O threads to standard error: the first thousand, and how many there were
    /// of each
    #[arg(long)]
    pub(crate) trace: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Measure how long things take on this machine.
///
/// From an instruction to a disk and a network, and what it costs to switch to and to make threads,
/// tasks and fibers: each with its method and spread, beside the values that books give. Every line is
/// always there; what this machine does not have, or was not told of, has the reason instead.
#[cfg(target_os = "linux")]
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kapok latency                                      about a quarter of a minute
  kapok latency --file /data/scratch                 the disk that holds this file
  kapok latency --peer 192.0.2.7:7                   a round trip to an echo server, as kapok serve is
  kapok latency --only switch,spawn --json")]
pub(crate) struct LatencyOptions {
    /// A file on the disk to measure, which is made or overwritten and left behind; without it a
    /// temporary one in the current directory
    #[arg(long, value_name = "F")]
    pub(crate) file: Option<PathBuf>,
    /// An echo server elsewhere, for a round trip over a network
    #[arg(long, value_parser = address, value_name = "ADDR")]
    pub(crate) peer: Option<SocketAddr>,
    /// Only lines whose name contains one of these words
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    pub(crate) only: Vec<String>,
    /// How often each is measured
    #[arg(long, default_value_t = 151, value_name = "N")]
    pub(crate) repeats: usize,
    /// Print the table as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Find out what this machine allows, and how to allow the rest.
///
/// Tries each thing with a real operation. Exits with 0 if there is an engine to run on; with --libc
/// and a program, if hooks are active in it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kapok doctor
  kapok doctor --json
  kapok doctor --libc psql                         which calls of psql `kapok run` would hook
  kapok doctor --libc                              the functions that are hooked")]
pub(crate) struct DoctorOptions {
    /// Report instead which functions of the C library are hooked in a program and in what is loaded
    /// with it, which are not, and why; without a program, which there are
    #[arg(long, num_args = 0..=1, value_name = "PROGRAM")]
    pub(crate) libc: Option<Option<OsString>>,
    /// Print the findings as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}
