//! Operations of the [pool](crate::pool) on the loop of the fiber that waits for them.

use std::io;
use std::task::Poll;

use kapok_engine::{Kind, Op};
use kapok_pool::{Carrier, PollState};

use crate::op;
use crate::runtime::{Frame, Loop};

/// So many reads and writes wait for the next turn at most: a device would be idle until then. What the
/// page cache has was tried before, so these are for one.
const DEVICE_BATCH: usize = 2;

/// Unless it has so many already.
const BUSY_DEVICE: usize = 32;

/// Has the pool know of fibers.
pub(crate) fn install() {
    let carrier = Carrier { run, wait, on_fiber, went_on };
    // SAFETY: `op::run` keeps the one rule, and `block_on` returns when `poll` has said so.
    unsafe { carrier.install() };
}

/// Not on a simulated loop: the pool's descriptors are real ones.
#[inline]
fn on_fiber() -> bool {
    let frame = Frame::default();
    Loop::running(&frame).is_some_and(|(lp, _)| lp.kind() != Kind::Sim)
}

fn went_on() {
    let frame = Frame::default();
    if let Some((lp, fiber)) = Loop::running(&frame).filter(|_| !std::thread::panicking())
        && !lp.may_go_on()
    {
        lp.yield_now(fiber);
    }
}

unsafe fn run(op: Op) -> Option<io::Result<i32>> {
    let frame = Frame::default();
    let (lp, _) = Loop::running(&frame).filter(|(lp, _)| lp.kind() != Kind::Sim)?;
    if matches!(op, Op::Read { .. } | Op::Write { .. }) {
        lp.flush(DEVICE_BATCH, BUSY_DEVICE);
    }
    // SAFETY: by the caller.
    Some(unsafe { op::run(op) })
}

unsafe fn wait(poll: PollState, state: *mut ()) -> bool {
    on_fiber() && {
        crate::block_on(std::future::poll_fn(|context| {
            // SAFETY: by the caller, until this function returns.
            if unsafe { poll(state, context) } { Poll::Ready(()) } else { Poll::Pending }
        }));
        true
    }
}
