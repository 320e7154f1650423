//! The measured interval: fibers that keep operations in flight.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use kapok::Runtime;
use kapok::pool::{OpenFile, Pool};

use super::file::{Aligned, Subject, make_unless};
use super::pattern::{self, Seed};
use super::{DiskConfig, DiskReport, Progress, Verified, Workload};
use crate::load::Latency;
use crate::meters::Usage;

/// The seed of files that are made.
const MAKER: Seed = Seed::new(0);

/// One block in so many is verified whole.
const WHOLE: u64 = 64;

/// How many blocks that were written are read back at most.
const READ_BACK: usize = 4096;

/// How often progress is told.
const TICK: Duration = Duration::from_millis(100);

/// What the measuring thread tells the one that waits for it.
#[derive(Default)]
struct Gauge {
    operations: AtomicU64,
    stop: AtomicBool,
}

/// Measures what `config` says.
///
/// # Errors
///
/// `InvalidInput` for what makes no sense and for a file that does not suit; what the system says of
/// the file; `Interrupted` if it was stopped before it began; the first operation that failed, or brought other bytes than were written.
pub fn run(config: &DiskConfig, progress: &mut dyn FnMut(Progress)) -> io::Result<DiskReport> {
    config.check()?;
    let subject = match &config.file {
        Some(path) if config.workload != Workload::Nop => {
            if let Some(size) = config.size_bytes
                && !path.exists()
            {
                make_unless(config.stop.as_ref(), path, size, MAKER, |done| {
                    progress(Progress::Making(done, size));
                })?;
            }
            let direct = config.workload.is_direct() && !config.buffered;
            let writes = config.workload.writes();
            let flags = config.workload.open_flags(direct);
            let subject = Subject::open(path, config.block_bytes, writes, flags)?;
            if let Some(size) = config.size_bytes.filter(|&size| size != subject.bytes) {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    format!(
                        "{} is there, with {} bytes and not {size}",
                        path.display(),
                        subject.bytes
                    ),
                ));
            }
            if writes && !subject.is_patterned && !config.overwrite {
                return Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    format!(
                        "{} was not made here, and {} would destroy what is in it; --overwrite lets it",
                        path.display(),
                        config.workload
                    ),
                ));
            }
            if config.workload == Workload::CachedRead {
                progress(Progress::Warming);
                subject.warm(subject.bytes, config.stop.as_ref())?;
            }
            Some(subject)
        }
        _ => None,
    };

    let gauge = Arc::new(Gauge::default());
    let measuring = thread::Builder::new().name("kapok-disk".to_owned()).spawn({
        let (config, gauge) = (config.clone(), Arc::clone(&gauge));
        let file = subject.as_ref().map(|subject| subject.file.try_clone()).transpose()?;
        let blocks = subject.as_ref().map_or(0, |it| it.bytes / config.block_bytes as u64);
        let is_patterned = subject.as_ref().is_some_and(|subject| subject.is_patterned);
        move || -> io::Result<Outcome> {
            let runtime = Runtime::builder().threads(1).build()?;
            runtime.run(move || measure(config, file, blocks, is_patterned, gauge))
        }
    })?;
    let began = Instant::now();
    let total = config.warmup + config.duration;
    while !measuring.is_finished() {
        thread::sleep(TICK.min(config.duration / 4));
        if config.stop.as_ref().is_some_and(crate::Stop::requested) {
            gauge.stop.store(true, Ordering::Relaxed);
        }
        let passed = began.elapsed().as_secs_f64() / total.as_secs_f64();
        progress(Progress::Measuring(gauge.operations.load(Ordering::Relaxed), passed.min(1.0)));
    }
    let outcome = match measuring.join() {
        Ok(outcome) => outcome?,
        Err(panic) => std::panic::resume_unwind(panic),
    };
    let verified = match &subject {
        None => Verified::Nothing,
        Some(subject) if config.workload.writes() => {
            progress(Progress::Verifying);
            read_back(subject, config, &outcome)?
        }
        Some(subject) if subject.is_patterned => {
            Verified::Reads { blocks: outcome.checked, whole: outcome.whole }
        }
        Some(_) => Verified::Unknown,
    };
    let seconds = outcome.measured.as_secs_f64();
    let operations = outcome.latencies.len();
    let cpu = outcome.cpu.as_secs_f64();
    Ok(DiskReport {
        workload: config.workload,
        via: config.via,
        engine: outcome.engine,
        direct: subject.as_ref().is_some_and(|subject| subject.direct),
        file_bytes: subject.as_ref().map_or(0, |subject| subject.bytes),
        seconds,
        operations,
        iops: operations as f64 / seconds,
        latency: Latency::of(&outcome.latencies),
        cpu_us_per_op: if operations == 0 { 0.0 } else { cpu * 1e6 / operations as f64 },
        cores: cpu / seconds,
        on_threads: outcome.on_threads,
        verified,
        stopped_early: gauge.stop.load(Ordering::Relaxed),
    })
}

