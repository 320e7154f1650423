//! What a fiber is to run, and where it leaves its result: both inside its control block.
//!
//! ```text
//!   storage:   entry (until it starts) ──► nothing (it runs on its stack) ──► result ──► nothing
//!   state:
//!              wait: CAS              settle: swap
//!     RUNNING ───────────► WAITED ──────────────────► OVER ──► TAKEN
//!       ▲ │ └───── CAS ──────┘ │        who waited is     result taken
//!       │ └────── settle ──────│──────► woken        ▲
//!       └── drop of the handle: swap ──► DETACHED ───┘ settle: the result is dropped by the fiber
//! ```
//!
//! Two sides meet at the state: the fiber's, which settles once, and the handle's, which is one
//! owner. The storage is the fiber's until `OVER`, then the handle's, or the fiber's again if it
//! found `DETACHED`. The place of who waits is the handle's in `RUNNING`, and the fiber's when it
//! finds `WAITED`.

use std::any::Any;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll, Waker};

use super::control::Fiber;
use super::join::JoinError;
use super::{begin, contain, local};
use crate::primitives::atomic::{AtomicU8, Ordering};
use crate::primitives::cell::UnsafeCell;
use crate::runtime::{Loop, end_child};

const RUNNING: u8 = 0;
const WAITED: u8 = 1;
const DETACHED: u8 = 2;
const OVER: u8 = 3;
const TAKEN: u8 = 4;

/// What is larger than this is put into a box. Enough for closures that share a few things.
const STORED_BYTES: usize = 64;

/// Room for an entry or a result, of which the functions that use it know the type.
#[repr(C, align(16))]
struct Storage(MaybeUninit<[u8; STORED_BYTES]>);

impl Storage {
    const fn fits<V>() -> bool {
        size_of::<V>() <= STORED_BYTES && align_of::<V>() <= align_of::<Storage>()
    }

    /// # Safety
    ///
    /// The caller has the storage alone.
    #[inline]
    unsafe fn put<V>(storage: *mut Storage, value: V) {
        // SAFETY: it fits, by size and alignment, and so does a box; the caller has it alone.
        unsafe {
            if const { Storage::fits::<V>() } {
                storage.cast::<V>().write(value);
            } else {
                storage.cast::<Box<V>>().write(Box::new(value));
            }
        }
    }

    /// # Safety
    ///
    /// The caller has the storage alone, and what was put there last was a `V` that has not been
    /// taken.
    #[inline]
    unsafe fn take<V>(storage: *mut Storage) -> V {
        // SAFETY: as `put` has left it, by the caller.
        unsafe {
            if const { Storage::fits::<V>() } {
                storage.cast::<V>().read()
            } else {
                *storage.cast::<Box<V>>().read()
            }
        }
    }
}

/// Who is told of the end.
enum Joiner {
    Nobody,
    Task(Waker),
    /// A fiber of the same loop, in [`Waiting::Join`](super::Waiting::Join). It takes itself from
    /// here before it goes on, so it needs no reference.
    Fiber(NonNull<Fiber>),
}

/// The part of a control block where a fiber and its handle meet.
pub(super) struct Packet {
    state: AtomicU8,
    joiner: UnsafeCell<Joiner>,
    storage: UnsafeCell<Storage>,
    /// Set if the fiber panicked and nobody took the panic.
    unjoined_panic: Option<Arc<AtomicBool>>,
}

impl Packet {
    /// Writes a packet with this entry.
    ///
    /// # Safety
    ///
    /// The caller has the place alone, and nothing is in it.
    #[inline]
    unsafe fn write<V>(at: *mut Packet, entry: V, unjoined_panic: Option<Arc<AtomicBool>>) {
        // SAFETY: by the caller; each field is written.
        unsafe {
            (&raw mut (*at).state).write(AtomicU8::new(RUNNING));
            (&raw mut (*at).joiner).write(UnsafeCell::new(Joiner::Nobody));
            (&raw mut (*at).storage).write(UnsafeCell::new(Storage(MaybeUninit::uninit())));
            (&raw mut (*at).unjoined_panic).write(unjoined_panic);
            (*at).storage.with_mut(|storage| Storage::put(storage, entry));
        }
    }

