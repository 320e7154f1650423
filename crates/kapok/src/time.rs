//! Sleeping.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use kapok_engine::Op;

use crate::fiber::Interrupted;
use crate::op::{self, Pending};
use crate::runtime::Loop;

/// Suspends the fiber for `duration`; on a plain thread, blocks it.
///
/// # Errors
///
/// [`Interrupted`], if the fiber is cancelled or a deadline around the call passes first.
pub fn sleep(duration: Duration) -> Result<(), Interrupted> {
    match now().checked_add(duration) {
        Some(deadline) => sleep_until(deadline),
        // Beyond the end of time.
        None => loop {
            sleep(Duration::from_secs(u32::MAX.into()))?;
        },
    }
}

/// Suspends the fiber until `deadline`; on a plain thread, blocks it.
///
/// # Errors
///
/// As for [`sleep`].
pub fn sleep_until(deadline: Instant) -> Result<(), Interrupted> {
    // SAFETY: a timer names no memory and no descriptor.
    match unsafe { op::run(Op::Timer { deadline }) } {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(Interrupted::DeadlineElapsed),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(Interrupted::PeerGone),
        Err(_) => Err(Interrupted::Canceled),
    }
}

/// The clock that deadlines and sleeps are read against: that of the loop's engine, which is
/// [`Instant::now`] for every engine but a simulated one.
pub fn now() -> Instant {
    Loop::with_current(|current| current.map_or_else(Instant::now, Loop::now))
}

/// A future that ends at `deadline`, for [`select!`](crate::select). Polled on a fiber.
///
/// ```
/// use std::time::Duration;
///
/// # fn main() -> std::io::Result<()> {
/// # kapok::Runtime::new()?.run(|| {
/// let (sender, receiver) = kapok::sync::channel::unbounded::<u32>();
/// let heard = kapok::select! {
///     message = receiver.recv_async() => message.ok(),
///     () = kapok::time::sleep_async(Duration::from_millis(1)) => None,
/// };
/// assert_eq!(heard, None);
/// # drop(sender);
/// # });
/// # Ok(())
/// # }
/// ```
#[must_use = "futures do nothing unless polled"]
pub struct Sleep(Pending);

impl Sleep {
    fn until(deadline: Instant) -> Sleep {
        // SAFETY: a timer names no memory and no descriptor.
        Sleep(unsafe { Pending::new(Op::Timer { deadline }, None) })
    }
}

impl Future for Sleep {
    type Output = ();

    /// # Panics
    ///
    /// Outside a [`Runtime`](crate::Runtime).
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(context).map(drop)
    }
}

impl std::fmt::Debug for Sleep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sleep")
    }
}

/// A future that ends after `duration`; see [`Sleep`].
pub fn sleep_async(duration: Duration) -> Sleep {
    let far = Duration::from_secs(100 * 365 * 24 * 3600);
    sleep_until_async(now() + duration.min(far))
}

/// A future that ends at `deadline`; see [`Sleep`].
pub fn sleep_until_async(deadline: Instant) -> Sleep {
    Sleep::until(deadline)
}
