//! A submission queue entry as the operation that it was made from.
//!
//! Needed once in the life of a ring: when it can no longer be entered, what the kernel has not seen
//! is carried out by another engine.

use linux_raw_sys::io_uring::{self as abi, io_uring_op as code};

use super::poll::poll_field;
use super::{BUFFER_SELECT, Entry, FUTEX_PRIVATE};
use crate::op::{Op, Readiness};

/// The operation of an entry that `uring::encode` wrote. `None` for others.
pub(crate) fn decode(sqe: &Entry) -> Option<Op> {
    let Entry { fd, addr, off, op_flags, .. } = *sqe;
    let (len, flags) = (sqe.len as usize, op_flags as i32);
    // Addresses that were pointers: exposed by `encode`, in this process.
    let address = addr as usize;
    let offset = off as usize;
    let is = |known: code| u32::from(sqe.opcode) == known as u32;
    Some(if is(code::IORING_OP_NOP) {
        Op::Nop
    } else if is(code::IORING_OP_POLL_ADD) && sqe.len == 0 {
        Op::Poll { fd, events: Readiness(poll_field(op_flags) as i16) }
    } else if is(code::IORING_OP_RECV) && sqe.flags & BUFFER_SELECT != 0 {
        Op::RecvPooled { fd }
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
    } else if is(code::IORING_OP_FUTEX_WAIT) {
        Op::FutexWait {
            word: std::ptr::with_exposed_provenance(address),
            expected: off as u32,
            mask: sqe.addr3 as u32,
            shared: fd & FUTEX_PRIVATE == 0,
        }
    } else {
        return None;
    })
}
