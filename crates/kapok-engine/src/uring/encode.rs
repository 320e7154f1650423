//! One operation as a submission queue entry.

use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use linux_raw_sys::io_uring::{self as abi, io_uring_op as code};

use super::ring::Sqe;
use crate::entry::{BUFFER_SELECT, Entry, FUTEX_OF_32_BITS, FUTEX_PRIVATE, poll_field};
use crate::op::{Key, MAX_TRANSFER, Op};
use crate::sys::errno;

/// `RWF_NOSIGNAL`, which the libc crate does not name yet.
const NO_SIGNAL: i32 = 0x100;

/// The empty path of `AT_EMPTY_PATH`.
const EMPTY_PATH: &std::ffi::CStr = c"";

/// The group of the engine's own buffers.
pub(super) const BUFFER_GROUP: u16 = 0;

/// Writes `op` as an entry. `None` for what the engine does by itself (timers), what it does at once by
/// a system call, because it never waits, and what is an entry already ([`copy`]).
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
        | Op::Close { .. }
        | Op::Entry { .. } => return None,
        Op::Nop => {
            sqe.opcode = code::IORING_OP_NOP as u8;
            // It works on none, and 0 is one.
            sqe.fd = -1;
        }
        Op::Poll { fd, events } => {
            sqe.opcode = code::IORING_OP_POLL_ADD as u8;
            sqe.fd = fd;
            sqe.op_flags = poll_field(u32::from(events.0 as u16));
        }
        Op::Recv { fd, buf, len, flags } => {
            sqe.opcode = code::IORING_OP_RECV as u8;
            sqe.fd = fd;
            sqe.addr = buf as u64;
            sqe.len = transfer(len);
            sqe.op_flags = flags as u32;
        }
        Op::RecvPooled { fd } => {
            sqe.opcode = code::IORING_OP_RECV as u8;
            sqe.flags = BUFFER_SELECT;
            sqe.fd = fd;
            sqe.buf_group = BUFFER_GROUP;
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
        Op::FutexWait { word, expected, mask, shared } => {
            sqe.opcode = code::IORING_OP_FUTEX_WAIT as u8;
            sqe.fd = FUTEX_OF_32_BITS | if shared { 0 } else { FUTEX_PRIVATE };
            sqe.addr = word as u64;
            sqe.off = u64::from(expected);
            sqe.addr3 = u64::from(mask);
        }
    }
    Some(sqe)
}

/// The entry, under its key.
///
/// # Safety
///
/// It may be read.
pub(super) unsafe fn copy(key: Key, entry: *const Entry) -> Sqe {
    // SAFETY: by the caller.
    Sqe { user_data: key.bits(), ..unsafe { entry.read() } }
}

/// A multishot poll, for the engine's bell.
pub(super) fn poll_multishot(key: Key, fd: i32) -> Sqe {
    Sqe {
        opcode: code::IORING_OP_POLL_ADD as u8,
        fd,
        len: abi::IORING_POLL_ADD_MULTI,
        op_flags: poll_field(u32::from(libc::POLLIN as u16)),
        user_data: key.bits(),
        ..Sqe::default()
    }
}

