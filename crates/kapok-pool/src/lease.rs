//! Buffers lent from a pool of their own: aligned for direct I/O, made once, returned by themselves, and
//! registered with the rings of a [`Pool`](crate::Pool) that is told of them.
//!
//! They lie one behind the other in one mapping, which a ring knows as pieces of up to 1 GiB, the most
//! that it takes as one buffer. The number of a buffer's piece, and a place for the entry of the one
//! operation that it can be in, are the lease's as the memory is.

#[cfg(target_os = "linux")]
use std::cell::UnsafeCell;
use std::fmt;
use std::future::Future;
use std::io;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::Arc;
use std::task::{Context, Poll};

#[cfg(target_os = "linux")]
use kapok_engine::entry::Entry;

use crate::buffer::{Buffer, Registered, Source};
use crate::free::{FreeList, home};
use crate::gate::{Gate, Place};

/// What every buffer is aligned to, in bytes, and its size a multiple of: what direct I/O wants of any
/// device.
pub const ALIGNMENT: usize = 4096;

/// The size of a huge page, from which on they are asked for.
const HUGE_PAGE: usize = 2 << 20;

/// The most that a ring takes as one registered buffer.
const PIECE: usize = 1 << 30;

/// What pages buffers lie in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Pages {
    /// Small ones.
    Small,
    /// Large ones where the kernel finds some (`MADV_HUGEPAGE`), in a mapping that is aligned to them.
    Transparent,
    /// Large ones that were set aside for it (`MAP_HUGETLB`, `vm.nr_hugepages`).
    Reserved,
}

/// A fixed number of buffers of one size. A handle: clones are of the same buffers, whose memory lives
/// as long as a handle or a [`Lease`].
///
/// ```
/// use kapok_pool::Buffers;
///
/// # fn main() -> std::io::Result<()> {
/// let buffers = Buffers::new(2, 4096)?;
/// let (one, two) = (buffers.try_lease().unwrap(), buffers.try_lease().unwrap());
/// assert!(buffers.try_lease().is_none());
/// drop(one);
/// assert!(buffers.try_lease().is_some());
/// # drop(two);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Buffers(Arc<Inner>);

struct Inner {
    start: NonNull<u8>,
    bytes: usize,
    count: u32,
    /// The mapping, which may begin before the first buffer.
    mapping: (NonNull<u8>, usize),
    pages: Pages,
    free: FreeList,
    gate: Gate,
    /// By buffer: what the kernel is given for the operation that it is in.
    #[cfg(target_os = "linux")]
    entries: Box<[UnsafeCell<Entry>]>,
}

// SAFETY: the memory is handed out in parts that do not overlap, each to one lease at a time: the free
// list sees to that.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        let (start, len) = self.mapping;
        // SAFETY: the mapping that was made for it; no lease is left, for each has a handle.
        unsafe { libc::munmap(start.as_ptr().cast(), len) };
    }
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffers")
            .field("count", &self.0.count)
            .field("bytes", &self.0.bytes)
            .finish_non_exhaustive()
    }
}

impl Buffers {
    /// Makes `count` buffers of `bytes`, rounded up to a multiple of [`ALIGNMENT`]. Their pages are used
    /// as they are touched; of 2 MiB and more, huge ones where the kernel finds some.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for none, for empty ones, and for more than fit into memory; what mmap(2) says.
    pub fn new(count: u32, bytes: usize) -> io::Result<Buffers> {
        Buffers::with_pages(count, bytes, Pages::Transparent)
    }

