//! Moving bytes from descriptor to descriptor inside the kernel.
//!
//! A helper thread makes the calls, since they may wait for a disk. For people it must not wait: helpers are
//! few, and those who would end the wait may need one. So the ends that can wait for good are told not to,
//! and the fiber waits for them. A socket cannot be told so by sendfile(2): to one, a file is sent as
//! send(2) sends.

use std::ffi::{c_int, c_uint};
use std::os::fd::RawFd;

use libc::{off_t, off64_t, size_t, ssize_t};

use crate::call::Call;
use crate::errno::Errno;
use crate::hook::hooks;
use crate::kernel::kernel;
use crate::patience::{Patience, Side, is_nonblocking, option, seen};
use crate::signals::told_of_peer;
use crate::sockets::send_to;
use crate::stream::{Kind, kind};

/// How much a helper moves at once.
const PIECE: usize = 1 << 16;

/// How much a socket has room for that is announced as writable.
const ROOM: usize = 4096;

hooks! {
    /// sendfile(2).
    fn sendfile(out: c_int, from: c_int, offset: *mut off_t, len: size_t) -> ssize_t = |call| {
        send_file(call, out, from, offset, len)
    }

    /// sendfile(2) of large files.
    fn sendfile64(out: c_int, from: c_int, offset: *mut off64_t, len: size_t) -> ssize_t = |call| {
        send_file(call, out, from, offset, len)
    }

    /// splice(2).
    fn splice(
        from: c_int,
        from_offset: *mut off64_t,
        out: c_int,
        out_offset: *mut off64_t,
        len: size_t,
        flags: c_uint,
    ) -> ssize_t = |call| {
        let (from_at, out_at) = (from_offset as usize, out_offset as usize);
        let transfer = move |len: size_t, flags: c_uint| {
            // SAFETY: by the C caller, who waits until it is over.
            unsafe { kernel!(libc::SYS_splice, from, from_at, out, out_at, len, flags) }
        };
        let can_be = are_open_for(from, out) && (is_pipe(from) || is_pipe(out));
        let deaf = len > 0 && can_be && is_deaf(from);
        if flags & libc::SPLICE_F_NONBLOCK != 0 || len == 0 || !can_be {
            if deaf && !is_nonblocking(from)? {
                wait_readable(call, from)?;
            }
            let moved = match deaf {
                true => transfer(len, flags),
                false => call.offload(move || transfer(len, flags))?,
            };
            return told_of_peer(moved).map(|count| count as ssize_t);
        }
        let to_socket = is_pipe(from) && kind(out)? == Kind::Socket;
        splice_all(call, from, out, len, (deaf, to_socket), move |len| {
            transfer(len, flags | libc::SPLICE_F_NONBLOCK)
        })
    }

    /// tee(2).
    fn tee(from: c_int, out: c_int, len: size_t, flags: c_uint) -> ssize_t = |call| {
        loop {
            let quiet = flags | libc::SPLICE_F_NONBLOCK;
            match kernel!(libc::SYS_tee, from, out, len, quiet) {
                Err(Errno(libc::EAGAIN)) if flags & libc::SPLICE_F_NONBLOCK == 0 => {}
                done => return done.map(|count| count as ssize_t),
            }
            // An end with `O_NONBLOCK` waits for neither.
            if is_nonblocking(from)? || is_nonblocking(out)? {
                return Err(Errno(libc::EAGAIN));
            }
            wait_readable(call, from)?;
            wait_writable(call, out)?;
        }
    }

    /// copy_file_range(2).
    fn copy_file_range(
        from: c_int,
        from_offset: *mut off64_t,
        out: c_int,
        out_offset: *mut off64_t,
        len: size_t,
        flags: c_uint,
    ) -> ssize_t = |call| {
        let (from_offset, out_offset) = (from_offset as usize, out_offset as usize);
        call.offload(move || {
            // SAFETY: by the C caller, who waits until it is over.
            unsafe {
                kernel!(
                    libc::SYS_copy_file_range,
                    from,
                    from_offset,
                    out,
                    out_offset,
                    len,
                    flags
                )
            }
        })?
        .map(|count| count as ssize_t)
    }
}

/// Whether splice(2) out of it waits for bytes whatever its flags say, as from a stream of the internet's:
/// only `O_NONBLOCK` keeps it from that. It is asked where the fiber runs, if bytes are there, so that no
/// helper waits for what another fiber has taken.
fn is_deaf(from: RawFd) -> bool {
    let of_internet = |domain| [Ok(libc::AF_INET), Ok(libc::AF_INET6)].contains(&domain);
    option(from, libc::SO_TYPE) == Ok(libc::SOCK_STREAM)
        && of_internet(option(from, libc::SO_DOMAIN))
        && option(from, libc::SO_ACCEPTCONN) != Ok(1)
}

