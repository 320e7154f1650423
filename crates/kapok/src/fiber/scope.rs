//! Structured fibers: children that may borrow from the code that waits for them.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::Instant;

use super::interrupt::Interrupted;
use super::join::{JoinError, JoinHandle};
use super::reference::FiberRef;
use super::{Builder, prepare_borrowing};
use crate::park;
use crate::runtime::Loop;

/// What the children of a scope share with it.
struct Shared {
    running: AtomicUsize,
    waker: Mutex<Option<Waker>>,
}

/// Tells the scope that a child is over, on whichever way out.
struct Child(Arc<Shared>);

impl Drop for Child {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            let waker = self.0.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

/// Spawns children that end before [`scope`] returns.
pub struct Scope<'scope, 'env: 'scope> {
    shared: Arc<Shared>,
    /// A child panicked and its handle did not take the panic.
    panicked: Arc<AtomicBool>,
    children: Mutex<Children>,
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

#[derive(Default)]
struct Children {
    /// Each with the deadline that it was born under.
    list: Vec<(FiberRef, Option<Instant>)>,
    cancelled: Cancelled,
}

/// Which children of a scope are cancelled, those that are yet to come included.
#[derive(Clone, Copy, Default)]
enum Cancelled {
    #[default]
    None,
    /// Those that this deadline has not reached by itself: spawned in a shield. The others are
    /// interrupted by their own deadline, and their calls fail with `TimedOut`.
    Beyond(Option<Instant>),
    All,
}

impl Cancelled {
    fn has(self, born_under: Option<Instant>) -> bool {
        match self {
            Cancelled::None => false,
            Cancelled::Beyond(passed) => {
                born_under.is_none_or(|deadline| passed.is_none_or(|passed| deadline > passed))
            }
            Cancelled::All => true,
        }
    }
}

/// The handle of a scope's child. Dropping it is fine: the scope waits anyway.
pub struct ScopedJoinHandle<'scope, T> {
    handle: JoinHandle<T>,
    scope: PhantomData<&'scope ()>,
}

impl<T> ScopedJoinHandle<'_, T> {
    /// Waits for the child and returns its result; see [`JoinHandle::join`].
    ///
    /// # Errors
    ///
    /// [`JoinError`].
    pub fn join(self) -> Result<T, JoinError> {
        self.handle.join()
    }

    /// Requests the child's cancellation; see [`JoinHandle::cancel`].
    pub fn cancel(&self) {
        self.handle.cancel();
    }

    /// Whether the child is over.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

impl<T> fmt::Debug for ScopedJoinHandle<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.handle, f)
    }
}

impl fmt::Debug for Scope<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let running = self.shared.running.load(Ordering::Relaxed);
        f.debug_struct("Scope").field("running", &running).finish_non_exhaustive()
    }
}

