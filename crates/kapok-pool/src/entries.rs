//! Requests that are an entry of io_uring: what there is no other operation for.

use std::cell::Cell;
use std::ffi::CString;
use std::fmt;
use std::io;

use kapok_engine::entry::Entry;
use kapok_engine::{MAX_TRANSFER, Op, RawMetadata};

use crate::buffer::{Buffer, Source};
use crate::cell::Landed;
use crate::descriptor::{Descriptor, Held};
use crate::hint::is_stream;
use crate::request::Request;
use crate::requests::{Moved, checked, seekable};

/// An entry on an open file that names no memory.
pub(crate) struct OnFile<D: Descriptor> {
    entry: Entry,
    _held: Held<D>,
}

impl<D: Descriptor> OnFile<D> {
    pub(crate) fn allocate(file: D, mode: i32, offset: u64, len: u64) -> OnFile<D> {
        OnFile { entry: Entry::fallocate(file.raw(), mode, offset, len), _held: Held::new(file) }
    }

    pub(crate) fn set_len(file: D, len: u64) -> OnFile<D> {
        OnFile { entry: Entry::ftruncate(file.raw(), len), _held: Held::new(file) }
    }

    pub(crate) fn advise(file: D, offset: u64, len: u64, advice: i32) -> OnFile<D> {
        let fd = file.raw();
        // The form of 64 bits came later.
        let entry = match u32::try_from(len) {
            Ok(len) => Entry::fadvise(fd, offset, len, advice),
            Err(_) => Entry::fadvise64(fd, offset, len, advice),
        };
        OnFile { entry, _held: Held::new(file) }
    }
}

// SAFETY: the entry is a part of the request, and names no memory; the clone keeps its descriptor open.
unsafe impl<D: Descriptor> Request for OnFile<D> {
    type Output = io::Result<()>;
    const QUIET: bool = true;

    fn op(&mut self) -> Op {
        Op::Entry { entry: &raw const self.entry }
    }

    fn finish(self, landed: io::Result<Landed>) -> io::Result<()> {
        landed.map(drop)
    }
}

/// An entry on one or two paths.
pub(crate) struct OnPaths {
    entry: Entry,
    /// Makes the entry when the paths are where they stay.
    make: fn(&OnPaths) -> Entry,
    first: CString,
    /// Empty where there is one path only.
    second: CString,
    /// A mode, or flags.
    number: u32,
}

impl OnPaths {
    fn new(make: fn(&OnPaths) -> Entry, first: CString, second: CString, number: u32) -> OnPaths {
        OnPaths { entry: Entry::default(), make, first, second, number }
    }

    pub(crate) fn make_directory(path: CString, mode: u32) -> OnPaths {
        let make = |this: &OnPaths| Entry::mkdir(this.first.as_ptr(), this.number);
        OnPaths::new(make, path, CString::default(), mode)
    }

    pub(crate) fn remove(path: CString, flags: i32) -> OnPaths {
        let make = |this: &OnPaths| Entry::unlink(this.first.as_ptr(), this.number as i32);
        OnPaths::new(make, path, CString::default(), flags as u32)
    }

    pub(crate) fn rename(from: CString, to: CString) -> OnPaths {
        let make = |this: &OnPaths| Entry::rename(this.first.as_ptr(), this.second.as_ptr());
        OnPaths::new(make, from, to, 0)
    }

    pub(crate) fn link(original: CString, link: CString) -> OnPaths {
        let make = |this: &OnPaths| Entry::link(this.first.as_ptr(), this.second.as_ptr(), 0);
        OnPaths::new(make, original, link, 0)
    }

    pub(crate) fn symlink(target: CString, link: CString) -> OnPaths {
        let make = |this: &OnPaths| Entry::symlink(this.first.as_ptr(), this.second.as_ptr());
        OnPaths::new(make, target, link, 0)
    }
}

// SAFETY: the entry is a part of the request, and the paths are on the heap and the request's.
unsafe impl Request for OnPaths {
    type Output = io::Result<()>;
    const QUIET: bool = true;

    fn op(&mut self) -> Op {
        self.entry = (self.make)(self);
        Op::Entry { entry: &raw const self.entry }
    }

    fn finish(self, landed: io::Result<Landed>) -> io::Result<()> {
        landed.map(drop)
    }
}

/// Asking for the metadata of a path.
pub(crate) struct StatPath {
    entry: Entry,
    path: CString,
    flags: i32,
    out: Box<RawMetadata>,
}

impl StatPath {
    pub(crate) fn new(path: CString, flags: i32) -> StatPath {
        // SAFETY: plain numbers, for which zero is a value.
        let out = Box::new(unsafe { std::mem::zeroed() });
        StatPath { entry: Entry::default(), path, flags, out }
    }
}

// SAFETY: the entry is a part of the request; the path and the place are on the heap and the request's.
unsafe impl Request for StatPath {
    type Output = io::Result<Box<RawMetadata>>;
    const QUIET: bool = true;

