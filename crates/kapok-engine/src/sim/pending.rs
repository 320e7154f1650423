//! The operations that are pending, by the slot of their key.

use std::collections::BTreeMap;

use crate::op::{Key, Op};
use crate::sim::loan::Loan;
use crate::sim::schedule::At;
use crate::sim::world::Id;

/// Where a pending operation stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// A timer, and when it goes off.
    Timer(At),
    /// It waits for its object.
    Waiting(Id),
    /// It waits for a descriptor that is not of this world.
    Outside,
    /// It is over, and has not landed yet.
    Over(i32),
}

pub(super) struct Pending {
    pub(super) key: Key,
    pub(super) op: Op,
    pub(super) progress: i32,
    pub(super) stage: Stage,
    pub(super) loan: Loan,
    /// A cancel is on its way.
    pub(super) is_cancelled: bool,
}

/// What waits on an object: a receive waits behind the receives before it, not behind the sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    Readers,
    Writers,
    /// Polls, which wait behind nobody.
    Neither,
}

impl Side {
    pub(super) fn of(op: &Op) -> Side {
        match op {
            Op::Recv { .. } | Op::RecvMsg { .. } | Op::Accept { .. } | Op::Read { .. } => {
                Side::Readers
            }
            Op::Send { .. } | Op::SendMsg { .. } | Op::Connect { .. } | Op::Write { .. } => {
                Side::Writers
            }
            _ => Side::Neither,
        }
    }
}

#[derive(Default)]
pub(super) struct Table {
    slots: Vec<Option<Pending>>,
    /// Who waits on an object, the first first.
    waiting: BTreeMap<Id, Vec<Key>>,
    outside: Vec<Key>,
}

impl Table {
    pub(super) fn insert(&mut self, pending: Pending) {
        let slot = pending.key.index() as usize;
        if slot >= self.slots.len() {
            self.slots.resize_with((slot + 1).next_power_of_two(), || None);
        }
        debug_assert!(self.slots[slot].is_none(), "{:?} is in flight already", pending.key);
        match pending.stage {
            Stage::Waiting(id) => self.waiting.entry(id).or_default().push(pending.key),
            Stage::Outside => self.outside.push(pending.key),
            Stage::Timer(_) | Stage::Over(_) => {}
        }
        self.slots[slot] = Some(pending);
    }

    pub(super) fn get(&mut self, key: Key) -> Option<&mut Pending> {
        self.slots.get_mut(key.index() as usize)?.as_mut().filter(|pending| pending.key == key)
    }

    /// Takes an operation out altogether.
    pub(super) fn remove(&mut self, key: Key) -> Option<Pending> {
        self.unqueue(key);
        let slot = self.slots.get_mut(key.index() as usize)?;
        slot.take_if(|pending| pending.key == key)
    }

    /// Marks an operation as over. It stays until it lands.
    pub(super) fn end(&mut self, key: Key, res: i32) {
        self.unqueue(key);
        if let Some(pending) = self.get(key) {
            pending.stage = Stage::Over(res);
        }
    }

    fn unqueue(&mut self, key: Key) {
        let Some(pending) = self.get(key) else { return };
        match pending.stage {
            Stage::Waiting(id) => {
                if let Some(queue) = self.waiting.get_mut(&id) {
                    queue.retain(|&waiting| waiting != key);
                    if queue.is_empty() {
                        self.waiting.remove(&id);
                    }
                }
            }
            Stage::Outside => self.outside.retain(|&waiting| waiting != key),
            Stage::Timer(_) | Stage::Over(_) => {}
        }
    }

    /// Who waits on an object, the first first.
    pub(super) fn waiting(&self, id: Id) -> Vec<Key> {
        self.waiting.get(&id).cloned().unwrap_or_default()
    }

    /// Whether an operation of this side waits on an object.
    pub(super) fn is_waited_for(&mut self, id: Id, side: Side) -> bool {
        let keys = self.waiting(id);
        keys.into_iter().any(|key| self.get(key).is_some_and(|one| Side::of(&one.op) == side))
    }

    /// Who waits for a descriptor that is not of this world.
    pub(super) fn outside(&self) -> &[Key] {
        &self.outside
    }

    /// All that is pending, in the order of the slots.
    pub(super) fn all(&self) -> impl Iterator<Item = &Pending> {
        self.slots.iter().flatten()
    }

    /// Takes everything out.
    pub(super) fn drain(&mut self) -> Vec<Pending> {
        self.waiting.clear();
        self.outside.clear();
        self.slots.drain(..).flatten().collect()
    }
}
