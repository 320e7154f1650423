//! Locks, conditions and channels that work between fibers, threads and futures in any mix.
//!
//! Each primitive has two forms of every operation that waits:
//!
//! | | on a fiber or a plain thread | in a future, on any executor |
//! |---|---|---|
//! | [`Mutex`] | [`lock`](Mutex::lock) | [`lock_async`](Mutex::lock_async) |
//! | [`RwLock`] | [`read`](RwLock::read), [`write`](RwLock::write) | [`read_async`](RwLock::read_async), [`write_async`](RwLock::write_async) |
//! | [`Condvar`] | [`wait`](Condvar::wait), [`wait_until`](Condvar::wait_until) | [`wait_async`](Condvar::wait_async) |
//! | [`Semaphore`] | [`acquire`](Semaphore::acquire) | [`acquire_async`](Semaphore::acquire_async) |
//! | [`channel`] | [`send`](channel::Sender::send), [`recv`](channel::Receiver::recv) | [`send_async`](channel::Sender::send_async), [`recv_async`](channel::Receiver::recv_async) |
//! | [`oneshot`] | [`recv`](oneshot::Receiver::recv) | [`recv_async`](oneshot::Receiver::recv_async), or await the receiver |
//!
//! The waiting form suspends a fiber and blocks a thread. Both sides of a primitive may use
//! different forms at the same time: a thread sends, a fiber receives, a tokio task holds the lock.
//!
//! # Cancellation
//!
//! `send`, `recv` and `acquire` end early with a typed error when their fiber is canceled or its
//! deadline passes; a plain thread is never interrupted. Locks and conditions are not interrupted:
//! code between `lock` and unlock seldom has a way out in the middle. What can be had without
//! waiting is given even to a canceled fiber.
//!
//! The futures may be dropped at any time. A waiter that was notified and is dropped passes its
//! notification on, and a value stays in its channel until someone has it.
//!
//! # Fairness
//!
//! Who comes to a free lock takes it, although others wait: that saves a switch for every change of
//! hands. It is bounded: who waited for a millisecond, or was woken in vain eight times, is served
//! next, and after that in the order of arrival. So nobody starves, writers included.
//!
//! # Threads
//!
//! The bounds are those of `std::sync`, except that guards may move to another thread: a lock
//! belongs to its guard, not to a thread. What must not be shared is not:
//!
//! ```compile_fail,E0277
//! let mutex = kapok::sync::Mutex::new(std::rc::Rc::new(0));
//! std::thread::scope(|scope| scope.spawn(|| drop(mutex.lock())).join());
//! ```
//!
//! ```compile_fail,E0277
//! let lock = kapok::sync::RwLock::new(std::cell::Cell::new(0));
//! std::thread::scope(|scope| scope.spawn(|| lock.read().set(1)).join());
//! ```
//!
//! ```compile_fail,E0277
//! let mutex = kapok::sync::Mutex::new(std::cell::Cell::new(0));
//! let guard = mutex.lock();
//! std::thread::scope(|scope| scope.spawn(|| guard.set(1)).join());
//! ```
//!
//! ```compile_fail,E0277
//! let (sender, receiver) = kapok::sync::channel::unbounded();
//! sender.send(std::rc::Rc::new(0));
//! std::thread::spawn(move || receiver.recv());
//! ```
//!
//! # No poisoning
//!
//! When the holder of a lock panics, the lock is released and nothing is marked. A panic on a fiber
//! ends in its join result, where it is dealt with; a second report of it in every other user of
//! the lock mostly turned one failure into many. The data may then be half changed: who cannot have
//! that changes it in one assignment at the end.

pub mod channel;
pub mod oneshot;

mod condvar;
mod mutex;
mod permits;
mod queue;
mod rwlock;
mod semaphore;

pub use condvar::Condvar;
pub use mutex::{Mutex, MutexGuard};
pub use rwlock::{RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use semaphore::{AcquireError, OwnedSemaphorePermit, Semaphore, SemaphorePermit};
