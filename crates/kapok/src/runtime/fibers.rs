//! A loop's fibers: their table, and starting, suspending, interrupting and ending them.

use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use corosensei::{Coroutine, CoroutineResult};

use super::event_loop::{Loop, OPERATIONS_PER_RESUME, Unstarted};
use super::fork;
use super::incidents;
use super::remote::Remote;
use super::report::About;
use super::slots::Waiter;
use crate::fiber::{Fiber, FiberRef, JoinError, Locals, Resume, Spare, Waiting, contain};
use crate::stack;

#[derive(Default)]
pub(super) struct Fibers {
    pub(super) slots: Vec<Option<FiberRef>>,
    free: Vec<u32>,
    pub(super) live: usize,
    /// Control blocks of fibers that were of this loop, last in, first out.
    spare: Vec<Spare>,
}

/// How many control blocks a loop keeps: as many as stacks.
const SPARE_LIMIT: usize = stack::DEFAULT_WARM_STACKS;

impl Fibers {
    pub(super) fn insert(&mut self, fiber: FiberRef) -> u32 {
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

    pub(super) fn remove(&mut self, index: u32) -> Option<FiberRef> {
        let fiber = self.slots[index as usize].take();
        if fiber.is_some() {
            self.live -= 1;
            self.free.push(index);
        }
        fiber
    }
}

impl Loop {
    /// Takes up a new fiber.
    pub(crate) fn spawn(&self, unstarted: Unstarted) {
        self.counters().spawned.add(1);
        // One that is ours from the start can be joined from here without waking across threads.
        let stays = !unstarted.movable || self.group.is_alone();
        unstarted.fiber.bind(stays.then_some(&self.remote));
        if self.closing.get() {
            // Not before: a control block that is used again still names its last home, which would
            // then interrupt a fiber that another loop may start.
            unstarted.fiber.request_cancel();
        }
        if unstarted.movable && self.group.someone_is_idle() {
            self.group.offer([unstarted]);
        } else {
            self.unstarted.borrow_mut().push_back(unstarted);
        }
    }

    /// Whether a fiber that has started here, and not ended, has a number that is wanted.
    pub(crate) fn has_fiber(&self, wanted: impl Fn(u64) -> bool) -> bool {
        let Ok(fibers) = self.fibers.try_borrow() else { return false };
        fibers.slots.iter().flatten().any(|fiber| wanted(fiber.label.id))
    }

    /// Room for the control block of a fiber that is spawned here.
    #[inline]
    pub(crate) fn take_spare(&self) -> Option<Spare> {
        self.fibers.borrow_mut().spare.pop()
    }

