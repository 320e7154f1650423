//! Permits: the counting core of mutex, read-write lock, semaphore and channels.
//!
//! A mutex is one permit, a write lock is all of them, a channel counts its values and its free
//! slots. So there is one protocol to get right, and it is here.
//!
//! ```text
//!   word:  │ available permits                               │ CLOSED │ RESERVED │ QUEUED │
//!                                                              bit 2     bit 1      bit 0
//! ```
//!
//! Taking and giving back are one read-modify-write each while nobody waits. Permits are never
//! handed to a waiter: it is woken when enough are there, and takes them itself ("wake and retry").
//! Hence a waiter may be dropped at any moment without losing a permit.
//!
//! - **No lost wake-up.** `QUEUED` is set, under the queue's lock, before a waiter's last look at
//!   the count; who gives back sees the bit in the same word, takes the lock and notifies. `QUEUED`
//!   stays until everybody who waits is notified: those need nothing more, and one that was woken in
//!   vain sets it again before it looks again.
//! - **Whom to notify.** The first who wait, as long as the available permits cover their needs on
//!   top of the needs of those notified before and not yet back (`promised`). A notified waiter
//!   that is dropped takes its promise along, and the next are looked at.
//! - **Bounded barging.** Newcomers may take what is there although others wait: it spares a context
//!   switch for each permit. A waiter that waited for [`PATIENCE`], or was woken in vain
//!   [`MAX_LOSSES`] times, becomes *starving* and sets `RESERVED`: then newcomers queue, and the
//!   waiters get what is given back, first come first served.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::queue::{Locked, Place, Protocol, Queue, Waiter};
use crate::time;

const QUEUED: usize = 1;
const RESERVED: usize = 1 << 1;
const CLOSED: usize = 1 << 2;
const SHIFT: u32 = 3;

pub(super) const MAX_PERMITS: usize = usize::MAX >> SHIFT;

/// How long newcomers may overtake a waiter. A context switch or two: shorter, and a contended lock
/// makes one for each change of hands.
const PATIENCE: Duration = Duration::from_millis(1);
const MAX_LOSSES: u32 = 8;

/// The permits were closed and there are not enough left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Closed;

pub(super) struct Permits {
    queue: Queue<Word>,
}

struct Word(AtomicUsize);

struct Tally {
    /// The needs of those notified and not yet back.
    promised: usize,
    /// Those waiting or notified that are starving.
    starving: usize,
    next_ticket: u64,
}

struct Turn {
    need: usize,
    /// The order of arrival: who was woken in vain goes back to its place.
    ticket: u64,
    since: Instant,
    losses: u32,
    starving: bool,
}

