//! Making sockets: close-on-exec from the start where the kernel can, and never a SIGPIPE.

use std::os::fd::RawFd;

use crate::sys::landed;

/// socket(2).
pub(super) fn socket(domain: i32, kind: i32, protocol: i32) -> i32 {
    // SAFETY: socket takes integers.
    prepared(landed(unsafe { libc::socket(domain, kind | CLOSE_ON_EXEC, protocol) } as isize))
}

/// socketpair(2) of Unix sockets.
///
/// # Safety
///
/// `fds` is valid for a write.
pub(super) unsafe fn socket_pair(kind: i32, fds: *mut [RawFd; 2]) -> i32 {
    // SAFETY: the caller's promise.
    let res = landed(unsafe {
        libc::socketpair(libc::AF_UNIX, kind | CLOSE_ON_EXEC, 0, fds.cast()) as isize
    });
    if res == 0 {
        // SAFETY: as above, and the kernel has written it.
        for fd in unsafe { *fds } {
            prepared(fd);
        }
    }
    res
}

/// accept4(2). The accepted stream stays a blocking descriptor: its users pass `MSG_DONTWAIT`.
///
/// # Safety
///
/// `addr` and `addr_len` are as accept(2) wants them; both null is allowed.
pub(super) unsafe fn accept(
    fd: RawFd,
    addr: *mut libc::sockaddr_storage,
    addr_len: *mut libc::socklen_t,
) -> i32 {
    // SAFETY: the caller's promise.
    landed(unsafe { accept_prepared(fd, addr.cast(), addr_len) } as isize)
}

#[cfg(not(any(target_os = "macos", target_os = "ios")))]
use with_flags::{CLOSE_ON_EXEC, accept_prepared, prepared};
#[cfg(any(target_os = "macos", target_os = "ios"))]
use without_flags::{CLOSE_ON_EXEC, accept_prepared, prepared};

#[cfg(not(any(target_os = "macos", target_os = "ios")))]
mod with_flags {
    pub(super) const CLOSE_ON_EXEC: i32 = libc::SOCK_CLOEXEC;

    pub(super) fn prepared(fd: i32) -> i32 {
        fd
    }

    pub(super) unsafe fn accept_prepared(
        fd: i32,
        addr: *mut libc::sockaddr,
        addr_len: *mut libc::socklen_t,
    ) -> i32 {
        // SAFETY: the caller's promise.
        unsafe { libc::accept4(fd, addr, addr_len, libc::SOCK_CLOEXEC) }
    }
}

/// Without flags at the call they are set after it.
#[cfg(any(target_os = "macos", target_os = "ios"))]
mod without_flags {
    pub(super) const CLOSE_ON_EXEC: i32 = 0;

    pub(super) fn prepared(fd: i32) -> i32 {
        if fd >= 0 {
            let on: i32 = 1;
            // SAFETY: fcntl takes integers; the option is a local of the size that is passed.
            unsafe {
                libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
                libc::setsockopt(
                    fd,
                    libc::SOL_SOCKET,
                    libc::SO_NOSIGPIPE,
                    (&raw const on).cast(),
                    size_of::<i32>() as libc::socklen_t,
                );
            }
        }
        fd
    }

    /// The inherited `O_NONBLOCK` is taken off.
    pub(super) unsafe fn accept_prepared(
        fd: i32,
        addr: *mut libc::sockaddr,
        addr_len: *mut libc::socklen_t,
    ) -> i32 {
        // SAFETY: the caller's promise for accept; fcntl takes integers.
        unsafe {
            let stream = prepared(libc::accept(fd, addr, addr_len));
            if stream >= 0 {
                let flags = libc::fcntl(stream, libc::F_GETFL);
                libc::fcntl(stream, libc::F_SETFL, flags & !libc::O_NONBLOCK);
            }
            stream
        }
    }
}
