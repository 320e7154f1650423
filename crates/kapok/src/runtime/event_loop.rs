//! One thread's loop: runs fibers until they wait, then turns the engine.
//!
//! Everything here belongs to one thread. Fibers reach their loop through a thread-local, other
//! threads through its [`Remote`]. No borrow of a cell is held across a switch, a waker or any
//! other code of the user's.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use kapok_engine::sim::Sim;
use kapok_engine::{AnyEngine, Completions, Engine, Kind, Wait};

use super::fibers::Fibers;
use super::fork;
use super::group::Group;
use super::remote::Remote;
use super::slots::Slots;
use crate::fiber::{Fiber, contain};
use crate::stack::StackPool;

thread_local! {
    static CURRENT: Cell<*const Loop> = const { Cell::new(std::ptr::null()) };
}

/// How many fibers run between two turns of the engine.
const SWITCHES_PER_TURN: usize = 256;

/// How many operations a fiber may finish without waiting before it has to let others run.
pub(super) const OPERATIONS_PER_RESUME: u32 = 128;

/// A fiber that no loop has taken up yet.
pub(crate) struct Unstarted {
    pub(crate) fiber: Arc<Fiber>,
    /// Whether another loop may start it.
    pub(crate) movable: bool,
}

impl Unstarted {
    /// Drops what the fiber would have run, on the calling thread: who joins it learns that it was
    /// abandoned.
    pub(crate) fn discard(self) {
        // SAFETY: unstarted, and held by the caller alone.
        let entry = unsafe { (*self.fiber.local()).entry.take() };
        contain(|| drop(entry));
    }
}

pub(crate) struct Loop {
    /// Tells this loop from every other of the process, earlier ones included.
    pub(super) id: u64,
    pub(super) engine: RefCell<AnyEngine>,
    pub(super) slots: RefCell<Slots>,
    pub(super) ready: RefCell<VecDeque<NonNull<Fiber>>>,
    pub(super) unstarted: RefCell<VecDeque<Unstarted>>,
    /// Every fiber that has started here and is not over, by `Local::index`.
    pub(super) fibers: RefCell<Fibers>,
    pub(super) stacks: RefCell<StackPool>,
    pub(super) running: Cell<Option<NonNull<Fiber>>>,
    /// What is left of `OPERATIONS_PER_RESUME` for the fiber that runs.
    pub(super) operations_left: Cell<u32>,
    pub(super) completions: RefCell<Completions>,
    /// Stacks that have come back, and how many those were when somebody last looked. None if
    /// nobody will.
    pub(super) stacks_back: Cell<u64>,
    pub(super) stacks_seen: Cell<Option<u64>>,
    pub(super) stacks_kept: Duration,
    /// Told when a fiber ends.
    pub(super) endings: RefCell<Option<Waker>>,
    pub(super) remote: Arc<Remote>,
    pub(super) group: Arc<Group>,
    /// This loop's place in its group.
    pub(super) index: usize,
    pub(super) kind: Cell<Kind>,
    /// Fibers get no new lease: what is spawned now is cancelled from the start.
    pub(super) closing: Cell<bool>,
    /// Operations in flight whose results have an heir.
    pub(super) orphans: Cell<usize>,
}

/// Makes a loop the thread's current one as long as it lives.
pub(super) struct Entered<'a> {
    entered: &'a Loop,
    before: *const Loop,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.entered.refuse_if_left_behind();
        CURRENT.set(self.before);
    }
}

impl Loop {
    pub(crate) fn new(
        engine: AnyEngine,
        stacks: StackPool,
        remote: Arc<Remote>,
        group: Arc<Group>,
        index: usize,
        stacks_kept: Duration,
    ) -> Loop {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Loop {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            kind: Cell::new(engine.kind()),
            engine: RefCell::new(engine),
            slots: RefCell::new(Slots::new()),
            ready: RefCell::new(VecDeque::new()),
            unstarted: RefCell::new(VecDeque::new()),
            fibers: RefCell::new(Fibers::default()),
            stacks: RefCell::new(stacks),
            running: Cell::new(None),
            operations_left: Cell::new(0),
            completions: RefCell::new(Completions::new()),
            stacks_back: Cell::new(0),
            stacks_seen: Cell::new(None),
            stacks_kept,
            endings: RefCell::new(None),
            remote,
            group,
            index,
            closing: Cell::new(false),
            orphans: Cell::new(0),
        }
    }

    /// Runs `f` with the calling thread's loop, if it is in one.
    #[inline]
    pub(crate) fn with_current<R>(f: impl FnOnce(Option<&Loop>) -> R) -> R {
        // SAFETY: the pointer is set by `run` from a reference that outlives it, on this thread.
        f(unsafe { CURRENT.get().as_ref() })
    }

    /// Runs `f` with the calling thread's loop and the fiber that runs, if one does.
    #[inline]
    pub(crate) fn with_running<R>(f: impl FnOnce(Option<(&Loop, NonNull<Fiber>)>) -> R) -> R {
        Loop::with_current(|current| f(current.and_then(|lp| Some((lp, lp.running.get()?)))))
    }

