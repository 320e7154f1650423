//! Entries that work on files, and on their names.

use std::ptr::without_provenance_mut as at;

use kapok_engine::entry::Entry;

use super::{A, B, C, Fields, Sample, WIDE, ZERO};

pub(super) fn transfers() -> Vec<Sample> {
    let (a, b) = (A as u64, WIDE);
    vec![
        (
            "read",
            Entry::read(3, at(A), 40, b),
            Fields { opcode: 22, fd: 3, off: b, addr: a, len: 40, ..ZERO },
        ),
        (
            "read_fixed",
            Entry::read_fixed(3, at(A), 40, b, 9),
            Fields { opcode: 4, fd: 3, off: b, addr: a, len: 40, buf_index: 9, ..ZERO },
        ),
        (
            "readv",
            Entry::readv(3, at(A), 4, b),
            Fields { opcode: 1, fd: 3, off: b, addr: a, len: 4, ..ZERO },
        ),
        (
            "readv2",
            Entry::readv2(3, at(A), 4, b, 8),
            Fields { opcode: 1, fd: 3, off: b, addr: a, len: 4, op_flags: 8, ..ZERO },
        ),
        (
            "readv_fixed",
            Entry::readv_fixed(3, at(A), 4, b, 8, 9),
            Fields {
                opcode: 60,
                fd: 3,
                off: b,
                addr: a,
                len: 4,
                op_flags: 8,
                buf_index: 9,
                ..ZERO
            },
        ),
        (
            "write",
            Entry::write(3, at(A), 40, b),
            Fields { opcode: 23, fd: 3, off: b, addr: a, len: 40, ..ZERO },
        ),
        (
            "write_fixed",
            Entry::write_fixed(3, at(A), 40, b, 9),
            Fields { opcode: 5, fd: 3, off: b, addr: a, len: 40, buf_index: 9, ..ZERO },
        ),
        (
            "writev",
            Entry::writev(3, at(A), 4, b),
            Fields { opcode: 2, fd: 3, off: b, addr: a, len: 4, ..ZERO },
        ),
        (
            "writev2",
            Entry::writev2(3, at(A), 4, b, 8),
            Fields { opcode: 2, fd: 3, off: b, addr: a, len: 4, op_flags: 8, ..ZERO },
        ),
        (
            "writev_fixed",
            Entry::writev_fixed(3, at(A), 4, b, 8, 9),
            Fields {
                opcode: 61,
                fd: 3,
                off: b,
                addr: a,
                len: 4,
                op_flags: 8,
                buf_index: 9,
                ..ZERO
            },
        ),
        (
            "read_multishot",
            Entry::read_multishot(3, 40, b, 9),
            Fields { opcode: 49, flags: 32, fd: 3, off: b, len: 40, buf_index: 9, ..ZERO },
        ),
        (
            "splice",
            Entry::splice(3, 0x51, 4, 0x61, 70, 8),
            Fields {
                opcode: 30,
                fd: 4,
                off: 0x61,
                addr: 0x51,
                len: 70,
                op_flags: 8,
                file_index: 3,
                ..ZERO
            },
        ),
        (
            "tee",
            Entry::tee(3, 4, 70, 8),
            Fields { opcode: 33, fd: 4, len: 70, op_flags: 8, file_index: 3, ..ZERO },
        ),
        ("pipe", Entry::pipe(at(A), 8), Fields { opcode: 62, addr: a, op_flags: 8, ..ZERO }),
    ]
}

