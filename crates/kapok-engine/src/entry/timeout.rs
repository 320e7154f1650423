//! Time limits that the kernel keeps.

use std::time::Duration;

use linux_raw_sys::io_uring as uapi;

use super::table::{Elsewhere, operations};
use super::{Entry, abi, address};
use crate::op::Key;

/// A time, as `struct __kernel_timespec` has it on every architecture.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Timespec {
    /// Whole seconds.
    pub seconds: i64,
    /// Nanoseconds beside them, below a thousand million.
    pub nanoseconds: i64,
}

impl From<Duration> for Timespec {
    fn from(duration: Duration) -> Timespec {
        Timespec {
            seconds: duration.as_secs().min(i64::MAX as u64) as i64,
            nanoseconds: i64::from(duration.subsec_nanos()),
        }
    }
}

/// `flags` are `IORING_TIMEOUT_*`. The time is read when the entry is submitted by a turn, or before;
/// like all memory it stays until the entry has landed.
impl Entry {
    /// Lands with `-ETIME` when the time is over, or with 0 once `count` other operations have landed
    /// before, if that is not 0.
    pub fn timeout(time: *const Timespec, count: u32, flags: u32) -> Entry {
        let entry = Entry::new(abi::TIMEOUT, -1, address(time), 1, u64::from(count));
        Entry { op_flags: flags, ..entry }
    }

    /// Ends a timeout: `target` lands with `-ECANCELED` and this with 0, or with `-ENOENT`.
    pub fn timeout_remove(target: Key, flags: u32) -> Entry {
        Entry { op_flags: flags, ..Entry::new(abi::TIMEOUT_REMOVE, -1, target.bits(), 0, 0) }
    }

    /// Gives a pending timeout, or link timeout with `IORING_LINK_TIMEOUT_UPDATE` (16), another time.
    pub fn timeout_update(time: *const Timespec, target: Key, flags: u32) -> Entry {
        let entry = Entry::new(abi::TIMEOUT_REMOVE, -1, target.bits(), 0, address(time));
        Entry { op_flags: flags | uapi::IORING_TIMEOUT_UPDATE, ..entry }
    }

    /// A limit for the entry before it in a
    /// [chain](crate::uring::Uring::submit_chain): when the time is over that one is cancelled. Lands
    /// with `-ETIME` then, and with `-ECANCELED` if there was nothing to cancel.
    pub fn link_timeout(time: *const Timespec, flags: u32) -> Entry {
        Entry { op_flags: flags, ..Entry::new(abi::LINK_TIMEOUT, -1, address(time), 1, 0) }
    }
}

operations! {
    timeout = timeout, TIMEOUT, "5.4", "timeout::goes_off", Elsewhere::Engine;
    timeout_remove = timeout_remove, TIMEOUT_REMOVE, "5.5", "timeout::is_removed", Elsewhere::Engine;
    timeout_update = timeout_update, TIMEOUT_REMOVE, "5.11", "timeout::is_updated", Elsewhere::Engine;
    link_timeout = link_timeout, LINK_TIMEOUT, "5.5", "timeout::is_linked", Elsewhere::Refused;
}