    /// Makes this the thread's loop until what is returned is dropped.
    pub(super) fn enter(&self) -> Entered<'_> {
        Entered { entered: self, before: CURRENT.replace(self) }
    }

    /// Makes the thread a plain one, in the child of a fork; see [`fork`].
    pub(super) fn leave_behind() {
        // SAFETY: as for `with_current`.
        if let Some(lp) = unsafe { CURRENT.replace(std::ptr::null()).as_ref() } {
            lp.running.set(None);
        }
    }

    fn refuse_if_left_behind(&self) {
        if !std::ptr::eq(CURRENT.get(), self) {
            fork::refuse();
        }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// The engine's kind, which changes if a ring dies.
    pub(crate) fn kind(&self) -> Kind {
        self.kind.get()
    }

    pub(crate) fn group(&self) -> &Arc<Group> {
        &self.group
    }

    pub(crate) fn live_fibers(&self) -> usize {
        self.fibers.borrow().live + self.unstarted.borrow().len()
    }

    pub(crate) fn descriptor_limit(&self) -> Option<i32> {
        self.engine.borrow().descriptor_limit()
    }

    /// Runs `f` with the simulated world, if that is what the engine is.
    pub(crate) fn with_simulation<R>(&self, f: impl FnOnce(&mut Sim) -> R) -> Option<R> {
        if self.kind() != Kind::Sim {
            return None;
        }
        match &mut *self.engine.borrow_mut() {
            AnyEngine::Sim(world) => Some(f(world)),
            _ => None,
        }
    }

    pub(crate) fn now(&self) -> Instant {
        self.engine.borrow().now()
    }

    /// Wakes `waker` when a fiber of this loop ends. One at a time.
    pub(crate) fn watch_endings(&self, waker: Waker) {
        let _old = self.endings.replace(Some(waker));
    }

    /// A reference of its own to the fiber that runs.
    pub(crate) fn share(&self, fiber: NonNull<Fiber>) -> Arc<Fiber> {
        // SAFETY: the pointer came from an `Arc` that the table holds while the fiber runs.
        unsafe {
            Arc::increment_strong_count(fiber.as_ptr());
            Arc::from_raw(fiber.as_ptr())
        }
    }

    /// See [`AnyEngine::sweep`]; how many edges were lost.
    pub(crate) fn sweep(&self) -> u64 {
        self.engine.borrow_mut().sweep().unwrap_or(0) as u64
    }

    /// Counts an operation that was over at once. `false`: the fiber has had its share.
    #[inline]
    pub(crate) fn may_go_on(&self) -> bool {
        let left = self.operations_left.get();
        self.operations_left.set(left.saturating_sub(1));
        left > 0
    }

    /// Runs fibers and turns the engine until `done`, which is asked whenever fibers have run.
    pub(crate) fn run(&self, mut done: impl FnMut(&Loop) -> bool) -> io::Result<()> {
        let _entered = self.enter();
        loop {
            self.run_fibers();
            if done(self) {
                return Ok(());
            }
            self.turn(Wait::Forever)?;
        }
    }

    pub(super) fn run_fibers(&self) {
        self.run_ready();
        self.start_some();
    }

    /// Turns the engine, and waits as `wait` says if no fiber can run. An error is the end: the engine
    /// is broken, and no other could take its place.
    pub(super) fn turn(&self, wait: Wait) -> io::Result<()> {
        self.refuse_if_left_behind();
        self.attend();
        let idle = self.ready.borrow().is_empty() && self.unstarted.borrow().is_empty();
        let mut completions = self.completions.take();
        let turned = if idle && wait != Wait::No {
            // Announce that there is room here, unless somebody has left something meanwhile.
            match self.group.become_idle(self.index) {
                Some(offered) => {
                    self.unstarted.borrow_mut().extend(offered);
                    self.engine.borrow_mut().turn(Wait::No, &mut completions)
                }
                None => {
                    let turned = self.engine.borrow_mut().turn(wait, &mut completions);
                    self.group.become_busy(self.index);
                    turned
                }
            }
        } else {
            self.engine.borrow_mut().turn(Wait::No, &mut completions)
        };
        for completion in completions.drain(..) {
            self.land(completion);
        }
        self.completions.replace(completions);
        let turned = turned.or_else(|error| self.fall_back(error));
        self.attend();
        turned
    }

    fn run_ready(&self) {
        // Only those that are ready now: who becomes ready meanwhile waits for the next turn.
        let count = self.ready.borrow().len().min(SWITCHES_PER_TURN);
        for _ in 0..count {
            let Some(fiber) = self.ready.borrow_mut().pop_front() else { break };
            self.resume(fiber);
        }
    }

    fn start_some(&self) {
        let count = self.unstarted.borrow().len().min(SWITCHES_PER_TURN);
        for _ in 0..count {
            let Some(unstarted) = self.unstarted.borrow_mut().pop_front() else { break };
            self.start(unstarted);
        }
        if self.group.someone_is_idle() {
            self.give_away();
        }
    }

    /// Gives half of the fibers that have not started to loops that have nothing to do.
    fn give_away(&self) {
        let mut unstarted = self.unstarted.borrow_mut();
        let movable = unstarted.iter().filter(|unstarted| unstarted.movable).count();
        let mut left = movable.div_ceil(2);
        if left == 0 {
            return;
        }
        let (mut kept, mut given) = (VecDeque::new(), Vec::with_capacity(left));
        // From the back: the oldest are next here.
        while let Some(one) = unstarted.pop_back() {
            if left > 0 && one.movable {
                left -= 1;
                given.push(one);
            } else {
                kept.push_front(one);
            }
        }
        *unstarted = kept;
        drop(unstarted);
        given.reverse();
        self.group.offer(given);
    }

    /// Takes what other threads have left.
    pub(super) fn attend(&self) {
        self.remote.take_ready(|fiber| self.ready.borrow_mut().push_back(fiber));
        for fiber in self.remote.take_interrupts() {
            // It may have ended since, or never have been ours.
            // SAFETY: the interrupt went to the fiber's home, which is this loop.
            if unsafe { (*fiber.local()).coroutine.is_some() } {
                self.interrupt(Fiber::pointer(&fiber));
            }
        }
        if let Some(offered) = self.group.take_offered() {
            self.unstarted.borrow_mut().extend(offered);
        }
    }
}
