//! Sockets, one transfer at a time.

use std::os::fd::RawFd;

use linux_raw_sys::io_uring::IORING_RECVSEND_BUNDLE;

use super::table::{Elsewhere, operations};
use super::{Entry, abi, address, first_half, transfer};

impl Entry {
    /// socket(2), with its flags in `kind`; `flags` is 0. Lands with the new descriptor.
    pub fn socket(domain: i32, kind: i32, protocol: i32, flags: u32) -> Entry {
        let entry = Entry::new(abi::SOCKET, domain, 0, protocol as u32, kind as u64);
        Entry { op_flags: flags, ..entry }
    }

    /// bind(2).
    pub fn bind(
        fd: RawFd,
        addr: *const libc::sockaddr_storage,
        addr_len: libc::socklen_t,
    ) -> Entry {
        Entry::new(abi::BIND, fd, address(addr), 0, u64::from(addr_len))
    }

    /// listen(2).
    pub fn listen(fd: RawFd, backlog: i32) -> Entry {
        Entry::new(abi::LISTEN, fd, 0, backlog as u32, 0)
    }

    /// accept4(2). Lands with the new descriptor.
    pub fn accept(
        fd: RawFd,
        addr: *mut libc::sockaddr_storage,
        addr_len: *mut libc::socklen_t,
        flags: i32,
    ) -> Entry {
        let entry = Entry::new(abi::ACCEPT, fd, address(addr), 0, address(addr_len));
        Entry { op_flags: flags as u32, ..entry }
    }

    /// connect(2).
    pub fn connect(
        fd: RawFd,
        addr: *const libc::sockaddr_storage,
        addr_len: libc::socklen_t,
    ) -> Entry {
        Entry::new(abi::CONNECT, fd, address(addr), 0, u64::from(addr_len))
    }

    /// shutdown(2).
    pub fn shutdown(fd: RawFd, how: i32) -> Entry {
        Entry::new(abi::SHUTDOWN, fd, 0, how as u32, 0)
    }

    /// send(2).
    pub fn send(fd: RawFd, buf: *const u8, len: usize, flags: i32) -> Entry {
        let entry = Entry::new(abi::SEND, fd, address(buf), transfer(len), 0);
        Entry { op_flags: flags as u32, ..entry }
    }

    /// sendto(2).
    pub fn sendto(
        fd: RawFd,
        buf: *const u8,
        len: usize,
        flags: i32,
        addr: *const libc::sockaddr_storage,
        addr_len: u16,
    ) -> Entry {
        let entry = Entry::send(fd, buf, len, flags);
        Entry { off: address(addr), file_index: first_half(addr_len), ..entry }
    }

    /// send(2) of as many provided buffers as there are, together up to `len` bytes (0: all). To be
    /// completed by [`with_buffer_group`](Entry::with_buffer_group).
    pub fn send_bundle(fd: RawFd, len: usize, flags: i32) -> Entry {
        let entry = Entry::send(fd, std::ptr::null(), len, flags);
        Entry { ioprio: IORING_RECVSEND_BUNDLE as u16, ..entry }
    }

    /// sendmsg(2).
    pub fn sendmsg(fd: RawFd, msg: *const libc::msghdr, flags: u32) -> Entry {
        Entry { op_flags: flags, ..Entry::new(abi::SENDMSG, fd, address(msg), 1, 0) }
    }

    /// recv(2).
    pub fn recv(fd: RawFd, buf: *mut u8, len: usize, flags: i32) -> Entry {
        let entry = Entry::new(abi::RECV, fd, address(buf), transfer(len), 0);
        Entry { op_flags: flags as u32, ..entry }
    }

    /// recvmsg(2).
    pub fn recvmsg(fd: RawFd, msg: *mut libc::msghdr, flags: u32) -> Entry {
        Entry { op_flags: flags, ..Entry::new(abi::RECVMSG, fd, address(msg), 1, 0) }
    }
}

operations! {
    socket = socket, SOCKET, "5.19", "sockets::from_socket_to_shutdown", Elsewhere::Call("socket(2)");
    bind = bind, BIND, "6.11", "sockets::from_socket_to_shutdown", Elsewhere::Call("bind(2)");
    listen = listen, LISTEN, "6.11", "sockets::from_socket_to_shutdown", Elsewhere::Call("listen(2)");
    accept = accept, ACCEPT, "5.5", "sockets::from_socket_to_shutdown", Elsewhere::Call("accept4(2)");
    connect = connect, CONNECT, "5.5", "sockets::from_socket_to_shutdown",
        Elsewhere::Call("connect(2)");
    shutdown = shutdown, SHUTDOWN, "5.11", "sockets::from_socket_to_shutdown",
        Elsewhere::Call("shutdown(2)");
    send = send, SEND, "5.6", "sockets::from_socket_to_shutdown", Elsewhere::Call("send(2)");
    sendto = sendto, SEND, "6.1", "sockets::datagrams", Elsewhere::Call("sendto(2)");
    send_bundle = send_bundle, SEND, "6.10", "buffers::bundles", Elsewhere::Refused;
    sendmsg = sendmsg, SENDMSG, "5.3", "sockets::messages", Elsewhere::Call("sendmsg(2)");
    recv = recv, RECV, "5.6", "sockets::from_socket_to_shutdown", Elsewhere::Call("recv(2)");
    recvmsg = recvmsg, RECVMSG, "5.3", "sockets::messages", Elsewhere::Call("recvmsg(2)");
}
