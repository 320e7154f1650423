//! Parking: how a fiber or a thread waits for a future.
//!
//! Everything that waits in this crate is a future at its core, and waits by [`std::task::Waker`]:
//! so one primitive serves fibers, threads and tasks of any executor in any mix. The blocking
//! forms come here to wait, and only after a non-blocking attempt failed.
//!
//! Invariants:
//!
//! - A future is polled once more after the last word about it: after a wake-up, after a time
//!   limit, after an interruption. Who is both woken and interrupted gets the value.
//! - A parker belongs to one `block_on` at a time. A nested `block_on` (inside the poll of a
//!   future) takes another one, or it would swallow the wake-ups of the outer future.
//! - Wake-ups without a reason are harmless: `std::thread::unpark` by strangers, and wakers that
//!   outlive the `block_on` for which they were made.

pub(crate) mod retiring;
mod thread;

use std::pin::{Pin, pin};
use std::ptr::NonNull;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::fiber::{
    Fiber, Interrupted, Retiring, Waiting, cancellation_of, interrupt_of, with_waker,
};
use crate::runtime::{About, Loop, Waiter};
use thread::ThreadParker;

/// How long a fiber's wait may block its thread while the thread unwinds from a panic. It must not
/// suspend then, and what it waits for may be on another fiber of the same thread.
const UNWINDING_LIMIT: Duration = Duration::from_secs(5);

/// Runs any future to its end on the current fiber or thread, and returns its output.
///
/// A fiber is suspended while the future is pending; a plain thread is blocked. The future may be
/// anything that wakes by [`Waker`]: channels and locks of [`sync`](crate::sync), those of other
/// libraries, tasks of an executor that runs elsewhere. It may itself call `block_on`.
///
/// # Cancellation
///
/// This wait is not interrupted: neither by cancelling the fiber nor by its deadline.
///
/// # Panics
///
/// Only if the future does.
///
/// ```
/// let (sender, mut receiver) = kapok::sync::oneshot::channel();
/// std::thread::spawn(move || sender.send(7));
/// assert_eq!(kapok::block_on(async { receiver.recv_async().await }), Ok(7));
/// ```
pub fn block_on<F: Future>(future: F) -> F::Output {
    match wait(pin!(future), Limit::None, AtAbandonment::Leak) {
        Ok(output) => output,
        Err(_) => unreachable!("a wait without a limit is not interrupted"),
    }
}

/// The same, but on a fiber whose cancellation was requested, or whose deadline passed, the future
/// is dropped and the reason returned. A future that is ready is never interrupted.
pub(crate) fn block_on_interruptible<F: Future>(future: F) -> Result<F::Output, Interrupted> {
    wait(pin!(future), Limit::Interrupts, AtAbandonment::Leak)
}

/// The same, but deadlines do not interrupt it.
pub(crate) fn block_on_cancellable<F: Future>(future: F) -> Result<F::Output, Interrupted> {
    wait(pin!(future), Limit::Cancellation, AtAbandonment::Leak)
}

#[derive(Clone, Copy)]
enum Limit {
    None,
    Interrupts,
    /// Interrupts that are no deadline.
    Cancellation,
    Deadline(Instant),
}

/// What becomes of the future if its fiber is left behind while it waits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AtAbandonment {
    /// It is leaked with its stack, as everything is: it may have lent what others use.
    Leak,
    /// It is dropped: see [`retiring`]. It is pinned in the frame of whoever waits, and owned by nothing else.
    Drop,
}

fn wait<F: Future>(
    future: Pin<&mut F>,
    limit: Limit,
    at_abandonment: AtAbandonment,
) -> Result<F::Output, Interrupted> {
    Loop::with_running(|running| match running {
        None => wait_on_thread(future, limit),
        Some((lp, fiber)) if !std::thread::panicking() => {
            wait_on_fiber(lp, fiber, future, limit, at_abandonment)
        }
        Some(_) => Ok(wait_while_unwinding(future)),
    })
}

fn wait_on_thread<F: Future>(future: Pin<&mut F>, limit: Limit) -> Result<F::Output, Interrupted> {
    let parker = ThreadParker::take();
    drive(future, parker.waker(), || {
        match limit {
            Limit::None | Limit::Interrupts | Limit::Cancellation => parker.park(),
            Limit::Deadline(deadline) => {
                // Asked after every fruitless poll, woken or not: a future that wakes itself all
                // the time must not outrun its limit.
                if Instant::now() >= deadline {
                    return Err(Interrupted::DeadlineElapsed);
                }
                parker.park_until(deadline);
            }
        }
        Ok(())
    })
}

