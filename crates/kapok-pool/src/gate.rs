//! The gate: where futures wait for room, for a free slot, a place in a channel, a buffer of a pool.
//!
//! A waiter announces itself, looks once more, and only then waits. Who makes room looks at the
//! announcements after that. The two orders that this rests on are kept by the callers: a read-modify-write
//! of the same word ([`FreeList::pop_announced`](crate::free::FreeList::pop_announced)), or a fence on
//! both sides ([`Gate::announce`], [`Gate::room_made`]).

use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

#[derive(Default)]
struct Line {
    next: u64,
    /// In the order in which they came, so in the order of their numbers.
    waiters: VecDeque<(u64, Waker)>,
}

#[derive(Default)]
pub(crate) struct Gate {
    waiting: AtomicU32,
    line: Mutex<Line>,
}

/// A place in the line. It must be given back by [`Gate::leave`].
#[derive(Debug)]
pub(crate) struct Place(u64);

/// One whose waker is being cloned. If that panics it leaves the line, where its entry would take a
/// wake-up that is meant for somebody else.
struct Stands<'g> {
    gate: &'g Gate,
    place: Option<Place>,
}

impl Drop for Stands<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.gate.leave(place, false);
        }
    }
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Line> {
        // Wakers are cloned before and dropped after, so a poisoned line is still a whole one.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps everybody else out of the line.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn hold(&self) -> impl Drop + '_ {
        self.lock()
    }

    /// How many stand in the line.
    pub(crate) fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Stands in the line, at the end or where `place` says, to be woken by `waker`. After this the
    /// caller looks once more.
    pub(crate) fn announce(&self, place: Option<Place>, waker: &Waker) -> Place {
        let stands = Stands { gate: self, place };
        let waker = waker.clone();
        let mut stands = ManuallyDrop::new(stands);
        let mut line = self.lock();
        let found = stands.place.as_ref().and_then(|place| {
            line.waiters.binary_search_by_key(&place.0, |&(number, _)| number).ok()
        });
        let (place, replaced) = match (found, stands.place.take()) {
            (Some(at), Some(place)) => {
                (place, Some(std::mem::replace(&mut line.waiters[at].1, waker)))
            }
            _ => {
                let number = line.next;
                line.next += 1;
                line.waiters.push_back((number, waker));
                self.waiting.fetch_add(1, Ordering::AcqRel);
                (Place(number), None)
            }
        };
        drop(line);
        crate::cell::drop_quietly(replaced);
        fence(Ordering::SeqCst);
        place
    }

    /// Leaves the line. If `served` is false and the waiter had been woken, the next is woken in its
    /// place.
    pub(crate) fn leave(&self, place: Place, served: bool) {
        let mut line = self.lock();
        let found = line.waiters.binary_search_by_key(&place.0, |&(number, _)| number).ok();
        let removed = found.and_then(|at| line.waiters.remove(at));
        if removed.is_some() {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
        }
        drop(line);
        if removed.is_none() && !served {
            self.wake(1);
        }
    }

    /// Says that there is room for so many, after a fence: for room that was made by plain stores.
    #[inline]
    pub(crate) fn room_made(&self, count: usize) {
        fence(Ordering::SeqCst);
        self.room_given(count);
    }

    /// Says that there is room for so many, which was made by a read-modify-write of what
    /// waiters change as well when they look once more.
    #[inline]
    pub(crate) fn room_given(&self, count: usize) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.wake(count);
        }
    }

    /// Wakes all who stand in the line now: what they wait for is to be had elsewhere, or never again.
    /// Each once, for one that is woken may stand in the line again at once.
    pub(crate) fn wake_all(&self) {
        let waiters = {
            let mut line = self.lock();
            let waiters = std::mem::take(&mut line.waiters);
            self.waiting.fetch_sub(waiters.len() as u32, Ordering::AcqRel);
            waiters
        };
        for (_, waker) in waiters {
            crate::cell::undisturbed(|| waker.wake());
        }
    }

    #[cold]
    fn wake(&self, count: usize) {
        for _ in 0..count {
            let Some((_, waker)) = ({
                let mut line = self.lock();
                let first = line.waiters.pop_front();
                if first.is_some() {
                    self.waiting.fetch_sub(1, Ordering::AcqRel);
                }
                first
            }) else {
                return;
            };
            crate::cell::undisturbed(|| waker.wake());
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::task::Wake;

    use super::*;

    /// Stands in the line again whenever it is woken.
    struct Returns {
        gate: Arc<Gate>,
        woken: AtomicU32,
    }

    impl Wake for Returns {
        fn wake(self: Arc<Self>) {
            // Not without end, so that a failure is one and no hang.
            if self.woken.fetch_add(1, Ordering::Relaxed) < 100 {
                let _ = self.gate.announce(None, &Waker::from(Arc::clone(&self)));
            }
        }
    }

    #[test]
    fn all_are_woken_once_though_they_come_back() {
        let gate = Arc::new(Gate::default());
        let waiters: Vec<_> = (0..3)
            .map(|_| Arc::new(Returns { gate: Arc::clone(&gate), woken: AtomicU32::new(0) }))
            .collect();
        for waiter in &waiters {
            let _ = gate.announce(None, &Waker::from(Arc::clone(waiter)));
        }
        gate.wake_all();
        let woken: Vec<u32> =
            waiters.iter().map(|waiter| waiter.woken.load(Ordering::Relaxed)).collect();
        assert_eq!(woken, [1, 1, 1]);
        assert_eq!(gate.waiting(), 3);
        // The wakers refer to the gate that holds them.
        gate.lock().waiters.clear();
    }
}
