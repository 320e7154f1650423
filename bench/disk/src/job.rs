//! One measurement of one contender: what it does, and what was counted.

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kapok_lab::disk::Workload;
use kapok_lab::disk::pattern;
use kapok_lab::meters::Usage;
use serde::{Deserialize, Serialize};

/// Blocks that each worker verifies before it goes on unwatched.
const VERIFIED: u64 = 64;

/// What a contender is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) workload: String,
    pub(crate) file: PathBuf,
    pub(crate) file_bytes: u64,
    pub(crate) block: usize,
    pub(crate) depth: usize,
    pub(crate) seconds: f64,
    pub(crate) warmup: f64,
    /// What is asked of the pool, after the contender's name.
    pub(crate) tuning: String,
}

/// What it came to.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) operations: u64,
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
}

impl Figures {
    pub(crate) fn rate(&self) -> f64 {
        self.operations as f64 / self.seconds
    }

    pub(crate) fn cpu_us(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.operations.max(1) as f64
    }
}

impl Job {
    pub(crate) fn workload(&self) -> Workload {
        Workload::from_str(&self.workload).unwrap_or(Workload::Nop)
    }

    /// Opens the file as the workload wants it.
    pub(crate) fn open(&self) -> io::Result<std::fs::File> {
        open(&self.file, self.workload())
    }

    /// Worker number `worker`'s way through the file.
    pub(crate) fn course(&self, worker: usize) -> Course {
        let blocks = (self.file_bytes / self.block as u64).max(1);
        let sequential = self.workload() == Workload::SeqRead;
        Course {
            blocks,
            block: self.block as u64,
            state: 0x9e37_79b9_7f4a_7c15 ^ ((worker as u64 + 1) << 32),
            next: worker as u64 % blocks,
            stride: if sequential { self.depth as u64 } else { 0 },
            moved: 0,
            verifies: !self.workload().writes(),
        }
    }
}

pub(crate) fn open(path: &Path, workload: Workload) -> io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::File::options();
    options.read(true).write(workload.writes());
    options.custom_flags(workload.open_flags(workload.is_direct()));
    options.open(path)
}

/// Where a worker reads and writes next.
pub(crate) struct Course {
    blocks: u64,
    block: u64,
    state: u64,
    next: u64,
    stride: u64,
    moved: u64,
    verifies: bool,
}

impl Course {
    #[inline]
    pub(crate) fn draw(&mut self) -> u64 {
        if self.stride > 0 {
            let at = self.next;
            self.next = (at + self.stride) % self.blocks;
            return at * self.block;
        }
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        ((u128::from(self.state) * u128::from(self.blocks)) >> 64) as u64 * self.block
    }

    /// Whether all was moved, and the first blocks are what was written there.
    #[inline]
    pub(crate) fn check(&mut self, bytes: &[u8], moved: usize, offset: u64) {
        self.check_len(moved);
        if self.moved <= VERIFIED && self.verifies {
            assert!(
                pattern::writer(bytes, offset).is_some(),
                "the block at {offset} is not what was written there"
            );
        }
    }

    #[inline]
    pub(crate) fn check_len(&mut self, moved: usize) {
        assert_eq!(moved as u64, self.block, "a transfer came to less");
        self.moved += 1;
    }
}

/// A line of its own: who counts does not disturb the next.
#[repr(align(128))]
#[derive(Default)]
struct Count(AtomicU64);

/// Counts what workers have done, and says when it is enough.
#[derive(Clone)]
pub(crate) struct Meter(Arc<Shared>);

struct Shared {
    over: AtomicBool,
    counts: Box<[Count]>,
}

impl Meter {
    /// Notes that worker number `worker` has done so many more. Whether to go on.
    #[inline]
    pub(crate) fn more(&self, worker: usize, operations: u64) -> bool {
        let count = &self.0.counts[worker].0;
        count.store(count.load(Ordering::Relaxed) + operations, Ordering::Relaxed);
        !self.0.over.load(Ordering::Relaxed)
    }

    fn total(&self) -> u64 {
        self.0.counts.iter().map(|count| count.0.load(Ordering::Relaxed)).sum()
    }
}

/// Has `contend` work, and counts from the end of the warm-up on.
pub(crate) fn measure(
    job: &Job,
    contend: impl FnOnce(&Job, &Meter) -> io::Result<()>,
) -> io::Result<Figures> {
    let counts = (0..job.depth).map(|_| Count::default()).collect();
    let meter = Meter(Arc::new(Shared { over: AtomicBool::new(false), counts }));
    let (warmup, seconds) = (job.warmup, job.seconds);
    let watching = {
        let meter = meter.clone();
        thread::spawn(move || -> io::Result<Figures> {
            thread::sleep(Duration::from_secs_f64(warmup));
            let pid = std::process::id();
            let before = Usage::at_start(pid)?;
            let (start, first) = (Instant::now(), meter.total());
            thread::sleep(Duration::from_secs_f64(seconds));
            let (last, passed) = (meter.total(), start.elapsed());
            let used = Usage::at_end(pid)?.since(&before);
            meter.0.over.store(true, Ordering::Relaxed);
            Ok(Figures {
                operations: last - first,
                seconds: passed.as_secs_f64(),
                cpu_seconds: used.cpu.as_secs_f64(),
            })
        })
    };
    contend(job, &meter)?;
    watching.join().map_err(|_| io::Error::other("the watching thread panicked"))?
}
