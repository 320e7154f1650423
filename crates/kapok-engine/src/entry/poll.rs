//! Readiness: poll(2) and epoll(7).

use std::os::fd::RawFd;

use linux_raw_sys::io_uring as uapi;

use super::table::{Elsewhere, operations};
use super::{Entry, abi, address};
use crate::op::Key;

/// Poll bits as the 32-bit field wants them: its halves are swapped on big-endian machines.
pub(crate) const fn poll_field(events: u32) -> u32 {
    if cfg!(target_endian = "big") { events.rotate_left(16) } else { events }
}

impl Entry {
    /// Lands with the bits of poll(2) once one of `events` holds.
    pub fn poll_add(fd: RawFd, events: u32) -> Entry {
        Entry { op_flags: poll_field(events), ..Entry::new(abi::POLL_ADD, fd, 0, 0, 0) }
    }

    /// Ends a poll: `target` lands with `-ECANCELED` and this with 0, or with `-ENOENT`.
    pub fn poll_remove(target: Key) -> Entry {
        Entry::new(abi::POLL_REMOVE, -1, target.bits(), 0, 0)
    }

    /// Changes what a pending poll waits for. `flags` are `IORING_POLL_UPDATE_EVENTS` (2) and
    /// `IORING_POLL_ADD_MULTI` (1).
    ///
    /// With another key (`IORING_POLL_UPDATE_USER_DATA`) the poll lands under that one from then on.
    /// Engines keep their books by key and refuse it with `-EOPNOTSUPP`.
    pub fn poll_update(target: Key, renamed: Option<Key>, events: u32, flags: u32) -> Entry {
        let (name, flags) = match renamed {
            Some(key) => (key.bits(), flags | uapi::IORING_POLL_UPDATE_USER_DATA),
            None => (0, flags),
        };
        let entry = Entry::new(abi::POLL_REMOVE, -1, target.bits(), flags, name);
        Entry { op_flags: poll_field(events), ..entry }
    }

    /// Whether it would give a pending key another name.
    pub(crate) const fn renames(&self) -> bool {
        self.opcode == abi::POLL_REMOVE && self.len & uapi::IORING_POLL_UPDATE_USER_DATA != 0
    }

    /// epoll_ctl(2).
    pub fn epoll_ctl(
        epoll: RawFd,
        fd: RawFd,
        operation: i32,
        event: *mut libc::epoll_event,
    ) -> Entry {
        let off = u64::from(fd as u32);
        Entry::new(abi::EPOLL_CTL, epoll, address(event), operation as u32, off)
    }

    /// epoll_wait(2) without a limit. Lands with how many events there are; `flags` is 0.
    pub fn epoll_wait(
        epoll: RawFd,
        events: *mut libc::epoll_event,
        most: u32,
        flags: u32,
    ) -> Entry {
        Entry { op_flags: flags, ..Entry::new(abi::EPOLL_WAIT, epoll, address(events), most, 0) }
    }
}

operations! {
    poll_add = poll_add, POLL_ADD, "5.1", "poll::polls", Elsewhere::Call("poll(2)");
    poll_remove = poll_remove, POLL_REMOVE, "5.1", "poll::removes", Elsewhere::Engine;
    poll_update = poll_update, POLL_REMOVE, "5.13", "poll::updates", Elsewhere::Refused;
    epoll_ctl = epoll_ctl, EPOLL_CTL, "5.6", "poll::waits_for_epoll", Elsewhere::Call("epoll_ctl(2)");
    epoll_wait = epoll_wait, EPOLL_WAIT, "6.15", "poll::waits_for_epoll",
        Elsewhere::Call("epoll_wait(2)");
}
