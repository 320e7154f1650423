//! What io_uring has no operation for: calls on blocking threads, awaited like the rest.

use std::fmt;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use kapok_engine::offload;

use crate::operation::shut_down;
use crate::pool::Pool;

/// How a call ended.
type Ended<T> = std::thread::Result<io::Result<T>>;

enum State<T> {
    Runs(Option<Waker>),
    Over(Ended<T>),
    /// The outcome has been taken, or nobody wants it.
    Left,
}

/// Where a call and its future meet.
struct Meeting<T>(Mutex<State<T>>);

impl<T> Meeting<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, outcome: Ended<T>) {
        let mut state = self.lock();
        match std::mem::replace(&mut *state, State::Left) {
            State::Runs(waker) => {
                *state = State::Over(outcome);
                drop(state);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            // Nobody waits: what it brought is dropped here, on a thread that may block.
            _ => drop(state),
        }
    }
}

/// The job's side. Dropped without having run, it says so.
struct Runs<T>(Arc<Meeting<T>>);

impl<T> Drop for Runs<T> {
    fn drop(&mut self) {
        let none = || io::Error::new(io::ErrorKind::OutOfMemory, "there is no thread to run it");
        if matches!(*self.0.lock(), State::Runs(_)) {
            self.0.end(Ok(Err(none())));
        }
    }
}

/// A call on a blocking thread, begun already: see [`File::blocking`](crate::File::blocking). Dropped, it
/// goes on, and its outcome is dropped.
///
/// # Panics
///
/// Polling panics if the call did, and after the end.
#[must_use = "what came of the call is in the future"]
pub struct Blocking<T>(Arc<Meeting<T>>);

impl<T: Send + 'static> Blocking<T> {
    /// Begins `call`.
    ///
    /// # Errors
    ///
    /// In its outcome: `NotConnected` if the pool is shut down, `OutOfMemory` if there is no thread.
    /// Then `call` is dropped without having run.
    pub(crate) fn start(
        pool: &Pool,
        call: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Blocking<T> {
        let meeting = Arc::new(Meeting(Mutex::new(State::Runs(None))));
        if pool.is_closed() {
            meeting.end(Ok(Err(shut_down())));
            return Blocking(meeting);
        }
        let runs = Runs(Arc::clone(&meeting));
        // A refusal drops the job, which says so.
        let _ = offload::spawn(move || {
            let outcome = catch_unwind(AssertUnwindSafe(call));
            runs.0.end(outcome);
        });
        Blocking(meeting)
    }
}

impl<T> Future for Blocking<T> {
    type Output = io::Result<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, State::Left) {
            State::Over(Ok(outcome)) => Poll::Ready(outcome),
            State::Over(Err(panic)) => {
                drop(state);
                resume_unwind(panic)
            }
            State::Runs(_) => {
                *state = State::Runs(Some(context.waker().clone()));
                Poll::Pending
            }
            State::Left => panic!("a call was polled after its end"),
        }
    }
}

impl<T> Drop for Blocking<T> {
    fn drop(&mut self) {
        let left = std::mem::replace(&mut *self.0.lock(), State::Left);
        drop(left);
    }
}

impl<T> fmt::Debug for Blocking<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Blocking")
    }
}