    #[inline]
    pub(super) fn is_over(&self) -> bool {
        self.state.load(Ordering::Acquire) >= OVER
    }

    /// Leaves the result.
    ///
    /// # Safety
    ///
    /// On the fiber's side, once, with the storage empty; the results of this fiber are of `T`.
    unsafe fn settle<T>(&self, result: Result<T, JoinError>) {
        // SAFETY: until the state says otherwise the storage is this side's.
        self.storage.with_mut(|storage| unsafe { Storage::put(storage, result) });
        match self.state.swap(OVER, Ordering::AcqRel) {
            WAITED => {
                // SAFETY: whoever waited has left the place to this side.
                let joiner = self
                    .joiner
                    .with_mut(|joiner| unsafe { std::mem::replace(&mut *joiner, Joiner::Nobody) });
                match joiner {
                    Joiner::Task(waker) => waker.wake(),
                    Joiner::Fiber(fiber) => Loop::with_current(|current| {
                        if let Some(lp) = current {
                            lp.end_join(fiber);
                        }
                    }),
                    Joiner::Nobody => unreachable!("who waits says who it is first"),
                }
            }
            // SAFETY: the handle is gone, so the storage is this side's still.
            DETACHED => self.lose(
                self.storage
                    .with_mut(|storage| unsafe { Storage::take::<Result<T, JoinError>>(storage) }),
            ),
            _ => {}
        }
    }

    /// Drops a result that nobody takes.
    fn lose<T>(&self, result: Result<T, JoinError>) {
        if let (Some(flag), Err(JoinError::Panicked(_))) = (&self.unjoined_panic, &result) {
            flag.store(true, Ordering::Relaxed);
        }
        drop(result);
    }

    /// Takes the result, if the fiber is over.
    ///
    /// # Panics
    ///
    /// If it was taken before.
    ///
    /// # Safety
    ///
    /// On the handle's side; the results of this fiber are of `T`.
    #[inline]
    pub(super) unsafe fn take<T>(&self) -> Option<Result<T, JoinError>> {
        match self.state.load(Ordering::Acquire) {
            OVER => {
                // From now on only this side looks at it.
                self.state.store(TAKEN, Ordering::Relaxed);
                // SAFETY: `OVER` has left it to this side, and is over.
                Some(self.storage.with_mut(|storage| unsafe { Storage::take(storage) }))
            }
            TAKEN => panic!("a JoinHandle was polled after it had given its result"),
            _ => None,
        }
    }

    /// # Safety
    ///
    /// As for [`take`](Packet::take).
    pub(super) unsafe fn poll<T>(&self, context: &mut Context<'_>) -> Poll<Result<T, JoinError>> {
        // SAFETY: by the caller.
        if let Some(result) = unsafe { self.take() } {
            return Poll::Ready(result);
        }
        if self.withdraw() {
            // SAFETY: in `RUNNING` the place is this side's.
            let known = self.joiner.with(|joiner| unsafe {
                matches!(&*joiner, Joiner::Task(waker) if waker.will_wake(context.waker()))
            });
            // A destructor, or a `clone`, may be anybody's: neither runs while the place is in use.
            let old = if known {
                Joiner::Nobody
            } else {
                let new = Joiner::Task(context.waker().clone());
                self.put_joiner(new)
            };
            let waits = self.wait();
            drop(old);
            if waits {
                return Poll::Pending;
            }
            drop(self.put_joiner(Joiner::Nobody));
        }
        // SAFETY: by the caller.
        match unsafe { self.take() } {
            Some(result) => Poll::Ready(result),
            None => unreachable!("a fiber that is over goes on"),
        }
    }

