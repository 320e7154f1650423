//! Models of how a fiber's end meets its handle, and of the references to it: each runs under every
//! interleaving, and every order of memory accesses, that loom finds.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release -p kapok --lib model`. A lost wake-up shows as a
//! deadlock.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread::{self, Thread};

use super::reference::References;
use super::{Builder, FiberRef, JoinError, JoinHandle, prepare};

/// A waker of a thread of the model.
struct Woken {
    woken: AtomicBool,
    thread: Thread,
}

impl Woken {
    fn new() -> Arc<Woken> {
        Arc::new(Woken { woken: AtomicBool::new(false), thread: thread::current() })
    }

    fn wait(&self) {
        while !self.woken.swap(false, Ordering::AcqRel) {
            thread::park();
        }
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.woken.swap(true, Ordering::AcqRel);
        self.thread.unpark();
    }
}

/// A result that says that it is dropped.
struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn unstarted<T: 'static>() -> (FiberRef, JoinHandle<T>) {
    let (unstarted, handle) =
        prepare(Builder::new(), false, || -> T { unreachable!("it does not start") });
    (unstarted.take_up(), handle)
}

/// Ends the fiber of this handle on another thread.
fn ends<T: Send + 'static>(
    fiber: FiberRef,
    _: &JoinHandle<T>,
    result: T,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        // SAFETY: this thread is the fiber's side, and the entry is of no size.
        unsafe { fiber.settle(Ok(result)) };
    })
}

fn poll<T>(handle: &mut JoinHandle<T>, woken: &Arc<Woken>) -> Poll<Result<T, JoinError>> {
    let waker = Waker::from(Arc::clone(woken));
    Pin::new(handle).poll(&mut Context::from_waker(&waker))
}

fn poll_until_over<T>(handle: &mut JoinHandle<T>, woken: &Arc<Woken>) -> T {
    loop {
        match poll(handle, woken) {
            Poll::Ready(result) => return result.expect("it has ended"),
            Poll::Pending => woken.wait(),
        }
    }
}

#[test]
fn model_of_a_join_while_the_fiber_ends() {
    loom::model(|| {
        let (fiber, mut handle) = unstarted::<u32>();
        let woken = Woken::new();
        let thread = ends(fiber, &handle, 7);
        assert_eq!(poll_until_over(&mut handle, &woken), 7);
        thread.join().unwrap();
    });
}

#[test]
fn model_of_a_join_by_one_and_then_by_another_while_the_fiber_ends() {
    loom::model(|| {
        let (fiber, mut handle) = unstarted::<u32>();
        let [first, second] = [Woken::new(), Woken::new()];
        let thread = ends(fiber, &handle, 7);
        if let Poll::Ready(result) = poll(&mut handle, &first) {
            assert_eq!(result.unwrap(), 7);
        } else {
            assert_eq!(poll_until_over(&mut handle, &second), 7);
        }
        thread.join().unwrap();
        drop(handle);
        assert_eq!(Arc::strong_count(&first), 1, "a waker was lost");
        assert_eq!(Arc::strong_count(&second), 1, "a waker was lost");
    });
}

#[test]
fn model_of_a_handle_that_goes_while_the_fiber_ends() {
    for waits in [false, true] {
        loom::model(move || {
            let (fiber, mut handle) = unstarted::<Dropped>();
            let dropped = Arc::new(AtomicUsize::new(0));
            let woken = Woken::new();
            let thread = ends(fiber, &handle, Dropped(Arc::clone(&dropped)));
            if waits {
                drop(poll(&mut handle, &woken));
            }
            drop(handle);
            thread.join().unwrap();
            assert_eq!(dropped.load(Ordering::Relaxed), 1, "the result");
            assert_eq!(Arc::strong_count(&woken), 1, "a waker was lost");
        });
    }
}

#[test]
fn model_of_references_that_go_on_two_threads() {
    loom::model(|| {
        let shared = Arc::new((References::new(2), UnsafeCell::new(())));
        // Uses it, then gives it up. Whoever comes last frees it: loom objects to a use that is not
        // before that.
        let use_it = |shared: &(References, UnsafeCell<()>)| {
            shared.1.with(|_| ());
            let last = shared.0.remove();
            if last {
                shared.1.with_mut(|_| ());
            }
            last
        };
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || use_it(&shared))
        };
        let last = use_it(&shared);
        assert_ne!(last, other.join().unwrap(), "freed by one of them");
    });
}
