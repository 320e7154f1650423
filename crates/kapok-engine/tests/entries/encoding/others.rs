//! Entries that work on sockets, on tables, on time, on memory and on each other.

use std::ptr::without_provenance_mut as at;

use kapok_engine::entry::{Entry, Slot};

use super::{A, B, Fields, KEY, OTHER_KEY, Sample, WIDE, ZERO};

pub(super) fn sockets() -> Vec<Sample> {
    let (a, b) = (A as u64, B as u64);
    let low = u32::from_ne_bytes([28u16.to_ne_bytes()[0], 28u16.to_ne_bytes()[1], 0, 0]);
    vec![
        (
            "socket",
            Entry::socket(3, 4, 5, 6),
            Fields { opcode: 45, fd: 3, off: 4, len: 5, op_flags: 6, ..ZERO },
        ),
        ("bind", Entry::bind(3, at(A), 28), Fields { opcode: 56, fd: 3, off: 28, addr: a, ..ZERO }),
        ("listen", Entry::listen(3, 40), Fields { opcode: 57, fd: 3, len: 40, ..ZERO }),
        (
            "accept",
            Entry::accept(3, at(A), at(B), 4),
            Fields { opcode: 13, fd: 3, off: b, addr: a, op_flags: 4, ..ZERO },
        ),
        (
            "connect",
            Entry::connect(3, at(A), 28),
            Fields { opcode: 16, fd: 3, off: 28, addr: a, ..ZERO },
        ),
        ("shutdown", Entry::shutdown(3, 2), Fields { opcode: 34, fd: 3, len: 2, ..ZERO }),
        (
            "send",
            Entry::send(3, at(A), 40, 5),
            Fields { opcode: 26, fd: 3, addr: a, len: 40, op_flags: 5, ..ZERO },
        ),
        (
            "sendto",
            Entry::sendto(3, at(A), 40, 5, at(B), 28),
            Fields {
                opcode: 26,
                fd: 3,
                off: b,
                addr: a,
                len: 40,
                op_flags: 5,
                file_index: low,
                ..ZERO
            },
        ),
        (
            "send_bundle",
            Entry::send_bundle(3, 40, 5),
            Fields { opcode: 26, ioprio: 16, fd: 3, len: 40, op_flags: 5, ..ZERO },
        ),
        (
            "sendmsg",
            Entry::sendmsg(3, at(A), 5),
            Fields { opcode: 9, fd: 3, addr: a, len: 1, op_flags: 5, ..ZERO },
        ),
        (
            "recv",
            Entry::recv(3, at(A), 40, 5),
            Fields { opcode: 27, fd: 3, addr: a, len: 40, op_flags: 5, ..ZERO },
        ),
        (
            "recvmsg",
            Entry::recvmsg(3, at(A), 5),
            Fields { opcode: 10, fd: 3, addr: a, len: 1, op_flags: 5, ..ZERO },
        ),
        (
            "send_zc",
            Entry::send_zc(3, at(A), 40, 5, 8),
            Fields { opcode: 47, ioprio: 8, fd: 3, addr: a, len: 40, op_flags: 5, ..ZERO },
        ),
        (
            "send_zc_fixed",
            Entry::send_zc_fixed(3, at(A), 40, 5, 8, 9),
            Fields {
                opcode: 47,
                ioprio: 12,
                fd: 3,
                addr: a,
                len: 40,
                op_flags: 5,
                buf_index: 9,
                ..ZERO
            },
        ),
        (
            "sendmsg_zc",
            Entry::sendmsg_zc(3, at(A), 5),
            Fields { opcode: 48, fd: 3, addr: a, len: 1, op_flags: 5, ..ZERO },
        ),
        (
            "sendmsg_zc_fixed",
            Entry::sendmsg_zc_fixed(3, at(A), 5, 9),
            Fields {
                opcode: 48,
                ioprio: 4,
                fd: 3,
                addr: a,
                len: 1,
                op_flags: 5,
                buf_index: 9,
                ..ZERO
            },
        ),
        (
            "recv_multishot",
            Entry::recv_multishot(3, at(A), 40, 5),
            Fields { opcode: 27, ioprio: 2, fd: 3, addr: a, len: 40, op_flags: 5, ..ZERO },
        ),
        (
            "recvmsg_multishot",
            Entry::recvmsg_multishot(3, at(A), 5),
            Fields { opcode: 10, ioprio: 2, fd: 3, addr: a, len: 1, op_flags: 5, ..ZERO },
        ),
        (
            "multishot_accept",
            Entry::multishot_accept(3, at(A), at(B), 4),
            Fields { opcode: 13, ioprio: 1, fd: 3, off: b, addr: a, op_flags: 4, ..ZERO },
        ),
        (
            "multishot_accept_direct",
            Entry::multishot_accept_direct(3, at(A), at(B), 4),
            Fields {
                opcode: 13,
                ioprio: 1,
                fd: 3,
                off: b,
                addr: a,
                op_flags: 4,
                file_index: u32::MAX,
                ..ZERO
            },
        ),
        (
            "provide_buffers",
            Entry::provide_buffers(at(A), 40, 5, 6, 7),
            Fields { opcode: 31, fd: 5, off: 7, addr: a, len: 40, buf_index: 6, ..ZERO },
        ),
        (
            "remove_buffers",
            Entry::remove_buffers(5, 6),
            Fields { opcode: 32, fd: 5, buf_index: 6, ..ZERO },
        ),
    ]
}

