//! The watchdog: tells when a fiber keeps its loop from running the others.
//!
//! A loop's epoch is odd while a fiber runs and changes with every resume. A thread looks at it four
//! times in the limit; what it finds unchanged and odd for that long is reported, once, and again
//! when it is over. A loop that waits in its engine has an even epoch.
//!
//! What counts is time in which the fiber could have gone on: time that its thread waited for a
//! processor (as the kernel counts it) is not the fiber's fault, and if the watchdog itself came
//! late, because the machine slept or was short of processors, the loops may have been late too.
//!
//! A loop that is stuck outside its fibers, in a waker or a destructor of the user's that runs on
//! the loop, is not noticed.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::subscriber::NoSubscriber;

use super::backtrace::{Backtrace, Symbols};
use super::collect::Running;
use super::dump::{RunningReport, in_call, title};
use super::{monitor, thread};
use crate::fiber;
use crate::runtime::{Counters, Published, with_loops};

/// The environment variable that turns the watchdog on, or off, where
/// [`RuntimeBuilder::watchdog`](crate::RuntimeBuilder::watchdog) says nothing: the limit in
/// milliseconds, 0 for none.
pub const WATCHDOG_VARIABLE: &str = "KAPOK_WATCHDOG_MS";

/// How many times in a limit a loop is looked at.
const LOOKS_PER_LIMIT: u32 = 4;

/// The least time between two looks.
const SHORTEST_LOOK: Duration = Duration::from_millis(1);

/// Who is told of stalls, if not the log.
pub(crate) type StallCallback = dyn Fn(&Stall) + Send + Sync;

/// How a loop is watched.
#[derive(Clone)]
pub(crate) struct Watch {
    pub(crate) limit: Duration,
    pub(crate) callback: Option<Arc<StallCallback>>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl Watch {
    fn interval(&self) -> Duration {
        (self.limit / LOOKS_PER_LIMIT).max(SHORTEST_LOOK)
    }
}

/// A fiber that runs for long without waiting, as the watchdog tells it.
///
/// Shown by `{}` it is a text to be read. The same is in its fields.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stall {
    /// Whether it goes on or is over.
    pub phase: StallPhase,
    /// How long it has taken by now: without time in which the thread waited for a processor, and
    /// exact to a fourth of the limit.
    pub duration: Duration,
    /// The name of the loop's thread.
    pub thread: String,
    /// The loop's number, unique in the process.
    pub loop_id: u64,
    /// The fiber's number. None if the thread did not take the signal.
    pub fiber: Option<u64>,
    /// The fiber's name, of at most 128 bytes.
    pub name: Option<String>,
    /// The function of the C library that the fiber's code had called then, if it was in one: `fgets`,
    /// `popen`, `recv`.
    pub function: Option<String>,
    /// The system call that the thread was in when it was looked at.
    pub system_call: Option<String>,
    /// Where the fiber was then.
    pub backtrace: Backtrace,
}

/// Which of the two reports of a [`Stall`] it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StallPhase {
    /// It has reached the limit and goes on.
    GoesOn,
    /// The fiber has waited, or ended.
    Over,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fiber {
            Some(id) => write!(f, "fiber {}", title(id, self.name.as_deref()))?,
            None => f.write_str("a fiber")?,
        }
        let duration = self.duration;
        let (thread, id) = (&self.thread, self.loop_id);
        match self.phase {
            StallPhase::GoesOn => {
                write!(f, " blocks loop {id}, thread {thread:?}, for {duration:.0?} already")?;
                writeln!(f, "{}", in_call(self.function.as_deref(), self.system_call.as_deref()))?;
                self.backtrace.fmt(f)
            }
            StallPhase::Over => {
                write!(f, " blocked loop {id}, thread {thread:?}, for {duration:.0?}")
            }
        }
    }
}

/// What the watchdog knows of one loop.
struct Watched {
    epoch: u64,
    /// How long the epoch has been the same, as far as that counts.
    stalled: Duration,
    looked_at: Instant,
    /// How long the thread had waited for a processor by then.
    queued: Duration,
    /// What was reported, if the stall was, and how long it had taken then.
    reported: Option<(Arc<Running>, Duration)>,
}

/// What is to be told of a stall, its frames not yet named.
pub(super) struct Finding {
    watch: Watch,
    phase: StallPhase,
    duration: Duration,
    published: Arc<Published>,
    running: Arc<Running>,
}

impl Finding {
    /// Names the frames and tells whom it concerns.
    pub(super) fn tell(self, symbols: &mut Symbols) {
        let RunningReport { fiber, name, function, system_call, backtrace } =
            self.running.report(symbols);
        let stall = Stall {
            phase: self.phase,
            duration: self.duration,
            thread: self.published.thread_name.clone(),
            loop_id: self.published.id,
            fiber,
            name,
            function,
            system_call,
            backtrace,
        };
        match &self.watch.callback {
            // The user's, on the monitor's thread: a panic in it is reported and ends there.
            Some(callback) => drop(fiber::contain(|| callback(&stall))),
            None if is_logged() => tracing::warn!("{stall}"),
            // Nobody keeps a log: a program in C, or one that knows nothing of Kapok.
            None => drop(writeln!(io::stderr().lock(), "kapok: {stall}")),
        }
    }
}

