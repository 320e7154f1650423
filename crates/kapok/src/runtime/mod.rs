//! Runtimes: one or more loops, each on a thread of its own.

mod closing;
mod event_loop;
mod fallback;
mod fibers;
mod fork;
mod group;
mod incidents;
#[cfg(all(test, loom))]
mod models;
mod operations;
mod pace;
mod prefetch;
mod published;
mod remote;
mod report;
mod slots;

pub(crate) use event_loop::{Frame, Loop, Unstarted};
pub(crate) use fork::end_child;
pub(crate) use group::Group;
pub use incidents::{Incidents, incidents};
pub(crate) use published::{Counters, Published, current_thread_id, with_loops};
pub(crate) use remote::Remote;
pub(crate) use report::{About, Answer, Reported, Request, State};
pub(crate) use slots::Waiter;

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use kapok_engine::sim;
use kapok_engine::{AnyEngine, Config, Engine, Kind};

use crate::fiber::{self, JoinError};
use crate::observe::{self, Stall, StallCallback, WATCHDOG_VARIABLE, Watch};
use crate::stack::{self, StackPool};

/// The environment variable that forces an engine: `uring`, `epoll`, `poll`, `select`, `busy`, or
/// `auto` for the best there is.
pub const ENGINE_VARIABLE: &str = "KAPOK_ENGINE";

/// How a [`Runtime`] is made.
///
/// ```
/// use kapok::{Kind, Runtime};
///
/// # fn main() -> std::io::Result<()> {
/// let runtime = Runtime::builder().threads(2).engine(Kind::Epoll).build()?;
/// assert_eq!(runtime.run(|| 6 * 7), 42);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Builder {
    threads: usize,
    engine: Option<Kind>,
    config: Config,
    close_limit: Duration,
    keep_stacks: Duration,
    /// None: as the environment says.
    watchdog: Option<Duration>,
    on_stall: OnStall,
    dump_on_signal: bool,
}

/// Who is told of stalls, if not the log.
#[derive(Clone, Default)]
struct OnStall(Option<Arc<StallCallback>>);

impl std::fmt::Debug for OnStall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "a callback" } else { "the log" })
    }
}

impl Builder {
    /// How many loops, each on a thread of its own; the caller of [`Runtime::run`] is the first.
    /// Default 1. 0 means one for each core that the process may use.
    pub fn threads(mut self, threads: usize) -> Builder {
        self.threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            threads => threads,
        };
        self
    }

    /// The engine. Default: what [`ENGINE_VARIABLE`] says, and else the best there is.
    pub fn engine(mut self, kind: Kind) -> Builder {
        self.engine = Some(kind);
        self
    }

    /// Sizes of the engine's queues.
    pub fn engine_config(mut self, config: Config) -> Builder {
        self.config = config;
        self
    }

    /// Runs on a [simulated world](crate::sim) that is made from `config`, whatever
    /// [`ENGINE_VARIABLE`] says, and on one thread.
    pub fn simulation(mut self, config: sim::Config) -> Builder {
        self.config.simulation = Some(config);
        self.engine(Kind::Sim)
    }

    /// How long a loop keeps the memory of stacks that its fibers have left, if none ends meanwhile.
    /// Default 10 s. (More than 1,024 it never keeps.)
    pub fn keep_stacks(mut self, limit: Duration) -> Builder {
        self.keep_stacks = limit;
        self
    }

    /// How long fibers that are left when the main fiber ends have for ending themselves, once they
    /// are cancelled. Default 10 s. Those that have not are leaked, with their stacks.
    pub fn close_limit(mut self, limit: Duration) -> Builder {
        self.close_limit = limit;
        self
    }

    /// Reports fibers that run for `limit` without waiting, and so keep the other fibers of their loop
    /// from running: as a warning of the crate `tracing`, or on standard error where nothing subscribes to
    /// that, or to [`on_stall`](Builder::on_stall). Each stall is reported once with its backtrace while
    /// it goes on, and once when it is over. Zero turns it off. Default: what [`WATCHDOG_VARIABLE`] says,
    /// and else off.
    ///
    /// Off, because it takes a thread and a signal (`SIGURG`) of the process, and because how long is
    /// too long only the program knows: 100 ms is a fair limit for a server. Loops that go on cost
    /// nothing but the monitor's looks, see [`observe`](crate::observe#what-it-costs), so it can stay
    /// on in production.
    pub fn watchdog(mut self, limit: Duration) -> Builder {
        self.watchdog = Some(limit);
        self
    }

    /// Has the [`watchdog`](Builder::watchdog) report to `callback` and not to the log. It is called
    /// on the monitor's thread, where the next stall waits for it; a panic in it is reported by the
    /// panic hook and goes no further.
    pub fn on_stall(mut self, callback: impl Fn(&Stall) + Send + Sync + 'static) -> Builder {
        self.on_stall = OnStall(Some(Arc::new(callback)));
        self
    }

    /// Whether a [dump](crate::dump()) of all loops of the process is printed to standard error
    /// whenever the process gets `SIGUSR2`. Default: no. Once on it stays on for the process,
    /// also after this runtime. The dump itself is made by a thread, not in the signal's handler.
    pub fn dump_on_signal(mut self, on: bool) -> Builder {
        self.dump_on_signal = on;
        self
    }

    /// Makes the runtime, and its first engine as a trial.
    ///
    /// # Errors
    ///
    /// If the engine that was asked for cannot be had, or none can; `InvalidInput` if
    /// [`ENGINE_VARIABLE`] names none, or [`WATCHDOG_VARIABLE`] is no number; if a watchdog or dumps
    /// by signal were asked for and their thread cannot be had.
    pub fn build(self) -> io::Result<Runtime> {
        if self.engine == Some(Kind::Sim) && self.threads != 1 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a simulated world has one thread, not {}", self.threads),
            ));
        }
        let engine = match self.engine {
            Some(kind) => Some(kind),
            None => forced_by_environment()?,
        };
        // A trial, so that what cannot work fails here and not in some thread. An engine belongs to
        // the thread that made it, and `run` may be called from another.
        drop(make_engine(engine, &self.config)?);
        crate::carrier::install();
        let limit = match self.watchdog {
            Some(limit) => limit,
            None => limit_by_environment()?,
        };
        if self.dump_on_signal {
            observe::dump_on_signal()?;
        }
        if !limit.is_zero() {
            observe::ensure_watching()?;
        }
        Ok(Runtime { builder: Builder { engine, watchdog: Some(limit), ..self } })
    }

    /// How the loops are watched, if they are.
    fn watch(&self) -> Option<Watch> {
        let limit = self.watchdog.filter(|limit| !limit.is_zero())?;
        Some(Watch { limit, callback: self.on_stall.0.clone() })
    }
}

