//! Accepting, connecting, readiness, closing.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::time::Duration;

use kapok::{foreign, time};
use kapok_engine::{Op, Readiness};

use crate::call::Call;
use crate::errno::Errno;
use crate::sockets;

use super::serve::Closing;
use super::transfer::until_ready;
use super::{answer, failed, serve, status};

/// No time limit.
pub const KAPOK_FOREVER: u64 = u64::MAX;

/// Runs the body of a call that may suspend its fiber, which is interrupted before it as well as in it.
/// `None`: there is no fiber that may be suspended.
fn on_fiber<T>(body: impl FnOnce(&Call) -> Result<T, Errno>) -> Option<io::Result<T>> {
    if let Err(interrupted) = kapok::check_interrupted() {
        return Some(Err(interrupted.into()));
    }
    let done = Call::of_interface(body)?;
    Some(done.map_err(|Errno(number)| io::Error::from_raw_os_error(number)))
}

/// Waits for a connection and takes it: its descriptor, which is close-on-exec and the caller's to
/// close. addr and addrlen are those of accept(2), and may be NULL. Waits whether or not the listener has
/// O_NONBLOCK.
///
/// # Safety
///
/// `addr` is NULL, or has room for `*addrlen` bytes and both may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kapok_accept(
    listener: libc::c_int,
    addr: *mut libc::sockaddr,
    addrlen: *mut libc::socklen_t,
) -> libc::c_int {
    answer(-1, || {
        if !addr.is_null() && addrlen.is_null() {
            return failed(libc::EFAULT);
        }
        // SAFETY: by the caller.
        let accept =
            |call: &Call| unsafe { sockets::accept_at_last(call, listener, addr, addrlen) };
        if let Some(accepted) = on_fiber(accept) {
            return accepted;
        }
        let mut storage = MaybeUninit::<libc::sockaddr_storage>::zeroed();
        let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        let op = Op::Accept { fd: listener, addr: storage.as_mut_ptr(), addr_len: &raw mut len };
        // SAFETY: locals that outlive the call.
        let connection = unsafe { until_ready(op, listener, Readiness::READABLE) }?;
        if !addr.is_null() {
            // SAFETY: by the caller; no more is copied than there is room, or than was filled in, or
            // zero before.
            unsafe {
                let room = addrlen.read().min(len) as usize;
                let known = room.min(size_of::<libc::sockaddr_storage>());
                std::ptr::copy_nonoverlapping(storage.as_ptr().cast::<u8>(), addr.cast(), known);
                addrlen.write(len);
            }
        }
        Ok(connection)
    })
}

/// Connects a socket, and waits until it is connected, whether or not it has O_NONBLOCK. After an
/// error, an interruption included, there is nothing to do with the socket but to close it.
///
/// # Safety
///
/// `addr` points to an address of `addrlen` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kapok_connect(
    fd: libc::c_int,
    addr: *const libc::sockaddr,
    addrlen: libc::socklen_t,
) -> libc::c_int {
    status(|| {
        if addr.is_null() {
            return failed(libc::EFAULT);
        }
        // SAFETY: by the caller.
        let connect = |call: &Call| unsafe { sockets::connect_at_last(call, fd, addr, addrlen) };
        if let Some(connected) = on_fiber(connect) {
            return connected;
        }
        let op = Op::Connect { fd, addr: addr.cast(), addr_len: addrlen };
        // SAFETY: by the caller.
        match unsafe { foreign::run(op) } {
            Ok(_) => Ok(()),
            // On its way, on a socket that does not block.
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
                // SAFETY: a poll names no memory.
                unsafe { foreign::run(Op::Poll { fd, events: Readiness::WRITABLE }) }?;
                match serve::integer_option(fd, libc::SO_ERROR)? {
                    0 => Ok(()),
                    number => failed(number),
                }
            }
            Err(error) => Err(error),
        }
    })
}

/// Waits until one of events (POLLIN, POLLOUT, … of poll(2)) holds of a descriptor, for so many
/// nanoseconds at most, or KAPOK_FOREVER. Gives the events that hold, POLLERR and POLLHUP included, and 0
/// if the time has passed. For libraries that do their own non-blocking calls.
#[unsafe(no_mangle)]
pub extern "C" fn kapok_wait(fd: libc::c_int, events: i16, nanoseconds: u64) -> libc::c_int {
    answer(-1, || {
        if fd < 0 {
            return failed(libc::EBADF);
        }
        let limit = (nanoseconds != KAPOK_FOREVER).then(|| Duration::from_nanos(nanoseconds));
        if !kapok::on_fiber() {
            return wait_on_thread(fd, events, limit);
        }
        let own = limit.and_then(|limit| time::now().checked_add(limit));
        let op = Op::Poll { fd, events: Readiness(events) };
        // SAFETY: a poll names no memory.
        let wait = || unsafe { foreign::run(op) };
        let Some(own) = own else { return wait() };
        // Which of the two it was is told by whether the outer one has passed too.
        let result = kapok::deadline(own, wait);
        match result {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                kapok::check_interrupted()?;
                // Nothing came, and if it was there all along the wait may have been too short to see.
                wait_on_thread(fd, events, Some(Duration::ZERO))
            }
            result => result,
        }
    })
}

fn wait_on_thread(fd: RawFd, events: i16, limit: Option<Duration>) -> io::Result<i32> {
    let until = limit.and_then(|limit| time::now().checked_add(limit));
    loop {
        let mut asked = libc::pollfd { fd, events, revents: 0 };
        let left = until.map(|until| {
            let left = until.saturating_duration_since(time::now());
            libc::timespec {
                tv_sec: left.as_secs() as libc::time_t,
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let timeout = left.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: one pollfd and a timespec, locals that outlive the call.
        match unsafe { libc::ppoll(&raw mut asked, 1, timeout, std::ptr::null()) } {
            0 => return Ok(0),
            1 if asked.revents & libc::POLLNVAL != 0 => return failed(libc::EBADF),
            1 => return Ok(asked.revents.into()),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// Closes a descriptor. Never to be repeated: whatever it gives, the descriptor is gone. The connection
/// that a handler serves is its loop's to close: here it is shut down in both directions, whoever calls,
/// and its number stays taken until the handler returns; a second time gives EBADF.
#[unsafe(no_mangle)]
pub extern "C" fn kapok_close(fd: libc::c_int) -> libc::c_int {
    status(|| {
        match serve::close(fd) {
            Closing::Closes => {}
            Closing::Closed => return failed(libc::EBADF),
            Closing::ShutsDown => {
                // SAFETY: it names no memory.
                let shut = unsafe { foreign::now(Op::Shutdown { fd, how: libc::SHUT_RDWR }) };
                return match shut {
                    Err(error) if error.raw_os_error() != Some(libc::ENOTCONN) => Err(error),
                    _ => Ok(()),
                };
            }
        }
        // By its name, which is the hook's where there are hooks: it tells those who wait.
        // SAFETY: whose the number is the caller knows.
        if unsafe { libc::close(fd) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    })
}
