//! The death of a ring: another engine takes its place, and its fibers are sorted into those that go
//! on and those that never will.
//!
//! See docs/design/fallback.md for the table of who becomes what.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use kapok_engine::{Completion, Engine, Held, Key, Op, Submitted};

use super::closing::leave_behind;
use super::event_loop::Loop;
use super::incidents;
use super::slots::Waiter;
use crate::fiber::{Fiber, contain};

impl Loop {
    /// Goes on with another engine after this one has failed with `error`, which is returned if
    /// there is none.
    #[cold]
    pub(super) fn fall_back(&self, error: io::Error) -> io::Result<()> {
        let mut engine = self.engine.borrow_mut();
        let broken = engine.kind();
        let salvage = match engine.replace_broken() {
            Ok(salvage) => salvage,
            Err(refused) => {
                drop(engine);
                tracing::error!(%error, %refused, "the {broken} engine broke, and nothing replaces it");
                return Err(error);
            }
        };
        let kind = engine.kind();
        drop(engine);
        self.kind.set(kind);
        self.published.set_kind(kind);
        self.engines_before.set(self.counters().of_engines());
        incidents::ENGINES_REPLACED.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            %error,
            held = salvage.held.len(),
            "the {broken} engine of loop {} can no longer be entered, going on with {kind}",
            self.index,
        );
        // Before anything of a scope can go on.
        for held in &salvage.held {
            self.abort_if_awaited(held);
        }
        let buffers = salvage.buffers;
        for completion in salvage.landed {
            let buffer = completion.buffer().and_then(|id| Some((buffers.clone()?, id)));
            self.land_in(completion, buffer);
        }
        for (key, op) in salvage.unseen {
            self.submit_again(key, op);
        }
        for held in salvage.held {
            self.lose(held);
        }
        // Fibers have ended, in a way.
        let watcher = self.endings.take();
        if let Some(watcher) = watcher {
            contain(|| watcher.wake());
        }
        Ok(())
    }

    /// Ends the process if a fiber that will never end has borrowed from one that waits for it.
    fn abort_if_awaited(&self, held: &Held) {
        let fiber = match self.slots.borrow_mut().get_mut(held.key) {
            Some(Waiter::Fiber(fiber)) if held.lends => *fiber,
            _ => return,
        };
        // SAFETY: our own fiber, alive because its key has not landed.
        let fiber = unsafe { fiber.as_ref() };
        if fiber.borrows {
            eprintln!(
                "kapok: the ring that can no longer be entered holds memory of fiber {}, in its {}; \
                 a scope waits for that fiber, which can never end, so the process cannot go on",
                fiber.title(),
                held.name,
            );
            std::process::abort();
        }
    }

    /// Carries out on the new engine what the ring never began.
    fn submit_again(&self, key: Key, op: Op) {
        // SAFETY: who submitted it first keeps the memory until the key lands, which it has not; and
        // the ring, which has not seen it, refers to nothing of it any more.
        let submitted = unsafe { self.engine.borrow_mut().submit(key, op) };
        match submitted {
            Submitted::Pending => {}
            Submitted::Done(res) => self.land(Completion { key, res, flags: 0 }),
            Submitted::DoneIn(res, buffer) => {
                let flags = Completion::BUFFER | u32::from(buffer) << 16;
                self.land(Completion { key, res, flags });
            }
        }
    }

    /// Tells who waits for an operation that the ring keeps.
    fn lose(&self, held: Held) {
        let Held { key, lends, .. } = held;
        let mut slots = self.slots.borrow_mut();
        match slots.get_mut(key) {
            // Nothing is lent and nothing is lost: the call makes it again.
            Some(Waiter::Fiber(_)) if !lends => {
                drop(slots);
                self.land(Completion { key, res: -libc::EINTR, flags: 0 });
            }
            Some(waiter @ Waiter::Task(..)) => {
                let waiter = std::mem::replace(waiter, Waiter::Lost);
                drop(slots);
                if let Waiter::Task(Some(waker), _) = waiter {
                    contain(|| waker.wake());
                }
            }
            Some(_) => {
                let waiter = slots.remove(key);
                drop(slots);
                match waiter {
                    Waiter::Fiber(fiber) => self.leave_in_ring(fiber, held.name),
                    Waiter::Orphan(heir) => {
                        self.orphans.set(self.orphans.get() - 1);
                        // It owns what is lent.
                        std::mem::forget(heir);
                    }
                    Waiter::Nobody => {}
                    _ => unreachable!("{key:?} is no operation of the ring"),
                }
            }
            None => unreachable!("{key:?} was in flight for nobody"),
        }
    }

    /// Gives up a fiber whose memory the ring holds.
    fn leave_in_ring(&self, fiber: NonNull<Fiber>, operation: &'static str) {
        // SAFETY: our own fiber, suspended, which its table holds; a plain field.
        let index = unsafe { (*fiber.as_ref().local()).index };
        let fiber = self.fibers.borrow_mut().remove(index);
        if let Some(fiber) = fiber {
            tracing::warn!(fiber = fiber.title(), operation, "lost with the ring: leaked");
            self.counters().abandoned.add(1);
            leave_behind(fiber);
        }
    }
}
