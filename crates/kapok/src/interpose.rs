//! What an interposed C library asks of a fiber. Not for programs: `kapok-libc` and the C interface
//! stand on this, and it changes with them.
//!
//! A hooked function may be called by anyone, Kapok included: an engine that tries a receive calls
//! recv(2) like everybody else. Only a call that a fiber's *own* code makes may suspend it, and
//! [`enter`] tells which those are:
//!
//! - the thread has a loop, and a fiber runs on it: what the loop calls, and wakers that it invokes,
//!   are on no fiber;
//! - the engine is not at work: it is borrowed exactly while it is;
//! - the fiber is not inside Kapok already, by way of an [`Inside`];
//! - the thread does not unwind.
//!
//! The second costs the native API nothing: whichever way it came to the engine, the borrow is there.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::task::{Context, Poll};
use std::time::Instant;

use kapok_engine::{Kind, Op};

use crate::fiber::{Fiber, Interrupted};
use crate::op::{self, Pending};
use crate::park;
use crate::runtime::Loop;
use crate::stack;

/// Shows that the caller runs on a fiber that may be suspended, and makes every further
/// [`enter`] on this fiber fail until it is dropped.
pub struct Inside {
    fiber: NonNull<Fiber>,
    // Fibers stay on their threads.
    _pinned: PhantomData<*const ()>,
}

/// Enters Kapok from the code of a fiber. `None`: this call must not suspend, so it is to go
/// straight to the kernel.
#[inline]
pub fn enter() -> Option<Inside> {
    Loop::with_running(|running| {
        let (lp, fiber) = running?;
        // SAFETY: the fiber that runs is alive and ours; a plain field, copied.
        let inside = unsafe { (*fiber.as_ref().local()).inside };
        if inside || lp.engine_is_at_work() || std::thread::panicking() {
            return None;
        }
        // SAFETY: as above.
        unsafe { (*fiber.as_ref().local()).inside = true };
        Some(Inside { fiber, _pinned: PhantomData })
    })
}

/// What is called on the thread of each loop, before and after it turns its engine: between two turns
/// fibers run, and during one they do not.
static ON_TURNS: OnceLock<OnTurns> = OnceLock::new();

struct OnTurns {
    before: fn(),
    after: fn(),
}

/// Has these two called by every loop, the one before and the other after it turns its engine. The first
/// to ask is heard.
pub fn on_turns(before: fn(), after: fn()) {
    let _ = ON_TURNS.set(OnTurns { before, after });
}

#[inline]
pub(crate) fn before_turn() {
    if let Some(on_turns) = ON_TURNS.get() {
        (on_turns.before)();
    }
}

#[inline]
pub(crate) fn after_turn() {
    if let Some(on_turns) = ON_TURNS.get() {
        (on_turns.after)();
    }
}

/// What is called on a fiber each time that it has left Kapok.
static ON_LEFT: OnceLock<fn(u64)> = OnceLock::new();

/// Has this called, with the fiber's number, each time that a fiber drops its [`Inside`] and is in its
/// own code again. The first to ask is heard.
pub fn on_left(left: fn(u64)) {
    let _ = ON_LEFT.set(left);
}

/// What a handler of a signal has interrupted: see [`interrupted`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interruption {
    /// A thread that runs no loop.
    Thread,
    /// A loop, or a switch from or to one of its fibers.
    Loop,
    /// A fiber in a call of Kapok's own, with the engine at work.
    Engine,
    /// A fiber.
    Fiber {
        /// Its number.
        id: u64,
        /// Whether it has an [`Inside`].
        inside: bool,
    },
}

/// What a handler of a signal has interrupted on this thread, if the interrupted code's stack pointer was
/// this. Async-signal-safe.
pub fn interrupted(stack_pointer: usize) -> Interruption {
    Loop::with_current(|current| {
        let Some(lp) = current else { return Interruption::Thread };
        Loop::with_running(|running| match running {
            // Noted before the switch to the fiber, and until after the one back.
            Some((_, fiber)) if stack::bounds_of(stack_pointer).is_some() => {
                // SAFETY: the fiber that runs is alive and ours; a plain field, copied.
                let inside = unsafe { (*fiber.as_ref().local()).inside };
                if !inside && lp.engine_is_at_work() {
                    return Interruption::Engine;
                }
                // SAFETY: as above.
                Interruption::Fiber { id: unsafe { fiber.as_ref() }.label.id, inside }
            }
            _ => Interruption::Loop,
        })
    })
}

