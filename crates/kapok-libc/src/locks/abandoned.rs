//! Fibers that will never go on: those that are left when their loop closes.
//!
//! A wait for a lock is not ended by cancelling its fiber, so such a fiber may be in the middle of one,
//! and what it has there would go on taking wake-ups that are for others. Its stack cannot be unwound;
//! so each wait is noted beside it, and what is noted is taken back when the loop is gone.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use kapok::interpose;

use super::futex::Word;
use super::queue::{self, Entry};
use super::several;
use super::stand_in::Meeting;

/// What a fiber has somewhere while it waits.
pub(super) enum Left {
    /// An operation of its loop's engine, at this word.
    Operation(Word),
    /// A thread that stands in for it.
    StandIn(Arc<Meeting>),
    /// A thread that waits for it at several words.
    Several(Arc<several::Meeting>),
    /// A place in the queue of the object with this address.
    Place(usize, Arc<Entry>),
}

impl Left {
    fn key(&self) -> usize {
        match self {
            Left::Operation(word) => word.address().addr(),
            Left::StandIn(meeting) => Arc::as_ptr(meeting).addr(),
            Left::Several(meeting) => Arc::as_ptr(meeting).addr(),
            Left::Place(_, entry) => Arc::as_ptr(entry).addr(),
        }
    }

    fn take_back(self) {
        match self {
            // It was called off with its loop, and may have been woken before.
            Left::Operation(word) => word.pass_on(),
            Left::StandIn(meeting) => meeting.abandon(),
            Left::Several(meeting) => meeting.abandon(),
            Left::Place(address, entry) => queue::abandon(address, &entry),
        }
    }
}

thread_local! {
    /// By fiber. Fibers never leave their thread, where they are abandoned too. Never destroyed: after the
    /// thread-locals come the functions of atexit(3), which may wait.
    static WAITS: ManuallyDrop<RefCell<BTreeMap<(u64, usize), Left>>> =
        const { ManuallyDrop::new(RefCell::new(BTreeMap::new())) };
}

/// Something that is noted until this is dropped.
pub(super) struct Registered(Option<(u64, usize)>);

impl Registered {
    /// Notes it for the fiber that runs, if one does.
    pub(super) fn new(left: Left) -> Registered {
        let _inside = interpose::enter();
        let key = kapok::current_id().map(|fiber| (fiber, left.key()));
        if let Some(key) = key {
            WAITS.with(|waits| waits.borrow_mut().insert(key, left));
        }
        Registered(key)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let _inside = interpose::enter();
        if let Some(key) = &self.0 {
            let left = WAITS.with(|waits| waits.borrow_mut().remove(key));
            drop(left);
        }
    }
}

/// Takes back what a fiber has left. On its loop's thread, when the loop is gone.
pub(super) fn abandon(fiber: u64) {
    crate::wait::abandon(fiber);
    let left: Vec<Left> = WAITS.with(|waits| {
        let mut waits = waits.borrow_mut();
        let mut from = waits.split_off(&(fiber, 0));
        waits.append(&mut from.split_off(&(fiber + 1, 0)));
        from.into_values().collect()
    });
    left.into_iter().for_each(Left::take_back);
}
