//! The bounded channel of an I/O thread: many put numbers of slots in, one takes them out.
//!
//! A ring of cells with a sequence each (Dmitry Vyukov's bounded queue, with one consumer). For the
//! cell that position `p` falls on:
//!
//! ```text
//!   sequence = p              empty, for whoever claims position p
//!   sequence = p + 1          full, for the consumer at position p
//!   sequence = p + capacity   empty again, for the next round
//! ```
//!
//! The tail carries a bit that closes the channel, so that nothing is put in after it: who retires
//! takes out what was claimed before and knows that this was all.

use crate::primitives::Apart;
use crate::primitives::atomic::{AtomicU32, AtomicU64, Ordering};

const CLOSED: u64 = 1 << 63;

/// Why a number was not put in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refused {
    Full,
    Closed,
}

struct Place {
    sequence: AtomicU32,
    value: AtomicU32,
}

pub(crate) struct Channel {
    /// The next position to be claimed, and [`CLOSED`].
    tail: Apart<AtomicU64>,
    /// The next position to be taken out. Written by the consumer only.
    head: Apart<AtomicU64>,
    places: Box<[Place]>,
}

impl Channel {
    /// Closed, with room for this many, rounded up to a power of two of at least 2. (With 1, "full" and
    /// "empty for the next round" would be the same sequence.)
    pub(crate) fn new(capacity: usize) -> Channel {
        let capacity = capacity.clamp(2, 1 << 30).next_power_of_two();
        let place = |at| Place { sequence: AtomicU32::new(at), value: AtomicU32::new(0) };
        Channel {
            tail: Apart(AtomicU64::new(CLOSED)),
            head: Apart(AtomicU64::new(0)),
            places: (0..capacity as u32).map(place).collect(),
        }
    }

    #[inline]
    fn place(&self, position: u64) -> &Place {
        &self.places[(position & (self.places.len() as u64 - 1)) as usize]
    }

    #[inline]
    pub(crate) fn push(&self, value: u32) -> Result<(), Refused> {
        let mut tail = self.tail.load(Ordering::Relaxed);
        loop {
            if tail & CLOSED != 0 {
                return Err(Refused::Closed);
            }
            let place = self.place(tail);
            let ahead = place.sequence.load(Ordering::Acquire).wrapping_sub(tail as u32) as i32;
            if ahead < 0 {
                return Err(Refused::Full);
            }
            if ahead > 0 {
                // Claimed by somebody else since.
                tail = self.tail.load(Ordering::Relaxed);
                continue;
            }
            match self.tail.compare_exchange_weak(
                tail,
                tail + 1,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    place.value.store(value, Ordering::Relaxed);
                    place.sequence.store((tail as u32).wrapping_add(1), Ordering::Release);
                    return Ok(());
                }
                Err(other) => tail = other,
            }
        }
    }

    /// Takes the oldest out. Only for the one consumer.
    #[inline]
    pub(crate) fn pop(&self) -> Option<u32> {
        let head = self.head.load(Ordering::Relaxed);
        let place = self.place(head);
        if place.sequence.load(Ordering::Acquire) != (head as u32).wrapping_add(1) {
            return None;
        }
        let value = place.value.load(Ordering::Relaxed);
        let again = (head as u32).wrapping_add(self.places.len() as u32);
        place.sequence.store(again, Ordering::Release);
        self.head.store(head + 1, Ordering::Relaxed);
        Some(value)
    }

    /// Whether there is nothing to take out; for others than the one consumer, a guess. What has been claimed and not
    /// yet put in does not count: who claimed it will notify.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        let head = self.head.load(Ordering::Relaxed);
        self.place(head).sequence.load(Ordering::Acquire) != (head as u32).wrapping_add(1)
    }

    /// About how many are in it.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        let head = self.head.load(Ordering::Relaxed);
        (self.tail.load(Ordering::Relaxed) & !CLOSED).saturating_sub(head) as usize
    }

    /// Whether there was no room just now.
    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.places.len()
    }

    /// Lets things in.
    pub(crate) fn open(&self) {
        self.tail.fetch_and(!CLOSED, Ordering::AcqRel);
    }

    /// Lets nothing in any more.
    pub(crate) fn close(&self) {
        self.tail.fetch_or(CLOSED, Ordering::AcqRel);
    }

    /// Whether it is closed and all that was ever claimed has been taken out. Only for the one consumer.
    pub(crate) fn is_finished(&self) -> bool {
        let tail = self.tail.load(Ordering::Acquire);
        tail & CLOSED != 0 && tail & !CLOSED == self.head.load(Ordering::Relaxed)
    }
}
