//! The parker of a plain thread.

use std::cell::Cell;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::Instant;

use crate::primitives::atomic::{AtomicU8, Ordering};
use crate::primitives::thread::{self, Thread};

const EMPTY: u8 = 0;
const NOTIFIED: u8 = 1;
const PARKED: u8 = 2;

/// One word beside the thread's own token, because that token is anyone's: it tells a wake-up from
/// a stray `unpark`, and it saves the system call when the thread is not asleep. Changed by
/// read-modify-write only, so a wake-up and a park cannot miss each other.
struct Word {
    word: AtomicU8,
    thread: Thread,
}

impl Wake for Word {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.word.swap(NOTIFIED, Ordering::AcqRel) == PARKED {
            self.thread.unpark();
        }
    }
}

struct Parts {
    word: Arc<Word>,
    waker: Waker,
}

impl Parts {
    fn new() -> Parts {
        let word = Arc::new(Word { word: AtomicU8::new(EMPTY), thread: thread::current() });
        Parts { waker: Waker::from(Arc::clone(&word)), word }
    }
}

thread_local! {
    /// The parker of this thread while no `block_on` uses it.
    static SPARE: Cell<Option<Parts>> = const { Cell::new(None) };
}

/// The current thread's parker, lent to one `block_on`.
pub(super) struct ThreadParker {
    /// `Some` until dropped.
    parts: Option<Parts>,
}

impl ThreadParker {
    pub(super) fn take() -> ThreadParker {
        // No spare: the first use, a nested one, or the thread's locals are being destroyed.
        let parts = SPARE.try_with(Cell::take).ok().flatten().unwrap_or_else(Parts::new);
        ThreadParker { parts: Some(parts) }
    }

    fn parts(&self) -> &Parts {
        self.parts.as_ref().expect("the parker is lent until it is dropped")
    }

    pub(super) fn waker(&self) -> &Waker {
        &self.parts().waker
    }

    pub(super) fn park(&self) {
        self.park_with(|| {
            thread::park();
            true
        });
    }

    /// Returns by `deadline`, woken or not.
    pub(super) fn park_until(&self, deadline: Instant) {
        self.park_with(|| {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            thread::park_timeout(left);
            true
        });
    }

    /// Sleeps by `sleep` until woken, or until `sleep` refuses.
    fn park_with(&self, mut sleep: impl FnMut() -> bool) {
        let word = &self.parts().word.word;
        if word.compare_exchange(EMPTY, PARKED, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            while sleep() {
                if word.load(Ordering::Acquire) == NOTIFIED {
                    break;
                }
            }
        }
        // Acquires what the waker published, whichever way the wait ended.
        word.swap(EMPTY, Ordering::AcqRel);
    }
}

impl Drop for ThreadParker {
    fn drop(&mut self) {
        let parts = self.parts.take();
        // The outermost `block_on` leaves last, so what stays is one parker a thread. Without
        // thread-locals there is nothing to keep it for.
        let _ = SPARE.try_with(|spare| spare.set(parts));
    }
}

/// `RUSTFLAGS="--cfg loom" cargo test --release -p kapok --lib model`
#[cfg(all(test, loom))]
mod models {
    use loom::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn model_of_a_thread_that_is_woken_by_two_and_unparked_by_a_stranger() {
        loom::model(|| {
            let mut parker = ThreadParker { parts: Some(Parts::new()) };
            let messages = Arc::new(AtomicUsize::new(0));
            let stranger = parker.parts().word.thread.clone();
            let threads = [Some(stranger), None].map(|stranger| {
                let (waker, messages) = (parker.waker().clone(), Arc::clone(&messages));
                loom::thread::spawn(move || {
                    if let Some(thread) = stranger {
                        thread.unpark();
                    }
                    messages.fetch_add(1, Ordering::Relaxed);
                    waker.wake();
                })
            });
            while messages.load(Ordering::Relaxed) < 2 {
                parker.park();
            }
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            // Not to be kept for the next run, which is another world.
            parker.parts = None;
        });
    }
}
