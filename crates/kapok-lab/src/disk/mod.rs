//! What a file gives through the [pool](kapok::pool): operations per second, latency, CPU.
//!
//! As many fibers as operations are to be in flight, on one loop, each with one operation after the
//! other. Where it runs is the pool's to say, or the caller's: [`Via`].
//!
//! What is read is verified, if the file was made here: its blocks say where they belong ([`pattern`]).
//! Each block by words of each of its sectors, and one in 64 by every byte. What was written is read
//! back after the measured interval.

mod drive;
mod file;
pub mod pattern;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use kapok::pool::Via;
use serde::Serialize;

use crate::load::Latency;
use crate::serve::{UnknownName, by_name};
use crate::stop::Stop;

pub use drive::run;
pub use file::{Aligned, Subject, make};

/// What is done over and over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workload {
    /// Reads of blocks at random, past the page cache.
    RandRead,
    /// Writes of blocks at random, past the page cache.
    RandWrite,
    /// Reads of one block after the other, past the page cache.
    SeqRead,
    /// Reads of blocks at random from the page cache.
    CachedRead,
    /// A write of a block at random into the page cache and an fdatasync(2): one operation.
    Fsync,
    /// Writes of blocks at random, past the page cache, that are on the device when they return
    /// (`O_DSYNC`, see open(2)).
    Dsync,
    /// Nothing: what the way there costs.
    Nop,
}

/// All of them.
pub const WORKLOADS: [Workload; 7] = [
    Workload::RandRead,
    Workload::RandWrite,
    Workload::SeqRead,
    Workload::CachedRead,
    Workload::Fsync,
    Workload::Dsync,
    Workload::Nop,
];

impl Workload {
    /// Whether it writes.
    #[must_use]
    pub fn writes(self) -> bool {
        matches!(self, Workload::RandWrite | Workload::Fsync | Workload::Dsync)
    }

    /// Whether it goes past the page cache.
    #[must_use]
    pub fn is_direct(self) -> bool {
        use Workload::{Dsync, RandRead, RandWrite, SeqRead};
        matches!(self, RandRead | RandWrite | SeqRead | Dsync)
    }

    /// What open(2) is told beside whether it reads and writes, if it goes past the page cache or not.
    #[must_use]
    pub fn open_flags(self, direct: bool) -> i32 {
        let synced = if self == Workload::Dsync { libc::O_DSYNC } else { 0 };
        synced | if direct { libc::O_DIRECT } else { 0 }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Workload::RandRead => "randread",
            Workload::RandWrite => "randwrite",
            Workload::SeqRead => "seqread",
            Workload::CachedRead => "cachedread",
            Workload::Fsync => "fsync",
            Workload::Dsync => "dsync",
            Workload::Nop => "nop",
        })
    }
}

impl FromStr for Workload {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Workload, UnknownName> {
        by_name("operation", &WORKLOADS, name)
    }
}

/// What to measure, and how long.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    /// The file; [`Workload::Nop`] needs none.
    pub file: Option<PathBuf>,
    /// Makes the file with so many bytes, if there is none.
    pub size_bytes: Option<u64>,
    /// Lets blocks be written to a file that was not made here.
    pub overwrite: bool,
    /// Goes through the page cache, whatever the workload.
    pub buffered: bool,
    /// What is done.
    pub workload: Workload,
    /// How many bytes at once.
    pub block_bytes: usize,
    /// How many operations are in flight.
    pub depth: usize,
    /// Length of the measured interval.
    pub duration: Duration,
    /// The same before it is measured.
    pub warmup: Duration,
    /// Where operations run.
    pub via: Via,
    /// I/O threads.
    pub threads: usize,
    /// N; `None`: the pool's default.
    pub take: Option<usize>,
    /// M; `None`: the pool's default, which adapts.
    pub spin: Option<u32>,
    /// `COMPLETION_BATCH`; `None`: the pool's default.
    pub completion_batch: Option<usize>,
    /// Whether the steps of the I/O threads are events of `tracing`.
    pub trace: bool,
    /// Ends it early.
    pub stop: Option<Stop>,
}

impl DiskConfig {
    /// A second of it by default: blocks of 4 KiB, one in flight, where the pool thinks best.
    #[must_use]
    pub fn new(workload: Workload) -> DiskConfig {
        DiskConfig {
            file: None,
            size_bytes: None,
            overwrite: false,
            buffered: false,
            workload,
            block_bytes: 4096,
            depth: 1,
            duration: Duration::from_secs(1),
            warmup: Duration::from_millis(200),
            via: Via::Auto,
            threads: 1,
            take: None,
            spin: None,
            completion_batch: None,
            trace: false,
            stop: None,
        }
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
pub enum Progress {
    /// The file is being made: bytes so far, and in all.
    Making(u64, u64),
    /// The file is brought into the page cache.
    Warming,
    /// Operations so far, and the part of the time that has passed.
    Measuring(u64, f64),
    /// What was written is read back.
    Verifying,
}

/// What was verified.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verified {
    /// There is nothing to verify.
    Nothing,
    /// The file was not made here, so nobody knows what must be in it.
    Unknown,
    /// Each block that was read, and of some every byte.
    Reads {
        /// How many.
        blocks: u64,
        /// Of how many of them every byte.
        whole: u64,
    },
    /// Blocks that were written were read back.
    Writes {
        /// How many different ones were written.
        written: u64,
        /// How many of them were read back, every byte.
        read_back: u64,
    },
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct DiskReport {
    /// What was done.
    #[serde(serialize_with = "displayed")]
    pub workload: Workload,
    /// Where operations ran.
    #[serde(serialize_with = "displayed")]
    pub via: Via,
    /// What carried them out: the name of the loop's engine.
    pub engine: String,
    /// Whether it went past the page cache.
    pub direct: bool,
    /// The length of the file that was used.
    pub file_bytes: u64,
    /// Length of the measured interval.
    pub seconds: f64,
    /// Operations in it.
    pub operations: u64,
    /// Operations per second.
    pub iops: f64,
    /// How long each took.
    pub latency: Latency,
    /// CPU time of the whole process, in user space and in the kernel, an operation.
    pub cpu_us_per_op: f64,
    /// CPU time per time.
    pub cores: f64,
    /// How many of all the pool's I/O threads have carried out, before and after the interval included.
    pub on_threads: f64,
    /// What was verified.
    pub verified: Verified,
    /// Whether it was stopped before its time.
    pub stopped_early: bool,
}

fn displayed<T: fmt::Display, S: serde::Serializer>(
    value: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

impl DiskConfig {
    /// Whether what is asked for makes sense.
    ///
    /// # Errors
    ///
    /// `InvalidInput`, with the reason.
    fn check(&self) -> io::Result<()> {
        const DEEPEST: usize = 65_536;
        let invalid = |message: String| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        if self.workload != Workload::Nop {
            file::check_block(self.block_bytes)?;
            if self.file.is_none() {
                return invalid(format!("{} wants a file: --file F", self.workload));
            }
        }
        if self.depth == 0 || self.depth > DEEPEST {
            return invalid(format!("--depth {}: 1 to {DEEPEST} are wanted", self.depth));
        }
        if self.duration.is_zero() {
            return invalid("--seconds 0: nothing would be measured".to_owned());
        }
        if let Some(size) = self.size_bytes
            && (size == 0 || !size.is_multiple_of(self.block_bytes as u64))
        {
            return invalid(format!(
                "--size {size} is not a multiple of --bs {}",
                self.block_bytes
            ));
        }
        Ok(())
    }
}