/// splice(2), by a `transfer` that does not wait for a pipe, nor for what is not [deaf](is_deaf). Into a
/// socket it goes on until all is sent that the pipe has.
fn splice_all(
    call: &Call,
    from: RawFd,
    out: RawFd,
    len: size_t,
    (deaf, to_socket): (bool, bool),
    transfer: impl Fn(size_t) -> Result<usize, Errno> + Send + Sync,
) -> Result<ssize_t, Errno> {
    let mut done = 0;
    // A socket takes the flag only from newer kernels, so it has to have room.
    let mut ready = if to_socket { wait_for_both(call, from, out) } else { Ok(()) };
    loop {
        if let Err(error) = ready {
            return if done > 0 { Ok(done as ssize_t) } else { Err(error) };
        }
        let most = if to_socket { (len - done).min(ROOM) } else { len };
        let transfer = &transfer;
        let moved = match deaf {
            true if seen(from, libc::POLLIN) == 0 => Err(Errno(libc::EAGAIN)),
            true => transfer(most),
            false => call.offload(move || transfer(most))?,
        };
        ready = match moved {
            Ok(count) => {
                done += count;
                let more = to_socket && count > 0 && done < len && seen(from, libc::POLLIN) != 0;
                if !more {
                    return Ok(done as ssize_t);
                }
                wait_for_both(call, from, out)
            }
            Err(Errno(libc::EAGAIN)) if done > 0 && seen(from, libc::POLLIN) == 0 => {
                return Ok(done as ssize_t);
            }
            Err(Errno(libc::EAGAIN)) => wait_for_both(call, from, out),
            Err(error) => told_of_peer(Err(error)).map(|_| ()),
        };
    }
}

/// Waits until both ends are ready. `EAGAIN` if one that is not has `O_NONBLOCK`.
fn wait_for_both(call: &Call, from: RawFd, out: RawFd) -> Result<(), Errno> {
    for (fd, events) in [(from, libc::POLLIN), (out, libc::POLLOUT)] {
        if seen(fd, events) == 0 && is_nonblocking(fd)? {
            return Err(Errno(libc::EAGAIN));
        }
    }
    wait_readable(call, from)?;
    wait_writable(call, out)
}

/// # Safety
///
/// The arguments are as sendfile(2) asks.
unsafe fn send_file(
    call: &Call,
    out: RawFd,
    from: RawFd,
    offset: *mut off64_t,
    len: size_t,
) -> Result<ssize_t, Errno> {
    let at = offset as usize;
    if !are_open_for(from, out) {
        // SAFETY: by the caller.
        let refused = unsafe { kernel!(libc::SYS_sendfile, out, from, at, len) };
        return refused.map(|count| count as ssize_t);
    }
    let to = kind(out)?;
    let disk = to == Kind::Disk;
    if to == Kind::Socket {
        // What cannot be is an error at once, and not after a wait.
        // SAFETY: by the caller.
        unsafe { kernel!(libc::SYS_sendfile, out, from, offset, 0) }?;
        if kind(from)? == Kind::Disk && !is_nonblocking(out)? {
            // SAFETY: by the caller.
            return unsafe { send_file_to_socket(call, out, from, offset, len) };
        }
    }
    let mut done = 0;
    loop {
        if !disk && let Err(error) = wait_writable(call, out) {
            return if done > 0 { Ok(done as ssize_t) } else { Err(error) };
        }
        let most = if to == Kind::Socket { ROOM } else { PIECE };
        let piece = if disk { len - done } else { (len - done).min(most) };
        // SAFETY: by the caller, who waits until it is over.
        let moved =
            call.offload(move || unsafe { kernel!(libc::SYS_sendfile, out, from, at, piece) })?;
        match moved {
            Ok(count) => {
                done += count;
                // Short at the end of the file, and where `out` waits for nobody.
                if done >= len || count < piece {
                    return Ok(done as ssize_t);
                }
            }
            Err(_) if done > 0 => return Ok(done as ssize_t),
            Err(error) => return told_of_peer(Err(error)).map(|_: usize| 0),
        }
    }
}

