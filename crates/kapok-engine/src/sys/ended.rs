//! Receives of datagrams after the end.
//!
//! recv(2) waits no longer once its socket was shut down for receiving, and answers 0. But asked not
//! to wait, or on a descriptor with `O_NONBLOCK`, it goes on saying `EAGAIN`: only poll(2) tells of
//! the end then.

use crate::op::{Op, Readiness};
use crate::sys::{perform, poll_one};

/// Flags of a receive under which `EAGAIN` means that there is nothing to receive.
pub(crate) const ORDINARY: i32 = libc::MSG_WAITALL | IGNORED_BY_RECEIVES;

/// Flags of a receive that change what it takes, and not when.
const PEEK: i32 = libc::MSG_PEEK | libc::MSG_TRUNC;

/// Flags that callers set out of habit.
#[cfg(not(any(target_os = "macos", target_os = "ios")))]
const IGNORED_BY_RECEIVES: i32 = libc::MSG_NOSIGNAL | libc::MSG_CMSG_CLOEXEC;
#[cfg(any(target_os = "macos", target_os = "ios"))]
const IGNORED_BY_RECEIVES: i32 = 0;

/// Whether `op` is a receive, one that may wait, from a socket that was shut down for receiving.
/// What came before that is still to be had; after it nothing comes.
pub(crate) fn is_at_end(op: &Op) -> bool {
    let fd = match *op {
        Op::Recv { fd, flags, .. } | Op::RecvMsg { fd, flags, .. }
            if flags & !(ORDINARY | PEEK) == 0 =>
        {
            fd
        }
        Op::Read { fd, .. } => fd,
        _ => return false,
    };
    let closed = Readiness::READ_CLOSED;
    Readiness(poll_one(fd, closed, 0).max(0) as i16).intersects(closed)
}

/// Says in the header of a receive, if it has one, that nothing came.
///
/// # Safety
///
/// The header is valid for writing.
pub(crate) unsafe fn describe_end(op: &Op) {
    if let Op::RecvMsg { msg, .. } = *op {
        // SAFETY: the caller's promise.
        unsafe {
            (*msg).msg_namelen = 0;
            (*msg).msg_controllen = 0 as _;
            (*msg).msg_flags = 0;
        }
    }
}

/// What an operation comes to that was refused with `-EAGAIN`: that, unless it is a receive, one
/// that may wait, from a socket that was shut down for receiving. That one is tried once more, for
/// what came before the end, and then it is 0. Never waits.
///
/// # Safety
///
/// That of [`perform`].
pub unsafe fn outcome_of_refused(op: &Op) -> i32 {
    if !is_at_end(op) {
        return -libc::EAGAIN;
    }
    // Not every kernel can read(2) from a socket without waiting.
    let again = match *op {
        Op::Read { fd, buf, len, .. } => Op::Recv { fd, buf, len, flags: 0 },
        op => op,
    };
    // SAFETY: by the caller; of a read, the same memory.
    match unsafe { perform(&again, false) } {
        res if res == -libc::EAGAIN => {
            // SAFETY: by the caller: the header is lent for writing.
            unsafe { describe_end(op) };
            0
        }
        res => res,
    }
}
