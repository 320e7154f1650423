//! Receiving and sending: by system calls that do not block, as often as it takes.

use std::ffi::c_int;
use std::os::fd::RawFd;

use crate::call::Call;
use crate::errno::Errno;
use crate::kernel::kernel;
use crate::patience::{Patience, Side, option, seen};

/// Flags under which a receive never waits, whatever the socket.
const NEVER_WAITS: c_int = libc::MSG_DONTWAIT | libc::MSG_ERRQUEUE;

/// Whether a receive with these flags never waits.
pub(crate) fn never_waits(fd: RawFd, flags: c_int) -> bool {
    // Urgent data is there or not; other sockets know nothing of it and ignore the flag.
    flags & NEVER_WAITS != 0 || (flags & libc::MSG_OOB != 0 && is_stream(fd))
}

/// What one attempt has moved, and whether that is all that its call may move.
pub(super) struct Moved {
    pub(super) count: usize,
    pub(super) complete: bool,
}

/// Receives up to `len` bytes, as recv(2) and its like.
///
/// `attempt` is given how many bytes there are already, and flags. It is asked for the rest only under
/// `MSG_WAITALL`. `at_end` is called if nothing is received because nothing ever will be, and no
/// attempt has said so.
pub(super) fn receive(
    call: &Call,
    fd: RawFd,
    len: usize,
    flags: c_int,
    mut attempt: impl FnMut(usize, c_int) -> Result<Moved, Errno>,
    at_end: impl FnOnce(),
) -> Result<usize, Errno> {
    let may_wait = !never_waits(fd, flags);
    let peek = flags & libc::MSG_PEEK != 0;
    let mut patience = Patience::new(call, fd, Side::Receiving);
    let mut done = 0;
    loop {
        match attempt(done, flags | libc::MSG_DONTWAIT) {
            Ok(moved) => {
                // What is only looked at is seen from its beginning again.
                done = if peek { moved.count } else { done + moved.count };
                let whole = flags & libc::MSG_WAITALL == 0 || moved.complete || done >= len;
                if whole || moved.count == 0 || !may_wait || !is_stream(fd) {
                    return Ok(done);
                }
                patience.progress();
            }
            Err(Errno(libc::EAGAIN)) if may_wait => {
                // Asked not to wait, a datagram socket does not tell that it was shut down.
                if patience.is_fruitless() && seen(fd, libc::POLLRDHUP) & libc::POLLRDHUP != 0 {
                    return match attempt(done, flags | libc::MSG_DONTWAIT) {
                        Ok(moved) => Ok(done + moved.count),
                        Err(Errno(libc::EAGAIN)) => {
                            at_end();
                            Ok(done)
                        }
                        Err(error) => Err(error),
                    };
                }
            }
            Err(_) if done > 0 => return Ok(done),
            Err(error) => return Err(error),
        }
        let waited =
            if peek && done > 0 { wait_for_more(fd, &mut patience) } else { patience.wait() };
        match waited {
            Ok(()) => {}
            Err(_) if done > 0 => return Ok(done),
            // TCP waits for nothing once, and then has it.
            Err(error) if len == 0 && !patience.refuses() && is_tcp(fd) => {
                if error != Errno(libc::EBADF) {
                    at_end();
                    return Ok(0);
                }
                return Err(error);
            }
            Err(error) => return Err(error),
        }
        // The error that broke the connection is for the next call to tell, after what came before.
        if done > 0 && seen(fd, libc::POLLIN) & libc::POLLHUP != 0 && bytes_waiting(fd) == 0 {
            return Ok(done);
        }
    }
}

/// Waits for more while what has come lies in the socket, and so announces itself all the time.
fn wait_for_more(fd: RawFd, patience: &mut Patience<'_>) -> Result<(), Errno> {
    const END: i16 = libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR;
    if seen(fd, libc::POLLRDHUP) & END != 0 {
        return Err(Errno(libc::EAGAIN));
    }
    patience.nap()
}

/// Sends, as send(2) and its like: until `attempt` says that nothing is left, which on a stream is
/// when all is sent.
///
/// `attempt` is given how many bytes were sent already, and flags.
pub(super) fn send(
    call: &Call,
    fd: RawFd,
    flags: c_int,
    mut attempt: impl FnMut(usize, c_int) -> Result<Moved, Errno>,
) -> Result<usize, Errno> {
    let may_wait = flags & libc::MSG_DONTWAIT == 0;
    let mut patience = Patience::new(call, fd, Side::Sending);
    let mut done = 0;
    let mut flags = flags;
    // What a call is refused with that may not wait any longer.
    let mut refusal = Errno(libc::EAGAIN);
    loop {
        // A call that has sent something tells of no error, and so raises no signal.
        let quiet = if done > 0 { libc::MSG_NOSIGNAL } else { 0 };
        match attempt(done, flags | libc::MSG_DONTWAIT | quiet) {
            Ok(moved) => {
                done += moved.count;
                if moved.complete || !may_wait {
                    return Ok(done);
                }
                patience.progress();
            }
            Err(Errno(libc::EAGAIN)) if may_wait => {}
            // It connects first, with the bytes or to find out how to bring them (TCP Fast Open).
            Err(error @ Errno(libc::EINPROGRESS)) if may_wait => refusal = error,
            Err(_) if done > 0 => return Ok(done),
            Err(error) => return Err(error),
        }
        // Connecting is begun once.
        flags &= !libc::MSG_FASTOPEN;
        match patience.wait() {
            Ok(()) => {}
            Err(_) if done > 0 => return Ok(done),
            Err(Errno(libc::EAGAIN)) => return Err(refusal),
            Err(error) => return Err(error),
        }
        // As in `receive`.
        if done > 0 && seen(fd, libc::POLLOUT) & libc::POLLHUP != 0 {
            return Ok(done);
        }
    }
}

pub(super) fn is_stream(fd: RawFd) -> bool {
    option(fd, libc::SO_TYPE) == Ok(libc::SOCK_STREAM)
}

fn is_tcp(fd: RawFd) -> bool {
    is_stream(fd) && option(fd, libc::SO_PROTOCOL) == Ok(libc::IPPROTO_TCP)
}

fn bytes_waiting(fd: RawFd) -> usize {
    let mut count: c_int = 0;
    // SAFETY: writes to a local.
    let _ = unsafe { kernel!(libc::SYS_ioctl, fd, libc::FIONREAD, &raw mut count) };
    count.max(0) as usize
}