    fn op(&mut self) -> Op {
        let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
        let (path, out) = (self.path.as_ptr(), &raw mut *self.out);
        self.entry = Entry::statx(libc::AT_FDCWD, path, self.flags, mask, out);
        Op::Entry { entry: &raw const self.entry }
    }

    fn finish(self, landed: io::Result<Landed>) -> io::Result<Box<RawMetadata>> {
        landed.map(|_| self.out)
    }
}

/// Asking for an extended attribute of a path.
pub(crate) struct GetXattr<B> {
    entry: Entry,
    path: CString,
    name: CString,
    buffer: B,
}

impl<B: Buffer> GetXattr<B> {
    pub(crate) fn new(path: CString, name: CString, buffer: B) -> GetXattr<B> {
        GetXattr { entry: Entry::default(), path, name, buffer }
    }
}

// SAFETY: the entry is a part of the request; path and name are on the heap and the request's; the buffer's
// room does not move and is exclusively its own.
unsafe impl<B: Buffer> Request for GetXattr<B> {
    type Output = Moved<B>;
    const QUIET: bool = B::QUIET;

    fn op(&mut self) -> Op {
        let room = self.buffer.room();
        let (name, path, len) = (self.name.as_ptr(), self.path.as_ptr(), most(room.len()));
        self.entry = Entry::getxattr(name, room.cast().as_ptr(), path, len);
        Op::Entry { entry: &raw const self.entry }
    }

    fn finish(mut self, landed: io::Result<Landed>) -> Moved<B> {
        let count = landed.map(|landed| landed.res as usize);
        if let Ok(count) = count {
            let room = self.buffer.room().len();
            // SAFETY: the kernel has written the value, or nothing into no room, of which it tells the
            // length.
            unsafe { self.buffer.filled(count.min(room)) };
        }
        (count, self.buffer)
    }
}

/// Setting an extended attribute of a path.
pub(crate) struct SetXattr<B> {
    entry: Entry,
    path: CString,
    name: CString,
    value: B,
    flags: i32,
}

impl<B: Source> SetXattr<B> {
    pub(crate) fn new(path: CString, name: CString, value: B, flags: i32) -> SetXattr<B> {
        SetXattr { entry: Entry::default(), path, name, value, flags }
    }
}

// SAFETY: the entry is a part of the request; path and name are on the heap and the request's; the bytes of
// the value do not move.
unsafe impl<B: Source> Request for SetXattr<B> {
    type Output = io::Result<()>;
    const QUIET: bool = B::QUIET;

    fn op(&mut self) -> Op {
        let bytes = self.value.bytes();
        let (name, path, len) = (self.name.as_ptr(), self.path.as_ptr(), most(bytes.len()));
        self.entry = Entry::setxattr(name, bytes.as_ptr(), path, self.flags, len);
        Op::Entry { entry: &raw const self.entry }
    }

    fn finish(self, landed: io::Result<Landed>) -> io::Result<()> {
        landed.map(drop)
    }
}

/// A length as these entries have it. The kernel refuses values that are much shorter.
fn most(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// Moving bytes between a pipe and something else: see [`Pool::splice`](crate::Pool::splice).
pub struct Splice<D: Descriptor, E: Descriptor> {
    entry: Entry,
    from: Held<D>,
    to: Held<E>,
}

impl<D: Descriptor, E: Descriptor> Splice<D, E> {
    pub(crate) fn new(
        (from, from_offset): (D, Option<u64>),
        (to, to_offset): (E, Option<u64>),
        len: usize,
    ) -> Splice<D, E> {
        let at = |offset: Option<u64>| offset.map_or(-1, |offset| checked(offset) as i64);
        let (len, flags) = (len.min(MAX_TRANSFER) as u32, libc::SPLICE_F_MOVE);
        let (here, there) = (at(from_offset), at(to_offset));
        let entry = Entry::splice(from.raw(), here, to.raw(), there, len, flags);
        Splice { entry, from: Held::new(from), to: Held::new(to) }
    }
}

impl<D: Descriptor, E: Descriptor> fmt::Debug for Splice<D, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Splice").field("from", &self.from).field("to", &self.to).finish()
    }
}

// SAFETY: the entry is a part of the request, and names no memory; the clones keep its descriptors open.
unsafe impl<D: Descriptor, E: Descriptor> Request for Splice<D, E> {
    type Output = io::Result<usize>;
    const QUIET: bool = true;

    fn op(&mut self) -> Op {
        Op::Entry { entry: &raw const self.entry }
    }

    fn finish(self, landed: io::Result<Landed>) -> io::Result<usize> {
        landed.map(|landed| landed.res as usize)
    }
}

/// Any entry, with what it names: see [`Pool::entry`](crate::Pool::entry).
pub struct OfEntry<K, F> {
    entry: Entry,
    kept: K,
    make: F,
    /// A landing that was not the last.
    first: Cell<Option<Landed>>,
}

impl<K, F> OfEntry<K, F> {
    /// # Safety
    ///
    /// That of [`Pool::entry`](crate::Pool::entry).
    pub(crate) unsafe fn new(kept: K, make: F) -> OfEntry<K, F> {
        OfEntry { entry: Entry::default(), kept, make, first: Cell::new(None) }
    }
}

