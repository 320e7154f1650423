//! `pthread_rwlock_t` on fibers.
//!
//! A fiber takes such a lock by the C library's own attempt that does not wait, and where that is
//! refused queues beside the lock (see [`queue`](super::queue)) until somebody unlocks it. Threads
//! queue in the lock itself. So fibers do not stand in line with threads: among fibers that wait all
//! are woken by each unlock, and writers that wait keep new readers out only on locks made with
//! `PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP`, and only readers on fibers.
//!
//! The C library knows the writer by the number of its thread, and unlocks for it as for no other. A
//! fiber that writes leaves its own number there meanwhile, so that another fiber of its thread is not
//! taken for it.

use std::sync::atomic::{AtomicU32, Ordering};

use libc::{c_int, pthread_rwlock_t};

use super::deadline::Deadline;
use super::queue::{self, End, Place};
use super::{owner, watched};
use crate::real;

/// Where the C library keeps the writer: in both layouts of 64 bits.
const WRITER_AT: usize = 24;
/// The kind, as of pthread_rwlockattr_setkind_np(3).
const KIND_AT: usize = 48;
const PREFER_WRITER: u32 = 2;
/// Whether the lock is of several processes.
const SHARED_AT: usize = 28;

/// How long a fiber waits for a lock of several processes before it tries again.
const SHARED_WAIT: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// What is asked of the lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    Read,
    Write,
}

/// Takes the lock, on a fiber, by `deadline`.
///
/// # Safety
///
/// The lock is one, and stays one during the call.
pub(crate) unsafe fn lock(
    lock: *mut pthread_rwlock_t,
    me: u32,
    access: Access,
    deadline: Option<Deadline>,
) -> c_int {
    if deadline.is_some_and(|deadline| !deadline.is_valid()) {
        return libc::EINVAL;
    }
    // SAFETY: by the caller, here and below.
    unsafe {
        let me = holder(lock, me);
        if word(lock, WRITER_AT).load(Ordering::Relaxed) == me {
            return libc::EDEADLK;
        }
        // Not where writers wait that come first.
        let attempt = || {
            if waits_for_writers(lock, access) { libc::EBUSY } else { attempt(lock, me, access) }
        };
        let tried = attempt();
        if tried != libc::EBUSY {
            return tried;
        }
        let shared = is_shared(lock);
        // Those who prefer writers look whether there are some.
        let writer = (access == Access::Write).then(|| Place::take(writers_of(lock)));
        let ended = loop {
            let place = Place::take(lock.addr());
            // Between the first attempt and the place it may have been unlocked.
            let tried = attempt();
            if tried != libc::EBUSY {
                break tried;
            }
            if deadline.is_some_and(|deadline| deadline.has_passed()) {
                watched::give_way();
                break libc::ETIMEDOUT;
            }
            let soon = shared.then(|| Deadline::after(SHARED_WAIT));
            if place.wait(soon.or(deadline)) == End::TimedOut
                && deadline.is_some_and(|deadline| deadline.has_passed())
            {
                break libc::ETIMEDOUT;
            }
        };
        if let Some(writer) = writer {
            drop(writer);
            if ended != 0 {
                // Readers that waited because of this writer.
                unlocked(lock);
            }
        }
        ended
    }
}

/// Takes the lock if it can be had.
///
/// # Safety
///
/// As for [`lock`].
pub(crate) unsafe fn try_lock(lock: *mut pthread_rwlock_t, me: u32, access: Access) -> c_int {
    // SAFETY: by the caller, here and below.
    let error = if unsafe { waits_for_writers(lock, access) } {
        libc::EBUSY
    } else {
        // SAFETY: as above.
        unsafe { attempt(lock, holder(lock, me), access) }
    };
    if error == libc::EBUSY {
        watched::give_way();
    }
    error
}

/// Whether fibers wait that come before this one.
///
/// # Safety
///
/// As for [`lock`].
unsafe fn waits_for_writers(lock: *mut pthread_rwlock_t, access: Access) -> bool {
    // SAFETY: by the caller.
    access == Access::Read
        && unsafe { word(lock, KIND_AT) }.load(Ordering::Relaxed) == PREFER_WRITER
        && queue::is_awaited(writers_of(lock))
}

