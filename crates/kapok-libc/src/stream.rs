//! Reading and writing at the current position: of sockets, pipes, terminals, devices and files.

use std::ffi::{c_int, c_void};
use std::mem::zeroed;
use std::os::fd::RawFd;
use std::ptr;

use kapok_engine::MAX_TRANSFER;
use libc::{iovec, msghdr, size_t, ssize_t};

use crate::call::Call;
use crate::errno::Errno;
use crate::kernel::kernel;
use crate::parts::{Rest, total};
use crate::patience::{Patience, Side, is_nonblocking, seen};
use crate::signals::told_of_peer;
use crate::sockets::{receive_from, receive_message, send_message, send_to};
use crate::terminal;

/// What waiting for a descriptor is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Socket,
    /// It waits for a disk, and for nobody else.
    Disk,
    /// A pipe, a terminal, a device, an event.
    Other,
}

/// Asks the kernel: whoever remembered would have to know of every close.
pub(crate) fn kind(fd: RawFd) -> Result<Kind, Errno> {
    // SAFETY: all zeros is a stat.
    let mut stat: libc::stat = unsafe { zeroed() };
    // SAFETY: writes to a local.
    unsafe { kernel!(libc::SYS_fstat, fd, &raw mut stat) }?;
    Ok(match stat.st_mode & libc::S_IFMT {
        libc::S_IFSOCK => Kind::Socket,
        libc::S_IFREG | libc::S_IFBLK | libc::S_IFDIR => Kind::Disk,
        _ => Kind::Other,
    })
}

/// read(2).
///
/// # Safety
///
/// The arguments are as read(2) asks.
pub(crate) unsafe fn read(
    call: &Call,
    fd: RawFd,
    buf: *mut c_void,
    len: size_t,
) -> Result<ssize_t, Errno> {
    match kind(fd)? {
        // SAFETY: by the caller. Of nothing, recv(2) would wait.
        Kind::Socket if len > 0 => unsafe {
            receive_from(call, fd, buf, len, 0, ptr::null_mut(), ptr::null_mut())
        },
        // Nothing is waited for, and what it comes to is up to the descriptor.
        _ if len == 0 => {
            // SAFETY: by the caller.
            unsafe { kernel!(libc::SYS_read, fd, buf, 0) }.map(|count| count as ssize_t)
        }
        _ => {
            let part = iovec { iov_base: buf, iov_len: len.min(MAX_TRANSFER) };
            // SAFETY: by the caller.
            unsafe { read_parts(call, fd, &raw const part, 1, 0) }
        }
    }
}

/// preadv2(2) at the current position; without flags that is readv(2).
///
/// # Safety
///
/// The arguments are as readv(2) asks.
pub(crate) unsafe fn read_parts(
    call: &Call,
    fd: RawFd,
    parts: *const iovec,
    count: c_int,
    flags: c_int,
) -> Result<ssize_t, Errno> {
    let at = parts as usize;
    // SAFETY: by the caller, who waits until it is over.
    let transfer = move |flags: c_int| unsafe {
        kernel!(libc::SYS_preadv2, fd, at, count, -1isize, -1isize, flags)
    };
    // SAFETY: by the caller.
    let len = unsafe { total(parts, count.max(0) as usize) };
    let kind = kind(fd)?;
    if flags & libc::RWF_NOWAIT != 0 || len == 0 {
        return transfer(flags).map(|count| count as ssize_t);
    }
    match kind {
        Kind::Disk => call.offload(move || transfer(flags))?,
        Kind::Socket => {
            // SAFETY: all zeros is an empty message.
            let mut message: msghdr = unsafe { zeroed() };
            message.msg_iov = parts.cast_mut();
            message.msg_iovlen = count as usize;
            // SAFETY: by the caller; a header of ours around its parts.
            unsafe { receive_message(call, fd, &raw mut message) }
        }
        Kind::Other => {
            let mut patience = Patience::new(call, fd, Side::Receiving);
            loop {
                match transfer(flags | libc::RWF_NOWAIT) {
                    Err(Errno(libc::EAGAIN)) => {}
                    Err(Errno(libc::EOPNOTSUPP)) => {
                        break blocking(&mut patience, libc::POLLIN, move || transfer(flags));
                    }
                    done => break done,
                }
                patience.wait()?;
            }
        }
    }
    .map(|count| count as ssize_t)
}

/// write(2).
///
/// # Safety
///
/// The arguments are as write(2) asks.
pub(crate) unsafe fn write(
    call: &Call,
    fd: RawFd,
    buf: *const c_void,
    len: size_t,
) -> Result<ssize_t, Errno> {
    match kind(fd)? {
        // SAFETY: by the caller.
        Kind::Socket => unsafe { send_to(call, fd, buf, len, 0, ptr::null(), 0) },
        // As in `read`.
        _ if len == 0 => {
            // SAFETY: by the caller.
            unsafe { kernel!(libc::SYS_write, fd, buf, 0) }.map(|count| count as ssize_t)
        }
        _ => {
            let part = iovec { iov_base: buf.cast_mut(), iov_len: len.min(MAX_TRANSFER) };
            // SAFETY: by the caller.
            unsafe { write_parts(call, fd, &raw const part, 1, 0) }
        }
    }
}

