//! Requests that are an entry of io_uring: what there is no other operation for.

use std::ffi::CString;
use std::io;

use kapok_engine::entry::Entry;
use kapok_engine::{Op, RawMetadata};

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
