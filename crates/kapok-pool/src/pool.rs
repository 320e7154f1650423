//! The pool, and how it is made.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use kapok_engine::entry::Entry;
use kapok_engine::{Config, Kind, Readiness};

use crate::balance::Balance;
use crate::buffer::{Buffer, Source};
use crate::descriptor::{Descriptor, Held};
#[cfg(target_os = "linux")]
use crate::entries::{OfEntry, Splice};
#[cfg(target_os = "linux")]
use crate::incoming::Incoming;
use crate::lease::Buffers;
use crate::listener::{Accepting, Listener};
use crate::operation::Operation;
use crate::port::Order;
#[cfg(target_os = "linux")]
use crate::receiver::Receiver;
use crate::request::Request;
use crate::requests::{NoDescriptor, Plain, ReadAt, Ready, Recv, Send, WriteAt};
use crate::scale::Thresholds;
use crate::shared::{Lack, Shared};
use crate::stats::PoolStats;
use crate::step::Pace;
use crate::thread::{Crew, Plan};
use crate::via::Via;
#[cfg(target_os = "linux")]
use crate::watch::Watch;

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
                device_batch: 4,
                most_in_flight: 4096,
                completion_wait: Duration::from_secs(1),
                channel_wait: Duration::from_secs(1),
            },
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
    /// Default 4.
    pub fn device_batch(mut self, operations: usize) -> Builder {
        self.pace.device_batch = operations;
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
        let Pace { take, completion_batch, device_batch, most_in_flight, .. } = self.pace;
        match () {
            () if *self.threads.start() == 0 => Err("a pool wants at least one thread"),
            () if self.threads.is_empty() => Err("the range of threads is empty"),
            () if *self.threads.end() > 1024 => Err("more than 1,024 threads"),
            () if take == 0 => Err("take is 0: nothing would ever be submitted"),
            () if completion_batch == 0 => Err("completion_batch is 0: nothing would ever end"),
            () if device_batch == 0 => Err("device_batch is 0"),
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
    pub fn build(mut self) -> io::Result<Pool> {
        self.check().map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
        self.clamp();
        let (least, most) = (*self.threads.start(), *self.threads.end());
        let mut shared = Shared::new(self.slots, most, self.channel, self.balance);
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
        let pool = Pool(Arc::new(Inner { shared, crew, via: self.via }));
        for number in 0..least {
            pool.0.crew.start_and_wait(number)?;
            pool.0.shared.active.store(number as u32 + 1, Ordering::Release);
        }
        pool.0.shared.all_have_registered();
        Ok(pool)
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

struct Inner {
    shared: Arc<Shared>,
    crew: Arc<Crew>,
    via: Via,
}

impl Inner {
    fn close(&self, grace: Duration) {
        if self.shared.is_left_behind() {
            // Its bells would ring for the threads of the parent.
            return;
        }
        self.shared.set_grace(grace);
        self.shared.closed.store(true, Ordering::SeqCst);
        for port in &self.shared.ports {
            port.give(Order::Close);
        }
        self.shared.gate(Lack::Slot).wake_all();
        self.shared.gate(Lack::Room).wake_all();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Futures have a handle on the pool, so nobody waits for what is in flight. The threads end by
        // themselves.
        self.close(Duration::ZERO);
    }
}

/// Threads that carry out I/O, each with a ring of its own, for tasks of any executor, for fibers and
/// for plain threads.
///
/// A handle: clones are of the same pool, and it closes when the last one is dropped.
///
/// ```
/// use std::sync::Arc;
/// use kapok_pool::Pool;
///
/// # fn main() -> std::io::Result<()> {
/// # let path = std::env::temp_dir().join(format!("kapok-pool-doc-{}", std::process::id()));
/// # std::fs::write(&path, b"kapok floats")?;
/// let pool = Pool::builder().threads(1).build()?;
/// let file = Arc::new(std::fs::File::open(&path)?);
/// // In a task: `pool.read_at(…).await`.
/// let (count, buffer) = pool.read_at(&file, Vec::with_capacity(4096), 6).block();
/// assert_eq!(&buffer[..count?], b"floats");
/// # std::fs::remove_file(&path)
/// # }
/// ```
///
/// A pool does not survive a fork(2): in the child none of its threads exists, and operations that want one
/// fail with `NotConnected`; see [`shutdown`](Pool::shutdown).
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Pool {
    /// The options of a new pool.
    pub fn builder() -> Builder {
        Builder::default()
    }

    #[inline]
    pub(crate) fn shared(&self) -> &Shared {
        &self.0.shared
    }

    #[inline]
    pub(crate) fn via(&self) -> Via {
        self.0.via
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.shared.closed.load(Ordering::Acquire)
    }

    /// What the pool has counted, and what it has to do now.
    pub fn stats(&self) -> PoolStats {
        let shared = &self.0.shared;
        let active = shared.active.load(Ordering::Acquire) as usize;
        let threads = shared.ports.iter().enumerate().map(|(number, port)| {
            let in_flight = u64::from(port.in_flight.load(Ordering::Relaxed));
            port.counters.read(in_flight, port.channel.len() as u64, number < active)
        });
        PoolStats {
            threads: threads.collect(),
            waiting: shared.waiting(),
            grown: shared.grown.load(Ordering::Relaxed),
            shrunk: shared.shrunk.load(Ordering::Relaxed),
        }
    }

    /// Closes the pool for all its handles and waits for its threads. Operations begun from now on
    /// fail with `NotConnected`, and their buffers come back. What was begun before has `grace` to end
    /// by itself; what has not by then is cancelled, and comes to `ECANCELED` unless it did something.
    /// Blocks the calling thread until all has landed.
    ///
    /// The opening of a FIFO that nobody opens at the other end is not waited for; a thread stays behind
    /// with it until somebody does.
    ///
    /// One that another thread begins while the I/O threads have not heard of it yet may still be carried
    /// out. Of several shutdowns each blocks until all has landed; a grace that has begun is not changed by another.
    /// What a thread carries out itself, in [`Operation::block`], is not waited for, nor are calls on
    /// blocking threads.
    ///
    /// The child of a fork(2) has none of the threads. There operations that want one fail with
    /// `NotConnected`, and this logs an error and returns at once; what was in flight at the fork is the
    /// parent's, and its futures in the child never end.
    pub fn shutdown(&self, grace: Duration) {
        if self.0.shared.is_left_behind() {
            tracing::error!(
                "a pool is shut down in the child of a fork, which has none of its threads"
            );
            return;
        }
        self.0.close(grace);
        self.0.crew.join();
    }

    /// Whether the rings know these buffers, and reads and writes with their leases go through that: see
    /// [`Builder::buffers`].
    pub fn has_registered(&self, buffers: &Buffers) -> bool {
        self.0.shared.knows(buffers)
    }

    /// The same of a buffer.
    #[inline]
    pub(crate) fn knows(&self, buffer: &impl Source) -> bool {
        buffer.registered().is_some_and(|registered| self.0.shared.knows(registered.of))
    }

    /// An operation of any kind.
    pub fn run<R: Request>(&self, request: R) -> Operation<'_, R> {
        Operation::new(self, request)
    }

    /// Any [`Entry`] of io_uring: what the pool has no operation of its own for. It is what `make` says of
    /// `kept`, where that stays until the entry has landed; then `kept` comes back with what landed, the
    /// numbers of a completion. It runs on an I/O thread, whatever its [`Via`] is, and off io_uring as the
    /// [table of all](kapok_engine::entry::OPERATIONS) has it.
    ///
    /// Of an entry that lands more than once the first landing is told, after the last: of a send without a
    /// copy that is how much was sent, and the kernel reads the buffer no more. An entry that would go on is
    /// cancelled after the first landing; [`incoming`](Pool::incoming), [`receiver`](Pool::receiver) and
    /// [`watch`](Pool::watch) are for those.
    ///
    /// Dropped in flight, `kept` stays alive until the entry has landed, and is dropped on another thread
    /// then. A descriptor that the entry makes is a number until somebody owns it: it is lost with the
    /// operation.
    ///
    /// ```
    /// use std::os::fd::AsRawFd;
    /// use std::sync::Arc;
    /// use kapok_pool::{Pool, entry::Entry};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// # let path = std::env::temp_dir().join(format!("kapok-pool-entry-{}", std::process::id()));
    /// let pool = Pool::builder().build()?;
    /// let file = std::fs::File::create(&path)?;
    /// // In a task: `.await` in place of `block()`.
    /// let synced = |file: &mut std::fs::File| {
    ///     let flags = libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    ///     Entry::sync_file_range(file.as_raw_fd(), 4096, 0, flags)
    /// };
    /// // SAFETY: the entry names no memory, and the file, which is kept, has its descriptor open.
    /// let (landed, file) = unsafe { pool.entry(file, synced) }.block();
    /// assert_eq!(landed?.res, 0);
    /// # drop(file);
    /// # std::fs::remove_file(&path)
    /// # }
    /// ```
    ///
    /// # Safety
    ///
    /// The entry that `make` returns names only
    ///
    /// * memory that is valid, and unaliased where the kernel writes to it, as long as `kept` exists and is
    ///   not moved: its own fields, or what it owns on the heap. What the kernel uses for longer than the
    ///   entry takes is none of it: no send with `MSG_ZEROCOPY` (one of `Entry::send_zc` lands when the
    ///   kernel is done);
    /// * descriptors that stay open as long as `kept` exists, and which it may use, or close, as it does;
    /// * nothing of a ring's: no direct descriptor, no registered or provided buffer, no other operation,
    ///   no other ring. Rings are the pool's, and nobody knows which one it will be.
    ///
    /// `make` may be called several times, before the entry is submitted.
    ///
    /// # Errors
    ///
    /// In the outcome: what the system call of its name says, `EINVAL` or `EOPNOTSUPP` where a kernel does
    /// not have it.
    #[cfg(target_os = "linux")]
    pub unsafe fn entry<K, F>(&self, kept: K, make: F) -> Operation<'_, OfEntry<K, F>>
    where
        K: std::marker::Send + 'static,
        F: FnMut(&mut K) -> Entry + std::marker::Send + 'static,
    {
        // SAFETY: by the caller.
        self.run(unsafe { OfEntry::new(kept, make) })
    }

    /// Moves up to `len` bytes from one descriptor to another, one of which is a pipe, without taking them
    /// into memory: splice(2). An offset is of a file; without one it is where the file stands, and
    /// pipes have none. 0 is the end of what is read from. It may come to less than `len`.
    ///
    /// It runs on an I/O thread. Dropped, bytes may have been moved.
    ///
    /// # Errors
    ///
    /// What splice(2) says: `EINVAL` if neither is a pipe, `ESPIPE` for an offset in one.
    #[cfg(target_os = "linux")]
    pub fn splice<D: Descriptor, E: Descriptor>(
        &self,
        (from, from_offset): (&D, Option<u64>),
        (to, to_offset): (&E, Option<u64>),
        len: usize,
    ) -> Operation<'_, Splice<D, E>> {
        let (from, to) = ((from.clone(), from_offset), (to.clone(), to_offset));
        self.run(Splice::new(from, to, len))
    }

    /// Does nothing, on an I/O thread and its engine: for measuring the way there.
    pub fn nop(&self) -> Operation<'_, Plain<NoDescriptor>> {
        self.run(Plain::nop())
    }

    /// Is over at `deadline`.
    pub fn sleep_until(&self, deadline: Instant) -> Operation<'_, Plain<NoDescriptor>> {
        self.run(Plain::timer(deadline))
    }

    /// Reads into the room of `buffer` from `offset`, in bytes: pread(2). 0 is the end of the file,
    /// or an empty room. It may come to less than the room.
    ///
    /// # Errors
    ///
    /// What pread(2) says, `EINVAL` for an offset of 2⁶³ or more.
    pub fn read_at<D: Descriptor, B: Buffer>(
        &self,
        file: &D,
        buffer: B,
        offset: u64,
    ) -> Operation<'_, ReadAt<D, B>> {
        self.run(ReadAt::new(file.clone(), buffer, offset).registered(self))
    }

    /// Writes the bytes of `buffer` at `offset`: pwrite(2). It may come to less than all of them.
    ///
    /// # Errors
    ///
    /// What pwrite(2) says.
    pub fn write_at<D: Descriptor, B: Source>(
        &self,
        file: &D,
        buffer: B,
        offset: u64,
    ) -> Operation<'_, WriteAt<D, B>> {
        self.run(WriteAt::new(file.clone(), buffer, offset).registered(self))
    }

    /// fsync(2), or fdatasync(2) if `data_only`.
    ///
    /// # Errors
    ///
    /// What fsync(2) says. After an error nobody knows what of the data is on the device.
    pub fn sync<D: Descriptor>(&self, file: &D, data_only: bool) -> Operation<'_, Plain<D>> {
        self.run(Plain::sync(file.clone(), data_only))
    }

    /// Receives into the room of `buffer`: recv(2), with its `MSG_*` flags. 0 is the end of a stream.
    ///
    /// # Errors
    ///
    /// What recv(2) says.
    pub fn recv<D: Descriptor, B: Buffer>(
        &self,
        socket: &D,
        buffer: B,
        flags: i32,
    ) -> Operation<'_, Recv<D, B>> {
        self.run(Recv { socket: Held::new(socket.clone()), buffer, flags })
    }

    /// Sends the bytes of `buffer`: send(2), with its `MSG_*` flags. Never raises `SIGPIPE`.
    ///
    /// `MSG_ZEROCOPY` is left out: with it the kernel reads the buffer after the send is over, when it has
    /// come back. Sends without a copy are [entries](Pool::entry) of io_uring, `Entry::send_zc`.
    ///
    /// # Errors
    ///
    /// What send(2) says.
    pub fn send<D: Descriptor, B: Source>(
        &self,
        socket: &D,
        buffer: B,
        flags: i32,
    ) -> Operation<'_, Send<D, B>> {
        self.run(Send { socket: Held::new(socket.clone()), buffer, flags })
    }

    /// Accepts a connection: accept(2). One that an accept brought whose future had been dropped comes
    /// first.
    ///
    /// # Errors
    ///
    /// What accept(2) says: `EMFILE` and `ENFILE` where there is no descriptor for it.
    pub fn accept(&self, listener: &Listener) -> Accepting<'_> {
        Accepting::new(self, listener)
    }

    /// Accepts one connection after the other by one operation: see [`Incoming`].
    #[cfg(target_os = "linux")]
    pub fn incoming(&self, listener: &Listener) -> Incoming {
        Incoming::new(self, listener)
    }

    /// Receives one piece after the other by one operation: see [`Receiver`].
    #[cfg(target_os = "linux")]
    pub fn receiver<D: Descriptor>(&self, socket: &D) -> Receiver<D> {
        Receiver::new(self, socket)
    }

    /// Waits for events again and again by one operation: see [`Watch`].
    #[cfg(target_os = "linux")]
    pub fn watch<D: Descriptor>(&self, descriptor: &D, events: Readiness) -> Watch<D> {
        Watch::new(self, descriptor, events)
    }

    /// Waits until one of `events` holds, or an error: poll(2).
    ///
    /// # Errors
    ///
    /// What poll(2) says.
    pub fn ready<D: Descriptor>(
        &self,
        descriptor: &D,
        events: Readiness,
    ) -> Operation<'_, Ready<D>> {
        self.run(Ready { held: Held::new(descriptor.clone()), events })
    }
}

const _: () = {
    const fn is_shared<T: std::marker::Send + Sync>() {}
    is_shared::<Pool>();
};
