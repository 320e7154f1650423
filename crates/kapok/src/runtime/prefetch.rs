//! Asking for memory before it is needed.
//!
//! A fiber that waited is cold: its control block, the lines of its stack around the switch, and the
//! translation of the page that they lie in, for which a processor under a hypervisor walks two page
//! tables. With a thousand fibers that took longer than everything else that is done outside the
//! kernel for a request. The order in which fibers will run is known, so the loop asks for the next
//! one's lines while the one before runs.

use std::collections::VecDeque;
use std::ptr::NonNull;

use crate::fiber::Fiber;

const CACHE_LINE_BYTES: usize = 64;

/// How much of a suspended stack its next steps touch: the frames of the call that waited.
const STACK_BYTES: usize = 10 * CACHE_LINE_BYTES;

/// Asks for what the first fibers of the queue will need, each a step further than before.
#[inline]
pub(super) fn soon(ready: &VecDeque<NonNull<Fiber>>) {
    let Some(&next) = ready.front() else { return };
    stack(next);
    if let Some(&second) = ready.get(1) {
        page(second);
    }
    if let Some(&third) = ready.get(2) {
        control_block(third);
    }
}

/// Asks for the part of the fiber's control block that a switch touches.
#[inline]
fn control_block(fiber: NonNull<Fiber>) {
    for line in 0..Fiber::SWITCHED_BYTES.div_ceil(CACHE_LINE_BYTES) {
        line_at(fiber.as_ptr().cast::<u8>().wrapping_add(line * CACHE_LINE_BYTES));
    }
}

/// Asks for one line of the stack, and so for the translation of its page. Further lines would
/// wait for that.
#[inline]
fn page(fiber: NonNull<Fiber>) {
    // SAFETY: a fiber that is ready is alive, suspended and ours; a plain field.
    line_at(unsafe { (*fiber.as_ref().local()).suspended_at });
}

/// Asks for the part of the stack that the fiber will go on with.
#[inline]
fn stack(fiber: NonNull<Fiber>) {
    // SAFETY: as for `page`.
    let (suspended_at, yielder) = unsafe {
        let local = fiber.as_ref().local();
        ((*local).suspended_at, (*local).yielder)
    };
    for line in 0..STACK_BYTES / CACHE_LINE_BYTES {
        line_at(suspended_at.wrapping_add(line * CACHE_LINE_BYTES).wrapping_sub(CACHE_LINE_BYTES));
    }
    if let Some(yielder) = yielder {
        line_at(yielder.as_ptr().cast());
    }
}

/// A hint: any address will do, and none is read.
#[inline]
fn line_at(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no effect on memory and does not fault, wherever it points.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!(
            "prfm pldl1keep, [{address}]",
            address = in(reg) address,
            options(nostack, readonly, preserves_flags)
        );
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}
