//! Collecting a dump, on the monitor's thread: asks all loops, and waits for those that answer.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::backtrace::{Symbols, Top};
use super::dump::{Dump, FiberReport, FiberState, LoopReport, RunningReport, WaitsFor};
use super::{library, sample, thread};
use crate::runtime::{Answer, Published, Reported, Request, State, with_loops};

/// How long a loop may show no sign of life before it counts as blocked.
const ANSWER_LIMIT: Duration = Duration::from_millis(200);

/// How often its signs of life are looked at.
const LOOK: Duration = Duration::from_millis(10);

/// What a signal has found a thread at.
pub(super) struct Sampled {
    pub(super) fiber: Option<u64>,
    pub(super) name: Option<String>,
    /// Return addresses, the innermost first.
    pub(super) frames: Vec<usize>,
}

pub(super) fn collect(symbols: &mut Symbols) -> Dump {
    symbols.begin();
    let asked: Vec<(Arc<Published>, mpsc::Receiver<Answer>)> = with_loops(|loops| {
        // On the list a loop still answers, or drops the request when it leaves.
        let ask = |published: &Arc<Published>| {
            let (answers, receiver) = mpsc::channel();
            published.remote.request(Request { answers });
            (Arc::clone(published), receiver)
        };
        loops.running.iter().map(ask).collect()
    });
    let loops = asked
        .into_iter()
        .filter_map(|(published, answers)| await_loop(&published, &answers, symbols))
        .collect();
    Dump { loops, error: None }
}

/// What shows that a loop gets on.
fn sign_of_life(published: &Published) -> (u64, u64) {
    (published.counters.epoch.get(), published.counters.turns.get())
}

/// None if the loop has ended.
fn await_loop(
    published: &Published,
    answers: &mpsc::Receiver<Answer>,
    symbols: &mut Symbols,
) -> Option<LoopReport> {
    let mut fibers: Vec<FiberReport> = Vec::new();
    let mut alive = (sign_of_life(published), Instant::now());
    let blocked = loop {
        match answers.recv_timeout(LOOK) {
            Ok(Answer { fibers: part, last }) => {
                fibers.extend(part.into_iter().map(|fiber| report(fiber, symbols)));
                if last {
                    break None;
                }
                alive.1 = Instant::now();
            }
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => {
                let sign = sign_of_life(published);
                if sign != alive.0 {
                    alive = (sign, Instant::now());
                } else if alive.1.elapsed() >= ANSWER_LIMIT {
                    break Some(Running::look(published).report(symbols));
                }
            }
        }
    };
    fibers.sort_by_key(|fiber| fiber.id);
    let counters = &published.counters;
    let over = counters.ended.get() + counters.abandoned.get();
    Some(LoopReport {
        id: published.id,
        index: published.index,
        thread: published.thread_name.clone(),
        engine: published.kind(),
        live: counters.started.get().saturating_sub(over),
        fibers,
        blocked,
    })
}

/// What the thread of a loop runs now, not yet named.
pub(super) struct Running {
    system_call: Option<String>,
    sampled: Option<Sampled>,
}

impl Running {
    pub(super) fn look(published: &Published) -> Running {
        // Before the signal, which may end it.
        let system_call = thread::system_call(published.thread_id);
        Running { system_call, sampled: sample::take(published) }
    }

    /// Looks the names up, which may take longer than what it is about.
    pub(super) fn report(&self, symbols: &mut Symbols) -> RunningReport {
        let system_call = self.system_call.clone();
        match &self.sampled {
            Some(sampled) => RunningReport {
                fiber: sampled.fiber,
                name: sampled.name.clone(),
                function: library::called(&sampled.frames, symbols),
                system_call,
                backtrace: symbols.backtrace(&sampled.frames, Top::Runs),
            },
            None => RunningReport { system_call, ..RunningReport::default() },
        }
    }
}

fn report(fiber: Reported, symbols: &mut Symbols) -> FiberReport {
    let state = match fiber.state {
        State::Unstarted => FiberState::Unstarted,
        State::Ready => FiberState::Ready,
        State::Operation { left: Some(left), .. } => {
            FiberState::Waiting(WaitsFor::Sleep(left), Vec::new())
        }
        State::Operation { name, descriptor, left: None } => {
            FiberState::Waiting(WaitsFor::Operation(name), descriptor.into_iter().collect())
        }
        State::Future { name, descriptors } => {
            FiberState::Waiting(WaitsFor::future(name), descriptors)
        }
    };
    FiberReport {
        id: fiber.id,
        name: fiber.name.map(|name| name.to_string()),
        state,
        age: fiber.age,
        suspended: fiber.suspended,
        canceled: fiber.canceled,
        backtrace: symbols.of_waiting(&fiber.frames),
    }
}
