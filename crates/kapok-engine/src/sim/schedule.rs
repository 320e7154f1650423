//! What will happen, and when, in nanoseconds of the world's time.

use std::collections::BTreeMap;

use crate::op::Key;
use crate::sim::address::Address;
use crate::sim::world::Id;

/// Something that happens at its time.
#[derive(Debug)]
pub(super) enum Event {
    /// The clock has reached a timer's deadline.
    Timer(Key),
    /// A completion that was held back lands.
    Land(Key),
    /// A cancel that was held back arrives.
    Cancel(Key),
    /// Those who wait on an object try again.
    Wake(Id),
    /// What travels to this end of a stream arrives.
    Arrive(Id),
    /// A connect arrives at the address that it is for.
    Knock { client: Id, to: Address },
    /// The answer to a connect arrives.
    Answer { client: Id, res: i32 },
    /// A datagram arrives.
    Datagram { to: Id, from: Address, bytes: Vec<u8> },
    /// The news that nobody has this datagram arrives at its sender.
    Unreachable(Id),
    /// A ring that was held back is heard.
    Bell,
}

/// When an event happens: its time, and its rank among those of the same time.
pub(super) type At = (u64, u64);

#[derive(Default)]
pub(super) struct Schedule {
    events: BTreeMap<At, Event>,
    rank: u64,
}

impl Schedule {
    pub(super) fn add(&mut self, time: u64, event: Event) -> At {
        self.rank += 1;
        let at = (time, self.rank);
        self.events.insert(at, event);
        at
    }

    pub(super) fn remove(&mut self, at: At) {
        self.events.remove(&at);
    }

    /// When the next event happens.
    pub(super) fn next(&self) -> Option<u64> {
        self.events.first_key_value().map(|(at, _)| at.0)
    }

    /// Takes the next event that happens no later than `now`.
    pub(super) fn due(&mut self, now: u64) -> Option<Event> {
        let first = self.events.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}
