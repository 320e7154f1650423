//! The five steps without a thread: a ring that an executor's own thread drives.
//!
//! An I/O thread waits inside the kernel, and its submitters ring a bell. A [`Driver`] takes the same steps, and
//! where the thread would wait it says so to whoever polls it: the kernel writes to an eventfd(2) when something
//! lands, and a submitter wakes the waker that was given. No operation changes threads.

use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::{Duration, Instant};

use kapok_engine::sys::Notifier;
use kapok_engine::{AnyEngine, Kind};

use crate::port::{Order, Port, Rouse};
use crate::shared::{Lack, Shared};
use crate::step::{Event, Loop, Rest};
use crate::thread::{AbortOnPanic, AsIoThread, Crew, provide_buffers};

/// So many steps are taken before the executor's other tasks have their turn.
const STEPS_IN_A_ROW: u32 = 64;

/// How long it rests at most while somebody waits for room: then it looks whether who was woken for that has
/// come, as an I/O thread does.
const CROWDED_REST: Duration = Duration::from_millis(10);

/// How long it rests at most while something is in flight: the kernel may have fallen silent.
const LONGEST_REST: Duration = Duration::from_millis(100);

/// Carries out the operations of a pool on the thread that polls it, in the place of an I/O thread: see
/// [`Builder::build_driven`](crate::Builder::build_driven). `kapok_tokio::drive` is the future that does so on
/// tokio; this is what another executor's adaptor is made of.
///
/// It stays on its thread: the ring takes submissions of that one only (`IORING_SETUP_SINGLE_ISSUER`). Its
/// operations are awaited anywhere.
///
/// Dropped before it has ended it closes the pool: what is in flight is cancelled, whatever grace it has, and the drop
/// waits until all has landed. Leaked, it leaves the futures of its operations waiting for good.
pub struct Driver {
    steps: ManuallyDrop<Loop<AnyEngine>>,
    shared: Arc<Shared>,
    /// To which the kernel writes when something lands while it rests.
    announcer: Notifier,
    /// Looks whether who was woken for room has come, from then on.
    crowded_until: Option<Instant>,
    /// Looks whether something has landed that was not announced, from then on.
    rests_until: Option<Instant>,
    ended: bool,
}

