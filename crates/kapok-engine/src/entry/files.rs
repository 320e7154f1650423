//! What is done to an open file, or to memory, as a whole.

use std::os::fd::RawFd;

use super::table::{Elsewhere, operations};
use super::{Entry, abi, address};

impl Entry {
    /// fsync(2), or fdatasync(2) with `IORING_FSYNC_DATASYNC` (1).
    pub fn fsync(fd: RawFd, flags: u32) -> Entry {
        Entry { op_flags: flags, ..Entry::new(abi::FSYNC, fd, 0, 0, 0) }
    }

    /// sync_file_range(2). A `len` of 0 is to the end of the file.
    pub fn sync_file_range(fd: RawFd, len: u32, offset: u64, flags: u32) -> Entry {
        Entry { op_flags: flags, ..Entry::new(abi::SYNC_FILE_RANGE, fd, 0, len, offset) }
    }

    /// fallocate(2).
    pub fn fallocate(fd: RawFd, mode: i32, offset: u64, len: u64) -> Entry {
        Entry::new(abi::FALLOCATE, fd, len, mode as u32, offset)
    }

    /// ftruncate(2).
    pub fn ftruncate(fd: RawFd, len: u64) -> Entry {
        Entry::new(abi::FTRUNCATE, fd, 0, 0, len)
    }

    /// posix_fadvise(2) of less than 4 GiB: `POSIX_FADV_*`.
    pub fn fadvise(fd: RawFd, offset: u64, len: u32, advice: i32) -> Entry {
        Entry { op_flags: advice as u32, ..Entry::new(abi::FADVISE, fd, 0, len, offset) }
    }

    /// posix_fadvise(2) with a length of 64 bits.
    pub fn fadvise64(fd: RawFd, offset: u64, len: u64, advice: i32) -> Entry {
        Entry { op_flags: advice as u32, ..Entry::new(abi::FADVISE, fd, len, 0, offset) }
    }

    /// madvise(2) of less than 4 GiB: `MADV_*`. It does to the memory what the advice says, so some
    /// of them (`MADV_DONTNEED`) are a write to it.
    pub fn madvise(addr: *mut u8, len: u32, advice: i32) -> Entry {
        Entry { op_flags: advice as u32, ..Entry::new(abi::MADVISE, -1, address(addr), len, 0) }
    }

    /// madvise(2) with a length of 64 bits.
    pub fn madvise64(addr: *mut u8, len: u64, advice: i32) -> Entry {
        Entry { op_flags: advice as u32, ..Entry::new(abi::MADVISE, -1, address(addr), 0, len) }
    }

    /// statx(2).
    pub fn statx(
        dir: RawFd,
        path: *const libc::c_char,
        flags: i32,
        mask: u32,
        out: *mut libc::statx,
    ) -> Entry {
        let entry = Entry::new(abi::STATX, dir, address(path), mask, address(out));
        Entry { op_flags: flags as u32, ..entry }
    }
}

operations! {
    fsync = fsync, FSYNC, "5.1", "files::syncs", Elsewhere::Call("fsync(2), fdatasync(2)");
    sync_file_range = sync_file_range, SYNC_FILE_RANGE, "5.2", "files::syncs",
        Elsewhere::Call("sync_file_range(2)");
    fallocate = fallocate, FALLOCATE, "5.6", "files::allocates_and_truncates",
        Elsewhere::Call("fallocate(2)");
    ftruncate = ftruncate, FTRUNCATE, "6.9", "files::allocates_and_truncates",
        Elsewhere::Call("ftruncate(2)");
    fadvise = fadvise, FADVISE, "5.6", "files::advises", Elsewhere::Call("posix_fadvise(2)");
    fadvise64 = fadvise64, FADVISE, "6.11", "files::advises", Elsewhere::Call("posix_fadvise(2)");
    madvise = madvise, MADVISE, "5.6", "files::advises", Elsewhere::Call("madvise(2)");
    madvise64 = madvise64, MADVISE, "6.11", "files::advises", Elsewhere::Call("madvise(2)");
    statx = statx, STATX, "5.6", "files::metadata", Elsewhere::Call("statx(2)");
}
