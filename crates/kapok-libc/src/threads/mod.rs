//! Threads as fibers: pthread_create(3) makes a fiber of the caller's loop. Experimental.
//!
//! For programs that were written with a thread for each task and keep nothing in thread-locals that
//! matters. Only threads that a fiber makes become fibers, and only if the program has asked for it, by
//! [`threads_as_fibers`]; those that Kapok itself makes stay threads.
//!
//! ```text
//!   pthread_t of a fiber: its number << 1 | 1      that of a thread is an address, and even
//! ```
//!
//! What is each fiber's own: errno, the signal mask, values of keys, the locks it holds, its stack. What
//! the fibers share, since they are one thread: thread-locals of ELF, the thread's number, its name in
//! /proc, its scheduling, and time on one processor: who never calls anything that waits keeps the others
//! from running. pthread_cancel(3) is refused. See docs/design/interposed-locks.md for all of it.
//!
//! [`exit`] ends one, and [`shared`] names who has thread-locals.

mod calls;
mod exit;
mod shared;

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_int, c_void};
use std::future::poll_fn;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use kapok::interpose::{self, Ended, Inside};
use kapok::{JoinError, JoinHandle};
use libc::{pthread_attr_t, pthread_t};

use crate::call::Call;
use crate::locks::deadline::Deadline;
use crate::locks::{PerProcess, owner};
use crate::real;
use crate::signals::mask::aside;

pub(crate) use calls::{BY_HAND, FORWARDED, HOOKS};
pub(crate) use exit::BY_HAND as EXITS;

/// What a thread runs.
pub(crate) type Start = unsafe extern "C-unwind" fn(*mut c_void) -> *mut c_void;

/// The main fiber, once threads are fibers; 0 while they are threads.
static MAIN: AtomicU64 = AtomicU64::new(0);

/// The thread of the main fiber.
static MAIN_THREAD: AtomicUsize = AtomicUsize::new(0);

/// Has threads that are made on fibers be fibers, from now on and for good: of the loop of the fiber
/// that makes them, on its thread. Called on the fiber that is the program's main thread. Experimental:
/// for programs that keep nothing in thread-locals that matters.
///
/// # Panics
///
/// Panics on no fiber.
pub fn threads_as_fibers() {
    let main = kapok::current_id().expect("threads become fibers of a fiber's loop");
    // SAFETY: no conditions.
    MAIN_THREAD.store(unsafe { real::pthread_self() } as usize, Ordering::Relaxed);
    MAIN.store(main, Ordering::Release);
}

/// Who calls, where threads are fibers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Caller {
    Main,
    Thread(u64),
}

#[inline]
fn caller() -> Option<Caller> {
    let main = MAIN.load(Ordering::Relaxed);
    if main == 0 {
        return None;
    }
    owner::fiber().map(|fiber| if fiber == main { Caller::Main } else { Caller::Thread(fiber) })
}

fn thread_of(fiber: u64) -> pthread_t {
    fiber << 1 | 1
}

/// The fiber that is this thread. None: it is a thread.
#[inline]
pub(crate) fn fiber_of(thread: pthread_t) -> Option<u64> {
    (thread & 1 == 1 && MAIN.load(Ordering::Relaxed) != 0).then_some(thread >> 1)
}

/// pthread_self(3).
#[inline]
pub(crate) fn current() -> pthread_t {
    match caller() {
        Some(Caller::Thread(fiber)) => thread_of(fiber),
        // SAFETY: no conditions.
        _ => unsafe { real::pthread_self() },
    }
}

/// The thread on which one runs that may be a fiber.
fn carrier(thread: pthread_t) -> pthread_t {
    match fiber_of(thread) {
        Some(_) => MAIN_THREAD.load(Ordering::Relaxed) as pthread_t,
        None => thread,
    }
}

/// What a thread returned.
#[derive(Clone, Copy)]
struct Value(*mut c_void);
// SAFETY: it is its joiner's, on whichever thread.
unsafe impl Send for Value {}

/// `PTHREAD_CANCELED`.
const CANCELED: *mut c_void = std::ptr::without_provenance_mut(usize::MAX);

struct Thread {
    /// None: detached, or somebody joins it.
    handle: Option<JoinHandle<Value>>,
    detached: bool,
    over: bool,
    name: CString,
}

type Table = HashMap<u64, Thread, BuildHasherDefault<DefaultHasher>>;

#[derive(Default)]
struct Threads {
    table: Table,
    /// How many are not over, and who waits for there to be none.
    alive: usize,
    last: Option<Waker>,
}

static THREADS: PerProcess<Mutex<Option<Threads>>> = {
    static FIRST: Mutex<Option<Threads>> = Mutex::new(None);
    PerProcess::new(&FIRST)
};

