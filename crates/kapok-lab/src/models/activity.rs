//! The connections that tasks or fibers serve, for the sweep and the stop: cheaper than a timer for
//! each read.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::pace::Pace;

/// shutdown(2), as the sockets of a model want it.
pub(super) type ShutDown = fn(BorrowedFd<'_>, Shutdown) -> io::Result<()>;

/// The open connections.
pub(super) struct ActivityRoster {
    state: Mutex<State>,
    /// The number of the current sweep.
    now: AtomicU32,
    shut_down: ShutDown,
}

#[derive(Default)]
struct State {
    slots: Vec<Option<Open>>,
    free: Vec<usize>,
}

struct Open {
    fd: RawFd,
    /// The sweep in which something last moved.
    active: Arc<AtomicU32>,
}

/// A connection on the roster; leaves it when dropped.
pub(super) struct ActivityEntry {
    roster: Arc<ActivityRoster>,
    slot: usize,
    active: Arc<AtomicU32>,
}

impl ActivityRoster {
    pub(super) fn new(shut_down: ShutDown) -> ActivityRoster {
        ActivityRoster { state: Mutex::default(), now: AtomicU32::new(0), shut_down }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an open connection on the roster.
    pub(super) fn enter(roster: &Arc<ActivityRoster>, stream: &impl AsRawFd) -> ActivityEntry {
        let active = Arc::new(AtomicU32::new(roster.now.load(Relaxed)));
        let mut state = roster.lock();
        let slot = state.free.pop().unwrap_or_else(|| {
            state.slots.push(None);
            state.slots.len() - 1
        });
        state.slots[slot] = Some(Open { fd: stream.as_raw_fd(), active: Arc::clone(&active) });
        drop(state);
        ActivityEntry { roster: Arc::clone(roster), slot, active }
    }

    /// Begins the sweep that `pace` counts, and shuts down what has been idle for too long.
    pub(super) fn sweep(&self, pace: &Pace) {
        self.now.store(pace.now(), Relaxed);
        self.shut_down(Shutdown::Both, |active| pace.is_idle(active));
    }

    /// Gives every connection the end of its input: reads return what has arrived, and then 0.
    pub(super) fn end_input(&self) {
        self.shut_down(Shutdown::Read, |_| true);
    }

    /// Shuts down the connections whose last activity `which` picks: their reads then end.
    fn shut_down(&self, how: Shutdown, which: impl Fn(u32) -> bool) {
        for open in self.lock().slots.iter().flatten() {
            if which(open.active.load(Relaxed)) {
                // SAFETY: the descriptor is open: whoever serves it leaves the roster, which is locked here,
                // before it closes the stream.
                let fd = unsafe { BorrowedFd::borrow_raw(open.fd) };
                // Fails if the peer has reset the connection: then the next read says so.
                let _ = (self.shut_down)(fd, how);
            }
        }
    }
}

impl ActivityEntry {
    /// Something has moved on the connection.
    #[inline]
    pub(super) fn touch(&self) {
        self.active.store(self.roster.now.load(Relaxed), Relaxed);
    }
}

impl Drop for ActivityEntry {
    fn drop(&mut self) {
        let mut state = self.roster.lock();
        state.slots[self.slot] = None;
        state.free.push(self.slot);
    }
}
