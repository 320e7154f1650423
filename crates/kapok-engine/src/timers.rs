//! The timers of an engine: an indexed four-ary heap.
//!
//! A server arms a time-out for nearly every read and disarms nearly every one, so removal must be
//! as cheap as insertion and must leave nothing behind. Each entry's position in the heap is kept
//! in a table by the slot index of its key; four children a node keep a million sleepers ten levels
//! deep, and siblings in adjacent cache lines.

use std::time::Instant;

use crate::op::Key;

const ARITY: usize = 4;
const ABSENT: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Entry {
    deadline: Instant,
    key: Key,
}

/// A set of keys ordered by deadline.
#[derive(Default)]
pub(crate) struct Timers {
    heap: Vec<Entry>,
    /// By slot index: where in `heap` the slot's timer is.
    position: Vec<u32>,
}

impl Timers {
    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Adds `key`, whose slot has no timer here.
    pub(crate) fn insert(&mut self, key: Key, deadline: Instant) {
        let slot = key.index() as usize;
        if slot >= self.position.len() {
            self.position.resize((slot + 1).next_power_of_two(), ABSENT);
        }
        debug_assert_eq!(self.position[slot], ABSENT, "slot {slot} has a timer already");
        self.heap.push(Entry { deadline, key });
        self.sift_up(self.heap.len() - 1);
    }

    /// Removes `key` if it is there.
    pub(crate) fn remove(&mut self, key: Key) -> bool {
        match self.position.get(key.index() as usize) {
            Some(&at) if at != ABSENT && self.heap[at as usize].key == key => {
                self.remove_at(at as usize);
                true
            }
            _ => false,
        }
    }

    /// The earliest deadline.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.heap.first().map(|entry| entry.deadline)
    }

    /// Takes the earliest timer whose deadline is not after `now`.
    pub(crate) fn pop_expired(&mut self, now: Instant) -> Option<Key> {
        let first = *self.heap.first()?;
        if first.deadline > now {
            return None;
        }
        self.remove_at(0);
        Some(first.key)
    }

    /// Takes all of them out, in no order.
    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = (Key, Instant)> {
        std::mem::take(self).heap.into_iter().map(|entry| (entry.key, entry.deadline))
    }

    fn remove_at(&mut self, at: usize) {
        let removed = self.heap.swap_remove(at);
        self.position[removed.key.index() as usize] = ABSENT;
        if at < self.heap.len() {
            // The entry that took its place came from the end: it may have to go either way.
            let settled = self.sift_up(at);
            self.sift_down(settled);
        }
    }

    fn sift_up(&mut self, mut at: usize) -> usize {
        let entry = self.heap[at];
        while at > 0 {
            let parent = (at - 1) / ARITY;
            if self.heap[parent].deadline <= entry.deadline {
                break;
            }
            self.place(at, self.heap[parent]);
            at = parent;
        }
        self.place(at, entry);
        at
    }

    fn sift_down(&mut self, mut at: usize) {
        let entry = self.heap[at];
        loop {
            let first = at * ARITY + 1;
            let last = (first + ARITY).min(self.heap.len());
            let Some(child) = (first..last).min_by_key(|&child| self.heap[child].deadline) else {
                break;
            };
            if entry.deadline <= self.heap[child].deadline {
                break;
            }
            self.place(at, self.heap[child]);
            at = child;
        }
        self.place(at, entry);
    }

    fn place(&mut self, at: usize, entry: Entry) {
        self.heap[at] = entry;
        self.position[entry.key.index() as usize] = at as u32;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u32, u64),
        Remove(u32),
        Expire(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..64u32, 0..1000u64).prop_map(|(slot, at)| Step::Insert(slot, at)),
            (0..64u32).prop_map(Step::Remove),
            (0..1000u64).prop_map(Step::Expire),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_an_ordered_map(steps in proptest::collection::vec(step(), 0..400)) {
            let origin = Instant::now();
            let at = |ms: u64| origin + Duration::from_millis(ms);
            let mut timers = Timers::default();
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Insert(slot, ms) => {
                        if let std::collections::btree_map::Entry::Vacant(vacant) = model.entry(slot) {
                            vacant.insert(ms);
                            timers.insert(Key::new(slot, 7), at(ms));
                        }
                    }
                    Step::Remove(slot) => {
                        // Another generation of the same slot is not this timer.
                        prop_assert!(!timers.remove(Key::new(slot, 8)));
                        prop_assert_eq!(timers.remove(Key::new(slot, 7)), model.remove(&slot).is_some());
                    }
                    Step::Expire(ms) => {
                        let mut last = 0;
                        while let Some(key) = timers.pop_expired(at(ms)) {
                            let was = model.remove(&key.index());
                            prop_assert!(was.is_some_and(|was| was <= ms && was >= last));
                            last = was.unwrap();
                        }
                        prop_assert!(model.values().all(|&left| left > ms));
                    }
                }
                prop_assert_eq!(timers.len(), model.len());
                prop_assert_eq!(timers.next_deadline(), model.values().min().map(|&ms| at(ms)));
            }
        }
    }
}