    /// Keeps what a control block has left, if that was of this loop.
    pub(crate) fn keep_spare(&self, spare: Spare) {
        // The last reference may go while somebody looks at the table: then it is freed.
        if let (true, Ok(mut fibers)) =
            (spare.is_at_home(&self.remote), self.fibers.try_borrow_mut())
            && fibers.spare.len() < SPARE_LIMIT
        {
            fibers.spare.push(spare);
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
    #[inline(always)]
    pub(crate) fn yield_now(&self, fiber: NonNull<Fiber>) {
        self.ready.borrow_mut().push_back(fiber);
        self.suspend(fiber, || About::Yield);
    }

    /// Leaves the running fiber's stack. Whoever calls has seen to it that something makes the
    /// fiber ready again, exactly once; `about` says what that is, if a report asks.
    ///
    /// A fiber may be resumed for a report in between, any number of times. That is over inside this
    /// function: its caller sees nothing of it, and what the fiber has lent stays lent.
    ///
    /// A switch leaves the processor's return predictor with the addresses of the other side, so a
    /// return right after it is mispredicted. Hence this is inlined wherever it is called, and so is
    /// [`resume`](Loop::resume).
    #[inline(always)]
    pub(crate) fn suspend(&self, fiber: NonNull<Fiber>, about: impl Fn() -> About) {
        if self.running.get() != Some(fiber) {
            fork::refuse();
        }
        let here = 0_u8;
        // SAFETY: the running fiber is ours and has a yielder, which lives on its stack.
        let yielder = unsafe {
            let local = fiber.as_ref().local();
            (*local).suspended_at = &raw const here;
            (*local).yielder.unwrap_unchecked()
        };
        // SAFETY: as above; it is there as long as this stack is.
        while unsafe { yielder.as_ref() }.suspend(()) == Resume::Report {
            self.capture(yielder, about());
        }
    }

    /// Interrupts what `fiber` waits for, if there is a reason to and it may be interrupted.
    pub(super) fn interrupt(&self, pointer: NonNull<Fiber>) {
        // SAFETY: our own fiber, which its table holds; the copies do not outlive the statement.
        let (fiber, waiting) = unsafe { (pointer.as_ref(), (*pointer.as_ref().local()).waiting) };
        if crate::fiber::interrupt_of(self, fiber).is_none() {
            return;
        }
        match waiting {
            Waiting::Operation(key) => self.cancel(key),
            // What it waits for decides whether that is a reason to go on: it is polled once more.
            Waiting::Park => {
                if fiber.leave_token() {
                    self.ready.borrow_mut().push_back(pointer);
                }
            }
            Waiting::Join => self.end_join(pointer),
            Waiting::Nothing => {}
        }
    }

    /// Whether `fiber` runs, or will run, on this loop.
    #[inline]
    pub(crate) fn is_home_of(&self, fiber: &Fiber) -> bool {
        fiber.is_at_home(&self.remote)
    }

    /// Makes a fiber of this loop ready that waits for another one to end, if it does still.
    pub(crate) fn end_join(&self, fiber: NonNull<Fiber>) {
        // SAFETY: our own fiber, which is alive while it waits; a plain field.
        let waiting = unsafe { &mut (*fiber.as_ref().local()).waiting };
        if *waiting == Waiting::Join {
            *waiting = Waiting::Nothing;
            self.ready.borrow_mut().push_back(fiber);
        }
    }

    pub(super) fn start(&self, unstarted: Unstarted) {
        if self.closing.get() {
            // Another loop has offered it since those that were here were cancelled.
            unstarted.fiber.request_cancel();
        }
        let stack = self.stacks.borrow_mut().allocate(unstarted.fiber.stack_size);
        self.publish_stacks();
        let stack = match stack {
            Ok(stack) => stack,
            Err(error) => {
                tracing::error!(fiber = unstarted.fiber.title(), %error, "no stack for a fiber");
                incidents::WITHOUT_STACK.fetch_add(1, Ordering::Relaxed);
                unstarted.discard(JoinError::NoStack(error));
                self.tell_of_ending();
                return;
            }
        };
        let fiber = unstarted.take_up();
        fiber.set_home(&self.remote);
        let pointer = Fiber::pointer(&fiber);
        let body = move |yielder: &corosensei::Yielder<Resume, ()>, _: Resume| {
            // SAFETY: this runs on the fiber, so it is alive and its local part is ours.
            unsafe {
                let fiber = pointer.as_ref();
                (*fiber.local()).yielder = Some(NonNull::from(yielder));
                if let Some(body) = (*fiber.local()).body {
                    (body.run)(fiber);
                }
            }
        };
        let index = self.fibers.borrow_mut().insert(fiber);
        self.counters().started.add(1);
        // SAFETY: the fiber is ours from here on, and in the table.
        unsafe {
            let local = pointer.as_ref().local();
            (*local).index = index;
            (*local).coroutine = Some(Coroutine::with_stack(stack, body));
        }
        self.resume(pointer);
    }

    #[inline(always)]
    pub(super) fn resume(&self, fiber: NonNull<Fiber>) {
        self.running.set(Some(fiber));
        self.operations_left.set(OPERATIONS_PER_RESUME);
        let counters = self.counters();
        let epoch = counters.epoch.get();
        counters.epoch.set(epoch + 1);
        // SAFETY: the table holds the fiber, and its label never changes.
        unsafe { stack::set_running(&raw const fiber.as_ref().label) };
        // SAFETY: a fiber that is ready is alive and suspended, so nothing else refers to its
        // coroutine; on the other side only other fields of the local part are touched.
        let over = unsafe {
            let coroutine = &mut (*fiber.as_ref().local()).coroutine;
            let resumed = coroutine.as_mut().unwrap_unchecked().resume(Resume::GoOn);
            matches!(resumed, CoroutineResult::Return(()))
        };
        // SAFETY: null is no label.
        unsafe { stack::set_running(std::ptr::null()) };
        counters.epoch.set(epoch + 2);
        self.running.set(None);
        if over {
            self.finish(fiber);
        } else {
            // SAFETY: suspended, our own, and still in the table; a plain field.
            unsafe { (*fiber.as_ref().local()).since = self.clock.get() };
        }
    }

    pub(super) fn finish(&self, fiber: NonNull<Fiber>) {
        // SAFETY: the table still holds the fiber; its stack is empty.
        let (index, coroutine) = unsafe {
            let local = fiber.as_ref().local();
            ((*local).index, (*local).coroutine.take())
        };
        if let Some(coroutine) = coroutine {
            self.stacks.borrow_mut().release(coroutine.into_stack());
            self.publish_stacks();
            self.stacks_back.set(self.stacks_back.get() + 1);
            if self.stacks_seen.get().is_none() {
                self.watch_stacks();
            }
        }
        // SAFETY: as above. What destructors have made since the fiber dropped its locals goes on
        // this thread, whoever holds the fiber.
        unsafe {
            let local = fiber.as_ref().local();
            if !(*local).locals.is_empty() {
                let locals = std::mem::replace(&mut (*local).locals, Locals::new());
                contain(|| drop(locals));
            }
        }
        let fiber = self.fibers.borrow_mut().remove(index);
        self.counters().ended.add(1);
        drop(fiber);
        self.tell_of_ending();
    }

    fn tell_of_ending(&self) {
        let watcher = self.endings.take();
        if let Some(watcher) = watcher {
            contain(|| watcher.wake());
        }
    }

    #[inline]
    fn publish_stacks(&self) {
        let stats = self.stacks.borrow().stats();
        let counters = self.counters();
        counters.stacks_reused.set(stats.reused);
        counters.stacks_given_back.set(stats.given_back);
        counters.stacks_warm.set(stats.warm as u64);
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
    pub(super) fn look_after_stacks(&self) {
        if self.stacks_seen.take() == Some(self.stacks_back.get()) {
            self.stacks.borrow_mut().trim();
            self.publish_stacks();
        } else {
            self.watch_stacks();
        }
    }
}
