//! The event-free API: a listener, a handler of plain reads, writes and sleeps, and a loop.
//!
//! [`register`] gives a listening socket to this thread's next loop, with a handler; [`run`] runs
//! the loop until it is told to [`stop`] or its work is done. Each connection's handler runs on a
//! fiber of its own. There are no callbacks and nothing is asynchronous.
//!
//! # Who closes what
//!
//! | connection | closed when |
//! |---|---|
//! | listener | its loop ends |
//! | accepted | its handler ends, in any way, a panic included |
//! | any other | the object that the program holds is dropped |
//!
//! # The sweep
//!
//! Once in a while a sweep looks at every accepted connection. If its peer has reset it while the
//! handler was busy with something else (a sleep, another connection), what the handler waits for
//! returns an error of kind [`ConnectionReset`](io::ErrorKind::ConnectionReset), so that it does not
//! work for nobody. A peer that has merely closed its sending half is none of the sweep's business:
//! its handler reads the end of the stream and may still reply.
//!
//! The sweep checks the engine besides: a descriptor that poll(2) finds ready, and that no turn until
//! the next sweep reports, has lost an edge. It is counted in [`Counters::lost_edges`], and served.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use kapok_engine::{Op, Readiness};

use crate::fiber::{self, Canceled, FiberRef};
use crate::net::{DescriptorLimit, TcpListener, TcpStream};
use crate::park;
use crate::runtime::{Loop, Runtime};
use crate::sim;
use crate::time;

/// How long accepting pauses when there are no descriptors left: at first, and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Connections that one sweep step asks about while it holds the list.
const SWEEP_CHUNK: usize = 1024;

type Handler = dyn Fn(&TcpStream) -> io::Result<()>;

/// What a loop has counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Connections accepted.
    pub accepted: u64,
    /// Times that a connection could not be accepted for want of descriptors or memory.
    pub refused: u64,
    /// Handlers that returned an error.
    pub failed: u64,
    /// Handlers that panicked.
    pub panicked: u64,
    /// Connections that a sweep found dead.
    pub reaped: u64,
    /// Edges that the engine lost and a sweep found. Anything but 0 is a bug in the engine.
    pub lost_edges: u64,
    /// Sweeps made.
    pub sweeps: u64,
}

#[derive(Debug, Default)]
struct Tally {
    accepted: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    panicked: AtomicU64,
    reaped: AtomicU64,
    lost_edges: AtomicU64,
    sweeps: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Of what a running server consists that others may reach.
#[derive(Default)]
struct Shared {
    tally: Tally,
    stop: Mutex<Stop>,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Stop {
    requested: bool,
    waker: Option<std::task::Waker>,
}

/// The accepted connections, each with the fiber that serves it.
#[derive(Default)]
struct Connections {
    list: Vec<Option<(RawFd, FiberRef)>>,
    free: Vec<usize>,
    /// Wakes the sweeper when there is something to sweep.
    waker: Option<std::task::Waker>,
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        let mut stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner);
        stop.requested = true;
        let waker = stop.waker.take();
        drop(stop);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Keeps a connection on the sweep's list for as long as it is open.
struct Listed<'a> {
    shared: &'a Shared,
    place: usize,
}

impl<'a> Listed<'a> {
    fn new(shared: &'a Shared, stream: &TcpStream, fiber: FiberRef) -> Listed<'a> {
        let mut connections = shared.connections();
        let entry = Some((stream.as_raw_fd(), fiber));
        let place = match connections.free.pop() {
            Some(place) => {
                connections.list[place] = entry;
                place
            }
            None => {
                connections.list.push(entry);
                connections.list.len() - 1
            }
        };
        let waker = connections.waker.take();
        drop(connections);
        if let Some(waker) = waker {
            waker.wake();
        }
        Listed { shared, place }
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let mut connections = self.shared.connections();
        let entry = connections.list[self.place].take();
        connections.free.push(self.place);
        drop(connections);
        drop(entry);
    }
}

/// A server of the event-free API, when one per thread is not what is wanted: see the free
/// functions [`register`], [`run`] and [`stop`] for the short form.
///
/// ```no_run
/// use kapok::net::TcpListener;
/// use kapok::server::{self, Server};
///
/// # fn main() -> std::io::Result<()> {
/// let mut server = Server::new(kapok::Runtime::new()?);
/// server.register(TcpListener::bind("127.0.0.1:7777")?, |stream| {
///     let mut buf = [0; 4096];
///     loop {
///         match server::read(stream, &mut buf)? {
///             0 => return Ok(()),
///             count => server::write(stream, &buf[..count])?,
///         }
///     }
/// });
/// let stopper = server.stopper();
/// std::thread::spawn(move || stopper.stop());
/// let counters = server.run()?;
/// println!("{} connections", counters.accepted);
/// # Ok(())
/// # }
/// ```
pub struct Server {
    runtime: Runtime,
    sweep_interval: Duration,
    work: Work,
    shared: Arc<Shared>,
}

/// What a server is to do.
#[doc(hidden)]
#[derive(Default)]
pub struct Work {
    listeners: Vec<(TcpListener, Box<Handler>)>,
    started: Vec<Box<dyn FnOnce()>>,
}

impl Work {
    /// See [`Server::register`].
    pub fn register(
        &mut self,
        listener: TcpListener,
        handler: impl Fn(&TcpStream) -> io::Result<()> + 'static,
    ) {
        self.listeners.push((listener, Box::new(handler)));
    }

