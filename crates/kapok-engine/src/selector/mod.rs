//! Selectors: who says when a descriptor is ready.
//!
//! Behind one small trait stand those of edges, [`Mio`] (epoll or kqueue) and [`Epoll`] (the same epoll
//! under a number that programs do not reach for), and those of levels, [`Poll`], [`Select`] and [`Busy`]. The readiness engine, [`Ready`](crate::Ready), is written once
//! over it.

mod busy;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod epoll;
mod mio;
mod poll;
mod select;

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

pub use busy::Busy;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub use epoll::Epoll;
pub use mio::Mio;
pub use poll::Poll;
pub use select::Select;

use crate::op::Readiness;

/// What was seen on a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// The descriptor.
    pub fd: RawFd,
    /// What holds, or held. Bits that the system's call cannot tell apart may be missing;
    /// `POLLNVAL` says that the number is not open.
    pub seen: Readiness,
}

/// Says when descriptors are ready. May always say so once too often, never once too seldom.
///
/// # Edges
///
/// If [`EDGES`](Selector::EDGES), a descriptor is reported when it *becomes* ready, in any
/// direction, whatever is waited for; and [`watch`](Selector::watch) reports it once if it is ready
/// then. Who attempts first and watches after therefore misses nothing, and one watch serves as
/// long as the number names the same descriptor.
///
/// # Levels
///
/// Otherwise a descriptor is reported by every [`wait`](Selector::wait) for as long as anything
/// that it is watched for holds, so who has nothing to do with it any more must unwatch it.
pub trait Selector: Sized {
    /// Edges or levels.
    const EDGES: bool;
    /// Whether [`wait`](Selector::wait) sleeps. One that does not returns at once, always.
    const SLEEPS: bool = true;
    /// The smallest descriptor number that cannot be watched.
    const LIMIT: Option<RawFd> = None;

    /// A selector that watches nothing.
    ///
    /// # Errors
    ///
    /// Those of the system call that makes it.
    fn new() -> io::Result<Self>;

    /// Watches `fd` for `interest`, in place of what it was watched for. `again` says that it was
    /// watched before, as far as the caller knows: a hint that saves a system call.
    ///
    /// # Errors
    ///
    /// If it cannot be watched: not open, beyond [`LIMIT`](Selector::LIMIT), of a kind without
    /// readiness (`EPERM`), no memory.
    fn watch(&mut self, fd: RawFd, interest: Readiness, again: bool) -> io::Result<()>;

    /// Watches `fd` no longer. One that is not watched is no error.
    fn unwatch(&mut self, fd: RawFd);

    /// Waits for something to be ready, at most `timeout` rounded up to what the system counts in,
    /// and appends it to `events`. A signal ends it early, and is no error.
    ///
    /// # Errors
    ///
    /// Only if the selector is broken for good.
    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()>;
}

/// A timeout for ppoll(2) and pselect(2).
fn timespec(timeout: Duration) -> libc::timespec {
    // A century is for ever, and fits every `time_t`.
    let timeout = timeout.min(Duration::from_secs(i32::MAX as u64));
    libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: timeout.subsec_nanos() as libc::c_long,
    }
}

#[cfg(test)]
mod tests;
