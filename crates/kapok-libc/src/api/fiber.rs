//! Fibers.
//!
//! A fiber that is spawned before its loop runs has no Rust handle yet: [`Queued`] is where its
//! handle will be. Whoever joins waits through one future for both.

use std::collections::HashMap;
use std::ffi::{CStr, c_void};
use std::future::Future;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::io;
use std::mem::offset_of;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::ThreadId;
use std::time::Duration;

use kapok::{Builder, Interrupted, JoinError, JoinHandle};

use crate::locks::PerProcess;

use super::{
    Entry, Pointer, answer, failed, kapok_entry, kapok_spawn_options, options, serve, status,
};

/// A fiber, to be joined or detached once.
pub struct kapok_fiber(());

/// What is behind one. C has its number in the place of a pointer: whoever comes with one that was joined
/// meanwhile finds nothing, rather than memory that was freed.
struct Shared {
    handle: Mutex<Handle>,
    /// Whether somebody waits for it to end.
    has_joiner: AtomicBool,
}

type Fibers = Mutex<HashMap<usize, Arc<Shared>, BuildHasherDefault<DefaultHasher>>>;

const fn no_fibers() -> Fibers {
    Mutex::new(HashMap::with_hasher(BuildHasherDefault::new()))
}

static FIBERS: PerProcess<Fibers> = {
    static FIRST: Fibers = no_fibers();
    PerProcess::new(&FIRST)
};

/// In the child of a fork, which has none of its parent's fibers.
pub(super) fn forget() {
    FIBERS.renew(no_fibers());
}

impl Shared {
    /// Gives it a number, never given again.
    fn enter(handle: Handle) -> *mut kapok_fiber {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        super::prepare();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let shared = Shared { handle: Mutex::new(handle), has_joiner: AtomicBool::new(false) };
        lock(FIBERS.get()).insert(number, Arc::new(shared));
        std::ptr::without_provenance_mut(number)
    }

    fn find(fiber: *mut kapok_fiber) -> io::Result<Arc<Shared>> {
        if fiber.is_null() {
            return failed(libc::EINVAL);
        }
        lock(FIBERS.get()).get(&fiber.addr()).cloned().map_or_else(|| failed(libc::ESRCH), Ok)
    }

    /// Takes its number away.
    fn leave(fiber: *mut kapok_fiber) -> io::Result<()> {
        if fiber.is_null() {
            return failed(libc::EINVAL);
        }
        let left = lock(FIBERS.get()).remove(&fiber.addr());
        // Outside of the lock: a result may be in it, and with it code of the program's.
        left.map_or_else(|| failed(libc::ESRCH), |_| Ok(()))
    }
}

enum Handle {
    Queued(Arc<Queued>),
    Spawned(JoinHandle<Pointer>),
    Joined,
}

/// A fiber of a loop that is yet to run.
struct Queued {
    /// The thread on which it will.
    thread: ThreadId,
    state: Mutex<QueuedState>,
}

#[derive(Default)]
struct QueuedState {
    handle: Option<JoinHandle<Pointer>>,
    canceled: bool,
    /// Its thread has ended, and there was no loop.
    dropped: bool,
    joiner: Option<Waker>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that may panic is done under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queued {
    fn change(&self, f: impl FnOnce(&mut QueuedState)) {
        let mut state = lock(&self.state);
        f(&mut state);
        let joiner = state.joiner.take();
        drop(state);
        if let Some(joiner) = joiner {
            joiner.wake();
        }
    }
}

/// What the loop will start; without a loop, those who join are told.
struct Start {
    queued: Arc<Queued>,
    builder: Builder,
    entry: Entry,
    arg: Pointer,
    started: bool,
}

impl Start {
    fn start(mut self) {
        self.started = true;
        let handle = spawn_here(self.builder.clone(), self.entry, self.arg);
        self.queued.change(|state| {
            if state.canceled {
                handle.cancel();
            }
            state.handle = Some(handle);
        });
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        if !self.started {
            self.queued.change(|state| state.dropped = true);
        }
    }
}

fn spawn_here(builder: Builder, entry: Entry, arg: Pointer) -> JoinHandle<Pointer> {
    builder.spawn_local(move || {
        // SAFETY: whoever spawned it gave a function and the argument that it takes.
        Pointer(unsafe { entry(arg.get()) })
    })
}

/// # Safety
///
/// As for [`kapok_spawn`].
unsafe fn builder_for(given: *const kapok_spawn_options) -> io::Result<Builder> {
    let first = offset_of!(kapok_spawn_options, stack_size) + size_of::<usize>();
    let mut builder = Builder::new();
    // SAFETY: by the caller; integers and pointers, for which zero is a value.
    if let Some(options) = unsafe { options::read(given, first) }? {
        if !options.name.is_null() {
            // SAFETY: by the caller.
            let name = unsafe { CStr::from_ptr(options.name) };
            builder = builder.name(&*name.to_string_lossy());
        }
        if options.stack_size > 0 {
            builder = builder.stack_size(options.stack_size);
        }
    }
    Ok(builder)
}

/// Spawns a fiber that runs entry(arg). On a fiber it is of the same loop; elsewhere it is of the
/// loop that this thread runs next by kapok_loop(), and starts there. If fiber is NULL it is detached,
/// otherwise it is to be given to kapok_join() or kapok_detach() once.
///
/// # Safety
///
/// `entry` may be called with `arg` on this thread; `options` is NULL or points to as many bytes as it
/// says, with a name that is NULL or a string; `fiber` is NULL or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kapok_spawn(
    entry: kapok_entry,
    arg: *mut c_void,
    options: *const kapok_spawn_options,
    fiber: *mut *mut kapok_fiber,
) -> libc::c_int {
    status(|| {
        let Some(entry) = entry else { return failed(libc::EINVAL) };
        // SAFETY: by the caller.
        let builder = unsafe { builder_for(options) }?;
        let arg = Pointer(arg);
        let handle = if kapok::on_fiber() {
            Handle::Spawned(spawn_here(builder, entry, arg))
        } else {
            let thread = std::thread::current().id();
            let queued = Arc::new(Queued { thread, state: Mutex::default() });
            let start = Start { queued: Arc::clone(&queued), builder, entry, arg, started: false };
            serve::start(move || start.start());
            Handle::Queued(queued)
        };
        if !fiber.is_null() {
            // SAFETY: by the caller.
            unsafe { fiber.write(Shared::enter(handle)) };
        }
        Ok(())
    })
}

