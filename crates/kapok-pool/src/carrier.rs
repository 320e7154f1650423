//! The event loop of the calling thread, if it has one: where what its fibers ask for is carried out
//! without another thread.
//!
//! The pool knows no fibers. Who has them says once how an operation is carried out on one.

use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};

use kapok_engine::Op;

/// Polls what `state` points to: whether it is over.
pub type PollState = unsafe fn(state: *mut (), context: &mut Context<'_>) -> bool;

/// What an event loop does for the fiber that calls. Each function first looks whether one does.
#[derive(Clone, Copy, Debug)]
pub struct Carrier {
    /// Carries out an operation on the loop's engine and suspends the fiber until it has landed: its
    /// result, or why it came to nothing. `None` if the caller is no fiber; nothing was done then.
    ///
    /// # Safety
    ///
    /// That of the operation: its memory is valid and unaliased, its descriptor open, until the function
    /// returns. It does not return, nor unwind, before neither the engine nor the kernel uses them.
    pub run: unsafe fn(Op) -> Option<io::Result<i32>>,
    /// Calls `poll(state, context)`, and suspends the fiber until the context's waker is woken, again and
    /// again until it answers `true`. `false` if the caller is no fiber; nothing was called then.
    ///
    /// # Safety
    ///
    /// `poll` may be called with `state` until the function returns.
    pub wait: unsafe fn(poll: PollState, state: *mut ()) -> bool,
    /// Whether the caller is a fiber.
    pub on_fiber: fn() -> bool,
    /// Takes note that an operation was over without waiting, and now and then lets other fibers run.
    pub went_on: fn(),
}

static CARRIER: OnceLock<Carrier> = OnceLock::new();

impl Carrier {
    /// Has [`Operation::block`](crate::Operation::block) and [`block_on`](crate::block_on) use it from
    /// now on, on every thread. The first of a process stays.
    ///
    /// # Safety
    ///
    /// The functions do what is said of them.
    pub unsafe fn install(self) {
        let _ = CARRIER.set(self);
    }
}

/// Carries out an operation on the caller's loop. `None` if it has none.
///
/// # Safety
///
/// That of [`Carrier::run`].
#[inline]
pub(crate) unsafe fn run(op: Op) -> Option<io::Result<i32>> {
    let carrier = CARRIER.get()?;
    // SAFETY: by the caller.
    unsafe { (carrier.run)(op) }
}

/// Whether the caller is a fiber.
#[inline]
pub(crate) fn on_fiber() -> bool {
    CARRIER.get().is_some_and(|carrier| (carrier.on_fiber)())
}

/// See [`Carrier::went_on`].
#[inline]
pub(crate) fn went_on() {
    if let Some(carrier) = CARRIER.get() {
        (carrier.went_on)();
    }
}

/// Suspends the calling fiber until the future is over. `None` if the caller is no fiber.
pub(crate) fn wait<F: Future>(future: &mut Pin<&mut F>) -> Option<F::Output> {
    struct Wait<'f, 'p, F: Future> {
        future: &'f mut Pin<&'p mut F>,
        output: MaybeUninit<F::Output>,
    }

    unsafe fn poll<F: Future>(state: *mut (), context: &mut Context<'_>) -> bool {
        // SAFETY: the state below, which nobody else uses meanwhile.
        let wait = unsafe { &mut *state.cast::<Wait<'_, '_, F>>() };
        match wait.future.as_mut().poll(context) {
            Poll::Ready(output) => {
                wait.output.write(output);
                true
            }
            Poll::Pending => false,
        }
    }

    let carrier = CARRIER.get()?;
    let mut wait = Wait { future, output: MaybeUninit::uninit() };
    // SAFETY: the state lives until the call has returned, and is of the type that `poll` takes it for.
    let is_over = unsafe { (carrier.wait)(poll::<F>, (&raw mut wait).cast()) };
    // SAFETY: the last `poll` has answered `true`, and has written the output before.
    is_over.then(|| unsafe { wait.output.assume_init() })
}
