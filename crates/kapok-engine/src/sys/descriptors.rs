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

use std::os::fd::RawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Descriptors per lazily made page of epochs.
const PAGE: usize = 4096;
/// Enough pages for the usual ceiling of `fs.nr_open`. Numbers beyond share epochs with lower ones,
/// which costs a needless registration and never a wrong one.
const PAGES: usize = 256;

static EPOCHS: [OnceLock<Box<[AtomicU32]>>; PAGES] = [const { OnceLock::new() }; PAGES];

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
    let page = EPOCHS[fd / PAGE].get_or_init(|| (0..PAGE).map(|_| AtomicU32::new(0)).collect());
    &page[fd % PAGE]
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
