//! The free list: which places of an array are free, taken and given back by any thread without a lock.
//!
//! A stack linked through indices, and several of them: each thread has a home among the shards, takes
//! from it and gives back to it, and looks into the others only when its own is empty. A shard's head
//! carries a count that grows with every change, so an exchange that was overtaken fails although the
//! same index is on top again.

use crate::primitives::Apart;
use crate::primitives::atomic::{AtomicU32, AtomicU64, Ordering};

/// No index: the end of a shard.
const NONE: u32 = u32::MAX;

pub(crate) struct FreeList {
    /// The count in the upper half, the index on top in the lower.
    shards: Box<[Apart<AtomicU64>]>,
    /// What is below an index that is free.
    below: Box<[AtomicU32]>,
}

impl FreeList {
    /// All of `0..len` free, dealt out over so many shards.
    pub(crate) fn new(len: u32, shards: usize) -> FreeList {
        let shards = shards.clamp(1, (len as usize).max(1));
        let list = FreeList {
            shards: (0..shards).map(|_| Apart(AtomicU64::new(u64::from(NONE)))).collect(),
            below: (0..len).map(|_| AtomicU32::new(NONE)).collect(),
        };
        // Neighbours go to the same shard, and the lowest is on top.
        let share = (len as usize).div_ceil(shards).max(1);
        for index in (0..len).rev() {
            list.push(index, index as usize / share);
        }
        list
    }

    /// Whether there was one just now.
    pub(crate) fn has_some(&self) -> bool {
        self.shards.iter().any(|head| head.load(Ordering::Relaxed) as u32 != NONE)
    }

    /// Takes an index, from the shard of this number if it has one.
    #[inline]
    pub(crate) fn pop(&self, home: usize) -> Option<u32> {
        self.pop_by(home, |head| head.load(Ordering::Acquire))
    }

    /// The same for who has announced that it will wait if there is none: either this finds what is
    /// given back, or who gives back sees the announcement. Both change the same word, so one of them
    /// comes after the other.
    #[cold]
    pub(crate) fn pop_announced(&self, home: usize) -> Option<u32> {
        self.pop_by(home, |head| head.fetch_add(0, Ordering::AcqRel))
    }

    #[inline]
    fn pop_by(&self, home: usize, look: impl Fn(&AtomicU64) -> u64) -> Option<u32> {
        let count = self.shards.len();
        for further in 0..count {
            let head = &self.shards[(home + further) % count];
            let mut seen = look(head);
            while seen as u32 != NONE {
                let index = seen as u32;
                // Stale if somebody else took the index meanwhile: then the exchange fails.
                let below = self.below[index as usize].load(Ordering::Relaxed);
                match head.compare_exchange(
                    seen,
                    next_count(seen) | u64::from(below),
                    Ordering::AcqRel,
                    Ordering::Acquire,
                ) {
                    Ok(_) => return Some(index),
                    Err(other) => seen = other,
                }
            }
        }
        None
    }

    /// Gives an index back, to the shard of this number.
    #[inline]
    pub(crate) fn push(&self, index: u32, home: usize) {
        let head = &self.shards[home % self.shards.len()];
        let mut seen = head.load(Ordering::Relaxed);
        loop {
            self.below[index as usize].store(seen as u32, Ordering::Relaxed);
            match head.compare_exchange(
                seen,
                next_count(seen) | u64::from(index),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(other) => seen = other,
            }
        }
    }
}

/// The upper half, one further.
fn next_count(head: u64) -> u64 {
    (head & !u64::from(u32::MAX)).wrapping_add(1 << 32)
}

/// The number of the calling thread, for its home among shards.
#[inline]
pub(crate) fn home() -> usize {
    use std::sync::atomic::AtomicUsize;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static HOME: usize = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
    // At the end of a thread its locals may be gone.
    HOME.try_with(|home| *home).unwrap_or(0)
}
