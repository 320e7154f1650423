//! Each step on an engine that follows a script.

mod endings;
mod room;
mod steps;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use kapok_engine::{AnyEngine, Bell, Completion, Completions, Config, Engine, Key, Kind, Op};
use kapok_engine::{Submitted, Wait};

use super::{Event, Found, Loop, Pace, Woken};
use crate::balance::Balance;
use crate::cell::Landed;
use crate::port::{Order, Rouse};
use crate::requests::{NoDescriptor, Plain};
use crate::shared::{InFlight, Lack, NotTaken, Shared};

/// What the engine was asked for, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Call {
    Submit(Key),
    Cancel(Key),
    Look,
    Wait(Duration),
}

/// What the script says will happen.
#[derive(Default)]
struct Script {
    calls: Vec<Call>,
    /// Lands at the next look or wait.
    ready: VecDeque<(Key, i32)>,
    /// Submissions that are over at once.
    at_once: Option<i32>,
    /// It does not say when there is something to look at.
    is_silent: bool,
    in_flight: usize,
    now: Option<Instant>,
    /// What others do while the thread waits.
    during_wait: Option<Box<dyn FnMut()>>,
    /// How many `wants_turn` were asked: looks for completions.
    asked: usize,
}

struct Scripted {
    script: Rc<RefCell<Script>>,
    bell: Bell,
}

impl Engine for Scripted {
    unsafe fn submit(&mut self, key: Key, _op: Op) -> Submitted {
        let mut script = self.script.borrow_mut();
        script.calls.push(Call::Submit(key));
        match script.at_once {
            Some(res) => Submitted::Done(res),
            None => {
                script.in_flight += 1;
                Submitted::Pending
            }
        }
    }

    fn cancel(&mut self, key: Key) {
        let mut script = self.script.borrow_mut();
        script.calls.push(Call::Cancel(key));
        script.ready.push_back((key, -libc::ECANCELED));
    }

    fn disarm(&mut self, _key: Key) -> bool {
        false
    }

    fn turn(&mut self, wait: Wait, out: &mut Completions) -> std::io::Result<()> {
        let mut script = self.script.borrow_mut();
        let now = script.now.expect("the script has a clock");
        let mut limit = None;
        match wait {
            Wait::No => script.calls.push(Call::Look),
            Wait::Until(until) => {
                let left = until.saturating_duration_since(now);
                script.calls.push(Call::Wait(left));
                limit = Some(until);
            }
            Wait::Forever => panic!("a wait without a limit"),
        }
        if limit.is_some()
            && let Some(mut others) = script.during_wait.take()
        {
            drop(script);
            others();
            script = self.script.borrow_mut();
            limit = None;
        }
        if let (Some(until), true) = (limit, script.ready.is_empty()) {
            script.now = Some(until);
        }
        while let Some((key, res)) = script.ready.pop_front() {
            script.in_flight -= 1;
            out.push(Completion { key, res, flags: 0 });
        }
        Ok(())
    }

    fn bell(&self) -> Bell {
        self.bell.clone()
    }

    fn in_flight(&self) -> usize {
        self.script.borrow().in_flight
    }

    fn now(&self) -> Instant {
        self.script.borrow().now.expect("the script has a clock")
    }

    fn wants_turn(&self) -> bool {
        let mut script = self.script.borrow_mut();
        script.asked += 1;
        !script.is_silent && !script.ready.is_empty()
    }
}

const COMPLETIONS: Duration = Duration::from_millis(70);
const CHANNEL: Duration = Duration::from_millis(90);

struct Bench {
    shared: Arc<Shared>,
    script: Rc<RefCell<Script>>,
    steps: Loop<Scripted>,
}

/// N = 4, M = 3, COMPLETION_BATCH = 2.
fn pace() -> Pace {
    Pace {
        take: 4,
        spin: 3,
        adaptive: false,
        completion_batch: 2,
        device_batch: 2,
        most_in_flight: 100,
        completion_wait: COMPLETIONS,
        channel_wait: CHANNEL,
    }
}

impl Bench {
    fn new(pace: Pace, channel: usize) -> Bench {
        let shared = Arc::new(Shared::new(64, 1, channel, Balance::default()));
        shared.active.store(1, Ordering::Release);
        // A bell wants an engine that made it.
        let bell = AnyEngine::new(Kind::Poll, &Config::default()).unwrap().bell();
        shared.ports[0].open(Rouse::Bell(bell.clone()));
        let script = Rc::new(RefCell::new(Script::default()));
        script.borrow_mut().now = Some(Instant::now());
        let engine = Scripted { script: Rc::clone(&script), bell };
        Bench { steps: Loop::new(engine, Arc::clone(&shared), 0, pace), shared, script }
    }

    fn submit(&self) -> InFlight {
        self.try_submit().unwrap_or_else(|_| panic!("there is room"))
    }

    fn try_submit(&self) -> Result<InFlight, NotTaken<Plain<NoDescriptor>>> {
        self.shared.submit(Plain::nop(), false)
    }

    fn submit_many(&self, count: usize) -> Vec<InFlight> {
        (0..count).map(|_| self.submit()).collect()
    }

    fn key(&self, at: InFlight) -> Key {
        // SAFETY: nothing changes the slot meanwhile; the loop is this thread's.
        Key::new(at.slot, unsafe { self.shared.slots[at.slot].generation() })
    }

    fn make_ready(&self, operations: &[InFlight]) {
        let keys: Vec<_> = operations.iter().map(|&at| (self.key(at), 0)).collect();
        self.script.borrow_mut().ready.extend(keys);
    }

    /// The result, if it has landed.
    fn result(&self, at: InFlight) -> Option<Landed> {
        // SAFETY: the bench is the waiter of what it has submitted, and asks once it has landed.
        unsafe { self.shared.slots[at.slot].cell.poll(Waker::noop()) }
    }

    fn step(&mut self) -> Event {
        self.steps.step().unwrap()
    }

    fn steps(&mut self, count: usize) -> Vec<Event> {
        (0..count).map(|_| self.step()).collect()
    }

    fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.script.borrow_mut().calls)
    }
}