impl Shared {
    /// The handle itself, if there is one by now.
    fn with_handle<R>(&self, f: impl FnOnce(&mut JoinHandle<Pointer>) -> R) -> Option<R> {
        let mut handle = lock(&self.handle);
        let arrived = match &*handle {
            Handle::Spawned(_) | Handle::Joined => None,
            Handle::Queued(queued) => Some(lock(&queued.state).handle.take()?),
        };
        if let Some(arrived) = arrived {
            *handle = Handle::Spawned(arrived);
        }
        match &mut *handle {
            Handle::Spawned(spawned) => Some(f(spawned)),
            Handle::Queued(_) | Handle::Joined => None,
        }
    }

    /// What it ended with. None: somebody else has that.
    fn poll(&self, context: &mut Context<'_>) -> Poll<Option<Result<Pointer, JoinError>>> {
        if matches!(&*lock(&self.handle), Handle::Joined) {
            return Poll::Ready(None);
        }
        if let Handle::Queued(queued) = &*lock(&self.handle) {
            let mut state = lock(&queued.state);
            if state.dropped {
                return Poll::Ready(Some(Err(JoinError::Abandoned)));
            }
            if state.handle.is_none() {
                state.joiner = Some(context.waker().clone());
                return Poll::Pending;
            }
        }
        let ended = self.with_handle(|handle| Pin::new(handle).poll(context));
        match ended {
            Some(Poll::Ready(ended)) => {
                let over = std::mem::replace(&mut *lock(&self.handle), Handle::Joined);
                drop(over);
                Poll::Ready(Some(ended))
            }
            Some(Poll::Pending) => Poll::Pending,
            // Another has taken the handle between the two looks, or the result.
            None if matches!(&*lock(&self.handle), Handle::Joined) => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    /// Whether waiting for it here would be waiting for oneself.
    fn is_deadlock(&self) -> bool {
        if let Some(id) = self.with_handle(|handle| handle.id()) {
            return kapok::current_id() == Some(id);
        }
        match &*lock(&self.handle) {
            Handle::Queued(queued) => {
                !kapok::on_fiber()
                    && queued.thread == std::thread::current().id()
                    && !lock(&queued.state).dropped
            }
            Handle::Spawned(_) | Handle::Joined => false,
        }
    }
}

/// The one who waits for a fiber to end: there is one place for a waker.
struct Joiner<'a>(&'a Shared);

impl Joiner<'_> {
    fn new(shared: &Shared) -> io::Result<Joiner<'_>> {
        if shared.has_joiner.swap(true, Ordering::AcqRel) {
            return failed(libc::EINVAL);
        }
        Ok(Joiner(shared))
    }
}

impl Drop for Joiner<'_> {
    fn drop(&mut self) {
        self.0.has_joiner.store(false, Ordering::Release);
    }
}

/// The number of the error that `fiber`, which is over, ended with.
fn ended_with(error: &JoinError) -> i32 {
    match error {
        JoinError::NoStack(_) => libc::ENOMEM,
        JoinError::Panicked(_) => libc::ENOTRECOVERABLE,
        _ => libc::EOWNERDEAD,
    }
}

