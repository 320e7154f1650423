//! Cancels, and those that the kernel lets pass.
//!
//! The kernel looks for what is to be cancelled where it waits: with its workers, and among what is polled
//! for. An operation whose descriptor gets ready as it begins to wait is in neither place until it has been
//! tried again (`IO_APOLL_READY` in the kernel's `io_uring/poll.c`). A cancel that comes then is answered as
//! if there were nothing, and the operation, if somebody else has taken what was there, waits on without
//! end. The same goes for an entry of a chain that has not begun. So a cancel lands under a key that says
//! whose it was; and if it found nothing, and its operation is still there after a while, it is asked for
//! again.

use std::time::{Duration, Instant};

use super::{FOLLOWERS, Form, NO_DESCRIPTOR, Pending, Uring, earlier, encode};
use crate::op::{Completion, Key};

/// From here on the engine's keys are those of cancels. Slots have lower indices.
const CANCELS: u32 = 1 << 30;

/// The most slots that there are keys for.
pub(super) const MOST_SLOTS: usize = (CANCELS - FOLLOWERS) as usize;

/// After how long a cancel is asked for again, and how often that doubles: what cannot be cancelled, a read
/// that its device has, is to cost little.
const AGAIN: Duration = Duration::from_millis(1);
const DOUBLED: u8 = 7;

/// The key under which a cancel of this operation lands.
pub(super) fn key_of(target: Key) -> Key {
    Key::new(CANCELS + target.index(), Key::RESERVED_GENERATION)
}

/// The slot whose cancel has landed under this key, which is no message's.
#[inline]
pub(super) fn cancelled(key: Key) -> Option<u32> {
    key.index().checked_sub(CANCELS)
}

/// The slots whose operations the kernel has not found, and when they are asked for again.
#[derive(Default)]
pub(super) struct Missed {
    slots: Vec<(u32, Instant)>,
    /// The earliest.
    at: Option<Instant>,
}

impl Missed {
    /// Notes one that was asked for so often.
    #[cold]
    pub(super) fn note(&mut self, index: u32, asked: u8) {
        let doubled = asked.saturating_sub(1).min(DOUBLED);
        let at = Instant::now() + AGAIN * (1 << doubled);
        self.slots.push((index, at));
        self.at = earlier(self.at, Some(at));
    }

    #[inline]
    pub(super) fn at(&self) -> Option<Instant> {
        self.at
    }

    /// Takes one out whose time has come.
    fn take_due(&mut self, now: Instant) -> Option<u32> {
        let due = self.slots.iter().position(|&(_, at)| at <= now)?;
        Some(self.slots.swap_remove(due).0)
    }
}

impl Pending {
    /// Whether the kernel has it, as far as is known.
    pub(super) fn may_be_cancelled(&self) -> bool {
        self.fd != NO_DESCRIPTOR && self.form != Form::LettingGo
    }
}

impl Uring {
    /// [`Engine::cancel`](crate::Engine::cancel).
    pub(super) fn cancel_operation(&mut self, key: Key) {
        let is_over_at_once = if self.timers.remove(key) {
            true
        } else if self.withdraw(key) {
            self.in_kernel -= 1;
            self.pending[key.index() as usize].fd = NO_DESCRIPTOR;
            true
        } else {
            false
        };
        if is_over_at_once {
            self.landed.push(Completion { key, res: -libc::ECANCELED, flags: 0 });
        } else if self.ask_for_cancel(key) {
            self.hurry();
        }
    }

    /// Has the kernel asked to end what it has under this key. Says whether there is something.
    pub(super) fn ask_for_cancel(&mut self, key: Key) -> bool {
        let pending = self
            .pending
            .get_mut(key.index() as usize)
            .filter(|pending| pending.generation == key.generation() && pending.may_be_cancelled());
        let Some(pending) = pending else { return false };
        pending.cancels = pending.cancels.saturating_add(1);
        // SAFETY: a cancel names no memory.
        unsafe { self.push(encode::cancel(key_of(key), key)) };
        true
    }

    /// Asks again, when it is time, for the cancel of what the kernel has not found and is still there.
    #[cold]
    pub(super) fn ask_again(&mut self) {
        let now = Instant::now();
        if self.missed.at.is_none_or(|at| now < at) {
            return;
        }
        while let Some(index) = self.missed.take_due(now) {
            let pending = self.pending[index as usize];
            // Not if it is another's since.
            if pending.cancels > 0 {
                self.ask_for_cancel(Key::new(index, pending.generation));
            }
        }
        self.missed.at = self.missed.slots.iter().map(|&(_, at)| at).min();
    }
}
