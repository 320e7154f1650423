//! The stacks that fibers run on.
//!
//! A program may hold a million fibers, most of them parked with a few hundred live bytes. So a
//! stack is a *slot*: address space that is reserved in bulk, committed by the kernel page by page
//! as it is touched, and kept for the next fiber.
//!
//! ```text
//!  slot start                                                            slot end
//!  │◄──────── guard ────────►│◄────────────── usable ──────────────►│      │
//!  │   64 KiB, no access     │  grows down ◄── frames ◄── │  colour  │ page │
//!  └─ limit()                                    base() ─┘  n × 64 B         └─ next slot's guard
//! ```
//!
//! - **Slot.** A power of two, 256 KiB unless asked otherwise ([`StackSize`]), guard included, and
//!   an odd page, so that parked fibers' pages do not meet in the same sets of the translation buffer.
//!   Slots are carved from chunks of 64 MiB to 1 GiB. All chunks are mapped alike, so the kernel
//!   merges neighbours into one mapping; without huge pages, or one touched byte would commit 2 MiB.
//! - **Guard** ([`guard`]). Compilers for C emit no stack probes: a frame may jump over a guard of
//!   one page. 64 KiB catches what code on small stacks does. Kernel guard markers (Linux 6.13) do
//!   not split the mapping, page protection does and meets `vm.max_map_count`.
//! - **Colour.** Stacks a whole number of pages apart would put the hot lines of every parked fiber
//!   into the same few sets of the first cache. The base is lowered by another multiple of a cache line
//!   in each slot, by less than 1.5 KiB, so colour and live frames still share one page.
//! - **Pool** ([`pool`]). Each loop keeps the stacks its fibers left, last in first out, and hands
//!   them out without a system call or an atomic. Beyond its limit a stack's pages go back to the
//!   kernel and its slot to the process-wide [`arena`], where any thread may take it.
//! - **Overflow** ([`overflow`]). A fault in a guard names the fiber, its size and the fix.
//!
//! Invariants: a chunk is never unmapped; a slot is at any time in exactly one place (one
//! [`PooledStack`], one pool's warm list, or the arena); a slot's guard is installed before the slot
//! is first handed out and never removed.

mod arena;
mod guard;
mod overflow;
mod pool;
#[cfg(all(test, target_os = "linux"))]
mod tests;
mod valgrind;

pub use arena::StackUsage;
pub(crate) use arena::{Arena, PooledStack, StackSize};
pub(crate) use overflow::{
    FiberLabel, ensure_alternate_stack, install_overflow_handler, running, set_running,
};
pub(crate) use pool::{DEFAULT_WARM_STACKS, StackPool};

/// What the stacks of this process's fibers come to.
pub fn stack_usage() -> StackUsage {
    Arena::process().stats()
}

/// The slot of the stack that holds `address`, if it is one of a fiber. Async-signal-safe.
pub(crate) fn bounds_of(address: usize) -> Option<std::ops::Range<usize>> {
    let chunk = arena::chunk_of(address)?;
    let start = chunk.slot_start(address);
    Some(start..start + chunk.size.slot_bytes())
}

/// What can be used of the stack that holds `address`.
pub(crate) fn usable_around(address: usize) -> Option<std::ops::Range<usize>> {
    bounds_of(address).map(|slot| slot.start + guard::GUARD_BYTES..slot.end - arena::ODD_BYTES)
}

/// Counts the stack of a fiber that will never end.
pub(crate) fn note_leaked() {
    Arena::process().note_leaked();
}
