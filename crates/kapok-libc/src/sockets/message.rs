//! Messages: scattered and gathered, with ancillary data, and several at once.

use std::ffi::{c_int, c_uint};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use libc::{mmsghdr, msghdr, timespec};

use super::transfer::{self, Moved, is_stream};
use crate::call::Call;
use crate::errno::Errno;
use crate::kernel::kernel;
use crate::parts::{Rest, total};
use crate::patience::seen;

/// recvmsg(2).
///
/// # Safety
///
/// `msg` is as recvmsg(2) asks.
pub(super) unsafe fn receive(
    call: &Call,
    fd: RawFd,
    msg: *mut msghdr,
    flags: c_int,
) -> Result<usize, Errno> {
    if flags & libc::MSG_WAITALL == 0 {
        let len = match msg.is_null() {
            true => 0,
            // SAFETY: by the caller.
            false => unsafe { total((*msg).msg_iov, (*msg).msg_iovlen) },
        };
        let attempt = |_, flags: c_int| {
            // SAFETY: by the caller.
            let count = unsafe { kernel!(libc::SYS_recvmsg, fd, msg, flags) }?;
            Ok(Moved { count, complete: true })
        };
        // SAFETY: by the caller.
        return transfer::receive(call, fd, len, flags, attempt, || unsafe { describe_end(msg) });
    }
    // SAFETY: by the caller.
    unsafe { receive_all(call, fd, msg, flags) }
}

/// Says in the header of a receive that nothing came.
///
/// # Safety
///
/// It is one.
unsafe fn describe_end(msg: *mut msghdr) {
    // SAFETY: by the caller.
    unsafe {
        (*msg).msg_namelen = 0;
        (*msg).msg_controllen = 0;
        (*msg).msg_flags = 0;
    }
}

/// recvmsg(2) with `MSG_WAITALL`.
///
/// # Safety
///
/// That of [`receive`].
unsafe fn receive_all(
    call: &Call,
    fd: RawFd,
    msg: *mut msghdr,
    flags: c_int,
) -> Result<usize, Errno> {
    // The header says before the call how much room there is, and afterwards what came.
    // SAFETY: by the caller.
    let (before, len) = unsafe { (msg.read(), total((*msg).msg_iov, (*msg).msg_iovlen)) };
    let peek = flags & libc::MSG_PEEK != 0;
    let attempt = |done: usize, flags: c_int| {
        if done == 0 || peek {
            // SAFETY: the caller's own header, given back as it was.
            let count = unsafe {
                (*msg).msg_namelen = before.msg_namelen;
                (*msg).msg_controllen = before.msg_controllen;
                kernel!(libc::SYS_recvmsg, fd, msg, flags)
            }?;
            // A stream of bytes stops where ancillary data came with them.
            // SAFETY: a header that the kernel has just written.
            return Ok(Moved { count, complete: unsafe { (*msg).msg_controllen } > 0 });
        }
        // SAFETY: by the caller: the kernel has used these parts.
        let mut rest = unsafe { Rest::new(before.msg_iov, before.msg_iovlen, done) };
        let mut next = before;
        next.msg_name = std::ptr::null_mut();
        next.msg_namelen = 0;
        (next.msg_iov, next.msg_iovlen) = rest.parts();
        // SAFETY: a header of ours, whose parts are the rest of the caller's.
        let count = unsafe { kernel!(libc::SYS_recvmsg, fd, &raw mut next, flags) }?;
        // SAFETY: the caller's header.
        unsafe {
            (*msg).msg_controllen = next.msg_controllen;
            (*msg).msg_flags |= next.msg_flags;
        }
        Ok(Moved { count, complete: next.msg_controllen > 0 })
    };
    // SAFETY: by the caller.
    transfer::receive(call, fd, len, flags, attempt, || unsafe { describe_end(msg) })
}

/// sendmsg(2), of what is left of the message after `sent` bytes of it; how many that were.
///
/// # Safety
///
/// `msg` is as sendmsg(2) asks.
pub(super) unsafe fn send(
    call: &Call,
    fd: RawFd,
    msg: *const msghdr,
    flags: c_int,
    sent: usize,
) -> Result<usize, Errno> {
    transfer::send(call, fd, flags, |done, flags| {
        let done = sent + done;
        if done == 0 {
            // SAFETY: by the caller. The header is read here only once the kernel has read it.
            let count = unsafe { kernel!(libc::SYS_sendmsg, fd, msg, flags) }?;
            // SAFETY: as above.
            let len = unsafe { total((*msg).msg_iov, (*msg).msg_iovlen) };
            return Ok(Moved { count, complete: count >= len || !is_stream(fd) });
        }
        // SAFETY: by the caller: the kernel has used this header.
        let mut next = unsafe { msg.read() };
        // SAFETY: as above.
        let len = unsafe { total(next.msg_iov, next.msg_iovlen) };
        // SAFETY: as above.
        let mut rest = unsafe { Rest::new(next.msg_iov, next.msg_iovlen, done) };
        // Descriptors and the like went with the first bytes.
        next.msg_control = std::ptr::null_mut();
        next.msg_controllen = 0;
        (next.msg_iov, next.msg_iovlen) = rest.parts();
        // SAFETY: a header of ours, whose parts are the rest of the caller's.
        let count = unsafe { kernel!(libc::SYS_sendmsg, fd, &raw const next, flags) }?;
        Ok(Moved { count, complete: done + count >= len })
    })
}