/// In the child of a fork, which has one thread.
pub(crate) fn forget() {
    THREADS.renew(Mutex::new(None));
}

/// Runs `f`, which neither waits nor runs code of the program's.
fn with_threads<R>(f: impl FnOnce(&mut Threads) -> R) -> R {
    // Nobody is suspended with the lock, not even by an allocator.
    let _inside = interpose::enter();
    let mut threads: MutexGuard<'_, Option<Threads>> =
        THREADS.get().lock().unwrap_or_else(PoisonError::into_inner);
    f(threads.get_or_insert_default())
}

/// Whether a thread that begins so is to be a fiber: one of Kapok's own is not.
fn becomes_fiber(start: *const c_void) -> bool {
    fn object_of(address: *const c_void) -> usize {
        // SAFETY: integers and pointers, for which zero is a value; an address is looked up, not read.
        unsafe {
            let mut found: libc::Dl_info = std::mem::zeroed();
            libc::dladdr(address, &raw mut found);
            found.dli_fbase.addr()
        }
    }
    MAIN.load(Ordering::Relaxed) != 0
        && object_of(start) != object_of(becomes_fiber as *const c_void)
}

/// Stack, and whether it is detached.
///
/// # Safety
///
/// Null, or attributes that are initialised.
unsafe fn wanted(attributes: *const pthread_attr_t) -> (usize, bool) {
    // SAFETY: by the caller; attributes of our own are initialised by the C library, and only locals are
    // written.
    unsafe {
        let mut defaults: pthread_attr_t = std::mem::zeroed();
        let given = if attributes.is_null() {
            real::pthread_getattr_default_np(&raw mut defaults);
            &raw const defaults
        } else {
            attributes
        };
        let (mut bytes, mut state) = (0, 0);
        libc::pthread_attr_getstacksize(given, &raw mut bytes);
        real::pthread_attr_getdetachstate(given, &raw mut state);
        if attributes.is_null() {
            libc::pthread_attr_destroy(&raw mut defaults);
        }
        (bytes, state == libc::PTHREAD_CREATE_DETACHED)
    }
}

/// Makes a fiber of what would be a thread. It runs when others wait.
///
/// # Safety
///
/// As for pthread_create(3).
unsafe fn create(
    thread: *mut pthread_t,
    attributes: *const pthread_attr_t,
    run: impl FnOnce() -> *mut c_void + 'static,
) -> c_int {
    shared::warn();
    // SAFETY: by the caller.
    let (bytes, detached) = unsafe { wanted(attributes) };
    let handle = kapok::Builder::new().name("thread").stack_size(bytes).spawn_local(move || {
        let value = exit::catch(run);
        crate::specific::destroy_values();
        end();
        Value(value)
    });
    let fiber = handle.id();
    with_threads(|threads| {
        threads.alive += 1;
        let handle = if detached {
            handle.detach();
            None
        } else {
            Some(handle)
        };
        let made = Thread { handle, detached, over: false, name: c"thread".to_owned() };
        threads.table.insert(fiber, made);
    });
    // SAFETY: by the caller.
    unsafe { *thread = thread_of(fiber) };
    0
}

/// Notes that the fiber that runs is over.
fn end() {
    let Some(fiber) = kapok::current_id() else { return };
    let last = with_threads(|threads| {
        threads.alive -= 1;
        if let Some(thread) = threads.table.get_mut(&fiber) {
            thread.over = true;
            if thread.detached {
                threads.table.remove(&fiber);
            }
        }
        if threads.alive == 0 { threads.last.take() } else { None }
    });
    if let Some(last) = last {
        last.wake();
    }
}

/// Waits, on the main fiber, until there is no other thread.
fn wait_for_all(inside: &Inside) {
    let none = poll_fn(|context| {
        with_threads(|threads| {
            if threads.alive == 0 {
                return Poll::Ready(());
            }
            threads.last = Some(context.waker().clone());
            Poll::Pending
        })
    });
    let _ = kapok::shield(|| aside(|| inside.wait(none, None)));
}

/// Takes the handle of one to be joined.
fn take(fiber: u64) -> Result<JoinHandle<Value>, c_int> {
    with_threads(|threads| match threads.table.get_mut(&fiber) {
        None => Err(libc::ESRCH),
        Some(thread) => thread.handle.take().ok_or(libc::EINVAL),
    })
}

fn put_back(fiber: u64, handle: JoinHandle<Value>) {
    with_threads(|threads| {
        if let Some(thread) = threads.table.get_mut(&fiber) {
            thread.handle = Some(handle);
        }
    });
}

