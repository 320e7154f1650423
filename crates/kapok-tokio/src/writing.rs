//! A write that goes on by itself until all of it is written, whoever waits for it, or nobody.
//!
//! It is the waker of its own operations: whoever tells it that one has landed, or that there is room for
//! one, polls it on the spot. That is short, it never blocks, and it takes no thread. It is kept alive by
//! the waker that the pool holds, so the file may be gone.
//!
//! ```text
//!              woken: polled by who woke it          over: the outcome is left for the file
//!      RESTS ───────────────────────► POLLED ──┬────────────────────────────────────────► RESTS
//!                                      ▲    │  │ woken by another meanwhile
//!                                      └────┼──┴─► WOKEN
//!                           once more       └───────┘
//! ```
//!
//! A poll may wake others of its kind: a slot that one gives back is room for the next. They are polled
//! after it, not inside it, or a long line at the pool's gate would be as deep a stack.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};

use kapok_pool::{OpenFile, Operation, Part, WriteAt};

/// Nobody polls it.
const RESTS: u8 = 0;
/// Somebody does.
const POLLED: u8 = 1;
/// Somebody does, and does so once more.
const WOKEN: u8 = 2;

/// What a write came to, and its buffer without the bytes.
type Written = (io::Result<()>, Vec<u8>);

/// What is left of a write.
struct Rest {
    file: kapok_pool::File,
    operation: Operation<'static, WriteAt<OpenFile, Part<Vec<u8>>>>,
    /// How many bytes had been written before this operation.
    done: usize,
}

impl Rest {
    fn new(file: kapok_pool::File, bytes: Vec<u8>) -> Rest {
        let operation = Rest::operation(&file, bytes, 0);
        Rest { file, operation, done: 0 }
    }

    fn operation(
        file: &kapok_pool::File,
        bytes: Vec<u8>,
        done: usize,
    ) -> Operation<'static, WriteAt<OpenFile, Part<Vec<u8>>>> {
        let rest = done..bytes.len();
        file.append(Part::of_bytes(bytes, rest)).owned()
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Written> {
        loop {
            let (count, part) = ready!(Pin::new(&mut self.operation).poll(context));
            let mut bytes = part.into_inner();
            let outcome = match count {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.done += count;
                    if self.done < bytes.len() {
                        self.operation = Rest::operation(&self.file, bytes, self.done);
                        continue;
                    }
                    Ok(())
                }
                Err(error) => Err(error),
            };
            bytes.clear();
            return Poll::Ready((outcome, bytes));
        }
    }
}

enum Outcome {
    /// There is none yet, and this is who waits for it.
    Awaited(Option<Waker>),
    Over(Written),
}

/// The writes of one file, one after the other.
pub(crate) struct Writing {
    turn: AtomicU8,
    /// Whose turn it is has it locked, and so has [`begin`](Writing::begin), when nothing is under way.
    rest: Mutex<Option<Rest>>,
    /// No code of others runs under this lock.
    outcome: Mutex<Outcome>,
}

impl Writing {
    pub(crate) fn new() -> Arc<Writing> {
        Arc::new(Writing {
            turn: AtomicU8::new(RESTS),
            rest: Mutex::new(None),
            outcome: Mutex::new(Outcome::Awaited(None)),
        })
    }

    /// Begins to write. The outcome of the write before has been taken.
    pub(crate) fn begin(self: &Arc<Self>, file: kapok_pool::File, bytes: Vec<u8>) {
        *lock(&self.rest) = Some(Rest::new(file, bytes));
        take_turn(Arc::clone(self));
    }

    /// The outcome, once all is written or an error has ended it.
    pub(crate) fn poll_over(&self, context: &mut Context<'_>) -> Poll<Written> {
        let mut waker = None;
        loop {
            let mut outcome = lock(&self.outcome);
            match &mut *outcome {
                Outcome::Over(_) => {
                    let over = std::mem::replace(&mut *outcome, Outcome::Awaited(None));
                    drop(outcome);
                    let Outcome::Over(written) = over else { unreachable!("it was just seen") };
                    return Poll::Ready(written);
                }
                Outcome::Awaited(Some(present)) if present.will_wake(context.waker()) => {
                    return Poll::Pending;
                }
                Outcome::Awaited(present) if waker.is_some() => {
                    let replaced = std::mem::replace(present, waker);
                    drop(outcome);
                    drop(replaced);
                    return Poll::Pending;
                }
                Outcome::Awaited(_) => {}
            }
            drop(outcome);
            waker = Some(context.waker().clone());
        }
    }

    /// Nobody waits for it any more.
    pub(crate) fn leave(&self) {
        let waker = match &mut *lock(&self.outcome) {
            Outcome::Awaited(waker) => waker.take(),
            Outcome::Over(_) => None,
        };
        drop(waker);
    }

    /// Polls it, and again if it was woken meanwhile. For whose turn it is.
    fn run(self: &Arc<Self>) {
        let waker = Waker::from(Arc::clone(self));
        let mut context = Context::from_waker(&waker);
        loop {
            self.turn.swap(POLLED, Ordering::AcqRel);
            self.poll(&mut context);
            let rests =
                self.turn.compare_exchange(POLLED, RESTS, Ordering::AcqRel, Ordering::Acquire);
            if rests.is_ok() {
                return;
            }
        }
    }

    fn poll(&self, context: &mut Context<'_>) {
        let mut present = lock(&self.rest);
        let Some(rest) = &mut *present else { return };
        let written = match catch_unwind(AssertUnwindSafe(|| rest.poll(context))) {
            Ok(Poll::Pending) => return,
            Ok(Poll::Ready(written)) => written,
            Err(_) => {
                let lost = "the ring broke: nobody will ever say what of this was written";
                (Err(io::Error::other(lost)), Vec::new())
            }
        };
        // Before anybody hears of the end: who then closes the file is the last who has it open. Until then
        // nobody else wants the lock.
        *present = None;
        drop(present);
        let before = std::mem::replace(&mut *lock(&self.outcome), Outcome::Over(written));
        if let Outcome::Awaited(Some(waker)) = before
            && let Err(panic) = catch_unwind(AssertUnwindSafe(|| waker.wake()))
        {
            // Those that are polled after this are not to suffer. What was thrown may throw again when it
            // is dropped.
            std::mem::forget(panic);
        }
    }
}

impl Wake for Writing {
    fn wake(self: Arc<Self>) {
        take_turn(self);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        take_turn(Arc::clone(self));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The writes that a thread polls.
struct Turns {
    polls: bool,
    /// Those that were woken while it polls another.
    line: VecDeque<Arc<Writing>>,
}

thread_local! {
    static TURNS: RefCell<Turns> =
        const { RefCell::new(Turns { polls: false, line: VecDeque::new() }) };
}

/// Polls it, here or where it is polled already; after another, if this thread polls one.
fn take_turn(writing: Arc<Writing>) {
    if writing.turn.swap(WOKEN, Ordering::AcqRel) != RESTS {
        return;
    }
    let mut next = Some(writing);
    // At the end of a thread its locals may be gone: it is polled all the same.
    let _ = TURNS.try_with(|turns| {
        let mut turns = turns.borrow_mut();
        if turns.polls {
            turns.line.extend(next.take());
        }
        turns.polls = true;
    });
    while let Some(writing) = next {
        writing.run();
        let after = TURNS.try_with(|turns| {
            let mut turns = turns.borrow_mut();
            let after = turns.line.pop_front();
            turns.polls = after.is_some();
            after
        });
        next = after.ok().flatten();
    }
}
