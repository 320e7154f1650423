//! Reading and writing files, pipes and whatever else has an offset or none.

use std::os::fd::RawFd;

use super::table::{Elsewhere, operations};
use super::{Entry, abi, address, transfer};

impl Entry {
    /// read(2), or pread(2) unless `offset` is [`Op::CURRENT_POSITION`](crate::Op::CURRENT_POSITION).
    pub fn read(fd: RawFd, buf: *mut u8, len: usize, offset: u64) -> Entry {
        Entry::new(abi::READ, fd, address(buf), transfer(len), offset)
    }

    /// A read into a part of the registered buffer `buffer`
    /// ([`Uring::register_buffers`](crate::uring::Uring::register_buffers)).
    pub fn read_fixed(fd: RawFd, buf: *mut u8, len: usize, offset: u64, buffer: u16) -> Entry {
        let entry = Entry::new(abi::READ_FIXED, fd, address(buf), transfer(len), offset);
        Entry { buf_group: buffer, ..entry }
    }

    /// readv(2), or preadv(2), as [`read`](Entry::read) has it.
    pub fn readv(fd: RawFd, parts: *const libc::iovec, count: u32, offset: u64) -> Entry {
        Entry::new(abi::READV, fd, address(parts), count, offset)
    }

    /// preadv2(2), with its `RWF_*`.
    pub fn readv2(
        fd: RawFd,
        parts: *const libc::iovec,
        count: u32,
        offset: u64,
        flags: i32,
    ) -> Entry {
        Entry { op_flags: flags as u32, ..Entry::readv(fd, parts, count, offset) }
    }

    /// preadv2(2) into parts of the registered buffer `buffer`.
    pub fn readv_fixed(
        fd: RawFd,
        parts: *const libc::iovec,
        count: u32,
        offset: u64,
        flags: i32,
        buffer: u16,
    ) -> Entry {
        let entry = Entry::readv2(fd, parts, count, offset, flags);
        Entry { opcode: abi::READV_FIXED, buf_group: buffer, ..entry }
    }

    /// write(2), or pwrite(2) unless `offset` is
    /// [`Op::CURRENT_POSITION`](crate::Op::CURRENT_POSITION).
    pub fn write(fd: RawFd, buf: *const u8, len: usize, offset: u64) -> Entry {
        Entry::new(abi::WRITE, fd, address(buf), transfer(len), offset)
    }

    /// A write from a part of the registered buffer `buffer`.
    pub fn write_fixed(fd: RawFd, buf: *const u8, len: usize, offset: u64, buffer: u16) -> Entry {
        let entry = Entry::new(abi::WRITE_FIXED, fd, address(buf), transfer(len), offset);
        Entry { buf_group: buffer, ..entry }
    }

    /// writev(2), or pwritev(2), as [`write`](Entry::write) has it.
    pub fn writev(fd: RawFd, parts: *const libc::iovec, count: u32, offset: u64) -> Entry {
        Entry::new(abi::WRITEV, fd, address(parts), count, offset)
    }

    /// pwritev2(2), with its `RWF_*`.
    pub fn writev2(
        fd: RawFd,
        parts: *const libc::iovec,
        count: u32,
        offset: u64,
        flags: i32,
    ) -> Entry {
        Entry { op_flags: flags as u32, ..Entry::writev(fd, parts, count, offset) }
    }

    /// pwritev2(2) from parts of the registered buffer `buffer`.
    pub fn writev_fixed(
        fd: RawFd,
        parts: *const libc::iovec,
        count: u32,
        offset: u64,
        flags: i32,
        buffer: u16,
    ) -> Entry {
        let entry = Entry::writev2(fd, parts, count, offset, flags);
        Entry { opcode: abi::WRITEV_FIXED, buf_group: buffer, ..entry }
    }
}

operations! {
    read = read, READ, "5.6", "transfers::read_and_write", Elsewhere::Call("read(2), pread(2)");
    read_fixed = read_fixed, READ_FIXED, "5.1", "transfers::read_and_write_fixed",
        Elsewhere::Call("pread(2)");
    readv = readv, READV, "5.1", "transfers::vectored", Elsewhere::Call("preadv2(2)");
    readv2 = readv2, READV, "5.1", "transfers::vectored_with_flags", Elsewhere::Call("preadv2(2)");
    readv_fixed = readv_fixed, READV_FIXED, "6.15", "transfers::vectored_fixed",
        Elsewhere::Call("preadv2(2)");
    write = write, WRITE, "5.6", "transfers::read_and_write", Elsewhere::Call("write(2), pwrite(2)");
    write_fixed = write_fixed, WRITE_FIXED, "5.1", "transfers::read_and_write_fixed",
        Elsewhere::Call("pwrite(2)");
    writev = writev, WRITEV, "5.1", "transfers::vectored", Elsewhere::Call("pwritev2(2)");
    writev2 = writev2, WRITEV, "5.1", "transfers::vectored_with_flags",
        Elsewhere::Call("pwritev2(2)");
    writev_fixed = writev_fixed, WRITEV_FIXED, "6.15", "transfers::vectored_fixed",
        Elsewhere::Call("pwritev2(2)");
}
