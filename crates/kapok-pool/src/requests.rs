//! The operations that the pool has by name.

use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::Instant;

#[cfg(target_os = "linux")]
use kapok_engine::entry::Entry;
use kapok_engine::{Op, RawMetadata, Readiness, sys};

#[cfg(target_os = "linux")]
use crate::buffer::Registered;
use crate::buffer::{Buffer, Source};
use crate::cell::Landed;
use crate::context::at;
use crate::descriptor::{Descriptor, Held};
use crate::hint::{Direction, is_stream, may_try};
use crate::pool::Pool;
use crate::request::Request;

/// An outcome of something that was moved: how much, and the buffer.
pub type Moved<B> = (io::Result<usize>, B);

/// An offset as the kernel takes it: what is beyond its range is refused there, and never taken for
/// "the current position".
pub(crate) fn checked(offset: u64) -> u64 {
    offset.min(Op::CURRENT_POSITION - 1)
}

/// The offset as an error names it.
fn place(offset: u64) -> Option<u64> {
    (offset != Op::CURRENT_POSITION).then_some(offset)
}

/// What came of a transfer of which `done` bytes were moved before.
fn count(done: usize, landed: io::Result<Landed>) -> io::Result<usize> {
    match landed {
        Ok(landed) => Ok(done + landed.res as usize),
        // The next one will meet it again.
        Err(_) if done > 0 => Ok(done),
        Err(error) => Err(error),
    }
}

/// What came of a transfer at an offset: on a stream nothing was done.
pub(crate) fn seekable(is_stream: bool, landed: io::Result<Landed>) -> io::Result<Landed> {
    match landed {
        Ok(_) if is_stream => Err(io::Error::from_raw_os_error(libc::ESPIPE)),
        landed => landed,
    }
}

/// Tries to move `len` bytes without waiting, in parts: `Some` when it is known how it ends.
fn attempt(done: &mut usize, len: usize, mut part: impl FnMut(usize) -> i32) -> Option<i32> {
    loop {
        let res = part(*done);
        let is_end = res == 0 || res > 0 && *done + res as usize >= len;
        match -res {
            // What this kernel or file system does not have is for the I/O thread to do without.
            libc::EAGAIN | libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS => return None,
            _ if res < 0 || is_end => return Some(res),
            _ => *done += res as usize,
        }
    }
}

/// A read at an offset.
#[derive(Debug)]
pub struct ReadAt<D: Descriptor, B> {
    file: Held<D>,
    buffer: B,
    offset: u64,
    /// Bytes that were read in the caller before.
    done: usize,
    /// There are no offsets in it: the outcome is `ESPIPE`, as pread(2) has it. A ring would read.
    is_stream: bool,
    /// The rings know the buffer.
    is_registered: bool,
}

impl<D: Descriptor, B: Buffer> ReadAt<D, B> {
    pub(crate) fn new(file: D, buffer: B, offset: u64) -> ReadAt<D, B> {
        let (is_stream, file) = (is_stream(&file), Held::new(file));
        ReadAt { file, buffer, offset: checked(offset), done: 0, is_stream, is_registered: false }
    }

    /// Through what the rings know of the buffer, if they do.
    pub(crate) fn registered(self, pool: &Pool) -> ReadAt<D, B> {
        ReadAt { is_registered: pool.knows(&self.buffer), ..self }
    }

    /// From the file's position on, which moves.
    pub(crate) fn at_position(file: D, buffer: B) -> ReadAt<D, B> {
        let (file, offset) = (Held::new(file), Op::CURRENT_POSITION);
        ReadAt { file, buffer, offset, done: 0, is_stream: false, is_registered: false }
    }
}

// SAFETY: the buffer's room does not move and is exclusively its own, `done` is within it, and the clone
// keeps the descriptor open.
unsafe impl<D: Descriptor, B: Buffer> Request for ReadAt<D, B> {
    type Output = Moved<B>;
    const QUIET: bool = B::QUIET;

    #[inline]
    fn op(&mut self) -> Op {
        if self.is_stream {
            return Op::Nop;
        }
        let room = self.buffer.room();
        // SAFETY: so many bytes of the room were filled, so it has them.
        let buf = unsafe { room.cast::<u8>().add(self.done) }.as_ptr();
        let len = room.len() - self.done;
        let offset = match self.offset {
            Op::CURRENT_POSITION => Op::CURRENT_POSITION,
            offset => offset + self.done as u64,
        };
        #[cfg(target_os = "linux")]
        if self.is_registered
            && let Some(Registered { piece, entry, .. }) = self.buffer.registered()
        {
            let fixed = Entry::read_fixed(self.file.raw(), buf, len, offset, piece);
            // SAFETY: the place is the buffer's, which the request owns.
            unsafe { entry.write(fixed) };
            return Op::Entry { entry };
        }
        Op::Read { fd: self.file.raw(), buf, len, offset }
    }