/// Waits for a fiber to end, and gives what it returned. The fiber is freed then. Any thread and any
/// fiber may join, one of them, once.
///
/// If the *caller* is interrupted (ECANCELED, ETIMEDOUT, ECONNRESET), would wait for itself (EDEADLK),
/// or comes while another waits (EINVAL), the other fiber goes on, and can still be joined. After any
/// other error it is over and freed: ENOMEM if there was no stack for it, EOWNERDEAD if its loop ended
/// before it, ENOTRECOVERABLE if a panic ended it, ESRCH if it was joined or detached before.
///
/// # Safety
///
/// `result` is NULL or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kapok_join(
    fiber: *mut kapok_fiber,
    result: *mut *mut c_void,
) -> libc::c_int {
    status(|| {
        let shared = Shared::find(fiber)?;
        if shared.is_deadlock() {
            return failed(libc::EDEADLK);
        }
        let _joiner = Joiner::new(&shared)?;
        let ended = kapok::block_on(async {
            let mut interrupted = pin!(kapok::interrupted_async());
            std::future::poll_fn(|context| match shared.poll(context) {
                Poll::Ready(ended) => Poll::Ready(Ok(ended)),
                Poll::Pending => interrupted.as_mut().poll(context).map(Err::<_, Interrupted>),
            })
            .await
        })?;
        let Some(ended) = ended else { return failed(libc::ESRCH) };
        // Somebody may have detached it meanwhile.
        let _ = Shared::leave(fiber);
        match ended {
            Ok(value) => {
                if !result.is_null() {
                    // SAFETY: by the caller.
                    unsafe { result.write(value.get()) };
                }
                Ok(())
            }
            Err(error) => failed(ended_with(&error)),
        }
    })
}

/// Lets a fiber go on by itself; it cannot be joined any more. ESRCH if it was joined or detached before.
#[unsafe(no_mangle)]
pub extern "C" fn kapok_detach(fiber: *mut kapok_fiber) -> libc::c_int {
    status(|| Shared::leave(fiber))
}

/// Requests the cancellation of a fiber: the call it waits in, and every later one that would wait,
/// fails with ECANCELED, unless it has something to return. The fiber ends when its function returns.
/// It is still to be joined or detached. May be called while another waits in kapok_join() for it, and
/// gives ESRCH if it has been joined, or detached, by then.
#[unsafe(no_mangle)]
pub extern "C" fn kapok_cancel(fiber: *mut kapok_fiber) -> libc::c_int {
    status(|| {
        let shared = Shared::find(fiber)?;
        loop {
            if shared.with_handle(|handle| handle.cancel()).is_some() {
                return Ok(());
            }
            let handle = lock(&shared.handle);
            let queued = match &*handle {
                Handle::Queued(queued) => queued,
                Handle::Spawned(_) => continue,
                Handle::Joined => return failed(libc::ESRCH),
            };
            let mut state = lock(&queued.state);
            if state.handle.is_none() {
                state.canceled = true;
                return Ok(());
            }
        }
    })
}

/// Lets other fibers run; on no fiber, sched_yield(2).
#[unsafe(no_mangle)]
pub extern "C" fn kapok_yield() {
    answer((), || {
        kapok::yield_now();
        Ok(())
    });
}

/// Sleeps for so many nanoseconds: a fiber is suspended, on no fiber the thread sleeps.
#[unsafe(no_mangle)]
pub extern "C" fn kapok_sleep(nanoseconds: u64) -> libc::c_int {
    status(|| kapok::sleep(Duration::from_nanos(nanoseconds)).map_err(io::Error::from))
}

/// The number of the fiber that calls, which no other of the process has; 0 on no fiber.
#[unsafe(no_mangle)]
pub extern "C" fn kapok_fiber_id() -> u64 {
    answer(0, || Ok(kapok::current_id().unwrap_or(0)))
}

/// Runs entry(arg) on a thread made for what blocks, and suspends the fiber until it has returned: for
/// long computations and calls that block by themselves. There it is on no fiber. It cannot be
/// interrupted. On no fiber it runs on the spot.
///
/// # Safety
///
/// `entry` may be called with `arg` on another thread; `result` is NULL or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kapok_blocking(
    entry: kapok_entry,
    arg: *mut c_void,
    result: *mut *mut c_void,
) -> libc::c_int {
    status(|| {
        let Some(entry) = entry else { return failed(libc::EINVAL) };
        let arg = Pointer(arg);
        // SAFETY: by the caller.
        let value = kapok::blocking(move || Pointer(unsafe { entry(arg.get()) }))?;
        if !result.is_null() {
            // SAFETY: by the caller.
            unsafe { result.write(value.get()) };
        }
        Ok(())
    })
}