/// What the measuring thread brings back.
struct Outcome {
    latencies: Histogram<u64>,
    measured: Duration,
    cpu: Duration,
    engine: String,
    on_threads: f64,
    checked: u64,
    whole: u64,
    written: Vec<u64>,
    seed: Seed,
}

/// What the fibers share.
struct Work {
    workload: Workload,
    pool: Pool,
    file: Option<OpenFile>,
    block_bytes: usize,
    blocks: u64,
    is_patterned: bool,
    seed: Seed,
    random: Cell<u64>,
    next: Cell<u64>,
    gauge: Arc<Gauge>,
    over: Cell<bool>,
    measuring: Cell<bool>,
    latencies: RefCell<Histogram<u64>>,
    operations: Cell<u64>,
    checked: Cell<u64>,
    whole: Cell<u64>,
    /// One bit for each block that was written.
    written: RefCell<Vec<u64>>,
}

/// Runs on a fiber.
fn measure(
    config: DiskConfig,
    file: Option<std::fs::File>,
    blocks: u64,
    is_patterned: bool,
    gauge: Arc<Gauge>,
) -> io::Result<Outcome> {
    let mut builder = Pool::builder().threads(config.threads).via(config.via).trace(config.trace);
    // Each fiber has one operation; more slots and more room would only be made.
    builder = builder.slots((config.depth as u32).max(64));
    if let Some(take) = config.take {
        builder = builder.take(take);
    }
    if let Some(spin) = config.spin {
        builder = builder.spin(spin);
    }
    if let Some(batch) = config.completion_batch {
        builder = builder.completion_batch(batch);
    }
    let seed = Seed::new(start_of(&config) | 1);
    let words = if config.workload.writes() { blocks.div_ceil(64) as usize } else { 0 };
    let histogram = Histogram::new_with_bounds(1, 600_000_000_000, 3)
        .map_err(|error| io::Error::other(error.to_string()))?;
    let work = Rc::new(Work {
        workload: config.workload,
        pool: builder.build()?,
        file: file.map(OpenFile::from),
        block_bytes: config.block_bytes,
        blocks,
        is_patterned,
        seed,
        random: Cell::new(0x2545_f491_4f6c_dd1d ^ u64::from(seed.number())),
        next: Cell::new(0),
        gauge,
        over: Cell::new(false),
        measuring: Cell::new(false),
        latencies: RefCell::new(histogram),
        operations: Cell::new(0),
        checked: Cell::new(0),
        whole: Cell::new(0),
        written: RefCell::new(vec![0; words]),
    });
    let fibers: Vec<_> = (0..config.depth)
        .map(|_| {
            let work = Rc::clone(&work);
            kapok::spawn_local(move || {
                let result = work.go();
                if result.is_err() {
                    work.over.set(true);
                }
                result
            })
        })
        .collect();
    work.pass(config.warmup);
    let pid = std::process::id();
    let before = Usage::at_start(pid)?;
    let start = Instant::now();
    work.measuring.set(true);
    work.pass(config.duration);
    work.measuring.set(false);
    let measured = start.elapsed();
    let cpu = Usage::at_end(pid)?.since(&before).cpu;
    work.over.set(true);
    for fiber in fibers {
        fiber.join().map_err(|error| io::Error::other(error.to_string()))??;
    }
    let stats = work.pool.stats();
    let completed: u64 = stats.threads.iter().map(|thread| thread.completed).sum();
    let per_operation = if config.workload == Workload::Fsync { 2 } else { 1 };
    let all = (work.operations.get() * per_operation).max(1);
    let engine =
        kapok::metrics().loops.first().map_or_else(String::new, |it| it.engine.to_string());
    Ok(Outcome {
        latencies: work.latencies.replace(Histogram::new(1).expect("bounds that are known to fit")),
        measured,
        cpu,
        engine,
        on_threads: completed as f64 / all as f64,
        checked: work.checked.get(),
        whole: work.whole.get(),
        written: work.written.take(),
        seed,
    })
}

/// A number that two runs hardly have in common.
fn start_of(config: &DiskConfig) -> u32 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(config.depth as u32, |since| since.as_nanos() as u32)
}

