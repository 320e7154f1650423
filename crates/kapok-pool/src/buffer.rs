//! Buffers that an operation can own.

use std::ops::Range;
use std::ptr::NonNull;

use crate::lease::Buffers;

/// Bytes that an operation can own and the kernel read: what is written and sent.
///
/// Implemented for vectors, boxed slices, strings and static slices, and with the feature `bytes` for
/// `Bytes` and `BytesMut`; another type takes a few lines.
///
/// # Safety
///
/// The memory of [`bytes`](Source::bytes) stays where it is and as it is while the value exists and is
/// not used, even if the value is moved: it lies behind a pointer, not in the value.
pub unsafe trait Source: Send + 'static {
    /// Whether dropping it neither blocks nor runs code that is not known: then it may be dropped on an
    /// I/O thread.
    const QUIET: bool = false;

    /// The bytes.
    fn bytes(&self) -> &[u8];

    /// The buffers that it is lent from, which a ring may know.
    #[doc(hidden)]
    #[inline]
    fn registered(&self) -> Option<Registered<'_>> {
        None
    }
}

/// A buffer that a ring may know, as its piece of memory `piece`.
#[doc(hidden)]
#[derive(Debug)]
pub struct Registered<'b> {
    pub(crate) of: &'b Buffers,
    #[cfg(target_os = "linux")]
    pub(crate) piece: u16,
    /// A place for the entry of the operation that it is in. It is the buffer's as its memory is.
    #[cfg(target_os = "linux")]
    pub(crate) entry: *mut kapok_engine::entry::Entry,
}

/// Memory that an operation can own and the kernel write to: what is read and received into.
///
/// # Safety
///
/// As for [`Source`]. The memory of [`room`](Buffer::room) is exclusively this value's, valid for reads
/// and writes of its whole length, begins where [`bytes`](Source::bytes) does and is at least as long.
/// It stays so, at the same place, while the value exists and is not used, even if the value is moved.
///
/// # Example
///
/// ```
/// use std::ptr::NonNull;
/// use kapok_pool::{Buffer, Source};
///
/// struct Page(Box<[u8; 4096]>);
///
/// // SAFETY: the bytes are on the heap.
/// unsafe impl Source for Page {
///     fn bytes(&self) -> &[u8] {
///         &self.0[..]
///     }
/// }
///
/// // SAFETY: as above, and they are this page's alone.
/// unsafe impl Buffer for Page {
///     fn room(&mut self) -> NonNull<[u8]> {
///         NonNull::from(&mut self.0[..])
///     }
///
///     unsafe fn filled(&mut self, _count: usize) {}
/// }
/// ```
pub unsafe trait Buffer: Source {
    /// The memory to fill, where it is and how long: of a vector all of its capacity. What is behind
    /// the [`bytes`](Source::bytes) may never have been written.
    ///
    /// A pointer and no slice, for two reasons: bytes that were never written must not be read, and
    /// those that were must not become as if they never were. Whoever writes there writes bytes.
    fn room(&mut self) -> NonNull<[u8]>;

    /// The first `count` bytes of the room have been written. A buffer whose length can change grows to
    /// `count` if it was shorter; none shrinks, so what was read is `&buffer[..count]`.
    ///
    /// # Safety
    ///
    /// They have, and `count` is not beyond the room.
    unsafe fn filled(&mut self, count: usize);
}

// SAFETY: the bytes are on the heap.
unsafe impl Source for Vec<u8> {
    const QUIET: bool = true;

    #[inline]
    fn bytes(&self) -> &[u8] {
        self
    }
}

// SAFETY: a vector's own memory, which begins with its bytes.
unsafe impl Buffer for Vec<u8> {
    #[inline]
    fn room(&mut self) -> NonNull<[u8]> {
        // SAFETY: a vector's pointer is never null; an empty one's dangles.
        let start = unsafe { NonNull::new_unchecked(self.as_mut_ptr()) };
        NonNull::slice_from_raw_parts(start, self.capacity())
    }

    #[inline]
    unsafe fn filled(&mut self, count: usize) {
        if count > self.len() {
            // SAFETY: by the caller.
            unsafe { self.set_len(count) };
        }
    }
}

// SAFETY: the bytes are on the heap.
unsafe impl Source for Box<[u8]> {
    const QUIET: bool = true;

    #[inline]
    fn bytes(&self) -> &[u8] {
        self
    }
}

// SAFETY: the slice's own memory.
unsafe impl Buffer for Box<[u8]> {
    #[inline]
    fn room(&mut self) -> NonNull<[u8]> {
        NonNull::from(&mut **self)
    }

