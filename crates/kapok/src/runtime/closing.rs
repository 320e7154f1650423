//! The end of a loop: its fibers are cancelled and run out; what does not end is leaked.

use std::io;
use std::mem::ManuallyDrop;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kapok_engine::Wait;

use super::event_loop::Loop;
use super::incidents;
use crate::fiber::{FiberRef, JoinError, Waiting, contain};
use crate::{interpose, stack};

impl Loop {
    /// Cancels every fiber and runs them out. Those that have not ended after `limit` never will:
    /// their stacks, and with them whatever the kernel may still write to, are leaked.
    pub(crate) fn close(&self, limit: Duration) -> io::Result<()> {
        let _entered = self.enter();
        self.closing.set(true);
        // Without one the limit is beyond the end of time.
        let deadline = self.now().checked_add(limit);
        let wait = deadline.map_or(Wait::Forever, Wait::Until);
        // Those that come later are cancelled as they are spawned.
        let all: Vec<FiberRef> = self.fibers.borrow().slots.iter().flatten().cloned().collect();
        for fiber in all {
            fiber.request_cancel();
        }
        loop {
            for one in self.unstarted.take() {
                one.discard(JoinError::Abandoned);
            }
            // What was discarded may have spawned anew; what is landing may be a connection.
            if self.live_fibers() == 0 && self.orphans.get() == 0 {
                return Ok(());
            }
            self.attend();
            if deadline.is_some_and(|deadline| self.now() >= deadline) {
                break;
            }
            self.turn(wait)?;
            // What is spawned now is discarded before the next round.
            let mut left = usize::MAX;
            self.run_round(&mut left);
        }
        self.abandon();
        Ok(())
    }

    fn abandon(&self) {
        let left = std::mem::take(&mut *self.fibers.borrow_mut());
        for fiber in left.slots.into_iter().flatten() {
            tracing::error!(fiber = fiber.title(), "did not end when its loop closed: leaked");
            // SAFETY: our own fiber; copies a plain field.
            if let Waiting::Operation(key) = unsafe { (*fiber.local()).waiting } {
                self.cancel(key);
            }
            self.counters().abandoned.add(1);
            leave_behind(fiber);
        }
        for one in self.unstarted.take() {
            // Each that was discarded spawned another, all the time.
            self.counters().discarded.add(1);
            let one = ManuallyDrop::new(one);
            // SAFETY: unstarted, and held by us alone; its entry is leaked with it.
            unsafe { one.fiber.abandon() };
        }
        // They own what the kernel, or a thread that blocks in a call, may write to at any time.
        self.slots.borrow_mut().forget_heirs();
        self.ready.borrow_mut().clear();
    }
}

/// Leaks a fiber of this thread's loop that is suspended for good, and has been taken off its table.
pub(super) fn leave_behind(fiber: FiberRef) {
    // SAFETY: our own fiber, suspended for good. Neither its stack nor what lies on it is ever freed:
    // the kernel, or another thread, may hold borrows of it.
    unsafe {
        let local = fiber.local();
        (*local).waiting = Waiting::Nothing;
        if let Some(retiring) = (*local).retiring.take() {
            contain(|| retiring.retire());
        }
        std::mem::forget((*local).coroutine.take());
        stack::note_leaked();
    }
    interpose::note_abandoned(fiber.label.id);
    // Wakers may come back to it for ever; it must not be freed under the inbox.
    let fiber = ManuallyDrop::new(fiber);
    incidents::ABANDONED.fetch_add(1, Ordering::Relaxed);
    // SAFETY: our own fiber; its entry is on the stack that is leaked.
    unsafe { fiber.abandon() };
}