fn forced_by_environment() -> io::Result<Option<Kind>> {
    match std::env::var(ENGINE_VARIABLE) {
        Ok(name) if name.is_empty() || name == "auto" => Ok(None),
        Ok(name) => name.parse().map(Some).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{ENGINE_VARIABLE}: {error}"))
        }),
        Err(_) => Ok(None),
    }
}

fn limit_by_environment() -> io::Result<Duration> {
    let Ok(text) = std::env::var(WATCHDOG_VARIABLE) else { return Ok(Duration::ZERO) };
    let text = text.trim();
    if text.is_empty() {
        return Ok(Duration::ZERO);
    }
    text.parse().map(Duration::from_millis).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{WATCHDOG_VARIABLE}: {text:?} is not a number of milliseconds"),
        )
    })
}

fn make_engine(kind: Option<Kind>, config: &Config) -> io::Result<AnyEngine> {
    match kind {
        None => AnyEngine::best(config),
        Some(kind) => AnyEngine::new(kind, config)
            .map_err(|error| io::Error::new(error.kind(), NoEngine { kind, error })),
    }
}

/// Which engine cannot be had, and why.
#[derive(Debug)]
struct NoEngine {
    kind: Kind,
    error: io::Error,
}

impl std::fmt::Display for NoEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the {} engine cannot be had: {}", self.kind, self.error)
    }
}

impl std::error::Error for NoEngine {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// Runs fibers on one or more threads.
///
/// A fiber stays on the thread that started it. Fibers that were spawned but have not started are
/// offered to loops that have nothing to do.
///
/// # Fork
///
/// fork(2) may be called with loops running, on a fiber or on any other thread. The parent goes on
/// as if nothing had happened. Of the parent's fibers the child has the one that called, if one did,
/// and that one is a plain thread there: calls of this crate block, neither cancellation nor
/// deadlines reach it, [`FiberLocal`](crate::FiberLocal)s begin anew, and a runtime of its own may
/// be run. When its function returns the child exits, with status 0, or with 101 after a panic. To
/// join a fiber from before the fork, or to wait for what such a fiber was to do, is to wait for
/// ever. A child that goes back into a wait from which it was forked (by a future or a destructor)
/// is aborted.
///
/// If the process had other threads (those of a runtime with several loops, of
/// [`blocking`](crate::blocking()) or of anybody else), fork(2) lets the child call what is
/// async-signal-safe, exec(3) above all: a lock that another thread held is held for ever.
///
/// A process made without fork(3)'s handlers, by a bare clone(2), must not touch this crate.
#[derive(Debug)]
pub struct Runtime {
    builder: Builder,
}

impl Runtime {
    /// A runtime with one loop on the best engine.
    ///
    /// # Errors
    ///
    /// See [`Builder::build`].
    pub fn new() -> io::Result<Runtime> {
        Runtime::builder().build()
    }

    /// A runtime to be configured.
    pub fn builder() -> Builder {
        Builder {
            threads: 1,
            engine: None,
            config: Config::default(),
            close_limit: Duration::from_secs(10),
            keep_stacks: Duration::from_secs(10),
            watchdog: None,
            on_stall: OnStall::default(),
            dump_on_signal: false,
        }
    }

