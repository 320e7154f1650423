//! A ring that a thread of tokio's drives.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::pin::pin;
use std::task::Poll;
use std::time::Instant;

use kapok_pool::{Driver, Resting};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Carries out the operations of a [driven](kapok_pool::Builder::build_driven) pool on the thread that this future
/// is polled on, as tokio finds its descriptor readable: until the last handle on the pool is gone, or it
/// is shut down, and all has landed.
///
/// The ring belongs to one thread, and so does this future: to a runtime of one thread with
/// [`LocalSet`](https://docs.rs/tokio/latest/tokio/task/struct.LocalSet.html), or to a thread of a larger one that
/// has such a set. Its operations are awaited by any task.
///
/// Dropped, it cancels what is in flight and waits until that has landed.
///
/// # Errors
///
/// The ring can no longer be entered, or the runtime has no room for its descriptor. The pool is closed then.
///
/// # Panics
///
/// On a runtime without I/O or time (`enable_all`).
///
/// ```
/// use kapok_pool::Pool;
/// use kapok_tokio::{File, drive};
/// use tokio::io::AsyncReadExt;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let (pool, driver) = match Pool::builder().build_driven() {
///     Ok(driven) => driven,
///     Err(refused) => return Ok(eprintln!("no ring: {refused}; a pool with threads does the same")),
/// };
/// let tasks = tokio::task::LocalSet::new();
/// let driving = tasks.spawn_local(drive(driver));
/// tasks
///     .run_until(async move {
///         let mut zeros = [1; 4096];
///         File::open(&pool, "/dev/zero").await?.read_exact(&mut zeros).await?;
///         assert_eq!(zeros, [0; 4096]);
///         drop(pool);
///         driving.await.expect("it does not panic")
///     })
///     .await
/// # }
/// ```
pub async fn drive(driver: Driver) -> io::Result<()> {
    let mut driver = driver;
    // Dropped before the driver, whose descriptor it is.
    #[allow(deprecated, reason = "what is in its place tokio has since 1.51.6 only")]
    let ring = AsyncFd::with_interest(driver.as_fd().as_raw_fd(), Interest::READABLE)?;
    let mut timer = pin!(tokio::time::sleep_until(Instant::now().into()));
    poll_fn(|context| {
        loop {
            let until = match driver.turn(context.waker()) {
                Err(error) => return Poll::Ready(Err(error)),
                Ok(Resting::Ended) => return Poll::Ready(Ok(())),
                Ok(Resting::Yields) => {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Ok(Resting::Until(until)) => until,
            };
            match readable(&ring, context) {
                Err(error) => return Poll::Ready(Err(error)),
                Ok(true) => continue,
                Ok(false) => {}
            }
            let Some(until) = until else { return Poll::Pending };
            timer.as_mut().reset(until.into());
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await
}

/// Whether the ring was found readable since this was asked the last time. If not, the task is woken when it is.
fn readable(ring: &AsyncFd<RawFd>, context: &mut std::task::Context<'_>) -> io::Result<bool> {
    match ring.poll_read_ready(context) {
        Poll::Ready(Ok(mut guard)) => {
            guard.clear_ready();
            Ok(true)
        }
        Poll::Ready(Err(error)) => Err(error),
        Poll::Pending => Ok(false),
    }
}
