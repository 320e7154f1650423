//! Buffers of an engine's own, for receives that name none: one is taken when bytes have come, so
//! connections that wait hold no memory.
//!
//! ```text
//!   one mapping
//!   ┌────────────────────────┬──────────┬──────┬──────────┬──────┬─────
//!   │ entries, 16 bytes each │ buffer 0 │ line │ buffer 1 │ line │ …
//!   └────────────────────────┴──────────┴──────┴──────────┴──────┴─────
//!     a ring that the kernel
//!     takes from (io_uring)
//! ```
//!
//! A buffer is in one of three hands. *The kernel's*, when its entry lies in the ring (io_uring), or
//! *the engine's*, when its number lies in the free list (readiness); and from the landing that
//! names it until [`Buffers::give_back`] *its taker's*. Buffers lie an odd number of cache lines
//! apart: at a power of two their first lines would compete for the same sets.
//!
//! The memory stays as long as anybody holds the [`Rc`], an engine that is gone or not.

use std::cell::{Cell, RefCell};
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

/// How many buffers an engine has: about twice as many as complete in one turn.
const COUNT: u16 = 128;

/// How large each is unless asked otherwise.
pub(crate) const DEFAULT_BYTES: u32 = 16 * 1024;

const CACHE_LINE_BYTES: usize = 64;
const PAGE_BYTES: usize = 4096;

/// The layout of `struct io_uring_buf`. In the first entry of the ring the kernel has the ring's tail
/// in the place of `reserved`.
#[repr(C)]
struct Entry {
    address: u64,
    len: u32,
    id: u16,
    reserved: u16,
}

/// The buffers of one engine; see [`Op::RecvPooled`](crate::Op::RecvPooled).
#[derive(Debug)]
pub struct Buffers {
    mapping: NonNull<u8>,
    mapping_bytes: usize,
    first: usize,
    stride: usize,
    bytes: usize,
    /// Where the next entry goes, if the kernel takes from the ring.
    tail: Cell<u16>,
    /// The last one given back is the first one taken: it is the one in cache.
    free: RefCell<Vec<u16>>,
    shared_with_kernel: bool,
}