/// What [`Driver::turn`] comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resting {
    /// There is nothing to do before the descriptor is readable, the waker is woken or this instant has come.
    Until(Option<Instant>),
    /// There was so much to do that others should have their turn before the rest.
    Yields,
    /// The pool was closed, and all has landed. There is nothing to be polled any more.
    Ended,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl Driver {
    /// For the one port of a pool without threads.
    pub(crate) fn new(crew: &Crew) -> io::Result<Driver> {
        let mut engine =
            AnyEngine::new(crew.plan.engine.unwrap_or(Kind::Uring), &crew.plan.config)?;
        let announcer = Notifier::new()?;
        let AnyEngine::Uring(ring) = &mut engine else {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("only a ring of io_uring can be driven, not {}", engine.kind()),
            ));
        };
        ring.register_eventfd(announcer.as_fd())?;
        crew.register_buffers(&mut engine)?;
        let shared = Arc::clone(&crew.shared);
        shared.ports[0].open(Rouse::Later);
        let mut pace = crew.plan.pace.clone();
        // It never looks in vain for what its own thread would have to do meanwhile. It waits itself only at
        // the end, for what was cancelled.
        (pace.spin, pace.adaptive) = (0, false);
        pace.completion_wait = CROWDED_REST;
        pace.channel_wait = CROWDED_REST;
        let mut steps = Loop::new(engine, Arc::clone(&shared), 0, pace);
        steps.provide = provide_buffers;
        let steps = ManuallyDrop::new(steps);
        let (crowded_until, rests_until) = (None, None);
        Ok(Driver { steps, shared, announcer, crowded_until, rests_until, ended: false })
    }

    /// Takes steps until there is nothing to do. `waker` is woken when somebody submits or cancels an operation,
    /// or closes the pool.
    ///
    /// # Errors
    ///
    /// The ring can no longer be entered, as after a seccomp filter: the pool is closed then, and this has
    /// waited until everything has landed.
    ///
    /// # Panics
    ///
    /// After it has [ended](Resting::Ended), or failed. In the child of a fork(2), where the ring is not.
    pub fn turn(&mut self, waker: &Waker) -> io::Result<Resting> {
        assert!(!self.ended, "a driver was polled after its end");
        assert!(!self.shared.is_left_behind(), "a driver was polled in the child of a fork");
        let _guards = (AbortOnPanic::unless_panicking(), AsIoThread::begin());
        self.announce(false);
        self.port().sleep().wake_up();
        if self.crowded_until.is_some_and(|until| Instant::now() >= until) {
            self.shared.pass_on_turns();
        }
        self.crowded_until = None;
        let in_flight = self.steps.in_flight();
        let overslept = self.rests_until.take().is_some_and(|until| Instant::now() >= until);
        // Before the flag says that it sleeps.
        self.port().rouse_by(waker);
        for _ in 0..STEPS_IN_A_ROW {
            let rest = match self.steps.is_about_to_wait() {
                true => self.rest(),
                false => self.steps.step().map(|_| Rest::Goes),
            };
            match rest {
                Ok(Rest::Goes) => {}
                Ok(Rest::Asleep) if overslept && self.steps.in_flight() < in_flight => {
                    self.port().sleep().wake_up();
                    return match self.renew_announcements() {
                        Ok(()) => Ok(Resting::Yields),
                        Err(error) => Err(self.give_up(error)),
                    };
                }
                Ok(Rest::Asleep) => return Ok(Resting::Until(self.until())),
                Ok(Rest::Over) => {
                    self.end();
                    return Ok(Resting::Ended);
                }
                Err(error) => return Err(self.give_up(error)),
            }
        }
        Ok(Resting::Yields)
    }

    fn port(&self) -> &Port {
        &self.shared.ports[0]
    }

    /// Has the kernel announce again, which has not told of what has landed.
    #[cold]
    fn renew_announcements(&mut self) -> io::Result<()> {
        match &mut self.steps.engine {
            AnyEngine::Uring(ring) => ring.register_eventfd(self.announcer.as_fd()),
            _ => Ok(()),
        }
    }

    /// Has what lands from now on announced, and looks for what has landed before.
    fn rest(&mut self) -> io::Result<Rest> {
        self.announce(true);
        let rest = self.steps.rest();
        if !matches!(rest, Ok(Rest::Asleep)) {
            self.announce(false);
        }
        rest
    }

    fn announce(&mut self, wanted: bool) {
        if let AnyEngine::Uring(ring) = &mut self.steps.engine {
            ring.announce(wanted);
        }
    }

    /// When it has something to do even if nobody says so.
    fn until(&mut self) -> Option<Instant> {
        let now = Instant::now();
        if self.shared.waiting() > 0 {
            self.crowded_until = Some(now + CROWDED_REST);
        }
        if self.steps.in_flight() > 0 {
            self.rests_until = Some(now + LONGEST_REST);
        }
        let timer = match &self.steps.engine {
            AnyEngine::Uring(ring) => ring.next_deadline(),
            _ => None,
        };
        let cancels = self.steps.cancels_at();
        [timer, cancels, self.crowded_until, self.rests_until].into_iter().flatten().min()
    }

    /// Goes on with an engine that waits by itself, until all has landed.
    #[cold]
    fn give_up(&mut self, error: io::Error) -> io::Error {
        if let Err(worse) = self.steps.recover(&error) {
            panic!("no engine is left: {error}; {worse}");
        }
        self.close_and_wait();
        error
    }

    /// Has everything land, and waits for it.
    fn close_and_wait(&mut self) {
        let shared = Arc::clone(&self.shared);
        let _guards = (AbortOnPanic::unless_panicking(), AsIoThread::begin());
        self.steps.spare_the_grace();
        shared.closed.store(true, Ordering::SeqCst);
        shared.ports[0].give(Order::Close);
        shared.gate(Lack::Slot).wake_all();
        shared.gate(Lack::Room).wake_all();
        loop {
            match self.steps.step() {
                Ok(Event::Ended) => break,
                Ok(_) => {}
                Err(error) => {
                    if let Err(worse) = self.steps.recover(&error) {
                        panic!("no engine is left: {error}; {worse}");
                    }
                }
            }
        }
        self.end();
    }

    fn end(&mut self) {
        self.ended = true;
        self.shared.ports[0].leave();
    }
}

/// Becomes readable when something lands while the driver rests. It is never read, so it is for those who are told of
/// edges: epoll(7) with `EPOLLET`.
impl AsFd for Driver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.announcer.as_fd()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.shared.is_left_behind() {
            // The ring and what is in flight on it are the parent's.
            return;
        }
        if !self.ended {
            self.close_and_wait();
        }
        // SAFETY: it is not used again.
        unsafe { ManuallyDrop::drop(&mut self.steps) };
    }
}
