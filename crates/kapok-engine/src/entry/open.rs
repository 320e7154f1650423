//! Opening and closing.

use std::os::fd::RawFd;

use super::table::{Elsewhere, operations};
use super::{Entry, abi, address};

impl Entry {
    /// open(2): [`openat`](Entry::openat) from the current directory.
    pub fn open(path: *const libc::c_char, flags: i32, mode: libc::mode_t) -> Entry {
        Entry::openat(libc::AT_FDCWD, path, flags, mode)
    }

    /// openat(2). Lands with the new descriptor.
    pub fn openat(dir: RawFd, path: *const libc::c_char, flags: i32, mode: libc::mode_t) -> Entry {
        Entry { op_flags: flags as u32, ..Entry::new(abi::OPENAT, dir, address(path), mode, 0) }
    }

    /// openat2(2). Lands with the new descriptor.
    pub fn openat2(dir: RawFd, path: *const libc::c_char, how: *const libc::open_how) -> Entry {
        let size = size_of::<libc::open_how>() as u32;
        Entry::new(abi::OPENAT2, dir, address(path), size, address(how))
    }

    /// close(2). What is pending on the descriptor goes on, unlike under
    /// [`Op::Close`](crate::Op::Close): the kernel keeps the file for it.
    pub fn close(fd: RawFd) -> Entry {
        Entry::new(abi::CLOSE, fd, 0, 0, 0)
    }
}

operations! {
    open = open, OPENAT, "5.6", "open::opens_and_closes", Elsewhere::Call("openat(2)");
    openat = openat, OPENAT, "5.6", "open::opens_and_closes", Elsewhere::Call("openat(2)");
    openat2 = openat2, OPENAT2, "5.6", "open::opens_beneath", Elsewhere::Call("openat2(2)");
    close = close, CLOSE, "5.6", "open::opens_and_closes", Elsewhere::Call("close(2)");
}