    /// See [`Server::start`].
    pub fn start(&mut self, f: impl FnOnce() + 'static) {
        self.started.push(Box::new(f));
    }
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Work").field("listeners", &self.listeners.len()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("work", &self.work).finish_non_exhaustive()
    }
}

/// Stops a [`Server`], from a handler or from any thread.
#[derive(Clone)]
pub struct Stopper(Weak<Shared>);

impl std::fmt::Debug for Stopper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stopper")
    }
}

impl Stopper {
    /// Has the server's loop end: it accepts nothing more, and cancels its handlers.
    pub fn stop(&self) {
        if let Some(shared) = self.0.upgrade() {
            shared.stop();
        }
    }
}

impl Server {
    /// A server that will run on `runtime`.
    pub fn new(runtime: Runtime) -> Server {
        Server {
            runtime,
            sweep_interval: Duration::from_secs(2),
            work: Work::default(),
            shared: Arc::default(),
        }
    }

    /// How much time lies between two sweeps. Default 2 s.
    pub fn sweep_interval(&mut self, interval: Duration) -> &mut Server {
        self.sweep_interval = interval;
        self
    }

    /// Serves `listener` with `handler`, which runs on a fiber of its own for each connection. An
    /// error that it returns ends the connection, and is counted.
    pub fn register(
        &mut self,
        listener: TcpListener,
        handler: impl Fn(&TcpStream) -> io::Result<()> + 'static,
    ) -> &mut Server {
        self.work.register(listener, handler);
        self
    }

    /// Has `f` run as a fiber of the loop, from its start on.
    pub fn start(&mut self, f: impl FnOnce() + 'static) -> &mut Server {
        self.work.start(f);
        self
    }

    /// What stops the server.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::downgrade(&self.shared))
    }

    /// Runs the loop until it is stopped or, without listeners, until its last fiber has ended.
    ///
    /// # Errors
    ///
    /// If there is no engine or no stack to be had by now. What goes wrong with a connection is counted, not
    /// returned.
    pub fn run(self) -> io::Result<Counters> {
        self.run_with(|_| ())
    }

    /// The same, with work that `add` adds when the loop has begun. After an error it was not called.
    pub(crate) fn run_with(self, add: impl FnOnce(&mut Work) + 'static) -> io::Result<Counters> {
        let Server { runtime, sweep_interval, mut work, shared } = self;
        let inside = Arc::clone(&shared);
        runtime.try_run(move || {
            add(&mut work);
            let Work { listeners, started } = work;
            let _entered = Entered::new(&inside);
            for f in started {
                fiber::spawn_local(f).detach();
            }
            let serving = !listeners.is_empty();
            for (listener, handler) in listeners {
                let shared = Arc::clone(&inside);
                let acceptor = fiber::Builder::new().name("acceptor");
                acceptor
                    .spawn_local(move || accept_all(&shared, &listener, handler.into()))
                    .detach();
            }
            if serving {
                let shared = Arc::clone(&inside);
                let sweeper = fiber::Builder::new().name("sweeper");
                sweeper.spawn_local(move || sweep_for_ever(&shared, sweep_interval)).detach();
            }
            wait_for_end(&inside, serving);
        })?;
        let tally = &shared.tally;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Ok(Counters {
            accepted: read(&tally.accepted),
            refused: read(&tally.refused),
            failed: read(&tally.failed),
            panicked: read(&tally.panicked),
            reaped: read(&tally.reaped),
            lost_edges: read(&tally.lost_edges),
            sweeps: read(&tally.sweeps),
        })
    }
}

