//! Sockets. What never waits (socket(2), bind(2), getsockopt(2) and the like) has no hook.

mod connection;
mod message;
pub(crate) mod returned;
mod transfer;

use std::ffi::{c_int, c_uint, c_void};
use std::ptr;

use libc::{mmsghdr, msghdr, size_t, sockaddr, socklen_t, ssize_t, timespec};

use crate::call::Call;
use crate::closing;
use crate::errno::Errno;
use crate::hook::hooks;
use crate::kernel::kernel;
use transfer::Moved;

pub(crate) use connection::{accept_at_last, connect_at_last};
pub(crate) use transfer::never_waits;

hooks! {
    /// recv(2).
    fn recv(fd: c_int, buf: *mut c_void, len: size_t, flags: c_int) -> ssize_t = |call| {
        receive_from(call, fd, buf, len, flags, ptr::null_mut(), ptr::null_mut())
    }

    /// recv(2), as programs with checked buffers call it.
    fn __recv_chk(
        fd: c_int,
        buf: *mut c_void,
        len: size_t,
        room: size_t,
        flags: c_int,
    ) -> ssize_t = |call| {
        crate::hook::check_room(len, room);
        receive_from(call, fd, buf, len, flags, ptr::null_mut(), ptr::null_mut())
    }

    /// recvfrom(2).
    fn recvfrom(
        fd: c_int,
        buf: *mut c_void,
        len: size_t,
        flags: c_int,
        addr: *mut sockaddr,
        addr_len: *mut socklen_t,
    ) -> ssize_t = |call| {
        receive_from(call, fd, buf, len, flags, addr, addr_len)
    }

    /// recvfrom(2), as programs with checked buffers call it.
    fn __recvfrom_chk(
        fd: c_int,
        buf: *mut c_void,
        len: size_t,
        room: size_t,
        flags: c_int,
        addr: *mut sockaddr,
        addr_len: *mut socklen_t,
    ) -> ssize_t = |call| {
        crate::hook::check_room(len, room);
        receive_from(call, fd, buf, len, flags, addr, addr_len)
    }

    /// recvmsg(2).
    fn recvmsg(fd: c_int, msg: *mut msghdr, flags: c_int) -> ssize_t = |call| {
        message::receive(call, fd, msg, flags).map(|count| count as ssize_t)
    }

    /// recvmmsg(2).
    fn recvmmsg(
        fd: c_int,
        messages: *mut mmsghdr,
        count: c_uint,
        flags: c_int,
        limit: *mut timespec,
    ) -> c_int = |call| {
        message::receive_many(call, fd, messages, count, flags, limit).map(|count| count as c_int)
    }

    /// send(2).
    fn send(fd: c_int, buf: *const c_void, len: size_t, flags: c_int) -> ssize_t = |call| {
        send_to(call, fd, buf, len, flags, ptr::null(), 0)
    }

    /// sendto(2).
    fn sendto(
        fd: c_int,
        buf: *const c_void,
        len: size_t,
        flags: c_int,
        addr: *const sockaddr,
        addr_len: socklen_t,
    ) -> ssize_t = |call| {
        send_to(call, fd, buf, len, flags, addr, addr_len)
    }

    /// sendmsg(2).
    fn sendmsg(fd: c_int, msg: *const msghdr, flags: c_int) -> ssize_t = |call| {
        message::send(call, fd, msg, flags, 0).map(|count| count as ssize_t)
    }

    /// shutdown(2).
    fn shutdown(fd: c_int, how: c_int) -> c_int
        = |_call| {
            let done = kernel!(libc::SYS_shutdown, fd, how).map(|_| 0);
            closing::shut_down(fd);
            done
        }
        after {
            closing::shut_down(fd);
        }

    /// sendmmsg(2).
    fn sendmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int = |call| {
        message::send_many(call, fd, messages, count, flags).map(|count| count as c_int)
    }

    /// connect(2).
    fn connect(fd: c_int, addr: *const sockaddr, addr_len: socklen_t) -> c_int = |call| {
        connection::connect(call, fd, addr, addr_len)
    }

    /// accept(2).
    fn accept(fd: c_int, addr: *mut sockaddr, addr_len: *mut socklen_t) -> c_int
        = before {
            // SAFETY: by the caller.
            if let Some(done) = unsafe { connection::accept_returned(fd, addr, addr_len, 0) } {
                return done;
            }
        }
        |call| {
            connection::accept(call, fd, addr, addr_len, 0)
        }

    /// accept4(2).
    fn accept4(
        fd: c_int,
        addr: *mut sockaddr,
        addr_len: *mut socklen_t,
        flags: c_int,
    ) -> c_int
        = before {
            // SAFETY: by the caller.
            if let Some(done) = unsafe { connection::accept_returned(fd, addr, addr_len, flags) } {
                return done;
            }
        }
        |call| {
            connection::accept(call, fd, addr, addr_len, flags)
        }
}

