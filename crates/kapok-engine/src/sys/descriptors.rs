//! Whose a descriptor is, and which use of its number.
//!
//! Descriptor numbers are reused at once, so a number alone names nothing: an engine that keeps
//! readiness by number would take a new socket for the one that was there before, and wait for an
//! edge that has long been eaten. Every number therefore has an epoch, a process-wide word:
//!
//! ```text
//!   even: foreign   ── adopt ──►   odd: owned by one Kapok object   ── retire ──►   even, +2
//! ```
//!
//! [`adopt`] and [`retire`] bracket the time in which exactly one Kapok object (a stream, a
//! listener, …) owns the number and is the only one who closes it. An engine may keep what it knows
//! of an owned number for as long as the epoch stands still. Of a foreign number it may keep nothing
//! from one wait to the next.
//!
//! The words are statics, so that a number can be retired in a handler of a signal; the system gives
//! memory to those that were written.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Descriptors per page of epochs.
const PAGE: usize = 4096;
/// Enough pages for the usual ceiling of `fs.nr_open`. Numbers beyond share epochs with lower ones,
/// which costs a needless registration and never a wrong one.
const PAGES: usize = 256;

static EPOCHS: [AtomicU32; PAGE * PAGES] = [const { AtomicU32::new(0) }; PAGE * PAGES];

/// Whether anybody has asked for an epoch of this page.
static ASKED: [AtomicBool; PAGES] = [const { AtomicBool::new(false) }; PAGES];

/// One use of a descriptor number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Epoch(u32);

impl Epoch {
    /// An epoch that no descriptor is in: for tables that know nothing yet.
    pub const NONE: Epoch = Epoch(u32::MAX - 1);

    /// Whether a Kapok object owns the number in this epoch.
    #[inline]
    pub const fn is_owned(self) -> bool {
        self.0 & 1 == 1
    }
}

#[inline]
fn word(fd: RawFd) -> &'static AtomicU32 {
    let fd = fd.max(0) as usize % (PAGE * PAGES);
    let asked = &ASKED[fd / PAGE];
    if !asked.load(Ordering::Relaxed) {
        asked.store(true, Ordering::Release);
    }
    &EPOCHS[fd]
}

/// The present epoch of `fd`.
#[inline]
pub fn epoch(fd: RawFd) -> Epoch {
    Epoch(word(fd).load(Ordering::Acquire))
}

/// Declares that a Kapok object owns `fd` from now on. Adopting an owned number starts a new epoch
/// of it too.
pub fn adopt(fd: RawFd) {
    change(fd, 1);
}

/// Declares that the Kapok object that owned `fd` no longer does: it is about to be closed, or
/// handed to someone else.
pub fn retire(fd: RawFd) {
    change(fd, 0);
}

/// [`retire`] of every number from `first` to `last`. Of a number that nobody has asked for yet
/// nothing is known that could be wrong.
pub fn retire_range(first: RawFd, last: RawFd) {
    let first = first.max(0) as usize;
    let last = (last.max(0) as usize).min(PAGE * PAGES - 1);
    let (low, high) = (first / PAGE, last / PAGE);
    for (page, asked) in ASKED.iter().enumerate().take(high + 1).skip(low) {
        if asked.load(Ordering::Acquire) {
            let start = page * PAGE;
            for fd in first.max(start)..=last.min(start + PAGE - 1) {
                retire(fd as RawFd);
            }
        }
    }
}

fn change(fd: RawFd, low_bit: u32) {
    // `Err` is impossible: the closure always answers.
    let _ = word(fd).fetch_update(Ordering::AcqRel, Ordering::Acquire, |epoch| {
        let next = ((epoch | 1).wrapping_add(1)) | low_bit;
        // Skip the value that stands for no epoch at all.
        Some(if next == Epoch::NONE.0 { low_bit } else { next })
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_of_owner_is_a_new_epoch() {
        let fd = 4_000_000; // beyond anything another test of this process opens
        let start = epoch(fd);
        adopt(fd);
        let owned = epoch(fd);
        adopt(fd);
        let owned_again = epoch(fd);
        retire(fd);
        let foreign = epoch(fd);
        assert!(owned.is_owned() && owned_again.is_owned() && !foreign.is_owned());
        assert!(
            start != owned && owned != owned_again && owned_again != foreign && start != foreign
        );
    }
}
