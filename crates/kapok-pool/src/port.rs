//! A port: what an I/O thread is to all others.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::Waker;

use kapok_engine::Bell;

use crate::cell::{drop_quietly, undisturbed};
use crate::channel::{Channel, Refused};
use crate::primitives::Apart;
use crate::sleep::SleepFlag;
use crate::slot::Slots;
use crate::stats::Counters;

/// What an I/O thread has been told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    /// To serve.
    Serve,
    /// To end when everything it has has landed.
    Retire,
    /// To end soon: what does not land by itself is cancelled.
    Close,
}

/// How whoever serves a port is woken.
pub(crate) enum Rouse {
    /// The bell of the engine that a thread waits in.
    Bell(Bell),
    /// The waker of the task that polls a driver, once for each time that it falls asleep.
    Waker(Waker),
    /// Not at all: a driver that sleeps has given its waker before.
    Later,
}

/// The end of a list of cancels.
const NONE: u32 = u32::MAX;

pub(crate) struct Port {
    pub(crate) channel: Channel,
    sleep: Apart<SleepFlag>,
    /// Of who serves it now. `None`: nobody is to be woken.
    rouse: Mutex<Option<Rouse>>,
    /// The slots whose waiters have gone away, linked through them.
    cancels: Apart<AtomicU32>,
    order: AtomicU32,
    /// How many operations the thread has taken and not completed. Written by the thread.
    pub(crate) in_flight: Apart<AtomicU32>,
    pub(crate) counters: Counters,
}

impl Port {
    pub(crate) fn new(capacity: usize) -> Port {
        Port {
            channel: Channel::new(capacity),
            sleep: Apart(SleepFlag::new()),
            rouse: Mutex::new(None),
            cancels: Apart(AtomicU32::new(NONE)),
            order: AtomicU32::new(Order::Serve as u32),
            in_flight: Apart(AtomicU32::new(0)),
            counters: Counters::default(),
        }
    }

    /// Opens it for who is woken like this.
    pub(crate) fn open(&self, rouse: Rouse) {
        *self.rouse.lock().unwrap_or_else(PoisonError::into_inner) = Some(rouse);
        // Whoever closes the pool stores that first and then gives the order; the thread that opens the
        // port looks for it afterwards. One of the two sees the other.
        self.order.store(Order::Serve as u32, Ordering::SeqCst);
        self.channel.open();
    }

    /// Keeps everybody else from the bell.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn hold_bell(&self) -> impl Drop + '_ {
        self.rouse.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a driver, before it falls asleep: by which waker it is woken.
    pub(crate) fn rouse_by(&self, waker: &Waker) {
        let mut rouse = self.rouse.lock().unwrap_or_else(PoisonError::into_inner);
        let same = matches!(&*rouse, Some(Rouse::Waker(present)) if present.will_wake(waker));
        if !same {
            let before = rouse.replace(Rouse::Waker(waker.clone()));
            drop(rouse);
            drop_quietly(before);
        }
    }

    /// Its thread has ended: nobody is to be woken.
    pub(crate) fn leave(&self) {
        let rouse = self.rouse.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop_quietly(rouse);
    }

    /// Puts an operation in, and wakes the thread if it sleeps.
    #[inline]
    pub(crate) fn push(&self, index: u32) -> Result<(), Refused> {
        self.channel.push(index)?;
        self.notify();
        Ok(())
    }

    /// Asks for an abandoned slot's operation to land soon.
    pub(crate) fn cancel(&self, slots: &Slots, index: u32) {
        let mut head = self.cancels.load(Ordering::Relaxed);
        loop {
            slots[index].next_cancelled.store(head, Ordering::Relaxed);
            match self.cancels.compare_exchange_weak(
                head,
                index,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(other) => head = other,
            }
        }
        self.notify();
    }

    /// Takes all that were left there. Only for the thread.
    #[inline]
    pub(crate) fn take_cancels(&self, slots: &Slots, mut each: impl FnMut(u32)) {
        if !self.has_cancels() {
            return;
        }
        let mut index = self.cancels.swap(NONE, Ordering::AcqRel);
        while index != NONE {
            let slot = &slots[index];
            let next = slot.next_cancelled.load(Ordering::Relaxed);
            each(index);
            index = next;
        }
    }

    #[inline]
    pub(crate) fn has_cancels(&self) -> bool {
        self.cancels.load(Ordering::Acquire) != NONE
    }

    pub(crate) fn order(&self) -> Order {
        match self.order.load(Ordering::Acquire) {
            0 => Order::Serve,
            1 => Order::Retire,
            _ => Order::Close,
        }
    }

    /// Tells the thread. Only to retire is an order that can be [taken back](Port::take_back).
    pub(crate) fn give(&self, order: Order) {
        self.order.fetch_max(order as u32, Ordering::SeqCst);
        self.notify();
    }

    /// Lets a thread that was told to retire serve again. Says whether it does: not if it has ended.
    pub(crate) fn take_back(&self) -> bool {
        let taken_back = self.change(Order::Retire, Order::Serve);
        if taken_back {
            self.notify();
        }
        taken_back
    }

    /// For the thread, when it has nothing left: whether it may end. From then on no retirement is taken
    /// back.
    pub(crate) fn may_end(&self) -> bool {
        self.change(Order::Retire, Order::Close) || self.order() == Order::Close
    }

    fn change(&self, from: Order, to: Order) -> bool {
        let (from, to) = (from as u32, to as u32);
        self.order.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    #[inline]
    pub(crate) fn sleep(&self) -> &SleepFlag {
        &self.sleep
    }

    #[inline]
    pub(crate) fn notify(&self) {
        let rang = self.sleep.notify(|| {
            let mut rouse = self.rouse.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *rouse {
                Some(Rouse::Bell(bell)) => bell.ring(),
                Some(taken @ Rouse::Waker(_)) => {
                    let taken = std::mem::replace(taken, Rouse::Later);
                    drop(rouse);
                    if let Rouse::Waker(waker) = taken {
                        undisturbed(|| waker.wake());
                    }
                }
                Some(Rouse::Later) | None => {}
            }
        });
        if rang {
            self.counters.wake_ups.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What it has to do, as far as others can tell: what waits in its channel and what is in flight.
    #[inline]
    pub(crate) fn load(&self) -> usize {
        self.channel.len() + self.in_flight.load(Ordering::Relaxed) as usize
    }
}
