//! Who waits for what: the operations that are parked, in lists by descriptor and side.
//!
//! ```text
//!   entries, by descriptor number           slots, by key index
//!   ┌──────────────────────────────┐        ┌──────────────────────────────┐
//!   │ epoch, what is known of it   │  ┌────►│ key, operation, progress     │
//!   │ readers  head ───────────────┼──┘     │ next ──► the slot behind it  │
//!   │ writers  head                │        │ previous                     │
//!   │ pollers  head                │        └──────────────────────────────┘
//!   └──────────────────────────────┘
//! ```
//!
//! A slot is in exactly one list, that of its operation's descriptor and [`Side`], or in none. The
//! lists run through the slots, so parking allocates nothing and a cancel unlinks in O(1).

use std::os::fd::RawFd;
use std::sync::Arc;

use crate::op::{Key, Op, Readiness};
use crate::ready::offloaded::Ticket;
use crate::sys::descriptors::Epoch;

/// The end of a list.
pub(super) const NIL: u32 = u32::MAX;

/// Which list of its descriptor an operation waits in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    Readers = 0,
    Writers = 1,
    Pollers = 2,
}

impl Side {
    pub(super) const ALL: [Side; 3] = [Side::Readers, Side::Writers, Side::Pollers];

    pub(super) fn of(op: &Op) -> Side {
        match op {
            Op::Poll { .. } => Side::Pollers,
            Op::Send { .. } | Op::SendMsg { .. } | Op::Connect { .. } | Op::Write { .. } => {
                Side::Writers
            }
            _ => Side::Readers,
        }
    }
}

/// Whether a short receive from a socket means that it is empty. Asked once an epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Drains {
    NotAsked,
    Yes,
    No,
}

#[derive(Clone, Copy)]
struct List {
    head: u32,
    tail: u32,
}

/// What is known of a descriptor number.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    /// The use of the number that all of this is about.
    pub(super) epoch: Epoch,
    /// An attempt to receive may yield something. Kept for owned descriptors only.
    pub(super) readable: bool,
    /// A hang-up, an error or urgent data was seen: `readable` tells nothing any more, since the
    /// end of the stream is not announced again. Kept for owned descriptors only.
    pub(super) unsettled: bool,
    pub(super) drains: Drains,
    /// Watched by the selector, as far as is known, for `interest`.
    pub(super) watched: bool,
    pub(super) interest: Readiness,
    lists: [List; 3],
}

impl Entry {
    const NEW: Entry = Entry {
        epoch: Epoch::NONE,
        readable: true,
        unsettled: false,
        drains: Drains::NotAsked,
        watched: false,
        interest: Readiness(0),
        lists: [List { head: NIL, tail: NIL }; 3],
    };

    pub(super) fn head(&self, side: Side) -> u32 {
        self.lists[side as usize].head
    }

    pub(super) fn is_idle(&self) -> bool {
        self.lists.iter().all(|list| list.head == NIL)
    }

    /// Forgets all that was known; who is parked stays.
    pub(super) fn renew(&mut self, epoch: Epoch) {
        *self = Entry { epoch, lists: self.lists, ..Entry::NEW };
    }
}

/// Where the operation of a slot is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    Free,
    Parked,
    Offloaded,
}

pub(super) struct Slot {
    pub(super) key: Key,
    pub(super) op: Op,
    pub(super) next: u32,
    previous: u32,
    /// Bytes received so far by a `MSG_WAITALL`; 1 for a connect that is on its way.
    pub(super) progress: i32,
    pub(super) place: Place,
    pub(super) ticket: Option<Arc<Ticket>>,
}

impl Slot {
    const FREE: Slot = Slot {
        key: Key::from_bits(u64::MAX),
        op: Op::Nop,
        next: NIL,
        previous: NIL,
        progress: 0,
        place: Place::Free,
        ticket: None,
    };

    /// What the operation lands with if it ends here with `res`: bytes it has moved are not
    /// taken back.
    pub(super) fn ended(&self, res: i32) -> i32 {
        match self.op {
            Op::Recv { .. } if self.progress > 0 => self.progress,
            _ => res,
        }
    }
}

/// The two tables.
#[derive(Default)]
pub(super) struct Table {
    entries: Vec<Entry>,
    slots: Vec<Slot>,
    /// How many slots are parked.
    pub(super) parked: usize,
}

impl Table {
    pub(super) fn entry(&self, fd: RawFd) -> Option<&Entry> {
        self.entries.get(fd as usize)
    }

    pub(super) fn entry_mut(&mut self, fd: RawFd) -> Option<&mut Entry> {
        self.entries.get_mut(fd as usize)
    }

