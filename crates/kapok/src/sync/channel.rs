//! Channels for any number of senders and receivers.
//!
//! ```text
//!   send:  take a free slot ── push ── give an item ─┐
//!              ▲                                     ▼
//!          [ slots ]          buffer            [ items ]      both are permits
//!              ▲                                     │
//!   recv:      └───── give the slot ── pop ── take an item
//! ```
//!
//! Who has an item's permit will find a value in the buffer, and nobody is handed a value before
//! it asks: so a receiver may go away at any point without taking one along. An unbounded channel
//! has no slots to count. Waiting, its fairness, and what a dropped waiter leaves behind are those
//! of the permits.

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::iter::FusedIterator;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::permits::{Closed, MAX_PERMITS, Permits};
use crate::fiber::Interrupted;
use crate::park::retiring;

/// A channel that holds up to `capacity` values; senders wait while it is full. The buffer is
/// allocated now.
///
/// Values of one sender arrive in the order in which they were sent; each goes to one receiver.
///
/// # Panics
///
/// If `capacity` is zero (there is no rendezvous channel), or more than can be allocated.
///
/// ```
/// let (sender, receiver) = kapok::sync::channel::bounded(16);
/// std::thread::spawn(move || {
///     for line in ["a", "b"] {
///         sender.send(line).unwrap();
///     }
/// });
/// assert_eq!(receiver.iter().collect::<Vec<_>>(), ["a", "b"]);
/// ```
pub fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    assert!(capacity > 0, "a bounded channel needs a capacity of at least 1");
    assert!(capacity <= MAX_PERMITS, "a channel of {capacity} values cannot be allocated");
    new(VecDeque::with_capacity(capacity), Some(Permits::new(capacity)))
}

/// A channel that holds as many values as there is memory; senders never wait.
///
/// Where the senders may outrun the receivers, [`bounded`] keeps memory in check.
pub fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    new(VecDeque::new(), None)
}

fn new<T>(values: VecDeque<T>, slots: Option<Permits>) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        items: Permits::new(0),
        slots,
        buffer: Mutex::new(Buffer { values, receivers_gone: false }),
        senders: AtomicUsize::new(1),
        receivers: AtomicUsize::new(1),
    });
    (Sender { shared: Arc::clone(&shared) }, Receiver { shared })
}

struct Shared<T> {
    /// Closed when the last sender is gone.
    items: Permits,
    /// Closed when the last receiver is gone.
    slots: Option<Permits>,
    buffer: Mutex<Buffer<T>>,
    senders: AtomicUsize,
    receivers: AtomicUsize,
}

struct Buffer<T> {
    values: VecDeque<T>,
    receivers_gone: bool,
}

impl<T> Shared<T> {
    fn buffer(&self) -> MutexGuard<'_, Buffer<T>> {
        // No user code runs under this lock.
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called with a slot. The value comes back if there is nobody to receive it.
    #[inline]
    fn push(&self, value: T) -> Result<(), T> {
        let mut buffer = self.buffer();
        if buffer.receivers_gone {
            return Err(value);
        }
        buffer.values.push_back(value);
        drop(buffer);
        self.items.release(1);
        Ok(())
    }

    /// To be called with an item's permit.
    #[inline]
    fn pop(&self) -> T {
        let value = self.buffer().values.pop_front();
        if let Some(slots) = &self.slots {
            slots.release(1);
        }
        value.expect("there is a value for each permit")
    }
}

/// The sending side of a channel. Clones send into the same channel; when the last is dropped,
/// receivers get what is left and then [`RecvError::Disconnected`].
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

