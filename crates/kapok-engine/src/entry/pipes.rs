//! Pipes, and moving bytes through them without taking them into memory.

use std::os::fd::RawFd;

use super::table::{Elsewhere, operations};
use super::{Entry, abi, address};

/// `SPLICE_F_FD_IN_FIXED` (include/uapi/linux/io_uring.h): the descriptor that is read from is a
/// direct one. linux-raw-sys leaves it out.
pub(super) const IN_IS_DIRECT: u32 = 1 << 31;

/// `flags` are those of splice(2), and `SPLICE_F_FD_IN_FIXED` (1 << 31) for a direct descriptor to
/// read from. The one to write to is direct by
/// [`on_direct_descriptor`](Entry::on_direct_descriptor).
impl Entry {
    /// splice(2). Offsets are -1 for pipes and for the current position.
    pub fn splice(
        from: RawFd,
        from_offset: i64,
        to: RawFd,
        to_offset: i64,
        len: u32,
        flags: u32,
    ) -> Entry {
        let entry = Entry::new(abi::SPLICE, to, from_offset as u64, len, to_offset as u64);
        Entry { op_flags: flags, file_index: from as u32, ..entry }
    }

    /// tee(2).
    pub fn tee(from: RawFd, to: RawFd, len: u32, flags: u32) -> Entry {
        let entry = Entry::new(abi::TEE, to, 0, len, 0);
        Entry { op_flags: flags, file_index: from as u32, ..entry }
    }

    /// pipe2(2).
    pub fn pipe(fds: *mut [RawFd; 2], flags: i32) -> Entry {
        Entry { op_flags: flags as u32, ..Entry::new(abi::PIPE, 0, address(fds), 0, 0) }
    }
}

operations! {
    splice = splice, SPLICE, "5.7", "pipes::splices", Elsewhere::Call("splice(2)");
    tee = tee, TEE, "5.8", "pipes::tees", Elsewhere::Call("tee(2)");
    pipe = pipe, PIPE, "6.16", "pipes::tees", Elsewhere::Call("pipe2(2)");
}
