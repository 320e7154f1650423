//! One thread's loop: runs fibers until they wait, then turns the engine.
//!
//! Everything here belongs to one thread. Fibers reach their loop through a thread-local, other
//! threads through its [`Remote`]. No borrow of a cell is held across a switch, a waker or any
//! other code of the user's.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use kapok_engine::sim::Sim;
use kapok_engine::{AnyEngine, Buffers, Completions, Engine, EngineStats, Kind, Wait};

use super::fibers::Fibers;
use super::fork;
use super::group::Group;
use super::pace::Pace;
use super::prefetch;
use super::published::{Counters, Listed, Published};
use super::remote::Remote;
use super::report::{Answering, Captured};
use super::slots::Slots;
use crate::fiber::{Fiber, FiberRef, JoinError};
use crate::observe::{Watch, look_again};
use crate::stack::StackPool;

thread_local! {
    static CURRENT: Cell<*const Loop> = const { Cell::new(std::ptr::null()) };
}

/// How many rounds fibers make at most between two turns of the engine: each lets every fiber that is ready
/// run once.
const ROUNDS_PER_TURN: usize = 4;

/// How many operations a fiber may finish without waiting before it has to let others run.
pub(super) const OPERATIONS_PER_RESUME: u32 = 128;

/// Each 16 KiB that an operation moves are one more of them.
const SHARE_SHIFT: u32 = 14;

/// How many turns that do not wait may share one reading of the clock, unless many fibers run in them.
const TURNS_PER_CLOCK: u64 = 16;

/// A fiber that no loop has taken up yet.
pub(crate) struct Unstarted {
    pub(crate) fiber: FiberRef,
    /// Whether another loop may start it.
    pub(crate) movable: bool,
}

impl Unstarted {
    /// Drops what the fiber would have run, on the calling thread: who joins it learns why.
    pub(crate) fn discard(self, why: JoinError) {
        Loop::with_current(|current| {
            if let Some(lp) = current {
                lp.counters().discarded.add(1);
            }
        });
        // SAFETY: unstarted, and held by the caller alone.
        unsafe { self.fiber.discard(why) };
    }

    /// The fiber, which is about to start.
    pub(crate) fn take_up(self) -> FiberRef {
        let this = ManuallyDrop::new(self);
        // SAFETY: taken once, as `this` is never dropped.
        unsafe { std::ptr::read(&raw const this.fiber) }
    }
}

/// Whoever waits for a fiber that nobody will start is told so.
impl Drop for Unstarted {
    fn drop(&mut self) {
        // SAFETY: unstarted, and held by us alone. Nothing is left to do if it was discarded.
        unsafe { self.fiber.discard(JoinError::Abandoned) };
    }
}

