//! What becomes of a fiber: its result, and who waits for it.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll};

use super::control::{Fiber, Waiting};
use super::interrupt::{Interrupted, interrupt_of};
use super::reference::FiberRef;
use crate::park;
use crate::runtime::{About, Loop, Waiter};

/// Why there is no result of a fiber.
pub enum JoinError {
    /// The fiber panicked, with this payload. [`std::panic::resume_unwind`] carries it on.
    Panicked(Box<dyn Any + Send + 'static>),
    /// The fiber will never end: its loop was closed before it started or while it waited, or the
    /// io_uring that held memory which it had lent can no longer be entered (see
    /// [`Runtime::run`](crate::Runtime::run)). It is not unwound, and its stack is leaked: locks that
    /// it held stay locked, and what it owned stays open. Locks that it waited for go to others.
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

/// Waits for a fiber, from another fiber, a thread or a future.
///
/// Dropping it detaches the fiber, which goes on. It is a [`Future`] too, for async code.
#[must_use = "dropping the handle detaches the fiber; `.detach()` says so"]
pub struct JoinHandle<T> {
    fiber: FiberRef,
    /// What the fiber returns is this side's as soon as it is over.
    result: PhantomData<*mut T>,
}

// SAFETY: the handle's side of the packet may be on any thread; what it may get there is a `T`, or
// dropped there.
unsafe impl<T: Send> Send for JoinHandle<T> {}
// SAFETY: a shared handle gives no result.
unsafe impl<T: Send> Sync for JoinHandle<T> {}
// The result is not inside.
impl<T> Unpin for JoinHandle<T> {}

impl<T> JoinHandle<T> {
    /// # Safety
    ///
    /// `fiber` returns a `T`, and this is its only handle.
    pub(super) unsafe fn new(fiber: FiberRef) -> JoinHandle<T> {
        JoinHandle { fiber, result: PhantomData }
    }

    /// The result, if the fiber is over.
    #[inline]
    fn take(&mut self) -> Option<Result<T, JoinError>> {
        // SAFETY: this is the handle, see `new`.
        unsafe { self.fiber.packet.take() }
    }

    /// Waits for the fiber to end and returns its result.
    ///
    /// # Errors
    ///
    /// [`JoinError`]: its panic, or why there is no result. If the *waiting* fiber is cancelled or
    /// its deadline passes, the other one is left to run.
    pub fn join(mut self) -> Result<T, JoinError> {
        if let Some(result) = self.take() {
            return result;
        }
        let here = Loop::with_running(|running| {
            let (lp, fiber) = running?;
            let near = lp.is_home_of(&self.fiber) && !std::thread::panicking();
            near.then(|| self.join_here(lp, fiber))
        });
        match here.unwrap_or_else(|| park::block_on_interruptible(self)) {
            Ok(result) => result,
            Err(Interrupted::DeadlineElapsed) => Err(JoinError::DeadlineElapsed),
            Err(Interrupted::Canceled | Interrupted::PeerGone) => Err(JoinError::Canceled),
        }
    }

    /// Waits on `fiber`, which runs, for one of the same loop. What such a wait meets is on this
    /// thread, but for the packet's state: neither a park word nor a waker is needed.
    fn join_here(
        &mut self,
        lp: &Loop,
        fiber: NonNull<Fiber>,
    ) -> Result<Result<T, JoinError>, Interrupted> {
        // SAFETY: the fiber that runs is alive, and its loop holds it until this has returned.
        let (control, local) = unsafe { (fiber.as_ref(), fiber.as_ref().local()) };
        loop {
            if let Some(result) = self.take() {
                return Ok(result);
            }
            if let Some(interrupt) = interrupt_of(lp, control) {
                return Err(interrupt);
            }
            // SAFETY: on the fiber itself; copies a plain field.
            let deadline = unsafe { (*local).deadline };
            let timer = deadline.map(|at| lp.arm(Waiter::Limit(fiber), at));
            // SAFETY: this is the handle; the other fiber is of this loop by the caller, and what is
            // left there is taken back as soon as this one runs again.
            if unsafe { self.fiber.packet.tell_fiber(fiber) } {
                // SAFETY: on the fiber itself; a plain field.
                unsafe { (*local).waiting = Waiting::Join };
                lp.suspend(fiber, || About::Future(std::any::type_name::<JoinHandle<T>>()));
                self.fiber.packet.forget_fiber();
            }
            if let Some(timer) = timer {
                lp.disarm(timer);
            }
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
        self.fiber.packet.is_over()
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
        // SAFETY: this is the handle, see `new`.
        unsafe { self.fiber.packet.poll(context) }
    }
}

impl<T> Drop for JoinHandle<T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: this is the handle, see `new`, and it goes.
        unsafe { self.fiber.packet.detach::<T>() };
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinHandle({})", self.fiber.title())
    }
}