/// # Safety
///
/// `value` is null or may be written to.
unsafe fn joined(fiber: u64, ended: Result<Value, JoinError>, value: *mut *mut c_void) -> c_int {
    with_threads(|threads| drop(threads.table.remove(&fiber)));
    if !value.is_null() {
        // Without a stack it has not run, and was told too late for pthread_create(3) to say so.
        let returned = ended.map_or(CANCELED, |Value(returned)| returned);
        // SAFETY: by the caller.
        unsafe { *value = returned };
    }
    0
}

/// pthread_join(3) of a fiber, on a fiber.
///
/// # Safety
///
/// `value` is null or may be written to.
pub(crate) unsafe fn join(
    call: &Call,
    fiber: u64,
    value: *mut *mut c_void,
    deadline: Option<Deadline>,
) -> c_int {
    if call.fiber() == fiber {
        return libc::EDEADLK;
    }
    let mut handle = match take(fiber) {
        Ok(handle) => handle,
        Err(error) => return error,
    };
    if !handle.is_finished()
        && let Some(deadline) = deadline
    {
        let error = match deadline {
            deadline if !deadline.is_valid() => libc::EINVAL,
            deadline if deadline.has_passed() => libc::ETIMEDOUT,
            _ => 0,
        };
        if error != 0 {
            put_back(fiber, handle);
            return error;
        }
    }
    call.note_suspension();
    loop {
        let until = deadline.and_then(|deadline| deadline.instant());
        let waited = kapok::shield(|| aside(|| call.inside.wait(Pin::new(&mut handle), until)));
        match waited {
            // SAFETY: by the caller.
            Ok(ended) => return unsafe { joined(fiber, ended, value) },
            Err(Ended::TimedOut) if deadline.is_none_or(|deadline| deadline.has_passed()) => {
                put_back(fiber, handle);
                return libc::ETIMEDOUT;
            }
            // A clock that was set back, or an interruption that a shield has let through.
            Err(_) => {}
        }
    }
}

/// The same on a plain thread, which blocks.
///
/// # Safety
///
/// `value` is null or may be written to.
pub(crate) unsafe fn join_on_thread(fiber: u64, value: *mut *mut c_void) -> c_int {
    match take(fiber) {
        // SAFETY: by the caller.
        Ok(handle) => unsafe { joined(fiber, kapok::block_on(handle), value) },
        Err(error) => error,
    }
}

/// pthread_tryjoin_np(3) of a fiber.
///
/// # Safety
///
/// `value` is null or may be written to.
unsafe fn try_join(fiber: u64, value: *mut *mut c_void) -> c_int {
    match take(fiber) {
        // It has ended, so this does not wait.
        // SAFETY: by the caller.
        Ok(handle) if handle.is_finished() => unsafe {
            joined(fiber, kapok::block_on(handle), value)
        },
        Ok(handle) => {
            put_back(fiber, handle);
            libc::EBUSY
        }
        Err(error) => error,
    }
}

/// pthread_detach(3) of a fiber.
fn detach(fiber: u64) -> c_int {
    let detached = with_threads(|threads| {
        let thread = threads.table.get_mut(&fiber).ok_or(libc::ESRCH)?;
        let handle = thread.handle.take().ok_or(libc::EINVAL)?;
        thread.detached = true;
        if thread.over {
            threads.table.remove(&fiber);
        }
        Ok(handle)
    });
    match detached {
        Ok(handle) => {
            handle.detach();
            0
        }
        Err(error) => error,
    }
}

fn is_alive(fiber: u64) -> bool {
    with_threads(|threads| threads.table.get(&fiber).is_some_and(|thread| !thread.over))
}

/// As the kernel has it: with the NUL at its end.
const LONGEST_NAME: usize = 16;

fn set_name(fiber: u64, name: &CStr) -> c_int {
    if name.count_bytes() >= LONGEST_NAME {
        return libc::ERANGE;
    }
    with_threads(|threads| match threads.table.get_mut(&fiber) {
        Some(thread) => {
            thread.name = name.to_owned();
            0
        }
        None => libc::ESRCH,
    })
}

/// # Safety
///
/// There is room for so many bytes.
unsafe fn get_name(fiber: u64, at: *mut std::ffi::c_char, room: usize) -> c_int {
    with_threads(|threads| match threads.table.get(&fiber) {
        None => libc::ESRCH,
        Some(thread) if thread.name.as_bytes_with_nul().len() > room => libc::ERANGE,
        Some(thread) => {
            let name = thread.name.as_bytes_with_nul();
            // SAFETY: by the caller, and as was just compared.
            unsafe { std::ptr::copy_nonoverlapping(name.as_ptr(), at.cast(), name.len()) };
            0
        }
    })
}
