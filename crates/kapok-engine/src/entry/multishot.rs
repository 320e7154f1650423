//! Operations that are started once and land again and again, with
//! [`Completion::MORE`](crate::Completion::MORE) until the last.
//!
//! The kernel may end them at any time, and does when there is no provided buffer left (`-ENOBUFS`)
//! or the completion queue is full: then they are submitted again. Off io_uring they end with the
//! first landing, for the same treatment; those that need provided buffers are refused there.

use std::os::fd::RawFd;

use linux_raw_sys::io_uring as uapi;

use super::direct::Slot;
use super::table::{Elsewhere, operations};
use super::{BUFFER_SELECT, Entry, abi, transfer};

impl Entry {
    /// Reads of up to `len` bytes (0: a whole buffer), whenever there is something to be read, into
    /// buffers of `group`. For what can be polled: pipes, terminals, not files.
    pub fn read_multishot(fd: RawFd, len: usize, offset: u64, group: u16) -> Entry {
        let entry = Entry::new(abi::READ_MULTISHOT, fd, 0, transfer(len), offset);
        Entry { flags: BUFFER_SELECT, buf_group: group, ..entry }
    }

    /// Receives. `buf` is null and `len` 0: to be completed by
    /// [`with_buffer_group`](Entry::with_buffer_group).
    pub fn recv_multishot(fd: RawFd, buf: *mut u8, len: usize, flags: i32) -> Entry {
        let entry = Entry::recv(fd, buf, len, flags);
        Entry { ioprio: uapi::IORING_RECV_MULTISHOT as u16, ..entry }
    }

    /// Receives of messages: into provided buffers, each a header (`struct io_uring_recvmsg_out`),
    /// then the name and the ancillary data in the room that `msg` says, then the bytes. To be
    /// completed by [`with_buffer_group`](Entry::with_buffer_group).
    pub fn recvmsg_multishot(fd: RawFd, msg: *mut libc::msghdr, flags: u32) -> Entry {
        let entry = Entry::recvmsg(fd, msg, flags);
        Entry { ioprio: uapi::IORING_RECV_MULTISHOT as u16, ..entry }
    }

    /// Accepts. All landings write to the same address.
    pub fn multishot_accept(
        fd: RawFd,
        addr: *mut libc::sockaddr_storage,
        addr_len: *mut libc::socklen_t,
        flags: i32,
    ) -> Entry {
        let entry = Entry::accept(fd, addr, addr_len, flags);
        Entry { ioprio: uapi::IORING_ACCEPT_MULTISHOT as u16, ..entry }
    }

    /// Accepts into the table of direct descriptors, where there is room.
    pub fn multishot_accept_direct(
        fd: RawFd,
        addr: *mut libc::sockaddr_storage,
        addr_len: *mut libc::socklen_t,
        flags: i32,
    ) -> Entry {
        let entry = Entry::multishot_accept(fd, addr, addr_len, flags);
        Entry { file_index: Slot::Any.field(), ..entry }
    }

    /// Polls: lands with the bits of poll(2) whenever there is a new event.
    pub fn poll_multishot(fd: RawFd, events: u32) -> Entry {
        Entry { len: uapi::IORING_POLL_ADD_MULTI, ..Entry::poll_add(fd, events) }
    }
}

operations! {
    read_multishot = read_multishot, READ_MULTISHOT, "6.7", "multishot::reads", Elsewhere::Refused;
    recv_multishot = recv_multishot, RECV, "6.0", "multishot::receives", Elsewhere::Refused;
    recvmsg_multishot = recvmsg_multishot, RECVMSG, "6.0", "multishot::receives_messages",
        Elsewhere::Refused;
    multishot_accept = multishot_accept, ACCEPT, "5.19", "multishot::accepts",
        Elsewhere::Once("accept4(2)");
    multishot_accept_direct = multishot_accept_direct, ACCEPT, "5.19",
        "multishot::accepts_into_the_table", Elsewhere::Refused;
    poll_multishot = poll_multishot, POLL_ADD, "5.13", "multishot::polls", Elsewhere::Once("poll(2)");
}
