//! The sleep flag: what spares a submitter the bell of an I/O thread that is awake.
//!
//! Who submits has put its operation into the channel and then looks at the flag; who falls asleep
//! sets the flag and then looks into the channel a second time. A fence between the two on both sides
//! makes one of them see the other.

use crate::primitives::atomic::{AtomicBool, Ordering, fence};

pub(crate) struct SleepFlag(AtomicBool);

impl SleepFlag {
    pub(crate) fn new() -> SleepFlag {
        SleepFlag(AtomicBool::new(false))
    }

    /// To be called before the second look, after which the thread may wait for its bell.
    #[inline]
    pub(crate) fn fall_asleep(&self) {
        self.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// To be called when the wait is over, or was not begun.
    #[inline]
    pub(crate) fn wake_up(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Rings if the thread sleeps or is about to, once a sleep. To be called when what it is to see is
    /// where it looks. Says whether it rang.
    #[inline]
    pub(crate) fn notify(&self, ring: impl FnOnce()) -> bool {
        fence(Ordering::SeqCst);
        // The load spares the exchange: a thread that is awake keeps the line.
        if !self.0.load(Ordering::Relaxed) || !self.0.swap(false, Ordering::AcqRel) {
            return false;
        }
        ring();
        true
    }
}
