//! References to a fiber's control block, and the wakers that are made of them.
//!
//! What [`std::sync::Arc`] is, without its weak count, and made with as many references as a new
//! fiber needs: counting is most of what a short fiber costs.

use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::task::{RawWaker, RawWakerVTable, Waker};

use super::control::Fiber;
use crate::primitives::atomic::{AtomicUsize, Ordering};
use crate::runtime::{Loop, Remote};

/// Keeps a fiber's control block alive; not the fiber, which ends when it ends.
pub(crate) struct FiberRef(NonNull<Fiber>);

// SAFETY: a counted reference to a `Fiber`, which is `Send` and `Sync`; the last one may free it on
// any thread, see there.
unsafe impl Send for FiberRef {}
// SAFETY: as for `Send`.
unsafe impl Sync for FiberRef {}

/// How many references there are.
pub(super) struct References(AtomicUsize);

impl References {
    pub(super) fn new(count: usize) -> References {
        References(AtomicUsize::new(count))
    }

    #[inline]
    fn add(&self) {
        // Relaxed: whoever makes another has one.
        if self.0.fetch_add(1, Ordering::Relaxed) > isize::MAX as usize {
            // Leaked wakers: a count that came round would free what is in use.
            std::process::abort();
        }
    }

    /// Gives one up. `true`: it was the last, and everything that was done by way of the others is
    /// visible.
    #[inline]
    pub(super) fn remove(&self) -> bool {
        // Who has the only one has nobody to race with, and may save itself the modification.
        self.0.load(Ordering::Acquire) == 1 || self.0.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

impl FiberRef {
    /// The two references of a new fiber: its loop's and its handle's.
    ///
    /// # Safety
    ///
    /// `fiber` was written into the place of a [`Spare`], whose home it has, with two references.
    #[inline]
    pub(super) unsafe fn pair(fiber: NonNull<Fiber>) -> (FiberRef, FiberRef) {
        (FiberRef(fiber), FiberRef(fiber))
    }

    /// Another reference to a fiber.
    ///
    /// # Safety
    ///
    /// `pointer` came from [`Fiber::pointer`], and somebody holds a reference during the call.
    pub(crate) unsafe fn share(pointer: NonNull<Fiber>) -> FiberRef {
        // SAFETY: by the caller it is alive.
        unsafe { pointer.as_ref() }.references.add();
        FiberRef(pointer)
    }

    /// Whether this is the only reference, at the moment.
    pub(super) fn is_only(&self) -> bool {
        self.references.0.load(Ordering::Relaxed) == 1
    }

    pub(super) fn as_pointer(&self) -> NonNull<Fiber> {
        self.0
    }
}

impl Deref for FiberRef {
    type Target = Fiber;

    #[inline]
    fn deref(&self) -> &Fiber {
        // SAFETY: alive, because this reference is counted.
        unsafe { self.0.as_ref() }
    }
}

impl Clone for FiberRef {
    #[inline]
    fn clone(&self) -> FiberRef {
        self.references.add();
        FiberRef(self.0)
    }
}

impl Drop for FiberRef {
    #[inline]
    fn drop(&mut self) {
        if self.references.remove() {
            // SAFETY: it came from `pair`, and this was the last reference.
            unsafe { free(self.0) };
        }
    }
}

/// Ends a control block. Its memory goes to its loop, if that is the calling thread's.
///
/// # Safety
///
/// `fiber` came from [`FiberRef::pair`], and there is no reference left.
unsafe fn free(fiber: NonNull<Fiber>) {
    // SAFETY: by the caller it is alive, and ours alone.
    let spare = unsafe {
        let home = fiber.as_ref().home_pointer();
        std::ptr::drop_in_place(fiber.as_ptr());
        Spare { place: fiber.cast(), home }
    };
    Loop::with_current(|current| match current {
        Some(lp) => lp.keep_spare(spare),
        None => drop(spare),
    });
}

/// Room for a control block. What one has left keeps the reference to its home: the next of the same
/// loop needs neither an allocation nor a count that all threads share.
pub(crate) struct Spare {
    place: NonNull<MaybeUninit<Fiber>>,
    /// Null, or a counted reference.
    home: *const Remote,
}

impl Spare {
    pub(super) fn new() -> Spare {
        let place = NonNull::from(Box::leak(Box::new(MaybeUninit::uninit())));
        Spare { place, home: std::ptr::null() }
    }

    #[inline]
    pub(crate) fn is_at_home(&self, remote: &Remote) -> bool {
        std::ptr::eq(self.home, remote)
    }

    /// The place, and the home of who is written there: both are the caller's.
    #[inline]
    pub(super) fn into_parts(self) -> (NonNull<MaybeUninit<Fiber>>, *const Remote) {
        let this = ManuallyDrop::new(self);
        (this.place, this.home)
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        // SAFETY: the place came from a box and has nothing in it; the home is a counted reference.
        unsafe {
            drop(Box::from_raw(self.place.as_ptr()));
            if !self.home.is_null() {
                drop(Arc::from_raw(self.home));
            }
        }
    }
}

/// Runs `f` with a waker of `fiber` that costs no reference unless it is cloned.
///
/// # Safety
///
/// `fiber` came from [`Fiber::pointer`], and somebody holds a reference until `f` has returned.
pub(crate) unsafe fn with_waker<R>(fiber: NonNull<Fiber>, f: impl FnOnce(&Waker) -> R) -> R {
    // SAFETY: the functions of the table keep the contract of `RawWaker`. The reference is not ours,
    // so the waker must never be dropped.
    let waker = ManuallyDrop::new(unsafe { Waker::from_raw(raw(fiber)) });
    f(&waker)
}

/// One table, so that wakers of one fiber are known to be the same.
static TABLE: RawWakerVTable = RawWakerVTable::new(clone, wake, wake_by_ref, drop_waker);

fn raw(fiber: NonNull<Fiber>) -> RawWaker {
    RawWaker::new(fiber.as_ptr().cast_const().cast(), &TABLE)
}

/// The reference that a waker's data stands for.
///
/// # Safety
///
/// `data` is that of a waker made by `raw`, whose reference the result is: to be dropped if the
/// waker is, and else not.
unsafe fn reference(data: *const ()) -> FiberRef {
    // SAFETY: the data is the pointer of a fiber, never null.
    FiberRef(unsafe { NonNull::new_unchecked(data.cast_mut().cast()) })
}

unsafe fn clone(data: *const ()) -> RawWaker {
    // SAFETY: by the contract of the table; kept for the waker that is cloned.
    let fiber = ManuallyDrop::new(unsafe { reference(data) });
    raw(ManuallyDrop::new(FiberRef::clone(&fiber)).0)
}

unsafe fn wake(data: *const ()) {
    // SAFETY: by the contract of the table; the waker is gone.
    unsafe { reference(data) }.unpark();
}

unsafe fn wake_by_ref(data: *const ()) {
    // SAFETY: by the contract of the table; kept for the waker.
    ManuallyDrop::new(unsafe { reference(data) }).unpark();
}

unsafe fn drop_waker(data: *const ()) {
    // SAFETY: by the contract of the table; the waker is gone.
    drop(unsafe { reference(data) });
}
