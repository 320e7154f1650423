//! Descriptor numbers: what is waited for on one, which use of it that is, and what becomes of those
//! who wait when it is closed.

use std::os::fd::RawFd;

use crate::op::{Op, Readiness};
use crate::ready::Ready;
use crate::ready::attempt::interest;
use crate::ready::table::{NIL, Side};
use crate::selector::Selector;
use crate::sys::descriptors::{self, Epoch};
use crate::sys::perform;

impl<S: Selector> Ready<S> {
    /// All that is waited for on a descriptor.
    pub(super) fn wanted(&self, fd: RawFd) -> Readiness {
        let mut wanted = Readiness(0);
        for side in Side::ALL {
            let mut at = self.table.entry(fd).map_or(NIL, |entry| entry.head(side));
            while at != NIL {
                let slot = self.table.slot(at);
                wanted = wanted.union(interest(&slot.op));
                at = slot.next;
            }
        }
        wanted
    }

    /// Tells a selector of levels what is still waited for on a descriptor.
    pub(super) fn settle(&mut self, fd: RawFd) {
        if S::EDGES {
            return;
        }
        let Some(entry) = self.table.entry(fd) else { return };
        let was = entry.watched.then_some(entry.interest);
        let wanted = (!entry.is_idle()).then(|| self.wanted(fd));
        if wanted == was {
            return;
        }
        let watched = match wanted {
            Some(wanted) => self.selector.watch(fd, wanted, was.is_some()).is_ok(),
            None => {
                self.selector.unwatch(fd);
                false
            }
        };
        if let Some(entry) = self.table.entry_mut(fd) {
            entry.watched = watched;
            entry.interest = wanted.unwrap_or_default();
        }
    }

    /// The present epoch of `fd`, after forgetting what was known of an earlier one. Those parked
    /// on that one land with `-EBADF`: to let them try would be to let them take what belongs to
    /// the number's new owner.
    #[inline]
    pub(super) fn renew_if_stale(&mut self, fd: RawFd) -> Epoch {
        let epoch = descriptors::epoch(fd);
        if self.table.entry(fd).is_some_and(|entry| entry.epoch != epoch) {
            self.renew(fd, epoch);
        }
        epoch
    }

    #[cold]
    fn renew(&mut self, fd: RawFd, epoch: Epoch) {
        self.land_all(fd, -libc::EBADF);
        self.settle(fd);
        if let Some(entry) = self.table.entry_mut(fd) {
            // An old registration may live on, if the number was not closed: only a hint is lost.
            entry.renew(epoch);
        }
    }

    /// Lands everything that is parked on a descriptor.
    pub(super) fn land_all(&mut self, fd: RawFd, res: i32) {
        for side in Side::ALL {
            while let Some(head) = self.table.entry(fd).map(|entry| entry.head(side))
                && head != NIL
            {
                let slot = self.table.unpark(head);
                self.land(slot.key, slot.ended(res));
            }
        }
    }

    pub(super) fn close(&mut self, fd: RawFd) -> i32 {
        self.land_all(fd, -libc::EBADF);
        if let Some(entry) = self.table.entry_mut(fd) {
            if entry.watched {
                // The description may live on under another number, and so would its registration.
                self.selector.unwatch(fd);
            }
            entry.renew(Epoch::NONE);
        }
        // SAFETY: close names no memory. The caller says that the number is nobody else's.
        unsafe { perform(&Op::Close { fd }, false) }
    }
}
