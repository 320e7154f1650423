//! Direct descriptors: files that a ring has in a table of its own, and that have no number in the
//! process. The table is made by
//! [`Uring::register_files_sparse`](crate::uring::Uring::register_files_sparse).

use std::os::fd::RawFd;

use linux_raw_sys::io_uring::IORING_FILE_INDEX_ALLOC;

use super::table::{Elsewhere, operations};
use super::{Entry, FIXED_FILE, abi, address};

/// Where in the table a new direct descriptor goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slot {
    /// At this index; what is there is let go. Lands with 0.
    At(u32),
    /// Where there is room. Lands with the index, or `-ENFILE`.
    Any,
}

impl Slot {
    /// The field of the entry: 0 is no direct descriptor at all, so indices are one more.
    pub(super) fn field(self) -> u32 {
        match self {
            // Tables are far smaller: the highest indices stay out of the range of any.
            Slot::At(index) => index.min(u32::MAX - 2) + 1,
            Slot::Any => IORING_FILE_INDEX_ALLOC as u32,
        }
    }
}

/// What follows lands as [`Slot`] says.
impl Entry {
    /// [`Entry::open`] into the table. `O_CLOEXEC` makes no sense there and is refused.
    pub fn open_direct(
        path: *const libc::c_char,
        flags: i32,
        mode: libc::mode_t,
        slot: Slot,
    ) -> Entry {
        Entry::openat_direct(libc::AT_FDCWD, path, flags, mode, slot)
    }

    /// [`Entry::openat`] into the table.
    pub fn openat_direct(
        dir: RawFd,
        path: *const libc::c_char,
        flags: i32,
        mode: libc::mode_t,
        slot: Slot,
    ) -> Entry {
        Entry { file_index: slot.field(), ..Entry::openat(dir, path, flags, mode) }
    }

    /// [`Entry::openat2`] into the table.
    pub fn openat2_direct(
        dir: RawFd,
        path: *const libc::c_char,
        how: *const libc::open_how,
        slot: Slot,
    ) -> Entry {
        Entry { file_index: slot.field(), ..Entry::openat2(dir, path, how) }
    }

    /// [`Entry::accept`] into the table. `SOCK_CLOEXEC` makes no sense there and is refused.
    pub fn accept_direct(
        fd: RawFd,
        addr: *mut libc::sockaddr_storage,
        addr_len: *mut libc::socklen_t,
        flags: i32,
        slot: Slot,
    ) -> Entry {
        Entry { file_index: slot.field(), ..Entry::accept(fd, addr, addr_len, flags) }
    }

    /// [`Entry::socket`] into the table.
    pub fn socket_direct(domain: i32, kind: i32, protocol: i32, slot: Slot, flags: u32) -> Entry {
        Entry { file_index: slot.field(), ..Entry::socket(domain, kind, protocol, flags) }
    }

    /// [`Entry::socket_direct`] where there is room.
    pub fn socket_direct_alloc(domain: i32, kind: i32, protocol: i32, flags: u32) -> Entry {
        Entry::socket_direct(domain, kind, protocol, Slot::Any, flags)
    }

    /// [`Entry::pipe`] into the table: two places from [`Slot::At`] on, or any two, whose indices go
    /// to `fds`.
    pub fn pipe_direct(fds: *mut [i32; 2], flags: i32, slot: Slot) -> Entry {
        Entry { file_index: slot.field(), ..Entry::pipe(fds, flags) }
    }

    /// Lets go of a direct descriptor.
    pub fn close_direct(index: u32) -> Entry {
        Entry { file_index: Slot::At(index).field(), ..Entry::close(0) }
    }

    /// Puts descriptors of the process, or -1 for nothing, into the table from `offset` on. With an
    /// `offset` of -1 (`IORING_FILE_INDEX_ALLOC`) they go where there is room, and the indices are
    /// written over the descriptors. Lands with how many were put.
    pub fn files_update(fds: *mut RawFd, count: u32, offset: i32) -> Entry {
        // Sign-extended: the kernel compares 32 bits of it.
        Entry::new(abi::FILES_UPDATE, -1, address(fds), count, offset as i64 as u64)
    }

    /// Gives a direct descriptor a number in the process, close-on-exec unless `flags` has
    /// `IORING_FIXED_FD_NO_CLOEXEC` (1). Lands with the number.
    pub fn fixed_fd_install(index: u32, flags: u32) -> Entry {
        let entry = Entry::new(abi::FIXED_FD_INSTALL, index as i32, 0, 0, 0);
        Entry { flags: FIXED_FILE, op_flags: flags, ..entry }
    }
}

operations! {
    open_direct = open_direct, OPENAT, "5.15", "direct::opened", Elsewhere::Refused;
    openat_direct = openat_direct, OPENAT, "5.15", "direct::opened", Elsewhere::Refused;
    openat2_direct = openat2_direct, OPENAT2, "5.15", "direct::opened", Elsewhere::Refused;
    accept_direct = accept_direct, ACCEPT, "5.15", "direct::accepted", Elsewhere::Refused;
    socket_direct = socket_direct, SOCKET, "5.19", "direct::sockets", Elsewhere::Refused;
    socket_direct_alloc = socket_direct_alloc, SOCKET, "5.19", "direct::sockets", Elsewhere::Refused;
    pipe_direct = pipe_direct, PIPE, "6.16", "direct::pipes", Elsewhere::Refused;
    close_direct = close_direct, CLOSE, "5.15", "direct::opened", Elsewhere::Refused;
    files_update = files_update, FILES_UPDATE, "5.6", "direct::updated", Elsewhere::Refused;
    fixed_fd_install = fixed_fd_install, FIXED_FD_INSTALL, "6.8", "direct::installed",
        Elsewhere::Refused;
}
