//! Cancellation and deadlines: reasons for a call to return before it has what it waited for.
//!
//! Both are levels, not edges. Once a fiber is cancelled, or a deadline around the running code has
//! passed, every call that would wait returns the error, until the fiber ends or the code around
//! which the deadline was put returns. Code that cleans up and must wait for it runs in a
//! [`shield`].
//!
//! An interrupted operation is never thrown away: the call asks the kernel to cancel it, waits for
//! it to land, and returns the error only if the operation did nothing.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::control::Fiber;
use crate::runtime::Loop;
use crate::time::{Sleep, sleep_until_async};

/// The error of a call on a fiber that was cancelled.
///
/// In an [`io::Error`] its kind is [`Other`](io::ErrorKind::Other), never `Interrupted` (which
/// std's loops retry) nor `WouldBlock`; [`Canceled::is`] tells it apart.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// # kapok::Runtime::new()?.run(|| {
/// let sleeper = kapok::spawn(|| kapok::sleep(std::time::Duration::from_secs(3600)));
/// sleeper.cancel();
/// let error = std::io::Error::from(sleeper.join().unwrap().unwrap_err());
/// assert!(kapok::Canceled::is(&error));
/// # });
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Canceled(());

impl Canceled {
    /// Whether `error` says that the fiber was cancelled.
    pub fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Canceled>())
    }
}

impl fmt::Display for Canceled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the fiber was cancelled")
    }
}

impl std::error::Error for Canceled {}

impl From<Canceled> for io::Error {
    fn from(canceled: Canceled) -> io::Error {
        io::Error::other(canceled)
    }
}

/// Why a call that is not an I/O operation returned before its time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interrupted {
    /// The fiber was cancelled.
    Canceled,
    /// The deadline around the call passed.
    DeadlineElapsed,
    /// The peer of the connection that the fiber serves has reset it, and a
    /// [sweep](crate::server#the-sweep) found out.
    PeerGone,
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Interrupted::Canceled => "the fiber was cancelled",
            Interrupted::DeadlineElapsed => "the deadline passed",
            Interrupted::PeerGone => "the peer of the connection this fiber serves is gone",
        })
    }
}

impl std::error::Error for Interrupted {}

impl From<Interrupted> for io::Error {
    fn from(interrupted: Interrupted) -> io::Error {
        match interrupted {
            Interrupted::Canceled => Canceled(()).into(),
            Interrupted::DeadlineElapsed => io::Error::new(io::ErrorKind::TimedOut, interrupted),
            Interrupted::PeerGone => io::Error::new(io::ErrorKind::ConnectionReset, interrupted),
        }
    }
}

/// The reason to interrupt `fiber`, if there is one.
#[inline]
pub(crate) fn interrupt_of(lp: &Loop, fiber: &Fiber) -> Option<Interrupted> {
    // SAFETY: called on the loop of `fiber`, copies a plain field.
    let deadline = unsafe { (*fiber.local()).deadline };
    cancellation_of(fiber).or_else(|| match deadline {
        Some(deadline) if deadline <= lp.now() => Some(Interrupted::DeadlineElapsed),
        _ => None,
    })
}

/// The reason to interrupt `fiber` that is no deadline, if there is one.
#[inline]
pub(crate) fn cancellation_of(fiber: &Fiber) -> Option<Interrupted> {
    // SAFETY: called on the loop of `fiber`, copies a plain field.
    if unsafe { (*fiber.local()).shields } > 0 {
        None
    } else if fiber.cancel_requested() {
        Some(Interrupted::Canceled)
    } else if fiber.peer_gone() {
        Some(Interrupted::PeerGone)
    } else {
        None
    }
}

/// Ends when a call that waits would return an error, with the reason: as an arm, it lets a
/// [`select!`](crate::select) be interrupted by the fiber's cancellation and by the deadline around
/// it. On a plain thread it never ends.
///
/// ```
/// use kapok::sync::channel;
///
/// # fn main() -> std::io::Result<()> {
/// # kapok::Runtime::new()?.run(|| {
/// let (_sender, lines) = channel::unbounded::<String>();
/// let reader = kapok::spawn(move || {
///     kapok::select! {
///         line = lines.recv_async() => line.ok(),
///         _ = kapok::interrupted_async() => None,
///     }
/// });
/// reader.cancel();
/// assert_eq!(reader.join().unwrap(), None);
/// # });
/// # Ok(())
/// # }
/// ```
pub async fn interrupted_async() -> Interrupted {
    let mut alarm: Option<Sleep> = None;
    poll_fn(move |context| {
        if let Err(interrupted) = check_interrupted() {
            return Poll::Ready(interrupted);
        }
        // Cancellation unparks the fiber by itself; a deadline needs a timer.
        if alarm.is_none() {
            alarm = nearest_deadline().map(sleep_until_async);
        }
        match &mut alarm {
            Some(alarm) => Pin::new(alarm).poll(context).map(|()| Interrupted::DeadlineElapsed),
            None => Poll::Pending,
        }
    })
    .await
}