fn wait_for_end(shared: &Shared, serving: bool) {
    park::block_on(std::future::poll_fn(|context| {
        let mut stop = shared.stop.lock().unwrap_or_else(PoisonError::into_inner);
        if stop.requested {
            return Poll::Ready(());
        }
        stop.waker = Some(context.waker().clone());
        drop(stop);
        // Without a listener the work is done when this fiber is the last.
        let last = !serving
            && Loop::with_current(|current| {
                current.is_none_or(|lp| {
                    lp.watch_endings(context.waker().clone());
                    lp.live_fibers() <= 1
                })
            });
        if last { Poll::Ready(()) } else { Poll::Pending }
    }));
}

fn accept_all(shared: &Arc<Shared>, listener: &TcpListener, handler: std::rc::Rc<Handler>) {
    let mut pause = BACK_OFF.0;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                pause = BACK_OFF.0;
                count(&shared.tally.accepted);
                let (shared, handler) = (Arc::clone(shared), std::rc::Rc::clone(&handler));
                fiber::spawn_local(move || serve(&shared, stream, &*handler)).detach();
            }
            Err(error) if Canceled::is(&error) => return,
            Err(error) if DescriptorLimit::is(&error) => {
                count(&shared.tally.refused);
                tracing::warn!(%error, "a connection was closed");
            }
            Err(error) => {
                count(&shared.tally.refused);
                tracing::warn!(%error, ?pause, "cannot accept a connection");
                if time::sleep(pause).is_err() {
                    return;
                }
                pause = (pause * 2).min(BACK_OFF.1);
            }
        }
    }
}

fn serve(shared: &Shared, stream: TcpStream, handler: &Handler) {
    let fiber = Loop::with_running(|running| running.map(|(lp, fiber)| lp.share(fiber)))
        .expect("handlers run on fibers");
    // Dropped in the opposite order: off the list, then closed.
    let listed = Listed::new(shared, &stream, fiber);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| handler(&stream)));
    drop(listed);
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            count(&shared.tally.failed);
            tracing::debug!(%error, "a handler ended");
        }
        Err(_) => count(&shared.tally.panicked),
    }
}

fn sweep_for_ever(shared: &Shared, interval: Duration) {
    loop {
        // Without connections there is nothing to wake up for.
        let listed = park::block_on_interruptible(std::future::poll_fn(|context| {
            let mut connections = shared.connections();
            if connections.list.len() > connections.free.len() {
                return Poll::Ready(());
            }
            connections.waker = Some(context.waker().clone());
            Poll::Pending
        }));
        if listed.is_err() || time::sleep(interval).is_err() {
            return;
        }
        sweep(shared);
    }
}

/// Which of these descriptors have an error pending.
fn broken(fds: &[RawFd]) -> Vec<bool> {
    let simulated = sim::with_world(|world| {
        let mut broken = |&fd: &RawFd| {
            let op = Op::Poll { fd, events: Readiness::ERROR };
            // SAFETY: a poll names no memory.
            let seen = unsafe { world.perform(&op) };
            seen > 0 && Readiness(seen as i16).intersects(Readiness::ERROR)
        };
        fds.iter().map(&mut broken).collect()
    });
    simulated.unwrap_or_else(|| {
        // Nothing is asked for: errors are reported anyway.
        let mut asked: Vec<libc::pollfd> =
            fds.iter().map(|&fd| libc::pollfd { fd, events: 0, revents: 0 }).collect();
        // SAFETY: the array is as long as it says; a wait of zero does not block.
        unsafe { libc::poll(asked.as_mut_ptr(), asked.len() as libc::nfds_t, 0) };
        // An error alone may be a message in the error queue. With a reset the connection is over.
        let over = libc::POLLERR | libc::POLLHUP;
        asked.iter().map(|seen| seen.revents & over == over).collect()
    })
}

