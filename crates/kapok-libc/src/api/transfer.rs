//! Reading and writing.
//!
//! These calls wait, whether or not the descriptor has `O_NONBLOCK`: a fiber that waits keeps nobody
//! from anything. Who does not want to wait passes `MSG_DONTWAIT`.

use std::ffi::c_void;
use std::io;
use std::os::fd::RawFd;

use kapok::foreign;
use kapok_engine::{MAX_TRANSFER, Op, Readiness};

use crate::sockets::never_waits;

use super::answer;

/// Carries out an operation again and again until it has not been refused for want of readiness, for
/// which it waits in between.
///
/// # Safety
///
/// What [`foreign::run`] asks of the operation.
pub(super) unsafe fn until_ready(op: Op, fd: RawFd, events: Readiness) -> io::Result<i32> {
    loop {
        // SAFETY: by the caller.
        match unsafe { foreign::run(op) } {
            // A ring takes `O_NONBLOCK` for the wish not to wait.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                // SAFETY: a poll names no memory.
                unsafe { foreign::run(Op::Poll { fd, events }) }?;
            }
            result => return result,
        }
    }
}

fn is_not_a_socket(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOTSOCK)
}

/// # Safety
///
/// `buf` has room for `len` bytes, and is nobody else's until this returns.
unsafe fn recv(fd: RawFd, buf: *mut u8, len: usize, flags: libc::c_int) -> io::Result<i32> {
    if never_waits(fd, flags) {
        let op = Op::Recv { fd, buf, len, flags: flags | libc::MSG_DONTWAIT };
        // SAFETY: by the caller, here and below.
        return unsafe { foreign::run(op) };
    }
    let op = Op::Recv { fd, buf, len, flags };
    // SAFETY: as above.
    unsafe { until_ready(op, fd, Readiness::READABLE) }
}

/// # Safety
///
/// `buf` has `len` bytes that nobody changes until this returns.
unsafe fn send(fd: RawFd, buf: *const u8, len: usize, flags: libc::c_int) -> io::Result<i32> {
    // No more goes at once, and there is no slice of more than `isize::MAX`.
    let len = len.min(MAX_TRANSFER);
    let op = Op::Send { fd, buf, len, flags };
    if flags & libc::MSG_DONTWAIT != 0 {
        // SAFETY: by the caller, here and below.
        return unsafe { foreign::run(op) };
    }
    if flags == 0 && len > 0 {
        // SAFETY: as above.
        match foreign::send(fd, unsafe { std::slice::from_raw_parts(buf, len) }, flags) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            result => return result,
        }
    }
    // SAFETY: as above.
    unsafe { until_ready(op, fd, Readiness::WRITABLE) }
}

/// Sends all of it, as send(2) does on a socket that blocks: less only if an error or an interruption
/// comes after the first bytes. More than can be told of are not asked for.
fn all(len: usize, mut once: impl FnMut(usize) -> io::Result<i32>) -> io::Result<isize> {
    let len = len.min(isize::MAX as usize);
    let mut done = 0;
    loop {
        match once(done) {
            // No stream says so to some bytes, but a file may be one of somebody's own making.
            Ok(0) => break,
            Ok(count) => done += count as usize,
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
        if done >= len {
            break;
        }
    }
    Ok(done as isize)
}

/// A pointer that Rust takes for one to no bytes.
fn at(buf: *const c_void) -> *const u8 {
    if buf.is_null() { std::ptr::NonNull::dangling().as_ptr() } else { buf.cast() }
}

/// Receives up to len bytes: what has come, at least one, or 0 at the end of a stream. Waits for it,
/// whether or not the socket has O_NONBLOCK, unless flags have MSG_DONTWAIT, MSG_ERRQUEUE or, on a
/// stream, MSG_OOB.
///
/// # Safety
///
/// `buf` has room for `len` bytes, and is nobody else's until this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kapok_recv(
    fd: libc::c_int,
    buf: *mut c_void,
    len: usize,
    flags: libc::c_int,
) -> libc::ssize_t {
    // SAFETY: by the caller.
    answer(-1, || unsafe { recv(fd, at(buf).cast_mut(), len, flags) }.map(|count| count as isize))
}

/// Sends all len bytes, waiting for room, whether or not the socket has O_NONBLOCK. Less is sent only if
/// an error or an interruption comes after the first bytes, or if flags have MSG_DONTWAIT. Raises no
/// SIGPIPE.
///
/// # Safety
///
/// `buf` has `len` bytes that nobody changes until this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kapok_send(
    fd: libc::c_int,
    buf: *const c_void,
    len: usize,
    flags: libc::c_int,
) -> libc::ssize_t {
    answer(-1, || {
        let buf = at(buf);
        if flags & libc::MSG_DONTWAIT != 0 {
            // SAFETY: by the caller.
            return unsafe { send(fd, buf, len, flags) }.map(|count| count as isize);
        }
        // SAFETY: by the caller; `done` is at most `len`.
        all(len, |done| unsafe { send(fd, buf.add(done), len - done, flags) })
    })
}

/// Reads up to count bytes from a socket, pipe, terminal or file, at its current position: what is
/// there, at least one, or 0 at the end. Waits for it, whether or not the descriptor has O_NONBLOCK.
/// count 0 gives 0 at once.
///
/// # Safety
///
/// `buf` has room for `count` bytes, and is nobody else's until this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kapok_read(
    fd: libc::c_int,
    buf: *mut c_void,
    count: usize,
) -> libc::ssize_t {
    answer(-1, || {
        let buf = at(buf).cast_mut();
        if count > 0 {
            // SAFETY: by the caller, here and below.
            match unsafe { recv(fd, buf, count, 0) } {
                Err(error) if is_not_a_socket(&error) => {}
                result => return result.map(|count| count as isize),
            }
        }
        let op = Op::Read { fd, buf, len: count, offset: Op::CURRENT_POSITION };
        // SAFETY: as above.
        unsafe { until_ready(op, fd, Readiness::READABLE) }.map(|count| count as isize)
    })
}

/// Writes all count bytes to a socket, pipe, terminal or file, at its current position, waiting for
/// room, whether or not the descriptor has O_NONBLOCK. Less is written only if an error or an
/// interruption comes after the first bytes. On a socket it raises no SIGPIPE.
///
/// # Safety
///
/// `buf` has `count` bytes that nobody changes until this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kapok_write(
    fd: libc::c_int,
    buf: *const c_void,
    count: usize,
) -> libc::ssize_t {
    answer(-1, || {
        let buf = at(buf);
        let mut socket = count > 0;
        all(count, |done| {
            // SAFETY: by the caller; `done` is at most `count`, here and below.
            let (rest, len) = (unsafe { buf.add(done) }, count - done);
            if socket {
                // SAFETY: as above.
                match unsafe { send(fd, rest, len, 0) } {
                    Err(error) if is_not_a_socket(&error) => socket = false,
                    result => return result,
                }
            }
            let op = Op::Write { fd, buf: rest, len, offset: Op::CURRENT_POSITION };
            // SAFETY: as above.
            unsafe { until_ready(op, fd, Readiness::WRITABLE) }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_no_bytes_is_not_asked_for_ever() {
        let mut asked = 0;
        let sent = all(9, |done| {
            asked += 1;
            assert!(asked < 100, "it goes on and on");
            Ok(if done == 0 { 4 } else { 0 })
        });
        assert_eq!(sent.unwrap(), 4);
    }
}