/// The receiving side of a channel. Clones receive from the same channel, each value going to one
/// of them; when the last is dropped, so are the values left, and senders get theirs back.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Sender<T> {
    /// Sends a value, waiting while the channel is full.
    ///
    /// # Errors
    ///
    /// The value comes back if all receivers are gone, and if the fiber was canceled or its
    /// deadline passed while the channel was full. A plain thread is not interrupted.
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        let value = match self.try_send(value) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Disconnected(value)) => return Err(SendError::disconnected(value)),
            Err(TrySendError::Full(value)) => value,
        };
        match retiring::block_on_interruptible(self.slot()) {
            Ok(Ok(())) => self.shared.push(value).map_err(SendError::disconnected),
            Ok(Err(Closed)) => Err(SendError::disconnected(value)),
            Err(Interrupted::Canceled | Interrupted::PeerGone) => {
                Err(SendError { value, reason: SendErrorReason::Canceled })
            }
            Err(Interrupted::DeadlineElapsed) => {
                Err(SendError { value, reason: SendErrorReason::DeadlineElapsed })
            }
        }
    }

    /// As [`send`](Sender::send), in a future. A future that is dropped early drops the value, and
    /// has not sent it.
    ///
    /// # Errors
    ///
    /// The value comes back if all receivers are gone.
    pub async fn send_async(&self, value: T) -> Result<(), SendError<T>> {
        match self.slot().await {
            Ok(()) => self.shared.push(value).map_err(SendError::disconnected),
            Err(Closed) => Err(SendError::disconnected(value)),
        }
    }

    async fn slot(&self) -> Result<(), Closed> {
        match &self.shared.slots {
            Some(slots) => slots.acquire(1).await,
            None => Ok(()),
        }
    }

    /// Sends a value if that takes no waiting.
    ///
    /// # Errors
    ///
    /// The value comes back if the channel is full (or its free slots are for senders that have
    /// waited long), or all receivers are gone.
    #[inline]
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        if let Some(slots) = &self.shared.slots
            && !slots.try_acquire(1)
        {
            return Err(if self.is_disconnected() {
                TrySendError::Disconnected(value)
            } else {
                TrySendError::Full(value)
            });
        }
        self.shared.push(value).map_err(TrySendError::Disconnected)
    }

    /// Whether all receivers are gone.
    pub fn is_disconnected(&self) -> bool {
        self.shared.receivers.load(Ordering::Acquire) == 0
    }

    /// How many values wait to be received at the moment.
    pub fn len(&self) -> usize {
        self.shared.buffer().values.len()
    }

    /// Whether no value waits to be received at the moment.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Receiver<T> {
    /// Receives a value, waiting for one.
    ///
    /// # Errors
    ///
    /// The channel is empty and all senders are gone, or it was empty until the fiber was canceled
    /// or its deadline passed. A plain thread is not interrupted.
    pub fn recv(&self) -> Result<T, RecvError> {
        if self.shared.items.try_acquire(1) {
            return Ok(self.shared.pop());
        }
        match retiring::block_on_interruptible(self.shared.items.acquire(1))? {
            Ok(()) => Ok(self.shared.pop()),
            Err(Closed) => Err(RecvError::Disconnected),
        }
    }

    /// As [`recv`](Receiver::recv), in a future. A dropped future takes no value.
    ///
    /// # Errors
    ///
    /// The channel is empty and all senders are gone.
    pub async fn recv_async(&self) -> Result<T, RecvError> {
        match self.shared.items.acquire(1).await {
            Ok(()) => Ok(self.shared.pop()),
            Err(Closed) => Err(RecvError::Disconnected),
        }
    }

    /// Receives a value if that takes no waiting.
    ///
    /// # Errors
    ///
    /// The channel is empty (or its values are for receivers that have waited long), and there are
    /// senders or not.
    #[inline]
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        // Asked before the look: what the last sender sent before it went is seen.
        let disconnected = self.shared.senders.load(Ordering::Acquire) == 0;
        if self.shared.items.try_acquire(1) {
            return Ok(self.shared.pop());
        }
        // Values reserved for others still count as there.
        let drained = self.shared.items.available() == 0;
        Err(if disconnected && drained { TryRecvError::Disconnected } else { TryRecvError::Empty })
    }

    /// Receives until there is an error: the senders are gone, or the fiber is interrupted.
    pub fn iter(&self) -> Iter<'_, T> {
        Iter { receiver: self, ended: false }
    }

    /// Whether all senders are gone. There may be values left.
    pub fn is_disconnected(&self) -> bool {
        self.shared.senders.load(Ordering::Acquire) == 0
    }

    /// How many values wait to be received at the moment.
    pub fn len(&self) -> usize {
        self.shared.buffer().values.len()
    }

    /// Whether no value waits to be received at the moment.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        self.shared.senders.fetch_add(1, Ordering::Relaxed);
        Sender { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Receiver<T> {
        self.shared.receivers.fetch_add(1, Ordering::Relaxed);
        Receiver { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.shared.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.items.close();
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        if self.shared.receivers.fetch_sub(1, Ordering::AcqRel) == 1 {
            let mut buffer = self.shared.buffer();
            buffer.receivers_gone = true;
            let left = std::mem::take(&mut buffer.values);
            drop(buffer);
            if let Some(slots) = &self.shared.slots {
                slots.close();
            }
            // Last, and without a lock: destructors may do anything.
            drop(left);
        }
    }
}

/// Receives until there is an error. See [`Receiver::iter`].
pub struct Iter<'a, T> {
    receiver: &'a Receiver<T>,
    ended: bool,
}

