//! The table of operations in flight: what a [`Key`] names.

use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::task::Waker;

use kapok_engine::Key;

use crate::fiber::Fiber;

const NO_SLOT: u32 = u32::MAX;

/// Slots that there are keys for.
const MOST: u32 = (1 << 30) - 2;

/// Who waits for a key to land.
pub(crate) enum Waiter {
    /// The fiber that lent the operation's memory. It is suspended until the landing.
    Fiber(NonNull<Fiber>),
    /// A time limit of this fiber: what it does then is to be interrupted.
    Limit(NonNull<Fiber>),
    /// A future; the result stays in the slot until it is fetched. With the descriptor, for
    /// reports.
    Task(Option<Waker>, Option<RawFd>),
    /// A future that has its result.
    Landed(i32),
    /// A future whose operation a dead ring keeps: it will never have a result.
    Lost,
    /// Nobody who waits, but someone who takes what landed: the result of an operation whose future
    /// is gone.
    Orphan(Box<dyn FnOnce(i32)>),
    /// The loop itself: it is time to look after the stacks.
    Stacks,
    /// Nobody: the slot is freed when the key lands.
    Nobody,
    /// In no use; the index is the next free slot.
    Free(u32),
}

struct Slot {
    generation: u32,
    waiter: Waiter,
}

/// The slots of one loop. A slot is reused at once; its generation tells the uses apart.
pub(crate) struct Slots {
    slots: Vec<Slot>,
    free: u32,
}

impl Slots {
    pub(crate) fn new() -> Slots {
        Slots { slots: Vec::new(), free: NO_SLOT }
    }

    #[inline]
    pub(crate) fn insert(&mut self, waiter: Waiter) -> Key {
        let index = self.free;
        match self.slots.get_mut(index as usize) {
            Some(slot) => {
                let Waiter::Free(next) = slot.waiter else {
                    unreachable!("the free list leads to a slot in use")
                };
                self.free = next;
                slot.waiter = waiter;
                Key::new(index, slot.generation)
            }
            None => {
                let index = self.slots.len() as u32;
                assert!(index < MOST, "a billion operations in flight");
                self.slots.push(Slot { generation: 0, waiter });
                Key::new(index, 0)
            }
        }
    }

    /// Who waits for `key`, unless it names an earlier use of its slot.
    #[inline]
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Waiter> {
        self.slots
            .get_mut(key.index() as usize)
            .filter(|slot| slot.generation == key.generation())
            .map(|slot| &mut slot.waiter)
    }

    /// What futures wait for on descriptors: whose they are by their waker, and the keys.
    pub(crate) fn tasks(&self) -> impl Iterator<Item = (*const (), Key)> {
        (0..).zip(&self.slots).filter_map(|(index, slot)| match &slot.waiter {
            Waiter::Task(Some(waker), Some(_)) => {
                Some((waker.data(), Key::new(index, slot.generation)))
            }
            _ => None,
        })
    }

    /// Leaks the heirs of operations that have not landed, with what they own.
    pub(super) fn forget_heirs(&mut self) {
        for slot in &mut self.slots {
            if matches!(slot.waiter, Waiter::Orphan(_)) {
                std::mem::forget(std::mem::replace(&mut slot.waiter, Waiter::Nobody));
            }
        }
    }

    /// Frees the slot of `key`, which is in use, and says who waited.
    #[inline]
    pub(crate) fn remove(&mut self, key: Key) -> Waiter {
        let slot = &mut self.slots[key.index() as usize];
        debug_assert_eq!(slot.generation, key.generation(), "freed twice");
        // The engines keep the last generation to themselves.
        slot.generation = match slot.generation + 1 {
            Key::RESERVED_GENERATION => 0,
            next => next,
        };
        let waiter = std::mem::replace(&mut slot.waiter, Waiter::Free(self.free));
        self.free = key.index();
        waiter
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a list of what is in use: a key names its own use of a slot and no other.
        #[test]
        fn keys_name_one_use_each(steps in prop::collection::vec((0..3_u8, any::<usize>()), 1..300)) {
            let mut slots = Slots::new();
            let (mut used, mut stale) = (Vec::new(), Vec::new());
            for (value, (step, at)) in (0_i32..).zip(steps) {
                if step == 0 && !used.is_empty() {
                    let (key, value): (Key, i32) = used.swap_remove(at % used.len());
                    prop_assert!(matches!(slots.remove(key), Waiter::Landed(it) if it == value));
                    stale.push(key);
                } else {
                    used.push((slots.insert(Waiter::Landed(value)), value));
                }
                for &(key, value) in &used {
                    let found = slots.get_mut(key);
                    prop_assert!(matches!(found, Some(Waiter::Landed(it)) if *it == value));
                }
                for &key in &stale {
                    prop_assert!(slots.get_mut(key).is_none(), "{key:?} is over");
                }
            }
        }
    }

    #[test]
    fn a_key_of_an_earlier_use_names_nothing() {
        let mut slots = Slots::new();
        let first = slots.insert(Waiter::Nobody);
        slots.remove(first);
        let second = slots.insert(Waiter::Landed(7));
        assert_eq!(first.index(), second.index(), "the slot is reused at once");
        assert!(slots.get_mut(first).is_none());
        assert!(matches!(slots.get_mut(second), Some(Waiter::Landed(7))));
    }
}