unsafe fn attempt(lock: *mut pthread_rwlock_t, me: u32, access: Access) -> c_int {
    // SAFETY: by the caller.
    unsafe {
        match access {
            Access::Read => real::pthread_rwlock_tryrdlock(lock),
            Access::Write => {
                let error = real::pthread_rwlock_trywrlock(lock);
                if error == 0 {
                    word(lock, WRITER_AT).store(me, Ordering::Relaxed);
                }
                error
            }
        }
    }
}

/// Unlocks, on a fiber.
///
/// # Safety
///
/// As for [`lock`].
pub(crate) unsafe fn unlock(lock: *mut pthread_rwlock_t, me: u32) -> c_int {
    // SAFETY: by the caller; `gettid` has no conditions.
    unsafe {
        let writer = word(lock, WRITER_AT);
        if writer.load(Ordering::Relaxed) == holder(lock, me) {
            writer.store(libc::gettid() as u32, Ordering::Relaxed);
        }
        let error = real::pthread_rwlock_unlock(lock);
        unlocked(lock);
        error
    }
}

unsafe fn is_shared(lock: *mut pthread_rwlock_t) -> bool {
    // SAFETY: by the caller.
    unsafe { word(lock, SHARED_AT) }.load(Ordering::Relaxed) & 0xff != 0
}

/// The number by which `me` writes.
unsafe fn holder(lock: *mut pthread_rwlock_t, me: u32) -> u32 {
    // SAFETY: by the caller.
    if unsafe { is_shared(lock) } { owner::in_shared_memory(me) } else { me }
}

/// Has the fibers that wait for the lock try again.
pub(crate) fn unlocked(lock: *mut pthread_rwlock_t) {
    queue::wake(lock.addr(), usize::MAX);
}

/// The address under which writers that wait are noted; nobody wakes them there.
fn writers_of(lock: *mut pthread_rwlock_t) -> usize {
    lock.addr() | queue::WRITERS
}

/// # Safety
///
/// The lock is one while the reference is used.
unsafe fn word<'a>(lock: *mut pthread_rwlock_t, at: usize) -> &'a AtomicU32 {
    // SAFETY: by the caller; `is_as_expected` has shown what is there.
    unsafe { AtomicU32::from_ptr(lock.cast::<u8>().add(at).cast()) }
}

/// Whether the C library of this process has its words where this module says. On a plain thread.
pub(crate) fn is_as_expected() -> bool {
    // SAFETY: locks of our own, initialised before they are used and destroyed after, on one thread.
    unsafe {
        let mut attributes: libc::pthread_rwlockattr_t = std::mem::zeroed();
        let mut object: pthread_rwlock_t = std::mem::zeroed();
        let lock = &raw mut object;
        libc::pthread_rwlockattr_init(&raw mut attributes);
        libc::pthread_rwlockattr_setpshared(&raw mut attributes, libc::PTHREAD_PROCESS_SHARED);
        real::pthread_rwlockattr_setkind_np(&raw mut attributes, PREFER_WRITER as c_int);
        libc::pthread_rwlock_init(lock, &raw const attributes);
        let show = || [WRITER_AT, KIND_AT].map(|at| word(lock, at).load(Ordering::Relaxed));
        let shared = word(lock, SHARED_AT).load(Ordering::Relaxed) & 0xff;
        let free = show();
        real::pthread_rwlock_trywrlock(lock);
        let taken = show();
        real::pthread_rwlock_unlock(lock);
        let after = show();
        libc::pthread_rwlock_destroy(lock);
        libc::pthread_rwlockattr_destroy(&raw mut attributes);
        let thread = libc::gettid() as u32;
        free == [0, PREFER_WRITER]
            && shared != 0
            && taken == [thread, PREFER_WRITER]
            && after == [0, PREFER_WRITER]
    }
}
