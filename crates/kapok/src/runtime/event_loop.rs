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

use corosensei::{Coroutine, CoroutineResult};
use kapok_engine::{AnyEngine, Completion, Completions, Engine, Key, Kind, Op, Submitted, Wait};

use super::group::Group;
use super::remote::Remote;
use super::slots::{Slots, Waiter};
use crate::fiber::{Fiber, Locals, Waiting, contain};
use crate::stack::{self, StackPool};

thread_local! {
    static CURRENT: Cell<*const Loop> = const { Cell::new(std::ptr::null()) };
}

/// How many fibers run between two turns of the engine.
const SWITCHES_PER_TURN: usize = 256;

/// How many operations a fiber may finish without waiting before it has to let others run.
const OPERATIONS_PER_RESUME: u32 = 128;

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
    id: u64,
    engine: RefCell<AnyEngine>,
    slots: RefCell<Slots>,
    ready: RefCell<VecDeque<NonNull<Fiber>>>,
    unstarted: RefCell<VecDeque<Unstarted>>,
    /// Every fiber that has started here and is not over, by `Local::index`.
    fibers: RefCell<Fibers>,
    stacks: RefCell<StackPool>,
    running: Cell<Option<NonNull<Fiber>>>,
    /// What is left of `OPERATIONS_PER_RESUME` for the fiber that runs.
    operations_left: Cell<u32>,
    completions: RefCell<Completions>,
    /// Stacks that have come back, and how many those were when somebody last looked. None if
    /// nobody will.
    stacks_back: Cell<u64>,
    stacks_seen: Cell<Option<u64>>,
    stacks_kept: Duration,
    /// Told when a fiber ends.
    endings: RefCell<Option<Waker>>,
    remote: Arc<Remote>,
    group: Arc<Group>,
    /// This loop's place in its group.
    index: usize,
    kind: Kind,
    /// Fibers get no new lease: what is spawned now is cancelled from the start.
    closing: Cell<bool>,
    /// Operations in flight whose results have an heir.
    orphans: Cell<usize>,
}

#[derive(Default)]
struct Fibers {
    slots: Vec<Option<Arc<Fiber>>>,
    free: Vec<u32>,
    live: usize,
}

impl Fibers {
    fn insert(&mut self, fiber: Arc<Fiber>) -> u32 {
        self.live += 1;
        match self.free.pop() {
            Some(index) => {
                self.slots[index as usize] = Some(fiber);
                index
            }
            None => {
                self.slots.push(Some(fiber));
                (self.slots.len() - 1) as u32
            }
        }
    }

    fn remove(&mut self, index: u32) -> Option<Arc<Fiber>> {
        let fiber = self.slots[index as usize].take();
        if fiber.is_some() {
            self.live -= 1;
            self.free.push(index);
        }
        fiber
    }
}

