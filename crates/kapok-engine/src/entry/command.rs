//! Commands: what a kind of file makes of `IORING_OP_URING_CMD`.
//!
//! One that a file does not know lands with `-EOPNOTSUPP`.

use std::os::fd::RawFd;

use linux_raw_sys::io_uring::io_uring_socket_op as socket_op;

use super::table::{Elsewhere, operations};
use super::{Entry, abi, address, halves};

/// How many bytes a receive would find, as ioctl(2) `SIOCINQ`: of [`Entry::cmd_sock`].
pub const SOCKET_SIOCINQ: u32 = socket_op::SOCKET_URING_OP_SIOCINQ as u32;
/// How many bytes are not sent yet, as ioctl(2) `SIOCOUTQ`.
pub const SOCKET_SIOCOUTQ: u32 = socket_op::SOCKET_URING_OP_SIOCOUTQ as u32;
/// getsockopt(2), of level `SOL_SOCKET`. Lands with the length of the option.
pub const SOCKET_GETSOCKOPT: u32 = socket_op::SOCKET_URING_OP_GETSOCKOPT as u32;
/// setsockopt(2).
pub const SOCKET_SETSOCKOPT: u32 = socket_op::SOCKET_URING_OP_SETSOCKOPT as u32;
/// `SOCKET_URING_OP_GETSOCKNAME` of Linux 6.19 (include/uapi/linux/io_uring.h), which linux-raw-sys
/// has not yet: of [`Entry::cmd_getsockname`].
pub const SOCKET_GETSOCKNAME: u32 = 5;
/// `BLOCK_URING_CMD_DISCARD`, `_IO(0x12, 0)` (include/uapi/linux/blkdev.h): of
/// [`Entry::cmd_discard`].
pub const BLOCK_DISCARD: u32 = 0x1200;
/// `BLOCK_URING_CMD_ZONE_RESET_ALL`, `_IO(0x12, 1)`: of [`Entry::cmd_zone_reset_all`].
pub const BLOCK_ZONE_RESET_ALL: u32 = 0x1201;

impl Entry {
    /// A command without arguments.
    pub fn uring_cmd(command: u32, fd: RawFd) -> Entry {
        Entry::new(abi::URING_CMD, fd, 0, 0, halves(command, 0))
    }

    /// The same with an entry of 128 bytes, for rings that take both sizes
    /// (`IORING_SETUP_SQE_MIXED`), which Kapok's do not: it lands with `-EINVAL`.
    pub fn uring_cmd128(command: u32, fd: RawFd) -> Entry {
        Entry { opcode: abi::URING_CMD128, ..Entry::uring_cmd(command, fd) }
    }

    /// A command to a socket, one of the constants `SOCKET_*`.
    pub fn cmd_sock(
        command: u32,
        fd: RawFd,
        level: i32,
        option: i32,
        value: *mut u8,
        len: u32,
    ) -> Entry {
        Entry {
            addr: halves(level as u32, option as u32),
            addr3: address(value),
            file_index: len,
            ..Entry::uring_cmd(command, fd)
        }
    }

    /// getsockname(2), or getpeername(2) if `peer` is 1.
    pub fn cmd_getsockname(
        fd: RawFd,
        addr: *mut libc::sockaddr_storage,
        addr_len: *mut libc::socklen_t,
        peer: u32,
    ) -> Entry {
        Entry {
            addr: address(addr),
            addr3: address(addr_len),
            file_index: peer,
            ..Entry::uring_cmd(SOCKET_GETSOCKNAME, fd)
        }
    }

    /// Discards a range of a block device, as ioctl(2) `BLKDISCARD`. Both in bytes.
    pub fn cmd_discard(fd: RawFd, offset: u64, len: u64) -> Entry {
        Entry { addr: offset, addr3: len, ..Entry::uring_cmd(BLOCK_DISCARD, fd) }
    }

    /// Resets all zones of a zoned block device.
    pub fn cmd_zone_reset_all(fd: RawFd) -> Entry {
        Entry::uring_cmd(BLOCK_ZONE_RESET_ALL, fd)
    }
}

operations! {
    uring_cmd = uring_cmd, URING_CMD, "5.19", "command::on_sockets",
        Elsewhere::Call("ioctl(2) on sockets");
    uring_cmd128 = uring_cmd128, URING_CMD128, "6.19", "missing::uring_cmd128", Elsewhere::Refused;
    cmd_sock = cmd_sock, URING_CMD, "6.7", "command::on_sockets",
        Elsewhere::Call("ioctl(2), getsockopt(2), setsockopt(2)");
    cmd_getsockname = cmd_getsockname, URING_CMD, "6.19", "missing::getsockname",
        Elsewhere::Call("getsockname(2), getpeername(2)");
    cmd_discard = cmd_discard, URING_CMD, "6.12", "command::on_block_devices",
        Elsewhere::Call("ioctl(2)");
    cmd_zone_reset_all = cmd_zone_reset_all, URING_CMD, "7.x", "missing::zone_reset_all",
        Elsewhere::Refused;
}
