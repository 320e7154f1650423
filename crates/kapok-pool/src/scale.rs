//! How many threads serve: more while operations pile up, fewer while few are left.
//!
//! The pool's first thread looks at all of them at intervals, so that nobody is needed who only looks.
//! One look decides nothing: it takes several in a row, and more of them to retire a thread than to
//! start one, since a thread that was retired too early costs the start of another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::port::Order;
use crate::step::Event;
use crate::thread::Crew;

/// When threads are added and retired, for [`Builder::scale`](crate::Builder::scale).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Thresholds {
    /// How often the load is looked at. Default 10 ms.
    pub interval: Duration,
    /// A thread is added while so many operations, queued and in flight, come to each thread that
    /// serves. Default 128.
    pub grow_at: usize,
    /// How many looks in a row must find that, or must find all threads awake all the time with
    /// operations in their channels. Default 3.
    pub grow_after: u32,
    /// A thread is retired when, without it, no more than so many operations would come to each of the
    /// others. Less than `grow_at`, so that the two do not alternate. Default 32.
    pub shrink_at: usize,
    /// How many looks in a row must find that. Default 100.
    pub shrink_after: u32,
}

impl Default for Thresholds {
    fn default() -> Thresholds {
        Thresholds {
            interval: Duration::from_millis(10),
            grow_at: 128,
            grow_after: 3,
            shrink_at: 32,
            shrink_after: 100,
        }
    }
}

/// What one look saw.
#[derive(Clone, Copy, Debug)]
struct Load {
    serving: usize,
    /// Operations queued and in flight, of all threads.
    pending: usize,
    /// No serving thread has slept since the last look, and each has something in its channel.
    saturated: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Stay,
    Grow,
    Shrink,
}

/// The decision, apart from threads and clocks.
#[derive(Debug, Default)]
struct Judge {
    high: u32,
    low: u32,
}

impl Judge {
    fn judge(&mut self, load: Load, least: usize, most: usize, limits: &Thresholds) -> Verdict {
        let Load { serving, pending, saturated } = load;
        let high =
            serving < most && (saturated || pending >= limits.grow_at.saturating_mul(serving));
        let low = serving > least
            && !saturated
            && pending <= limits.shrink_at.saturating_mul(serving - 1);
        self.high = if high { self.high.saturating_add(1) } else { 0 };
        self.low = if low { self.low.saturating_add(1) } else { 0 };
        if high && self.high >= limits.grow_after {
            *self = Judge::default();
            return Verdict::Grow;
        }
        if low && self.low >= limits.shrink_after {
            *self = Judge::default();
            return Verdict::Shrink;
        }
        Verdict::Stay
    }
}

/// So many steps go by between two looks at the clock.
const STEPS: u32 = 64;

pub(crate) struct Scaler {
    crew: Arc<Crew>,
    judge: Judge,
    /// Steps until the next look at the clock.
    steps: u32,
    next: Instant,
    /// How often each thread had slept at the last look.
    sleeps: Vec<u64>,
    /// A thread is being started.
    starting: Arc<AtomicBool>,
}

impl Scaler {
    pub(crate) fn new(crew: Arc<Crew>) -> Scaler {
        let sleeps = vec![0; crew.shared.ports.len()];
        let starting = Arc::new(AtomicBool::new(false));
        Scaler { crew, judge: Judge::default(), steps: 0, next: Instant::now(), sleeps, starting }
    }

    /// Called by the first thread after each of its steps.
    #[inline]
    pub(crate) fn look(&mut self, event: Event) {
        let waited = matches!(event, Event::WaitedForCompletions(_) | Event::WaitedOnChannel(_));
        if self.steps > 0 && !waited {
            self.steps -= 1;
            return;
        }
        self.steps = STEPS;
        let now = Instant::now();
        if now >= self.next {
            self.next = now + self.crew.plan.scale.interval;
            self.adjust();
        }
    }

