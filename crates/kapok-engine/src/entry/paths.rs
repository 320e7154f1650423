//! Names in directories.

use std::os::fd::RawFd;

use super::table::{Elsewhere, operations};
use super::{Entry, abi, address};

impl Entry {
    /// unlink(2), or rmdir(2) with `AT_REMOVEDIR`: [`unlinkat`](Entry::unlinkat) from the current
    /// directory.
    pub fn unlink(path: *const libc::c_char, flags: i32) -> Entry {
        Entry::unlinkat(libc::AT_FDCWD, path, flags)
    }

    /// unlinkat(2).
    pub fn unlinkat(dir: RawFd, path: *const libc::c_char, flags: i32) -> Entry {
        Entry { op_flags: flags as u32, ..Entry::new(abi::UNLINKAT, dir, address(path), 0, 0) }
    }

    /// rename(2): [`renameat`](Entry::renameat) from and to the current directory.
    pub fn rename(old: *const libc::c_char, new: *const libc::c_char) -> Entry {
        Entry::renameat(libc::AT_FDCWD, old, libc::AT_FDCWD, new, 0)
    }

    /// renameat2(2), with its `RENAME_*`.
    pub fn renameat(
        old_dir: RawFd,
        old: *const libc::c_char,
        new_dir: RawFd,
        new: *const libc::c_char,
        flags: u32,
    ) -> Entry {
        let entry = Entry::new(abi::RENAMEAT, old_dir, address(old), new_dir as u32, address(new));
        Entry { op_flags: flags, ..entry }
    }

    /// mkdir(2): [`mkdirat`](Entry::mkdirat) from the current directory.
    pub fn mkdir(path: *const libc::c_char, mode: libc::mode_t) -> Entry {
        Entry::mkdirat(libc::AT_FDCWD, path, mode)
    }

    /// mkdirat(2).
    pub fn mkdirat(dir: RawFd, path: *const libc::c_char, mode: libc::mode_t) -> Entry {
        Entry::new(abi::MKDIRAT, dir, address(path), mode, 0)
    }

    /// symlink(2): [`symlinkat`](Entry::symlinkat) from the current directory.
    pub fn symlink(target: *const libc::c_char, link: *const libc::c_char) -> Entry {
        Entry::symlinkat(target, libc::AT_FDCWD, link)
    }

    /// symlinkat(2).
    pub fn symlinkat(target: *const libc::c_char, dir: RawFd, link: *const libc::c_char) -> Entry {
        Entry::new(abi::SYMLINKAT, dir, address(target), 0, address(link))
    }

    /// link(2): [`linkat`](Entry::linkat) from and to the current directory.
    pub fn link(old: *const libc::c_char, new: *const libc::c_char, flags: i32) -> Entry {
        Entry::linkat(libc::AT_FDCWD, old, libc::AT_FDCWD, new, flags)
    }

    /// linkat(2).
    pub fn linkat(
        old_dir: RawFd,
        old: *const libc::c_char,
        new_dir: RawFd,
        new: *const libc::c_char,
        flags: i32,
    ) -> Entry {
        let entry = Entry::new(abi::LINKAT, old_dir, address(old), new_dir as u32, address(new));
        Entry { op_flags: flags as u32, ..entry }
    }
}

operations! {
    unlink = unlink, UNLINKAT, "5.11", "paths::makes_and_removes", Elsewhere::Call("unlinkat(2)");
    unlinkat = unlinkat, UNLINKAT, "5.11", "paths::makes_and_removes_in_a_directory",
        Elsewhere::Call("unlinkat(2)");
    rename = rename, RENAMEAT, "5.11", "paths::renames_and_links", Elsewhere::Call("renameat2(2)");
    renameat = renameat, RENAMEAT, "5.11", "paths::renames_and_links_in_a_directory",
        Elsewhere::Call("renameat2(2)");
    mkdir = mkdir, MKDIRAT, "5.15", "paths::makes_and_removes", Elsewhere::Call("mkdirat(2)");
    mkdirat = mkdirat, MKDIRAT, "5.15", "paths::makes_and_removes_in_a_directory",
        Elsewhere::Call("mkdirat(2)");
    symlink = symlink, SYMLINKAT, "5.15", "paths::renames_and_links",
        Elsewhere::Call("symlinkat(2)");
    symlinkat = symlinkat, SYMLINKAT, "5.15", "paths::renames_and_links_in_a_directory",
        Elsewhere::Call("symlinkat(2)");
    link = link, LINKAT, "5.15", "paths::renames_and_links", Elsewhere::Call("linkat(2)");
    linkat = linkat, LINKAT, "5.15", "paths::renames_and_links_in_a_directory",
        Elsewhere::Call("linkat(2)");
}
