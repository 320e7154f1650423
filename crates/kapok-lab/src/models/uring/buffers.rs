//! Provided buffers: memory that the kernel picks from when data arrives, so that connections that
//! wait hold none.
//!
//! One mapping: the ring through which buffers are handed to the kernel, then the buffers.
//!
//! ```text
//! 0                      COUNT * 16
//! +--------+-----+--------+-----------+------+-----------+------+---
//! | entry 0| ... |entry n | buffer 0  | line | buffer 1  | line | ...
//! +--------+-----+--------+-----------+------+-----------+------+---
//!   its `resv` is the tail
//! ```
//!
//! A buffer belongs to the kernel from [`recycle`](Buffers::recycle) until a completion names it,
//! and to the loop from then until the next `recycle`. Buffers lie an odd number of cache lines
//! apart: at a power of two their first lines would all compete for the same sets.

use std::io;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

/// A power of two. Buffers come back as fast as completions are looked at, and the kernel delivers
/// a few dozen of those at a time.
const COUNT: u16 = 256;
const CACHE_LINE_BYTES: usize = 64;
const PAGE_BYTES: usize = 4096;

/// The group's name in receive operations.
pub(super) const GROUP: u16 = 0;

pub(super) struct Buffers {
    mapping: NonNull<u8>,
    mapping_bytes: usize,
    buffers_at: usize,
    stride: usize,
    buffer_bytes: usize,
    tail: u16,
}

impl Buffers {
    /// Maps the buffers and hands them all to the kernel.
    pub(super) fn register(ring: &IoUring, buffer_bytes: usize) -> io::Result<Buffers> {
        let lines = buffer_bytes.div_ceil(CACHE_LINE_BYTES);
        let stride = (lines | 1) * CACHE_LINE_BYTES;
        let entries_bytes = COUNT as usize * size_of::<BufRingEntry>();
        let buffers_at = entries_bytes.next_multiple_of(PAGE_BYTES);
        let mapping_bytes = buffers_at + COUNT as usize * stride;
        // SAFETY: a new private mapping at an address of the kernel's choice.
        let mapping = unsafe {
            libc::mmap(
                ptr::null_mut(),
                mapping_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if mapping == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapping = NonNull::new(mapping.cast()).expect("mmap does not return null");
        let mut buffers =
            Buffers { mapping, mapping_bytes, buffers_at, stride, buffer_bytes, tail: 0 };
        // SAFETY: the entries lie at the mapping's start, which is page-aligned, and the mapping
        // outlives the ring's use of them: the loop drops its ring first.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                mapping.as_ptr() as u64,
                COUNT,
                GROUP,
                0,
            )?;
        }
        (0..COUNT).for_each(|id| buffers.recycle(id));
        Ok(buffers)
    }

    fn buffer(&self, id: u16) -> *mut u8 {
        assert!(id < COUNT, "the kernel knows the buffers it was given only");
        // SAFETY: within the mapping, by the assertion and the mapping's size.
        unsafe { self.mapping.as_ptr().add(self.buffers_at + id as usize * self.stride) }
    }

    /// The first `len` bytes of the buffer that a completion named.
    pub(super) fn bytes(&self, id: u16, len: usize) -> &[u8] {
        assert!(len <= self.buffer_bytes);
        // SAFETY: in bounds, initialised (an anonymous mapping is zeroed), and the loop's until it
        // calls `recycle`, which needs `&mut self` and so ends this borrow.
        unsafe { slice::from_raw_parts(self.buffer(id), len) }
    }

    /// Gives the buffer (back) to the kernel.
    pub(super) fn recycle(&mut self, id: u16) {
        let entries = self.mapping.as_ptr().cast::<BufRingEntry>();
        let buffer = self.buffer(id);
        // SAFETY: the index is below COUNT by the mask; the kernel reads entries below the tail
        // only, and this one is not below it until the store.
        let tail = unsafe {
            let entry = &mut *entries.add((self.tail & (COUNT - 1)) as usize);
            entry.set_addr(buffer as u64);
            entry.set_len(self.buffer_bytes as u32);
            entry.set_bid(id);
            &*BufRingEntry::tail(entries).cast::<AtomicU16>()
        };
        self.tail = self.tail.wrapping_add(1);
        // Release: the entry is seen before the tail that covers it.
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `register`; no completion that fills it is outstanding, as the
        // loop drops its buffers only after every receive has landed.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.mapping_bytes) };
    }
}
