//! The stacks a loop keeps warm.
//!
//! A fresh stack costs a page fault and a zeroed page, a kept one a pop. A kept stack also keeps
//! every page its fibers ever touched, hence the limit, and [`StackPool::trim`] for idle times.

use std::{io, marker::PhantomData};

use super::arena::{Arena, PooledStack, SIZE_CLASSES, Slot, StackSize};

/// How many stacks of the default size a pool keeps warm unless told otherwise.
pub(crate) const DEFAULT_WARM_STACKS: usize = 1024;

/// What went through a pool. A stack may end in another pool than it came from: in use is what all
/// pools together allocated less what they released.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PoolStats {
    /// Stacks handed out.
    pub(crate) allocated: u64,
    /// Those of them that were warm.
    pub(crate) reused: u64,
    /// Stacks that came back.
    pub(crate) released: u64,
    /// Stacks whose pages went back to the kernel.
    pub(crate) given_back: u64,
    /// Stacks kept now.
    pub(crate) warm: usize,
}

/// One thread's stacks: last in, first out, so that the next fiber runs on the lines still in cache.
///
/// Dropping it gives all of them back.
pub(crate) struct StackPool {
    warm: [Vec<Slot>; SIZE_CLASSES],
    warm_limit: usize,
    arena: &'static Arena,
    stats: PoolStats,
    /// A pool belongs to the thread of its loop.
    _not_send: PhantomData<*mut ()>,
}

impl StackPool {
    /// A pool on the process's arena that keeps up to [`DEFAULT_WARM_STACKS`].
    pub(crate) fn new() -> Self {
        Self::with_arena(Arena::process(), DEFAULT_WARM_STACKS)
    }

    /// A pool on `arena` that keeps up to `warm_limit` stacks of each size up to the default one,
    /// and proportionally fewer of larger ones.
    pub(crate) fn with_arena(arena: &'static Arena, warm_limit: usize) -> Self {
        Self {
            warm: [const { Vec::new() }; SIZE_CLASSES],
            warm_limit,
            arena,
            stats: PoolStats::default(),
            _not_send: PhantomData,
        }
    }

    /// A stack of this size.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::OutOfMemory`], saying which limit was met, how many stacks there are and
    /// what to do.
    #[inline]
    pub(crate) fn allocate(&mut self, size: StackSize) -> io::Result<PooledStack> {
        let slot = match self.warm[size.class()].pop() {
            Some(slot) => {
                self.stats.reused += 1;
                self.stats.warm -= 1;
                slot
            }
            None => self.arena.take(size)?,
        };
        self.stats.allocated += 1;
        Ok(PooledStack::new(slot))
    }

    /// Takes a stack back, whichever pool it came from. The fiber on it has ended.
    #[inline]
    pub(crate) fn release(&mut self, stack: PooledStack) {
        self.stats.released += 1;
        let slot = stack.into_slot();
        let size = slot.chunk.size;
        let warm = &mut self.warm[size.class()];
        if warm.len() < self.warm_limit >> size.doublings_above_default()
            && std::ptr::eq(slot.chunk.arena, self.arena)
        {
            warm.push(slot);
            self.stats.warm += 1;
        } else {
            self.stats.given_back += 1;
            // SAFETY: the slot came out of a `PooledStack`, whose owner had no more use for it.
            unsafe { slot.give_back() };
        }
    }

    /// Gives all warm stacks back, and says how many: for a loop that has been idle for long.
    pub(crate) fn trim(&mut self) -> usize {
        let mut count = 0;
        for slot in self.warm.iter_mut().flat_map(|warm| warm.drain(..)) {
            // SAFETY: the pool holds its warm slots, and what is on them is left over.
            unsafe { slot.give_back() };
            count += 1;
        }
        self.stats.given_back += count as u64;
        self.stats.warm -= count;
        count
    }

    /// What went through the pool, and what it keeps.
    #[inline]
    pub(crate) fn stats(&self) -> PoolStats {
        self.stats
    }
}

impl Drop for StackPool {
    fn drop(&mut self) {
        self.trim();
    }
}
