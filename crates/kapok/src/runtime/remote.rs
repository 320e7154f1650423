//! What other threads see of a loop.

use std::ptr::NonNull;
use std::sync::PoisonError;

use kapok_engine::Bell;

use super::report::Request;
use crate::fiber::{Fiber, FiberRef};
use crate::primitives::Mutex;
use crate::primitives::atomic::{AtomicBool, AtomicPtr, Ordering};

/// The remote side of a loop: an inbox of fibers that became ready, and of requests to look at one.
pub(crate) struct Remote {
    /// A stack of unparked fibers, linked through `Fiber::inbox_next`. A fiber is in it at most
    /// once, because only the unpark that found it parked pushes it.
    inbox: AtomicPtr<Fiber>,
    /// Fibers that have a reason to be interrupted. Rare. None when the loop has ended: each would keep
    /// this, its home, and be kept by it.
    interrupts: Mutex<Option<Vec<FiberRef>>>,
    /// Reports of all fibers that somebody has asked for. Rare.
    requests: Mutex<Vec<Request>>,
    /// There are interrupts or requests; changed by read-modify-write only.
    attention: AtomicBool,
    bell: Bell,
}

impl Remote {
    pub(crate) fn new(bell: Bell) -> Remote {
        Remote {
            inbox: AtomicPtr::new(std::ptr::null_mut()),
            interrupts: Mutex::new(Some(Vec::new())),
            requests: Mutex::new(Vec::new()),
            attention: AtomicBool::new(false),
            bell,
        }
    }

    /// Makes a fiber of this loop ready. Called once by whoever found it parked.
    pub(crate) fn make_ready(&self, fiber: NonNull<Fiber>) {
        if super::Loop::push_ready_if_current(self, fiber) {
            return;
        }
        let mut head = self.inbox.load(Ordering::Relaxed);
        loop {
            // SAFETY: a parked fiber is alive until its loop resumes it, which it does only after
            // it has taken it out of this inbox.
            unsafe { fiber.as_ref() }.inbox_next.store(head, Ordering::Relaxed);
            match self.inbox.compare_exchange_weak(
                head,
                fiber.as_ptr(),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(now) => head = now,
            }
        }
        // Only the first into an empty inbox has to ring: the loop takes all of it at once.
        if head.is_null() {
            self.bell.ring();
        }
    }

    /// Has the loop look at `fiber`.
    pub(crate) fn interrupt(&self, fiber: FiberRef) {
        // Dropped after the unlock if there is nobody to take it.
        let _left = match &mut *self.interrupts.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(interrupts) => {
                interrupts.push(fiber);
                None
            }
            None => Some(fiber),
        };
        self.call_attention();
    }

    /// Forgets the fibers to be interrupted, now and from now on: the loop has ended.
    pub(super) fn close(&self) {
        let left = self.interrupts.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(left);
    }

    /// Has the loop report its fibers.
    pub(crate) fn request(&self, request: Request) {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        self.call_attention();
    }

    /// Has the loop come back to its interrupts and requests, before it waits.
    pub(super) fn call_attention(&self) {
        self.attention.swap(true, Ordering::AcqRel);
        self.bell.ring();
    }

    /// Whether there are interrupts or requests since the last time. One load, as a rule.
    #[inline]
    pub(super) fn wants_attention(&self) -> bool {
        self.attention.load(Ordering::Acquire) && self.attention.swap(false, Ordering::AcqRel)
    }

    /// Ends the loop's turn.
    pub(crate) fn ring(&self) {
        self.bell.ring();
    }

    /// Whether other threads have made fibers ready.
    #[inline]
    pub(super) fn has_ready(&self) -> bool {
        !self.inbox.load(Ordering::Relaxed).is_null()
    }

    /// Takes the ready fibers out, the first that came first.
    pub(super) fn take_ready(&self, mut take: impl FnMut(NonNull<Fiber>)) {
        // The stack has the last on top: turn it round.
        let mut reversed: Option<NonNull<Fiber>> = None;
        let mut next = NonNull::new(self.inbox.swap(std::ptr::null_mut(), Ordering::AcqRel));
        while let Some(fiber) = next {
            // SAFETY: what is in the inbox is parked and alive, see `make_ready`; the swap made
            // the links visible and nobody else follows them now.
            let link = unsafe { &fiber.as_ref().inbox_next };
            next = NonNull::new(link.load(Ordering::Relaxed));
            link.store(reversed.map_or(std::ptr::null_mut(), NonNull::as_ptr), Ordering::Relaxed);
            reversed = Some(fiber);
        }
        while let Some(fiber) = reversed {
            // SAFETY: as above. The link is read before the fiber is handed on.
            let link = unsafe { &fiber.as_ref().inbox_next };
            reversed = NonNull::new(link.load(Ordering::Relaxed));
            take(fiber);
        }
    }

    /// Takes the fibers to be interrupted.
    pub(super) fn take_interrupts(&self) -> Vec<FiberRef> {
        let mut interrupts = self.interrupts.lock().unwrap_or_else(PoisonError::into_inner);
        interrupts.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes the requests for reports.
    pub(super) fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut *self.requests.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