pub(super) fn files() -> Vec<Sample> {
    let (a, b) = (A as u64, B as u64);
    vec![
        ("fsync", Entry::fsync(3, 1), Fields { opcode: 3, fd: 3, op_flags: 1, ..ZERO }),
        (
            "sync_file_range",
            Entry::sync_file_range(3, 40, WIDE, 2),
            Fields { opcode: 8, fd: 3, off: WIDE, len: 40, op_flags: 2, ..ZERO },
        ),
        (
            "fallocate",
            Entry::fallocate(3, 4, WIDE, WIDE + 1),
            Fields { opcode: 17, fd: 3, off: WIDE, addr: WIDE + 1, len: 4, ..ZERO },
        ),
        ("ftruncate", Entry::ftruncate(3, WIDE), Fields { opcode: 55, fd: 3, off: WIDE, ..ZERO }),
        (
            "fadvise",
            Entry::fadvise(3, WIDE, 40, 2),
            Fields { opcode: 24, fd: 3, off: WIDE, len: 40, op_flags: 2, ..ZERO },
        ),
        (
            "fadvise64",
            Entry::fadvise64(3, WIDE, WIDE + 1, 2),
            Fields { opcode: 24, fd: 3, off: WIDE, addr: WIDE + 1, op_flags: 2, ..ZERO },
        ),
        (
            "madvise",
            Entry::madvise(at(A), 40, 2),
            Fields { opcode: 25, fd: -1, addr: a, len: 40, op_flags: 2, ..ZERO },
        ),
        (
            "madvise64",
            Entry::madvise64(at(A), WIDE, 2),
            Fields { opcode: 25, fd: -1, off: WIDE, addr: a, op_flags: 2, ..ZERO },
        ),
        (
            "statx",
            Entry::statx(3, at(A), 4, 5, at(B)),
            Fields { opcode: 21, fd: 3, off: b, addr: a, len: 5, op_flags: 4, ..ZERO },
        ),
        (
            "open",
            Entry::open(at(A), 4, 5),
            Fields { opcode: 18, fd: -100, addr: a, len: 5, op_flags: 4, ..ZERO },
        ),
        (
            "openat",
            Entry::openat(3, at(A), 4, 5),
            Fields { opcode: 18, fd: 3, addr: a, len: 5, op_flags: 4, ..ZERO },
        ),
        (
            "openat2",
            Entry::openat2(3, at(A), at(B)),
            Fields { opcode: 28, fd: 3, off: b, addr: a, len: 24, ..ZERO },
        ),
        ("close", Entry::close(3), Fields { opcode: 19, fd: 3, ..ZERO }),
    ]
}

pub(super) fn paths() -> Vec<Sample> {
    let (a, b, c) = (A as u64, B as u64, C as u64);
    vec![
        (
            "unlink",
            Entry::unlink(at(A), 4),
            Fields { opcode: 36, fd: -100, addr: a, op_flags: 4, ..ZERO },
        ),
        (
            "unlinkat",
            Entry::unlinkat(3, at(A), 4),
            Fields { opcode: 36, fd: 3, addr: a, op_flags: 4, ..ZERO },
        ),
        (
            "rename",
            Entry::rename(at(A), at(B)),
            Fields { opcode: 35, fd: -100, off: b, addr: a, len: -100i32 as u32, ..ZERO },
        ),
        (
            "renameat",
            Entry::renameat(3, at(A), 4, at(B), 5),
            Fields { opcode: 35, fd: 3, off: b, addr: a, len: 4, op_flags: 5, ..ZERO },
        ),
        ("mkdir", Entry::mkdir(at(A), 4), Fields { opcode: 37, fd: -100, addr: a, len: 4, ..ZERO }),
        (
            "mkdirat",
            Entry::mkdirat(3, at(A), 4),
            Fields { opcode: 37, fd: 3, addr: a, len: 4, ..ZERO },
        ),
        (
            "symlink",
            Entry::symlink(at(A), at(B)),
            Fields { opcode: 38, fd: -100, off: b, addr: a, ..ZERO },
        ),
        (
            "symlinkat",
            Entry::symlinkat(at(A), 3, at(B)),
            Fields { opcode: 38, fd: 3, off: b, addr: a, ..ZERO },
        ),
        (
            "link",
            Entry::link(at(A), at(B), 4),
            Fields {
                opcode: 39,
                fd: -100,
                off: b,
                addr: a,
                len: -100i32 as u32,
                op_flags: 4,
                ..ZERO
            },
        ),
        (
            "linkat",
            Entry::linkat(3, at(A), 4, at(B), 5),
            Fields { opcode: 39, fd: 3, off: b, addr: a, len: 4, op_flags: 5, ..ZERO },
        ),
        (
            "getxattr",
            Entry::getxattr(at(A), at(B), at(C), 4),
            Fields { opcode: 44, off: b, addr: a, len: 4, addr3: c, ..ZERO },
        ),
        (
            "setxattr",
            Entry::setxattr(at(A), at(B), at(C), 5, 4),
            Fields { opcode: 42, off: b, addr: a, len: 4, op_flags: 5, addr3: c, ..ZERO },
        ),
        (
            "fgetxattr",
            Entry::fgetxattr(3, at(A), at(B), 4),
            Fields { opcode: 43, fd: 3, off: b, addr: a, len: 4, ..ZERO },
        ),
        (
            "fsetxattr",
            Entry::fsetxattr(3, at(A), at(B), 5, 4),
            Fields { opcode: 41, fd: 3, off: b, addr: a, len: 4, op_flags: 5, ..ZERO },
        ),
    ]
}
