//! Entries of io_uring as system calls.
//!
//! An entry that says the same as one of the other operations of [`Op`] is carried out as that one, so
//! that it waits and is cancelled alike. The rest are calls here; what has none is refused with
//! `-EOPNOTSUPP`.

mod calls;
mod command;
mod recall;
mod waiting;

use linux_raw_sys::io_uring as uapi;

use crate::entry::{ASYNC, Entry, abi, decode, poll_field};
use crate::op::{Op, Readiness};
use crate::sys::perform;

pub(crate) use recall::{Recall, is_unlimited, wait};
pub(crate) use waiting::time_limit;

/// What an entry is answered with that has no system call.
pub(crate) const REFUSED: i32 = -libc::EOPNOTSUPP;

/// How a readiness engine goes about an entry.
#[derive(Debug)]
pub(crate) enum Way {
    /// As this operation.
    As(Op),
    /// By a call that never waits.
    AtOnce,
    /// By a call that does not wait, and by a thread if it would have to.
    Try,
    /// By a thread.
    Thread,
    /// It is about time, or about what the engine has pending.
    Engine,
}

/// How a readiness engine goes about `entry`.
pub(crate) fn way(entry: &Entry) -> Way {
    if let Some(op) = equivalent(entry) {
        return Way::As(op);
    }
    if is_refused(entry) {
        return Way::AtOnce;
    }
    match entry.opcode {
        abi::TIMEOUT | abi::TIMEOUT_REMOVE | abi::POLL_REMOVE | abi::ASYNC_CANCEL => Way::Engine,
        abi::EPOLL_CTL | abi::PIPE | abi::FUTEX_WAKE => Way::AtOnce,
        abi::URING_CMD if !command::may_block(entry) => Way::AtOnce,
        abi::SEND => Way::Try,
        _ => Way::Thread,
    }
}

/// The operation that `entry` says as well, if there is one.
fn equivalent(entry: &Entry) -> Option<Op> {
    const POLL_FIRST: u16 = uapi::IORING_RECVSEND_POLL_FIRST as u16;
    const ZERO_COPY: u16 =
        POLL_FIRST | (uapi::IORING_RECVSEND_FIXED_BUF | uapi::IORING_SEND_ZC_REPORT_USAGE) as u16;
    const ACCEPT: u16 = (uapi::IORING_ACCEPT_MULTISHOT | uapi::IORING_ACCEPT_POLL_FIRST) as u16;
    const CLOSE_ON_EXEC: u32 = libc::SOCK_CLOEXEC as u32;

    let Entry { opcode, ioprio, fd, off, addr, op_flags, file_index, .. } = *entry;
    // It is always by a worker, or never.
    if entry.flags & !ASYNC != 0 || file_index != 0 {
        return None;
    }
    let plain = |opcode| decode::decode(&Entry { opcode, flags: 0, ioprio: 0, ..*entry });
    match opcode {
        abi::NOP if op_flags == 0 => Some(Op::Nop),
        abi::POLL_ADD => Some(Op::Poll { fd, events: Readiness(poll_field(op_flags) as i16) }),
        abi::RECV | abi::RECVMSG if ioprio & !POLL_FIRST == 0 => plain(opcode),
        abi::SEND if ioprio & !POLL_FIRST == 0 && off == 0 => plain(abi::SEND),
        abi::SEND_ZC if ioprio & !ZERO_COPY == 0 && off == 0 => plain(abi::SEND),
        abi::SENDMSG if ioprio & !POLL_FIRST == 0 => plain(abi::SENDMSG),
        abi::SENDMSG_ZC if ioprio & !ZERO_COPY == 0 => plain(abi::SENDMSG),
        abi::ACCEPT if ioprio & !ACCEPT == 0 && op_flags & !CLOSE_ON_EXEC == 0 => {
            plain(abi::ACCEPT)
        }
        abi::CONNECT => plain(abi::CONNECT),
        abi::READ | abi::READ_FIXED if op_flags == 0 => plain(abi::READ),
        abi::WRITE | abi::WRITE_FIXED if op_flags == 0 => plain(abi::WRITE),
        abi::FSYNC if off == 0 && entry.len == 0 => plain(abi::FSYNC),
        abi::SOCKET if op_flags == 0 => {
            Some(Op::Socket { domain: fd, kind: off as i32, protocol: entry.len as i32 })
        }
        abi::BIND => {
            let addr = std::ptr::with_exposed_provenance(addr as usize);
            Some(Op::Bind { fd, addr, addr_len: off as libc::socklen_t })
        }
        abi::LISTEN => Some(Op::Listen { fd, backlog: entry.len as i32 }),
        abi::SHUTDOWN => Some(Op::Shutdown { fd, how: entry.len as i32 }),
        abi::CLOSE => Some(Op::Close { fd }),
        _ => None,
    }
}

/// Whether there is no system call for `entry`, whatever its kind: it is about direct descriptors,
/// provided buffers, a chain, or it is to land again and again.
fn is_refused(entry: &Entry) -> bool {
    const SOCKET_FLAGS: u16 = (uapi::IORING_RECVSEND_POLL_FIRST
        | uapi::IORING_RECVSEND_FIXED_BUF
        | uapi::IORING_SEND_ZC_REPORT_USAGE) as u16;
    let makes_direct = entry.file_index != 0
        && matches!(
            entry.opcode,
            abi::OPENAT | abi::OPENAT2 | abi::ACCEPT | abi::SOCKET | abi::PIPE | abi::CLOSE
        );
    let lands_again = match entry.opcode {
        abi::RECV | abi::RECVMSG | abi::SEND | abi::SENDMSG | abi::SEND_ZC | abi::SENDMSG_ZC => {
            entry.ioprio & !SOCKET_FLAGS != 0
        }
        abi::TIMEOUT => entry.op_flags & uapi::IORING_TIMEOUT_MULTISHOT != 0,
        _ => false,
    };
    entry.flags & !ASYNC != 0 || makes_direct || lands_again
}

/// Carries `entry` out by its system call: the result, `-errno`, or [`REFUSED`]. As
/// [`perform`](crate::sys::perform) does.
///
/// # Safety
///
/// That of [`perform`](crate::sys::perform).
pub(super) unsafe fn carry_out(entry: *const Entry, blocking: bool) -> i32 {
    // SAFETY: by the caller.
    let entry = unsafe { entry.read() };
    if let Some(op) = equivalent(&entry) {
        // SAFETY: by the caller.
        let res = unsafe { perform(&op, blocking) };
        // It must not be tried again: the descriptor is gone.
        return if res == -libc::EINTR { 0 } else { res };
    }
    if is_refused(&entry) {
        return REFUSED;
    }
    loop {
        // SAFETY: by the caller.
        let res = unsafe { calls::call(&entry, blocking) };
        match -res {
            libc::EINTR => {}
            libc::EAGAIN if blocking && waiting::await_descriptors(&entry) => {}
            _ => return res,
        }
    }
}
