//! From ring to ring.
//!
//! A message lands in the other ring's turn under the key that the sender chooses, which is a
//! [message key](Key::message): no operation has one.

use std::os::fd::RawFd;

use linux_raw_sys::io_uring as uapi;

use super::direct::Slot;
use super::table::{Elsewhere, operations};
use super::{Entry, abi};
use crate::op::Key;

/// `ring` is the descriptor of the ring that gets it. `key` is a [message key](Key::message): with
/// any other the entry is refused when it is submitted, with `-EINVAL`, whosever the ring is.
impl Entry {
    /// Has `res` land under `key` over there. Lands with 0 here.
    pub fn msg_ring(ring: RawFd, res: i32, key: Key, flags: u32) -> Entry {
        let entry = Entry::new(abi::MSG_RING, ring, 0, res as u32, key.bits());
        Entry { op_flags: flags, ..entry }
    }

    /// The same with flags for the landing.
    pub fn msg_ring_cqe_flags(
        ring: RawFd,
        res: i32,
        key: Key,
        flags: u32,
        landing_flags: u32,
    ) -> Entry {
        let entry = Entry::msg_ring(ring, res, key, flags | uapi::IORING_MSG_RING_FLAGS_PASS);
        Entry { file_index: landing_flags, ..entry }
    }

    /// Puts the direct descriptor `source` of this ring into the other's table, and has 0 (or the
    /// index, with [`Slot::Any`]) land there under `key`, unless `flags` has
    /// `IORING_MSG_RING_CQE_SKIP` (1).
    pub fn msg_ring_fd(ring: RawFd, source: u32, slot: Slot, key: Key, flags: u32) -> Entry {
        let command = uapi::io_uring_msg_ring_flags::IORING_MSG_SEND_FD as u64;
        let entry = Entry::new(abi::MSG_RING, ring, command, 0, key.bits());
        Entry { addr3: u64::from(source), file_index: slot.field(), op_flags: flags, ..entry }
    }

    /// The same where there is room.
    pub fn msg_ring_fd_alloc(ring: RawFd, source: u32, key: Key, flags: u32) -> Entry {
        Entry::msg_ring_fd(ring, source, Slot::Any, key, flags)
    }

    /// Whether it would change or end an operation of the engine's own, its bell above all.
    pub(crate) const fn aims_at_the_engine(&self) -> bool {
        let by_key = match self.opcode {
            abi::POLL_REMOVE | abi::TIMEOUT_REMOVE => true,
            abi::ASYNC_CANCEL => {
                let otherwise = uapi::IORING_ASYNC_CANCEL_FD
                    | uapi::IORING_ASYNC_CANCEL_ANY
                    | uapi::IORING_ASYNC_CANCEL_OP;
                self.op_flags & otherwise == 0
            }
            _ => false,
        };
        by_key && Key::from_bits(self.addr).is_reserved()
    }

    /// Whether it is a message under a key that operations may have.
    pub(crate) const fn counterfeits(&self) -> bool {
        self.opcode == abi::MSG_RING && !Key::from_bits(self.off).is_message()
    }
}

operations! {
    msg_ring = msg_ring, MSG_RING, "5.18", "message::lands_over_there", Elsewhere::Refused;
    msg_ring_cqe_flags = msg_ring_cqe_flags, MSG_RING, "6.3", "message::lands_with_flags",
        Elsewhere::Refused;
    msg_ring_fd = msg_ring_fd, MSG_RING, "6.0", "message::brings_a_descriptor", Elsewhere::Refused;
    msg_ring_fd_alloc = msg_ring_fd_alloc, MSG_RING, "6.0", "message::brings_a_descriptor",
        Elsewhere::Refused;
}
