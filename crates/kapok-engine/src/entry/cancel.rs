//! Doing nothing, and ending what others do.

use std::os::fd::RawFd;

use linux_raw_sys::io_uring as uapi;

use super::table::{Elsewhere, operations};
use super::{Entry, abi};
use crate::op::Key;

impl Entry {
    /// Lands with 0.
    pub fn nop() -> Entry {
        Entry::new(abi::NOP, -1, 0, 0, 0)
    }

    /// The same with an entry of 128 bytes, for rings that take both sizes
    /// (`IORING_SETUP_SQE_MIXED`), which Kapok's do not: it lands with `-EINVAL`.
    pub fn nop128() -> Entry {
        Entry::new(abi::NOP128, -1, 0, 0, 0)
    }

    /// Asks for `target` to end soon: lands with 0, with `-ENOENT`, or with `-EALREADY` if it can no
    /// longer be stopped. `flags` are `IORING_ASYNC_CANCEL_*`; with `IORING_ASYNC_CANCEL_ALL` (1) it
    /// lands with how many were found. [`Engine::cancel`](crate::Engine::cancel) does the same,
    /// again if the kernel has missed it, and lands nothing.
    pub fn cancel(target: Key, flags: u32) -> Entry {
        Entry { op_flags: flags, ..Entry::new(abi::ASYNC_CANCEL, -1, target.bits(), 0, 0) }
    }

    /// The same for the open file behind `fd`, under whatever number it was submitted.
    pub fn cancel_fd(fd: RawFd, flags: u32) -> Entry {
        let entry = Entry::new(abi::ASYNC_CANCEL, fd, 0, 0, 0);
        Entry { op_flags: flags | uapi::IORING_ASYNC_CANCEL_FD, ..entry }
    }
}

operations! {
    nop = nop, NOP, "5.1", "cancel::nothing_is_done", Elsewhere::Engine;
    nop128 = nop128, NOP128, "6.19", "missing::nop128", Elsewhere::Refused;
    cancel = cancel, ASYNC_CANCEL, "5.5", "cancel::by_key", Elsewhere::Engine;
    cancel64 = cancel, ASYNC_CANCEL, "5.5", "cancel::by_key", Elsewhere::Engine;
    cancel_fd = cancel_fd, ASYNC_CANCEL, "5.19", "cancel::by_descriptor", Elsewhere::Refused;
}
