//! The pool, and how it is made.

mod builder;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kapok_engine::Readiness;
#[cfg(target_os = "linux")]
use kapok_engine::entry::Entry;

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
use crate::shared::{Lack, Shared};
use crate::stats::PoolStats;
use crate::thread::Crew;
use crate::via::Via;
#[cfg(target_os = "linux")]
use crate::watch::Watch;
pub use builder::Builder;
#[cfg(all(test, not(loom), target_os = "linux"))]
pub(crate) use builder::pace_for_tests;
#[cfg(all(test, not(loom)))]
pub(crate) use builder::{crew_for_tests, tests_only};

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
    /// A pool that a [`Driver`](crate::Driver) drives has no thread to be waited for: this returns at once, and the
    /// driver ends when all has landed.
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
