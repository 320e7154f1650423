//! The completion cell: how a result gets from an I/O thread to whoever waits for it.
//!
//! One word and one waker, both in the slot, reused from operation to operation. Two sides meet here:
//! the *waiter* (the future) and the *lander* (the I/O thread).
//!
//! ```text
//!               poll: waker stored                land
//!      IN_FLIGHT ───────────────► WAITING ─────────────────► LANDING
//!       │  │  ▲                     │                          │    │
//!  drop │  │  └─────────────────────┘                   result │    │ drop
//!       │  │    poll, drop: waker taken back                   ▼    ▼
//!       │  └────────────────────────────────────────────►  LANDED   LEFT ──► the lander's
//!       ▼                land                             the waiter's
//!    ABANDONED ──► the lander's
//! ```
//!
//! In `LANDING` the lander has the waker in its hands. Without that state the waiter could take the
//! result, and another operation the cell, while the lander still reads the waker. Nobody blocks: a
//! waiter that polls in `LANDING` asks to be polled again.

use std::task::Waker;

use crate::primitives::atomic::{AtomicU32, Ordering};
use crate::primitives::cell::UnsafeCell;

const IN_FLIGHT: u32 = 0;
const WAITING: u32 = 1;
const LANDING: u32 = 2;
const LANDED: u32 = 3;
const ABANDONED: u32 = 4;
/// Abandoned in `LANDING`.
const LEFT: u32 = 5;

/// What an operation came to: the two numbers of a completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Landed {
    /// The result of the system call, or `-errno`.
    pub res: i32,
    /// See [`kapok_engine::Completion`].
    pub flags: u32,
}

/// Whose the cell is after [`Cell::land`].
#[derive(Debug)]
pub(crate) enum Landing {
    /// The waiter's. It is to be woken, if it left a waker.
    Delivered(Option<Waker>),
    /// The lander's: nobody waits any more.
    Abandoned,
}

pub(crate) struct Cell {
    state: AtomicU32,
    /// The waiter's in `IN_FLIGHT`, the lander's in `LANDING` and `LEFT`, nobody's to change in
    /// `WAITING`, the waiter's again in `LANDED`.
    waker: UnsafeCell<Option<Waker>>,
    /// The lander's until `LANDED`, then the waiter's.
    landed: UnsafeCell<Landed>,
}

// SAFETY: the state says whose each field is, as written there; it changes hands by releasing and
// acquiring exchanges. Wakers may be sent and shared.
unsafe impl Sync for Cell {}

impl Cell {
    pub(crate) fn new() -> Cell {
        Cell {
            state: AtomicU32::new(IN_FLIGHT),
            waker: UnsafeCell::new(None),
            landed: UnsafeCell::new(Landed { res: 0, flags: 0 }),
        }
    }

    /// Makes the cell ready for another operation.
    ///
    /// # Safety
    ///
    /// Nobody else uses the cell: its slot has just been taken off the free list.
    pub(crate) unsafe fn reset(&self) {
        self.state.store(IN_FLIGHT, Ordering::Relaxed);
    }

    /// The result, or `None` after which `waker` will be woken.
    ///
    /// # Safety
    ///
    /// The caller is the waiter, and neither has this returned a result nor was the cell abandoned.
    pub(crate) unsafe fn poll(&self, waker: &Waker) -> Option<Landed> {
        loop {
            match self.state.load(Ordering::Acquire) {
                LANDED => return Some(self.take()),
                LANDING => {
                    waker.wake_by_ref();
                    return None;
                }
                WAITING => {
                    // It fails if the operation is landing just now.
                    let _ = self.exchange(WAITING, IN_FLIGHT);
                }
                _ => {
                    self.waker.with_mut(|present| {
                        // SAFETY: in IN_FLIGHT the waker is the waiter's.
                        let present = unsafe { &mut *present };
                        if !present.as_ref().is_some_and(|present| present.will_wake(waker)) {
                            *present = Some(waker.clone());
                        }
                    });
                    if self.exchange(IN_FLIGHT, WAITING).is_ok() {
                        return None;
                    }
                    // It has landed without looking at the waker.
                    // SAFETY: the lander takes no waker of IN_FLIGHT.
                    drop(self.waker.with_mut(|present| unsafe { (*present).take() }));
                }
            }
        }
    }

    /// The result, once it has landed. A waker that was taken back for another as the operation landed
    /// goes with it: the next operation of this cell has wakers of its own.
    fn take(&self) -> Landed {
        // SAFETY: in LANDED the waker and the result are the waiter's.
        let (waker, landed) = unsafe {
            let waker = self.waker.with_mut(|present| (*present).take());
            (waker, self.landed.with(|landed| *landed))
        };
        if waker.is_some() {
            drop_quietly(waker);
        }
        landed
    }

    /// The waiter gives up. The result, if it was there; then the cell stays the waiter's.
    ///
    /// # Safety
    ///
    /// As for [`poll`](Cell::poll); the cell is not used by the waiter after a `None`.
    pub(crate) unsafe fn abandon(&self) -> Option<Landed> {
        loop {
            match self.state.load(Ordering::Acquire) {
                LANDED => return Some(self.take()),
                LANDING => {
                    if self.exchange(LANDING, LEFT).is_ok() {
                        return None;
                    }
                }
                WAITING => {
                    if self.exchange(WAITING, IN_FLIGHT).is_ok() {
                        // SAFETY: in IN_FLIGHT the waker is the waiter's.
                        drop_quietly(self.waker.with_mut(|present| unsafe { (*present).take() }));
                    }
                }
                _ => {
                    if self.exchange(IN_FLIGHT, ABANDONED).is_ok() {
                        return None;
                    }
                }
            }
        }
    }

    /// Whether nobody waits any more. If not, that may change at any time.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.state.load(Ordering::Acquire) == ABANDONED
    }

    /// Delivers a result.
    ///
    /// # Safety
    ///
    /// The caller is the lander, and this is the operation's only landing.
    pub(crate) unsafe fn land(&self, landed: Landed) -> Landing {
        // SAFETY: before LANDED the result is the lander's.
        self.landed.with_mut(|place| unsafe { *place = landed });
        loop {
            match self.state.load(Ordering::Acquire) {
                ABANDONED => return Landing::Abandoned,
                WAITING => {
                    if self.exchange(WAITING, LANDING).is_ok() {
                        // SAFETY: in LANDING, and in LEFT, the waker is the lander's.
                        let waker = self.waker.with_mut(|present| unsafe { (*present).take() });
                        return match self.state.swap(LANDED, Ordering::AcqRel) {
                            LEFT => {
                                drop_quietly(waker);
                                Landing::Abandoned
                            }
                            _ => Landing::Delivered(waker),
                        };
                    }
                }
                _ => {
                    if self.exchange(IN_FLIGHT, LANDED).is_ok() {
                        return Landing::Delivered(None);
                    }
                }
            }
        }
    }

    #[inline]
    fn exchange(&self, from: u32, to: u32) -> Result<u32, u32> {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
    }
}

/// Drops what a user made, whose destructor may panic, on a thread that must go on.
pub(crate) fn drop_quietly<T>(value: T) {
    undisturbed(move || drop(value));
}

/// Runs what a user wrote on a thread that must go on.
pub(crate) fn undisturbed(run: impl FnOnce()) {
    if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
        // What was thrown may throw again when it is dropped, and so may what that throws.
        if let Err(again) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(panic))) {
            std::mem::forget(again);
        }
    }
}