/// The deadline around the code that runs, if it is on a fiber.
fn nearest_deadline() -> Option<Instant> {
    Loop::with_running(|running| {
        // SAFETY: on the fiber itself, which is therefore alive; copies a plain field.
        running.and_then(|(_, fiber)| unsafe { (*fiber.as_ref().local()).deadline })
    })
}

/// Changes the deadline and the shields of the running fiber while `f` runs, and puts them back
/// when it returns or unwinds.
fn with_limits<R>(change: impl FnOnce(&mut Option<Instant>, &mut u32), f: impl FnOnce() -> R) -> R {
    struct Restore(NonNull<Fiber>, Option<Instant>, u32);
    impl Drop for Restore {
        fn drop(&mut self) {
            // SAFETY: on the fiber itself, which is therefore alive and ours.
            unsafe {
                let local = self.0.as_ref().local();
                (*local).deadline = self.1;
                (*local).shields = self.2;
            }
        }
    }
    let _restore = Loop::with_running(|running| {
        running.map(|(_, fiber)| {
            // SAFETY: on the fiber itself; the references end with the block.
            unsafe {
                let local = fiber.as_ref().local();
                let restore = Restore(fiber, (*local).deadline, (*local).shields);
                change(&mut (*local).deadline, &mut (*local).shields);
                restore
            }
        })
    });
    f()
}

/// Runs `f` under a deadline: each call in it that would wait beyond `at` returns an error of kind
/// [`TimedOut`](io::ErrorKind::TimedOut) (or [`Interrupted::DeadlineElapsed`]) instead. Deadlines
/// nest, and the nearest counts. What `f` returns is returned as it is.
///
/// Code that does not wait is not interrupted. On a plain thread the deadline has no effect.
pub fn deadline<R>(at: Instant, f: impl FnOnce() -> R) -> R {
    with_limits(|deadline, _| *deadline = Some(deadline.map_or(at, |outer| outer.min(at))), f)
}

/// Runs `f` under a deadline `limit` from now; see [`deadline()`].
///
/// ```
/// use std::io::{ErrorKind, Read};
/// use std::time::Duration;
///
/// # fn main() -> std::io::Result<()> {
/// # kapok::Runtime::new()?.run(|| -> std::io::Result<()> {
/// let (mut quiet, _peer) = kapok::net::UnixStream::pair()?;
/// let result = kapok::timeout(Duration::from_millis(5), || quiet.read(&mut [0; 64]));
/// assert_eq!(result.unwrap_err().kind(), ErrorKind::TimedOut);
/// # Ok(())
/// # })
/// # }
/// ```
pub fn timeout<R>(limit: Duration, f: impl FnOnce() -> R) -> R {
    let now = Loop::with_current(|current| current.map_or_else(Instant::now, Loop::now));
    match now.checked_add(limit) {
        Some(at) => deadline(at, f),
        None => f(),
    }
}

/// Runs `f` so that neither the fiber's cancellation nor a deadline around the shield interrupts
/// it: for clean-up that must wait. A deadline set inside counts.
pub fn shield<R>(f: impl FnOnce() -> R) -> R {
    with_limits(
        |deadline, shields| {
            *deadline = None;
            *shields += 1;
        },
        f,
    )
}

/// Returns an error if a call that waits would return one now: for long computations that want to
/// notice their cancellation.
///
/// # Errors
///
/// [`Interrupted`].
pub fn check_interrupted() -> Result<(), Interrupted> {
    Loop::with_running(|running| match running {
        // SAFETY: the fiber that runs is alive.
        Some((lp, fiber)) => match interrupt_of(lp, unsafe { fiber.as_ref() }) {
            Some(interrupted) => Err(interrupted),
            None => Ok(()),
        },
        None => Ok(()),
    })
}