/// A switch would carry the thread's panic to another fiber. So the thread is blocked, and if that
/// does not help within the limit nothing will: the process ends with the reason.
fn wait_while_unwinding<F: Future>(future: Pin<&mut F>) -> F::Output {
    let deadline = Instant::now() + UNWINDING_LIMIT;
    wait_on_thread(future, Limit::Deadline(deadline)).unwrap_or_else(|_| {
        eprintln!(
            "kapok: a destructor waits, while its fiber unwinds from a panic, for something that \
             did not come within {UNWINDING_LIMIT:?} and may be on another fiber of its thread"
        );
        std::process::abort();
    })
}

fn wait_on_fiber<F: Future>(
    lp: &Loop,
    fiber: NonNull<Fiber>,
    future: Pin<&mut F>,
    limit: Limit,
    at_abandonment: AtAbandonment,
) -> Result<F::Output, Interrupted> {
    // SAFETY: the fiber that runs is alive, and its loop holds it until this function has returned.
    let (control, local) = unsafe { (fiber.as_ref(), fiber.as_ref().local()) };
    // SAFETY: it stays where it is; from here on it is used by way of this pointer only.
    let pointer: *mut F = unsafe { future.get_unchecked_mut() };
    // SAFETY: as above; it was pinned and is.
    let future = unsafe { Pin::new_unchecked(&mut *pointer) };
    let retiring = (at_abandonment == AtAbandonment::Drop).then(|| Retiring::new(pointer));
    // The waker costs no reference count unless the future clones it.
    // SAFETY: as above.
    unsafe {
        with_waker(fiber, |waker| {
            let nested = Nested::enter(control);
            let result = drive(future, waker, || {
                let deadline = match limit {
                    Limit::None => None,
                    // SAFETY: on the fiber itself; copies a plain field.
                    Limit::Interrupts => match interrupt_of(lp, control) {
                        Some(interrupt) => return Err(interrupt),
                        None => (*local).deadline,
                    },
                    Limit::Cancellation => match cancellation_of(control) {
                        Some(interrupt) => return Err(interrupt),
                        None => None,
                    },
                    Limit::Deadline(at) if lp.now() >= at => {
                        return Err(Interrupted::DeadlineElapsed);
                    }
                    Limit::Deadline(at) => Some(at),
                };
                if !control.prepare_park() {
                    // A future that wakes itself all the time must let others run.
                    if !lp.may_go_on() {
                        // SAFETY: on the fiber itself; a plain field, also below.
                        (*local).retiring = retiring;
                        lp.yield_now(fiber);
                        (*local).retiring = None;
                    }
                    return Ok(());
                }
                // A timer unparks like any other waker.
                let timer =
                    deadline.map(|at| lp.arm(Waiter::Task(Some(Waker::clone(waker)), None), at));
                // SAFETY: on the fiber itself; plain fields.
                (*local).waiting = Waiting::Park;
                (*local).retiring = retiring;
                lp.suspend(fiber, || About::Future(std::any::type_name::<F>()));
                (*local).retiring = None;
                (*local).waiting = Waiting::Nothing;
                control.take_token();
                if let Some(timer) = timer {
                    lp.disarm(timer);
                }
                Ok(())
            });
            drop(nested);
            result
        })
    }
}

/// Counts the waits of a fiber that are inside each other: a future that is being polled may wait
/// itself. An inner wait takes the fiber's token whoever it was for, so it leaves one behind.
struct Nested<'a>(&'a Fiber);

impl<'a> Nested<'a> {
    fn enter(fiber: &'a Fiber) -> Nested<'a> {
        // SAFETY: on the fiber itself; a plain field.
        unsafe { (*fiber.local()).waits += 1 };
        Nested(fiber)
    }
}

impl Drop for Nested<'_> {
    fn drop(&mut self) {
        // SAFETY: on the fiber itself; a plain field.
        let outer = unsafe {
            let waits = &mut (*self.0.local()).waits;
            *waits -= 1;
            *waits > 0
        };
        if outer {
            let parked = self.0.leave_token();
            debug_assert!(!parked, "a fiber that runs is not parked");
        }
    }
}