/// A local of who asks for its loop, which bounds how long it has it.
#[derive(Default)]
pub(crate) struct Frame(PhantomData<Cell<()>>);

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
    /// How many of the fibers that are ready have waited for what the last turn landed, about.
    cold: Cell<usize>,
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
    pub(super) published: Arc<Published>,
    /// The engine's clock as of a recent turn: for ages, which need not be exact.
    pub(super) clock: Cell<Instant>,
    /// How many fibers run between two turns.
    pub(super) pace: Pace,
    /// What a fiber that was asked for its backtrace has left.
    pub(super) captured: RefCell<Option<Captured>>,
    /// Requests for reports of all fibers that are being answered.
    pub(super) answering: RefCell<Vec<Answering>>,
    /// What the engines have counted that this loop had before, because their rings died.
    pub(super) engines_before: Cell<EngineStats>,
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
        watch: Option<Watch>,
    ) -> Loop {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let kind = engine.kind();
        Loop {
            id,
            kind: Cell::new(kind),
            published: Published::new(id, index, kind, Arc::clone(&remote), watch),
            clock: Cell::new(engine.now()),
            pace: Pace::new(),
            captured: RefCell::new(None),
            answering: RefCell::new(Vec::new()),
            engines_before: Cell::default(),
            engine: RefCell::new(engine),
            slots: RefCell::new(Slots::new()),
            ready: RefCell::new(VecDeque::new()),
            unstarted: RefCell::new(VecDeque::new()),
            fibers: RefCell::new(Fibers::default()),
            stacks: RefCell::new(stacks),
            running: Cell::new(None),
            operations_left: Cell::new(0),
            completions: RefCell::new(Completions::new()),
            cold: Cell::new(0),
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
    #[inline(always)]
    pub(crate) fn with_current<R>(f: impl FnOnce(Option<&Loop>) -> R) -> R {
        // SAFETY: the pointer is set by `run` from a reference that outlives it, on this thread.
        f(unsafe { CURRENT.get().as_ref() })
    }

    /// Runs `f` with the calling thread's loop and the fiber that runs, if one does.
    #[inline(always)]
    pub(crate) fn with_running<R>(f: impl FnOnce(Option<(&Loop, NonNull<Fiber>)>) -> R) -> R {
        f(Loop::running(&Frame::default()))
    }

    /// The calling thread's loop and the fiber that runs, if one does, for as long as the frame of the
    /// caller. On the way to a switch it is this and not [`with_running`](Loop::with_running): whether
    /// a closure is inlined is the compiler's to decide, and a call there costs: see `suspend`.
    #[inline(always)]
    pub(crate) fn running(_frame: &Frame) -> Option<(&Loop, NonNull<Fiber>)> {
        // SAFETY: the pointer is set by `run` from a reference that outlives it, on this thread, and
        // the frame is one of those that `run` has called, or of a fiber that ends within it.
        let lp = unsafe { CURRENT.get().as_ref() }?;
        lp.running.get().map(|fiber| (lp, fiber))
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

    #[inline]
    pub(crate) fn counters(&self) -> &Counters {
        &self.published.counters
    }

    /// Shows the loop to the rest of the process until what is returned is dropped.
    pub(super) fn list(&self) -> Listed {
        let listed = Listed::new(&self.published);
        if self.published.watch.is_some() {
            look_again();
        }
        listed
    }

    /// Whether the calling code was called by the engine.
    #[inline]
    pub(crate) fn engine_is_at_work(&self) -> bool {
        self.engine.try_borrow_mut().is_err()
    }

    /// The engine's clock as of a recent turn.
    #[inline]
    pub(crate) fn recent(&self) -> Instant {
        self.clock.get()
    }

    /// For a loop that has ended.
    pub(super) fn forget_interrupts(&self) {
        self.remote.close();
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

    /// The buffers in which the engine lands receives that bring none.
    pub(crate) fn buffers(&self) -> Option<Rc<Buffers>> {
        self.engine.borrow().buffers().cloned()
    }

    pub(crate) fn now(&self) -> Instant {
        self.engine.borrow().now()
    }

    /// Wakes `waker` when a fiber of this loop ends. One at a time.
    pub(crate) fn watch_endings(&self, waker: Waker) {
        let _old = self.endings.replace(Some(waker));
    }

    /// A reference of its own to the fiber that runs.
    pub(crate) fn share(&self, fiber: NonNull<Fiber>) -> FiberRef {
        // SAFETY: the pointer came from a reference that the table holds while the fiber runs.
        unsafe { FiberRef::share(fiber) }
    }

    /// See [`AnyEngine::sweep`]; how many edges were lost.
    pub(crate) fn sweep(&self) -> u64 {
        let lost = self.engine.borrow_mut().sweep().unwrap_or(0) as u64;
        self.counters().publish(self.engines_before.get(), self.engine.borrow().stats());
        lost
    }

    /// As [`may_go_on`](Loop::may_go_on), after an operation with this result: moving many bytes takes as
    /// long as several small ones do.
    #[inline]
    pub(crate) fn may_go_on_after(&self, res: i32) -> bool {
        let left = self.operations_left.get();
        let share = 1 + (res.max(0) as u32 >> SHARE_SHIFT);
        self.operations_left.set(left.saturating_sub(share));
        left > 0
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

    /// Runs fibers, round after round of those that are ready, until none can run or it is the engine's
    /// turn: it has something to do, or they have had their share.
    pub(super) fn run_fibers(&self) {
        let share = self.pace.share();
        let mut left = share;
        for _ in 0..ROUNDS_PER_TURN {
            let before = left;
            self.run_round(&mut left);
            if left == 0 || left == before || self.engine.borrow().wants_turn() {
                break;
            }
            self.attend();
        }
        self.pace.count(share - left);
    }

    /// Runs those that are ready now, and starts those that are to be started now.
    pub(super) fn run_round(&self, left: &mut usize) {
        self.run_ready(left);
        self.start_some(left);
    }

    /// Turns the engine, and waits as `wait` says if no fiber can run. An error is the end: the engine
    /// is broken, and no other could take its place.
    pub(super) fn turn(&self, wait: Wait) -> io::Result<()> {
        self.refuse_if_left_behind();
        crate::interpose::before_turn();
        self.attend();
        let (ready, unstarted) = (self.ready.borrow().len(), self.unstarted.borrow().len());
        let counters = self.counters();
        counters.ready.set(ready as u64);
        counters.unstarted.set(unstarted as u64);
        let turns = counters.turns.get() + 1;
        counters.turns.set(turns);
        let is_due = turns.is_multiple_of(TURNS_PER_CLOCK) || self.pace.is_due();
        let before = (is_due || self.pace.is_worth_a_clock()).then(|| self.now());
        if let Some(before) = before {
            self.pace.ran_for(before.saturating_duration_since(self.clock.get()));
        }
        let idle = ready == 0 && unstarted == 0;
        let mut completions = self.completions.take();
        let mut announced = false;
        let wait = if idle && wait != Wait::No {
            // Announce that there is room here, unless somebody has left something meanwhile.
            match self.group.become_idle(self.index) {
                Some(offered) => {
                    self.unstarted.borrow_mut().extend(offered);
                    Wait::No
                }
                None => {
                    counters.waits.add(1);
                    announced = true;
                    wait
                }
            }
        } else {
            Wait::No
        };
        let turned = {
            let mut engine = self.engine.borrow_mut();
            let turned = engine.turn(wait, &mut completions);
            let stats = engine.stats();
            let before = self.engines_before.get();
            if before.system_calls + stats.system_calls != counters.system_calls.get() {
                counters.publish(before, stats);
            }
            turned
        };
        crate::interpose::after_turn();
        if announced {
            self.group.become_busy(self.index);
        }
        counters.landed.add(completions.len() as u64);
        if idle || is_due {
            let now = self.now();
            self.clock.set(now);
            if let Some(before) = before.filter(|_| !idle) {
                self.pace.turned_for(now.saturating_duration_since(before));
            }
            self.pace.begin();
        } else {
            self.pace.go_on();
        }
        self.cold.set(completions.len());
        for completion in completions.drain(..) {
            self.land(completion);
        }
        self.completions.replace(completions);
        let turned = turned.or_else(|error| self.fall_back(error));
        self.attend();
        turned
    }

    fn run_ready(&self, left: &mut usize) {
        // Only those that are ready now: who becomes ready meanwhile comes after the unstarted.
        let count = self.ready.borrow().len().min(*left);
        for _ in 0..count {
            let fiber = {
                let mut ready = self.ready.borrow_mut();
                let Some(fiber) = ready.pop_front() else { break };
                // Those that have just yielded are warm.
                if let Some(left) = self.cold.get().checked_sub(1) {
                    self.cold.set(left);
                    prefetch::soon(&ready);
                }
                fiber
            };
            *left -= 1;
            self.resume(fiber);
        }
    }

    fn start_some(&self, left: &mut usize) {
        // One at least: those that are ready may have had the whole share, now and the next time.
        let count = self.unstarted.borrow().len().min((*left).max(1));
        for _ in 0..count {
            let Some(unstarted) = self.unstarted.borrow_mut().pop_front() else { break };
            *left = left.saturating_sub(1);
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

    #[cold]
    fn attend_requests(&self) {
        for fiber in self.remote.take_interrupts() {
            // It may have ended since, or never have been ours.
            // SAFETY: the interrupt went to the fiber's home, which is this loop.
            if unsafe { (*fiber.local()).coroutine.is_some() } {
                self.interrupt(Fiber::pointer(&fiber));
            }
        }
        self.answer_requests();
    }

    /// Takes what other threads have left.
    pub(super) fn attend(&self) {
        if self.remote.has_ready() {
            self.remote.take_ready(|fiber| {
                self.counters().remote_wakes.add(1);
                self.ready.borrow_mut().push_back(fiber);
            });
        }
        if self.remote.wants_attention() {
            self.attend_requests();
        }
        if let Some(offered) = self.group.take_offered() {
            self.unstarted.borrow_mut().extend(offered);
        }
    }
}
