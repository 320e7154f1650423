//! Slots: where operations live from submission to landing, and are found by their key.
//!
//! They are made once, with the pool; an operation takes one off the free list and allocates nothing.
//!
//! ```text
//!   ┌ first line ─────────────────────────────────────────┐┌ second line ─┐┌ third and fourth ─┐
//!   │ cell: state, waker, result │ generation │ cancel link ││ operation    ││ request (≤ 128 B) │
//!   └─────────────────────────────────────────────────────┘└──────────────┘└───────────────────┘
//! ```
//!
//! Whose a slot is:
//!
//! 1. **The submitter's** from the free list to the channel. It fills in request and operation.
//! 2. **The I/O thread's** from the channel to the landing, but for the cell, which has its own rules.
//!    The request does not move, and nobody touches it: the kernel may be writing to what it owns.
//! 3. **The waiter's** after the landing: it takes the request out and gives the slot back.
//!
//! A waiter that goes away before the landing leaves the slot to the I/O thread (the cell says so) and
//! puts it on that thread's list of cancels. The thread gives the slot back when it has seen both, the
//! landing and the entry in the list, whose link is in the slot.

use std::marker::PhantomData;
use std::mem::{self, ManuallyDrop, MaybeUninit, align_of, size_of};

use kapok_engine::{Key, Op, offload};

use crate::cell::{Cell, Landed, undisturbed};
use crate::free::FreeList;
use crate::primitives::atomic::AtomicU32;
use crate::primitives::cell::UnsafeCell;
use crate::request::Request;

/// Room for a request in a slot, in bytes. Larger ones are boxed.
const ROOM: usize = 128;

#[repr(C, align(16))]
struct Room([MaybeUninit<u8>; ROOM]);

/// What the I/O thread notes of a slot that it has.
#[derive(Clone, Copy, Default)]
pub(crate) struct Carried {
    /// Its operation has landed, and nobody waits.
    pub(crate) ended: bool,
    /// Its waiter has left it on the list of cancels, and it was taken from there.
    pub(crate) cancelled: bool,
}

#[repr(C, align(64))]
pub(crate) struct Slot {
    pub(crate) cell: Cell,
    generation: UnsafeCell<u32>,
    carried: UnsafeCell<Carried>,
    /// The next on the list of cancels.
    pub(crate) next_cancelled: AtomicU32,
    /// Abandons the request, whose type it knows.
    abandon: UnsafeCell<unsafe fn(&Slot, Landed)>,
    /// Tells it of a landing that is not the last.
    more: UnsafeCell<More>,
    op: UnsafeCell<Op>,
    request: UnsafeCell<Room>,
}

// SAFETY: the fields belong to one side at a time, as the head of this file says, and change hands
// through the channel, the cell and the free list, which release and acquire. Requests are `Send`, and
// the memory that an operation names is its request's.
unsafe impl Sync for Slot {}
// SAFETY: as above.
unsafe impl Send for Slot {}

/// See [`Slot::more`].
type More = unsafe fn(&Slot, Landed, &[u8]) -> bool;

/// The request of a slot that has none.
unsafe fn nothing(_: &Slot, _: Landed) {}

/// As [`nothing`].
unsafe fn nothing_more(_: &Slot, _: Landed, _: &[u8]) -> bool {
    false
}

impl Slot {
    fn new() -> Slot {
        Slot {
            cell: Cell::new(),
            generation: UnsafeCell::new(0),
            carried: UnsafeCell::new(Carried::default()),
            next_cancelled: AtomicU32::new(0),
            abandon: UnsafeCell::new(nothing),
            more: UnsafeCell::new(nothing_more),
            op: UnsafeCell::new(Op::Nop),
            request: UnsafeCell::new(Room([MaybeUninit::uninit(); ROOM])),
        }
    }

    const fn fits<R>() -> bool {
        size_of::<R>() <= ROOM && align_of::<R>() <= align_of::<Room>()
    }

    /// Moves a request in, and prepares its operation.
    ///
    /// # Safety
    ///
    /// The caller has just taken the slot off the free list.
    ///
    /// # Panics
    ///
    /// If the request does. It is dropped then, and the slot still the caller's.
    #[inline]
    pub(crate) unsafe fn fill<R: Request>(&self, request: R) {
        // SAFETY: the slot is the submitter's, by the caller. A request is written where there is room
        // for it, or the pointer to its box is.
        unsafe {
            self.cell.reset();
            self.generation.with_mut(|generation| {
                // The last generation is the engines'.
                *generation = (*generation + 1) % Key::RESERVED_GENERATION;
            });
            self.carried.with_mut(|carried| *carried = Carried::default());
            self.abandon.with_mut(|abandon| *abandon = abandon_request::<R>);
            self.more.with_mut(|more| *more = more_of_request::<R>);
            let placed = self.request.with_mut(|room| {
                if Slot::fits::<R>() {
                    let place = room.cast::<R>();
                    place.write(request);
                    place
                } else {
                    let boxed = Box::into_raw(Box::new(request));
                    room.cast::<*mut R>().write(boxed);
                    boxed
                }
            });
            // What a user wrote may panic here.
            let guard = Placed::<R>(self, PhantomData);
            let op = (*placed).op();
            mem::forget(guard);
            self.op.with_mut(|place| *place = op);
        }
    }

