//! The one layer of system calls.

pub mod descriptors;
mod notifier;
mod perform;

pub(crate) use notifier::Notifier;
pub use perform::perform;
pub(crate) use perform::{connect_outcome, is_nonblocking, once, poll_one, socket_option};

use std::io;

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