/// Whether anything subscribes to what this thread logs.
fn is_logged() -> bool {
    tracing::dispatcher::get_default(|subscriber| !subscriber.is::<NoSubscriber>())
}

/// Looks at loops for as long as the process lives. What it finds is told by the monitor: naming
/// frames may take long, and the next stall is not to be missed meanwhile.
pub(super) fn watch_for_ever() {
    let mut watchdog = Watchdog::default();
    loop {
        match watchdog.look() {
            Some(at) => std::thread::park_timeout(at.saturating_duration_since(Instant::now())),
            None => std::thread::park(),
        }
    }
}

#[derive(Default)]
struct Watchdog {
    loops: HashMap<u64, (Arc<Published>, Watched)>,
}

impl Watchdog {
    /// Looks at every loop that is watched, and says when to look again.
    fn look(&mut self) -> Option<Instant> {
        let listed: Vec<Arc<Published>> = with_loops(|loops| {
            loops.running.iter().filter(|one| one.watch.is_some()).cloned().collect()
        });
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for published in &listed {
            let Some(watch) = &published.watch else { continue };
            let (_, watched) = self.loops.entry(published.id).or_insert_with(|| {
                (Arc::clone(published), Watched::new(published.counters.epoch.get(), now))
            });
            watched.look(published, watch, now);
            let at = now + watch.interval();
            next = Some(next.map_or(at, |next| next.min(at)));
        }
        self.loops.retain(|id, (published, watched)| {
            let stays = listed.iter().any(|one| one.id == *id);
            if let (false, Some(watch)) = (stays, &published.watch) {
                watched.end(published, watch, now);
            }
            stays
        });
        next
    }
}

impl Watched {
    fn new(epoch: u64, now: Instant) -> Watched {
        Watched {
            epoch,
            stalled: Duration::ZERO,
            looked_at: now,
            queued: Duration::ZERO,
            reported: None,
        }
    }

    fn look(&mut self, published: &Arc<Published>, watch: &Watch, now: Instant) {
        let epoch = published.counters.epoch.get();
        if epoch != self.epoch {
            self.end(published, watch, now);
            self.looked_at = now;
            self.epoch = epoch;
            self.stalled = Duration::ZERO;
            // Asked for only where a fiber might be stuck.
            if Counters::is_running(epoch) {
                self.queued = thread::queued(published.thread_id);
            }
            return;
        }
        if !Counters::is_running(epoch) {
            self.looked_at = now;
            return;
        }
        let passed = now.saturating_duration_since(self.looked_at).min(watch.interval() * 2);
        let waited = self.set_off(published, now);
        self.looked_at = now;
        self.stalled += passed.saturating_sub(waited);
        if self.stalled >= watch.limit && self.reported.is_none() {
            let running = Running::look(published);
            // A wait for a processor is counted when it is over, as it is for who took the signal.
            let queued = thread::queued(published.thread_id);
            self.stalled = self.stalled.saturating_sub(queued.saturating_sub(self.queued));
            self.queued = queued;
            // If the epoch is another the signal may have found another fiber.
            if self.stalled >= watch.limit && published.counters.epoch.get() == epoch {
                let running = Arc::new(running);
                self.find(published, watch, StallPhase::GoesOn, &running);
                self.reported = Some((running, self.stalled));
            }
        }
    }

    /// Takes out what has counted as the fiber's and was a wait for a processor, and gives how long the
    /// thread has waited for one since the last look. The kernel counts a wait when it is over: what is
    /// more of it than has passed since that look was before it.
    fn set_off(&mut self, published: &Published, now: Instant) -> Duration {
        let queued = thread::queued(published.thread_id);
        let waited = queued.saturating_sub(self.queued);
        self.queued = queued;
        let passed = now.saturating_duration_since(self.looked_at);
        self.stalled = self.stalled.saturating_sub(waited.saturating_sub(passed));
        waited
    }

    /// Tells of a stall that was reported that it is over.
    fn end(&mut self, published: &Arc<Published>, watch: &Watch, now: Instant) {
        if let Some((running, told)) = self.reported.take() {
            self.set_off(published, now);
            self.stalled = self.stalled.max(told);
            self.find(published, watch, StallPhase::Over, &running);
        }
    }

    fn find(
        &self,
        published: &Arc<Published>,
        watch: &Watch,
        phase: StallPhase,
        running: &Arc<Running>,
    ) {
        monitor::tell(Finding {
            watch: watch.clone(),
            phase,
            duration: self.stalled,
            published: Arc::clone(published),
            running: Arc::clone(running),
        });
    }
}