impl<K, F> fmt::Debug for OfEntry<K, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OfEntry").finish_non_exhaustive()
    }
}

// SAFETY: the entry is a part of the request; what it names is kept, by the promise that `new` asks for.
unsafe impl<K, F> Request for OfEntry<K, F>
where
    K: Send + 'static,
    F: FnMut(&mut K) -> Entry + Send + 'static,
{
    type Output = (io::Result<Landed>, K);
    // Whatever is kept may do anything when it is dropped.
    const QUIET: bool = false;

    fn op(&mut self) -> Op {
        self.entry = (self.make)(&mut self.kept);
        Op::Entry { entry: &raw const self.entry }
    }

    fn more(&self, landed: Landed, _bytes: &[u8]) -> bool {
        if self.first.get().is_none() {
            self.first.set(Some(landed));
        }
        false
    }

    fn finish(self, landed: io::Result<Landed>) -> (io::Result<Landed>, K) {
        let outcome = self.first.get().map_or(landed, Landed::into_result);
        (outcome, self.kept)
    }
}

/// The most parts that one call takes (`IOV_MAX`). More are left to the next.
const MOST_PARTS: usize = 1024;

/// A transfer of several buffers at an offset, one after the other.
pub(crate) struct Vectored<D: Descriptor, B> {
    entry: Entry,
    parts: Vec<libc::iovec>,
    buffers: Vec<B>,
    file: Held<D>,
    offset: u64,
    /// Prepares the parts and the entry.
    make: fn(&mut Vectored<D, B>) -> Entry,
    /// Takes note of so many bytes.
    note: unsafe fn(&mut [B], usize),
    is_stream: bool,
}

// SAFETY: the pointers among the parts are the buffers' own, and are made where they are used.
unsafe impl<D: Descriptor, B: Send> Send for Vectored<D, B> {}

impl<D: Descriptor, B: Buffer> Vectored<D, B> {
    pub(crate) fn read(file: D, buffers: Vec<B>, offset: u64) -> Vectored<D, B> {
        let make = |this: &mut Vectored<D, B>| {
            this.parts.clear();
            this.parts.extend(this.buffers.iter_mut().take(MOST_PARTS).map(|buffer| {
                let room = buffer.room();
                libc::iovec { iov_base: room.cast().as_ptr(), iov_len: room.len() }
            }));
            let (parts, count) = (this.parts.as_ptr(), this.parts.len() as u32);
            Entry::readv(this.file.raw(), parts, count, this.offset)
        };
        Vectored::new(file, buffers, offset, make, filled)
    }
}

/// The first `count` bytes of the rooms have been written.
///
/// # Safety
///
/// They have.
unsafe fn filled<B: Buffer>(buffers: &mut [B], mut count: usize) {
    for buffer in buffers {
        let here = buffer.room().len().min(count);
        // SAFETY: by the caller; the kernel fills one after the other.
        unsafe { buffer.filled(here) };
        count -= here;
    }
}

impl<D: Descriptor, B: Source> Vectored<D, B> {
    pub(crate) fn write(file: D, buffers: Vec<B>, offset: u64) -> Vectored<D, B> {
        let make = |this: &mut Vectored<D, B>| {
            this.parts.clear();
            this.parts.extend(this.buffers.iter().take(MOST_PARTS).map(|buffer| {
                let bytes = buffer.bytes();
                libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
            }));
            let (parts, count) = (this.parts.as_ptr(), this.parts.len() as u32);
            Entry::writev(this.file.raw(), parts, count, this.offset)
        };
        Vectored::new(file, buffers, offset, make, |_, _| {})
    }

    fn new(
        file: D,
        buffers: Vec<B>,
        offset: u64,
        make: fn(&mut Vectored<D, B>) -> Entry,
        note: unsafe fn(&mut [B], usize),
    ) -> Vectored<D, B> {
        let (is_stream, offset) = (is_stream(&file), checked(offset));
        let (entry, parts, file) = (Entry::default(), Vec::new(), Held::new(file));
        Vectored { entry, parts, buffers, file, offset, make, note, is_stream }
    }
}

// SAFETY: the memory of the buffers does not move and is exclusively theirs if it is written to; the
// parts are on the heap and the request's, the entry is a part of it, and the clone keeps the descriptor
// open.
unsafe impl<D: Descriptor, B: Source> Request for Vectored<D, B> {
    type Output = Moved<Vec<B>>;
    const QUIET: bool = B::QUIET;

    fn op(&mut self) -> Op {
        if self.is_stream {
            return Op::Nop;
        }
        self.entry = (self.make)(self);
        Op::Entry { entry: &raw const self.entry }
    }

    fn finish(mut self, landed: io::Result<Landed>) -> Moved<Vec<B>> {
        let landed = seekable(self.is_stream, landed);
        let count = landed.map(|landed| landed.res as usize);
        if let Ok(count) = count {
            // SAFETY: the kernel has moved so many.
            unsafe { (self.note)(&mut self.buffers, count) };
        }
        (count, self.buffers)
    }
}
