//! Fibers whose waits a signal may end, as a handler sees them.
//!
//! Those of a thread are on a list of the thread's, which its handlers walk: it changes by single stores,
//! with what is on it complete before. What other threads want to know of waits is in the table of `wait`.

use std::cell::Cell;
use std::ffi::c_int;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU8, Ordering, compiler_fence};

use super::mask::{Set, bit};

const NONE: u8 = 0;
/// A handler has run, and ends the wait.
const ENDS: u8 = 1;
/// As [`ENDS`], but what may start again does.
const RESTARTS: u8 = 2;
/// A signal is deferred for this fiber: see `deferred`.
const IS_HERE: u8 = 3;

/// One wait.
pub(crate) struct Waiter {
    fiber: u64,
    mask: Set,
    is_main: bool,
    /// It waits for signals, or ends for all of them: see signal(7).
    never_restarts: bool,
    notice: AtomicU8,
    next: AtomicPtr<Waiter>,
    previous: AtomicPtr<Waiter>,
}

thread_local! {
    static FIRST: Cell<*mut Waiter> = const { Cell::new(ptr::null_mut()) };
}

impl Waiter {
    pub(crate) fn new(fiber: u64, mask: Set, is_main: bool, never_restarts: bool) -> Waiter {
        Waiter {
            fiber,
            mask,
            is_main,
            never_restarts,
            notice: AtomicU8::new(NONE),
            next: AtomicPtr::new(ptr::null_mut()),
            previous: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Whether it is the wait of this fiber.
    pub(crate) fn is_of(&self, fiber: u64) -> bool {
        self.fiber == fiber
    }

    fn lets(&self, signal: c_int) -> bool {
        self.mask & bit(signal) == 0
    }

    /// Who comes first if a signal is for one of several. None: not for this one.
    pub(crate) fn rank(&self, signal: c_int, restarts: bool) -> Option<u8> {
        self.lets(signal).then_some(match (self.is_main, self.never_restarts || !restarts) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => 2,
        })
    }

    /// Whether a handler that has run ends this wait.
    pub(crate) fn is_ended_by(&self, signal: c_int, restarts: bool) -> bool {
        self.lets(signal) && (!restarts || self.never_restarts)
    }

    /// Says that a handler has run. `false`: the wait is to end already.
    pub(crate) fn tell(&self, restarts: bool) -> bool {
        self.leave(if restarts { RESTARTS } else { ENDS })
    }

    fn leave(&self, notice: u8) -> bool {
        self.notice.compare_exchange(NONE, notice, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Whether the fiber has to be woken, if it waits already: for a signal that is deferred, or for a
    /// handler that has run on another fiber of its thread.
    pub(crate) fn is_struck(&self) -> bool {
        self.notice.load(Ordering::Acquire) != NONE
    }

    /// Whether the wait is to end.
    pub(crate) fn is_over(&self) -> bool {
        match self.notice.load(Ordering::Acquire) {
            NONE => false,
            RESTARTS if !self.never_restarts => {
                let _ = self.notice.compare_exchange(
                    RESTARTS,
                    NONE,
                    Ordering::AcqRel,
                    Ordering::Acquire,
                );
                self.notice.load(Ordering::Acquire) == IS_HERE
            }
            _ => true,
        }
    }
}

/// A waiter's place on the list of its thread.
pub(crate) struct Listed<'a>(&'a Waiter);

impl<'a> Listed<'a> {
    pub(crate) fn new(waiter: &'a Waiter) -> Listed<'a> {
        let first = FIRST.get();
        waiter.next.store(first, Ordering::Relaxed);
        // SAFETY: what is on the list is alive: it takes itself off.
        if let Some(first) = unsafe { first.as_ref() } {
            first.previous.store(ptr::from_ref(waiter).cast_mut(), Ordering::Relaxed);
        }
        compiler_fence(Ordering::SeqCst);
        FIRST.set(ptr::from_ref(waiter).cast_mut());
        Listed(waiter)
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        unlink(self.0);
    }
}

fn unlink(waiter: &Waiter) {
    let next = waiter.next.load(Ordering::Relaxed);
    let previous = waiter.previous.load(Ordering::Relaxed);
    // SAFETY: its neighbours are on the list, and alive.
    unsafe {
        match previous.as_ref() {
            Some(previous) => previous.next.store(next, Ordering::Relaxed),
            None if ptr::eq(FIRST.get(), waiter) => FIRST.set(next),
            None => {}
        }
        if let Some(next) = next.as_ref() {
            next.previous.store(previous, Ordering::Relaxed);
        }
    }
    compiler_fence(Ordering::SeqCst);
}

/// Takes the waits of a fiber that will never go on off the list of its thread, which runs: signals would
/// be taken for its own.
pub(crate) fn abandon(fiber: u64) {
    for waiter in all() {
        if waiter.is_of(fiber) {
            unlink(waiter);
        }
    }
}

fn all() -> impl Iterator<Item = &'static Waiter> {
    // SAFETY: as above; nobody keeps them beyond a look.
    let to = |at: *mut Waiter| unsafe { at.cast_const().as_ref() };
    std::iter::successors(to(FIRST.get()), move |one| to(one.next.load(Ordering::Relaxed)))
}

/// Whether a fiber waits on this thread so that a signal may end it.
pub(super) fn is_listed(fiber: u64) -> bool {
    all().any(|one| one.fiber == fiber)
}

/// Of those that wait on this thread, the one that a signal is for. In its handler.
pub(super) fn first(signal: c_int, restarts: bool) -> Option<(u64, bool)> {
    let ranked = all().filter_map(|one| Some((one.rank(signal, restarts)?, one)));
    ranked.min_by_key(|(rank, _)| *rank).map(|(_, one)| (one.fiber, one.is_main))
}

/// Says to the waits of a fiber that a signal is deferred for it. In its handler.
pub(super) fn strike(fiber: u64) {
    for one in all().filter(|one| one.fiber == fiber) {
        // What a handler has left that ran elsewhere ends less.
        if !one.leave(IS_HERE) {
            one.notice.store(IS_HERE, Ordering::Release);
        }
    }
}

/// Says to the main fiber, if it waits on this thread, that a handler has run on another fiber of it.
pub(super) fn tell_main(signal: c_int, restarts: bool) -> bool {
    all().any(|one| one.is_main && one.is_ended_by(signal, restarts) && one.tell(restarts))
}

/// Forgets those that wait: in the child of a fork nobody does.
pub(crate) fn forget() {
    FIRST.set(ptr::null_mut());
}