impl Word {
    /// Takes `need` permits if they are there and the word has none of the flags of `unless`.
    /// Otherwise the word as it was.
    #[inline]
    fn take(&self, need: usize, unless: usize) -> Result<(), usize> {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            if word & unless != 0 || word >> SHIFT < need {
                return Err(word);
            }
            match self.0.compare_exchange_weak(
                word,
                word - (need << SHIFT),
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(()),
                Err(now) => word = now,
            }
        }
    }

    fn set(&self, flag: usize) {
        self.0.fetch_or(flag, Ordering::AcqRel);
    }

    fn clear(&self, flag: usize) {
        self.0.fetch_and(!flag, Ordering::AcqRel);
    }

    fn load(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

impl Protocol for Word {
    type State = Tally;
    type Turn = Turn;

    fn abandoned(queue: &mut Locked<'_, Word>, place: Place, turn: Turn) {
        Permits::left(queue, place, &turn);
        // It may have been in the way of others, or what it was promised is free for them.
        Permits::notify(queue);
    }
}

impl Permits {
    pub(super) const fn new(permits: usize) -> Permits {
        assert!(permits <= MAX_PERMITS, "more permits than a word can count");
        let tally = Tally { promised: 0, starving: 0, next_ticket: 0 };
        Permits { queue: Queue::new(Word(AtomicUsize::new(permits << SHIFT)), tally) }
    }

    pub(super) fn available(&self) -> usize {
        self.queue.protocol().load() >> SHIFT
    }

    /// Takes `need` permits if they are there and not reserved for who waits.
    #[inline]
    pub(super) fn try_acquire(&self, need: usize) -> bool {
        self.queue.protocol().take(need, RESERVED).is_ok()
    }

    /// Takes `need` permits as soon as they are there, closed or not.
    pub(super) async fn acquire(&self, need: usize) -> Result<(), Closed> {
        if self.try_acquire(need) {
            return Ok(());
        }
        let waiter = pin!(self.queue.waiter());
        let waiter = waiter.as_ref();
        poll_fn(|context| self.poll_acquire(waiter, context, need)).await
    }

    /// Gives `count` permits back, or adds them.
    #[inline]
    pub(super) fn release(&self, count: usize) {
        let before = self.queue.protocol().0.fetch_add(count << SHIFT, Ordering::AcqRel);
        debug_assert!(before >> SHIFT <= MAX_PERMITS - count, "more permits than a word can count");
        if before & QUEUED != 0 {
            self.release_slow();
        }
    }

    #[cold]
    fn release_slow(&self) {
        let mut queue = self.queue.lock();
        Self::notify(&mut queue);
        // Who is still first may never be woken while others come and go: with few, if it needs many.
        let impatient = queue.front().is_some_and(|front| {
            let impatient = !front.starving && front.since.elapsed() >= PATIENCE;
            front.starving |= impatient;
            impatient
        });
        if impatient {
            Self::reserve(&mut queue);
        }
    }

    /// From now on who cannot have its permits at once gets [`Closed`]; those who wait do, too.
    pub(super) fn close(&self) {
        self.queue.protocol().set(CLOSED);
        Self::notify(&mut self.queue.lock());
    }

    fn poll_acquire(
        &self,
        waiter: Pin<&Waiter<'_, Word>>,
        context: &mut Context<'_>,
        need: usize,
    ) -> Poll<Result<(), Closed>> {
        let word = self.queue.protocol();
        let mut queue = self.queue.lock();
        if queue.place(waiter) == Place::Idle {
            // First the flag, then the look at the count: see "no lost wake-up" above.
            word.set(QUEUED);
            let ticket = queue.next_ticket;
            queue.next_ticket += 1;
            let since = time::now();
            queue.push_back(waiter, Turn { need, ticket, since, losses: 0, starving: false });
            Self::notify(&mut queue);
        }
        while queue.place(waiter) == Place::Notified {
            let taken = word.take(need, 0);
            let Some((place, mut turn)) = queue.remove(waiter) else {
                unreachable!("a notified waiter is not idle");
            };
            match taken {
                Err(word) if word & CLOSED == 0 => {
                    queue.promised -= need;
                    turn.losses += 1;
                    if turn.losses >= MAX_LOSSES
                        || time::now().duration_since(turn.since) >= PATIENCE
                    {
                        Self::starve(&mut queue, &mut turn);
                    }
                    let ticket = turn.ticket;
                    queue.protocol().set(QUEUED);
                    queue.push_before(waiter, turn, |other| other.ticket > ticket);
                    // What is there may suffice for one before it, now that this promise is gone.
                    Self::notify(&mut queue);
                }
                _ => {
                    Self::left(&mut queue, place, &turn);
                    return Poll::Ready(taken.map_err(|_| Closed));
                }
            }
        }
        queue.watch(waiter, context.waker());
        Poll::Pending
    }

    /// Notifies the first who wait as far as the permits go.
    fn notify(queue: &mut Locked<'_, Word>) {
        loop {
            let word = queue.protocol().load();
            let promised = queue.promised;
            let Some(front) = queue.front() else {
                if word & QUEUED != 0 {
                    queue.protocol().clear(QUEUED);
                }
                return;
            };
            let need = front.need;
            if word & CLOSED == 0 && (word >> SHIFT).saturating_sub(promised) < need {
                return;
            }
            queue.promised += need;
            queue.notify_front();
        }
    }

    fn starve(queue: &mut Locked<'_, Word>, turn: &mut Turn) {
        if !turn.starving {
            turn.starving = true;
            Self::reserve(queue);
        }
    }

    fn reserve(queue: &mut Locked<'_, Word>) {
        queue.starving += 1;
        queue.protocol().set(RESERVED);
    }

    /// The books after a waiter was removed for good.
    fn left(queue: &mut Locked<'_, Word>, place: Place, turn: &Turn) {
        if place == Place::Notified {
            queue.promised -= turn.need;
        }
        if turn.starving {
            queue.starving -= 1;
            if queue.starving == 0 {
                queue.protocol().clear(RESERVED);
            }
        }
    }
}
