//! Fibers: spawning, joining, yielding, cancelling.

mod control;
mod interrupt;
mod join;
mod local;
#[cfg(all(test, loom))]
mod models;
mod packet;
mod reference;
mod scope;

pub(crate) use control::{Fiber, Resume, Retiring, Waiting};
pub use interrupt::{
    Canceled, Interrupted, check_interrupted, deadline, interrupted_async, shield, timeout,
};
pub(crate) use interrupt::{cancellation_of, interrupt_of};
pub use join::{JoinError, JoinHandle};
pub use local::FiberLocal;
pub(crate) use local::Locals;
pub(crate) use reference::{FiberRef, Spare, with_waker};
pub use scope::{Scope, ScopedJoinHandle, scope};

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::runtime::{Frame, Loop, Unstarted};
use crate::stack::{FiberLabel, StackSize};
use control::Limits;

/// How a fiber is made: its name and its stack.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// # kapok::Runtime::new()?.run(|| {
/// let parser = kapok::Builder::new().name("parser").stack_size(1 << 20).spawn(|| "parsed");
/// assert_eq!(parser.name(), Some("parser"));
/// assert_eq!(parser.join().unwrap(), "parsed");
/// # });
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Builder {
    name: Option<Arc<str>>,
    stack_size: Option<StackSize>,
    deadline: Option<Instant>,
    /// The fiber may borrow from code that waits for it.
    borrows: bool,
}

impl Builder {
    /// A fiber without a name, with a stack of the default size.
    pub fn new() -> Builder {
        Builder::default()
    }

    /// The name by which reports call the fiber.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Builder {
        self.name = Some(name.into());
        self
    }

    /// How much stack the fiber may use, in bytes. With its guard of 64 KiB it is rounded up to a
    /// power of two of address space and a page, of at most 1 GiB; memory is used only as it is touched.
    /// Default 192 KiB.
    pub fn stack_size(mut self, bytes: usize) -> Builder {
        self.stack_size = Some(StackSize::for_usable(bytes).unwrap_or(StackSize::LARGEST));
        self
    }

    /// Spawns the fiber; see [`spawn`].
    ///
    /// # Panics
    ///
    /// Outside a [`Runtime`](crate::Runtime).
    pub fn spawn<T, F>(self, f: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        on_current_loop(|lp| spawn_on(lp, self, true, f))
    }

    /// Spawns the fiber on this loop; see [`spawn_local`].
    ///
    /// # Panics
    ///
    /// Outside a [`Runtime`](crate::Runtime).
    pub fn spawn_local<T, F>(self, f: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + 'static,
        T: 'static,
    {
        on_current_loop(|lp| spawn_on(lp, self, false, f))
    }
}

fn on_current_loop<R>(f: impl FnOnce(&Loop) -> R) -> R {
    Loop::with_current(|current| {
        f(current.expect("fibers are spawned inside a runtime: see kapok::Runtime::run"))
    })
}

/// Spawns a fiber. It starts when its loop comes round to it, or on another loop of the runtime
/// that has nothing to do; once started it stays on its thread.
///
/// A panic in it is caught and becomes the error of [`JoinHandle::join`].
///
/// # Panics
///
/// Outside a [`Runtime`](crate::Runtime).
pub fn spawn<T, F>(f: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    Builder::new().spawn(f)
}

/// Spawns a fiber on this thread's loop, which may keep what must not leave its thread.
///
/// # Panics
///
/// Outside a [`Runtime`](crate::Runtime).
pub fn spawn_local<T, F>(f: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + 'static,
    T: 'static,
{
    Builder::new().spawn_local(f)
}

/// Spawns a fiber whose entry and result are `Send` if `movable`.
pub(crate) fn spawn_on<T: 'static>(
    lp: &Loop,
    builder: Builder,
    movable: bool,
    f: impl FnOnce() -> T + 'static,
) -> JoinHandle<T> {
    let (unstarted, handle) = prepare(builder, movable, f);
    lp.spawn(unstarted);
    handle
}

/// A fiber that is yet to be queued.
pub(crate) fn prepare<T: 'static>(
    builder: Builder,
    movable: bool,
    f: impl FnOnce() -> T + 'static,
) -> (Unstarted, JoinHandle<T>) {
    // SAFETY: nothing that is captured or returned borrows.
    unsafe { prepare_borrowing(builder, movable, f, None, ()) }
}

