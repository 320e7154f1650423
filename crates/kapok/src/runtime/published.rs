//! What a loop publishes of itself, and the list of all loops of the process.
//!
//! Every number has one writer, the loop's thread, which counts in place: a relaxed load and a
//! relaxed store, on x86-64 and AArch64 the instructions of a plain increment. That is cheaper than
//! counting in private and copying out once a turn, which would make every turn pay for every
//! number, and a turn may be for the sake of one switch. Only the engine's own numbers are copied,
//! and only by turns in which it made a system call. No line of the cache is shared between loops.
//!
//! The numbers are read one by one while the loop goes on, so they may be of slightly different
//! moments: levels that are differences of counts are clamped at zero.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kapok_engine::{EngineStats, Kind};

use super::remote::Remote;
use crate::observe::Watch;

/// A number that one thread writes and any thread may read.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(crate) fn add(&self, count: u64) {
        self.set(self.get().wrapping_add(count));
    }

    #[inline]
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The numbers of one loop, on cache lines of their own (two at a time, as some processors fetch
/// them).
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Counters {
    /// Odd while a fiber runs; each resume adds two.
    pub(crate) epoch: Counter,
    pub(crate) turns: Counter,
    pub(crate) waits: Counter,
    pub(crate) ready: Counter,
    pub(crate) unstarted: Counter,
    pub(crate) remote_wakes: Counter,
    pub(crate) submitted: Counter,
    pub(crate) done_at_once: Counter,
    pub(crate) landed: Counter,
    pub(crate) disarmed: Counter,
    pub(crate) cancels: Counter,
    pub(crate) system_calls: Counter,
    pub(crate) backlogged: Counter,
    pub(crate) backlog: Counter,
    pub(crate) lost_edges: Counter,
    pub(crate) spawned: Counter,
    pub(crate) started: Counter,
    pub(crate) ended: Counter,
    pub(crate) panicked: Counter,
    pub(crate) abandoned: Counter,
    pub(crate) discarded: Counter,
    pub(crate) stacks_reused: Counter,
    pub(crate) stacks_given_back: Counter,
    pub(crate) stacks_warm: Counter,
}

impl Counters {
    /// Whether the epoch is one in which a fiber runs.
    pub(crate) fn is_running(epoch: u64) -> bool {
        !epoch.is_multiple_of(2)
    }

    /// What the loop's engines have counted up to now.
    pub(super) fn of_engines(&self) -> EngineStats {
        let mut stats = EngineStats::default();
        stats.system_calls = self.system_calls.get();
        stats.backlogged = self.backlogged.get();
        stats.lost_edges = self.lost_edges.get();
        stats
    }

    /// Publishes what an engine counts, on top of what the loop's engines before it counted.
    #[inline]
    pub(super) fn publish(&self, before: EngineStats, stats: EngineStats) {
        self.system_calls.set(before.system_calls + stats.system_calls);
        self.backlogged.set(before.backlogged + stats.backlogged);
        self.backlog.set(stats.backlog as u64);
        self.lost_edges.set(before.lost_edges + stats.lost_edges);
    }
}

/// A loop as other threads know it.
pub(crate) struct Published {
    pub(crate) counters: Counters,
    /// The loop's number, unique in the process.
    pub(crate) id: u64,
    /// Its place in its runtime.
    pub(crate) index: usize,
    /// It changes if a ring dies.
    kind: Mutex<Kind>,
    pub(crate) thread_name: String,
    /// The thread's number, for what is sent to it; 0 where threads have none.
    pub(crate) thread_id: i32,
    pub(crate) remote: Arc<Remote>,
    pub(crate) watch: Option<Watch>,
}

/// What the calling thread is called: by std, or by the kernel, if std did not start it.
fn thread_name() -> String {
    let by_kernel = || std::fs::read_to_string("/proc/thread-self/comm").ok();
    let name = std::thread::current().name().map(str::to_owned).or_else(by_kernel);
    let name = name.unwrap_or_default();
    if name.trim().is_empty() { "unnamed".to_owned() } else { name.trim().to_owned() }
}

impl Published {
    /// For a loop of the calling thread.
    pub(super) fn new(
        id: u64,
        index: usize,
        kind: Kind,
        remote: Arc<Remote>,
        watch: Option<Watch>,
    ) -> Arc<Published> {
        Arc::new(Published {
            counters: Counters::default(),
            id,
            index,
            kind: Mutex::new(kind),
            thread_name: thread_name(),
            thread_id: current_thread_id(),
            remote,
            watch,
        })
    }
}

impl Published {
    pub(crate) fn kind(&self) -> Kind {
        *self.kind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_kind(&self, kind: Kind) {
        *self.kind.lock().unwrap_or_else(PoisonError::into_inner) = kind;
    }
}

/// What gettid(2) says, or 0.
pub(crate) fn current_thread_id() -> i32 {
    #[cfg(target_os = "linux")]
    // SAFETY: gettid takes no memory and cannot fail.
    return unsafe { libc::syscall(libc::SYS_gettid) } as i32;
    #[cfg(not(target_os = "linux"))]
    0
}

/// The loops that run, and what those that ended have counted.
pub(crate) struct Loops {
    pub(crate) running: Vec<Arc<Published>>,
    pub(crate) ended: Counters,
    pub(crate) ended_count: u64,
    /// Whose they are.
    process: u32,
}

impl Loops {
    fn new() -> Loops {
        Loops {
            running: Vec::new(),
            ended: Counters::default(),
            ended_count: 0,
            process: std::process::id(),
        }
    }
}

static LOOPS: Mutex<Option<Loops>> = Mutex::new(None);

/// Runs `f` with the list of loops. While it runs none of them leaves its thread.
pub(crate) fn with_loops<R>(f: impl FnOnce(&mut Loops) -> R) -> R {
    let mut loops: MutexGuard<'_, Option<Loops>> =
        LOOPS.lock().unwrap_or_else(PoisonError::into_inner);
    let loops = loops.get_or_insert_with(Loops::new);
    if loops.process != std::process::id() {
        // In the child of a fork. Those of the parent are not to be touched, not even their end.
        std::mem::forget(std::mem::replace(loops, Loops::new()));
    }
    f(loops)
}

/// Keeps a loop on the list while its thread runs it.
pub(super) struct Listed(Arc<Published>);

impl Listed {
    pub(super) fn new(published: &Arc<Published>) -> Listed {
        with_loops(|loops| loops.running.push(Arc::clone(published)));
        Listed(Arc::clone(published))
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        with_loops(|loops| {
            loops.running.retain(|one| !Arc::ptr_eq(one, &self.0));
            loops.ended.absorb(&self.0.counters);
            loops.ended_count += 1;
        });
        // Nobody asks any more; who has asked learns that there is no answer.
        drop(self.0.remote.take_requests());
    }
}

/// Lists the fields once, for what is done to each.
macro_rules! counts {
    ($($field:ident),* $(,)?) => {
        impl Counters {
            /// Adds the counts of a loop that has ended; of its levels nothing is left.
            fn absorb(&self, other: &Counters) {
                $(self.$field.add(other.$field.get());)*
            }
        }
    };
}

counts!(
    epoch,
    turns,
    waits,
    remote_wakes,
    submitted,
    done_at_once,
    landed,
    disarmed,
    cancels,
    system_calls,
    backlogged,
    lost_edges,
    spawned,
    started,
    ended,
    panicked,
    abandoned,
    discarded,
    stacks_reused,
    stacks_given_back,
);