/// As [`Iter`], with the receiver in it.
pub struct IntoIter<T> {
    receiver: Receiver<T>,
    ended: bool,
}

fn next<T>(receiver: &Receiver<T>, ended: &mut bool) -> Option<T> {
    if *ended {
        return None;
    }
    let value = receiver.recv().ok();
    *ended = value.is_none();
    value
}

impl<T> Iterator for Iter<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        next(self.receiver, &mut self.ended)
    }
}

impl<T> Iterator for IntoIter<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        next(&self.receiver, &mut self.ended)
    }
}

impl<T> FusedIterator for Iter<'_, T> {}
impl<T> FusedIterator for IntoIter<T> {}

impl<'a, T> IntoIterator for &'a Receiver<T> {
    type Item = T;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}

impl<T> IntoIterator for Receiver<T> {
    type Item = T;
    type IntoIter = IntoIter<T>;

    fn into_iter(self) -> IntoIter<T> {
        IntoIter { receiver: self, ended: false }
    }
}

/// Why a value was not sent, and the value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SendError<T> {
    /// What was to be sent.
    pub value: T,
    /// Why it was not.
    pub reason: SendErrorReason,
}

/// Why a value was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendErrorReason {
    /// All receivers are gone.
    Disconnected,
    /// The channel was full until the fiber was canceled.
    Canceled,
    /// The channel was full until the fiber's deadline passed.
    DeadlineElapsed,
}

/// Why a value could not be sent at once, and the value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TrySendError<T> {
    /// The channel is full.
    Full(T),
    /// All receivers are gone.
    Disconnected(T),
}

/// Why no value was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecvError {
    /// All senders are gone, and so are the values.
    Disconnected,
    /// There was no value until the fiber was canceled.
    Canceled,
    /// There was no value until the fiber's deadline passed.
    DeadlineElapsed,
}

/// Why no value could be received at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryRecvError {
    /// There is none at the moment.
    Empty,
    /// All senders are gone, and so are the values.
    Disconnected,
}

impl<T> SendError<T> {
    fn disconnected(value: T) -> SendError<T> {
        SendError { value, reason: SendErrorReason::Disconnected }
    }

    /// The value that was not sent.
    pub fn into_value(self) -> T {
        self.value
    }
}

impl<T> TrySendError<T> {
    /// The value that was not sent.
    pub fn into_value(self) -> T {
        match self {
            TrySendError::Full(value) | TrySendError::Disconnected(value) => value,
        }
    }
}

impl From<Interrupted> for RecvError {
    fn from(interrupt: Interrupted) -> RecvError {
        match interrupt {
            Interrupted::Canceled | Interrupted::PeerGone => RecvError::Canceled,
            Interrupted::DeadlineElapsed => RecvError::DeadlineElapsed,
        }
    }
}

impl fmt::Display for SendErrorReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SendErrorReason::Disconnected => "sending into a channel without receivers",
            SendErrorReason::Canceled => "canceled while sending into a full channel",
            SendErrorReason::DeadlineElapsed => {
                "deadline elapsed while sending into a full channel"
            }
        })
    }
}

// Values need not be `Debug` to be unwrapped.
impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendError").field("reason", &self.reason).finish_non_exhaustive()
    }
}

impl<T> fmt::Display for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

impl<T> fmt::Debug for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TrySendError::Full(_) => "Full(..)",
            TrySendError::Disconnected(_) => "Disconnected(..)",
        })
    }
}

impl<T> fmt::Display for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TrySendError::Full(_) => "sending into a full channel",
            TrySendError::Disconnected(_) => "sending into a channel without receivers",
        })
    }
}

impl fmt::Display for RecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RecvError::Disconnected => "receiving from an empty channel without senders",
            RecvError::Canceled => "canceled while receiving from an empty channel",
            RecvError::DeadlineElapsed => "deadline elapsed while receiving from an empty channel",
        })
    }
}

impl fmt::Display for TryRecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TryRecvError::Empty => "receiving from an empty channel",
            TryRecvError::Disconnected => "receiving from an empty channel without senders",
        })
    }
}

impl<T> Error for SendError<T> {}
impl<T> Error for TrySendError<T> {}
impl Error for RecvError {}
impl Error for TryRecvError {}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}