    fn leave_rings(&mut self) {
        self.is_registered = false;
    }

    fn attempt(&mut self, always: bool) -> Option<i32> {
        if self.is_stream {
            return Some(0);
        }
        if !may_try(&*self.file, Direction::Read, always) {
            return None;
        }
        let mut seen = 0;
        // Where there may be no offsets, more may never come: what is there is the outcome.
        let len = if self.offset == Op::CURRENT_POSITION { 1 } else { self.buffer.room().len() };
        let mut done = self.done;
        let over = attempt(&mut done, len, |done| {
            self.done = done;
            let op = self.op();
            // SAFETY: the request keeps what its operation names, and the call does not outlive it.
            seen = unsafe {
                match op {
                    Op::Read { fd, buf, len, offset } => sys::read_now(fd, buf, len, offset),
                    op => sys::perform(&op, false),
                }
            };
            seen
        });
        if let Some(hint) = self.file.hint() {
            hint.learn(Direction::Read, seen);
        }
        over
    }

    #[inline]
    fn finish(mut self, landed: io::Result<Landed>) -> Moved<B> {
        let count = count(self.done, seekable(self.is_stream, landed));
        if let Ok(count) = count {
            // SAFETY: the kernel has written so many, from the start of the room.
            unsafe { self.buffer.filled(count) };
        }
        (count.map_err(|error| at("read", &*self.file, place(self.offset), error)), self.buffer)
    }
}

/// A write at an offset.
#[derive(Debug)]
pub struct WriteAt<D: Descriptor, B> {
    file: Held<D>,
    buffer: B,
    offset: u64,
    /// Bytes that were written in the caller before.
    done: usize,
    /// As in [`ReadAt`].
    is_stream: bool,
    is_registered: bool,
}

impl<D: Descriptor, B: Source> WriteAt<D, B> {
    pub(crate) fn new(file: D, buffer: B, offset: u64) -> WriteAt<D, B> {
        let (is_stream, file) = (is_stream(&file), Held::new(file));
        WriteAt { file, buffer, offset: checked(offset), done: 0, is_stream, is_registered: false }
    }

    /// Through what the rings know of the buffer, if they do.
    pub(crate) fn registered(self, pool: &Pool) -> WriteAt<D, B> {
        WriteAt { is_registered: pool.knows(&self.buffer), ..self }
    }

    /// At the file's position, which for a file opened to append is its end.
    pub(crate) fn at_position(file: D, buffer: B) -> WriteAt<D, B> {
        let (file, offset) = (Held::new(file), Op::CURRENT_POSITION);
        WriteAt { file, buffer, offset, done: 0, is_stream: false, is_registered: false }
    }
}

// SAFETY: the buffer's bytes do not move, `done` is within them, and the clone keeps the descriptor open.
unsafe impl<D: Descriptor, B: Source> Request for WriteAt<D, B> {
    type Output = Moved<B>;
    const QUIET: bool = B::QUIET;

    #[inline]
    fn op(&mut self) -> Op {
        if self.is_stream {
            return Op::Nop;
        }
        let bytes = &self.buffer.bytes()[self.done..];
        let offset = match self.offset {
            Op::CURRENT_POSITION => Op::CURRENT_POSITION,
            offset => offset + self.done as u64,
        };
        let (buf, len) = (bytes.as_ptr(), bytes.len());
        #[cfg(target_os = "linux")]
        if self.is_registered
            && let Some(Registered { piece, entry, .. }) = self.buffer.registered()
        {
            let fixed = Entry::write_fixed(self.file.raw(), buf, len, offset, piece);
            // SAFETY: the place is the buffer's, which the request owns.
            unsafe { entry.write(fixed) };
            return Op::Entry { entry };
        }
        Op::Write { fd: self.file.raw(), buf, len, offset }
    }

    fn leave_rings(&mut self) {
        self.is_registered = false;
    }

    fn attempt(&mut self, always: bool) -> Option<i32> {
        if self.is_stream {
            return Some(0);
        }
        // A try may move a part, and the rest would go to where the position is by then: what others
        // write could come between.
        if self.offset == Op::CURRENT_POSITION || !may_try(&*self.file, Direction::Write, always) {
            return None;
        }
        let mut seen = 0;
        let (mut done, len) = (self.done, self.buffer.bytes().len());
        let over = attempt(&mut done, len, |done| {
            self.done = done;
            let op = self.op();
            // SAFETY: the request keeps what its operation names, and the call does not outlive it.
            seen = unsafe {
                match op {
                    Op::Write { fd, buf, len, offset } => sys::write_now(fd, buf, len, offset),
                    op => sys::perform(&op, false),
                }
            };
            seen
        });
        if let Some(hint) = self.file.hint() {
            hint.learn(Direction::Write, seen);
        }
        over
    }