/// Polls until the future is ready or `park` says why to stop. `park` returns when the waker was
/// invoked since the last poll began, and may return for no reason.
#[inline]
fn drive<F: Future, E>(
    mut future: Pin<&mut F>,
    waker: &Waker,
    mut park: impl FnMut() -> Result<(), E>,
) -> Result<F::Output, E> {
    let mut context = Context::from_waker(waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Ok(output);
        }
        park()?;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn until<F: Future>(future: F, deadline: Instant) -> Option<F::Output> {
        wait(pin!(future), Limit::Deadline(deadline), AtAbandonment::Leak).ok()
    }

    /// Pending until another thread, started at the first poll, has waked it.
    fn from_another_thread(value: u32) -> impl Future<Output = u32> {
        let mut started: Option<thread::JoinHandle<()>> = None;
        poll_fn(move |context| match &started {
            Some(thread) if thread.is_finished() => Poll::Ready(value),
            Some(_) => {
                // Woken, but the thread has not quite ended.
                context.waker().wake_by_ref();
                Poll::Pending
            }
            None => {
                let waker = context.waker().clone();
                started = Some(thread::spawn(move || {
                    thread::sleep(Duration::from_millis(2));
                    waker.wake();
                }));
                Poll::Pending
            }
        })
    }

    #[test]
    fn a_wake_up_before_the_park_is_kept() {
        let mut polls = 0;
        block_on(poll_fn(|context| {
            polls += 1;
            context.waker().wake_by_ref();
            if polls == 3 { Poll::Ready(()) } else { Poll::Pending }
        }));
        assert_eq!(polls, 3);
    }

    #[test]
    fn stray_unparks_end_no_wait() {
        thread::current().unpark();
        let before = Instant::now();
        let mut polls = 0;
        let limit = Duration::from_millis(30);
        let out = until(
            poll_fn(|_| {
                polls += 1;
                thread::current().unpark();
                Poll::<()>::Pending
            }),
            before + limit,
        );
        assert_eq!(out, None);
        assert!(before.elapsed() >= limit);
        assert_eq!(polls, 2, "polled at the start and after the limit only");
    }

    #[test]
    fn a_nested_wait_leaves_the_outer_wake_up_alone() {
        let mut polls = 0;
        let sum = block_on(poll_fn(|context| {
            polls += 1;
            if polls == 1 {
                // Woken while the inner wait is on.
                context.waker().wake_by_ref();
                assert_eq!(block_on(from_another_thread(1)), 1);
                return Poll::Pending;
            }
            Poll::Ready(block_on(from_another_thread(2)))
        }));
        assert_eq!((sum, polls), (2, 2));
    }

    #[test]
    fn a_future_that_always_wakes_itself_does_not_outrun_its_limit() {
        let busy = poll_fn(|context| {
            context.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        assert_eq!(until(busy, Instant::now() + Duration::from_millis(5)), None);
    }

    #[test]
    fn what_is_ready_is_returned_though_the_limit_has_passed() {
        assert_eq!(until(async { 5 }, Instant::now() - Duration::from_millis(1)), Some(5));
        assert_eq!(block_on_interruptible(from_another_thread(4)), Ok(4));
    }

    #[test]
    fn a_panic_leaves_the_thread_able_to_wait() {
        let result = std::panic::catch_unwind(|| block_on(async { panic!("on purpose") }));
        assert!(result.is_err());
        assert_eq!(block_on(from_another_thread(9)), 9);
    }

    #[test]
    fn waits_while_the_locals_of_a_thread_are_destroyed() {
        struct WaitsOnDrop(std::sync::mpsc::Sender<u32>);
        impl Drop for WaitsOnDrop {
            fn drop(&mut self) {
                let _ = self.0.send(block_on(from_another_thread(3)));
            }
        }
        thread_local!(static LATE: Cell<Option<WaitsOnDrop>> = const { Cell::new(None) });
        let (sender, receiver) = std::sync::mpsc::channel();
        thread::spawn(move || {
            LATE.set(Some(WaitsOnDrop(sender)));
            // Initialised after, so destroyed before.
            block_on(async {});
        })
        .join()
        .unwrap();
        assert_eq!(receiver.recv(), Ok(3));
    }
}
