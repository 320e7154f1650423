//! Fibers that wait at an object of the C library whose own queue is not for them: conditions and
//! read-write locks. They queue here, by the object's address, and every hooked call that ends such
//! waits looks here, on fibers and on plain threads alike.
//!
//! Nobody ends those waits behind the hooks' back. libc itself signals no condition and unlocks no
//! read-write lock of a program's; who calls is the program or one of its libraries, through the hook.
//!
//! No wake-up is lost. [`Place::take`] is before the waiter lets go of what it has looked at (the mutex
//! of a condition), or before it looks a last time (a read-write lock). Whoever changes that later sees
//! the place in [`wake`]: the counter and the waiter's last look are sequentially consistent, so at
//! least one of the two sees the other.
//!
//! The lock of a shard is held for a few instructions and never over a wait: whoever takes it is inside
//! Kapok meanwhile, so that even an allocator with locks of its own does not suspend the fiber.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use kapok::interpose;

use super::abandoned::{Left, Registered};
use super::deadline::Deadline;
use super::per_process::PerProcess;
use crate::signals::mask::aside;

struct Waiting {
    address: usize,
    entry: Arc<Entry>,
}

#[derive(Default)]
pub(super) struct Entry {
    /// Whether it was woken, and whom to tell.
    state: Mutex<(bool, Option<Waker>)>,
}

struct Shard {
    waiting: Mutex<VecDeque<Waiting>>,
    /// How many, to be read without the lock.
    count: AtomicUsize,
}

const SHARDS: usize = 64;

type Queue = [Shard; SHARDS];

const fn empty() -> Queue {
    [const { Shard { waiting: Mutex::new(VecDeque::new()), count: AtomicUsize::new(0) } }; SHARDS]
}

/// The process's, renewed in the child of a fork.
static QUEUE: PerProcess<Queue> = {
    static FIRST: Queue = empty();
    PerProcess::new(&FIRST)
};

fn shard(address: usize) -> &'static Shard {
    // The low bits of objects are alike.
    &QUEUE.get()[(address >> 3 ^ address >> 9 ^ address >> 15) % SHARDS]
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place in the queue of an object, left when it is dropped.
pub(super) struct Place {
    address: usize,
    entry: Arc<Entry>,
    _registered: Registered,
}

/// How a wait in the queue ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    Woken,
    TimedOut,
}

impl Place {
    /// Takes the last place.
    pub(super) fn take(address: usize) -> Place {
        let _inside = interpose::enter();
        let entry = Arc::new(Entry::default());
        let shard = shard(address);
        let mut waiting = lock(&shard.waiting);
        waiting.push_back(Waiting { address, entry: Arc::clone(&entry) });
        shard.count.store(waiting.len(), Ordering::SeqCst);
        drop(waiting);
        fence(Ordering::SeqCst);
        let left = Left::Place(address, Arc::clone(&entry));
        Place { address, entry, _registered: Registered::new(left) }
    }

    /// Waits to be woken. Code that must not suspend blocks its thread.
    pub(super) fn wait(&self, deadline: Option<Deadline>) -> End {
        let inside = interpose::enter();
        if inside.is_some() {
            super::note_suspension();
        }
        loop {
            let until = deadline.and_then(|deadline| deadline.instant());
            let woken = poll_fn(|context| {
                let mut state = lock(&self.entry.state);
                if state.0 {
                    return Poll::Ready(());
                }
                state.1 = Some(context.waker().clone());
                Poll::Pending
            });
            let ended = match (&inside, until) {
                (Some(inside), _) => kapok::shield(|| aside(|| inside.wait(woken, until))).is_ok(),
                (None, until) => wait_on_thread(woken, until),
            };
            if ended {
                return End::Woken;
            }
            // A clock that was set back meanwhile starts another round.
            if deadline.is_none_or(|deadline| deadline.has_passed()) {
                return if self.leave() { End::TimedOut } else { End::Woken };
            }
        }
    }

    /// Leaves the queue. `false`: woken before, so the wake-up is this waiter's.
    pub(super) fn leave(&self) -> bool {
        leave(self.address, &self.entry)
    }
}

fn leave(address: usize, entry: &Arc<Entry>) -> bool {
    let _inside = interpose::enter();
    let shard = shard(address);
    let mut waiting = lock(&shard.waiting);
    let place = waiting.iter().position(|other| Arc::ptr_eq(&other.entry, entry));
    let left = place.map(|place| waiting.remove(place));
    shard.count.store(waiting.len(), Ordering::SeqCst);
    drop(waiting);
    left.is_some()
}

/// Takes the place of a fiber that will never go on out of the queue. It may have been woken for good,
/// or have kept others from a lock: those who are left look for themselves, as if woken for no reason.
pub(super) fn abandon(address: usize, entry: &Arc<Entry>) {
    leave(address, entry);
    wake(address & !WRITERS, usize::MAX);
}

/// What is added to the address of a read-write lock to have that under which its writers are noted.
pub(super) const WRITERS: usize = 1;

/// Blocks the thread: on a fiber that unwinds from a panic or is inside Kapok, and in the child of a
/// fork.
fn wait_on_thread(woken: impl Future<Output = ()>, until: Option<Instant>) -> bool {
    let mut woken = std::pin::pin!(woken);
    while until.is_none_or(|until| Instant::now() < until) {
        let polled = woken.as_mut().poll(&mut std::task::Context::from_waker(Waker::noop()));
        if polled.is_ready() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Wakes the first `count` who wait at the object.
#[inline]
pub(super) fn wake(address: usize, count: usize) {
    fence(Ordering::SeqCst);
    if shard(address).count.load(Ordering::SeqCst) > 0 {
        wake_some(address, count);
    }
}

#[cold]
fn wake_some(address: usize, count: usize) {
    let _inside = interpose::enter();
    let shard = shard(address);
    let mut woken = Vec::new();
    let mut waiting = lock(&shard.waiting);
    waiting.retain(|one| {
        let hit = one.address == address && woken.len() < count;
        if hit {
            woken.push(Arc::clone(&one.entry));
        }
        !hit
    });
    shard.count.store(waiting.len(), Ordering::SeqCst);
    drop(waiting);
    for entry in woken {
        let mut state = lock(&entry.state);
        state.0 = true;
        let waker = state.1.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Forgets all who wait: in the child of a fork nobody does.
pub(super) fn forget() {
    QUEUE.renew(empty());
}

/// Whether anybody waits at the object.
pub(super) fn is_awaited(address: usize) -> bool {
    let shard = shard(address);
    shard.count.load(Ordering::SeqCst) > 0
        && lock(&shard.waiting).iter().any(|one| one.address == address)
}
