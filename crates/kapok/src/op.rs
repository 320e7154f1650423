//! The one rule, kept in one place: a call made on a fiber does not return, unwind or let its stack
//! go while the kernel holds anything that it lent.
//!
//! [`run`] is how every call that waits reaches the engine. It suspends the fiber until *its*
//! operation has landed. Cancellation and deadlines ask the engine to cancel, and go on waiting for
//! the landing; what landed is what is returned.
//!
//! On a plain thread, [`run`] makes the blocking system call.

use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use kapok_engine::{Key, Op, Readiness, sys};

use crate::fiber::{Fiber, Waiting, interrupt_of};
use crate::runtime::{Loop, Waiter};

/// What a [`Pending`] with an heir ends with if a dead ring keeps its operation. No errno.
pub(crate) const LOST: i32 = i32::MIN;

/// How long a call that must not suspend, because its thread is unwinding, may block it.
const UNWINDING_LIMIT: Duration = Duration::from_millis(100);

/// Carries out `op` and waits for it: its result, or its error.
///
/// # Safety
///
/// Memory named by `op` is valid and unaliased (shared, if only read) for the duration of this
/// call. The descriptor is open, and nobody closes it meanwhile without accepting that the
/// operation may still act on it.
#[inline]
pub(crate) unsafe fn run(op: Op) -> io::Result<i32> {
    Loop::with_running(|running| match running {
        // SAFETY: by the caller.
        Some((lp, fiber)) if !std::thread::panicking() => unsafe { run_on_fiber(lp, fiber, op) },
        // A switch would carry the thread's panic to another fiber, whose locks it would poison.
        // SAFETY: by the caller.
        Some(_) => unsafe { run_blocking(op, Some(UNWINDING_LIMIT)) },
        // SAFETY: by the caller.
        None => unsafe { run_blocking(op, None) },
    })
}

/// Carries out an operation that [never waits](Op::is_immediate), on a fiber, on its loop or on a
/// plain thread alike. Neither cancellation nor a deadline is in its way.
///
/// # Safety
///
/// As for [`run`].
pub(crate) unsafe fn now(op: Op) -> io::Result<i32> {
    debug_assert!(op.is_immediate());
    let res = Loop::with_current(|current| match current {
        // SAFETY: by the caller.
        Some(lp) => match unsafe { lp.submit(Waiter::Nobody, op) } {
            Err(res) => res,
            Ok(_) => unreachable!("{} never waits", op.name()),
        },
        // SAFETY: by the caller.
        None => unsafe { sys::perform(&op, true) },
    });
    if res < 0 { Err(io::Error::from_raw_os_error(-res)) } else { Ok(res) }
}

/// # Safety
///
/// As for [`run`].
#[inline]
unsafe fn run_on_fiber(lp: &Loop, fiber: NonNull<Fiber>, op: Op) -> io::Result<i32> {
    loop {
        // SAFETY: the fiber that runs is alive.
        if let Some(interrupt) = interrupt_of(lp, unsafe { fiber.as_ref() }) {
            return Err(interrupt.into());
        }
        // SAFETY: by the caller; this function stays until the operation has landed, and it cannot
        // be unwound out of `suspend`.
        let res = match unsafe { lp.submit(Waiter::Fiber(fiber), op) } {
            Err(res) => {
                if !lp.may_go_on() {
                    lp.yield_now(fiber);
                }
                res
            }
            // SAFETY: the key was just submitted for this fiber.
            Ok(key) => unsafe { wait_for(lp, fiber, key) },
        };
        match res {
            0.. => return Ok(res),
            // A signal, or a wait that was broken off: nothing happened, so start again, unless
            // there is a reason to be interrupted, which the next round sees.
            _ if res == -libc::EINTR => {}
            _ if res == -libc::ECANCELED => {
                // SAFETY: the fiber that runs is alive.
                return Err(match interrupt_of(lp, unsafe { fiber.as_ref() }) {
                    Some(interrupt) => interrupt.into(),
                    None => io::Error::from_raw_os_error(libc::ECANCELED),
                });
            }
            _ => return Err(io::Error::from_raw_os_error(-res)),
        }
    }
}

/// Suspends the running fiber until `key`, submitted on its behalf, has landed.
///
/// # Safety
///
/// `fiber` is the one that runs on `lp`, and `key` was submitted with it as the waiter.
#[inline]
unsafe fn wait_for(lp: &Loop, fiber: NonNull<Fiber>, key: Key) -> i32 {
    // SAFETY: on the fiber itself, by the caller; plain fields, copied.
    let local = unsafe { fiber.as_ref().local() };
    // SAFETY: as above.
    let deadline = unsafe {
        (*local).waiting = Waiting::Operation(key);
        (*local).deadline
    };
    let limit = deadline.map(|deadline| lp.arm(Waiter::Limit(fiber), deadline));
    lp.suspend(fiber);
    if let Some(limit) = limit {
        lp.disarm(limit);
    }
    // SAFETY: as above.
    unsafe { (*local).result }
}