impl Buffers {
    /// Buffers of `bytes` each, all of them free.
    ///
    /// # Errors
    ///
    /// If there is no memory for them.
    pub(crate) fn new(bytes: usize, shared_with_kernel: bool) -> io::Result<Rc<Buffers>> {
        let stride = (bytes.div_ceil(CACHE_LINE_BYTES) | 1) * CACHE_LINE_BYTES;
        let first = (usize::from(COUNT) * size_of::<Entry>()).next_multiple_of(PAGE_BYTES);
        let mapping_bytes = first + usize::from(COUNT) * stride;
        // SAFETY: a new private mapping, at an address of the kernel's choice.
        let mapping = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapping_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANON,
                -1,
                0,
            )
        };
        if mapping == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let buffers = Buffers {
            mapping: NonNull::new(mapping.cast()).ok_or(io::ErrorKind::OutOfMemory)?,
            mapping_bytes,
            first,
            stride,
            bytes,
            tail: Cell::new(0),
            free: RefCell::default(),
            shared_with_kernel,
        };
        // SAFETY: nobody has them yet.
        (0..COUNT).rev().for_each(|id| unsafe { buffers.give_back(id) });
        Ok(Rc::new(buffers))
    }

    /// The size of each.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many there are.
    #[cfg(target_os = "linux")]
    pub(crate) fn count(&self) -> u16 {
        COUNT
    }

    /// The ring of entries.
    #[cfg(target_os = "linux")]
    pub(crate) fn ring(&self) -> NonNull<u8> {
        self.mapping
    }

    /// Where a buffer begins: [`bytes`](Buffers::bytes) from there are zeroed or received memory.
    /// They are its taker's from the landing that names it until [`give_back`](Buffers::give_back).
    ///
    /// # Panics
    ///
    /// If there is no buffer of this number.
    #[inline]
    pub fn start(&self, id: u16) -> NonNull<u8> {
        assert!(id < COUNT, "an engine names buffers that it has");
        // SAFETY: inside the mapping, by the assertion and the mapping's size.
        unsafe { self.mapping.add(self.first + usize::from(id) * self.stride) }
    }

    /// Takes a buffer that is free, unless the kernel does that.
    pub(crate) fn take(&self) -> Option<u16> {
        debug_assert!(!self.shared_with_kernel);
        self.free.borrow_mut().pop()
    }

    /// Makes a buffer free that was taken. Its memory may be written to from then on.
    ///
    /// # Safety
    ///
    /// The buffer was taken, by a landing that named it, and is given back once. This is the process
    /// of its engine: what was taken before a fork stays taken in the child.
    #[inline]
    pub unsafe fn give_back(&self, id: u16) {
        if !self.shared_with_kernel {
            self.free.borrow_mut().push(id);
            return;
        }
        let address = self.start(id).as_ptr().expose_provenance() as u64;
        let tail = self.tail.get();
        let entries = self.mapping.cast::<Entry>();
        // SAFETY: inside the mapping, as the remainder is less than COUNT. The kernel reads entries
        // before the tail only, and this one is not before it until the store. `reserved` of the
        // first entry is the tail, and not written here.
        let shared_tail = unsafe {
            let entry = entries.add(usize::from(tail % COUNT)).as_ptr();
            (*entry).address = address;
            (*entry).len = self.bytes as u32;
            (*entry).id = id;
            AtomicU16::from_ptr(&raw mut (*entries.as_ptr()).reserved)
        };
        self.tail.set(tail.wrapping_add(1));
        // Release: the entry is there before the tail covers it.
        shared_tail.store(tail.wrapping_add(1), Ordering::Release);
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: our own mapping. Nobody holds a buffer, since each holder has an `Rc`; the engine
        // that shared it with the kernel has drained its ring before it let go.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.mapping_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_buffer_is_taken_once_and_the_warmest_first() {
        let buffers = Buffers::new(1000, false).unwrap();
        let taken: Vec<u16> = std::iter::from_fn(|| buffers.take()).collect();
        assert_eq!(taken, (0..COUNT).collect::<Vec<_>>());
        // SAFETY: taken above.
        unsafe {
            buffers.give_back(7);
            buffers.give_back(3);
        }
        assert_eq!((buffers.take(), buffers.take(), buffers.take()), (Some(3), Some(7), None));
    }

    #[test]
    fn buffers_do_not_overlap_and_lie_an_odd_number_of_lines_apart() {
        for bytes in [1, 64, 4096, 16 * 1024] {
            let buffers = Buffers::new(bytes, false).unwrap();
            let starts: Vec<usize> =
                (0..COUNT).map(|id| buffers.start(id).as_ptr().addr()).collect();
            for pair in starts.windows(2) {
                let apart = pair[1] - pair[0];
                assert!(apart >= bytes && apart % 128 == 64, "{bytes} bytes are {apart} apart");
            }
            let end = buffers.mapping.as_ptr().addr() + buffers.mapping_bytes;
            assert!(starts[usize::from(COUNT) - 1] + bytes <= end);
        }
    }

    #[test]
    fn entries_go_where_the_kernel_looks_for_them() {
        let buffers = Buffers::new(4096, true).unwrap();
        let entries = buffers.mapping.cast::<Entry>();
        // SAFETY: it only looks as if the kernel had taken it.
        unsafe { buffers.give_back(9) };
        // SAFETY: the first entry, which was written a second time once the ring was full.
        let (first, second) = unsafe { (entries.as_ref(), entries.add(1).as_ref()) };
        assert_eq!((first.id, first.len, first.reserved), (9, 4096, COUNT + 1));
        assert_eq!(second.address, buffers.start(COUNT - 2).as_ptr().addr() as u64);
    }
}