    #[inline]
    unsafe fn filled(&mut self, _count: usize) {}
}

// SAFETY: static memory does not move.
unsafe impl Source for &'static [u8] {
    const QUIET: bool = true;

    #[inline]
    fn bytes(&self) -> &[u8] {
        self
    }
}

// SAFETY: static memory does not move.
unsafe impl Source for &'static str {
    const QUIET: bool = true;

    #[inline]
    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

// SAFETY: the bytes are on the heap.
unsafe impl Source for String {
    const QUIET: bool = true;

    #[inline]
    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

// SAFETY: the bytes are on the heap, and shared ones do not change.
unsafe impl Source for std::sync::Arc<[u8]> {
    const QUIET: bool = true;

    #[inline]
    fn bytes(&self) -> &[u8] {
        self
    }
}

// SAFETY: the bytes are behind a pointer, and shared ones do not change.
#[cfg(feature = "bytes")]
unsafe impl Source for bytes::Bytes {
    // Whose they are may be a type with a destructor of its own.
    const QUIET: bool = false;

    #[inline]
    fn bytes(&self) -> &[u8] {
        self
    }
}

// SAFETY: the bytes are behind a pointer.
#[cfg(feature = "bytes")]
unsafe impl Source for bytes::BytesMut {
    const QUIET: bool = true;

    #[inline]
    fn bytes(&self) -> &[u8] {
        self
    }
}

// SAFETY: its own part of the memory, all of its capacity, which begins with its bytes.
#[cfg(feature = "bytes")]
unsafe impl Buffer for bytes::BytesMut {
    #[inline]
    fn room(&mut self) -> NonNull<[u8]> {
        // SAFETY: a slice's pointer is never null; an empty one's dangles.
        let start = unsafe { NonNull::new_unchecked(self.as_mut_ptr()) };
        NonNull::slice_from_raw_parts(start, self.capacity())
    }

    #[inline]
    unsafe fn filled(&mut self, count: usize) {
        if count > self.len() {
            // SAFETY: by the caller.
            unsafe { self.set_len(count) };
        }
    }
}

/// A part of a buffer, as a buffer.
#[derive(Debug)]
pub struct Part<B> {
    buffer: B,
    range: Range<usize>,
}

impl<B> Part<B> {
    /// The buffer again, whole.
    pub fn into_inner(self) -> B {
        self.buffer
    }
}

impl<B: Source> Part<B> {
    /// These of the buffer's bytes, to be written.
    ///
    /// # Panics
    ///
    /// If the range is not within its bytes.
    pub fn of_bytes(buffer: B, range: Range<usize>) -> Part<B> {
        let _ = &buffer.bytes()[range.clone()];
        Part { buffer, range }
    }
}

impl<B: Buffer> Part<B> {
    /// This part of the buffer's room, to be filled. It begins within the buffer's bytes or right
    /// behind them, so that the bytes stay in one piece.
    ///
    /// # Panics
    ///
    /// If the range is not within the room, or begins behind the bytes.
    pub fn of_room(mut buffer: B, range: Range<usize>) -> Part<B> {
        let room = buffer.room().len();
        assert!(
            range.start <= range.end && range.end <= room,
            "a part of {range:?} of {room} bytes"
        );
        assert!(range.start <= buffer.bytes().len(), "a part that leaves a gap before it");
        Part { buffer, range }
    }
}

// SAFETY: a part of what does not move.
unsafe impl<B: Source> Source for Part<B> {
    const QUIET: bool = B::QUIET;

    #[inline]
    fn bytes(&self) -> &[u8] {
        let bytes = self.buffer.bytes();
        &bytes[self.range.start..self.range.end.min(bytes.len())]
    }

    #[inline]
    fn registered(&self) -> Option<Registered<'_>> {
        self.buffer.registered()
    }
}

// SAFETY: a part of memory that is exclusively the value's, from where the bytes of the part begin.
unsafe impl<B: Buffer> Buffer for Part<B> {
    #[inline]
    fn room(&mut self) -> NonNull<[u8]> {
        let (whole, Range { start, end }) = (self.buffer.room(), self.range.clone());
        assert!(start <= end && end <= whole.len(), "the room of a part is gone");
        // SAFETY: within the room, as has just been seen.
        let start_of_part = unsafe { whole.cast::<u8>().add(start) };
        NonNull::slice_from_raw_parts(start_of_part, end - start)
    }

    #[inline]
    unsafe fn filled(&mut self, count: usize) {
        // SAFETY: by the caller; all before the part are bytes already, for it begins within the bytes
        // or right behind them.
        unsafe { self.buffer.filled(self.range.start + count) };
    }
}
