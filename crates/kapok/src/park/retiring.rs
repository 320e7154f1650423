//! Waits in the queues of this crate's own primitives.
//!
//! A fiber that is left behind is leaked with whatever is on its stack, and so would be its place in the
//! queue of a lock that others use: the lock would be promised to it, and be nobody's. What waits here is
//! therefore dropped, which takes it out of its queue, and hands on what it was notified of.
//!
//! For futures that own nothing but a place in a queue. They run no code of a user's when they are dropped,
//! and nobody else has a part of them.

use std::pin::pin;
use std::time::Instant;

use super::{AtAbandonment, Limit, wait};
use crate::fiber::Interrupted;

/// As [`block_on`](super::block_on).
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    match wait(pin!(future), Limit::None, AtAbandonment::Drop) {
        Ok(output) => output,
        Err(_) => unreachable!("a wait without a limit is not interrupted"),
    }
}

/// As [`block_on_interruptible`](super::block_on_interruptible).
pub(crate) fn block_on_interruptible<F: Future>(future: F) -> Result<F::Output, Interrupted> {
    wait(pin!(future), Limit::Interrupts, AtAbandonment::Drop)
}

/// Waits until `deadline`, then tells the future that it is `late` and goes on without a limit.
pub(crate) fn block_on_until<F: Future>(
    future: F,
    deadline: Instant,
    late: impl FnOnce(),
) -> F::Output {
    // Here, as above: whoever is left behind drops it where it is, and nobody else may own it.
    let mut future = pin!(future);
    if let Ok(output) = wait(future.as_mut(), Limit::Deadline(deadline), AtAbandonment::Drop) {
        return output;
    }
    late();
    match wait(future, Limit::None, AtAbandonment::Drop) {
        Ok(output) => output,
        Err(_) => unreachable!("a wait without a limit is not interrupted"),
    }
}