    /// Runs `main` as a fiber, on this thread's loop, and returns what it returns.
    ///
    /// When it ends, fibers that are left are cancelled and run out, for at most
    /// [`Builder::close_limit`]; those that do not end by then are leaked, never unwound.
    ///
    /// # Panics
    ///
    /// With the panic of `main`. If called on a fiber. If the other threads or their engines cannot
    /// be had. If `main` was [abandoned](JoinError::Abandoned).
    ///
    /// # A ring that dies
    ///
    /// If io_uring is denied while the runtime runs (by a seccomp filter that is installed then), each
    /// loop logs a warning and goes on with epoll. Fibers that wait in the dead ring for an operation
    /// with memory of theirs never resume; see [`JoinError::Abandoned`]. The process is aborted, with
    /// the reason, if such a fiber is a child of a [`scope`](crate::scope()), or if a loop has no
    /// other engine to go on with.
    pub fn run<T: 'static>(&self, main: impl FnOnce() -> T + 'static) -> T {
        self.try_run(main).unwrap_or_else(|error| panic!("the main fiber did not begin: {error}"))
    }

    /// The same, where it is no bug if the engine of the caller's loop, or the main fiber's stack, is not to
    /// be had by now: then `main` was not called.
    pub(crate) fn try_run<T: 'static>(&self, main: impl FnOnce() -> T + 'static) -> io::Result<T> {
        Loop::with_current(|current| {
            assert!(current.is_none(), "a runtime cannot run inside another one's fiber");
        });
        let builder = &self.builder;
        let engine = make_engine(builder.engine, &builder.config)?;
        let group = Arc::new(Group::new(builder.threads));
        let stopped = StopOnDrop(Arc::clone(&group));
        let mut threads = Vec::new();
        for index in 1..builder.threads {
            let (group, builder) = (Arc::clone(&group), builder.clone());
            let worker = std::thread::Builder::new().name(format!("kapok-{index}"));
            let spawned = worker.spawn(move || {
                let engine = make_engine(builder.engine, &builder.config)
                    .unwrap_or_else(|error| panic!("no engine for loop {index}: {error}"));
                serve_loop(&group, index, &builder, engine, |lp| lp.group().is_stopping());
            });
            threads.push(spawned.unwrap_or_else(|error| panic!("no thread for a loop: {error}")));
        }
        let mut handle = None;
        let mut main = Some(main);
        serve_loop(&group, 0, builder, engine, |lp| {
            if let Some(main) = main.take() {
                let name = fiber::Builder::new().name("main");
                handle = Some(fiber::spawn_on(lp, name, false, main));
            }
            let ended = handle.as_ref().is_some_and(fiber::JoinHandle::is_finished);
            if ended {
                // All loops close at once: fibers of one may wait for what fibers of others keep.
                group.stop();
            }
            ended
        });
        drop(stopped);
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
        for one in group.take_all() {
            one.discard(JoinError::Abandoned);
        }
        match handle.expect("the main fiber was spawned").join() {
            Ok(value) => Ok(value),
            Err(JoinError::Panicked(panic)) => std::panic::resume_unwind(panic),
            Err(JoinError::NoStack(error)) => Err(error),
            Err(error) => panic!("the main fiber did not end: {error}"),
        }
    }
}

/// Ends the other loops on whichever way out of `run`.
struct StopOnDrop(Arc<Group>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// A loop must not be unwound: its suspended fibers would be, and what they lent is in use.
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        eprintln!("kapok: a panic reached a loop, which cannot go on");
        std::process::abort();
    }
}

fn serve_loop(
    group: &Arc<Group>,
    index: usize,
    builder: &Builder,
    engine: AnyEngine,
    done: impl FnMut(&Loop) -> bool,
) {
    fork::prepare();
    stack::install_overflow_handler();
    // Without it an overflow still ends the process, only without naming the fiber.
    let _alternate_stack = stack::ensure_alternate_stack()
        .inspect_err(|error| tracing::warn!(%error, "no alternate signal stack"));
    let remote = Arc::new(Remote::new(engine.bell()));
    group.join(index, Arc::clone(&remote));
    let lp = Loop::new(
        engine,
        StackPool::new(),
        remote,
        Arc::clone(group),
        index,
        builder.keep_stacks,
        builder.watch(),
    );
    let listed = lp.list();
    let guard = AbortOnUnwind;
    let outcome = lp.run(done).and_then(|()| lp.close(builder.close_limit));
    std::mem::forget(guard);
    drop(listed);
    lp.forget_interrupts();
    if let Err(error) = outcome {
        // Memory is lent to an engine that will not say when it is done with it. No fiber can go
        // on, and nothing may be freed.
        eprintln!("kapok: the {} engine broke in mid-run: {error}", lp.kind());
        std::process::abort();
    }
    drop(lp);
    crate::interpose::tell_of_abandoned();
}
