//! Conditions: waiting with a mutex released.
//!
//! A waiter enters the queue before it releases the mutex, so a notification made under the mutex,
//! or after, cannot miss it. It leaves the queue only when it has the mutex again: should its future
//! be dropped in between, its notification goes to another.

use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::mutex::MutexGuard;
use super::queue::{Locked, Place, Protocol, Queue, Waiter};
use crate::park::retiring;
use crate::time;

/// A condition on data behind a [`Mutex`](super::Mutex), waited for with the mutex released.
///
/// A wait may end without a notification: look at the condition again, or use
/// [`wait_while`](Condvar::wait_while). Waits with different mutexes at one condition variable are
/// allowed.
///
/// Waiting is not interrupted by cancelling the fiber or by its deadline; it can be given a limit.
///
/// ```
/// use kapok::sync::{Condvar, Mutex};
///
/// let (ready, changed) = (Mutex::new(false), Condvar::new());
/// std::thread::scope(|scope| {
///     scope.spawn(|| {
///         *ready.lock() = true;
///         changed.notify_one();
///     });
///     let guard = changed.wait_while(ready.lock(), |ready| !*ready);
///     assert!(*guard);
/// });
/// ```
pub struct Condvar {
    queue: Queue<Listeners>,
}

/// Whether anyone is in the queue; changed under its lock.
struct Listeners(AtomicBool);

impl Protocol for Listeners {
    /// Those waiting, not yet notified.
    type State = usize;
    type Turn = ();

    fn abandoned(queue: &mut Locked<'_, Listeners>, place: Place, (): ()) {
        match place {
            // It ends here unheard: it may have been meant for any of them.
            Place::Notified => Condvar::notify(queue, 1),
            Place::Waiting => Condvar::left(queue),
            Place::Idle => {}
        }
    }
}

impl Condvar {
    /// A condition that nobody waits for.
    pub const fn new() -> Condvar {
        Condvar { queue: Queue::new(Listeners(AtomicBool::new(false)), 0) }
    }

    /// Releases the mutex, waits for a notification, and takes the mutex again.
    pub fn wait<'a, T: ?Sized>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        retiring::block_on(self.wait_async(guard))
    }

    /// Waits as long as `condition` holds.
    pub fn wait_while<'a, T: ?Sized>(
        &self,
        mut guard: MutexGuard<'a, T>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> MutexGuard<'a, T> {
        while condition(&mut guard) {
            guard = self.wait(guard);
        }
        guard
    }

    /// As [`wait`](Condvar::wait), until `deadline` at the latest. Whether it was notified: `false`
    /// means that the time was up. Taking the mutex again is not limited.
    pub fn wait_until<'a, T: ?Sized>(
        &self,
        guard: MutexGuard<'a, T>,
        deadline: Instant,
    ) -> (MutexGuard<'a, T>, bool) {
        let late = AtomicBool::new(false);
        let waiting = self.wait_while_not(&late, guard);
        retiring::block_on_until(waiting, deadline, || late.store(true, Ordering::Relaxed))
    }

    /// As [`wait_until`](Condvar::wait_until), for at most `timeout`.
    pub fn wait_timeout<'a, T: ?Sized>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: Duration,
    ) -> (MutexGuard<'a, T>, bool) {
        match time::now().checked_add(timeout) {
            Some(deadline) => self.wait_until(guard, deadline),
            // Further away than the clock goes.
            None => (self.wait(guard), true),
        }
    }

    /// As [`wait`](Condvar::wait), in a future. The mutex is released when the future is first
    /// polled, or dropped. A future that is dropped after it was notified passes that on.
    pub async fn wait_async<'a, T: ?Sized>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.wait_while_not(&AtomicBool::new(false), guard).await.0
    }

    /// Waits until it is notified or late, and takes the mutex again. Whether it was notified.
    async fn wait_while_not<'a, T: ?Sized>(
        &self,
        late: &AtomicBool,
        guard: MutexGuard<'a, T>,
    ) -> (MutexGuard<'a, T>, bool) {
        let mutex = guard.mutex();
        let waiter = pin!(self.queue.waiter());
        let waiter = waiter.as_ref();
        self.enter(waiter);
        drop(guard);
        poll_fn(|context| match late.load(Ordering::Relaxed) {
            true => Poll::Ready(()),
            false => self.poll_notified(waiter, context),
        })
        .await;
        let guard = mutex.lock_async().await;
        (guard, self.leave(waiter))
    }

    /// Wakes one of those who wait. Without any, this is one load.
    #[inline]
    pub fn notify_one(&self) {
        if self.has_listeners() {
            Self::notify(&mut self.queue.lock(), 1);
        }
    }

    /// Wakes all who wait now.
    #[inline]
    pub fn notify_all(&self) {
        if self.has_listeners() {
            Self::notify(&mut self.queue.lock(), usize::MAX);
        }
    }

    #[inline]
    fn has_listeners(&self) -> bool {
        // Who must be seen here entered before it released the mutex, and the notifier has had the
        // mutex since.
        self.queue.protocol().0.load(Ordering::Acquire)
    }

    fn enter(&self, waiter: Pin<&Waiter<'_, Listeners>>) {
        let mut queue = self.queue.lock();
        queue.push_back(waiter, ());
        *queue += 1;
        queue.protocol().0.store(true, Ordering::Release);
    }

    /// Whether the waiter was notified.
    fn leave(&self, waiter: Pin<&Waiter<'_, Listeners>>) -> bool {
        let mut queue = self.queue.lock();
        match queue.remove(waiter) {
            Some((Place::Waiting, ())) => {
                Self::left(&mut queue);
                false
            }
            place => place.is_some(),
        }
    }

    fn poll_notified(
        &self,
        waiter: Pin<&Waiter<'_, Listeners>>,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        let mut queue = self.queue.lock();
        if queue.place(waiter) == Place::Waiting {
            queue.watch(waiter, context.waker());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    fn notify(queue: &mut Locked<'_, Listeners>, most: usize) {
        for _ in 0..most {
            if !queue.notify_front() {
                break;
            }
            Self::left(queue);
        }
    }

    fn left(queue: &mut Locked<'_, Listeners>) {
        **queue -= 1;
        if **queue == 0 {
            queue.protocol().0.store(false, Ordering::Release);
        }
    }
}

impl Default for Condvar {
    fn default() -> Condvar {
        Condvar::new()
    }
}

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Condvar").finish_non_exhaustive()
    }
}
