//! Extended attributes: xattr(7).

use std::os::fd::RawFd;

use super::table::{Elsewhere, operations};
use super::{Entry, abi, address};

/// `name` and `path` are NUL-terminated. Lands with the length of the value, or 0.
impl Entry {
    /// getxattr(2).
    pub fn getxattr(
        name: *const libc::c_char,
        value: *mut u8,
        path: *const libc::c_char,
        len: u32,
    ) -> Entry {
        let entry = Entry::new(abi::GETXATTR, 0, address(name), len, address(value));
        Entry { addr3: address(path), ..entry }
    }

    /// setxattr(2): `flags` are `XATTR_CREATE` and `XATTR_REPLACE`.
    pub fn setxattr(
        name: *const libc::c_char,
        value: *const u8,
        path: *const libc::c_char,
        flags: i32,
        len: u32,
    ) -> Entry {
        let entry = Entry::new(abi::SETXATTR, 0, address(name), len, address(value));
        Entry { addr3: address(path), op_flags: flags as u32, ..entry }
    }

    /// fgetxattr(2).
    pub fn fgetxattr(fd: RawFd, name: *const libc::c_char, value: *mut u8, len: u32) -> Entry {
        Entry::new(abi::FGETXATTR, fd, address(name), len, address(value))
    }

    /// fsetxattr(2).
    pub fn fsetxattr(
        fd: RawFd,
        name: *const libc::c_char,
        value: *const u8,
        flags: i32,
        len: u32,
    ) -> Entry {
        let entry = Entry::new(abi::FSETXATTR, fd, address(name), len, address(value));
        Entry { op_flags: flags as u32, ..entry }
    }
}

operations! {
    getxattr = getxattr, GETXATTR, "5.19", "xattr::by_path", Elsewhere::Call("getxattr(2)");
    setxattr = setxattr, SETXATTR, "5.19", "xattr::by_path", Elsewhere::Call("setxattr(2)");
    fgetxattr = fgetxattr, FGETXATTR, "5.19", "xattr::by_descriptor", Elsewhere::Call("fgetxattr(2)");
    fsetxattr = fsetxattr, FSETXATTR, "5.19", "xattr::by_descriptor", Elsewhere::Call("fsetxattr(2)");
}