/// Whether two addresses are on one fiber's stack, or both on none. Async-signal-safe.
pub fn are_on_one_stack(one: usize, other: usize) -> bool {
    match stack::bounds_of(one) {
        Some(bounds) => bounds.contains(&other),
        None => stack::bounds_of(other).is_none(),
    }
}

/// Has the engine of the thread's loop hand to the kernel now what was submitted, which it does in its own
/// time otherwise: for what is compared with memory that may change meanwhile. Takes nothing in. Does nothing
/// where no loop runs, or where the engine has nothing to hand over.
pub fn hand_over() {
    Loop::with_current(|current| {
        if let Some(lp) = current {
            lp.flush(1, usize::MAX);
        }
    });
}

/// The number of the thread's loop, which no other of the process has; 0 if it runs none.
#[inline]
pub fn loop_id() -> u64 {
    Loop::with_current(|current| current.map_or(0, Loop::id))
}

/// Who is told of the fibers that a loop has left behind.
static ON_ABANDONED: OnceLock<fn(u64)> = OnceLock::new();

thread_local! {
    /// The numbers of those of this thread's loop, while their operations are still with its engine.
    static ABANDONED: Cell<Vec<u64>> = const { Cell::new(Vec::new()) };
}

/// Has `told` called with the number of each fiber that did not end when its loop closed, and so never
/// will: on its loop's thread, when the loop is gone with all operations. The first to ask is heard.
pub fn on_abandoned(told: fn(u64)) {
    let _ = ON_ABANDONED.set(told);
}

pub(crate) fn note_abandoned(fiber: u64) {
    if ON_ABANDONED.get().is_some() {
        let mut abandoned = ABANDONED.take();
        abandoned.push(fiber);
        ABANDONED.set(abandoned);
    }
}

pub(crate) fn tell_of_abandoned() {
    if let Some(told) = ON_ABANDONED.get() {
        ABANDONED.take().into_iter().for_each(told);
    }
}

