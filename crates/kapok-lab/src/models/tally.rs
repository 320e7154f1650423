//! What a server met, counted from any of its threads.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use crate::serve::{Refusals, Served};

/// Counters of events that happen once a connection or seldom; requests are counted by each
/// session and added when it ends.
#[derive(Debug, Default)]
pub(super) struct Tally {
    accepted: AtomicU64,
    requests: AtomicU64,
    unserved: AtomicU64,
    refused: AtomicU64,
    pauses: AtomicU64,
    reason: Mutex<Option<String>>,
}

impl Tally {
    pub(super) fn accepted(&self) {
        self.accepted.fetch_add(1, Relaxed);
    }

    /// A session ended that had answered this many.
    pub(super) fn requests(&self, count: u64) {
        self.requests.fetch_add(count, Relaxed);
    }

    /// A connection was closed without a worker ever having looked at it.
    pub(super) fn unserved(&self) {
        self.unserved.fetch_add(1, Relaxed);
    }

    /// A connection was closed at once, since the model cannot hold it.
    pub(super) fn refused(&self, reason: impl FnOnce() -> String) {
        self.refused.fetch_add(1, Relaxed);
        self.met(reason);
    }

    /// Accepting pauses.
    pub(super) fn paused(&self, error: &io::Error) {
        self.pauses.fetch_add(1, Relaxed);
        self.met(|| {
            format!(
                "accepting paused, connections wait in the backlog: {error}; raise the limit of \
                 open files (ulimit -n)"
            )
        });
    }

    /// A limit was met; the first is reported.
    pub(super) fn met(&self, reason: impl FnOnce() -> String) {
        let mut first = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            let reason = reason();
            tracing::warn!("{reason}");
            *first = Some(reason);
        }
    }

    pub(super) fn served(&self) -> Served {
        Served {
            accepted: self.accepted.load(Relaxed),
            requests: self.requests.load(Relaxed),
            unserved: self.unserved.load(Relaxed),
            refused: Refusals {
                count: self.refused.load(Relaxed),
                reason: self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            },
            accept_pauses: self.pauses.load(Relaxed),
        }
    }
}