    /// Makes buffers in such pages, or, where those are not to be had, in what comes next to them:
    /// [`pages`](Buffers::pages) says which it was.
    ///
    /// # Errors
    ///
    /// As for [`new`](Buffers::new).
    pub fn with_pages(count: u32, bytes: usize, wanted: Pages) -> io::Result<Buffers> {
        let total = bytes
            .checked_next_multiple_of(ALIGNMENT)
            .and_then(|bytes| bytes.checked_mul(count as usize))
            .filter(|&total| {
                total > 0 && total <= isize::MAX as usize - HUGE_PAGE && count < u32::MAX
            });
        let Some(total) = total else {
            let message = format!("{count} buffers of {bytes} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        };
        let (mapping, start, pages) = Memory::map(total, wanted)?;
        let shards = std::thread::available_parallelism().map_or(4, usize::from).min(16);
        Ok(Buffers(Arc::new(Inner {
            start,
            bytes: total / count as usize,
            count,
            mapping,
            pages,
            free: FreeList::new(count, shards),
            gate: Gate::default(),
            #[cfg(target_os = "linux")]
            entries: (0..count).map(|_| UnsafeCell::default()).collect(),
        })))
    }

    /// What pages they lie in.
    pub fn pages(&self) -> Pages {
        self.0.pages
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.0.count
    }

    /// Whether these are the same buffers.
    pub(crate) fn are(&self, others: &Buffers) -> bool {
        Arc::ptr_eq(&self.0, &others.0)
    }

    /// How many buffers are in one piece.
    fn in_a_piece(&self) -> usize {
        (PIECE / self.0.bytes).max(1)
    }

    /// The memory as a ring takes it. Too large a buffer is a piece that it refuses.
    pub(crate) fn pieces(&self) -> Vec<libc::iovec> {
        let Inner { start, bytes, count, .. } = &*self.0;
        let piece = self.in_a_piece();
        (0..*count as usize)
            .step_by(piece)
            .map(|first| {
                let iov_len = piece.min(*count as usize - first) * bytes;
                // SAFETY: the first of so many buffers, within their memory.
                let iov_base = unsafe { start.as_ptr().add(first * bytes) }.cast();
                libc::iovec { iov_base, iov_len }
            })
            .collect()
    }

    /// How many bytes each buffer has.
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    fn lease_of(&self, index: u32) -> Lease {
        Lease { of: self.clone(), index, len: 0 }
    }

    /// Lends a buffer if one is free.
    #[inline]
    pub fn try_lease(&self) -> Option<Lease> {
        self.0.free.pop(home()).map(|index| self.lease_of(index))
    }

    /// Lends a buffer as soon as one is free. Dropped, it waits no longer.
    pub fn lease(&self) -> Leasing<'_> {
        Leasing { buffers: self, place: None }
    }
}

/// How the memory is come by.
struct Memory;

type Mapped = ((NonNull<u8>, usize), NonNull<u8>, Pages);

impl Memory {
    fn map(total: usize, wanted: Pages) -> io::Result<Mapped> {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            let whole = total.next_multiple_of(HUGE_PAGE);
            if wanted == Pages::Reserved
                // Without MAP_NORESERVE: what is not there is refused now, and not as it is touched.
                && let Ok(start) = Memory::map_with(whole, libc::MAP_HUGETLB | (21 << libc::MAP_HUGE_SHIFT))
            {
                return Ok(((start, whole), start, Pages::Reserved));
            }
            if wanted != Pages::Small && total >= HUGE_PAGE {
                let room = total + HUGE_PAGE;
                let mapping = Memory::map_with(room, libc::MAP_NORESERVE)?;
                let before = mapping.as_ptr().align_offset(HUGE_PAGE);
                // SAFETY: less than a huge page, so `total` bytes are left of the mapping.
                let start = unsafe { mapping.add(before) };
                // SAFETY: advice on the mapping that was just made. Refused, the pages are small.
                let res =
                    unsafe { libc::madvise(start.as_ptr().cast(), total, libc::MADV_HUGEPAGE) };
                let pages = if res == 0 { Pages::Transparent } else { Pages::Small };
                return Ok(((mapping, room), start, pages));
            }
        }
        let _ = wanted;
        let start = Memory::map_with(total, libc::MAP_NORESERVE)?;
        Ok(((start, total), start, Pages::Small))
    }

    fn map_with(len: usize, flags: i32) -> io::Result<NonNull<u8>> {
        let (access, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new private mapping at an address the kernel chooses.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, access, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory.into())
    }
}

/// The wait for a buffer: see [`Buffers::lease`].
#[must_use = "nothing is lent before it is awaited"]
pub struct Leasing<'b> {
    buffers: &'b Buffers,
    place: Option<Place>,
}

impl fmt::Debug for Leasing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leasing").field("waits", &self.place.is_some()).finish_non_exhaustive()
    }
}

impl Future for Leasing<'_> {
    type Output = Lease;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Lease> {
        let Leasing { buffers, place } = &mut *self;
        let Inner { free, gate, .. } = &*buffers.0;
        let mut index = free.pop(home());
        if index.is_none() {
            *place = Some(gate.announce(place.take(), context.waker()));
            index = free.pop_announced(home());
        }
        let Some(index) = index else { return Poll::Pending };
        if let Some(place) = place.take() {
            gate.leave(place, true);
        }
        Poll::Ready(buffers.lease_of(index))
    }
}