    /// The entry of `fd`, which is open: numbers that are not would grow the table for nothing.
    pub(super) fn make_entry(&mut self, fd: RawFd) -> &mut Entry {
        let at = fd as usize;
        if at >= self.entries.len() {
            self.entries.resize((at + 1).next_power_of_two(), Entry::NEW);
        }
        &mut self.entries[at]
    }

    /// Every entry that somebody is parked on.
    pub(super) fn waited_for(&self) -> impl Iterator<Item = (RawFd, &Entry)> {
        (0..).zip(&self.entries).filter(|(_, entry)| !entry.is_idle())
    }

    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub(super) fn slot(&self, at: u32) -> &Slot {
        &self.slots[at as usize]
    }

    pub(super) fn slot_mut(&mut self, at: u32) -> &mut Slot {
        &mut self.slots[at as usize]
    }

    /// The slot of `key`, if `key` is parked or offloaded.
    pub(super) fn find(&self, key: Key) -> Option<&Slot> {
        self.slots
            .get(key.index() as usize)
            .filter(|slot| slot.key == key && slot.place != Place::Free)
    }

    fn make_slot(&mut self, key: Key) -> &mut Slot {
        let at = key.index() as usize;
        if at >= self.slots.len() {
            self.slots.resize_with((at + 1).next_power_of_two(), || Slot::FREE);
        }
        debug_assert_eq!(self.slots[at].place, Place::Free, "{key:?} is in flight already");
        &mut self.slots[at]
    }

    /// Puts an operation at the end of its list. Its descriptor has an entry.
    pub(super) fn park(&mut self, key: Key, op: Op, progress: i32) {
        let fd = op.fd().unwrap_or(-1) as usize;
        let list = &mut self.entries[fd].lists[Side::of(&op) as usize];
        let previous = std::mem::replace(&mut list.tail, key.index());
        if previous == NIL {
            list.head = key.index();
        } else {
            self.slots[previous as usize].next = key.index();
        }
        let place = Place::Parked;
        *self.make_slot(key) = Slot { key, op, next: NIL, previous, progress, place, ticket: None };
        self.parked += 1;
    }

    /// Takes a parked operation out of its list and frees its slot.
    pub(super) fn unpark(&mut self, at: u32) -> Slot {
        let slot = std::mem::replace(&mut self.slots[at as usize], Slot::FREE);
        debug_assert_eq!(slot.place, Place::Parked);
        let fd = slot.op.fd().unwrap_or(-1) as usize;
        let list = &mut self.entries[fd].lists[Side::of(&slot.op) as usize];
        match slot.previous {
            NIL => list.head = slot.next,
            previous => self.slots[previous as usize].next = slot.next,
        }
        match slot.next {
            NIL => list.tail = slot.previous,
            next => self.slots[next as usize].previous = slot.previous,
        }
        self.parked -= 1;
        slot
    }

    /// Remembers that an offload thread has the operation.
    pub(super) fn hand_out(&mut self, key: Key, op: Op, ticket: Arc<Ticket>) {
        let place = Place::Offloaded;
        *self.make_slot(key) = Slot { key, op, place, ticket: Some(ticket), ..Slot::FREE };
    }

    /// Frees the slot of an operation that came back from its offload thread.
    pub(super) fn take_back(&mut self, key: Key) {
        self.slots[key.index() as usize] = Slot::FREE;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn order(table: &Table, side: Side) -> Vec<u32> {
        let mut order = Vec::new();
        let mut at = table.entry(3).map_or(NIL, |entry| entry.head(side));
        while at != NIL {
            order.push(at);
            at = table.slot(at).next;
        }
        order
    }

    proptest! {
        #[test]
        fn lists_keep_the_order_of_parking(steps in proptest::collection::vec((0..16u32, any::<bool>()), 0..200)) {
            let mut table = Table::default();
            table.make_entry(3);
            let mut model: [VecDeque<u32>; 2] = Default::default();
            for (slot, write) in steps {
                if let Some(list) = model.iter_mut().find(|list| list.contains(&slot)) {
                    list.retain(|&other| other != slot);
                    prop_assert_eq!(table.unpark(slot).key, Key::new(slot, 1));
                } else {
                    let op = if write {
                        Op::Send { fd: 3, buf: std::ptr::null(), len: 0, flags: 0 }
                    } else {
                        Op::Recv { fd: 3, buf: std::ptr::null_mut(), len: 0, flags: 0 }
                    };
                    model[usize::from(write)].push_back(slot);
                    table.park(Key::new(slot, 1), op, 0);
                }
                prop_assert_eq!(order(&table, Side::Readers), Vec::from(model[0].clone()));
                prop_assert_eq!(order(&table, Side::Writers), Vec::from(model[1].clone()));
                prop_assert_eq!(table.parked, model[0].len() + model[1].len());
                prop_assert_eq!(table.entry(3).unwrap().is_idle(), table.parked == 0);
            }
        }
    }
}