    fn adjust(&mut self) {
        let shared = &self.crew.shared;
        let serving = shared.active.load(Ordering::Acquire) as usize;
        let mut load = Load { serving, pending: 0, saturated: true };
        for (at, port) in shared.ports.iter().enumerate() {
            let sleeps = port.counters.sleeps.load(Ordering::Relaxed);
            if at < serving {
                load.pending += port.load();
                load.saturated &= sleeps == self.sleeps[at] && !port.channel.is_empty();
            }
            self.sleeps[at] = sleeps;
        }
        // Whoever builds the pool is still starting threads while fewer serve than always do.
        let is_built = serving >= self.crew.plan.least;
        let closed = shared.closed.load(Ordering::Acquire);
        if !is_built || closed || self.starting.load(Ordering::Acquire) {
            return;
        }
        let plan = &self.crew.plan;
        match self.judge.judge(load, plan.least, shared.ports.len(), &plan.scale) {
            Verdict::Stay => {}
            Verdict::Grow => self.grow(serving),
            Verdict::Shrink => {
                // Submitters that have not heard of it find the channel closed and go on to another.
                shared.active.store(serving as u32 - 1, Ordering::Release);
                shared.ports[serving - 1].give(Order::Retire);
                shared.shrunk.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn grow(&self, number: usize) {
        // A thread that retires may have operations that never end. It serves again, for no other can
        // while it is there.
        if self.crew.shared.ports[number].take_back() {
            self.crew.shared.active.store(number as u32 + 1, Ordering::Release);
            self.crew.shared.grown.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.starting.store(true, Ordering::Release);
        let (starting, shared) = (Arc::clone(&self.starting), Arc::clone(&self.crew.shared));
        let done = move |outcome: std::io::Result<()>| {
            match outcome {
                Ok(()) => {
                    shared.active.store(number as u32 + 1, Ordering::Release);
                    shared.grown.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => tracing::warn!(%error, "no further I/O thread could be started"),
            }
            starting.store(false, Ordering::Release);
        };
        if let Err(error) = self.crew.start(number, done) {
            tracing::warn!(%error, "no further I/O thread could be started");
            self.starting.store(false, Ordering::Release);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn limits() -> Thresholds {
        Thresholds {
            grow_at: 10,
            grow_after: 3,
            shrink_at: 2,
            shrink_after: 5,
            ..Default::default()
        }
    }

    fn judge_all(judge: &mut Judge, load: Load, times: usize) -> Vec<Verdict> {
        (0..times).map(|_| judge.judge(load, 1, 4, &limits())).collect()
    }

    use Verdict::{Grow, Shrink, Stay};

    #[test]
    fn it_grows_when_the_load_stays_high() {
        let mut judge = Judge::default();
        let load = Load { serving: 2, pending: 20, saturated: false };
        assert_eq!(judge_all(&mut judge, load, 4), [Stay, Stay, Grow, Stay]);
        let calm = Load { pending: 19, ..load };
        assert_eq!(judge_all(&mut judge, load, 1), [Stay]);
        assert_eq!(judge_all(&mut judge, calm, 1), [Stay]);
        // A high look between calm ones is none in a row.
        assert_eq!(judge_all(&mut judge, load, 3), [Stay, Stay, Grow]);
    }

    #[test]
    fn it_grows_when_all_are_saturated() {
        let mut judge = Judge::default();
        let load = Load { serving: 1, pending: 3, saturated: true };
        assert_eq!(judge_all(&mut judge, load, 3), [Stay, Stay, Grow]);
    }

    #[test]
    fn it_shrinks_later_and_not_while_the_rest_would_have_too_much() {
        let mut judge = Judge::default();
        let load = Load { serving: 3, pending: 4, saturated: false };
        assert_eq!(judge_all(&mut judge, load, 5), [Stay, Stay, Stay, Stay, Shrink]);
        let more = Load { pending: 5, ..load };
        assert!(judge_all(&mut judge, more, 50).iter().all(|&verdict| verdict == Stay));
    }

    #[test]
    fn it_keeps_within_its_range() {
        let mut judge = Judge::default();
        let high = Load { serving: 4, pending: 9999, saturated: true };
        assert!(judge_all(&mut judge, high, 50).iter().all(|&verdict| verdict == Stay));
        let low = Load { serving: 1, pending: 0, saturated: false };
        assert!(judge_all(&mut judge, low, 50).iter().all(|&verdict| verdict == Stay));
    }
}
