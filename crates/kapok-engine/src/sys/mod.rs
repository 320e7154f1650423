//! The one layer of system calls.

pub mod descriptors;
mod ended;
#[cfg(target_os = "linux")]
pub(crate) mod entry;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub mod kernel;
mod notifier;
mod now;
pub mod own;
mod perform;
mod sockets;

pub use ended::outcome_of_refused;
pub(crate) use ended::{ORDINARY, describe_end, is_at_end};
pub use notifier::Notifier;
pub use now::{read_now, recv_now, send_now, write_now};
#[cfg(target_os = "linux")]
pub(crate) use perform::is_direct;
pub use perform::perform;
pub(crate) use perform::{
    bytes_waiting, connect_outcome, is_nonblocking, is_open, once, poll_one, socket_option,
};

use std::io;
use std::os::fd::RawFd;
use std::time::Instant;

use crate::op::Readiness;

/// The calling thread's `errno`.
#[inline]
pub(crate) fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// The result of a system call in the form in which operations land: a non-negative value, or
/// `-errno`. Values beyond `i32` cannot occur, see [`MAX_TRANSFER`](crate::MAX_TRANSFER).
#[inline]
pub(crate) fn landed(res: isize) -> i32 {
    if res < 0 { -errno() } else { res as i32 }
}

/// Blocks the calling thread until one of `events` holds of `fd`.
///
/// # Errors
///
/// `TimedOut` when `deadline` has passed; what poll(2) says, `EBADF` for a number that is not open.
pub fn wait_ready(
    fd: RawFd,
    events: Readiness,
    deadline: Option<Instant>,
) -> io::Result<Readiness> {
    loop {
        let timeout_ms = match deadline {
            None => -1,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                // Rounded up: waiting too long by less than a millisecond beats spinning.
                i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
            }
        };
        match poll_one(fd, events, timeout_ms) {
            0 if timeout_ms == 0 => return Err(io::ErrorKind::TimedOut.into()),
            0 => {}
            res if res < 0 => return Err(io::Error::from_raw_os_error(-res)),
            seen => return Ok(Readiness(seen as i16)),
        }
    }
}

/// Runs `f` and leaves `errno` as it was before: for signal handlers.
pub fn preserving_errno<R>(f: impl FnOnce() -> R) -> R {
    let saved = errno();
    let result = f();
    set_errno(saved);
    result
}

/// Sets the calling thread's `errno`.
pub(crate) fn set_errno(value: i32) {
    // SAFETY: the pointer is to the calling thread's own errno.
    unsafe {
        #[cfg(any(target_os = "linux", target_os = "dragonfly"))]
        let errno = libc::__errno_location();
        #[cfg(any(target_os = "macos", target_os = "ios", target_os = "freebsd"))]
        let errno = libc::__error();
        #[cfg(any(target_os = "netbsd", target_os = "openbsd", target_os = "android"))]
        let errno = libc::__errno();
        *errno = value;
    }
}
