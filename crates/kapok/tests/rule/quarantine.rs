//! A heap that keeps what was freed for a while, filled with a canary, and aborts if it changes:
//! what the kernel writes late, no sanitizer sees.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::CANARY;

/// How many freed blocks are kept.
const BLOCKS: usize = 2048;

/// Which sizes are, in bytes.
const SIZES: std::ops::RangeInclusive<usize> = 16..=4096;

pub(super) struct Quarantine {
    locked: AtomicBool,
    next: AtomicUsize,
    blocks: UnsafeCell<[Option<Block>; BLOCKS]>,
}

#[derive(Clone, Copy)]
struct Block {
    address: *mut u8,
    layout: Layout,
}

// SAFETY: `blocks` is used under the lock only.
unsafe impl Sync for Quarantine {}

impl Quarantine {
    pub(super) const fn new() -> Quarantine {
        Quarantine {
            locked: AtomicBool::new(false),
            next: AtomicUsize::new(0),
            blocks: UnsafeCell::new([None; BLOCKS]),
        }
    }

    /// Puts `block` in the place of one that has been there for long enough.
    fn exchange(&self, at: usize, block: Option<Block>) -> Option<Block> {
        while self.locked.swap(true, Ordering::Acquire) {
            std::hint::spin_loop();
        }
        // SAFETY: under the lock.
        let old = unsafe { std::mem::replace(&mut (*self.blocks.get())[at], block) };
        self.locked.store(false, Ordering::Release);
        old
    }

    /// Frees a block, if it is as it was filled.
    fn release(block: Block) {
        // SAFETY: the block is kept, and nobody else's, until it is freed below.
        let bytes = unsafe { std::slice::from_raw_parts(block.address, block.layout.size()) };
        if bytes.iter().any(|byte| *byte != CANARY) {
            let text = b"freed heap memory was written to\n";
            // SAFETY: writes a constant. Nothing here may allocate.
            unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
            std::process::abort();
        }
        // SAFETY: it came from this allocator with this layout, and is freed once.
        unsafe { System.dealloc(block.address, block.layout) };
    }

    /// Looks at all that is kept, and frees it.
    pub(super) fn check(&self) {
        (0..BLOCKS).filter_map(|at| self.exchange(at, None)).for_each(Quarantine::release);
    }
}

// SAFETY: allocates and frees as the system does, but frees later.
unsafe impl GlobalAlloc for Quarantine {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        if !SIZES.contains(&layout.size()) {
            // SAFETY: by the caller.
            return unsafe { System.dealloc(address, layout) };
        }
        // SAFETY: the block is ours until it is freed, by the caller.
        unsafe { address.write_bytes(CANARY, layout.size()) };
        let at = self.next.fetch_add(1, Ordering::Relaxed) % BLOCKS;
        if let Some(old) = self.exchange(at, Some(Block { address, layout })) {
            Quarantine::release(old);
        }
    }
}
