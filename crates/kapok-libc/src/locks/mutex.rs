//! `pthread_mutex_t` on fibers, in the words in which the C library keeps it.
//!
//! ```text
//!   lock: 0 free · 1 taken · 2 taken and somebody waits      count: how often, if recursive
//!   owner: a thread's number or a fiber's (see `owner`)       users · kind
//! ```
//!
//! These have been the C library's words since futexes came, for threads that lock and unlock beside
//! fibers without any hook: pthread_cond_wait(3) of a plain thread unlocks by an inner function, say.
//! [`is_as_expected`] checks them on locks of its own before anything relies on them.
//!
//! Adaptive mutexes are what allocators are made of (jemalloc's), and a fiber must not be parked inside
//! malloc(3), with its thread's cache half changed. So there a fiber blocks its thread, unless the
//! mutex is held by another fiber of its thread: that one was suspended with it, so the mutex is no
//! allocator's, and would not be given up if the thread was blocked.
//!
//! Ordinary mutexes (normal, recursive, error-checking, adaptive, shared between processes or not) are
//! here. Robust ones and those with priorities are the kernel's affair as much as the C library's:
//! see [`kernel_owned`](super::kernel_owned).

use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use libc::{c_int, pthread_mutex_t};

use super::deadline::Deadline;
use super::futex::{self, Word, wait};
use super::{kernel_owned, owner, watched};
use crate::real;

#[repr(C)]
pub(super) struct Words {
    lock: AtomicU32,
    count: AtomicU32,
    owner: AtomicU32,
    users: AtomicU32,
    kind: AtomicI32,
}

const NORMAL: i32 = 0;
const RECURSIVE: i32 = 1;
const ERROR_CHECKING: i32 = 2;
const ADAPTIVE: i32 = 3;
/// Robust, with inherited priority, with a ceiling.
const KERNEL_OWNED: i32 = 16 | 32 | 64;
const WITH_CEILING: i32 = 64;
const SHARED: i32 = 128;
const KIND: i32 = 3;

/// Takes the mutex, on a fiber. Waits until `deadline`, which is looked at if it must wait.
///
/// # Safety
///
/// The mutex is one, and stays one during the call.
pub(crate) unsafe fn lock(
    mutex: *mut pthread_mutex_t,
    me: u32,
    deadline: Option<Deadline>,
) -> c_int {
    // SAFETY: by the caller.
    let words = unsafe { words(mutex) };
    let kind = words.kind.load(Ordering::Relaxed);
    if kind & KERNEL_OWNED != 0 {
        // SAFETY: by the caller.
        return unsafe { kernel_owned::lock(mutex, me, deadline) };
    }
    let me = holder(kind, me);
    if let Some(result) = words.again(kind, me) {
        return result;
    }
    let error = words.acquire(kind, deadline);
    if error == 0 {
        words.taken(kind, me);
        words.users.fetch_add(1, Ordering::Relaxed);
    }
    error
}

/// Takes the mutex if it is free.
///
/// # Safety
///
/// As for [`lock`].
pub(crate) unsafe fn try_lock(mutex: *mut pthread_mutex_t, me: u32) -> c_int {
    // SAFETY: by the caller.
    let words = unsafe { words(mutex) };
    let kind = words.kind.load(Ordering::Relaxed);
    if kind & KERNEL_OWNED != 0 {
        // SAFETY: by the caller.
        return unsafe { kernel_owned::try_lock(mutex, me) };
    }
    let me = holder(kind, me);
    if kind & KIND == RECURSIVE
        && let Some(result) = words.again(kind, me)
    {
        return result;
    }
    if !words.try_acquire() {
        // Who tries again and again lets the holder run; but not inside malloc(3).
        if kind & KIND != ADAPTIVE || futex::is_held_here(words.owner.load(Ordering::Relaxed)) {
            watched::give_way();
        }
        return libc::EBUSY;
    }
    words.taken(kind, me);
    words.users.fetch_add(1, Ordering::Relaxed);
    0
}

/// Gives the mutex up, on a fiber.
///
/// # Safety
///
/// As for [`lock`].
pub(crate) unsafe fn unlock(mutex: *mut pthread_mutex_t, me: u32) -> c_int {
    // SAFETY: by the caller.
    unsafe { release(mutex, me, 1) }
}

/// Gives the mutex up for the time of a wait at a condition: who waits is still a user.
///
/// # Safety
///
/// As for [`lock`].
pub(super) unsafe fn unlock_to_wait(mutex: *mut pthread_mutex_t, me: u32) -> c_int {
    // SAFETY: by the caller.
    unsafe { release(mutex, me, 0) }
}

/// Takes the mutex again after such a wait. Not interrupted, and not refused.
///
/// # Safety
///
/// As for [`lock`].
pub(super) unsafe fn lock_after_wait(mutex: *mut pthread_mutex_t, me: u32) -> c_int {
    // SAFETY: by the caller.
    unsafe {
        let error = lock(mutex, me, None);
        if error == 0 && words(mutex).kind.load(Ordering::Relaxed) & KERNEL_OWNED == 0 {
            words(mutex).users.fetch_sub(1, Ordering::Relaxed);
        }
        error
    }
}