/// Makes a loop the thread's current one as long as it lives.
struct Entered(*const Loop);

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0);
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
            kind: engine.kind(),
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

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
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

    pub(crate) fn now(&self) -> Instant {
        self.engine.borrow().now()
    }

    // ---- Operations -------------------------------------------------------------------------

    /// Hands `op` to the engine on behalf of `waiter`. A key only if it is pending.
    ///
    /// # Safety
    ///
    /// As for [`Engine::submit`]; the memory is kept until `waiter` is told.
    #[inline]
    pub(crate) unsafe fn submit(&self, waiter: Waiter, op: Op) -> Result<Key, i32> {
        let key = self.slots.borrow_mut().insert(waiter);
        // SAFETY: by the caller; the key is fresh.
        let submitted = unsafe { self.engine.borrow_mut().submit(key, op) };
        match submitted {
            Submitted::Pending => Ok(key),
            Submitted::Done(res) => {
                // Dropped here and now, with nothing borrowed.
                let _waiter = self.slots.borrow_mut().remove(key);
                Err(res)
            }
        }
    }

    /// Asks the engine to let `key` land soon.
    pub(crate) fn cancel(&self, key: Key) {
        self.engine.borrow_mut().cancel(key);
    }

    /// Arms a timer that tells `waiter`.
    pub(crate) fn arm(&self, waiter: Waiter, deadline: Instant) -> Key {
        // SAFETY: a timer names no memory.
        match unsafe { self.submit(waiter, Op::Timer { deadline }) } {
            Ok(key) => key,
            Err(res) => unreachable!("a timer landed with {res} before it was armed"),
        }
    }

    /// Takes back a timer, which may have gone off.
    pub(crate) fn disarm(&self, key: Key) {
        let mut slots = self.slots.borrow_mut();
        let old = match slots.get_mut(key) {
            None => return,
            Some(Waiter::Landed(_)) => slots.remove(key),
            Some(_) if self.engine.borrow_mut().disarm(key) => slots.remove(key),
            // It has gone off and is on its way to us.
            Some(waiter) => std::mem::replace(waiter, Waiter::Nobody),
        };
        // A waker may be anybody's: it is dropped with nothing borrowed.
        drop(slots);
        drop(old);
    }

    /// Gives up on a future's operation: cancels it, and leaves its result to `heir`.
    pub(crate) fn orphan(&self, key: Key, heir: Option<Box<dyn FnOnce(i32)>>) {
        let next = heir.map_or(Waiter::Nobody, Waiter::Orphan);
        let mut slots = self.slots.borrow_mut();
        let old = match slots.get_mut(key) {
            None => return,
            Some(Waiter::Landed(_)) => slots.remove(key),
            Some(waiter) => {
                self.engine.borrow_mut().cancel(key);
                if matches!(next, Waiter::Orphan(_)) {
                    self.orphans.set(self.orphans.get() + 1);
                }
                let old = std::mem::replace(waiter, next);
                drop(slots);
                drop(old);
                return;
            }
        };
        drop(slots);
        if let (Waiter::Landed(res), Waiter::Orphan(heir)) = (old, next) {
            heir(res);
        }
    }

    /// The slot of a future's operation.
    pub(crate) fn with_waiter<R>(&self, key: Key, f: impl FnOnce(Option<&mut Waiter>) -> R) -> R {
        f(self.slots.borrow_mut().get_mut(key))
    }

    /// Frees a slot whose key has landed.
    pub(crate) fn free(&self, key: Key) -> Waiter {
        self.slots.borrow_mut().remove(key)
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

    fn land(&self, completion: Completion) {
        let key = completion.key;
        let mut slots = self.slots.borrow_mut();
        let Some(waiter) = slots.get_mut(key) else {
            unreachable!("{key:?} landed twice");
        };
        debug_assert!(completion.is_terminal());
        let told = match waiter {
            Waiter::Task(waker) => {
                let waker = waker.take();
                *waiter = Waiter::Landed(completion.res);
                Waiter::Task(waker)
            }
            _ => slots.remove(key),
        };
        drop(slots);
        match told {
            Waiter::Fiber(fiber) => {
                // SAFETY: our own fiber, suspended, and alive because this key had not landed.
                unsafe {
                    let local = fiber.as_ref().local();
                    (*local).result = completion.res;
                    (*local).waiting = Waiting::Nothing;
                }
                self.ready.borrow_mut().push_back(fiber);
            }
            // SAFETY: a fiber takes its limits back before it goes on, so it is alive.
            Waiter::Limit(fiber) => self.interrupt(fiber),
            Waiter::Task(waker) => {
                if let Some(waker) = waker {
                    contain(|| waker.wake());
                }
            }
            Waiter::Orphan(heir) => {
                self.orphans.set(self.orphans.get() - 1);
                contain(|| heir(completion.res));
            }
            Waiter::Stacks => self.look_after_stacks(),
            Waiter::Nobody => {}
            Waiter::Landed(_) | Waiter::Free(_) => unreachable!("{key:?} landed twice"),
        }
    }

    // ---- Fibers -----------------------------------------------------------------------------

    /// Takes up a new fiber.
    pub(crate) fn spawn(&self, unstarted: Unstarted) {
        if self.closing.get() {
            unstarted.fiber.request_cancel();
        }
        if unstarted.movable && self.group.someone_is_idle() {
            self.group.offer([unstarted]);
        } else {
            self.unstarted.borrow_mut().push_back(unstarted);
        }
    }

    /// Queues `fiber` if it is one of the calling thread's own.
    pub(super) fn push_ready_if_current(home: &Remote, fiber: NonNull<Fiber>) -> bool {
        Loop::with_current(|current| match current {
            Some(lp) if std::ptr::eq(&raw const *lp.remote, home) => {
                lp.ready.borrow_mut().push_back(fiber);
                true
            }
            _ => false,
        })
    }

    /// Queues the running fiber behind the others and suspends it.
    pub(crate) fn yield_now(&self, fiber: NonNull<Fiber>) {
        self.ready.borrow_mut().push_back(fiber);
        self.suspend(fiber);
    }

    /// Leaves the running fiber's stack. Whoever calls has seen to it that something makes the
    /// fiber ready again, exactly once.
    #[inline]
    pub(crate) fn suspend(&self, fiber: NonNull<Fiber>) {
        debug_assert_eq!(self.running.get(), Some(fiber));
        // SAFETY: the running fiber is ours and has a yielder, which lives on its stack.
        unsafe {
            let local = fiber.as_ref().local();
            (*local).yielder.unwrap_unchecked().as_ref().suspend(());
        }
    }

    /// Interrupts what `fiber` waits for, if there is a reason to and it may be interrupted.
    fn interrupt(&self, pointer: NonNull<Fiber>) {
        // SAFETY: our own fiber, which its table holds; the copies do not outlive the statement.
        let (fiber, waiting) = unsafe { (pointer.as_ref(), (*pointer.as_ref().local()).waiting) };
        if crate::fiber::interrupt_of(self, fiber).is_none() {
            return;
        }
        match waiting {
            Waiting::Operation(key) => self.cancel(key),
            Waiting::InterruptiblePark => {
                if fiber.leave_token() {
                    self.ready.borrow_mut().push_back(pointer);
                }
            }
            Waiting::Nothing | Waiting::Park => {}
        }
    }

    fn start(&self, unstarted: Unstarted) {
        let stack = self.stacks.borrow_mut().allocate(unstarted.fiber.stack_size);
        let stack = match stack {
            Ok(stack) => stack,
            Err(error) => {
                tracing::error!(fiber = unstarted.fiber.title(), %error, "no stack for a fiber");
                unstarted.discard();
                return;
            }
        };
        let fiber = unstarted.fiber;
        fiber.set_home(&self.remote);
        let pointer = Fiber::pointer(&fiber);
        let body = move |yielder: &corosensei::Yielder<(), ()>, ()| {
            // SAFETY: this runs on the fiber, so it is alive and its local part is ours.
            let entry = unsafe {
                let local = pointer.as_ref().local();
                (*local).yielder = Some(NonNull::from(yielder));
                (*local).entry.take()
            };
            if let Some(entry) = entry {
                entry();
            }
        };
        let index = self.fibers.borrow_mut().insert(Arc::clone(&fiber));
        // SAFETY: the fiber is ours from here on.
        unsafe {
            let local = fiber.local();
            (*local).index = index;
            (*local).coroutine = Some(Coroutine::with_stack(stack, body));
        }
        self.resume(pointer);
    }

    fn resume(&self, fiber: NonNull<Fiber>) {
        self.running.set(Some(fiber));
        self.operations_left.set(OPERATIONS_PER_RESUME);
        // SAFETY: the table holds the fiber, and its label never changes.
        unsafe { stack::set_running(&raw const fiber.as_ref().label) };
        // SAFETY: a fiber that is ready is alive and suspended, so nothing else refers to its
        // coroutine; on the other side only other fields of the local part are touched.
        let over = unsafe {
            let coroutine = &mut (*fiber.as_ref().local()).coroutine;
            matches!(coroutine.as_mut().unwrap_unchecked().resume(()), CoroutineResult::Return(()))
        };
        // SAFETY: null is no label.
        unsafe { stack::set_running(std::ptr::null()) };
        self.running.set(None);
        if over {
            self.finish(fiber);
        }
    }

    fn finish(&self, fiber: NonNull<Fiber>) {
        // SAFETY: the table still holds the fiber; its stack is empty.
        let (index, coroutine) = unsafe {
            let local = fiber.as_ref().local();
            ((*local).index, (*local).coroutine.take())
        };
        if let Some(coroutine) = coroutine {
            self.stacks.borrow_mut().release(coroutine.into_stack());
            self.stacks_back.set(self.stacks_back.get() + 1);
            if self.stacks_seen.get().is_none() {
                self.watch_stacks();
            }
        }
        // SAFETY: as above. What destructors have made since the fiber dropped its locals goes on
        // this thread, whoever holds the fiber.
        let locals =
            unsafe { std::mem::replace(&mut (*fiber.as_ref().local()).locals, Locals::new()) };
        contain(|| drop(locals));
        let fiber = self.fibers.borrow_mut().remove(index);
        drop(fiber);
        let watcher = self.endings.take();
        if let Some(watcher) = watcher {
            contain(|| watcher.wake());
        }
    }

    /// Has the loop look after its warm stacks in a while: one timer at most, and none when there
    /// is nothing to look after.
    fn watch_stacks(&self) {
        if let Some(at) = self.now().checked_add(self.stacks_kept) {
            self.stacks_seen.set(Some(self.stacks_back.get()));
            self.arm(Waiter::Stacks, at);
        }
    }

    /// Gives the warm stacks' memory back if no fiber has ended since the last look.
    fn look_after_stacks(&self) {
        if self.stacks_seen.take() == Some(self.stacks_back.get()) {
            self.stacks.borrow_mut().trim();
        } else {
            self.watch_stacks();
        }
    }

    // ---- The loop ---------------------------------------------------------------------------

    /// Runs fibers and turns the engine until `done`, which is asked whenever fibers have run.
    pub(crate) fn run(&self, mut done: impl FnMut(&Loop) -> bool) -> io::Result<()> {
        let _entered = Entered(CURRENT.replace(self));
        loop {
            self.run_fibers();
            if done(self) {
                return Ok(());
            }
            self.turn(Wait::Forever)?;
        }
    }

    fn run_fibers(&self) {
        self.run_ready();
        self.start_some();
    }

    /// Turns the engine, and waits as `wait` says if no fiber can run.
    fn turn(&self, wait: Wait) -> io::Result<()> {
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
    fn attend(&self) {
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

    // ---- The end ----------------------------------------------------------------------------

    /// Cancels every fiber and runs them out. Those that have not ended after `limit` never will:
    /// their stacks, and with them whatever the kernel may still write to, are leaked.
    pub(crate) fn close(&self, limit: Duration) -> io::Result<()> {
        let _entered = Entered(CURRENT.replace(self));
        self.closing.set(true);
        // Without one the limit is beyond the end of time.
        let deadline = Instant::now().checked_add(limit);
        let wait = deadline.map_or(Wait::Forever, Wait::Until);
        // Those that come later are cancelled as they are spawned.
        let all: Vec<Arc<Fiber>> = self.fibers.borrow().slots.iter().flatten().cloned().collect();
        for fiber in all {
            fiber.request_cancel();
        }
        loop {
            self.unstarted.take().into_iter().for_each(Unstarted::discard);
            // What was discarded may have spawned anew; what is landing may be a connection.
            if self.live_fibers() == 0 && self.orphans.get() == 0 {
                return Ok(());
            }
            self.attend();
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                break;
            }
            self.turn(wait)?;
            self.run_fibers();
        }
        self.abandon();
        Ok(())
    }

    fn abandon(&self) {
        let left = std::mem::take(&mut *self.fibers.borrow_mut());
        for fiber in left.slots.into_iter().flatten() {
            tracing::error!(fiber = fiber.title(), "did not end when its loop closed: leaked");
            // SAFETY: our own fiber; a copy of a weak reference.
            let packet = unsafe { (*fiber.local()).packet.upgrade() };
            // SAFETY: our own fiber, suspended for good. Neither its stack nor what lies on it is
            // ever freed: the kernel, or another thread, may hold borrows of it.
            unsafe {
                let local = fiber.local();
                if let Waiting::Operation(key) = (*local).waiting {
                    self.cancel(key);
                }
                std::mem::forget((*local).coroutine.take());
                stack::note_leaked();
            }
            // Wakers may come back to it for ever; it must not be freed under the inbox.
            std::mem::forget(fiber);
            if let Some(packet) = packet {
                contain(|| packet.abandon());
            }
        }
        for one in self.unstarted.take() {
            // Each that was discarded spawned another, all the time.
            // SAFETY: unstarted, and held by us alone.
            let packet = unsafe { (*one.fiber.local()).packet.upgrade() };
            std::mem::forget(one);
            if let Some(packet) = packet {
                contain(|| packet.abandon());
            }
        }
        self.ready.borrow_mut().clear();
    }
}
