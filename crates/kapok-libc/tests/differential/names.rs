//! The names that one call goes by: those of checked buffers, of large files, and of the calls that are
//! another with an argument more. Which is taken is up to `way`, the same in each world.

use std::ffi::{c_int, c_void};
use std::os::fd::RawFd;
use std::ptr::{null, null_mut};

use libc::{iovec, pollfd, size_t, sockaddr, socklen_t, ssize_t, timespec, timeval};

type Bytes = *mut c_void;

unsafe extern "C" {
    fn __recv_chk(fd: c_int, buf: Bytes, len: size_t, room: size_t, flags: c_int) -> ssize_t;
    fn __recvfrom_chk(
        fd: c_int,
        buf: Bytes,
        len: size_t,
        room: size_t,
        flags: c_int,
        addr: *mut sockaddr,
        addr_len: *mut socklen_t,
    ) -> ssize_t;
    fn __read_chk(fd: c_int, buf: Bytes, len: size_t, room: size_t) -> ssize_t;
    fn __pread_chk(fd: c_int, buf: Bytes, len: size_t, at: i64, room: size_t) -> ssize_t;
    fn __pread64_chk(fd: c_int, buf: Bytes, len: size_t, at: i64, room: size_t) -> ssize_t;
    fn __poll_chk(fds: *mut pollfd, count: libc::nfds_t, ms: c_int, room: size_t) -> c_int;
    fn __ppoll_chk(
        fds: *mut pollfd,
        count: libc::nfds_t,
        timeout: *const timespec,
        mask: *const libc::sigset_t,
        room: size_t,
    ) -> c_int;
    fn epoll_pwait2(
        epoll: c_int,
        events: *mut libc::epoll_event,
        most: c_int,
        timeout: *const timespec,
        mask: *const libc::sigset_t,
    ) -> c_int;
    fn preadv64v2(fd: c_int, parts: *const iovec, count: c_int, at: i64, flags: c_int) -> ssize_t;
    fn pwritev64v2(fd: c_int, parts: *const iovec, count: c_int, at: i64, flags: c_int) -> ssize_t;
    fn thrd_sleep(time: *const timespec, left: *mut timespec) -> c_int;
}

fn after_ms(ms: c_int) -> timespec {
    timespec { tv_sec: 0, tv_nsec: i64::from(ms) * 1_000_000 }
}

/// # Safety
///
/// Of this and all others here: as for the calls.
pub(crate) unsafe fn recv(way: u8, fd: RawFd, buf: Bytes, len: usize, flags: c_int) -> ssize_t {
    // SAFETY: by the caller.
    unsafe {
        match way % 4 {
            0 => libc::recv(fd, buf, len, flags),
            1 => __recv_chk(fd, buf, len, len, flags),
            2 => libc::recvfrom(fd, buf, len, flags, null_mut(), null_mut()),
            _ => __recvfrom_chk(fd, buf, len, len, flags, null_mut(), null_mut()),
        }
    }
}

/// # Safety
///
/// See [`recv`].
pub(crate) unsafe fn send(way: u8, fd: RawFd, buf: Bytes, len: usize, flags: c_int) -> ssize_t {
    // SAFETY: by the caller.
    unsafe {
        match way % 2 {
            0 => libc::send(fd, buf, len, flags),
            _ => libc::sendto(fd, buf, len, flags, null(), 0),
        }
    }
}

/// # Safety
///
/// See [`recv`].
pub(crate) unsafe fn read(way: u8, fd: RawFd, buf: Bytes, len: usize) -> ssize_t {
    // SAFETY: by the caller.
    unsafe {
        match way % 2 {
            0 => libc::read(fd, buf, len),
            _ => __read_chk(fd, buf, len, len),
        }
    }
}

/// # Safety
///
/// See [`recv`].
pub(crate) unsafe fn readv(way: u8, fd: RawFd, parts: *const iovec, count: c_int) -> ssize_t {
    // SAFETY: by the caller.
    unsafe {
        match way % 3 {
            0 => libc::readv(fd, parts, count),
            1 => libc::preadv2(fd, parts, count, -1, 0),
            _ => preadv64v2(fd, parts, count, -1, 0),
        }
    }
}

/// # Safety
///
/// See [`recv`].
pub(crate) unsafe fn writev(way: u8, fd: RawFd, parts: *const iovec, count: c_int) -> ssize_t {
    // SAFETY: by the caller.
    unsafe {
        match way % 3 {
            0 => libc::writev(fd, parts, count),
            1 => libc::pwritev2(fd, parts, count, -1, 0),
            _ => pwritev64v2(fd, parts, count, -1, 0),
        }
    }
}

/// # Safety
///
/// See [`recv`].
pub(crate) unsafe fn pread(way: u8, fd: RawFd, buf: Bytes, len: usize, at: i64) -> ssize_t {
    let part = iovec { iov_base: buf, iov_len: len };
    // SAFETY: by the caller.
    unsafe {
        match way % 8 {
            0 => libc::pread(fd, buf, len, at),
            1 => libc::pread64(fd, buf, len, at),
            2 => __pread_chk(fd, buf, len, at, len),
            3 => __pread64_chk(fd, buf, len, at, len),
            4 => libc::preadv(fd, &raw const part, 1, at),
            5 => libc::preadv64(fd, &raw const part, 1, at),
            6 => libc::preadv2(fd, &raw const part, 1, at, 0),
            _ => preadv64v2(fd, &raw const part, 1, at, 0),
        }
    }
}

