//! The options of a pool.

use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kapok_engine::{Config, Kind};

use super::{Inner, Pool};
use crate::balance::Balance;
#[cfg(target_os = "linux")]
use crate::driver::Driver;
use crate::lease::Buffers;
use crate::scale::Thresholds;
use crate::shared::Shared;
use crate::step::Pace;
use crate::thread::{Crew, Plan};
use crate::via::Via;

/// After how many reads and writes of a batch an I/O thread enters the kernel.
const DEVICE_BATCH: usize = 4;
/// The same where who submits drives the ring. Cold reads, 32 in flight: 1.14 × a bare ring's with 4 and
/// 1.18 with 2.
#[cfg(target_os = "linux")]
const DRIVERS_DEVICE_BATCH: usize = 2;

/// The options of a [`Pool`]. Made by [`Pool::builder`].
#[derive(Clone, Debug)]
#[must_use = "an option changes nothing before `build`"]
pub struct Builder {
    threads: RangeInclusive<usize>,
    name: String,
    engine: Option<Kind>,
    config: Config,
    channel: usize,
    slots: u32,
    pace: Pace,
    device_batch: Option<usize>,
    balance: Balance,
    via: Via,
    processors: Vec<usize>,
    trace: bool,
    scale: Thresholds,
    buffers: Option<Buffers>,
}

impl Default for Builder {
    fn default() -> Builder {
        Builder {
            threads: 1..=1,
            name: "kapok-io".into(),
            engine: None,
            config: Config::default(),
            channel: 1024,
            slots: 4096,
            pace: Pace {
                take: 64,
                spin: 1000,
                adaptive: true,
                completion_batch: 32,
                device_batch: DEVICE_BATCH,
                most_in_flight: 4096,
                completion_wait: Duration::from_secs(1),
                channel_wait: Duration::from_secs(1),
            },
            device_batch: None,
            balance: Balance::default(),
            via: Via::default(),
            processors: Vec::new(),
            trace: false,
            scale: Thresholds::default(),
            buffers: None,
        }
    }
}

impl Builder {
    /// How many I/O threads: a number, or by [`threads_between`](Builder::threads_between) a range.
    /// Default 1.
    pub fn threads(self, threads: usize) -> Builder {
        self.threads_between(threads..=threads)
    }

    /// At least and at most so many I/O threads: as many as the load wants. The first is there for good;
    /// others are started while operations queue up, and retired, after all they had has landed, while
    /// there is little to do.
    pub fn threads_between(mut self, threads: RangeInclusive<usize>) -> Builder {
        self.threads = threads;
        self
    }

    /// When threads are added and retired.
    pub fn scale(mut self, thresholds: Thresholds) -> Builder {
        self.scale = thresholds;
        self
    }

    /// What the threads are called; their number is appended. Default `kapok-io`.
    pub fn name(mut self, name: impl Into<String>) -> Builder {
        self.name = name.into();
        self
    }

    /// The engine of all threads. Default: io_uring where it is to be had, and else epoll with its
    /// offload threads, where files are read and written by calls that block.
    pub fn engine(mut self, kind: Kind) -> Builder {
        self.engine = Some(kind);
        self
    }

    /// How the engines are made: the sizes of the rings. Completions should have room for all that is
    /// in flight; what has not is kept in the kernel and costs more. Default: 1,024 submissions, 8,192
    /// completions.
    pub fn engine_config(mut self, config: Config) -> Builder {
        self.config = config;
        self
    }

    /// N: how many operations a thread takes from its channel before it submits them. Default 64.
    pub fn take(mut self, operations: usize) -> Builder {
        self.pace.take = operations;
        self
    }

    /// M: how often a thread looks for completions and operations before it sleeps, always. 0 uses the
    /// least CPU, 1,000 gives the best latency, and what lies between is often the worst of both.
    pub fn spin(mut self, looks: u32) -> Builder {
        (self.pace.spin, self.pace.adaptive) = (looks, false);
        self
    }

    /// M, at most: doubled when a thread that slept is woken so soon that spinning would have spared it
    /// the way there and back, and halved, down to none, when it is not. One number for threads with
    /// nothing in flight, where 80 µs are soon, and one, up to an eighth, for those that wait for
    /// completions, where 5 µs are. The default, with 1,000.
    pub fn spin_adaptively(mut self, most_looks: u32) -> Builder {
        (self.pace.spin, self.pace.adaptive) = (most_looks, true);
        self
    }

