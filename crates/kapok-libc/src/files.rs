//! Reading, writing, opening and flushing, whatever the descriptor is.
//!
//! What can wait for good (pipes, sockets, terminals) is tried without waiting, see `stream`. What
//! waits for a disk has no such form. At an offset of its own a transfer goes to the engine. At the
//! file's position it is one system call on a helper thread, since only the system call moves the
//! position together with the bytes.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kapok_engine::Op;
use libc::{iovec, mode_t, off_t, off64_t, size_t, ssize_t};

use crate::call::Call;
use crate::errno::Errno;
use crate::hook::hooks;
use crate::kernel::kernel;
use crate::signals::mask::aside;
use crate::stream::{self, Kind, kind};

hooks! {
    /// read(2).
    fn read(fd: c_int, buf: *mut c_void, len: size_t) -> ssize_t = |call| {
        stream::read(call, fd, buf, len)
    }

    /// read(2), as programs with checked buffers call it.
    fn __read_chk(fd: c_int, buf: *mut c_void, len: size_t, room: size_t) -> ssize_t = |call| {
        crate::hook::check_room(len, room);
        stream::read(call, fd, buf, len)
    }

    /// readv(2).
    fn readv(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t = |call| {
        stream::read_parts(call, fd, parts, count, 0)
    }

    /// write(2).
    fn write(fd: c_int, buf: *const c_void, len: size_t) -> ssize_t = |call| {
        stream::write(call, fd, buf, len)
    }

    /// writev(2).
    fn writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t = |call| {
        stream::write_parts(call, fd, parts, count, 0)
    }

    /// pread(2).
    fn pread(fd: c_int, buf: *mut c_void, len: size_t, offset: off_t) -> ssize_t = |call| {
        read_at(call, fd, buf, len, offset)
    }

    /// pread(2) with large offsets.
    fn pread64(fd: c_int, buf: *mut c_void, len: size_t, offset: off64_t) -> ssize_t = |call| {
        read_at(call, fd, buf, len, offset)
    }

    /// pread(2), as programs with checked buffers call it.
    fn __pread_chk(
        fd: c_int,
        buf: *mut c_void,
        len: size_t,
        offset: off_t,
        room: size_t,
    ) -> ssize_t = |call| {
        crate::hook::check_room(len, room);
        read_at(call, fd, buf, len, offset)
    }

    /// pread(2) with large offsets, as programs with checked buffers call it.
    fn __pread64_chk(
        fd: c_int,
        buf: *mut c_void,
        len: size_t,
        offset: off64_t,
        room: size_t,
    ) -> ssize_t = |call| {
        crate::hook::check_room(len, room);
        read_at(call, fd, buf, len, offset)
    }

    /// pwrite(2).
    fn pwrite(fd: c_int, buf: *const c_void, len: size_t, offset: off_t) -> ssize_t = |call| {
        write_at(call, fd, buf, len, offset)
    }

    /// pwrite(2) with large offsets.
    fn pwrite64(fd: c_int, buf: *const c_void, len: size_t, offset: off64_t) -> ssize_t = |call| {
        write_at(call, fd, buf, len, offset)
    }

    /// preadv(2).
    fn preadv(fd: c_int, parts: *const iovec, count: c_int, offset: off_t) -> ssize_t = |call| {
        parts_at(call, fd, libc::SYS_preadv, parts, count, offset, 0)
    }

    /// preadv(2) with large offsets.
    fn preadv64(fd: c_int, parts: *const iovec, count: c_int, offset: off64_t) -> ssize_t = |call| {
        parts_at(call, fd, libc::SYS_preadv, parts, count, offset, 0)
    }

    /// pwritev(2).
    fn pwritev(fd: c_int, parts: *const iovec, count: c_int, offset: off_t) -> ssize_t = |call| {
        parts_at(call, fd, libc::SYS_pwritev, parts, count, offset, 0)
    }

    /// pwritev(2) with large offsets.
    fn pwritev64(
        fd: c_int,
        parts: *const iovec,
        count: c_int,
        offset: off64_t,
    ) -> ssize_t = |call| {
        parts_at(call, fd, libc::SYS_pwritev, parts, count, offset, 0)
    }

    /// preadv2(2).
    fn preadv2(
        fd: c_int,
        parts: *const iovec,
        count: c_int,
        offset: off_t,
        flags: c_int,
    ) -> ssize_t = |call| {
        match offset {
            -1 => stream::read_parts(call, fd, parts, count, flags),
            _ => parts_at(call, fd, libc::SYS_preadv2, parts, count, offset, flags),
        }
    }

    /// preadv2(2) with large offsets.
    fn preadv64v2(
        fd: c_int,
        parts: *const iovec,
        count: c_int,
        offset: off64_t,
        flags: c_int,
    ) -> ssize_t = |call| {
        match offset {
            -1 => stream::read_parts(call, fd, parts, count, flags),
            _ => parts_at(call, fd, libc::SYS_preadv2, parts, count, offset, flags),
        }
    }

    /// pwritev2(2).
    fn pwritev2(
        fd: c_int,
        parts: *const iovec,
        count: c_int,
        offset: off_t,
        flags: c_int,
    ) -> ssize_t = |call| {
        match offset {
            -1 => stream::write_parts(call, fd, parts, count, flags),
            _ => parts_at(call, fd, libc::SYS_pwritev2, parts, count, offset, flags),
        }
    }

    /// pwritev2(2) with large offsets.
    fn pwritev64v2(
        fd: c_int,
        parts: *const iovec,
        count: c_int,
        offset: off64_t,
        flags: c_int,
    ) -> ssize_t = |call| {
        match offset {
            -1 => stream::write_parts(call, fd, parts, count, flags),
            _ => parts_at(call, fd, libc::SYS_pwritev2, parts, count, offset, flags),
        }
    }

    /// fsync(2).
    fn fsync(fd: c_int) -> c_int = |call| {
        engine(call, Op::Sync { fd, data_only: false }).map(|res| res as c_int)
    }

    /// fdatasync(2).
    fn fdatasync(fd: c_int) -> c_int = |call| {
        engine(call, Op::Sync { fd, data_only: true }).map(|res| res as c_int)
    }

    /// open(2).
    fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int = |call| {
        open_at(call, libc::AT_FDCWD, path, flags, mode)
    }

    /// open(2) of large files.
    fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int = |call| {
        open_at(call, libc::AT_FDCWD, path, flags, mode)
    }

    /// openat(2).
    fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int = |call| {
        open_at(call, dir, path, flags, mode)
    }

    /// openat(2) of large files.
    fn openat64(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int = |call| {
        open_at(call, dir, path, flags, mode)
    }

    /// open(2), as programs with checked buffers call it: without a mode.
    fn __open_2(path: *const c_char, flags: c_int) -> c_int = |call| {
        check_mode(flags);
        open_at(call, libc::AT_FDCWD, path, flags, 0)
    }

    /// open(2) of large files, as programs with checked buffers call it.
    fn __open64_2(path: *const c_char, flags: c_int) -> c_int = |call| {
        check_mode(flags);
        open_at(call, libc::AT_FDCWD, path, flags, 0)
    }

    /// openat(2), as programs with checked buffers call it.
    fn __openat_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int = |call| {
        check_mode(flags);
        open_at(call, dir, path, flags, 0)
    }

    /// openat(2) of large files, as programs with checked buffers call it.
    fn __openat64_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int = |call| {
        check_mode(flags);
        open_at(call, dir, path, flags, 0)
    }

    /// creat(2).
    fn creat(path: *const c_char, mode: mode_t) -> c_int = |call| {
        let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC;
        open_at(call, libc::AT_FDCWD, path, flags, mode)
    }

    /// creat(2) of large files.
    fn creat64(path: *const c_char, mode: mode_t) -> c_int = |call| {
        let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC;
        open_at(call, libc::AT_FDCWD, path, flags, mode)
    }
}

/// Has the engine carry an operation out.
///
/// # Safety
///
/// The memory that `op` names is the caller's for the duration of this call.
unsafe fn engine(call: &Call, op: Op) -> Result<usize, Errno> {
    call.suspended.set(true);
    // SAFETY: by the caller.
    match unsafe { aside(|| call.inside.run(op)) } {
        Ok(count) => Ok(count as usize),
        Err(error) => Err(Errno(match error.raw_os_error() {
            Some(errno) => errno,
            None if error.kind() == std::io::ErrorKind::TimedOut => libc::ETIMEDOUT,
            None if error.kind() == std::io::ErrorKind::ConnectionReset => libc::ECONNRESET,
            None => libc::ECANCELED,
        })),
    }
}

/// Not what is no descriptor either: which of a call's errors comes first is the kernel's to say.
fn is_on_disk(fd: c_int) -> bool {
    matches!(kind(fd), Ok(Kind::Disk))
}

/// # Safety
///
/// The arguments are as pread(2) asks.
unsafe fn read_at(
    call: &Call,
    fd: c_int,
    buf: *mut c_void,
    len: size_t,
    offset: off64_t,
) -> Result<ssize_t, Errno> {
    let done = if is_on_disk(fd) && offset >= 0 {
        let op = Op::Read { fd, buf: buf.cast(), len, offset: offset as u64 };
        // SAFETY: by the caller.
        unsafe { engine(call, op) }
    } else {
        // Nothing else has positions to wait at, or it is an error.
        // SAFETY: by the caller.
        unsafe { kernel!(libc::SYS_pread64, fd, buf, len, offset) }
    };
    done.map(|count| count as ssize_t)
}

/// # Safety
///
/// The arguments are as pwrite(2) asks.
unsafe fn write_at(
    call: &Call,
    fd: c_int,
    buf: *const c_void,
    len: size_t,
    offset: off64_t,
) -> Result<ssize_t, Errno> {
    let done = if is_on_disk(fd) && offset >= 0 {
        let op = Op::Write { fd, buf: buf.cast(), len, offset: offset as u64 };
        // SAFETY: by the caller.
        unsafe { engine(call, op) }
    } else {
        // SAFETY: by the caller.
        unsafe { kernel!(libc::SYS_pwrite64, fd, buf, len, offset) }
    };
    done.map(|count| count as ssize_t)
}

/// A scattered transfer at an offset: system call `number`.
///
/// # Safety
///
/// The arguments are as preadv2(2) and pwritev2(2) ask.
unsafe fn parts_at(
    call: &Call,
    fd: c_int,
    number: libc::c_long,
    parts: *const iovec,
    count: c_int,
    offset: off64_t,
    flags: c_int,
) -> Result<ssize_t, Errno> {
    let parts = parts as usize;
    // The kernel takes the offset in two halves, of which 64-bit machines use the first.
    // SAFETY: by the caller, who waits until it is over.
    let transfer = move || unsafe { kernel!(number, fd, parts, count, offset, 0, flags) };
    let waits_for_disk = is_on_disk(fd) && flags & libc::RWF_NOWAIT == 0;
    let done = if waits_for_disk { call.offload(transfer)? } else { transfer() };
    done.map(|count| count as ssize_t)
}

/// What the C library's functions for checked buffers do first: ends the process if a file may be made and
/// there is no mode for it.
fn check_mode(flags: c_int) {
    if flags & libc::O_CREAT != 0 || flags & libc::O_TMPFILE == libc::O_TMPFILE {
        crate::hook::check_room(1, 0);
    }
}

/// How an attempt to open on a helper has ended.
enum Opening {
    Done(Result<usize, Errno>),
    /// A FIFO, which waits for its other end.
    Fifo,
}

/// # Safety
///
/// The arguments are as openat(2) asks.
unsafe fn open_at(
    call: &Call,
    dir: c_int,
    path: *const c_char,
    flags: c_int,
    mode: mode_t,
) -> Result<c_int, Errno> {
    let at = path as usize;
    let opening = call.offload(move || {
        // SAFETY: by the caller, who waits until it is over.
        if unsafe { waits_for_other_end(dir, at, flags) } {
            return Opening::Fifo;
        }
        // SAFETY: as above.
        Opening::Done(unsafe { kernel!(libc::SYS_openat, dir, at, flags, mode) })
    })?;
    let opened = match opening {
        Opening::Done(opened) => opened?,
        // SAFETY: by the caller.
        Opening::Fifo => unsafe { open_fifo(call, dir, path, flags, mode) }?,
    };
    Ok(opened as c_int)
}

/// Whether this is a FIFO and is opened for one of its ends, to wait for the other.
///
/// # Safety
///
/// The arguments are as openat(2) asks.
unsafe fn waits_for_other_end(dir: c_int, path: usize, flags: c_int) -> bool {
    if flags & libc::O_ACCMODE == libc::O_RDWR || flags & (libc::O_NONBLOCK | libc::O_PATH) != 0 {
        return false;
    }
    let follow = if flags & libc::O_NOFOLLOW != 0 { libc::AT_SYMLINK_NOFOLLOW } else { 0 };
    // SAFETY: all zeros is a stat.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: by the caller; writes to a local.
    let found = unsafe { kernel!(libc::SYS_newfstatat, dir, path, &raw mut stat, follow) };
    found.is_ok() && stat.st_mode & libc::S_IFMT == libc::S_IFIFO
}

/// Opens a FIFO on a thread of its own, which stays until somebody opens the other end: it may take for
/// ever, and there are not so many helpers.
///
/// # Safety
///
/// The arguments are as openat(2) asks.
unsafe fn open_fifo(
    call: &Call,
    dir: c_int,
    path: *const c_char,
    flags: c_int,
    mode: mode_t,
) -> Result<usize, Errno> {
    // Both are the thread's: the caller may be told to stop.
    // SAFETY: by the caller: the kernel has read it.
    let path = unsafe { CStr::from_ptr(path) }.to_owned();
    let dir = match dir {
        libc::AT_FDCWD => dir,
        // SAFETY: no memory is named.
        dir => unsafe { kernel!(libc::SYS_fcntl, dir, libc::F_DUPFD_CLOEXEC, 0) }? as c_int,
    };
    let (done, mut opened) = kapok::sync::oneshot::channel();
    let run = move || {
        // SAFETY: a name that ends, and numbers of ours.
        let fd = unsafe { kernel!(libc::SYS_openat, dir, path.as_ptr(), flags, mode) };
        if dir != libc::AT_FDCWD {
            // SAFETY: a number of ours.
            let _ = unsafe { kernel!(libc::SYS_close, dir) };
        }
        // SAFETY: it was just made. If nobody waits for it any more it is closed.
        let _ = done.send(fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as c_int) }));
    };
    kapok_engine::offload::start_thread("kapok-open".into(), run)
        .map_err(|_| Errno(libc::ENOMEM))?;
    match call.wait(opened.recv_async(), None) {
        Ok(Ok(fd)) => fd.map(|fd| fd.into_raw_fd() as usize),
        Ok(Err(_)) => Err(Errno(libc::EIO)),
        Err(stopped) => Err(stopped.errno()),
    }
}