pub(super) fn direct() -> Vec<Sample> {
    let (a, b) = (A as u64, B as u64);
    vec![
        (
            "open_direct",
            Entry::open_direct(at(A), 4, 5, Slot::At(6)),
            Fields { opcode: 18, fd: -100, addr: a, len: 5, op_flags: 4, file_index: 7, ..ZERO },
        ),
        (
            "openat_direct",
            Entry::openat_direct(3, at(A), 4, 5, Slot::Any),
            Fields {
                opcode: 18,
                fd: 3,
                addr: a,
                len: 5,
                op_flags: 4,
                file_index: u32::MAX,
                ..ZERO
            },
        ),
        (
            "openat2_direct",
            Entry::openat2_direct(3, at(A), at(B), Slot::At(0)),
            Fields { opcode: 28, fd: 3, off: b, addr: a, len: 24, file_index: 1, ..ZERO },
        ),
        (
            "accept_direct",
            Entry::accept_direct(3, at(A), at(B), 4, Slot::At(6)),
            Fields { opcode: 13, fd: 3, off: b, addr: a, op_flags: 4, file_index: 7, ..ZERO },
        ),
        (
            "socket_direct",
            Entry::socket_direct(3, 4, 5, Slot::At(6), 8),
            Fields { opcode: 45, fd: 3, off: 4, len: 5, op_flags: 8, file_index: 7, ..ZERO },
        ),
        (
            "socket_direct_alloc",
            Entry::socket_direct_alloc(3, 4, 5, 8),
            Fields { opcode: 45, fd: 3, off: 4, len: 5, op_flags: 8, file_index: u32::MAX, ..ZERO },
        ),
        (
            "pipe_direct",
            Entry::pipe_direct(at(A), 8, Slot::At(6)),
            Fields { opcode: 62, addr: a, op_flags: 8, file_index: 7, ..ZERO },
        ),
        ("close_direct", Entry::close_direct(6), Fields { opcode: 19, file_index: 7, ..ZERO }),
        (
            "files_update",
            Entry::files_update(at(A), 4, 5),
            Fields { opcode: 20, fd: -1, off: 5, addr: a, len: 4, ..ZERO },
        ),
        (
            "fixed_fd_install",
            Entry::fixed_fd_install(6, 1),
            Fields { opcode: 54, flags: 1, fd: 6, op_flags: 1, ..ZERO },
        ),
    ]
}

pub(super) fn waits() -> Vec<Sample> {
    let (a, key, other) = (A as u64, KEY.bits(), OTHER_KEY.bits());
    // Halves of the word are swapped on big-endian machines.
    let events = if cfg!(target_endian = "big") { 0x2001 << 16 } else { 0x2001 };
    vec![
        (
            "poll_add",
            Entry::poll_add(3, 0x2001),
            Fields { opcode: 6, fd: 3, op_flags: events, ..ZERO },
        ),
        (
            "poll_multishot",
            Entry::poll_multishot(3, 0x2001),
            Fields { opcode: 6, fd: 3, len: 1, op_flags: events, ..ZERO },
        ),
        ("poll_remove", Entry::poll_remove(KEY), Fields { opcode: 7, fd: -1, addr: key, ..ZERO }),
        (
            "poll_update",
            Entry::poll_update(KEY, Some(OTHER_KEY), 0x2001, 2),
            Fields { opcode: 7, fd: -1, off: other, addr: key, len: 6, op_flags: events, ..ZERO },
        ),
        (
            "epoll_ctl",
            Entry::epoll_ctl(3, 4, 5, at(A)),
            Fields { opcode: 29, fd: 3, off: 4, addr: a, len: 5, ..ZERO },
        ),
        (
            "epoll_wait",
            Entry::epoll_wait(3, at(A), 4, 5),
            Fields { opcode: 59, fd: 3, addr: a, len: 4, op_flags: 5, ..ZERO },
        ),
        (
            "timeout",
            Entry::timeout(at(A), 4, 5),
            Fields { opcode: 11, fd: -1, off: 4, addr: a, len: 1, op_flags: 5, ..ZERO },
        ),
        (
            "timeout_remove",
            Entry::timeout_remove(KEY, 5),
            Fields { opcode: 12, fd: -1, addr: key, op_flags: 5, ..ZERO },
        ),
        (
            "timeout_update",
            Entry::timeout_update(at(A), KEY, 4),
            Fields { opcode: 12, fd: -1, off: a, addr: key, op_flags: 6, ..ZERO },
        ),
        (
            "link_timeout",
            Entry::link_timeout(at(A), 5),
            Fields { opcode: 15, fd: -1, addr: a, len: 1, op_flags: 5, ..ZERO },
        ),
        (
            "cancel",
            Entry::cancel(KEY, 5),
            Fields { opcode: 14, fd: -1, addr: key, op_flags: 5, ..ZERO },
        ),
        (
            "cancel64",
            Entry::cancel(OTHER_KEY, 5),
            Fields { opcode: 14, fd: -1, addr: other, op_flags: 5, ..ZERO },
        ),
        ("cancel_fd", Entry::cancel_fd(3, 5), Fields { opcode: 14, fd: 3, op_flags: 7, ..ZERO }),
        (
            "futex_wait",
            Entry::futex_wait(at(A), WIDE, WIDE + 1, 130, 4),
            Fields {
                opcode: 51,
                fd: 130,
                off: WIDE,
                addr: a,
                op_flags: 4,
                addr3: WIDE + 1,
                ..ZERO
            },
        ),
        (
            "futex_wake",
            Entry::futex_wake(at(A), WIDE, WIDE + 1, 130, 4),
            Fields {
                opcode: 52,
                fd: 130,
                off: WIDE,
                addr: a,
                op_flags: 4,
                addr3: WIDE + 1,
                ..ZERO
            },
        ),
        (
            "futex_waitv",
            Entry::futex_waitv(at(A), 4, 5),
            Fields { opcode: 53, addr: a, len: 4, op_flags: 5, ..ZERO },
        ),
        (
            "waitid",
            Entry::waitid(1, 3, at(A), 4, 5),
            Fields { opcode: 50, fd: 3, off: a, len: 1, op_flags: 5, file_index: 4, ..ZERO },
        ),
    ]
}

