//! Cancels, and those that the kernel lets pass.
//!
//! The kernel looks for what is to be cancelled where it waits: with its workers, and among what is polled
//! for. An operation whose descriptor gets ready as it begins to wait is in neither place until it has been
//! tried again (`IO_APOLL_READY` in the kernel's `io_uring/poll.c`). A cancel that comes then is answered as
//! if there were nothing, and the operation, if somebody else has taken what was there, waits on without
//! end. The same goes for an entry of a chain that has not begun, and may go for one that a worker carries out
//! (`EALREADY`). So a cancel lands under a key that says whose it was; and if it has failed, and its operation
//! is still there after a while, it is asked for again.

use std::time::{Duration, Instant};

use super::{FOLLOWERS, Form, NO_DESCRIPTOR, Pending, Uring, earlier, encode};
use crate::entry::abi;
use crate::op::{Completion, Key};

/// From here on the engine's keys are those of cancels. Slots have lower indices.
const CANCELS: u32 = 1 << 30;

/// The most slots that there are keys for.
pub(super) const MOST_SLOTS: usize = (CANCELS - FOLLOWERS) as usize;

/// After how long a cancel is asked for again, and how often that doubles: what cannot be cancelled, a read
/// that its device has, is to cost little. What is due is looked for no more often than the first.
const AGAIN: Duration = Duration::from_millis(1);
const DOUBLED: u8 = 7;

/// In the place of a count of cancels: there is nothing left that one could end.
const NOTHING_LEFT: u8 = u8::MAX;

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
    pub(super) slots: Vec<(u32, Instant)>,
    /// Those whose time has come, while they are asked for.
    due: Vec<u32>,
    /// When it is looked which these are.
    at: Option<Instant>,
}

impl Missed {
    #[inline]
    pub(super) fn at(&self) -> Option<Instant> {
        self.at
    }

    fn take_due(&mut self, now: Instant) -> Vec<u32> {
        let Missed { slots, due, at } = self;
        *at = None;
        slots.retain(|&(index, then)| {
            let is_due = then <= now;
            if is_due {
                due.push(index);
            } else {
                *at = earlier(*at, Some(then.max(now + AGAIN)));
            }
            !is_due
        });
        std::mem::take(due)
    }
}

impl Pending {
    /// Whether the kernel has it, as far as is known.
    fn may_be_cancelled(&self) -> bool {
        self.fd != NO_DESCRIPTOR && self.form != Form::LettingGo && self.cancels != NOTHING_LEFT
    }

    /// It has landed, but not for the last time. The kernel still has the bytes of a send that did not copy them,
    /// until others have them, and no cancel ends that.
    #[inline]
    pub(super) fn has_landed_once(&mut self) {
        if matches!(self.opcode, abi::SEND_ZC | abi::SENDMSG_ZC) {
            self.cancels = NOTHING_LEFT;
        }
    }

    /// A cancel has failed: notes that, unless nobody cares any more, or it is noted already.
    #[cold]
    pub(super) fn was_missed(&mut self, index: u32, missed: &mut Missed) {
        if self.cancels == 0 || self.is_missed || !self.may_be_cancelled() {
            return;
        }
        self.is_missed = true;
        let at = Instant::now() + AGAIN * (1 << (self.cancels - 1).min(DOUBLED));
        missed.slots.push((index, at));
        missed.at = earlier(missed.at, Some(at));
    }
}

impl Uring {
    /// [`Engine::cancel`](crate::Engine::cancel).
    pub(super) fn cancel_operation(&mut self, key: Key) {
        if key.is_reserved() {
            return;
        }
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
        pending.cancels = pending.cancels.max(1);
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
        let mut due = self.missed.take_due(now);
        for index in due.drain(..) {
            let pending = &mut self.pending[index as usize];
            // Not if it is another's since.
            if std::mem::take(&mut pending.is_missed) && pending.may_be_cancelled() {
                pending.cancels = pending.cancels.saturating_add(1).min(NOTHING_LEFT - 1);
                let key = Key::new(index, pending.generation);
                self.ask_for_cancel(key);
            }
        }
        self.missed.due = due;
    }
}
