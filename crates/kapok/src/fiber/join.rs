//! What becomes of a fiber: its result, and who waits for it.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::control::Fiber;
use super::interrupt::Interrupted;
use crate::park;

/// Why there is no result of a fiber.
pub enum JoinError {
    /// The fiber panicked, with this payload. [`std::panic::resume_unwind`] carries it on.
    Panicked(Box<dyn Any + Send + 'static>),
    /// The fiber will never end: its loop was closed before it started or while it waited, or the
    /// io_uring that held memory which it had lent can no longer be entered (see
    /// [`Runtime::run`](crate::Runtime::run)). It is not unwound, and its stack is leaked: locks that
    /// it held stay locked, and what it owned stays open.
    Abandoned,
    /// The fiber could not start, because there was no stack for it. The error says which limit was
    /// met, how many stacks there are and what to do.
    NoStack(io::Error),
    /// Not the fiber's fate but the caller's: the fiber that waits here was cancelled. The other
    /// one goes on.
    Canceled,
    /// Not the fiber's fate but the caller's: the deadline around the call passed. The other fiber
    /// goes on.
    DeadlineElapsed,
}

impl fmt::Debug for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinError({self})")
    }
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JoinError::Panicked(payload) => match message(&**payload) {
                Some(message) => write!(f, "the fiber panicked: {message}"),
                None => f.write_str("the fiber panicked"),
            },
            JoinError::Abandoned => {
                f.write_str("the fiber was abandoned, with its loop or in a ring that died")
            }
            JoinError::NoStack(error) => write!(f, "no stack for the fiber: {error}"),
            JoinError::Canceled => f.write_str("cancelled while waiting for a fiber"),
            JoinError::DeadlineElapsed => f.write_str("deadline passed while waiting for a fiber"),
        }
    }
}

impl std::error::Error for JoinError {}

/// For `join()??` in a fiber that does I/O. The payload of a panic is reduced to its text.
impl From<JoinError> for io::Error {
    fn from(error: JoinError) -> io::Error {
        match error {
            JoinError::Canceled => Interrupted::Canceled.into(),
            JoinError::DeadlineElapsed => Interrupted::DeadlineElapsed.into(),
            JoinError::NoStack(error) => {
                io::Error::new(error.kind(), format!("no stack for a fiber: {error}"))
            }
            JoinError::Panicked(_) | JoinError::Abandoned => io::Error::other(error.to_string()),
        }
    }
}

/// The text of a panic.
pub(super) fn message(payload: &(dyn Any + Send)) -> Option<&str> {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
}

enum State<T> {
    Running(Option<Waker>),
    Over(Result<T, JoinError>),
    Taken,
}

/// Where a fiber leaves its result.
pub(super) struct Packet<T> {
    state: Mutex<State<T>>,
    /// Set if the fiber panicked and nobody took the panic.
    unjoined_panic: Option<Arc<AtomicBool>>,
}

impl<T> Packet<T> {
    pub(super) fn new() -> Arc<Packet<T>> {
        Arc::new(Packet { state: Mutex::new(State::Running(None)), unjoined_panic: None })
    }

    pub(super) fn with_unjoined_panic(flag: Arc<AtomicBool>) -> Arc<Packet<T>> {
        Arc::new(Packet { state: Mutex::new(State::Running(None)), unjoined_panic: Some(flag) })
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, result: Result<T, JoinError>) {
        let mut state = self.lock();
        if let State::Running(waker) = &mut *state {
            let waker = waker.take();
            *state = State::Over(result);
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    fn is_over(&self) -> bool {
        !matches!(*self.lock(), State::Running(_))
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<Result<T, JoinError>> {
        let mut state = self.lock();
        match &mut *state {
            State::Running(waker) => {
                let known = waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker()));
                let old = if known { None } else { waker.replace(context.waker().clone()) };
                // It may be the last of its kind, and its destructor anybody's.
                drop(state);
                drop(old);
                Poll::Pending
            }
            State::Over(_) => match std::mem::replace(&mut *state, State::Taken) {
                State::Over(result) => Poll::Ready(result),
                _ => unreachable!(),
            },
            State::Taken => panic!("a JoinHandle was polled after it had given its result"),
        }
    }
}

impl<T> Drop for Packet<T> {
    fn drop(&mut self) {
        if let Some(flag) = &self.unjoined_panic {
            let panicked = matches!(&*self.lock(), State::Over(Err(JoinError::Panicked(_))));
            flag.fetch_or(panicked, Ordering::Relaxed);
        }
    }
}

/// A packet of whatever type, to be told that nothing will come.
pub(crate) trait Abandon {
    /// The fiber will never end.
    fn abandon(&self);
    /// The fiber will never start, for want of a stack.
    fn refuse(&self, error: io::Error);
}

impl<T> Abandon for Packet<T> {
    fn abandon(&self) {
        self.settle(Err(JoinError::Abandoned));
    }

    fn refuse(&self, error: io::Error) {
        self.settle(Err(JoinError::NoStack(error)));
    }
}

/// The fiber's end of its packet. Dropped without a result it says so.
pub(super) struct Settler<T>(pub(super) Arc<Packet<T>>);

impl<T> Settler<T> {
    pub(super) fn settle(self, result: Result<T, JoinError>) {
        self.0.settle(result);
    }
}

impl<T> Drop for Settler<T> {
    fn drop(&mut self) {
        self.0.settle(Err(JoinError::Abandoned));
    }
}

/// Waits for a fiber, from another fiber, a thread or a future.
///
/// Dropping it detaches the fiber, which goes on. It is a [`Future`] too, for async code.
#[must_use = "dropping the handle detaches the fiber; `.detach()` says so"]
pub struct JoinHandle<T> {
    pub(super) fiber: Arc<Fiber>,
    pub(super) packet: Arc<Packet<T>>,
}

impl<T> JoinHandle<T> {
    /// Waits for the fiber to end and returns its result.
    ///
    /// # Errors
    ///
    /// [`JoinError`]: its panic, or why there is no result. If the *waiting* fiber is cancelled or
    /// its deadline passes, the other one is left to run.
    pub fn join(self) -> Result<T, JoinError> {
        match park::block_on_interruptible(self) {
            Ok(result) => result,
            Err(Interrupted::DeadlineElapsed) => Err(JoinError::DeadlineElapsed),
            Err(Interrupted::Canceled | Interrupted::PeerGone) => Err(JoinError::Canceled),
        }
    }

    /// Lets the fiber go on by itself.
    pub fn detach(self) {}

    /// Requests the fiber's cancellation: the call it waits in returns
    /// [`Canceled`](super::Canceled), or what it landed with, and so does every later call that
    /// would wait. The fiber is never unwound; it ends when its code returns.
    pub fn cancel(&self) {
        self.fiber.request_cancel();
    }

    /// Whether the fiber is over.
    pub fn is_finished(&self) -> bool {
        self.packet.is_over()
    }

    /// The fiber's number, unique in the process.
    pub fn id(&self) -> u64 {
        self.fiber.label.id
    }

    /// The fiber's name.
    pub fn name(&self) -> Option<&str> {
        self.fiber.label.name.as_deref()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.packet.poll(context)
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinHandle({})", self.fiber.title())
    }
}
