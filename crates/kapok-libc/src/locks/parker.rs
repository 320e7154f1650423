//! `std::thread::park` on fibers: what std's channels and scopes wait by.
//!
//! std has one token for each thread, in a word of three states, and the fibers of a thread share it. So
//! an unpark is for all of them that are parked: each returns from park, which may return for no reason,
//! and looks for itself.
//!
//! ```text
//!   0 empty · 1 notified · 2³²-1 parked            park:    word -= 1; if it was not 1, wait while parked,
//!                                                           until notified becomes empty
//!                                                  unpark:  word = 1; if it was parked, wake
//! ```
//!
//! If the word said "parked" while another fiber runs and parks too, that one would make it less, and go
//! round without a call for ever. If it said "empty" while the thread sleeps, nobody would wake it. So it
//! is "empty" while fibers run, and "parked" while the loop turns its engine and some are parked.
//!
//! Two ways are left for an unpark to go unseen: while fibers run it wakes nobody, and the next fiber
//! that parks takes the token before the loop looks at it; and a fiber that returns must find "notified",
//! and makes it "empty" a few instructions later. So every fiber that is parked returns after a while
//! for no reason: after a millisecond at first, four times as long each time that no unpark was seen
//! meanwhile, a second at most. A wake-up that fell there comes late, and is not lost.
//!
//! The word is found by having std park for no time and looking at what it calls.

use std::cell::{Cell, RefCell};
use std::ffi::c_long;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::ptr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use kapok::interpose::{Ended, Inside};

use super::deadline::Deadline;
use super::futex::{Outcome, Word};
use crate::errno::Errno;
use crate::signals::mask::aside;

const EMPTY: u32 = 0;
const NOTIFIED: u32 = 1;
const PARKED: u32 = u32::MAX;

/// After what time a fiber returns for no reason, at first; and how often that is made longer.
const FIRST_DOUBT: Duration = Duration::from_millis(1);
const DOUBTS: u32 = 5;

struct Fiber {
    woken: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Fiber {
    fn wake(&self) {
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A thread's word, and its fibers that are parked there.
struct Parker {
    word: Cell<*const AtomicU32>,
    /// std parks, and the word is being looked for.
    looking: Cell<bool>,
    parked: RefCell<Vec<Rc<Fiber>>>,
    /// How many times fibers have returned for no reason since an unpark was seen.
    doubts: Cell<u32>,
}

thread_local! {
    static PARKER: Parker = const {
        Parker {
            word: Cell::new(ptr::null()),
            looking: Cell::new(false),
            parked: RefCell::new(Vec::new()),
            doubts: Cell::new(0),
        }
    };
}

/// Called with what goes past the fibers to syscall(2): one of those is the park for no time.
pub(super) fn look(number: c_long, address: usize) {
    if number == libc::SYS_futex {
        let _ = PARKER.try_with(|parker| {
            if parker.looking.replace(false) {
                parker.word.set(ptr::with_exposed_provenance(address));
            }
        });
    }
}

/// Whether the address is that of the calling thread's word.
pub(super) fn is_at(address: *const u32) -> bool {
    PARKER.try_with(|parker| ptr::eq(parker.word.get().cast(), address)).unwrap_or(false)
}

impl Parker {
    /// The word, once it is known.
    fn word(&self) -> Option<&AtomicU32> {
        // SAFETY: in the thread's own handle, which lasts as long as the thread.
        unsafe { self.word.get().as_ref() }
    }

    fn find(&self) {
        self.looking.set(true);
        std::thread::park_timeout(Duration::ZERO);
        self.looking.set(false);
        // It may have had a token, which it has taken.
        std::thread::current().unpark();
    }

    fn wake_all(&self) {
        self.doubts.set(0);
        let parked: Vec<_> = self.parked.borrow().clone();
        for fiber in parked {
            fiber.woken.set(true);
            fiber.wake();
        }
    }

    /// Changes the word if it is `from`; wakes all if there was an unpark.
    fn change(&self, from: u32, to: u32) {
        let Some(word) = self.word() else { return };
        if word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire) == Err(NOTIFIED) {
            self.wake_all();
        }
    }

    fn leave(&self, fiber: &Rc<Fiber>) {
        self.parked.borrow_mut().retain(|other| !Rc::ptr_eq(other, fiber));
    }
}

/// Forgets who is parked, in the child of a fork: those fibers are the parent's.
pub(super) fn forget() {
    let _ = PARKER.try_with(|parker| {
        if let Ok(mut parked) = parker.parked.try_borrow_mut() {
            std::mem::forget(std::mem::take(&mut *parked));
        }
    });
}

/// Nothing once the thread's word is gone with its thread-locals: functions of atexit(3) come later.
pub(super) fn before_turn() {
    let _ = PARKER.try_with(|parker| {
        if parker.word().is_none() {
            parker.find();
        }
        if !parker.parked.borrow().is_empty() {
            parker.change(EMPTY, PARKED);
        }
    });
}

pub(super) fn after_turn() {
    let _ = PARKER.try_with(|parker| {
        if !parker.parked.borrow().is_empty() {
            parker.change(PARKED, EMPTY);
        }
    });
}

/// Parks the fiber that runs.
pub(super) fn park(inside: &Inside, word: Word, deadline: Option<Deadline>) -> Result<(), Errno> {
    let me = Rc::new(Fiber { woken: Cell::new(false), waker: RefCell::new(None) });
    PARKER.with(|parker| {
        parker.parked.borrow_mut().push(Rc::clone(&me));
        parker.change(PARKED, EMPTY);
    });
    super::note_suspension();
    let until = deadline.and_then(|deadline| deadline.instant());
    let waited = {
        let mut kernel: Option<Pin<Box<dyn Future<Output = Outcome>>>> = None;
        let doubts = PARKER.with(|parker| parker.doubts.get());
        let mut doubt = kapok::time::sleep_async(FIRST_DOUBT * 4_u32.pow(doubts));
        let woken = poll_fn(|context| {
            loop {
                if me.woken.get() {
                    return Poll::Ready(());
                }
                me.waker.replace(Some(context.waker().clone()));
                if Pin::new(&mut doubt).poll(context).is_ready() {
                    PARKER.with(|parker| parker.doubts.set((parker.doubts.get() + 1).min(DOUBTS)));
                    return Poll::Ready(());
                }
                let waiting = kernel.get_or_insert_with(|| Box::pin(word.waiting(PARKED)));
                match waiting.as_mut().poll(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(outcome) => {
                        kernel = None;
                        if outcome == Outcome::Woken {
                            PARKER.with(Parker::wake_all);
                        }
                    }
                }
            }
        });
        kapok::shield(|| aside(|| inside.wait(woken, until)))
    };
    PARKER.with(|parker| {
        if waited != Err(Ended::TimedOut)
            && let Some(word) = parker.word()
            && word.swap(NOTIFIED, Ordering::AcqRel) == NOTIFIED
        {
            // That one was somebody's.
            parker.wake_all();
        }
        parker.leave(&me);
    });
    match waited {
        Err(Ended::TimedOut) => Err(Errno(libc::ETIMEDOUT)),
        _ => Ok(()),
    }
}