/// Carries out `op` on a plain thread.
///
/// # Safety
///
/// As for [`run`].
unsafe fn run_blocking(op: Op, limit: Option<Duration>) -> io::Result<i32> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    if let Op::Timer { deadline: timer } = op {
        let until = deadline.map_or(timer, |deadline| deadline.min(timer));
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        return Ok(0);
    }
    let wanted = wanted_readiness(&op);
    // poll(2) knows no waiting for regular files, and they do not make anyone wait for good.
    let blocking = limit.is_none() || works_on_regular_file(&op);
    loop {
        // With a limit, or on a descriptor that does not block, ask before and wait in poll(2).
        // SAFETY: by the caller.
        let res = unsafe { sys::perform(&op, blocking) };
        match res {
            0.. => return Ok(res),
            _ if res == -libc::EINTR => {}
            _ if res == -libc::EAGAIN && wanted.is_some() => {
                let (fd, events) = wanted.unwrap_or((-1, Readiness::READABLE));
                sys::wait_ready(fd, events, deadline)?;
            }
            _ => return Err(io::Error::from_raw_os_error(-res)),
        }
    }
}

/// Whether `op` reads or writes a regular file.
fn works_on_regular_file(op: &Op) -> bool {
    let (Op::Read { fd, .. } | Op::Write { fd, .. }) = *op else { return false };
    // SAFETY: integers, for which zero is a value; fstat writes to a local of its type.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        libc::fstat(fd, &raw mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFREG
    }
}

/// What a descriptor must be for `op` to get on.
fn wanted_readiness(op: &Op) -> Option<(i32, Readiness)> {
    match *op {
        Op::Recv { fd, flags, .. } | Op::RecvMsg { fd, flags, .. } => {
            (flags & libc::MSG_DONTWAIT == 0).then_some((fd, Readiness::READABLE))
        }
        Op::Send { fd, flags, .. } | Op::SendMsg { fd, flags, .. } => {
            (flags & libc::MSG_DONTWAIT == 0).then_some((fd, Readiness::WRITABLE))
        }
        Op::Accept { fd, .. } | Op::Read { fd, .. } => Some((fd, Readiness::READABLE)),
        Op::Connect { fd, .. } | Op::Write { fd, .. } => Some((fd, Readiness::WRITABLE)),
        Op::Poll { fd, events } => Some((fd, events)),
        _ => None,
    }
}

/// An operation that lends nothing of its caller's, as a future: what `select!` waits for.
///
/// It runs on the loop of the fiber that polls it first. Dropped before it has landed, the
/// operation is cancelled and its result, if there is one after all, goes to `heir`.
///
/// If the ring that has the operation dies, an operation without an heir, which lends nothing, is
/// made again. With one the future ends with [`LOST`]: what the heir owns is lent for good, so it is
/// never told, and leaked.
pub(crate) struct Pending {
    op: Op,
    state: State,
    heir: Option<Box<dyn FnOnce(i32)>>,
    // Loops belong to threads.
    _pinned: PhantomData<*const ()>,
}

#[derive(Clone, Copy)]
enum State {
    New,
    /// The key means something to the loop of this number only.
    Submitted(Key, u64),
    Over,
}

impl Pending {
    /// A future for `op`.
    ///
    /// # Safety
    ///
    /// Memory named by `op` is owned by `heir`, or there is none: it stays until `heir` is called
    /// or dropped, by itself or after the future has ended. The descriptor stays open while the
    /// future lives; afterwards, an operation that is being cancelled may still act on it.
    pub(crate) unsafe fn new(op: Op, heir: Option<Box<dyn FnOnce(i32)>>) -> Pending {
        Pending { op, state: State::New, heir, _pinned: PhantomData }
    }

    /// Takes the heir back once the operation is over.
    pub(crate) fn disinherit(&mut self) {
        debug_assert!(matches!(self.state, State::Over));
        self.heir = None;
    }
}

impl Future for Pending {
    type Output = i32;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<i32> {
        Loop::with_current(|current| {
            let lp = current.expect("this future belongs to kapok: poll it on a fiber");
            if let State::Submitted(key, home) = self.state {
                assert!(lp.id() == home, "a future was polled on another loop than it began on");
                let replaced = lp.with_waiter(key, |waiter| match waiter {
                    Some(Waiter::Landed(res)) => Err(*res),
                    Some(Waiter::Lost) => Err(LOST),
                    Some(Waiter::Task(waker)) => Ok(match waker {
                        Some(old) if old.will_wake(context.waker()) => None,
                        _ => waker.replace(context.waker().clone()),
                    }),
                    _ => unreachable!("the slot of {key:?} is someone else's"),
                });
                let res = match replaced {
                    Err(res) => res,
                    Ok(_old_waker) => return Poll::Pending,
                };
                let _landed = lp.free(key);
                if res != LOST || self.heir.is_some() {
                    self.state = State::Over;
                    if res == LOST {
                        std::mem::forget(self.heir.take());
                    }
                    return Poll::Ready(res);
                }
                self.state = State::New;
            }
            if let State::Over = self.state {
                panic!("a future was polled after it had ended");
            }
            let waiter = Waiter::Task(Some(context.waker().clone()));
            // SAFETY: by who made the future: what is lent is the heir's, which is kept here, or in
            // the slot, until the operation has landed.
            match unsafe { lp.submit(waiter, self.op) } {
                Err(res) => {
                    self.state = State::Over;
                    Poll::Ready(res)
                }
                Ok(key) => {
                    self.state = State::Submitted(key, lp.id());
                    Poll::Pending
                }
            }
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let State::Submitted(key, home) = self.state else { return };
        let heir = self.heir.take();
        Loop::with_current(|current| match current.filter(|lp| lp.id() == home) {
            Some(lp) if heir.is_none() && matches!(self.op, Op::Timer { .. }) => {
                lp.disarm(key);
            }
            Some(lp) => lp.orphan(key, heir),
            // Without its loop the operation never lands here: its heir keeps what was lent.
            None => std::mem::forget(heir),
        });
    }
}
