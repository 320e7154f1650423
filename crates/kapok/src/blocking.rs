//! Code that blocks, run where it may.

use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use kapok_engine::offload;

use crate::fiber;
use crate::park;
use crate::sim;

struct Handoff<R> {
    result: Option<std::thread::Result<R>>,
    waker: Option<Waker>,
}

/// Runs `f` on a thread of the offload pool and suspends the fiber until it has returned: for calls
/// that block by themselves, and for long computations. `f` may borrow, since the fiber stays.
///
/// It cannot be interrupted: a cancelled fiber waits for `f` to end. On a plain thread `f` runs on
/// the spot.
///
/// # Errors
///
/// If there is no thread for it, and none can be made.
///
/// # Panics
///
/// With the panic of `f`.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// # kapok::Runtime::new()?.run(|| -> std::io::Result<()> {
/// let words = vec!["sum", "of", "lengths"];
/// let total = kapok::blocking(|| words.iter().map(|word| word.len()).sum::<usize>())?;
/// assert_eq!(total, 12);
/// # Ok(())
/// # })
/// # }
/// ```
pub fn blocking<R: Send>(f: impl FnOnce() -> R + Send) -> io::Result<R> {
    // In a simulated world another thread would be a clock of its own.
    if !fiber::on_fiber() || std::thread::panicking() || sim::with_world(|_| ()).is_some() {
        return Ok(f());
    }
    let handoff = Arc::new(Mutex::new(Handoff { result: None, waker: None }));
    let there = Arc::clone(&handoff);
    let job = move || {
        let result = catch_unwind(AssertUnwindSafe(f));
        let mut handoff = there.lock().unwrap_or_else(PoisonError::into_inner);
        handoff.result = Some(result);
        let waker = handoff.waker.take();
        drop(handoff);
        // The caller may go on, and its borrows end, once the result is seen: nothing of it is left
        // here but the empty packet.
        drop(there);
        if let Some(waker) = waker {
            waker.wake();
        }
    };
    let job: Box<dyn FnOnce() + Send + '_> = Box::new(job);
    // SAFETY: only the lifetime changes. The job, with all it borrows, is consumed before the result
    // can be seen, and this function, which cannot be unwound while it waits, returns only then. If
    // the pool refuses the job it has dropped it.
    let job: Box<dyn FnOnce() + Send + 'static> = unsafe { std::mem::transmute(job) };
    offload::spawn(job)?;
    let result = park::block_on(poll_fn(|context| {
        let mut handoff = handoff.lock().unwrap_or_else(PoisonError::into_inner);
        match handoff.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                handoff.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }));
    match result {
        Ok(value) => Ok(value),
        Err(panic) => resume_unwind(panic),
    }
}