    /// `COMPLETION_BATCH`: how many completions are handed out before a thread looks whether there is
    /// something to submit. Default 32.
    pub fn completion_batch(mut self, completions: usize) -> Builder {
        self.pace.completion_batch = completions;
        self
    }

    /// After how many reads and writes of one batch the kernel is entered: a device is kept waiting
    /// while more of them are prepared. Not while 32 or more are in flight already, which keep it busy.
    /// Default 4; 2 for a [`Driver`], which nothing is handed over to meanwhile.
    pub fn device_batch(mut self, operations: usize) -> Builder {
        self.device_batch = Some(operations);
        self
    }

    /// How many operations a thread has in flight at most. What is beyond it waits in the channel.
    /// Default 4,096.
    pub fn in_flight(mut self, operations: usize) -> Builder {
        self.pace.most_in_flight = operations;
        self
    }

    /// How many operations wait in the channel of a thread, at least 2, rounded up to a power of two.
    /// Beyond that submitters wait. Default 1,024.
    pub fn channel(mut self, operations: usize) -> Builder {
        self.channel = operations;
        self
    }

    /// How many operations of the whole pool may be between their submission and the moment their
    /// outcome is taken: they live in slots that are made with the pool, of 256 bytes each. Beyond that
    /// submitters wait. Default 4,096.
    pub fn slots(mut self, operations: u32) -> Builder {
        self.slots = operations;
        self
    }

    /// How long a thread waits for completions at most before it looks around. Default 1 s.
    pub fn completion_wait(mut self, limit: Duration) -> Builder {
        self.pace.completion_wait = limit;
        self
    }

    /// How long a thread with nothing in flight waits on its channel at most before it looks around.
    /// Default 1 s.
    pub fn channel_wait(mut self, limit: Duration) -> Builder {
        self.pace.channel_wait = limit;
        self
    }

    /// How operations are spread over the threads.
    pub fn balance(mut self, balance: Balance) -> Builder {
        self.balance = balance;
        self
    }

    /// Where operations run that do not say it. Default [`Via::Auto`].
    pub fn via(mut self, via: Via) -> Builder {
        self.via = via;
        self
    }

    /// The processors that threads are pinned to, the first thread to the first, and again from the
    /// start if there are more threads. Default: none is pinned.
    pub fn pin(mut self, processors: impl Into<Vec<usize>>) -> Builder {
        self.processors = processors.into();
        self
    }

    /// Registers these buffers with every ring (`IORING_REGISTER_BUFFERS`): the kernel keeps their pages at
    /// hand and in memory, and reads and writes with their [leases](crate::Lease) are spared the way to
    /// them. Where they cannot be registered (RLIMIT_MEMLOCK, more than 16,384 GiB) this is logged and
    /// they are buffers like others: see [`Pool::has_registered`]. Off io_uring there is nothing to
    /// register.
    pub fn buffers(mut self, buffers: Buffers) -> Builder {
        self.buffers = Some(buffers);
        self
    }

    /// Whether each step of each thread is traced, as an event of `tracing` with the target
    /// `kapok_pool::step` and the level TRACE: the fields `thread` and `step` (1 to 5, 0 is the end) and a
    /// message that says what it came to. Default: no.
    pub fn trace(mut self, trace: bool) -> Builder {
        self.trace = trace;
        self
    }