    /// Has `fiber`, the one that runs, told of the end. `false`: it has come.
    ///
    /// # Safety
    ///
    /// On the handle's side, whose fiber is one of the current loop; and the caller calls
    /// [`forget_fiber`](Packet::forget_fiber) before the one that runs goes on with anything else.
    pub(super) unsafe fn tell_fiber(&self, fiber: NonNull<Fiber>) -> bool {
        if self.withdraw() {
            drop(self.put_joiner(Joiner::Fiber(fiber)));
            if self.wait() {
                return true;
            }
            drop(self.put_joiner(Joiner::Nobody));
        }
        false
    }

    /// Takes back what [`tell_fiber`](Packet::tell_fiber) has left, if it is there still. On the
    /// handle's side.
    pub(super) fn forget_fiber(&self) {
        if self.withdraw() {
            drop(self.put_joiner(Joiner::Nobody));
        }
    }

    /// Gives the place of who waits back to the handle's side. `false`: the fiber is over.
    fn withdraw(&self) -> bool {
        match self.state.load(Ordering::Relaxed) {
            RUNNING => true,
            WAITED => self
                .state
                .compare_exchange(WAITED, RUNNING, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok(),
            _ => false,
        }
    }

    /// Leaves the place of who waits to the fiber's side. `false`: the fiber is over.
    fn wait(&self) -> bool {
        let waited =
            self.state.compare_exchange(RUNNING, WAITED, Ordering::Release, Ordering::Relaxed);
        waited.is_ok()
    }

    /// On the handle's side, in `RUNNING` or after it.
    fn put_joiner(&self, joiner: Joiner) -> Joiner {
        // SAFETY: the place is this side's: the fiber's side uses it only if it finds `WAITED`.
        self.joiner.with_mut(|place| unsafe { std::mem::replace(&mut *place, joiner) })
    }

    /// The handle goes.
    ///
    /// # Safety
    ///
    /// As for [`take`](Packet::take), and nothing is called on that side again.
    #[inline]
    pub(super) unsafe fn detach<T>(&self) {
        let mut state = self.state.load(Ordering::Acquire);
        if state < OVER {
            state = self.state.swap(DETACHED, Ordering::AcqRel);
        }
        match state {
            WAITED => drop(self.put_joiner(Joiner::Nobody)),
            // SAFETY: `OVER` has left it to this side.
            OVER => self.lose(
                self.storage
                    .with_mut(|storage| unsafe { Storage::take::<Result<T, JoinError>>(storage) }),
            ),
            _ => {}
        }
    }
}

/// What can be done with an entry whose type is not known any more. Called on the fiber's side:
/// on its home thread, or by who holds the unstarted fiber alone.
pub(crate) struct Body {
    /// Runs the entry, on the fiber. Once, and not after `discard`.
    pub(crate) run: unsafe fn(&Fiber),
    /// Drops the entry of a fiber that will never start, and says why.
    discard: unsafe fn(&Fiber, JoinError),
    /// Says why a fiber will never end. What it runs is leaked.
    settle: unsafe fn(&Fiber, JoinError),
}

/// What a fiber runs. The fields are dropped in this order, run or not, and the result is left, or
/// dropped by this side, before `ended`: it goes when nothing of the rest is left.
struct Entry<F, T, G> {
    f: F,
    ended: G,
    result: PhantomData<fn() -> T>,
}

/// How to run a fiber that runs `f`, and what writes its packet.
///
/// # Safety
///
/// For what writes the packet: whoever calls it has the place alone, and nothing is in it.
#[inline]
pub(super) fn packet<T, F: FnOnce() -> T, G>(
    f: F,
    ended: G,
    unjoined_panic: Option<Arc<AtomicBool>>,
) -> (&'static Body, impl FnOnce(*mut Packet)) {
    let entry = Entry { f, ended, result: PhantomData::<fn() -> T> };
    // SAFETY: by the caller.
    (Entry::<F, T, G>::BODY, move |at| unsafe { Packet::write(at, entry, unjoined_panic) })
}

impl<F: FnOnce() -> T, T, G> Entry<F, T, G> {
    const BODY: &'static Body = &Body {
        run: Entry::<F, T, G>::run,
        discard: Entry::<F, T, G>::discard,
        settle: Entry::<F, T, G>::settle,
    };