/// pwritev2(2) at the current position; without flags that is writev(2).
///
/// # Safety
///
/// The arguments are as writev(2) asks.
pub(crate) unsafe fn write_parts(
    call: &Call,
    fd: RawFd,
    parts: *const iovec,
    count: c_int,
    flags: c_int,
) -> Result<ssize_t, Errno> {
    // SAFETY: by the caller.
    let len = unsafe { total(parts, count.max(0) as usize) };
    let at = parts as usize;
    // SAFETY: by the caller, who waits until it is over.
    let transfer = move |parts: usize, count: c_int, flags: c_int| unsafe {
        kernel!(libc::SYS_pwritev2, fd, parts, count, -1isize, -1isize, flags)
    };
    let kind = kind(fd)?;
    // Of nothing a socket is told nothing: it is no empty datagram.
    if flags & libc::RWF_NOWAIT != 0 || len == 0 {
        return transfer(at, count, flags).map(|count| count as ssize_t);
    }
    match kind {
        Kind::Disk => call.offload(move || transfer(at, count, flags))?,
        Kind::Socket => {
            // SAFETY: all zeros is an empty message.
            let mut message: msghdr = unsafe { zeroed() };
            message.msg_iov = parts.cast_mut();
            message.msg_iovlen = count as usize;
            // SAFETY: by the caller; a header of ours around its parts.
            unsafe { send_message(call, fd, &raw const message) }
        }
        Kind::Other => {
            let mut patience = Patience::new(call, fd, Side::Sending);
            let mut done = 0;
            loop {
                // SAFETY: by the caller: the kernel has taken these parts.
                let mut rest =
                    (done > 0).then(|| unsafe { Rest::new(parts, count as usize, done) });
                let (at, count) = match &mut rest {
                    Some(rest) => {
                        let (at, count) = rest.parts();
                        (at as usize, count as c_int)
                    }
                    None => (at, count),
                };
                match transfer(at, count, flags | libc::RWF_NOWAIT) {
                    Ok(count) => {
                        done += count;
                        if done >= len {
                            break Ok(done);
                        }
                        patience.progress();
                    }
                    Err(Errno(libc::EAGAIN)) => {}
                    Err(Errno(libc::EOPNOTSUPP)) => {
                        // SAFETY: parts that are there, of which the first has bytes.
                        let piece = unsafe { first_piece(at as *const iovec, count as usize) };
                        let piece_at = &raw const piece as usize;
                        let written = blocking(&mut patience, libc::POLLOUT, move || {
                            transfer(piece_at, 1, flags)
                        });
                        match written {
                            Ok(count) => {
                                done += count;
                                if done >= len || count < piece.iov_len {
                                    break Ok(done);
                                }
                                patience.progress();
                                continue;
                            }
                            Err(_) if done > 0 => break Ok(done),
                            Err(error) => break told_of_peer(Err(error)),
                        }
                    }
                    Err(_) if done > 0 => break Ok(done),
                    Err(error) => break Err(error),
                }
                match patience.wait() {
                    Ok(()) => {}
                    Err(_) if done > 0 => break Ok(done),
                    Err(error) => break Err(error),
                }
            }
        }
    }
    .map(|count| count as ssize_t)
}

/// As many bytes of scattered parts as go at once where there is room at all: what a slow reader keeps
/// waiting beyond them is the fiber, and not a helper.
///
/// # Safety
///
/// There are as many parts, of which one has bytes.
unsafe fn first_piece(parts: *const iovec, count: usize) -> iovec {
    let parts = (0..count).map(|index| {
        // SAFETY: by the caller.
        unsafe { parts.add(index).read() }
    });
    let mut first = parts
        .into_iter()
        .find(|part| part.iov_len > 0)
        .unwrap_or(iovec { iov_base: ptr::null_mut(), iov_len: 0 });
    first.iov_len = first.iov_len.min(libc::PIPE_BUF);
    first
}

/// A transfer that makes no promise not to wait: a helper makes it once it is announced, since
/// somebody else may be faster.
fn blocking(
    patience: &mut Patience<'_>,
    events: i16,
    transfer: impl Fn() -> Result<usize, Errno> + Send,
) -> Result<usize, Errno> {
    let fd = patience.descriptor().fd;
    if is_nonblocking(fd)? {
        return transfer();
    }
    terminal::keep_to_foreground(patience.call(), fd, events)?;
    while seen(fd, events) == 0 {
        patience.wait()?;
        terminal::keep_to_foreground(patience.call(), fd, events)?;
    }
    told_of_peer(patience.call().offload(transfer)?)
}
