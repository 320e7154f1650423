//! An allocator that aligns whole blocks for direct I/O: so every runtime reads into a plain `Vec<u8>`.

use std::alloc::{GlobalAlloc, Layout, System};

pub(crate) struct Aligned;

fn widened(layout: Layout) -> Layout {
    if layout.size() >= 512 && layout.size().is_multiple_of(512) {
        // A power of two, and the size was a valid one before.
        layout.align_to(4096).unwrap_or(layout)
    } else {
        layout
    }
}

// SAFETY: the system's allocator, asked for a larger alignment in some cases, by the layout alone: what
// is given back is named by the same layout.
unsafe impl GlobalAlloc for Aligned {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by the caller.
        unsafe { System.alloc(widened(layout)) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by the caller.
        unsafe { System.alloc_zeroed(widened(layout)) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: by the caller.
        unsafe { System.dealloc(at, widened(layout)) }
    }
}
