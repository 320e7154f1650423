//! epoll(7), edge-triggered, as [`Mio`](super::Mio) has it: both directions are registered once, with the
//! number as what events bring back.
//!
//! The difference is the instance's own number. mio's is the lowest that was free, which programs
//! reach for; this one is [`OwnDescriptor`]'s.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use crate::op::Readiness;
use crate::selector::{Event, Selector};
use crate::sys::own::{OwnDescriptor, made};

/// The most events that one wait reports; the rest keep until the next. So many connections are
/// received from before the first is answered: few enough to be in the processor's caches still.
const BATCH: usize = 32;

/// Urgent data too: a read stops short of it with more behind, see `Ready`.
const INTEREST: i32 =
    libc::EPOLLET | libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLOUT | libc::EPOLLPRI;

/// The selector over epoll(7).
pub struct Epoll {
    instance: OwnDescriptor,
    batch: Box<[libc::epoll_event; BATCH]>,
}

impl Epoll {
    fn control(&self, how: i32, fd: RawFd) -> io::Result<()> {
        let mut event = libc::epoll_event { events: INTEREST as u32, u64: fd as u64 };
        // SAFETY: reads a local.
        let res = unsafe { libc::epoll_ctl(self.instance.as_raw_fd(), how, fd, &raw mut event) };
        if res < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Selector for Epoll {
    const EDGES: bool = true;

    fn new() -> io::Result<Epoll> {
        // SAFETY: no memory is named; what it makes is a descriptor.
        let instance = unsafe { made(libc::epoll_create1(libc::EPOLL_CLOEXEC)) }?;
        let nothing = libc::epoll_event { events: 0, u64: 0 };
        Ok(Epoll { instance: OwnDescriptor::new(instance), batch: Box::new([nothing; BATCH]) })
    }

    fn watch(&mut self, fd: RawFd, _interest: Readiness, again: bool) -> io::Result<()> {
        let (first, otherwise, wrong) = match again {
            true => (libc::EPOLL_CTL_MOD, libc::EPOLL_CTL_ADD, libc::ENOENT),
            false => (libc::EPOLL_CTL_ADD, libc::EPOLL_CTL_MOD, libc::EEXIST),
        };
        match self.control(first, fd) {
            // Who closed or opened the number behind our back made the hint wrong.
            Err(error) if error.raw_os_error() == Some(wrong) => self.control(otherwise, fd),
            done => done,
        }
    }

    fn unwatch(&mut self, fd: RawFd) {
        // It fails if the number was closed meanwhile, and then there is nothing to undo.
        let _ = self.control(libc::EPOLL_CTL_DEL, fd);
    }

    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        // Rounded up: a wait that is too short would be made again at once.
        let timeout_ms = timeout.map_or(-1, |timeout| {
            i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
        });
        let (instance, room) = (self.instance.as_raw_fd(), BATCH as i32);
        // SAFETY: room for as many as are told.
        let count =
            unsafe { libc::epoll_wait(instance, self.batch.as_mut_ptr(), room, timeout_ms) };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            let interrupted = error.kind() == io::ErrorKind::Interrupted;
            return if interrupted { Ok(()) } else { Err(error) };
        };
        events.extend(
            self.batch[..count]
                .iter()
                .map(|event| Event { fd: event.u64 as RawFd, seen: readiness(event.events) }),
        );
        Ok(())
    }
}

/// What the event says, as mio reads it: the end of data is readable, what is done for both sides is a
/// hang-up.
fn readiness(seen: u32) -> Readiness {
    let has = |bits: i32| seen & bits as u32 != 0;
    let both = libc::EPOLLIN | libc::EPOLLRDHUP;
    let read_closed = has(libc::EPOLLHUP) || seen & both as u32 == both as u32;
    let write_closed = has(libc::EPOLLHUP)
        || has(libc::EPOLLERR) && (has(libc::EPOLLOUT) || seen == libc::EPOLLERR as u32);
    let bits = [
        (has(libc::EPOLLIN | libc::EPOLLPRI), libc::POLLIN),
        (has(libc::EPOLLOUT), libc::POLLOUT),
        (has(libc::EPOLLPRI), libc::POLLPRI),
        (read_closed, Readiness::READ_CLOSED.0 | libc::POLLIN),
        (write_closed, libc::POLLOUT),
        (read_closed && write_closed, libc::POLLHUP),
        (has(libc::EPOLLERR), libc::POLLERR),
    ];
    Readiness(bits.iter().filter(|(seen, _)| *seen).fold(0, |all, (_, bit)| all | bit))
}
