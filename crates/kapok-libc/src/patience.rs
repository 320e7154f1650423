//! How long a call on a descriptor may wait, and its waiting.
//!
//! `O_NONBLOCK` and the time-outs belong to what others share: a duplicate, a child, another
//! thread. So nothing of them is remembered. The kernel is asked when a call would wait, and only
//! then.

use std::ffi::c_int;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use crate::call::Call;
use crate::errno::Errno;
use crate::kernel::kernel;
use crate::wait::{self, Descriptor, Stopped};

/// In which direction a descriptor is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Receiving,
    Sending,
}

impl Side {
    fn events(self) -> i16 {
        match self {
            Side::Receiving => libc::POLLIN,
            Side::Sending => libc::POLLOUT,
        }
    }
}

/// Whether somebody has set `O_NONBLOCK`.
pub(crate) fn is_nonblocking(fd: RawFd) -> Result<bool, Errno> {
    // SAFETY: no memory is named.
    let flags = unsafe { kernel!(libc::SYS_fcntl, fd, libc::F_GETFL) }?;
    Ok(flags as c_int & libc::O_NONBLOCK != 0)
}

/// An option of a socket that is an integer.
pub(crate) fn option(fd: RawFd, name: c_int) -> Result<c_int, Errno> {
    let mut value: c_int = 0;
    let mut len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: writes to locals of the sizes that are told.
    unsafe {
        kernel!(libc::SYS_getsockopt, fd, libc::SOL_SOCKET, name, &raw mut value, &raw mut len)
    }?;
    Ok(value)
}

/// The time-out of a socket in one direction: `None` for none, and for what is no socket.
pub(crate) fn time_out(fd: RawFd, side: Side) -> Option<Duration> {
    let name = match side {
        Side::Receiving => libc::SO_RCVTIMEO,
        Side::Sending => libc::SO_SNDTIMEO,
    };
    let mut limit = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let mut len = size_of_val(&limit) as libc::socklen_t;
    // SAFETY: writes to locals of the sizes that are told.
    unsafe {
        kernel!(libc::SYS_getsockopt, fd, libc::SOL_SOCKET, name, &raw mut limit, &raw mut len)
    }
    .ok()?;
    let limit = Duration::from_secs(limit.tv_sec.max(0) as u64)
        + Duration::from_micros(limit.tv_usec.max(0) as u64);
    (!limit.is_zero()).then_some(limit)
}

/// What poll(2) says of a descriptor now.
pub(crate) fn seen(fd: RawFd, events: i16) -> i16 {
    let mut one = libc::pollfd { fd, events, revents: 0 };
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to locals.
    let res = unsafe { kernel!(libc::SYS_ppoll, &raw mut one, 1, &raw mut now, 0, 0) };
    if res.is_ok() { one.revents } else { 0 }
}

/// One call's waiting for a descriptor.
pub(crate) struct Patience<'a> {
    call: &'a Call,
    descriptor: Descriptor,
    side: Side,
    /// Until when it may wait, once that is known: `None` is for good.
    limit: Option<Option<Instant>>,
    /// Waits in a row after which the attempt was refused again.
    fruitless: u32,
}

impl<'a> Patience<'a> {
    /// Made before the first attempt: what happens to the number from here on is noticed.
    pub(crate) fn new(call: &'a Call, fd: RawFd, side: Side) -> Patience<'a> {
        let patience =
            Patience { call, descriptor: Descriptor::new(fd), side, limit: None, fruitless: 0 };
        patience.looks();
        patience
    }

    /// Before an attempt. That a socket was shut down is told to those who send.
    fn looks(&self) {
        if self.side == Side::Sending {
            self.call.looks();
        }
    }

    /// Says that the last wait was worth it.
    pub(crate) fn progress(&mut self) {
        self.fruitless = 0;
    }

    /// Whether the descriptor was announced as ready and was not.
    pub(crate) fn is_fruitless(&self) -> bool {
        self.fruitless > 0
    }

    /// Whether the call may not wait at all.
    pub(crate) fn refuses(&mut self) -> bool {
        self.limit().is_err()
    }

    /// Until when the call may wait: not at all (`EAGAIN`), or for good (`None`).
    pub(crate) fn limit(&mut self) -> Result<Option<Instant>, Errno> {
        if let Some(limit) = self.limit {
            return Ok(limit);
        }
        let fd = self.descriptor.fd;
        if is_nonblocking(fd)? {
            return Err(Errno(libc::EAGAIN));
        }
        // A limit beyond the end of time is none.
        let limit = time_out(fd, self.side).and_then(|limit| Instant::now().checked_add(limit));
        if limit.is_some() {
            // As signal(7) has it of sockets with a time-out.
            self.call.never_restarts();
        }
        self.limit = Some(limit);
        Ok(limit)
    }

    /// Waits until another attempt is worth it, or says what the call ends with: `EAGAIN` if it may
    /// not wait, or no longer.
    pub(crate) fn wait(&mut self) -> Result<(), Errno> {
        let limit = self.limit()?;
        let looks = wait::looks();
        // The kernel announces some things that are not so: room with the peer of a Unix datagram.
        let waited = if self.fruitless < 2 {
            self.call.wait_ready(self.descriptor, self.side.events(), limit)
        } else {
            self.call.nap(&[self.descriptor], limit)
        };
        // One that somebody has ended to have it look says nothing of what is announced.
        self.fruitless += u32::from(looks == wait::looks());
        self.looks();
        waited.map_err(Stopped::errno)
    }

    /// Waits for a moment, where nothing announces what the call waits for.
    pub(crate) fn nap(&mut self) -> Result<(), Errno> {
        let limit = self.limit()?;
        let waited = self.call.nap(&[self.descriptor], limit);
        self.looks();
        waited.map_err(Stopped::errno)
    }

    pub(crate) fn call(&self) -> &'a Call {
        self.call
    }

    pub(crate) fn descriptor(&self) -> Descriptor {
        self.descriptor
    }
}