/// # Safety
///
/// See [`recv`].
pub(crate) unsafe fn pwrite(way: u8, fd: RawFd, buf: Bytes, len: usize, at: i64) -> ssize_t {
    let part = iovec { iov_base: buf, iov_len: len };
    // SAFETY: by the caller.
    unsafe {
        match way % 6 {
            0 => libc::pwrite(fd, buf, len, at),
            1 => libc::pwrite64(fd, buf, len, at),
            2 => libc::pwritev(fd, &raw const part, 1, at),
            3 => libc::pwritev64(fd, &raw const part, 1, at),
            4 => libc::pwritev2(fd, &raw const part, 1, at, 0),
            _ => pwritev64v2(fd, &raw const part, 1, at, 0),
        }
    }
}

/// # Safety
///
/// See [`recv`].
pub(crate) unsafe fn poll(way: u8, fds: &mut [pollfd], ms: c_int) -> c_int {
    let (at, count, room) = (fds.as_mut_ptr(), fds.len() as libc::nfds_t, size_of_val(fds));
    let time = after_ms(ms);
    // SAFETY: by the caller.
    unsafe {
        match way % 4 {
            0 => libc::poll(at, count, ms),
            1 => __poll_chk(at, count, ms, room),
            2 => libc::ppoll(at, count, &raw const time, null()),
            _ => __ppoll_chk(at, count, &raw const time, null(), room),
        }
    }
}

/// # Safety
///
/// See [`recv`].
pub(crate) unsafe fn select(
    way: u8,
    count: c_int,
    sets: [*mut libc::fd_set; 3],
    timeout: *mut timeval,
) -> c_int {
    let [readable, writable, exceptional] = sets;
    // SAFETY: by the caller.
    unsafe {
        let time = timespec { tv_sec: (*timeout).tv_sec, tv_nsec: (*timeout).tv_usec * 1000 };
        match way % 2 {
            0 => libc::select(count, readable, writable, exceptional, timeout),
            _ => {
                *timeout = timeval { tv_sec: 0, tv_usec: 0 };
                libc::pselect(count, readable, writable, exceptional, &raw const time, null())
            }
        }
    }
}

/// # Safety
///
/// See [`recv`].
pub(crate) unsafe fn epoll_wait(
    way: u8,
    epoll: RawFd,
    events: &mut [libc::epoll_event],
    ms: c_int,
) -> c_int {
    let (at, most, time) = (events.as_mut_ptr(), events.len() as c_int, after_ms(ms));
    // SAFETY: by the caller.
    unsafe {
        match way % 3 {
            0 => libc::epoll_wait(epoll, at, most, ms),
            1 => libc::epoll_pwait(epoll, at, most, ms, null()),
            _ => epoll_pwait2(epoll, at, most, &raw const time, null()),
        }
    }
}

/// # Safety
///
/// See [`recv`].
pub(crate) unsafe fn accept(
    way: u8,
    fd: RawFd,
    addr: *mut sockaddr,
    len: *mut socklen_t,
    flags: c_int,
) -> c_int {
    // SAFETY: by the caller.
    unsafe {
        match (way % 2, flags) {
            (0, 0) => libc::accept(fd, addr, len),
            _ => libc::accept4(fd, addr, len, flags),
        }
    }
}

/// # Safety
///
/// See [`recv`].
pub(crate) unsafe fn sendfile(way: u8, out: RawFd, from: RawFd, len: usize) -> ssize_t {
    // SAFETY: by the caller.
    unsafe {
        match way % 2 {
            0 => libc::sendfile(out, from, null_mut(), len),
            _ => libc::sendfile64(out, from, null_mut(), len),
        }
    }
}

/// Locks ten bytes for writing.
///
/// # Safety
///
/// See [`recv`].
pub(crate) unsafe fn lock_section(way: u8, fd: RawFd, section: &mut libc::flock) -> c_int {
    unsafe extern "C" {
        fn fcntl64(fd: c_int, command: c_int, argument: *mut libc::flock) -> c_int;
        fn lockf64(fd: c_int, command: c_int, len: i64) -> c_int;
    }
    // SAFETY: by the caller.
    unsafe {
        match way % 4 {
            0 => libc::fcntl(fd, libc::F_SETLKW, section),
            1 => fcntl64(fd, libc::F_SETLKW, section),
            2 => libc::lockf(fd, libc::F_LOCK, 10),
            _ => lockf64(fd, libc::F_TLOCK, 10),
        }
    }
}

/// A short sleep, or none.
///
/// # Safety
///
/// See [`recv`].
pub(crate) unsafe fn short_sleep(way: u8) -> c_int {
    let time = timespec { tv_sec: 0, tv_nsec: 10_000 };
    // SAFETY: by the caller.
    unsafe {
        match way % 5 {
            0 => libc::usleep(10),
            1 => libc::sleep(0) as c_int,
            2 => thrd_sleep(&raw const time, null_mut()),
            3 => libc::clock_nanosleep(libc::CLOCK_REALTIME, 0, &raw const time, null_mut()),
            _ => libc::clock_nanosleep(99, 0, &raw const time, null_mut()),
        }
    }
}
