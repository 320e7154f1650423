//! A submission queue entry as the operation that it was made from.
//!
//! Needed once in the life of a ring: when it can no longer be entered, what the kernel has not seen
//! is carried out by another engine.

use linux_raw_sys::io_uring::{self as abi, io_uring_op as code};

use super::ring::Sqe;
use crate::op::{Op, Readiness};

/// The operation of an entry that [`encode`](super::encode::encode) wrote. `None` for others.
pub(super) fn decode(sqe: &Sqe) -> Option<Op> {
    let Sqe { fd, addr, off, op_flags, .. } = *sqe;
    let (len, flags) = (sqe.len as usize, op_flags as i32);
    // Addresses that were pointers: exposed by `encode`, in this process.
    let address = addr as usize;
    let offset = off as usize;
    let is = |known: code| u32::from(sqe.opcode) == known as u32;
    Some(if is(code::IORING_OP_NOP) {
        Op::Nop
    } else if is(code::IORING_OP_POLL_ADD) && sqe.len == 0 {
        Op::Poll { fd, events: Readiness(poll_events(op_flags) as i16) }
    } else if is(code::IORING_OP_RECV) {
        Op::Recv { fd, buf: std::ptr::with_exposed_provenance_mut(address), len, flags }
    } else if is(code::IORING_OP_SEND) {
        Op::Send { fd, buf: std::ptr::with_exposed_provenance(address), len, flags }
    } else if is(code::IORING_OP_RECVMSG) {
        Op::RecvMsg { fd, msg: std::ptr::with_exposed_provenance_mut(address), flags }
    } else if is(code::IORING_OP_SENDMSG) {
        Op::SendMsg { fd, msg: std::ptr::with_exposed_provenance(address), flags }
    } else if is(code::IORING_OP_ACCEPT) {
        Op::Accept {
            fd,
            addr: std::ptr::with_exposed_provenance_mut(address),
            addr_len: std::ptr::with_exposed_provenance_mut(offset),
        }
    } else if is(code::IORING_OP_CONNECT) {
        let addr = std::ptr::with_exposed_provenance(address);
        Op::Connect { fd, addr, addr_len: offset as libc::socklen_t }
    } else if is(code::IORING_OP_READ) {
        Op::Read { fd, buf: std::ptr::with_exposed_provenance_mut(address), len, offset: off }
    } else if is(code::IORING_OP_WRITE) {
        Op::Write { fd, buf: std::ptr::with_exposed_provenance(address), len, offset: off }
    } else if is(code::IORING_OP_FSYNC) {
        Op::Sync { fd, data_only: op_flags & abi::IORING_FSYNC_DATASYNC != 0 }
    } else if is(code::IORING_OP_OPENAT) {
        let path = std::ptr::with_exposed_provenance(address);
        Op::Open { dir: fd, path, flags, mode: sqe.len }
    } else if is(code::IORING_OP_STATX) {
        Op::Metadata { fd, out: std::ptr::with_exposed_provenance_mut(offset) }
    } else {
        return None;
    })
}

/// Poll bits from the 32-bit field: its halves are swapped on big-endian machines.
const fn poll_events(field: u32) -> u16 {
    (if cfg!(target_endian = "big") { field.rotate_left(16) } else { field }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Key;
    use crate::uring::encode::{cancel, cancel_all, encode, poll_multishot};

    /// Every operation that goes through the ring, with values of which no two are alike.
    fn operations() -> Vec<Op> {
        let (fd, len) = (0x0102_0304, 0x1112_1314);
        let bytes = std::ptr::without_provenance_mut::<u8>(0x2122_2324_2526);
        let message = std::ptr::without_provenance_mut::<libc::msghdr>(0x3132_3334_3536);
        let storage = std::ptr::without_provenance_mut::<libc::sockaddr_storage>(0x4142_4344_4546);
        let room = std::ptr::without_provenance_mut::<libc::socklen_t>(0x5152_5354_5556);
        let path = std::ptr::without_provenance::<libc::c_char>(0x6162_6364_6566);
        let out = std::ptr::without_provenance_mut::<libc::statx>(0x7172_7374_7576);
        let offset = 0x8182_8384_8586;
        let flags = libc::MSG_PEEK;
        vec![
            Op::Nop,
            Op::Poll { fd, events: Readiness::READABLE.union(Readiness::READ_CLOSED) },
            Op::Recv { fd, buf: bytes, len, flags },
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
        assert_eq!(names.len(), 13, "an operation is missing here: {names:?}");
    }

    #[test]
    fn the_engines_own_entries_are_nobodys_operations() {
        let key = Key::new(0, Key::RESERVED_GENERATION);
        for sqe in [cancel(key, Key::new(1, 2)), cancel_all(key), poll_multishot(key, 7)] {
            assert!(decode(&sqe).is_none(), "{sqe:?}");
        }
    }
}