/// recvfrom(2).
///
/// # Safety
///
/// The arguments are as recvfrom(2) asks.
pub(crate) unsafe fn receive_from(
    call: &Call,
    fd: c_int,
    buf: *mut c_void,
    len: size_t,
    flags: c_int,
    addr: *mut sockaddr,
    addr_len: *mut socklen_t,
) -> Result<ssize_t, Errno> {
    let peek = flags & libc::MSG_PEEK != 0;
    let attempt = |done: usize, flags: c_int| {
        let done = if peek { 0 } else { done };
        let (buf, len) = (buf.wrapping_byte_add(done), len - done);
        // SAFETY: by the caller; the rest of the buffer.
        let count = unsafe { kernel!(libc::SYS_recvfrom, fd, buf, len, flags, addr, addr_len) }?;
        Ok(Moved { count, complete: count >= len })
    };
    transfer::receive(call, fd, len, flags, attempt, || {
        if !addr.is_null() && !addr_len.is_null() {
            // Nobody has sent nothing.
            // SAFETY: by the caller.
            unsafe { *addr_len = 0 };
        }
    })
    .map(|count| count as ssize_t)
}

/// recvmsg(2) without flags.
///
/// # Safety
///
/// `msg` is as recvmsg(2) asks.
pub(crate) unsafe fn receive_message(
    call: &Call,
    fd: c_int,
    msg: *mut msghdr,
) -> Result<usize, Errno> {
    // SAFETY: by the caller.
    unsafe { message::receive(call, fd, msg, 0) }
}

/// sendmsg(2) without flags.
///
/// # Safety
///
/// `msg` is as sendmsg(2) asks.
pub(crate) unsafe fn send_message(
    call: &Call,
    fd: c_int,
    msg: *const msghdr,
) -> Result<usize, Errno> {
    // SAFETY: by the caller.
    unsafe { message::send(call, fd, msg, 0, 0) }
}

/// sendto(2).
///
/// # Safety
///
/// The arguments are as sendto(2) asks.
pub(crate) unsafe fn send_to(
    call: &Call,
    fd: c_int,
    buf: *const c_void,
    len: size_t,
    flags: c_int,
    addr: *const sockaddr,
    addr_len: socklen_t,
) -> Result<ssize_t, Errno> {
    let len = len.min(kapok_engine::MAX_TRANSFER);
    transfer::send(call, fd, flags, |done, flags| {
        let (rest, left) = (buf.wrapping_byte_add(done), len - done);
        // SAFETY: by the caller; the rest of the buffer.
        let count = unsafe { kernel!(libc::SYS_sendto, fd, rest, left, flags, addr, addr_len) }?;
        // Datagrams go whole.
        Ok(Moved { count, complete: count >= left || !transfer::is_stream(fd) })
    })
    .map(|count| count as ssize_t)
}
