//! The steps of a loop that must not block.

use std::sync::atomic::Ordering;
use std::time::Instant;

use kapok_engine::Engine;

use super::{Loop, Next};
use crate::stats::add;

/// What a loop comes to where a thread would wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rest {
    /// There is something to do.
    Goes,
    /// There is not, and whoever has something wakes it.
    Asleep,
    /// It was told to end, and all has landed.
    Over,
}

impl<E: Engine> Loop<E> {
    /// Whether the next step is to wait.
    pub(crate) fn is_about_to_wait(&self) -> bool {
        self.next == Next::Wait && self.handed == self.landed.len()
    }

    /// Step 4 of a loop that must not block: looks, and says whether it may be left until it is woken or its
    /// engine's descriptor is readable. It is asleep then until the flag is taken back.
    ///
    /// # Errors
    ///
    /// As for [`step`](Loop::step).
    pub(crate) fn rest(&mut self) -> std::io::Result<Rest> {
        let rest = self.fall_asleep();
        if rest != Rest::Asleep {
            return Ok(rest);
        }
        let looked = self.look();
        // What an enter has left, too: nobody wakes it for that.
        let is_left = self.engine.wants_turn() || self.engine.stats().backlog > 0;
        if looked.is_err() || !self.landed.is_empty() || is_left {
            self.port().sleep().wake_up();
            self.next = if self.landed.is_empty() { Next::Wait } else { Next::Complete };
            return looked.map(|()| Rest::Goes);
        }
        let counters = &self.port().counters;
        add(&counters.sleeps, 1);
        counters.system_calls.store(self.engine.stats().system_calls, Ordering::Relaxed);
        Ok(Rest::Asleep)
    }

    /// How many operations it has taken and not yet completed.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Has what is in flight cancelled once it is told to close, whatever grace there is.
    pub(crate) fn spare_the_grace(&mut self) {
        self.cancel_at = Some(self.engine.now());
    }

    /// When it cancels what is in flight, if that is to come.
    pub(crate) fn cancels_at(&self) -> Option<Instant> {
        self.cancel_at.filter(|_| !self.cancelling)
    }
}
