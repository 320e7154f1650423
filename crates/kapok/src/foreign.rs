//! What the C interface asks of a fiber, where Rust has borrows and closures. Not for programs:
//! `kapok-libc` stands on this, and it changes with it.

use std::io;
use std::time::Instant;

use kapok_engine::Op;

use crate::op;
use crate::runtime::Loop;
use crate::server::{Counters, Server, Work};

/// Carries out `op` and waits for it, as every call of this crate does: a fiber is suspended until it
/// has landed, a plain thread is blocked.
///
/// # Errors
///
/// The operation's; cancellation and deadlines.
///
/// # Safety
///
/// Memory named by `op` is valid and unaliased (shared, if only read) for the duration of this
/// call. The descriptor is open, or its number is nobody's.
pub unsafe fn run(op: Op) -> io::Result<i32> {
    // SAFETY: by the caller.
    unsafe { op::run(op) }
}

/// Sends from `buf`, at once if there is room; see [`run`]. `flags` are the program's: with `MSG_ZEROCOPY` the
/// kernel reads `buf` until it says otherwise in the socket's error queue, and who asks for that keeps it.
///
/// # Errors
///
/// As for [`run`].
pub fn send(fd: i32, buf: &[u8], flags: i32) -> io::Result<i32> {
    op::send(fd, buf, flags)
}

/// Carries out an operation that never waits, in whatever world the caller is.
///
/// # Errors
///
/// The operation's.
///
/// # Safety
///
/// As for [`run`].
pub unsafe fn now(op: Op) -> io::Result<i32> {
    // SAFETY: by the caller.
    unsafe { op::now(op) }
}

/// Runs a server with the work that `add` adds, on the caller's thread, when the loop has begun: nothing can
/// refuse to run it then.
///
/// # Errors
///
/// As for [`Server::run`]; `add` was not called.
pub fn run_server(server: Server, add: impl FnOnce(&mut Work) + 'static) -> io::Result<Counters> {
    server.run_with(add)
}

/// What may interrupt the code that runs: [`timeout`](crate::timeout) and [`shield`](crate::shield)
/// without their closures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// The nearest deadline.
    pub deadline: Option<Instant>,
    /// How many shields keep the fiber's cancellation out.
    pub shields: u32,
}

/// Puts other limits around the code that runs on a fiber, and returns the former ones. `None`: on no
/// fiber, where nothing was changed. Whoever changes them puts them back, in the opposite order.
pub fn change_limits(change: impl FnOnce(Limits) -> Limits) -> Option<Limits> {
    Loop::with_running(|running| {
        let (_, fiber) = running?;
        // SAFETY: the fiber that runs is alive and ours; plain fields, copied.
        let former = unsafe {
            let local = fiber.as_ref().local();
            Limits { deadline: (*local).deadline, shields: (*local).shields }
        };
        let changed = change(former);
        // SAFETY: as above.
        unsafe {
            let local = fiber.as_ref().local();
            (*local).deadline = changed.deadline;
            (*local).shields = changed.shields;
        }
        Some(former)
    })
}