    /// Takes the request out again.
    ///
    /// # Safety
    ///
    /// It is an `R` and still there, and the slot is the caller's: never submitted, or landed.
    #[inline]
    pub(crate) unsafe fn empty<R: Request>(&self) -> R {
        // SAFETY: by the caller; read once, where `fill` wrote it.
        self.request.with_mut(|room| unsafe {
            if Slot::fits::<R>() {
                room.cast::<R>().read()
            } else {
                *Box::from_raw(room.cast::<*mut R>().read())
            }
        })
    }

    /// The operation.
    ///
    /// # Safety
    ///
    /// The slot is the caller's: a submitter that has filled it, or the I/O thread that has taken it out
    /// of its channel and has not completed it.
    #[inline]
    pub(crate) unsafe fn op(&self) -> Op {
        // SAFETY: by the caller.
        self.op.with(|op| unsafe { *op })
    }

    /// Which use of the slot this is.
    ///
    /// # Safety
    ///
    /// As for [`op`](Slot::op).
    #[inline]
    pub(crate) unsafe fn generation(&self) -> u32 {
        // SAFETY: by the caller.
        self.generation.with(|generation| unsafe { *generation })
    }

    /// What the I/O thread has noted, for a change.
    ///
    /// # Safety
    ///
    /// As for [`op`](Slot::op); the waiter has abandoned the slot.
    pub(crate) unsafe fn carried<T>(&self, change: impl FnOnce(&mut Carried) -> T) -> T {
        // SAFETY: by the caller, and `change` is given nothing to come back here with.
        self.carried.with_mut(|carried| change(unsafe { &mut *carried }))
    }

    /// Abandons the request: nobody waits for what landed.
    ///
    /// # Safety
    ///
    /// The slot is the I/O thread's, the operation has landed or never was submitted, and the request
    /// is still there.
    pub(crate) unsafe fn abandon(&self, landed: Landed) {
        // SAFETY: written by `fill` for the request that is in the slot.
        unsafe { self.abandon.with(|abandon| (*abandon)(self, landed)) }
    }

    /// Tells the request of a landing that is not the last, and of the bytes that came with one, or by
    /// [`Landed::LOST`] that none will ever come. Says whether it is to go on.
    ///
    /// # Safety
    ///
    /// As for [`op`](Slot::op): the I/O thread has the slot, and has not completed it.
    #[cold]
    pub(crate) unsafe fn more(&self, landed: Landed, bytes: &[u8]) -> bool {
        // SAFETY: written by `fill` for the request that is in the slot.
        unsafe { self.more.with(|more| (*more)(self, landed, bytes)) }
    }
}

/// Takes a request that is not asked further out of its slot, and drops it.
struct Placed<'s, R: Request>(&'s Slot, PhantomData<R>);

impl<R: Request> Drop for Placed<'_, R> {
    fn drop(&mut self) {
        // SAFETY: made and dropped by `fill` only, which has put an `R` there, in a slot that is the
        // submitter's.
        drop(unsafe { self.0.empty::<R>() });
    }
}

/// See [`Slot::abandon`]. Nothing that a user wrote runs on the I/O thread, or if there is no other
/// thread to run it, it disturbs nobody.
unsafe fn abandon_request<R: Request>(slot: &Slot, landed: Landed) {
    // SAFETY: by the caller of `Slot::abandon`; `fill` has put an `R` there.
    let request = unsafe { slot.empty::<R>() };
    undisturbed(move || {
        if R::QUIET {
            request.abandon(landed);
            return;
        }
        // What a thread does not take up is abandoned here all the same.
        let job = Abandoned(ManuallyDrop::new(request), landed);
        let _ = offload::spawn(move || drop(job));
    });
}

/// See [`Slot::more`].
unsafe fn more_of_request<R: Request>(slot: &Slot, landed: Landed, bytes: &[u8]) -> bool {
    let mut goes_on = false;
    undisturbed(|| {
        goes_on = slot.request.with(|room| {
            // SAFETY: by the caller of `Slot::more` an `R` is there, which nobody else touches before the
            // last landing, or the pointer to its box.
            let request = unsafe {
                if Slot::fits::<R>() { &*room.cast::<R>() } else { &**room.cast::<*const R>() }
            };
            if landed == Landed::LOST {
                request.lost();
                return false;
            }
            request.more(landed, bytes)
        });
    });
    goes_on
}

/// A request that is abandoned wherever it is dropped.
struct Abandoned<R: Request>(ManuallyDrop<R>, Landed);

impl<R: Request> Drop for Abandoned<R> {
    fn drop(&mut self) {
        // SAFETY: taken once, as it is dropped once.
        let request = unsafe { ManuallyDrop::take(&mut self.0) };
        request.abandon(self.1);
    }
}

const _: () = assert!(cfg!(loom) || size_of::<Slot>() <= 256);

/// All slots of a pool.
pub(crate) struct Slots {
    slots: Box<[Slot]>,
    pub(crate) free: FreeList,
}

impl Slots {
    pub(crate) fn new(count: u32, shards: usize) -> Slots {
        Slots {
            slots: (0..count).map(|_| Slot::new()).collect(),
            free: FreeList::new(count, shards),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }
}

impl std::ops::Index<u32> for Slots {
    type Output = Slot;

    #[inline]
    fn index(&self, index: u32) -> &Slot {
        &self.slots[index as usize]
    }
}