impl Work {
    /// Lets this much time pass, or less if there is a reason.
    fn pass(&self, time: Duration) {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.over.get() || self.gauge.stop.load(Ordering::Relaxed) {
                return;
            }
            // A main fiber is not cancelled.
            let _ = kapok::sleep(left.min(TICK));
            self.gauge.operations.store(self.operations.get(), Ordering::Relaxed);
        }
    }

    /// One operation after the other, on a fiber.
    fn go(&self) -> io::Result<()> {
        let mut memory = Aligned::new(if self.file.is_some() { self.block_bytes } else { 0 });
        let mut began = Instant::now();
        while !self.over.get() {
            let offset = self.draw();
            if self.workload.writes() {
                pattern::fill(&mut memory, offset, self.seed);
                began = Instant::now();
            }
            memory = self.one(memory, offset)?;
            let ended = Instant::now();
            self.operations.set(self.operations.get() + 1);
            if self.measuring.get() {
                let nanoseconds = ended.duration_since(began).as_nanos() as u64;
                self.latencies.borrow_mut().saturating_record(nanoseconds);
            }
            // What is verified is not the operation's time.
            began = if self.verify(&memory, offset)? { Instant::now() } else { ended };
        }
        Ok(())
    }

    /// Where the next block is.
    fn draw(&self) -> u64 {
        let block = match self.workload {
            Workload::Nop => return 0,
            Workload::SeqRead => {
                let next = self.next.get();
                self.next.set(if next + 1 < self.blocks { next + 1 } else { 0 });
                next
            }
            _ => {
                let mut state = self.random.get();
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                self.random.set(state);
                ((u128::from(state) * u128::from(self.blocks)) >> 64) as u64
            }
        };
        block * self.block_bytes as u64
    }

    #[inline]
    fn one(&self, memory: Aligned, offset: u64) -> io::Result<Aligned> {
        let Some(file) = &self.file else {
            return self.pool.nop().block().map(|_| memory);
        };
        let wanted = self.block_bytes;
        let (moved, memory) = if self.workload.writes() {
            self.pool.write_at(file, memory, offset).block()
        } else {
            self.pool.read_at(file, memory, offset).block()
        };
        let what = if self.workload.writes() { "write" } else { "read" };
        match moved {
            Ok(moved) if moved == wanted => {}
            Ok(moved) => {
                return Err(io::Error::other(format!(
                    "a {what} of {wanted} bytes at {offset} moved {moved}"
                )));
            }
            Err(error) => {
                return Err(io::Error::new(error.kind(), format!("{what} at {offset}: {error}")));
            }
        }
        if self.workload.writes() {
            let block = offset / self.block_bytes as u64;
            self.written.borrow_mut()[(block / 64) as usize] |= 1 << (block % 64);
        }
        if self.workload == Workload::Fsync {
            self.pool.sync(file, true).block()?;
        }
        Ok(memory)
    }

    /// Looks at what was read. Says whether that took long.
    #[inline]
    fn verify(&self, memory: &[u8], offset: u64) -> io::Result<bool> {
        if !self.is_patterned || self.workload.writes() {
            return Ok(false);
        }
        let checked = self.checked.get();
        self.checked.set(checked + 1);
        let whole = checked.is_multiple_of(WHOLE);
        let is_right = if whole {
            self.whole.set(self.whole.get() + 1);
            pattern::is_right(memory, offset)
        } else {
            pattern::is_right_at_a_glance(memory, offset)
        };
        if is_right { Ok(whole) } else { Err(wrong(offset)) }
    }
}

fn wrong(offset: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the block at {offset} is not what was written there"),
    )
}

/// Reads some of what was written, by calls that have nothing to do with the pool.
fn read_back(subject: &Subject, config: &DiskConfig, outcome: &Outcome) -> io::Result<Verified> {
    use std::os::unix::fs::FileExt;

    let bits = |(at, &word): (usize, &u64)| {
        (0..64).filter(move |bit| (word >> bit) & 1 == 1).map(move |bit| at as u64 * 64 + bit)
    };
    let written: Vec<u64> = outcome.written.iter().enumerate().flat_map(bits).collect();
    let step = written.len().div_ceil(READ_BACK).max(1);
    let mut memory = Aligned::new(config.block_bytes);
    let mut read_back = 0;
    for block in written.iter().step_by(step) {
        let offset = block * config.block_bytes as u64;
        subject.file.read_exact_at(&mut memory, offset)?;
        if pattern::writer(&memory, offset) != Some(outcome.seed) {
            return Err(wrong(offset));
        }
        read_back += 1;
    }
    Ok(Verified::Writes { written: written.len() as u64, read_back })
}
