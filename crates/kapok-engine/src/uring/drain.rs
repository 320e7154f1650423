//! The end of a ring: everything that is lent comes back, or is never freed.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{CANCEL, Form, NO_DESCRIPTOR, Pool, Uring, encode, entries};
use crate::op::{Completions, Key};

/// How long a dropped engine waits for what it has cancelled to land.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

impl Uring {
    /// Cancels everything and waits until it has landed or `DRAIN_LIMIT` has passed.
    fn drain(&mut self) {
        let deadline = Instant::now() + DRAIN_LIMIT;
        // What the kernel has not seen need not begin.
        let mut unseen = self.ring.take_unsubmitted();
        unseen.extend(std::mem::take(&mut self.backlog));
        for key in unseen.iter().map(|sqe| Key::from_bits(sqe.user_data)) {
            let is_over = || match entries::followed(key) {
                Some(index) => self.pending.get(index as usize).is_some_and(|pending| {
                    pending.form == Form::LettingGo && pending.fd != NO_DESCRIPTOR
                }),
                None => false,
            };
            self.in_kernel -= usize::from(!key.is_reserved() || is_over());
        }
        let mut sink = Completions::new();
        let mut cancels = true;
        while self.in_kernel > 0 {
            // Again when something has landed or time has passed: the end of an operation may be the beginning
            // of the next of its chain. Not in every round: the cancel lands too, and would end the wait.
            let is_out = self.ring.unsubmitted() == 0 && self.backlog.is_empty();
            if cancels && is_out {
                // SAFETY: a cancel names no memory.
                unsafe { self.push(encode::cancel_all(CANCEL)) };
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.refill();
            let before = self.in_kernel;
            match self.ring.enter(u32::MAX, true, Some(left.min(Duration::from_millis(100)))) {
                Ok(entered) => {
                    if self.ring.unsubmitted() > 0 {
                        // The kernel takes nothing now, and has not waited.
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    cancels = !entered;
                }
                Err(error) => {
                    tracing::error!(%error, "io_uring cannot be entered any more");
                    break;
                }
            }
            self.reap(&mut sink);
            sink.clear();
            cancels |= self.in_kernel < before;
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        if self.in_kernel > 0 {
            self.drain();
        }
        if self.in_kernel > 0 {
            tracing::error!(
                operations = self.in_kernel,
                "io_uring closed with operations that did not end; their memory must not be freed"
            );
            // One of them may still take a buffer.
            if let Pool::Made(buffers) = &self.buffers {
                std::mem::forget(Rc::clone(buffers));
            }
            std::mem::forget(std::mem::take(&mut self.groups));
        }
    }
}