/// sendfile(2) of a file to a socket that may wait for its peer: a helper reads, and the fiber sends.
///
/// # Safety
///
/// The arguments are as sendfile(2) asks.
unsafe fn send_file_to_socket(
    call: &Call,
    out: RawFd,
    from: RawFd,
    offset: *mut off64_t,
    len: size_t,
) -> Result<ssize_t, Errno> {
    let len = len.min(kapok_engine::MAX_TRANSFER);
    // SAFETY: by the caller, if there is one.
    let begin = match unsafe { offset.as_ref() } {
        Some(&offset) => offset,
        // SAFETY: no memory is named.
        None => unsafe { kernel!(libc::SYS_lseek, from, 0, libc::SEEK_CUR) }? as off64_t,
    };
    // More is to follow only as far as the file goes: what is announced and never comes is held back.
    // SAFETY: all zeros is a stat.
    let mut stat: libc::stat64 = unsafe { std::mem::zeroed() };
    // SAFETY: writes to a local.
    unsafe { kernel!(libc::SYS_fstat, from, &raw mut stat) }?;
    let size = stat.st_size;
    let mut piece = vec![0_u8; len.min(PIECE)];
    let mut done = 0;
    let failed = loop {
        let room = piece.len().min(len - done);
        let (to, at) = (piece.as_mut_ptr() as usize, begin + done as off64_t);
        // SAFETY: a buffer of ours with that room, which stays until the helper is done.
        let read = call.offload(move || unsafe { kernel!(libc::SYS_pread64, from, to, room, at) });
        let read = match read.and_then(|read| read) {
            Ok(0) => break None,
            Ok(read) => read,
            Err(error) => break Some(error),
        };
        let is_last = done + read >= len || begin + (done + read) as off64_t >= size;
        let more = if is_last { 0 } else { libc::MSG_MORE };
        let bytes = piece.as_ptr().cast();
        // SAFETY: bytes that were just read there.
        match unsafe { send_to(call, out, bytes, read, more, std::ptr::null(), 0) } {
            Ok(sent) => {
                done += sent as usize;
                if done >= len || (sent as usize) < read {
                    break None;
                }
            }
            Err(error) => break Some(error),
        }
    };
    let end = begin + done as off64_t;
    // SAFETY: by the caller, if there is one.
    match unsafe { offset.as_mut() } {
        Some(offset) => *offset = end,
        None => {
            // SAFETY: no memory is named.
            let _ = unsafe { kernel!(libc::SYS_lseek, from, end, libc::SEEK_SET) };
        }
    }
    match failed {
        Some(error) if done == 0 => Err(error),
        _ => Ok(done as ssize_t),
    }
}

/// Whether bytes can come from one and go to the other at all. What cannot be is for the kernel to refuse, at
/// once and in the order in which it looks.
fn are_open_for(from: RawFd, out: RawFd) -> bool {
    let is_open_for = |fd: RawFd, wanted: c_int| {
        // SAFETY: no memory is named.
        unsafe { kernel!(libc::SYS_fcntl, fd, libc::F_GETFL) }.is_ok_and(|flags| {
            let (path, mode) = (flags as c_int & libc::O_PATH, flags as c_int & libc::O_ACCMODE);
            path == 0 && (mode == wanted || mode == libc::O_RDWR)
        })
    };
    is_open_for(from, libc::O_RDONLY) && is_open_for(out, libc::O_WRONLY)
}

fn is_pipe(fd: RawFd) -> bool {
    // SAFETY: no memory is named.
    unsafe { kernel!(libc::SYS_fcntl, fd, libc::F_GETPIPE_SZ) }.is_ok()
}

fn wait_readable(call: &Call, fd: RawFd) -> Result<(), Errno> {
    wait(call, fd, Side::Receiving, libc::POLLIN)
}

fn wait_writable(call: &Call, fd: RawFd) -> Result<(), Errno> {
    wait(call, fd, Side::Sending, libc::POLLOUT)
}

/// Waits until a descriptor is announced. One that may not wait, or no longer, tells so itself when
/// the call is made.
fn wait(call: &Call, fd: RawFd, side: Side, events: i16) -> Result<(), Errno> {
    // Of a listener nothing is ever announced that the call could use.
    if option(fd, libc::SO_ACCEPTCONN) == Ok(1) {
        return Ok(());
    }
    let mut patience = Patience::new(call, fd, side);
    while seen(fd, events) == 0 {
        match patience.wait() {
            Err(Errno(libc::EAGAIN)) if is_nonblocking(fd)? => return Ok(()),
            waited => waited?,
        }
        patience.progress();
    }
    Ok(())
}