    #[inline]
    fn finish(self, landed: io::Result<Landed>) -> Moved<B> {
        let count = count(self.done, seekable(self.is_stream, landed));
        (count.map_err(|error| at("write", &*self.file, place(self.offset), error)), self.buffer)
    }
}

/// A receive.
#[derive(Debug)]
pub struct Recv<D: Descriptor, B> {
    pub(crate) socket: Held<D>,
    pub(crate) buffer: B,
    pub(crate) flags: i32,
}

// SAFETY: as for `ReadAt`.
unsafe impl<D: Descriptor, B: Buffer> Request for Recv<D, B> {
    type Output = Moved<B>;
    const QUIET: bool = B::QUIET;

    #[inline]
    fn op(&mut self) -> Op {
        let (written, room) = (self.buffer.bytes().len(), self.buffer.room());
        let (buf, len) = (room.cast::<u8>().as_ptr(), room.len());
        if self.flags & libc::MSG_TRUNC != 0 {
            // On TCP this throws bytes away and counts them all the same (tcp(7)).
            // SAFETY: what is behind the bytes of the buffer, within its room.
            unsafe { buf.add(written).write_bytes(0, len - written) };
        }
        Op::Recv { fd: self.socket.raw(), buf, len, flags: self.flags }
    }

    #[inline]
    fn finish(mut self, landed: io::Result<Landed>) -> Moved<B> {
        // A datagram's whole length, if it was asked for, may be beyond what was written.
        let room = self.buffer.room().len();
        let count = count(0, landed);
        if let Ok(count) = count {
            // SAFETY: the kernel has written so many, from the start of the room, or with MSG_TRUNC, of
            // which it may have counted more, `op` has written what it has not.
            unsafe { self.buffer.filled(count.min(room)) };
        }
        (count, self.buffer)
    }
}

/// What would leave the kernel reading the buffer after the send has landed and it has come back.
#[cfg(any(target_os = "linux", target_os = "android"))]
const LENDS_PAGES: i32 = libc::MSG_ZEROCOPY;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const LENDS_PAGES: i32 = 0;

/// A send.
#[derive(Debug)]
pub struct Send<D: Descriptor, B> {
    pub(crate) socket: Held<D>,
    pub(crate) buffer: B,
    pub(crate) flags: i32,
}

// SAFETY: as for `WriteAt`.
unsafe impl<D: Descriptor, B: Source> Request for Send<D, B> {
    type Output = Moved<B>;
    const QUIET: bool = B::QUIET;

    #[inline]
    fn op(&mut self) -> Op {
        let bytes = self.buffer.bytes();
        let (buf, len) = (bytes.as_ptr(), bytes.len());
        Op::Send { fd: self.socket.raw(), buf, len, flags: self.flags & !LENDS_PAGES }
    }

    #[inline]
    fn finish(self, landed: io::Result<Landed>) -> Moved<B> {
        (count(0, landed), self.buffer)
    }
}

/// An operation without memory that comes to a number.
#[derive(Debug)]
pub struct Plain<D: Descriptor> {
    pub(crate) op: Op,
    /// Keeps the operation's descriptor open.
    pub(crate) held: Held<D>,
}

/// What an operation holds that has no descriptor.
#[derive(Clone, Copy, Debug)]
pub struct NoDescriptor;

// SAFETY: there is none: operations that take none do not look at the number.
unsafe impl Descriptor for NoDescriptor {
    fn leave(self) {}

    fn raw(&self) -> RawFd {
        -1
    }
}

/// Operations name no memory: made in this crate only, for those that do not.
// SAFETY: the operation names no memory, and the clone keeps its descriptor open.
unsafe impl<D: Descriptor> Request for Plain<D> {
    type Output = io::Result<u32>;
    const QUIET: bool = true;

    #[inline]
    fn op(&mut self) -> Op {
        self.op
    }

    #[inline]
    fn finish(self, landed: io::Result<Landed>) -> io::Result<u32> {
        let outcome = landed.map(|landed| landed.res as u32);
        outcome.map_err(|error| at("sync", &*self.held, None, error))
    }
}

// SAFETY: the pointers in `Op` are what keeps this from being derived, and operations of this kind
// have none.
unsafe impl<D: Descriptor> std::marker::Send for Plain<D> {}

impl Plain<NoDescriptor> {
    pub(crate) fn nop() -> Self {
        Plain { op: Op::Nop, held: Held::new(NoDescriptor) }
    }

    pub(crate) fn timer(deadline: Instant) -> Self {
        Plain { op: Op::Timer { deadline }, held: Held::new(NoDescriptor) }
    }
}

impl<D: Descriptor> Plain<D> {
    pub(crate) fn sync(held: D, data_only: bool) -> Self {
        Plain { op: Op::Sync { fd: held.raw(), data_only }, held: Held::new(held) }
    }
}