    fn check(&self) -> Result<(), &'static str> {
        let Pace { take, completion_batch, most_in_flight, .. } = self.pace;
        match () {
            () if *self.threads.start() == 0 => Err("a pool wants at least one thread"),
            () if self.threads.is_empty() => Err("the range of threads is empty"),
            () if *self.threads.end() > 1024 => Err("more than 1,024 threads"),
            () if take == 0 => Err("take is 0: nothing would ever be submitted"),
            () if completion_batch == 0 => Err("completion_batch is 0: nothing would ever end"),
            () if self.device_batch == Some(0) => Err("device_batch is 0"),
            () if most_in_flight == 0 => Err("in_flight is 0: nothing would ever be submitted"),
            () if self.slots == 0 => Err("slots is 0: there would be no room for any operation"),
            () if self.slots > 1 << 24 => Err("more than 16,777,216 slots"),
            () if self.channel > 1 << 24 => Err("a channel of more than 16,777,216 operations"),
            () => Ok(()),
        }
    }

    /// Brings numbers that mean "without limit" to what a thread can reckon with and make room for: more
    /// than there are slots is never in flight, and nobody waits out the longest wait.
    fn clamp(&mut self) {
        const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);
        let slots = self.slots as usize;
        let pace = &mut self.pace;
        for operations in [&mut pace.take, &mut pace.completion_batch, &mut pace.most_in_flight] {
            *operations = (*operations).min(slots);
        }
        let waits = [&mut pace.completion_wait, &mut pace.channel_wait, &mut self.scale.interval];
        for wait in waits {
            *wait = (*wait).min(LONGEST_WAIT);
        }
    }

    /// Makes the pool and starts its threads.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for options that make no sense; what the system says if a thread or its engine
    /// cannot be had.
    pub fn build(self) -> io::Result<Pool> {
        let (least, most) = (*self.threads.start(), *self.threads.end());
        let pool = self.without_threads(most, DEVICE_BATCH)?;
        for number in 0..least {
            pool.0.crew.start_and_wait(number)?;
            pool.0.shared.active.store(number as u32 + 1, Ordering::Release);
        }
        pool.0.shared.all_have_registered();
        Ok(pool)
    }

    /// Makes a pool without a thread: what is handed over is carried out by the calling thread, whenever it
    /// polls the [`Driver`]. On tokio `kapok_tokio::drive` does so; the operations of tasks on that thread then
    /// spare two changes of threads, and those of other threads are carried out as well. For a thread that has
    /// other things to do than compute: while it does, nothing lands.
    ///
    /// What is said of threads, of spinning and of waits has no meaning here. [`Pool::shutdown`] does not wait;
    /// the driver ends when all has landed. What waits on the driving thread itself for an operation in flight,
    /// [`block_on`](crate::block_on) or [`Operation::block`](crate::Operation::block) where it does not make the
    /// system call, would wait for what only that thread can carry out.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for options that make no sense, `Unsupported` for an engine other than io_uring, and what
    /// the system says if it has no ring: then a pool with threads does the same.
    #[cfg(target_os = "linux")]
    pub fn build_driven(self) -> io::Result<(Pool, Driver)> {
        let pool = self.threads(1).without_threads(1, DRIVERS_DEVICE_BATCH)?;
        let driver = Driver::new(&pool.0.crew)?;
        pool.0.shared.active.store(1, Ordering::Release);
        pool.0.shared.all_have_registered();
        Ok((pool, driver))
    }

    /// A pool with so many ports, which nobody serves yet.
    fn without_threads(mut self, ports: usize, device_batch: usize) -> io::Result<Pool> {
        self.check().map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
        self.clamp();
        self.pace.device_batch = self.device_batch.unwrap_or(device_batch);
        let least = *self.threads.start();
        let mut shared = Shared::new(self.slots, ports, self.channel, self.balance);
        shared.buffers = self.buffers;
        let shared = Arc::new(shared);
        let plan = Plan {
            name: self.name,
            engine: self.engine,
            config: self.config,
            pace: self.pace,
            processors: self.processors,
            trace: self.trace,
            least,
            scale: self.scale,
        };
        let crew = Crew::new(Arc::clone(&shared), plan);
        Ok(Pool(Arc::new(Inner { shared, crew, via: self.via })))
    }
}

/// A handle on what a test drives itself.
#[cfg(all(test, not(loom)))]
pub(crate) fn tests_only(shared: Arc<Shared>) -> Pool {
    let crew = crew_of(Arc::clone(&shared));
    Pool(Arc::new(Inner { shared, crew, via: Via::Thread }))
}

/// The numbers of a loop that a test drives itself.
#[cfg(all(test, not(loom), target_os = "linux"))]
pub(crate) fn pace_for_tests() -> Pace {
    Pace { most_in_flight: 8, ..Builder::default().pace }
}

/// One port, and no thread yet.
#[cfg(all(test, not(loom)))]
pub(crate) fn crew_for_tests() -> Arc<Crew> {
    crew_of(Arc::new(Shared::new(8, 1, 8, Balance::default())))
}

#[cfg(all(test, not(loom)))]
fn crew_of(shared: Arc<Shared>) -> Arc<Crew> {
    let options = Builder::default();
    let plan = Plan {
        name: options.name,
        engine: None,
        config: options.config,
        pace: options.pace,
        processors: Vec::new(),
        trace: false,
        least: 1,
        scale: options.scale,
    };
    Crew::new(shared, plan)
}
