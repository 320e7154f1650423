//! The bell: how another thread ends an engine's turn early.
//!
//! A ring costs a system call only if the loop is about to sleep or asleep. One word says so:
//!
//! ```text
//!            ring                     ring: write the descriptor
//!   AWAKE ─────────► RUNG ◄───────────────────────────────────── ASLEEP
//!     ▲               │                                            ▲
//!     └───────────────┘ the turn ends        the turn is about to wait, and word was AWAKE
//! ```
//!
//! Who rings has published its message before; who wakes takes the word back to `AWAKE` before it
//! looks for messages. Both change the word by read-modify-write, so one of them sees the other: a
//! message is never left behind by a sleeping loop.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::primitives::{AtomicU32, Notifier};

const AWAKE: u32 = 0;
const RUNG: u32 = 1;
const ASLEEP: u32 = 2;

#[derive(Debug)]
struct Shared {
    word: AtomicU32,
    notifier: Notifier,
}

/// Ends a turn of the engine it came from. Cheap to clone, usable from any thread and, since
/// [`ring`](Bell::ring) only touches an atomic and write(2), from a signal handler.
#[derive(Clone, Debug)]
pub struct Bell(Arc<Shared>);

impl Bell {
    /// Ends the engine's current turn, or keeps its next one from waiting. Rings between two turns
    /// are one ring. After the engine is gone this does nothing.
    #[inline]
    pub fn ring(&self) {
        if self.0.word.swap(RUNG, Ordering::AcqRel) == ASLEEP {
            self.0.notifier.notify();
        }
    }
}

/// The engine's side of a bell.
#[derive(Debug)]
pub(crate) struct BellTower(Arc<Shared>);

impl BellTower {
    pub(crate) fn new() -> io::Result<BellTower> {
        Ok(BellTower(Arc::new(Shared { word: AtomicU32::new(AWAKE), notifier: Notifier::new()? })))
    }

    pub(crate) fn bell(&self) -> Bell {
        Bell(Arc::clone(&self.0))
    }

    /// The tower for another engine of the same thread, which takes the place of this one: every
    /// bell there is rings for it from now on.
    pub(crate) fn pass_on(&self) -> BellTower {
        BellTower(Arc::clone(&self.0))
    }

    /// The descriptor that becomes readable when a sleeping engine is rung.
    pub(crate) fn fd(&self) -> RawFd {
        self.0.notifier.as_raw_fd()
    }

    /// To be called right before the engine waits. `false`: it was rung, do not wait.
    #[must_use]
    #[inline]
    pub(crate) fn fall_asleep(&self) -> bool {
        self.0.word.compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// To be called when the turn is over, waited or not. Everything published before a ring that
    /// this call swallows is visible after it.
    #[inline]
    pub(crate) fn wake_up(&self) {
        self.0.word.swap(AWAKE, Ordering::AcqRel);
    }

    /// Empties the descriptor after it was seen readable, so that it is not reported again.
    pub(crate) fn drain(&self) {
        self.0.notifier.drain();
    }

    /// To be called when the descriptor was reported by what reports edges. Each write to an eventfd is
    /// an edge, whatever is in it, and it does not fill up: it is left as it is. A pipe fills up.
    #[inline]
    pub(crate) fn heard_an_edge(&self) {
        if !Notifier::COUNTS {
            self.drain();
        }
    }
}

/// The sleeping side of a bell without an engine, for models of what rings it.
#[cfg(loom)]
#[derive(Debug)]
pub struct Sleeper(BellTower);

#[cfg(loom)]
impl Sleeper {
    /// A bell and who listens to it.
    #[expect(clippy::new_without_default, reason = "the state of a model is made in the model")]
    pub fn new() -> Sleeper {
        Sleeper(BellTower::new().expect("a modelled notifier"))
    }

    /// The bell.
    pub fn bell(&self) -> Bell {
        self.0.bell()
    }

    /// A turn of an engine that has nothing to do.
    pub fn turn(&self) {
        if self.0.fall_asleep() {
            self.0.0.notifier.wait();
            self.0.drain();
        }
        self.0.wake_up();
    }
}

/// `RUSTFLAGS="--cfg loom" cargo test --release -p kapok-engine --lib model`
#[cfg(all(test, loom))]
mod models {
    use std::sync::Arc;

    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::thread;

    use super::Sleeper;

    #[test]
    fn model_of_a_bell_that_two_threads_ring() {
        // How often a thread is stopped where it need not: more finds nothing more, and takes long.
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(4);
        model.check(|| {
            let sleeper = Sleeper::new();
            let messages = Arc::new(AtomicUsize::new(0));
            let threads = [0, 1].map(|_| {
                let (bell, messages) = (sleeper.bell(), Arc::clone(&messages));
                thread::spawn(move || {
                    messages.fetch_add(1, Ordering::Relaxed);
                    bell.ring();
                })
            });
            while messages.load(Ordering::Relaxed) < 2 {
                sleeper.turn();
            }
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }

    #[test]
    fn model_of_a_bell_that_is_rung_twice() {
        loom::model(|| {
            let sleeper = Sleeper::new();
            let messages = Arc::new(AtomicUsize::new(0));
            let thread = {
                let (bell, messages) = (sleeper.bell(), Arc::clone(&messages));
                thread::spawn(move || {
                    for _ in 0..2 {
                        messages.fetch_add(1, Ordering::Relaxed);
                        bell.ring();
                    }
                })
            };
            while messages.load(Ordering::Relaxed) < 2 {
                sleeper.turn();
            }
            thread.join().unwrap();
        });
    }
}