impl<'scope> Scope<'scope, '_> {
    /// Spawns a child. It may run on another loop of the runtime.
    ///
    /// # Panics
    ///
    /// Outside a [`Runtime`](crate::Runtime).
    pub fn spawn<T, F>(&'scope self, f: F) -> ScopedJoinHandle<'scope, T>
    where
        F: FnOnce() -> T + Send + 'scope,
        T: Send + 'scope,
    {
        self.spawn_with(Builder::new(), true, f)
    }

    /// Spawns a child on this loop, which may borrow what must not leave the thread.
    ///
    /// # Panics
    ///
    /// Outside a [`Runtime`](crate::Runtime).
    pub fn spawn_local<T, F>(&'scope self, f: F) -> ScopedJoinHandle<'scope, T>
    where
        F: FnOnce() -> T + 'scope,
        T: 'scope,
    {
        self.spawn_with(Builder::new(), false, f)
    }

    /// Spawns a child with a name or a stack of its own; see [`Scope::spawn`].
    ///
    /// # Panics
    ///
    /// Outside a [`Runtime`](crate::Runtime).
    pub fn spawn_named<T, F>(&'scope self, builder: Builder, f: F) -> ScopedJoinHandle<'scope, T>
    where
        F: FnOnce() -> T + Send + 'scope,
        T: Send + 'scope,
    {
        self.spawn_with(builder, true, f)
    }

    fn spawn_with<T, F>(
        &'scope self,
        mut builder: Builder,
        movable: bool,
        f: F,
    ) -> ScopedJoinHandle<'scope, T>
    where
        F: FnOnce() -> T + 'scope,
        T: 'scope,
    {
        // A deadline around the scope is one around its children.
        let deadline = super::current_deadline();
        builder.deadline = deadline;
        builder.borrows = true;
        let panicked = Arc::clone(&self.panicked);
        self.shared.running.fetch_add(1, Ordering::AcqRel);
        let child = Child(Arc::clone(&self.shared));
        // SAFETY: nothing outlives `'scope`. `scope` does not return, nor unwind, before every
        // `child` is dropped. The handle is bound to `'scope`, which nothing outlives that was made
        // in the closure that `scope` was given.
        let (unstarted, handle) =
            unsafe { prepare_borrowing(builder, movable, f, Some(panicked), child) };
        let fiber = unstarted.fiber.clone();
        Loop::with_current(|current| {
            current.expect("fibers are spawned inside a runtime").spawn(unstarted);
        });
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        // Only what still runs has to be cancelled with the scope.
        if children.list.len() == children.list.capacity() {
            children.list.retain(|(child, _)| !child.is_only());
        }
        // Whoever cancelled those that were there has not seen this one.
        if children.cancelled.has(deadline) {
            fiber.request_cancel();
        }
        children.list.push((fiber, deadline));
        ScopedJoinHandle { handle, scope: PhantomData }
    }

    /// Cancels children, also those that the others are yet to spawn.
    fn cancel(&self, which: Cancelled) {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.cancelled = which;
        for (child, deadline) in &children.list {
            if which.has(*deadline) {
                child.request_cancel();
            }
        }
    }

    /// Waits for every child. Not to be interrupted: an interrupt is passed on to the children.
    fn wait(&self) {
        let all_over = || {
            std::future::poll_fn(|context| {
                *self.shared.waker.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(context.waker().clone());
                match self.shared.running.load(Ordering::Acquire) {
                    0 => Poll::Ready(()),
                    _ => Poll::Pending,
                }
            })
        };
        match park::block_on_interruptible(all_over()) {
            Ok(()) => return,
            Err(Interrupted::Canceled | Interrupted::PeerGone) => self.cancel(Cancelled::All),
            Err(Interrupted::DeadlineElapsed) => {
                self.cancel(Cancelled::Beyond(super::current_deadline()));
                match park::block_on_cancellable(all_over()) {
                    Ok(()) => return,
                    Err(_) => self.cancel(Cancelled::All),
                }
            }
        }
        park::block_on(all_over());
    }
}

/// Runs `f` with a scope in which fibers can be spawned that borrow from around it. Returns when
/// `f` has returned and every child has ended.
///
/// If the fiber that waits here is cancelled, the children are cancelled too, and still waited for.
/// A deadline around the scope is one around its children: when it passes, their calls fail with
/// [`TimedOut`](std::io::ErrorKind::TimedOut). Children that were spawned in a
/// [`shield`](super::shield) have no deadline; they are cancelled then.
///
/// # Panics
///
/// If `f` panics, with its panic, after cancelling the children and waiting for them; if a child
/// panicked and its handle was not joined, with that. A scope never unwinds while a child runs.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// # kapok::Runtime::new()?.run(|| {
/// let mut words = vec!["shared", "by", "borrow"];
/// let mut total = 0;
/// kapok::scope(|scope| {
///     let words = &words;
///     let lengths = scope.spawn(move || words.iter().map(|word| word.len()).sum::<usize>());
///     total = lengths.join().unwrap();
/// });
/// words.push("again ours");
/// assert_eq!(total, 14);
/// # });
/// # Ok(())
/// # }
/// ```
pub fn scope<'env, R>(f: impl for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> R) -> R {
    let scope = Scope {
        shared: Arc::new(Shared { running: AtomicUsize::new(0), waker: Mutex::new(None) }),
        panicked: Arc::new(AtomicBool::new(false)),
        children: Mutex::default(),
        scope: PhantomData,
        env: PhantomData,
    };
    let result = catch_unwind(AssertUnwindSafe(|| f(&scope)));
    if result.is_err() {
        scope.cancel(Cancelled::All);
    }
    scope.wait();
    match result {
        Err(panic) => resume_unwind(panic),
        Ok(_) if scope.panicked.load(Ordering::Relaxed) => {
            resume_unwind(Box::new("a fiber of the scope panicked") as Box<dyn Any + Send>)
        }
        Ok(result) => result,
    }
}