fn sweep(shared: &Shared) {
    count(&shared.tally.sweeps);
    let mut from = 0;
    loop {
        let (gone, next) = {
            let connections = shared.connections();
            // While the list is held nothing on it is closed, so the numbers mean what they say.
            let chunk = connections.list.iter().skip(from).take(SWEEP_CHUNK);
            let (fds, fibers): (Vec<RawFd>, Vec<&FiberRef>) =
                chunk.flatten().map(|(fd, fiber)| (*fd, fiber)).unzip();
            let gone: Vec<FiberRef> = broken(&fds)
                .into_iter()
                .zip(fibers)
                .filter(|(broken, _)| *broken)
                .map(|(_, fiber)| FiberRef::clone(fiber))
                .collect();
            (gone, (from + SWEEP_CHUNK < connections.list.len()).then_some(from + SWEEP_CHUNK))
        };
        for fiber in gone {
            if !fiber.peer_gone() {
                count(&shared.tally.reaped);
                fiber.set_peer_gone();
            }
        }
        match next {
            Some(next) => from = next,
            None => break,
        }
        fiber::yield_now();
    }
    let lost = Loop::with_current(|current| current.map_or(0, Loop::sweep));
    shared.tally.lost_edges.fetch_add(lost, Ordering::Relaxed);
}

// ---- The short form -------------------------------------------------------------------------

thread_local! {
    /// What was registered on this thread and has not run yet.
    static WAITING: RefCell<Option<Server>> = const { RefCell::new(None) };
    /// The server that runs on this thread.
    static HERE: RefCell<Option<Arc<Shared>>> = const { RefCell::new(None) };
}

/// The servers that run in this process.
static RUNNING: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());

/// Makes a server findable by [`stop`] while it runs.
struct Entered(Option<Arc<Shared>>);

impl Entered {
    fn new(shared: &Arc<Shared>) -> Entered {
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(shared));
        Entered(HERE.replace(Some(Arc::clone(shared))))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let ended = HERE.replace(self.0.take());
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|server| {
            server.upgrade().is_some_and(|server| {
                !ended.as_ref().is_some_and(|ended| Arc::ptr_eq(&server, ended))
            })
        });
    }
}

fn with_waiting<R>(f: impl FnOnce(&mut Server) -> R) -> io::Result<R> {
    WAITING.with_borrow_mut(|waiting| {
        let server = match waiting {
            Some(server) => server,
            None => waiting.insert(Server::new(Runtime::new()?)),
        };
        Ok(f(server))
    })
}

/// Gives `listener` and its `handler` to this thread's next [`run`].
///
/// # Errors
///
/// If no engine is to be had.
///
/// ```no_run
/// use kapok::net::TcpListener;
///
/// fn main() -> std::io::Result<()> {
///     kapok::register(TcpListener::bind("127.0.0.1:7777")?, |stream| {
///         let mut buf = [0; 4096];
///         loop {
///             match kapok::read(stream, &mut buf)? {
///                 0 => return Ok(()),
///                 count => kapok::write(stream, &buf[..count])?,
///             }
///         }
///     })?;
///     kapok::run().map(drop)
/// }
/// ```
pub fn register(
    listener: TcpListener,
    handler: impl Fn(&TcpStream) -> io::Result<()> + 'static,
) -> io::Result<()> {
    with_waiting(|server| {
        server.register(listener, handler);
    })
}

/// Has `f` run as a fiber of this thread's next [`run`].
///
/// # Errors
///
/// If no engine is to be had.
pub fn start(f: impl FnOnce() + 'static) -> io::Result<()> {
    with_waiting(|server| {
        server.start(f);
    })
}

/// Runs what was registered and started on this thread, until [`stop`] is called or, without
/// listeners, until the last fiber has ended. Each thread may run a loop of its own.
///
/// # Errors
///
/// If no engine is to be had.
pub fn run() -> io::Result<Counters> {
    let server = match WAITING.take() {
        Some(server) => server,
        None => Server::new(Runtime::new()?),
    };
    server.run()
}

/// Ends the loop that calls it; called from a thread without one, every loop of the process that
/// [`run`] or [`Server::run`] runs.
pub fn stop() {
    if let Some(here) = HERE.with_borrow(Clone::clone) {
        here.stop();
        return;
    }
    let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for server in running.iter().filter_map(Weak::upgrade) {
        server.stop();
    }
}

/// Reads what has come, at least a byte if `buf` has room for one. 0 with room is the end of the
/// stream; an empty buffer returns 0 at once and says nothing.
///
/// # Errors
///
/// The stream's; cancellation and deadlines.
pub fn read(mut stream: impl Read, buf: &mut [u8]) -> io::Result<usize> {
    stream.read(buf)
}

/// Writes all of `bytes`.
///
/// # Errors
///
/// The stream's; cancellation and deadlines. How much was written by then is not told.
pub fn write(mut stream: impl Write, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)
}