pub(super) fn others() -> Vec<Sample> {
    let (a, b, key) = (A as u64, B as u64, KEY.bits());
    let pair = |first: u32, second: u32| {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&first.to_ne_bytes());
        bytes[4..].copy_from_slice(&second.to_ne_bytes());
        u64::from_ne_bytes(bytes)
    };
    let command = |number| pair(number, 0);
    vec![
        ("nop", Entry::nop(), Fields { fd: -1, ..ZERO }),
        ("nop128", Entry::nop128(), Fields { opcode: 63, fd: -1, ..ZERO }),
        (
            "msg_ring",
            Entry::msg_ring(3, 40, KEY, 1),
            Fields { opcode: 40, fd: 3, off: key, len: 40, op_flags: 1, ..ZERO },
        ),
        (
            "msg_ring_cqe_flags",
            Entry::msg_ring_cqe_flags(3, 40, KEY, 1, 8),
            Fields { opcode: 40, fd: 3, off: key, len: 40, op_flags: 3, file_index: 8, ..ZERO },
        ),
        (
            "msg_ring_fd",
            Entry::msg_ring_fd(3, 4, Slot::At(5), KEY, 1),
            Fields {
                opcode: 40,
                fd: 3,
                off: key,
                addr: 1,
                op_flags: 1,
                file_index: 6,
                addr3: 4,
                ..ZERO
            },
        ),
        (
            "msg_ring_fd_alloc",
            Entry::msg_ring_fd_alloc(3, 4, KEY, 1),
            Fields {
                opcode: 40,
                fd: 3,
                off: key,
                addr: 1,
                op_flags: 1,
                file_index: u32::MAX,
                addr3: 4,
                ..ZERO
            },
        ),
        (
            "uring_cmd",
            Entry::uring_cmd(7, 3),
            Fields { opcode: 46, fd: 3, off: command(7), ..ZERO },
        ),
        (
            "uring_cmd128",
            Entry::uring_cmd128(7, 3),
            Fields { opcode: 64, fd: 3, off: command(7), ..ZERO },
        ),
        (
            "cmd_sock",
            Entry::cmd_sock(3, 4, 5, 6, at(A), 8),
            Fields {
                opcode: 46,
                fd: 4,
                off: command(3),
                addr: pair(5, 6),
                file_index: 8,
                addr3: a,
                ..ZERO
            },
        ),
        (
            "cmd_getsockname",
            Entry::cmd_getsockname(3, at(A), at(B), 1),
            Fields { opcode: 46, fd: 3, off: command(5), addr: a, file_index: 1, addr3: b, ..ZERO },
        ),
        (
            "cmd_discard",
            Entry::cmd_discard(3, WIDE, WIDE + 1),
            Fields { opcode: 46, fd: 3, off: command(0x1200), addr: WIDE, addr3: WIDE + 1, ..ZERO },
        ),
        (
            "cmd_zone_reset_all",
            Entry::cmd_zone_reset_all(3),
            Fields { opcode: 46, fd: 3, off: command(0x1201), ..ZERO },
        ),
    ]
}