/// The frame under a fiber's own code, by whose name backtraces know where that ends.
#[inline(never)]
fn begin<T>(f: impl FnOnce() -> T) -> T {
    let result = f();
    // Not a tail call: the frame stays.
    std::hint::black_box(());
    result
}

/// Runs code of the user's where a panic has no one to go to: it ends here, reported by the panic
/// hook. `false`: there was one.
pub(crate) fn contain(f: impl FnOnce()) -> bool {
    let Err(panic) = catch_unwind(AssertUnwindSafe(f)) else { return true };
    // What was thrown may throw when it is dropped; what that throws is leaked.
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        std::mem::forget(again);
    }
    false
}

/// [`prepare`] for an entry and a result that may borrow.
///
/// # Safety
///
/// What `f` and `T` borrow lasts until `ended` is dropped, and whoever holds the handle drops it,
/// or what it gives, before the borrows end.
unsafe fn prepare_borrowing<'a, T: 'a, G: 'a>(
    builder: Builder,
    movable: bool,
    f: impl FnOnce() -> T + 'a,
    unjoined_panic: Option<Arc<AtomicBool>>,
    ended: G,
) -> (Unstarted, JoinHandle<T>) {
    let limits = Limits {
        stack_size: builder.stack_size.unwrap_or(StackSize::DEFAULT),
        deadline: builder.deadline,
        borrows: builder.borrows,
    };
    let (spare, born) = Loop::with_current(|current| match current {
        Some(lp) => (lp.take_spare(), lp.recent()),
        None => (None, Instant::now()),
    });
    // From here on the entry's type, and with it what it borrows, is known to the body only. The
    // entry is run or dropped before `ended` is, and by the caller what it borrows lasts until then.
    let (body, write_packet) = packet::packet(f, ended, unjoined_panic);
    let (fiber, handle) = Fiber::create(
        spare.unwrap_or_else(Spare::new),
        FiberLabel { id: next_id(), name: builder.name },
        limits,
        born,
        body,
        write_packet,
    );
    // SAFETY: the fiber is new, and runs `f`.
    (Unstarted { fiber, movable }, unsafe { JoinHandle::new(handle) })
}

/// A number that no other fiber of the process has. Threads take them by the hundred, so that they
/// do not meet at each fiber.
fn next_id() -> u64 {
    const BLOCK: u64 = 128;
    static NEXT_BLOCK: AtomicU64 = AtomicU64::new(0);
    thread_local!(static TAKEN: Cell<u64> = const { Cell::new(0) });
    let mut taken = TAKEN.get();
    if taken.is_multiple_of(BLOCK) {
        taken = NEXT_BLOCK.fetch_add(1, Ordering::Relaxed) * BLOCK;
    }
    // From 1 on: a block ends with its multiple.
    TAKEN.set(taken + 1);
    taken + 1
}

/// The deadline around the code that runs, if it runs on a fiber under one.
pub(crate) fn current_deadline() -> Option<Instant> {
    Loop::with_running(|running| {
        // SAFETY: the fiber that runs is alive and ours; copies a plain field.
        running.and_then(|(_, fiber)| unsafe { (*fiber.as_ref().local()).deadline })
    })
}

/// Lets other fibers run, and every few times the engine turn. On a plain thread, [`std::thread::yield_now`].
// A call between here and the switch would cost two mispredicted returns: see `Loop::suspend`.
#[inline(always)]
pub fn yield_now() {
    if std::thread::panicking() {
        return;
    }
    match Loop::running(&Frame::default()) {
        Some((lp, fiber)) => lp.yield_now(fiber),
        None => std::thread::yield_now(),
    }
}

/// Whether the caller runs on a fiber.
pub fn on_fiber() -> bool {
    Loop::with_running(|running| running.is_some())
}

/// The number of the fiber that runs, if one does.
pub fn current_id() -> Option<u64> {
    // SAFETY: the fiber that runs is alive.
    Loop::with_running(|running| running.map(|(_, fiber)| unsafe { fiber.as_ref() }.label.id))
}

/// The name of the fiber that runs, if one does and it has one.
pub fn current_name() -> Option<String> {
    Loop::with_running(|running| {
        running.and_then(|(_, fiber)| {
            // SAFETY: the fiber that runs is alive.
            unsafe { fiber.as_ref() }.label.name.as_deref().map(str::to_owned)
        })
    })
}
