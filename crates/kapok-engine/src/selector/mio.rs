//! mio: epoll on Linux, kqueue on macOS and the BSDs; edge-triggered.
//!
//! Both directions are registered once, with the number as the token. An event of a description
//! that lives on under another number can therefore wake the wrong one: once too often.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Token};

use crate::op::Readiness;
use crate::selector::{Event, Selector};

/// The most events that one wait reports; the rest keep until the next. So many connections are
/// received from before the first is answered: few enough to be in the processor's caches still.
const BATCH: usize = 32;

/// The selector over [mio](https://docs.rs/mio): epoll(7) or kqueue(2).
pub struct Mio {
    poll: mio::Poll,
    batch: Events,
}

/// Urgent data too: a read stops short of it with more behind, see `Ready`.
#[cfg(any(target_os = "linux", target_os = "android"))]
const INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE).add(Interest::PRIORITY);
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE);

impl Selector for Mio {
    const EDGES: bool = true;

    fn new() -> io::Result<Mio> {
        Ok(Mio { poll: mio::Poll::new()?, batch: Events::with_capacity(BATCH) })
    }

    fn watch(&mut self, fd: RawFd, _interest: Readiness, again: bool) -> io::Result<()> {
        let registry = self.poll.registry();
        let token = Token(fd as usize);
        let register = || registry.register(&mut SourceFd(&fd), token, INTEREST);
        let rearm = || registry.reregister(&mut SourceFd(&fd), token, INTEREST);
        // Who closed or opened the number behind our back made the hint wrong.
        if again {
            match rearm() {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => register(),
                done => done,
            }
        } else {
            match register() {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => rearm(),
                done => done,
            }
        }
    }

    fn unwatch(&mut self, fd: RawFd) {
        // It fails if the number was closed meanwhile, and then there is nothing to undo.
        let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
    }

    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        match self.poll.poll(&mut self.batch, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            done => done?,
        }
        events.extend(
            self.batch
                .iter()
                .map(|event| Event { fd: event.token().0 as RawFd, seen: readiness(event) }),
        );
        Ok(())
    }
}

fn readiness(event: &mio::event::Event) -> Readiness {
    let bits = [
        (event.is_readable(), libc::POLLIN),
        (event.is_writable(), libc::POLLOUT),
        (event.is_priority(), libc::POLLPRI),
        // Some platforms have no bit for "the peer is done": the end of data is readable there.
        (event.is_read_closed(), Readiness::READ_CLOSED.0 | libc::POLLIN),
        (event.is_write_closed(), libc::POLLOUT),
        (event.is_read_closed() && event.is_write_closed(), libc::POLLHUP),
        (event.is_error(), libc::POLLERR),
    ];
    Readiness(bits.iter().filter(|(seen, _)| *seen).fold(0, |all, (_, bit)| all | bit))
}
