//! A loop's operations: from who waits to the engine, and from what lands to who waited.

use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Instant;

use kapok_engine::{Buffers, Completion, Engine, Key, Op, Submitted};

use super::event_loop::Loop;
use super::slots::Waiter;
use crate::fiber::{Waiting, contain};

impl Loop {
    /// See [`Engine::flush`].
    #[inline]
    pub(crate) fn flush(&self, at_least: usize, busy: usize) {
        self.engine.borrow_mut().flush(at_least, busy);
    }

    /// Hands `op` to the engine on behalf of `waiter`. A key only if it is pending.
    ///
    /// # Safety
    ///
    /// As for [`Engine::submit`]; the memory is kept until `waiter` is told.
    #[inline(always)]
    pub(crate) unsafe fn submit(&self, waiter: Waiter, op: Op) -> Result<Key, i32> {
        let key = self.slots.borrow_mut().insert(waiter);
        self.counters().submitted.add(1);
        // SAFETY: by the caller; the key is fresh.
        let submitted = unsafe { self.engine.borrow_mut().submit(key, op) };
        match submitted {
            Submitted::Pending => Ok(key),
            Submitted::Done(res) => {
                self.counters().done_at_once.add(1);
                // Dropped here and now, with nothing borrowed.
                let _waiter = self.slots.borrow_mut().remove(key);
                Err(res)
            }
            Submitted::DoneIn(res, buffer) => {
                self.counters().done_at_once.add(1);
                let waiter = self.slots.borrow_mut().remove(key);
                let Waiter::Fiber(fiber) = waiter else {
                    unreachable!("only fibers receive into buffers of the engine")
                };
                // SAFETY: the fiber that submits runs, here; a plain field.
                unsafe {
                    (*fiber.as_ref().local()).buffer = self.buffers().map(|all| (all, buffer));
                }
                Err(res)
            }
        }
    }

    /// See [`Engine::sends_at_once`].
    #[inline]
    pub(crate) fn sends_at_once(&self, fd: RawFd) -> bool {
        self.engine.borrow().sends_at_once(fd)
    }

    /// Counts an operation that was carried out beside the engine.
    #[inline]
    pub(crate) fn count_at_once(&self) {
        self.counters().submitted.add(1);
        self.counters().done_at_once.add(1);
    }

    /// Asks the engine to let `key` land soon.
    pub(crate) fn cancel(&self, key: Key) {
        self.counters().cancels.add(1);
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
            Some(_) if self.engine.borrow_mut().disarm(key) => {
                self.counters().disarmed.add(1);
                slots.remove(key)
            }
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
            Some(Waiter::Landed(_) | Waiter::Lost) => slots.remove(key),
            Some(waiter) => {
                self.cancel(key);
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
        match (old, next) {
            (Waiter::Landed(res), Waiter::Orphan(heir)) => heir(res),
            // What the heir owns is lent for good.
            (Waiter::Lost, next) => std::mem::forget(next),
            _ => {}
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

    #[inline]
    pub(super) fn land(&self, completion: Completion) {
        let buffer = completion.buffer().and_then(|id| Some((self.buffers()?, id)));
        self.land_in(completion, buffer);
    }

    /// Lands a completion in a buffer of the engine that it comes from.
    #[inline]
    pub(super) fn land_in(&self, completion: Completion, buffer: Option<(Rc<Buffers>, u16)>) {
        let key = completion.key;
        let mut slots = self.slots.borrow_mut();
        let Some(waiter) = slots.get_mut(key) else {
            unreachable!("{key:?} landed twice");
        };
        debug_assert!(completion.is_terminal());
        let told = match waiter {
            Waiter::Task(waker, fd) => {
                let (waker, fd) = (waker.take(), *fd);
                *waiter = Waiter::Landed(completion.res);
                Waiter::Task(waker, fd)
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
                    (*local).flags = completion.flags;
                    (*local).buffer = buffer;
                    (*local).waiting = Waiting::Nothing;
                }
                self.ready.borrow_mut().push_back(fiber);
            }
            // SAFETY: a fiber takes its limits back before it goes on, so it is alive.
            Waiter::Limit(fiber) => self.interrupt(fiber),
            Waiter::Task(waker, _) => {
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
            Waiter::Landed(_) | Waiter::Lost | Waiter::Free(_) => {
                unreachable!("{key:?} landed twice")
            }
        }
    }
}