/// Does nothing: what stands where an entry was taken back.
pub(super) fn nop(key: Key) -> Sqe {
    Sqe { opcode: code::IORING_OP_NOP as u8, fd: -1, user_data: key.bits(), ..Sqe::default() }
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
    if let Some(flags) = FLAGS.get() {
        return *flags;
    }
    // Without a descriptor to spare it is asked again next time.
    let Ok((reader, writer)) = std::io::pipe() else { return 0 };
    *FLAGS.get_or_init(|| {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::decode::decode;
    use crate::op::Readiness;

    /// Every operation that goes through the ring, with values of which no two are alike.
    fn operations() -> Vec<Op> {
        let (fd, len) = (0x0102_0304, 0x1112_1314);
        let bytes = std::ptr::without_provenance_mut::<u8>(0x2122_2324_2526);
        let message = std::ptr::without_provenance_mut::<libc::msghdr>(0x3132_3334_3536);
        let storage = std::ptr::without_provenance_mut::<libc::sockaddr_storage>(0x4142_4344_4546);
        let room = std::ptr::without_provenance_mut::<libc::socklen_t>(0x5152_5354_5556);
        let path = std::ptr::without_provenance::<libc::c_char>(0x6162_6364_6566);
        let out = std::ptr::without_provenance_mut::<libc::statx>(0x7172_7374_7576);
        let word = std::ptr::without_provenance::<u32>(0x9192_9394_9598);
        let offset = 0x8182_8384_8586;
        let flags = libc::MSG_PEEK;
        vec![
            Op::Nop,
            Op::Poll { fd, events: Readiness::READABLE.union(Readiness::READ_CLOSED) },
            Op::Recv { fd, buf: bytes, len, flags },
            Op::RecvPooled { fd },
            Op::Send { fd, buf: bytes, len, flags: flags | libc::MSG_NOSIGNAL },
            Op::RecvMsg { fd, msg: message, flags: flags | libc::MSG_CMSG_CLOEXEC },
            Op::SendMsg { fd, msg: message, flags: flags | libc::MSG_NOSIGNAL },
            Op::Accept { fd, addr: storage, addr_len: room },
            Op::Connect { fd, addr: storage, addr_len: 28 },
            Op::Read { fd, buf: bytes, len, offset },
            Op::Read { fd, buf: bytes, len, offset: Op::CURRENT_POSITION },
            Op::Write { fd, buf: bytes, len, offset },
            Op::Sync { fd, data_only: true },
            Op::Sync { fd, data_only: false },
            Op::Open { dir: libc::AT_FDCWD, path, flags: libc::O_CLOEXEC, mode: 0o640 },
            Op::Metadata { fd, out },
            Op::FutexWait { word, expected: 3, mask: 5, shared: false },
            Op::FutexWait { word, expected: 3, mask: 5, shared: true },
        ]
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        let operations = operations();
        for op in &operations {
            let sqe = encode(Key::new(1, 2), op).expect("it goes through the ring");
            let again = decode(&sqe).expect("an operation");
            assert_eq!(format!("{again:?}"), format!("{op:?}"));
        }
        let mut names: Vec<_> = operations.iter().map(Op::name).collect();
        names.dedup();
        assert_eq!(names.len(), 14, "an operation is missing here: {names:?}");
    }

    #[test]
    fn the_engines_own_entries_are_nobodys_operations() {
        let key = Key::new(0, Key::RESERVED_GENERATION);
        for sqe in [cancel(key, Key::new(1, 2)), cancel_all(key), poll_multishot(key, 7)] {
            assert!(decode(&sqe).is_none(), "{sqe:?}");
        }
    }

    /// An operation, and the entry that says the same.
    fn pairs() -> Vec<(Op, Entry)> {
        let (fd, len, flags) = (0x0102_0304, 0x1112_1314, libc::MSG_PEEK);
        let bytes = std::ptr::without_provenance_mut::<u8>(0x2122_2324_2526);
        let message = std::ptr::without_provenance_mut::<libc::msghdr>(0x3132_3334_3536);
        let storage = std::ptr::without_provenance_mut::<libc::sockaddr_storage>(0x4142_4344_4546);
        let room = std::ptr::without_provenance_mut::<libc::socklen_t>(0x5152_5354_5556);
        let path = std::ptr::without_provenance::<libc::c_char>(0x6162_6364_6566);
        let out = std::ptr::without_provenance_mut::<libc::statx>(0x7172_7374_7576);
        let offset = 0x8182_8384_8586;
        let quiet = flags | libc::MSG_NOSIGNAL;
        let cloexec = flags | libc::MSG_CMSG_CLOEXEC;
        let events = Readiness::READABLE.union(Readiness::READ_CLOSED);
        let open_flags = libc::O_RDWR | libc::O_CLOEXEC;
        let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
        let here = libc::AT_EMPTY_PATH;
        let word = std::ptr::without_provenance::<u32>(0x9192_9394_9598);
        let private = FUTEX_OF_32_BITS | FUTEX_PRIVATE;
        let written =
            Entry { op_flags: quiet_write_flags(), ..Entry::write(fd, bytes, len, offset) };
        vec![
            (Op::Nop, Entry::nop()),
            (Op::Poll { fd, events }, Entry::poll_add(fd, events.0 as u32)),
            (Op::Recv { fd, buf: bytes, len, flags }, Entry::recv(fd, bytes, len, flags)),
            (
                Op::RecvPooled { fd },
                Entry::recv(fd, std::ptr::null_mut(), 0, 0).with_buffer_group(BUFFER_GROUP),
            ),
            (Op::Send { fd, buf: bytes, len, flags }, Entry::send(fd, bytes, len, quiet)),
            (Op::RecvMsg { fd, msg: message, flags }, Entry::recvmsg(fd, message, cloexec as u32)),
            (Op::SendMsg { fd, msg: message, flags }, Entry::sendmsg(fd, message, quiet as u32)),
            (
                Op::Accept { fd, addr: storage, addr_len: room },
                Entry::accept(fd, storage, room, libc::SOCK_CLOEXEC),
            ),
            (Op::Connect { fd, addr: storage, addr_len: 28 }, Entry::connect(fd, storage, 28)),
            (Op::Read { fd, buf: bytes, len, offset }, Entry::read(fd, bytes, len, offset)),
            (Op::Write { fd, buf: bytes, len, offset }, written),
            (Op::Sync { fd, data_only: true }, Entry::fsync(fd, abi::IORING_FSYNC_DATASYNC)),
            (Op::Sync { fd, data_only: false }, Entry::fsync(fd, 0)),
            (
                Op::Open { dir: fd, path, flags: libc::O_RDWR, mode: 0o640 },
                Entry::openat(fd, path, open_flags, 0o640),
            ),
            (Op::Metadata { fd, out }, Entry::statx(fd, EMPTY_PATH.as_ptr(), here, mask, out)),
            (
                Op::FutexWait { word, expected: 3, mask: 5, shared: false },
                Entry::futex_wait(word, 3, 5, private as u32, 0),
            ),
            (
                Op::FutexWait { word, expected: 3, mask: 5, shared: true },
                Entry::futex_wait(word, 3, 5, FUTEX_OF_32_BITS as u32, 0),
            ),
        ]
    }

    #[test]
    fn what_there_is_as_an_operation_and_as_an_entry_is_encoded_alike() {
        let key = Key::new(1, 2);
        let mut names = Vec::new();
        for (op, entry) in pairs() {
            let operation = encode(key, &op).expect("it goes through the ring");
            // SAFETY: it is a local.
            let entry = unsafe { copy(key, &raw const entry) };
            assert_eq!(operation, entry, "{op:?}");
            assert_eq!(operation.user_data, key.bits());
            names.push(op.name());
        }
        names.dedup();
        let ring: Vec<_> = operations().iter().map(Op::name).collect();
        let missing: Vec<_> = ring.iter().filter(|name| !names.contains(name)).collect();
        assert!(missing.is_empty(), "operations without their entry: {missing:?}");
    }

    #[test]
    fn an_operation_is_no_larger_for_the_entries() {
        assert_eq!(size_of::<Op>(), 32);
    }
}