impl Inside {
    /// Runs code of the user's, which may wait by hooked calls of its own.
    pub fn outside<R>(&self, f: impl FnOnce() -> R) -> R {
        struct Back<'a>(&'a Inside);
        impl Drop for Back<'_> {
            fn drop(&mut self) {
                self.0.set(true);
            }
        }
        self.set(false);
        let _back = Back(self);
        f()
    }

    /// The number of the fiber, which no other of the process has.
    pub fn fiber(&self) -> u64 {
        // SAFETY: the fiber that runs is alive.
        unsafe { self.fiber.as_ref() }.label.id
    }

    /// Whether the fiber goes by the name of the one with which a runtime begins.
    pub fn is_main(&self) -> bool {
        // SAFETY: the fiber that runs is alive.
        unsafe { self.fiber.as_ref() }.label.name.as_deref() == Some("main")
    }

    /// Whether there is a fiber of this loop, the one that runs included, whose number is `wanted`.
    /// Neither allocates nor locks anything.
    pub fn has_fiber(&self, wanted: impl Fn(u64) -> bool) -> bool {
        Loop::with_current(|current| current.is_some_and(|lp| lp.has_fiber(wanted)))
    }

    /// The addresses of the fiber's stack, without its guard; it grows down from the end.
    pub fn stack(&self) -> Option<std::ops::Range<usize>> {
        let here = 0_u8;
        crate::stack::usable_around(std::ptr::from_ref(&here).addr())
    }

    /// The engine of the fiber's loop.
    pub fn engine(&self) -> Kind {
        Loop::with_current(|current| current.map_or(Kind::Sim, Loop::kind))
    }

    /// Suspends the fiber until `future` has its output.
    ///
    /// # Errors
    ///
    /// [`Ended`], if `until` passes or the fiber is interrupted first; a future that is ready by
    /// then has precedence.
    pub fn wait<F: Future>(&self, future: F, until: Option<Instant>) -> Result<F::Output, Ended> {
        let future = std::pin::pin!(future);
        let Some(until) = until else {
            return park::block_on_interruptible(future).map_err(Ended::Interrupted);
        };
        // The deadline around the fiber's code and that of this call are told apart by which is
        // nearer.
        let outer = crate::fiber::current_deadline();
        crate::deadline(until, || park::block_on_interruptible(future)).map_err(|interrupted| {
            match interrupted {
                Interrupted::DeadlineElapsed if outer.is_none_or(|outer| until <= outer) => {
                    Ended::TimedOut
                }
                interrupted => Ended::Interrupted(interrupted),
            }
        })
    }

    /// Carries out an operation that lends the engine memory, and suspends the fiber until it has
    /// landed.
    ///
    /// # Errors
    ///
    /// Those of the operation; cancellation and deadlines.
    ///
    /// # Safety
    ///
    /// Memory named by `op` is valid and unaliased (shared, if only read) for the duration of this
    /// call.
    pub unsafe fn run(&self, op: Op) -> io::Result<i32> {
        // SAFETY: by the caller.
        unsafe { op::run(op) }
    }

    /// Has the kernel see what the engine was given, if it has not: at the end of a time limit, so that it
    /// was tried once at least. What it came to lands in the loop's next turn.
    pub fn submit_now(&self) {
        Loop::with_current(|current| {
            if let Some(lp) = current {
                lp.flush(1, usize::MAX);
            }
        });
    }

    /// Closes a descriptor by way of the engine, which may have operations with its number that the
    /// kernel has not seen yet.
    ///
    /// # Errors
    ///
    /// Those of close(2).
    pub fn close(&self, fd: RawFd) -> io::Result<()> {
        // SAFETY: the operation names no memory.
        unsafe { op::now(Op::Close { fd }) }.map(drop)
    }

    /// Counts a call that did not wait. `true`: the fiber has had its share, and is to let others run.
    #[inline]
    pub fn has_had_its_share(&self) -> bool {
        Loop::with_running(|running| running.is_some_and(|(lp, _)| !lp.may_go_on()))
    }

    /// Lets others run.
    pub fn give_way(&self) {
        Loop::with_running(|running| {
            if let Some((lp, fiber)) = running {
                lp.yield_now(fiber);
            }
        });
    }

    /// Lets others run, whatever the fiber's share.
    pub fn yield_now(&self) {
        Loop::with_running(|running| {
            if let Some((lp, fiber)) = running {
                lp.yield_now(fiber);
            }
        });
    }

    fn set(&self, inside: bool) {
        // SAFETY: on the fiber itself, since this value never leaves it; a plain field.
        unsafe { (*self.fiber.as_ref().local()).inside = inside };
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.set(false);
        if let Some(left) = ON_LEFT.get() {
            left(self.fiber());
        }
    }
}

impl std::fmt::Debug for Inside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Inside")
    }
}

/// Why a wait ended without its output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// Its own time limit passed.
    TimedOut,
    /// The fiber was cancelled, or a deadline around its code passed.
    Interrupted(Interrupted),
}

/// An operation of the engine as a future: what it landed with. Polled on a fiber. Dropped before it
/// has landed it is cancelled, and the result of the operation, if it has one after all, is given to
/// its heir.
#[must_use = "futures do nothing unless polled"]
pub struct Operation(Pending);

impl Operation {
    /// A future for `op`.
    ///
    /// # Safety
    ///
    /// Memory that `op` names is owned by `heir`, which is called with what landed after the future
    /// is gone, or is dropped once the operation is over. With no heir `op` names no memory.
    pub unsafe fn new(op: Op, heir: Option<Box<dyn FnOnce(i32)>>) -> Operation {
        // SAFETY: by the caller. A descriptor that is closed meanwhile is no soundness problem: the
        // kernel or the engine answers for the number.
        Operation(unsafe { Pending::new(op, heir) })
    }
}

impl Operation {
    /// Has the engine cancel it. It lands all the same, and is to be waited for: with `-ECANCELED`, or with
    /// what it came to just before.
    pub fn cancel(self: Pin<&mut Self>) {
        self.0.cancel();
    }
}

impl Future for Operation {
    type Output = i32;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<i32> {
        let landed = Pin::new(&mut self.0).poll(context);
        // Over with what the heir owns: nobody is to be told.
        if landed.is_ready() {
            self.0.disinherit();
        }
        landed
    }
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Operation")
    }
}
