//! The search for lost edges.
//!
//! An edge is lost if a descriptor is ready for somebody who is parked on it and the selector will
//! not say so any more. That is a bug, of this engine or the kernel, or of a program that lets one
//! file description be eaten from by several. The sweep finds it by asking poll(2), which knows
//! levels. What it calls ready and one more wait of no length does not report is a suspect: data may
//! be in a socket a moment before its edge is. A suspect that the next sweep finds again, with the
//! same operation parked and turns in between, has lost its edge.

use std::collections::HashSet;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use crate::op::{Key, Readiness};
use crate::ready::Ready;
use crate::ready::attempt::interest;
use crate::ready::table::{NIL, Side};
use crate::selector::Selector;
use crate::sys::{descriptors, errno};

impl<S: Selector> Ready<S> {
    /// Looks for lost edges, delivers what they would have, and answers how many there were: edges
    /// that this sweep and the one before found missing. What it delivers lands in the next turn.
    /// Turn the engine between two sweeps, or what is merely on its way counts as lost. Operations
    /// parked on numbers that were closed or retired land with `-EBADF`, and count as nothing.
    ///
    /// Costs one poll(2) over everything that is parked; meant for tests, for diagnosis and for a
    /// loop that has been idle for long. Always 0 on selectors of levels, which lose nothing.
    ///
    /// # Errors
    ///
    /// Those of the selector's wait and of poll(2).
    pub fn sweep(&mut self) -> io::Result<usize> {
        if !S::EDGES {
            return Ok(0);
        }
        let stale: Vec<RawFd> = self
            .table
            .waited_for()
            .filter(|&(fd, entry)| entry.epoch != descriptors::epoch(fd))
            .map(|(fd, _)| fd)
            .collect();
        for fd in stale {
            self.renew_if_stale(fd);
        }
        let mut suspects = self.ready_but_parked()?;
        // Before anything else: an old description may still report under a number that is closed.
        suspects.retain(|&(fd, seen)| {
            let is_open = seen.0 & libc::POLLNVAL == 0;
            if !is_open {
                self.land_all(fd, -libc::EBADF);
            }
            is_open
        });
        let suspected = std::mem::take(&mut self.suspects);
        if suspects.is_empty() {
            return Ok(0);
        }
        let mut reported = Vec::new();
        let mut announced = HashSet::new();
        // One wait reports so many and no more. Each edge is reported once, and there are no more
        // of them than suspects, unless new ones keep coming.
        for _ in 0..suspects.len() {
            self.selector.wait(Some(Duration::ZERO), &mut reported)?;
            if reported.is_empty() {
                break;
            }
            for event in reported.drain(..) {
                #[cfg(test)]
                if self.swallow == Some(event.fd) {
                    self.swallow = None;
                    continue;
                }
                announced.insert(event.fd);
                self.take_in(event);
            }
        }
        suspects.retain(|&(fd, _)| !announced.contains(&fd));
        let mut lost = 0;
        for &(fd, seen) in &suspects {
            let Some(key) = self.kept_waiting(fd, seen) else { continue };
            if !suspected.contains(&(fd, key)) {
                self.suspects.push((fd, key));
                continue;
            }
            let landed_before = self.landed.len();
            if let Some(entry) = self.table.entry_mut(fd) {
                entry.readable = true;
            }
            for side in Side::ALL {
                self.serve(fd, side);
            }
            // Nothing landed: somebody else was faster, and nothing was lost.
            if self.landed.len() > landed_before {
                lost += 1;
                tracing::warn!(fd, seen = seen.0, "a lost edge was found and delivered");
            }
        }
        self.lost_edges += lost as u64;
        Ok(lost)
    }

    /// The first operation parked on `fd` that what was seen would let get on.
    fn kept_waiting(&self, fd: RawFd, seen: Readiness) -> Option<Key> {
        let entry = self.table.entry(fd)?;
        // Errors and hang-ups concern everybody.
        let all = seen.intersects(Readiness::ERROR.union(Readiness::HANG_UP));
        let heads = Side::ALL.into_iter().map(|side| entry.head(side)).filter(|&head| head != NIL);
        heads
            .map(|head| self.table.slot(head))
            .find(|slot| all || interest(&slot.op).intersects(seen))
            .map(|slot| slot.key)
    }

    /// How many lost edges all sweeps of this engine have found.
    pub fn lost_edges(&self) -> u64 {
        self.lost_edges
    }

    /// The descriptors that poll(2) calls ready for somebody who is parked on them.
    fn ready_but_parked(&self) -> io::Result<Vec<(RawFd, Readiness)>> {
        let mut asked: Vec<libc::pollfd> = self
            .table
            .waited_for()
            .map(|(fd, _)| libc::pollfd { fd, events: self.wanted(fd).0, revents: 0 })
            .collect();
        // SAFETY: the vector's own pointer and length.
        let seen = unsafe { libc::poll(asked.as_mut_ptr(), asked.len() as libc::nfds_t, 0) };
        if seen < 0 && errno() != libc::EINTR {
            return Err(io::Error::last_os_error());
        }
        Ok(asked
            .iter()
            .filter(|one| one.revents != 0)
            .map(|one| (one.fd, Readiness(one.revents)))
            .collect())
    }
}
