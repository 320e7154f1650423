//! The loops of one runtime, and the fibers that have not started and look for a loop.
//!
//! Work moves by being offered: a loop with nothing to do puts itself on a list, and a loop that
//! has unstarted fibers sees that the list is not empty (one relaxed load) and leaves some. A loop
//! that is alone, or whose neighbours are all busy, pays nothing.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock, PoisonError};

use super::event_loop::Unstarted;
use super::remote::Remote;
use crate::primitives::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::primitives::{Mutex, MutexGuard};

/// A queue entry that crosses threads.
struct Movable(Unstarted);

// SAFETY: only unstarted fibers whose entry is `Send` are marked movable, and only those are
// offered; the closure is all that is in them.
unsafe impl Send for Movable {}

#[derive(Default)]
struct Offers {
    queue: VecDeque<Movable>,
    /// Loops that wait and have been promised nothing yet.
    idle: Vec<usize>,
}

pub(crate) struct Group {
    remotes: Vec<OnceLock<Arc<Remote>>>,
    offers: Mutex<Offers>,
    /// How many loops are on the idle list, and how many offers are open: read without the lock.
    idle: AtomicUsize,
    open: AtomicUsize,
    stopping: AtomicBool,
}

impl Group {
    pub(crate) fn new(loops: usize) -> Group {
        Group {
            remotes: (0..loops).map(|_| OnceLock::new()).collect(),
            offers: Mutex::new(Offers::default()),
            idle: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
        }
    }

    /// Whether there is one loop only, so that no fiber ever moves.
    #[inline]
    pub(super) fn is_alone(&self) -> bool {
        self.remotes.len() == 1
    }

    pub(crate) fn join(&self, index: usize, remote: Arc<Remote>) {
        let fresh = self.remotes[index].set(remote).is_ok();
        debug_assert!(fresh, "two loops in one place");
    }

    fn lock(&self) -> MutexGuard<'_, Offers> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self, index: usize) {
        if let Some(remote) = self.remotes[index].get() {
            remote.ring();
        }
    }

    /// Whether a loop would take unstarted fibers now.
    #[inline]
    pub(crate) fn someone_is_idle(&self) -> bool {
        self.idle.load(Ordering::Relaxed) > 0
    }

    /// Leaves fibers for whoever is idle.
    pub(crate) fn offer(&self, fibers: impl IntoIterator<Item = Unstarted>) {
        let mut offers = self.lock();
        let mut woken = Vec::new();
        for fiber in fibers {
            debug_assert!(fiber.movable);
            offers.queue.push_back(Movable(fiber));
            woken.extend(offers.idle.pop());
        }
        if woken.is_empty() {
            // They have all found something else meanwhile: whoever comes by takes it.
            woken.extend(0..self.remotes.len());
        }
        self.idle.store(offers.idle.len(), Ordering::Relaxed);
        self.open.store(offers.queue.len(), Ordering::Release);
        drop(offers);
        for index in woken {
            self.ring(index);
        }
    }

    /// Takes a share of what is offered.
    #[inline]
    pub(super) fn take_offered(&self) -> Option<Vec<Unstarted>> {
        if self.open.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut offers = self.lock();
        self.take_share(&mut offers)
    }

    fn take_share(&self, offers: &mut Offers) -> Option<Vec<Unstarted>> {
        let share = offers.queue.len().div_ceil(self.remotes.len());
        let taken: Vec<Unstarted> = offers.queue.drain(..share).map(|one| one.0).collect();
        self.open.store(offers.queue.len(), Ordering::Release);
        (!taken.is_empty()).then_some(taken)
    }

    /// Puts a loop on the idle list, unless there is something for it to do.
    pub(super) fn become_idle(&self, index: usize) -> Option<Vec<Unstarted>> {
        if self.remotes.len() == 1 && self.open.load(Ordering::Acquire) == 0 {
            // Alone: nobody to announce it to; who injects rings.
            return None;
        }
        let mut offers = self.lock();
        if let Some(taken) = self.take_share(&mut offers) {
            return Some(taken);
        }
        if self.remotes.len() > 1 {
            offers.idle.push(index);
            self.idle.store(offers.idle.len(), Ordering::Relaxed);
        }
        None
    }

    /// Takes a loop off the idle list.
    pub(super) fn become_busy(&self, index: usize) {
        if self.remotes.len() == 1 {
            return;
        }
        let mut offers = self.lock();
        offers.idle.retain(|&idle| idle != index);
        self.idle.store(offers.idle.len(), Ordering::Relaxed);
    }

    /// Ends every loop of the group. From any thread.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        for index in 0..self.remotes.len() {
            self.ring(index);
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Shows the fibers that are offered and that nobody has taken.
    pub(super) fn visit_offered(&self, visit: impl FnMut(&Unstarted)) {
        if self.open.load(Ordering::Acquire) > 0 {
            self.lock().queue.iter().map(|one| &one.0).for_each(visit);
        }
    }

    /// What nobody has started, to be dropped.
    pub(crate) fn take_all(&self) -> Vec<Unstarted> {
        let mut offers = self.lock();
        self.open.store(0, Ordering::Release);
        offers.queue.drain(..).map(|one| one.0).collect()
    }
}