/// A wait for readiness.
#[derive(Debug)]
pub struct Ready<D: Descriptor> {
    pub(crate) held: Held<D>,
    pub(crate) events: Readiness,
}

// SAFETY: no memory is named, and the clone keeps the descriptor open.
unsafe impl<D: Descriptor> Request for Ready<D> {
    type Output = io::Result<Readiness>;
    const QUIET: bool = true;

    fn op(&mut self) -> Op {
        Op::Poll { fd: self.held.raw(), events: self.events }
    }

    fn finish(self, landed: io::Result<Landed>) -> io::Result<Readiness> {
        landed.map(|landed| Readiness(landed.res as i16))
    }
}

/// Opening a file. The result is a descriptor of one's own.
#[derive(Debug)]
pub struct OpenAt {
    pub(crate) path: CString,
    pub(crate) flags: i32,
    pub(crate) mode: u32,
}

// SAFETY: the path is on the heap and belongs to the request.
unsafe impl Request for OpenAt {
    type Output = io::Result<OwnedFd>;
    // Dropping what was opened closes it, which may wait for a file system.
    const QUIET: bool = false;

    fn op(&mut self) -> Op {
        Op::Open {
            dir: libc::AT_FDCWD,
            path: self.path.as_ptr(),
            flags: self.flags,
            mode: self.mode as libc::mode_t,
        }
    }

    fn finish(self, landed: io::Result<Landed>) -> io::Result<OwnedFd> {
        // SAFETY: a descriptor that open has just made and that nobody else knows.
        landed.map(|landed| unsafe { OwnedFd::from_raw_fd(landed.res) })
    }
}

/// Asking for metadata.
pub struct Stat<D: Descriptor> {
    held: Held<D>,
    out: Box<RawMetadata>,
}

impl<D: Descriptor> Stat<D> {
    pub(crate) fn new(held: D) -> Stat<D> {
        // SAFETY: plain numbers, for which zero is a value.
        Stat { held: Held::new(held), out: Box::new(unsafe { std::mem::zeroed() }) }
    }
}

// SAFETY: the place on the heap belongs to the request, and the clone keeps the descriptor open.
unsafe impl<D: Descriptor> Request for Stat<D> {
    type Output = io::Result<Box<RawMetadata>>;
    const QUIET: bool = true;

    fn op(&mut self) -> Op {
        Op::Metadata { fd: self.held.raw(), out: &raw mut *self.out }
    }

    fn finish(self, landed: io::Result<Landed>) -> io::Result<Box<RawMetadata>> {
        landed.map(|_| self.out)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn an_append_is_not_begun_in_the_caller() {
        let (near, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        // More than there is room for: a try would move a part.
        let mut write = WriteAt::at_position(Arc::new(near), vec![0; 4 << 20]);
        assert_eq!(write.attempt(true), None);
        assert_eq!(write.done, 0);
        assert_eq!((&far).read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn what_the_caller_cannot_do_is_left_to_the_thread() {
        for errno in [libc::EAGAIN, libc::EOPNOTSUPP, libc::EINVAL, libc::ENOSYS] {
            let mut done = 0;
            let over = attempt(&mut done, 10, |done| if done == 0 { 4 } else { -errno });
            assert_eq!((over, done), (None, 4));
        }
        assert_eq!(attempt(&mut 0, 10, |_| -libc::EIO), Some(-libc::EIO));
    }
}

#[cfg(all(test, target_os = "linux"))]
mod registered {
    use super::*;
    use crate::lease::{Buffers, Lease};

    fn goes_by_number(mut request: impl Request) -> bool {
        let is_entry = |op: Op| matches!(op, Op::Entry { .. });
        let before = is_entry(request.op());
        request.leave_rings();
        assert!(!is_entry(request.op()));
        before
    }

    #[test]
    fn transfers_go_by_what_the_rings_of_their_pool_know() {
        let mine = Buffers::new(2, 4096).unwrap();
        let others = Buffers::new(2, 4096).unwrap();
        let pool = Pool::builder().buffers(mine.clone()).build().unwrap();
        let knows = pool.has_registered(&mine);
        assert!(!pool.has_registered(&others));
        let file = crate::OpenFile::from(std::fs::File::open("/dev/zero").unwrap());
        let read = |lease: Lease| ReadAt::new(file.clone(), lease, 0).registered(&pool);
        let write = |lease: Lease| WriteAt::new(file.clone(), lease, 0).registered(&pool);
        assert_eq!(goes_by_number(read(mine.try_lease().unwrap())), knows);
        assert_eq!(goes_by_number(write(mine.try_lease().unwrap())), knows);
        assert!(!goes_by_number(read(others.try_lease().unwrap())));
        assert!(!goes_by_number(write(others.try_lease().unwrap())));
    }
}