impl Drop for Leasing<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.buffers.0.gate.leave(place, false);
        }
    }
}

/// A buffer that is lent: a [`Buffer`] for reads and a [`Source`] for writes, aligned to
/// [`ALIGNMENT`]. It returns when it is dropped.
///
/// It begins with no bytes, and with room for all; reads and [`set_len`](Lease::set_len) lengthen it.
/// What others left in the memory is not erased.
pub struct Lease {
    of: Buffers,
    index: u32,
    len: usize,
}

impl Lease {
    fn start(&self) -> *mut u8 {
        let Inner { start, bytes, .. } = &*self.of.0;
        // SAFETY: the index is one of the buffers'.
        unsafe { start.as_ptr().add(*bytes * self.index as usize) }
    }

    /// How many bytes there is room for.
    pub fn capacity(&self) -> usize {
        self.of.0.bytes
    }

    /// Sets how many bytes it has. Those it has not had hold what was left there before.
    ///
    /// # Panics
    ///
    /// If there is no room for so many.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "{len} bytes in a buffer of {}", self.capacity());
        self.len = len;
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("index", &self.index).field("len", &self.len).finish()
    }
}

impl Deref for Lease {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: within the buffer, which is this lease's alone. Memory of a mapping is initialized:
        // it is zero or what was written.
        unsafe { std::slice::from_raw_parts(self.start(), self.len) }
    }
}

impl DerefMut for Lease {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.of.0.free.push(self.index, home());
        self.of.0.gate.room_given(1);
    }
}

// SAFETY: the memory is the mapping's, and does not move.
unsafe impl Source for Lease {
    const QUIET: bool = true;

    #[inline]
    fn registered(&self) -> Option<Registered<'_>> {
        Some(Registered {
            of: &self.of,
            #[cfg(target_os = "linux")]
            piece: (self.index as usize / self.of.in_a_piece()) as u16,
            #[cfg(target_os = "linux")]
            entry: self.of.0.entries[self.index as usize].get(),
        })
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        self
    }
}

// SAFETY: the buffer is this lease's alone, and its bytes are its beginning.
unsafe impl Buffer for Lease {
    #[inline]
    fn room(&mut self) -> NonNull<[u8]> {
        // SAFETY: a place in a mapping is not null.
        let start = unsafe { NonNull::new_unchecked(self.start()) };
        NonNull::slice_from_raw_parts(start, self.capacity())
    }

    #[inline]
    unsafe fn filled(&mut self, count: usize) {
        self.len = self.len.max(count);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn large_memory_is_registered_in_pieces_that_leases_know() {
        let half = PIECE / 2;
        // Nothing of it is touched.
        let buffers = Buffers::new(5, half).unwrap();
        let pieces = buffers.pieces();
        let lens: Vec<usize> = pieces.iter().map(|piece| piece.iov_len).collect();
        assert_eq!(lens, [PIECE, PIECE, half]);
        let leases: Vec<Lease> = (0..5).map(|_| buffers.try_lease().unwrap()).collect();
        for mut lease in leases {
            let start = lease.room().cast::<u8>().as_ptr() as usize;
            #[cfg(target_os = "linux")]
            let piece = pieces[usize::from(lease.registered().unwrap().piece)];
            #[cfg(not(target_os = "linux"))]
            let piece = pieces[lease.index as usize / 2];
            let within = start - piece.iov_base as usize;
            assert!(within + half <= piece.iov_len, "{lease:?} is in another piece");
        }
    }

    #[test]
    fn pages_are_what_there_is() {
        let small = Buffers::with_pages(4, 4096, Pages::Small).unwrap();
        assert_eq!(small.pages(), Pages::Small);
        for wanted in [Pages::Transparent, Pages::Reserved] {
            let buffers = Buffers::with_pages(3, HUGE_PAGE, wanted).unwrap();
            if buffers.pages() != Pages::Small {
                assert_eq!(buffers.0.start.as_ptr() as usize % HUGE_PAGE, 0);
            }
            let mut leases: Vec<Lease> = (0..3).map(|_| buffers.try_lease().unwrap()).collect();
            for (number, lease) in leases.iter_mut().enumerate() {
                lease.set_len(HUGE_PAGE);
                lease.fill(number as u8);
            }
            for (number, lease) in leases.iter().enumerate() {
                assert!(lease.iter().all(|&byte| byte == number as u8), "{wanted:?} overlap");
            }
        }
    }
}