    /// # Safety
    ///
    /// The entry of `fiber` is one of this type, and there.
    unsafe fn take(fiber: &Fiber) -> Entry<F, T, G> {
        // SAFETY: by the caller; until it is settled the storage is the fiber's side's.
        fiber.packet.storage.with_mut(|storage| unsafe { Storage::take(storage) })
    }

    unsafe fn run(fiber: &Fiber) {
        // SAFETY: by the contract of the table.
        let Entry { f, ended, .. } = unsafe { Entry::<F, T, G>::take(fiber) };
        let result = catch_unwind(AssertUnwindSafe(|| begin(f)));
        count(&result);
        // SAFETY: on the fiber itself, which is over but for its packet.
        unsafe {
            // Fiber-locals go while there is still a fiber; one that panics does no more than that.
            local::drop_all_of(fiber);
            // What becomes of the packet is our affair from here on.
            (*fiber.local()).body = None;
            // If nobody takes the result it is dropped here, by a destructor that is anybody's.
            contain(|| fiber.packet.settle(result.map_err(JoinError::Panicked)));
            contain(|| drop(ended));
            local::drop_all_of(fiber);
        }
    }

    unsafe fn discard(fiber: &Fiber, error: JoinError) {
        // SAFETY: by the contract of the table.
        let Entry { f, ended, .. } = unsafe { Entry::<F, T, G>::take(fiber) };
        contain(|| drop(f));
        // SAFETY: by the contract of the table; the entry was taken out.
        contain(|| unsafe { fiber.packet.settle::<T>(Err(error)) });
        contain(|| drop(ended));
    }

    unsafe fn settle(fiber: &Fiber, error: JoinError) {
        // SAFETY: by the contract of the table; what is still in the storage is leaked.
        contain(|| unsafe { fiber.packet.settle::<T>(Err(error)) });
    }
}

/// Counts a panic, and ends the child of a fork here, which has no loop to go back to.
fn count<T>(result: &Result<T, Box<dyn Any + Send>>) {
    let panicked = result.is_err();
    let at_home = Loop::with_current(|current| {
        if let (Some(lp), true) = (current, panicked) {
            lp.counters().panicked.add(1);
        }
        current.is_some()
    });
    if !at_home {
        end_child(panicked);
    }
}

impl Fiber {
    /// Leaves a result, as the fiber does at its end.
    ///
    /// # Safety
    ///
    /// As for [`Packet::settle`]; what is in the storage is leaked.
    #[cfg(all(test, loom))]
    pub(super) unsafe fn settle<T>(&self, result: Result<T, JoinError>) {
        // SAFETY: by the caller.
        unsafe { self.packet.settle(result) };
    }

    /// Tells whoever waits for the fiber's end that there will be none, unless it is settled.
    ///
    /// # Safety
    ///
    /// As for [`Fiber::local`]; what the fiber runs, or was to run, is leaked.
    pub(crate) unsafe fn abandon(&self) {
        // SAFETY: by the caller; taken out, so nobody is told twice.
        unsafe {
            if let Some(body) = (*self.local()).body.take() {
                (body.settle)(self, JoinError::Abandoned);
            }
        }
    }

    /// Drops what an unstarted fiber was to run, and tells whoever waits for it why.
    ///
    /// # Safety
    ///
    /// The caller holds the unstarted fiber alone.
    pub(crate) unsafe fn discard(&self, error: JoinError) {
        // SAFETY: by the caller; taken out, so nobody is told twice.
        unsafe {
            if let Some(body) = (*self.local()).body.take() {
                (body.discard)(self, error);
            }
        }
    }
}
