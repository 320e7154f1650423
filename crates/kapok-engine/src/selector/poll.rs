//! poll(2) over the descriptors that are waited for now: no limit, no state in the kernel, and the
//! whole list copied and walked on every wait.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use crate::op::Readiness;
use crate::selector::{Event, Selector};

const ABSENT: u32 = u32::MAX;

/// The selector over poll(2); ppoll(2) where there is one, for its nanoseconds.
#[derive(Default)]
pub struct Poll {
    watched: Vec<libc::pollfd>,
    /// By descriptor number: where in `watched` it is.
    place: Vec<u32>,
}

impl Selector for Poll {
    const EDGES: bool = false;

    fn new() -> io::Result<Poll> {
        Ok(Poll::default())
    }

    fn watch(&mut self, fd: RawFd, interest: Readiness, _again: bool) -> io::Result<()> {
        let Ok(number) = usize::try_from(fd) else {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        };
        if number >= self.place.len() {
            self.place.resize((number + 1).next_power_of_two(), ABSENT);
        }
        match self.place[number] {
            ABSENT => {
                self.place[number] = self.watched.len() as u32;
                self.watched.push(libc::pollfd { fd, events: interest.0, revents: 0 });
            }
            at => self.watched[at as usize].events = interest.0,
        }
        Ok(())
    }

    fn unwatch(&mut self, fd: RawFd) {
        let Some(place) = self.place.get_mut(fd as usize) else { return };
        let at = std::mem::replace(place, ABSENT);
        if at == ABSENT {
            return;
        }
        self.watched.swap_remove(at as usize);
        if let Some(moved) = self.watched.get(at as usize) {
            self.place[moved.fd as usize] = at;
        }
    }

    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        let ready = poll(&mut self.watched, timeout);
        if ready < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        events.extend(
            self.watched
                .iter()
                .filter(|one| one.revents != 0)
                .take(ready as usize)
                .map(|one| Event { fd: one.fd, seen: Readiness(one.revents) }),
        );
        Ok(())
    }
}

#[cfg(any(
    target_os = "linux",
    target_os = "android",
    target_os = "freebsd",
    target_os = "dragonfly",
    target_os = "openbsd"
))]
fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> i32 {
    let timeout = timeout.map(super::timespec);
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the slice's own pointer and length, a local timespec or null, no signal mask.
    unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout, std::ptr::null()) }
}

#[cfg(not(any(
    target_os = "linux",
    target_os = "android",
    target_os = "freebsd",
    target_os = "dragonfly",
    target_os = "openbsd"
)))]
fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> i32 {
    // Rounded up: a timeout that is cut short spins until its deadline.
    let timeout = timeout.map_or(-1, |timeout| {
        i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
    });
    // SAFETY: the slice's own pointer and length.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) }
}
