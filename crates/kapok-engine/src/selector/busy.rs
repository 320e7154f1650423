//! Busy polling: asks and asks, and never sleeps. The least latency there is, for a processor.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use crate::op::Readiness;
use crate::selector::{Event, Poll, Selector};

/// The selector that never sleeps: poll(2) with no timeout over what is waited for now, whatever
/// timeout it is given.
#[derive(Default)]
pub struct Busy(Poll);

impl Selector for Busy {
    const EDGES: bool = false;
    const SLEEPS: bool = false;

    fn new() -> io::Result<Busy> {
        Ok(Busy::default())
    }

    fn watch(&mut self, fd: RawFd, interest: Readiness, again: bool) -> io::Result<()> {
        self.0.watch(fd, interest, again)
    }

    fn unwatch(&mut self, fd: RawFd) {
        self.0.unwatch(fd);
    }

    fn wait(&mut self, _timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        self.0.wait(Some(Duration::ZERO), events)
    }
}
