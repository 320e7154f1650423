//! A channel for one value: an answer, a result.
//!
//! The value lies in the channel until the receiver takes it: an interrupted wait or a dropped
//! future loses nothing, since the receiver itself stays.

use std::fmt;
use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

pub use super::channel::{RecvError, TryRecvError};
use crate::park::block_on_interruptible;

/// A channel for one value.
///
/// ```
/// let (sender, mut receiver) = kapok::sync::oneshot::channel();
/// std::thread::spawn(move || sender.send(6 * 7));
/// assert_eq!(receiver.recv(), Ok(42));
/// ```
pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared { state: Mutex::new(State::Empty(None)) });
    (Sender { shared: Some(Arc::clone(&shared)) }, Receiver { shared })
}

struct Shared<T> {
    state: Mutex<State<T>>,
}

enum State<T> {
    /// Neither side is gone; whom to wake when there is a value.
    Empty(Option<Waker>),
    Value(T),
    /// One side is gone, or the value has been received.
    Over,
}

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        // What can panic under this lock is a user's `Waker::clone`; the state is whole then.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the caller drops or wakes comes out, so that it happens without the lock.
    fn replace(&self, state: State<T>) -> State<T> {
        mem::replace(&mut *self.state(), state)
    }
}

/// The sending side. Dropped without sending, it gives the receiver [`RecvError::Disconnected`].
pub struct Sender<T> {
    /// `None` once it has sent.
    shared: Option<Arc<Shared<T>>>,
}

/// The receiving side. It is a future, too.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Sender<T> {
    /// Sends the value; this never waits.
    ///
    /// # Errors
    ///
    /// The value comes back if the receiver is gone.
    pub fn send(mut self, value: T) -> Result<(), T> {
        let Some(shared) = self.shared.take() else { return Err(value) };
        let mut state = shared.state();
        match &mut *state {
            State::Empty(waker) => {
                let waker = waker.take();
                *state = State::Value(value);
                drop(state);
                if let Some(waker) = waker {
                    waker.wake();
                }
                Ok(())
            }
            State::Value(_) | State::Over => Err(value),
        }
    }

    /// Whether the receiver is gone, so that the work for the value can be saved.
    pub fn is_disconnected(&self) -> bool {
        self.shared.as_ref().is_none_or(|shared| matches!(*shared.state(), State::Over))
    }
}

impl<T> Receiver<T> {
    /// Waits for the value.
    ///
    /// # Errors
    ///
    /// The sender is gone without having sent, or the value was received before; or the fiber was
    /// canceled or its deadline passed before there was a value, and then it can still be received
    /// later. A plain thread is not interrupted.
    pub fn recv(&mut self) -> Result<T, RecvError> {
        match self.try_recv() {
            Ok(value) => Ok(value),
            Err(TryRecvError::Disconnected) => Err(RecvError::Disconnected),
            Err(TryRecvError::Empty) => block_on_interruptible(self.recv_async())?,
        }
    }

    /// As [`recv`](Receiver::recv), in a future. A dropped future takes nothing.
    ///
    /// # Errors
    ///
    /// The sender is gone without having sent, or the value was received before.
    pub async fn recv_async(&mut self) -> Result<T, RecvError> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    /// The value, if it is there.
    ///
    /// # Errors
    ///
    /// It is not there yet, or there will be none.
    pub fn try_recv(&mut self) -> Result<T, TryRecvError> {
        let mut state = self.shared.state();
        match mem::replace(&mut *state, State::Over) {
            State::Value(value) => Ok(value),
            State::Over => Err(TryRecvError::Disconnected),
            empty @ State::Empty(_) => {
                *state = empty;
                Err(TryRecvError::Empty)
            }
        }
    }

    fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Result<T, RecvError>> {
        // Declared before the lock is taken, so dropped after it is released.
        let _replaced;
        let mut state = self.shared.state();
        if let State::Empty(watching) = &mut *state {
            if !watching.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                _replaced = watching.replace(context.waker().clone());
            }
            return Poll::Pending;
        }
        match mem::replace(&mut *state, State::Over) {
            State::Value(value) => Poll::Ready(Ok(value)),
            State::Empty(_) | State::Over => Poll::Ready(Err(RecvError::Disconnected)),
        }
    }
}

impl<T> Future for Receiver<T> {
    type Output = Result<T, RecvError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_recv(context)
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let Some(shared) = self.shared.take() else { return };
        if let State::Empty(Some(waker)) = shared.replace(State::Over) {
            waker.wake();
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        // A value nobody took, or the waker: dropped here, without the lock.
        let _left = self.shared.replace(State::Over);
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("oneshot::Sender").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("oneshot::Receiver").finish_non_exhaustive()
    }
}
