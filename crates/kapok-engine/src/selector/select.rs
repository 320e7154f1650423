//! select(2): three bit sets of `FD_SETSIZE` descriptors, rebuilt for every wait.
//!
//! A descriptor beyond the sets is refused: `FD_SET` on it would write past them. And select(2)
//! tells readable, writable and urgent only: a hang-up is "readable", so who waits for nothing but
//! a hang-up is woken by data too, again and again while the data is not read.

use std::io;
use std::os::fd::RawFd;
use std::ptr;
use std::time::Duration;

use crate::op::Readiness;
use crate::selector::{Event, Selector};

const NUMBERS: usize = libc::FD_SETSIZE;

/// What `interest` is none of when the descriptor is not watched.
const UNWATCHED: i16 = libc::POLLNVAL;

/// The selector over pselect(2).
pub struct Select {
    /// By descriptor number.
    interest: Box<[i16; NUMBERS]>,
    read: libc::fd_set,
    write: libc::fd_set,
    urgent: libc::fd_set,
    /// One more than the highest number that was watched since there was none.
    bound: usize,
    watched: usize,
}

impl Select {
    fn index(fd: RawFd) -> io::Result<usize> {
        match usize::try_from(fd) {
            Ok(number) if number < NUMBERS => Ok(number),
            Ok(_) => Err(io::Error::from_raw_os_error(libc::EMFILE)),
            Err(_) => Err(io::Error::from_raw_os_error(libc::EBADF)),
        }
    }

    #[cfg(test)]
    pub(super) fn bound(&self) -> usize {
        self.bound
    }

    fn set(&mut self, number: usize, interest: i16) {
        self.interest[number] = interest;
        let fd = number as RawFd;
        let watched = interest != UNWATCHED;
        let (write, urgent) = (interest & libc::POLLOUT != 0, interest & libc::POLLPRI != 0);
        // Errors and hang-ups, which need no interest elsewhere, show as readable only.
        let read = interest & !(libc::POLLOUT | libc::POLLPRI) != 0 || !(write || urgent);
        for (set, on) in [
            (&mut self.read, watched && read),
            (&mut self.write, watched && write),
            (&mut self.urgent, watched && urgent),
        ] {
            // SAFETY: `number` indexes `interest`, so it is less than FD_SETSIZE and in the set.
            unsafe { if on { libc::FD_SET(fd, set) } else { libc::FD_CLR(fd, set) } }
        }
    }

    /// select(2) says that one of them is not open, but not which one.
    fn report_closed(&self, events: &mut Vec<Event>) {
        for number in 0..self.bound {
            let fd = number as RawFd;
            // SAFETY: fcntl with integer arguments.
            let is_closed = || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0;
            if self.interest[number] != UNWATCHED && is_closed() {
                events.push(Event { fd, seen: Readiness(libc::POLLNVAL) });
            }
        }
    }
}

impl Selector for Select {
    const EDGES: bool = false;
    const LIMIT: Option<RawFd> = Some(NUMBERS as RawFd);

    fn new() -> io::Result<Select> {
        // SAFETY: an fd_set is an array of integers; all zeros is the empty set (FD_ZERO).
        let empty: libc::fd_set = unsafe { std::mem::zeroed() };
        Ok(Select {
            interest: Box::new([UNWATCHED; NUMBERS]),
            read: empty,
            write: empty,
            urgent: empty,
            bound: 0,
            watched: 0,
        })
    }

    fn watch(&mut self, fd: RawFd, interest: Readiness, _again: bool) -> io::Result<()> {
        let number = Select::index(fd)?;
        if self.interest[number] == UNWATCHED {
            self.watched += 1;
            self.bound = self.bound.max(number + 1);
        }
        self.set(number, interest.0 & !UNWATCHED);
        Ok(())
    }

    fn unwatch(&mut self, fd: RawFd) {
        let Ok(number) = Select::index(fd) else { return };
        if self.interest[number] == UNWATCHED {
            return;
        }
        self.set(number, UNWATCHED);
        self.watched -= 1;
        if self.watched == 0 {
            self.bound = 0;
        }
        // Amortised: the bound sinks past what was unwatched before.
        while self.bound > 0 && self.interest[self.bound - 1] == UNWATCHED {
            self.bound -= 1;
        }
    }

    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        let (mut read, mut write, mut urgent) = (self.read, self.write, self.urgent);
        let timeout = timeout.map(super::timespec);
        let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: three local sets, and `bound` is at most FD_SETSIZE; a local timespec or null.
        let mut left = unsafe {
            libc::pselect(
                self.bound as i32,
                &raw mut read,
                &raw mut write,
                &raw mut urgent,
                timeout,
                ptr::null(),
            )
        };
        if left < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EINTR) => Ok(()),
                Some(libc::EBADF) => {
                    self.report_closed(events);
                    Ok(())
                }
                _ => Err(error),
            };
        }
        for number in 0..self.bound {
            if left == 0 {
                break;
            }
            let fd = number as RawFd;
            let mut seen = 0;
            for (set, bit) in
                [(&read, libc::POLLIN), (&write, libc::POLLOUT), (&urgent, libc::POLLPRI)]
            {
                // SAFETY: `number` is less than FD_SETSIZE.
                if unsafe { libc::FD_ISSET(fd, set) } {
                    seen |= bit;
                    left -= 1;
                }
            }
            if seen != 0 {
                events.push(Event { fd, seen: Readiness(seen) });
            }
        }
        Ok(())
    }
}
