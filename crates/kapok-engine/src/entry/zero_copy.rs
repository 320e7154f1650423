//! Sends that the network card reads from the caller's memory.
//!
//! Each lands twice: with its result and [`Completion::MORE`](crate::Completion::MORE), and with
//! [`Completion::NOTIF`](crate::Completion::NOTIF) and without `MORE` when the memory is free again.
//! One that fails lands once or twice. Off io_uring it is an ordinary send, which lands once.

use std::os::fd::RawFd;

use linux_raw_sys::io_uring::IORING_RECVSEND_FIXED_BUF;

use super::table::{Elsewhere, operations};
use super::{Entry, abi};

impl Entry {
    /// send(2) without a copy. `zero_copy_flags` are `IORING_SEND_ZC_REPORT_USAGE` (8) and
    /// `IORING_RECVSEND_POLL_FIRST` (1).
    pub fn send_zc(
        fd: RawFd,
        buf: *const u8,
        len: usize,
        flags: i32,
        zero_copy_flags: u16,
    ) -> Entry {
        Entry { opcode: abi::SEND_ZC, ioprio: zero_copy_flags, ..Entry::send(fd, buf, len, flags) }
    }

    /// The same from a part of the registered buffer `buffer`.
    pub fn send_zc_fixed(
        fd: RawFd,
        buf: *const u8,
        len: usize,
        flags: i32,
        zero_copy_flags: u16,
        buffer: u16,
    ) -> Entry {
        let entry = Entry::send_zc(fd, buf, len, flags, zero_copy_flags);
        let ioprio = entry.ioprio | IORING_RECVSEND_FIXED_BUF as u16;
        Entry { ioprio, buf_group: buffer, ..entry }
    }

    /// sendmsg(2) without a copy.
    pub fn sendmsg_zc(fd: RawFd, msg: *const libc::msghdr, flags: u32) -> Entry {
        Entry { opcode: abi::SENDMSG_ZC, ..Entry::sendmsg(fd, msg, flags) }
    }

    /// The same from parts of the registered buffer `buffer`.
    pub fn sendmsg_zc_fixed(fd: RawFd, msg: *const libc::msghdr, flags: u32, buffer: u16) -> Entry {
        let entry = Entry::sendmsg_zc(fd, msg, flags);
        Entry { ioprio: IORING_RECVSEND_FIXED_BUF as u16, buf_group: buffer, ..entry }
    }
}

operations! {
    send_zc = send_zc, SEND_ZC, "6.0", "zero_copy::lands_twice", Elsewhere::Once("send(2)");
    send_zc_fixed = send_zc_fixed, SEND_ZC, "6.0", "zero_copy::from_registered_memory",
        Elsewhere::Once("send(2)");
    sendmsg_zc = sendmsg_zc, SENDMSG_ZC, "6.1", "zero_copy::messages", Elsewhere::Once("sendmsg(2)");
    sendmsg_zc_fixed = sendmsg_zc_fixed, SENDMSG_ZC, "6.15", "zero_copy::messages",
        Elsewhere::Once("sendmsg(2)");
}