/// The number of the thread that has a mutex of the kernel's; 0 if none has.
///
/// # Safety
///
/// As for [`lock`].
pub(super) unsafe fn thread_of_kernel_owned(mutex: *mut pthread_mutex_t) -> u32 {
    // SAFETY: by the caller.
    let words = unsafe { words(mutex) };
    if words.kind.load(Ordering::Relaxed) & WITH_CEILING != 0 {
        return words.owner.load(Ordering::Relaxed);
    }
    words.lock.load(Ordering::Relaxed) & libc::FUTEX_TID_MASK
}

unsafe fn release(mutex: *mut pthread_mutex_t, me: u32, users: u32) -> c_int {
    // SAFETY: by the caller.
    let words = unsafe { words(mutex) };
    let kind = words.kind.load(Ordering::Relaxed);
    if kind & KERNEL_OWNED != 0 {
        // SAFETY: by the caller.
        return unsafe { kernel_owned::unlock(mutex, me) };
    }
    let me = holder(kind, me);
    match kind & KIND {
        RECURSIVE | ERROR_CHECKING
            if words.owner.load(Ordering::Relaxed) != me
                || words.lock.load(Ordering::Relaxed) == 0 =>
        {
            return libc::EPERM;
        }
        RECURSIVE if words.count.fetch_sub(1, Ordering::Relaxed) > 1 => return 0,
        _ => {}
    }
    words.owner.store(0, Ordering::Relaxed);
    words.users.fetch_sub(users, Ordering::Relaxed);
    // The mutex may be gone once it is free: of what follows, only the address counts.
    if words.lock.swap(0, Ordering::Release) > 1 {
        Word::of(&words.lock, kind & SHARED != 0).wake(1);
    }
    0
}

/// The number by which `me` holds a mutex of this kind.
fn holder(kind: i32, me: u32) -> u32 {
    if kind & SHARED == 0 { me } else { owner::in_shared_memory(me) }
}

impl Words {
    /// What taking it means to who may hold it already.
    fn again(&self, kind: i32, me: u32) -> Option<c_int> {
        if self.owner.load(Ordering::Relaxed) != me {
            return None;
        }
        match kind & KIND {
            RECURSIVE => {
                let count = self.count.load(Ordering::Relaxed);
                if count == u32::MAX {
                    return Some(libc::EAGAIN);
                }
                self.count.store(count + 1, Ordering::Relaxed);
                Some(0)
            }
            ERROR_CHECKING => Some(libc::EDEADLK),
            NORMAL | ADAPTIVE => None,
            _ => Some(libc::EINVAL),
        }
    }

    fn taken(&self, kind: i32, me: u32) {
        self.owner.store(me, Ordering::Relaxed);
        if kind & KIND == RECURSIVE {
            self.count.store(1, Ordering::Relaxed);
        }
    }

    fn try_acquire(&self) -> bool {
        self.lock.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn acquire(&self, kind: i32, deadline: Option<Deadline>) -> c_int {
        if self.try_acquire() {
            return 0;
        }
        let shared = kind & SHARED != 0;
        // As if somebody else waited, too: who has waited cannot know.
        while self.lock.swap(2, Ordering::Acquire) != 0 {
            let ended = if kind & KIND == ADAPTIVE {
                let holder = self.owner.load(Ordering::Relaxed);
                futex::wait_for_holder(&self.lock, 2, shared, deadline, holder)
            } else {
                wait(&self.lock, 2, shared, deadline)
            };
            let error = ended.error();
            if error != 0 {
                return error;
            }
        }
        0
    }
}

/// # Safety
///
/// The mutex is one while the reference is used.
unsafe fn words<'a>(mutex: *mut pthread_mutex_t) -> &'a Words {
    // SAFETY: by the caller; the words are atomic, and `is_as_expected` has shown where they are.
    unsafe { &*mutex.cast::<Words>() }
}

/// Whether the C library of this process has its words where [`Words`] says. On a plain thread.
pub(crate) fn is_as_expected() -> bool {
    // SAFETY: mutexes of our own, initialised before they are used and destroyed after, on one thread.
    unsafe {
        let mut attributes: libc::pthread_mutexattr_t = std::mem::zeroed();
        let mut mutex: pthread_mutex_t = std::mem::zeroed();
        let at = &raw mut mutex;
        libc::pthread_mutexattr_init(&raw mut attributes);
        libc::pthread_mutexattr_settype(&raw mut attributes, libc::PTHREAD_MUTEX_RECURSIVE);
        libc::pthread_mutexattr_setpshared(&raw mut attributes, libc::PTHREAD_PROCESS_SHARED);
        libc::pthread_mutex_init(at, &raw const attributes);
        let show = || {
            let words = words(at);
            let all = [&words.lock, &words.count, &words.owner, &words.users];
            (all.map(|word| word.load(Ordering::Relaxed)), words.kind.load(Ordering::Relaxed))
        };
        let free = show();
        real::pthread_mutex_lock(at);
        real::pthread_mutex_lock(at);
        let taken = show();
        real::pthread_mutex_unlock(at);
        real::pthread_mutex_unlock(at);
        let after = show();
        libc::pthread_mutex_destroy(at);
        libc::pthread_mutexattr_destroy(&raw mut attributes);
        let thread = libc::gettid() as u32;
        let kind = RECURSIVE | SHARED;
        free == ([0; 4], kind) && taken == ([1, 2, thread, 1], kind) && after == ([0; 4], kind)
    }
}
