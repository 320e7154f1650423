//! One operation as a submission queue entry.

use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use linux_raw_sys::io_uring::{self as abi, io_uring_op as code};

use super::ring::Sqe;
use crate::op::{Key, MAX_TRANSFER, Op};
use crate::sys::errno;

/// `RWF_NOSIGNAL`, which the libc crate does not name yet.
const NO_SIGNAL: i32 = 0x100;

/// The empty path of `AT_EMPTY_PATH`.
const EMPTY_PATH: &std::ffi::CStr = c"";

/// Writes `op` as an entry. `None` for what the engine does by itself (timers) and what it does at
/// once by a system call, because it never waits.
#[inline]
pub(super) fn encode(key: Key, op: &Op) -> Option<Sqe> {
    let mut sqe = Sqe { user_data: key.bits(), ..Sqe::default() };
    match *op {
        Op::Timer { .. }
        | Op::Socket { .. }
        | Op::SocketPair { .. }
        | Op::Bind { .. }
        | Op::Listen { .. }
        | Op::LocalAddress { .. }
        | Op::PeerAddress { .. }
        | Op::Duplicate { .. }
        | Op::Shutdown { .. }
        | Op::Close { .. } => return None,
        Op::Nop => sqe.opcode = code::IORING_OP_NOP as u8,
        Op::Poll { fd, events } => {
            sqe.opcode = code::IORING_OP_POLL_ADD as u8;
            sqe.fd = fd;
            sqe.op_flags = poll_events(events.0 as u16);
        }
        Op::Recv { fd, buf, len, flags } => {
            sqe.opcode = code::IORING_OP_RECV as u8;
            sqe.fd = fd;
            sqe.addr = buf as u64;
            sqe.len = transfer(len);
            sqe.op_flags = flags as u32;
        }
        Op::Send { fd, buf, len, flags } => {
            sqe.opcode = code::IORING_OP_SEND as u8;
            sqe.fd = fd;
            sqe.addr = buf as u64;
            sqe.len = transfer(len);
            sqe.op_flags = (flags | libc::MSG_NOSIGNAL) as u32;
        }
        Op::RecvMsg { fd, msg, flags } => {
            sqe.opcode = code::IORING_OP_RECVMSG as u8;
            sqe.fd = fd;
            sqe.addr = msg as u64;
            sqe.len = 1;
            sqe.op_flags = (flags | libc::MSG_CMSG_CLOEXEC) as u32;
        }
        Op::SendMsg { fd, msg, flags } => {
            sqe.opcode = code::IORING_OP_SENDMSG as u8;
            sqe.fd = fd;
            sqe.addr = msg as u64;
            sqe.len = 1;
            sqe.op_flags = (flags | libc::MSG_NOSIGNAL) as u32;
        }
        Op::Accept { fd, addr, addr_len } => {
            sqe.opcode = code::IORING_OP_ACCEPT as u8;
            sqe.fd = fd;
            sqe.addr = addr as u64;
            sqe.off = addr_len as u64;
            sqe.op_flags = libc::SOCK_CLOEXEC as u32;
        }
        Op::Connect { fd, addr, addr_len } => {
            sqe.opcode = code::IORING_OP_CONNECT as u8;
            sqe.fd = fd;
            sqe.addr = addr as u64;
            sqe.off = u64::from(addr_len);
        }
        Op::Read { fd, buf, len, offset } => {
            sqe.opcode = code::IORING_OP_READ as u8;
            sqe.fd = fd;
            sqe.addr = buf as u64;
            sqe.len = transfer(len);
            sqe.off = offset;
        }
        Op::Write { fd, buf, len, offset } => {
            sqe.opcode = code::IORING_OP_WRITE as u8;
            sqe.fd = fd;
            sqe.addr = buf as u64;
            sqe.len = transfer(len);
            sqe.off = offset;
            sqe.op_flags = quiet_write_flags();
        }
        Op::Sync { fd, data_only } => {
            sqe.opcode = code::IORING_OP_FSYNC as u8;
            sqe.fd = fd;
            sqe.op_flags = if data_only { abi::IORING_FSYNC_DATASYNC } else { 0 };
        }
        Op::Open { dir, path, flags, mode } => {
            sqe.opcode = code::IORING_OP_OPENAT as u8;
            sqe.fd = dir;
            sqe.addr = path as u64;
            sqe.op_flags = (flags | libc::O_CLOEXEC) as u32;
            sqe.len = mode;
        }
        Op::Metadata { fd, out } => {
            sqe.opcode = code::IORING_OP_STATX as u8;
            sqe.fd = fd;
            sqe.addr = EMPTY_PATH.as_ptr() as u64;
            sqe.off = out as u64;
            sqe.op_flags = libc::AT_EMPTY_PATH as u32;
            sqe.len = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
        }
    }
    Some(sqe)
}

/// A multishot poll, for the engine's bell.
pub(super) fn poll_multishot(key: Key, fd: i32) -> Sqe {
    Sqe {
        opcode: code::IORING_OP_POLL_ADD as u8,
        fd,
        len: abi::IORING_POLL_ADD_MULTI,
        op_flags: poll_events(libc::POLLIN as u16),
        user_data: key.bits(),
        ..Sqe::default()
    }
}

/// Does nothing: what stands where an entry was taken back.
pub(super) fn nop(key: Key) -> Sqe {
    Sqe { opcode: code::IORING_OP_NOP as u8, user_data: key.bits(), ..Sqe::default() }
}

/// A request to cancel `target`.
pub(super) fn cancel(key: Key, target: Key) -> Sqe {
    Sqe {
        opcode: code::IORING_OP_ASYNC_CANCEL as u8,
        fd: -1,
        addr: target.bits(),
        user_data: key.bits(),
        ..Sqe::default()
    }
}

/// A request to cancel everything there is (5.19).
pub(super) fn cancel_all(key: Key) -> Sqe {
    Sqe {
        opcode: code::IORING_OP_ASYNC_CANCEL as u8,
        fd: -1,
        op_flags: abi::IORING_ASYNC_CANCEL_ANY | abi::IORING_ASYNC_CANCEL_ALL,
        user_data: key.bits(),
        ..Sqe::default()
    }
}

/// `RWF_NOSIGNAL` where the kernel has it (6.18), asked once of a pipe without a reader. Where it has
/// not, a write to such a pipe raises `SIGPIPE`, which Rust programs ignore unless told otherwise.
fn quiet_write_flags() -> u32 {
    static FLAGS: OnceLock<u32> = OnceLock::new();
    *FLAGS.get_or_init(|| {
        let Ok((reader, writer)) = std::io::pipe() else { return 0 };
        drop(reader);
        let byte = [0u8; 1];
        let part = libc::iovec { iov_base: byte.as_ptr().cast_mut().cast(), iov_len: 1 };
        // SAFETY: reads one byte of a local. A kernel that does not know the flag refuses the call
        // before it looks at the pipe, so there is no signal either way.
        let res = unsafe { libc::pwritev2(writer.as_raw_fd(), &raw const part, 1, -1, NO_SIGNAL) };
        if res < 0 && errno() == libc::EPIPE { NO_SIGNAL as u32 } else { 0 }
    })
}

/// What one transfer may move.
#[inline]
fn transfer(len: usize) -> u32 {
    len.min(MAX_TRANSFER) as u32
}

/// Poll bits as the 32-bit field wants them: its halves are swapped on big-endian machines.
const fn poll_events(events: u16) -> u32 {
    let events = events as u32;
    if cfg!(target_endian = "big") { events.rotate_left(16) } else { events }
}