/// recvmmsg(2). Its time limit is looked at after each datagram and ends no wait: that is how the
/// system call has it.
///
/// # Safety
///
/// The arguments are as recvmmsg(2) asks.
pub(super) unsafe fn receive_many(
    call: &Call,
    fd: RawFd,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
    limit: *mut timespec,
) -> Result<usize, Errno> {
    let count = count.min(libc::UIO_MAXIOV as c_uint) as usize;
    // SAFETY: by the caller, here and below.
    let given = (!limit.is_null()).then(|| unsafe { limit.read() });
    let end = match given {
        None => None,
        Some(time) if time.tv_sec >= 0 && (0..1_000_000_000).contains(&time.tv_nsec) => {
            // Beyond the end of time is no limit.
            Instant::now().checked_add(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
        }
        Some(_) => return Err(Errno(libc::EINVAL)),
    };
    if count == 0 {
        // SAFETY: by the caller.
        return unsafe { kernel!(libc::SYS_recvmmsg, fd, messages, 0, flags, limit) };
    }
    // Streams have no use for several messages, and the flag would be each message's.
    let flags = flags & !libc::MSG_WAITALL;
    let (mut received, mut flags) = (0, flags);
    while received < count {
        // With a limit one by one, to look at it after each.
        let chunk = if end.is_some() { 1 } else { count - received };
        let next = messages.wrapping_add(received);
        let attempt = |_, flags: c_int| {
            // What went wrong after datagrams have come is for the next call, and is told but once.
            let seen = if received > 0 { seen(fd, libc::POLLIN) } else { 0 };
            if seen & libc::POLLERR != 0 && seen & libc::POLLIN == 0 {
                return Err(Errno(libc::ENOTRECOVERABLE));
            }
            // SAFETY: by the caller: within the array.
            let count = unsafe { kernel!(libc::SYS_recvmmsg, fd, next, chunk, flags, 0) }?;
            Ok(Moved { count, complete: true })
        };
        // SAFETY: as above.
        let at_end = || unsafe { describe_end(&raw mut (*next).msg_hdr) };
        let some = transfer::receive(call, fd, 1, flags, attempt, at_end);
        match some {
            // The end of a datagram socket that was shut down: an empty one, each time.
            // SAFETY: by the caller: within the array.
            Ok(0) => unsafe { (*next).msg_len = 0 },
            Ok(_) => {}
            Err(_) if received > 0 => break,
            Err(error) => return Err(error),
        }
        received += some.map_or(1, |some| some.max(1));
        if flags & libc::MSG_WAITFORONE != 0 {
            flags |= libc::MSG_DONTWAIT;
        }
        if let Some(end) = end {
            let left = end.saturating_duration_since(Instant::now());
            // SAFETY: by the caller; not null.
            unsafe {
                (*limit).tv_sec = left.as_secs() as libc::time_t;
                (*limit).tv_nsec = left.subsec_nanos().into();
            }
            if left.is_zero() {
                break;
            }
        }
    }
    Ok(received)
}

/// sendmmsg(2).
///
/// # Safety
///
/// The arguments are as sendmmsg(2) asks.
pub(super) unsafe fn send_many(
    call: &Call,
    fd: RawFd,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
) -> Result<usize, Errno> {
    let count = count.min(libc::UIO_MAXIOV as c_uint) as usize;
    if count == 0 {
        // SAFETY: no memory is named.
        return unsafe { kernel!(libc::SYS_sendmmsg, fd, messages, 0, flags) };
    }
    for sent in 0..count {
        // SAFETY: by the caller: within the array.
        let res = unsafe {
            let message = messages.add(sent);
            let header = &raw const (*message).msg_hdr;
            send(call, fd, header, flags, 0).map(|len| {
                (*message).msg_len = len as c_uint;
                len >= total((*header).msg_iov, (*header).msg_iovlen)
            })
        };
        match res {
            Ok(true) => {}
            // The next would stand in the middle of this one.
            Ok(false) => return Ok(sent + 1),
            Err(_) if sent > 0 => return Ok(sent),
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}
