//! The connections that other threads are blocked on, so that a stop can wake them.

use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Open connections by slot. A slot's `Arc` keeps the descriptor from being closed, and so from
/// being reused, while a shutdown names it.
#[derive(Debug, Default)]
pub(super) struct Roster {
    state: Mutex<State>,
    left: Condvar,
}

#[derive(Debug, Default)]
struct State {
    slots: Vec<Option<Arc<TcpStream>>>,
    free: Vec<usize>,
    /// How connections that enter from here on are shut down at once.
    stopping: Option<Shutdown>,
}

impl State {
    fn open(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

/// A connection on the roster; leaves it when dropped.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    roster: &'a Roster,
    slot: usize,
    stream: Arc<TcpStream>,
}

impl Entry<'_> {
    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut state = self.roster.lock();
        state.slots[self.slot] = None;
        state.free.push(self.slot);
        drop(state);
        self.roster.left.notify_all();
    }
}

impl Roster {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enter(&self, stream: TcpStream) -> Entry<'_> {
        let stream = Arc::new(stream);
        let mut state = self.lock();
        if let Some(how) = state.stopping {
            let _ = stream.shutdown(how);
        }
        let slot = state.free.pop().unwrap_or_else(|| {
            state.slots.push(None);
            state.slots.len() - 1
        });
        state.slots[slot] = Some(Arc::clone(&stream));
        Entry { roster: self, slot, stream }
    }

    /// Gives every connection, now and from here on, the end of its input: a blocked read returns
    /// what has arrived and then 0. Whatever has not left after `limit` is cut off, which ends
    /// blocked writes too.
    pub(super) fn stop(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        state.stopping = Some(Shutdown::Read);
        for stream in state.slots.iter().flatten() {
            let _ = stream.shutdown(Shutdown::Read);
        }
        while state.open() > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.stopping = Some(Shutdown::Both);
                for stream in state.slots.iter().flatten() {
                    let _ = stream.shutdown(Shutdown::Both);
                }
                return;
            }
            state = self.left.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
