//! The calls on read-write locks, barriers and `pthread_once_t`, and syscall(2).

use std::ffi::{c_int, c_long};

use libc::{clockid_t, pthread_barrier_t, pthread_once_t, pthread_rwlock_t, timespec};

use super::deadline::{Deadline, is_known_clock};
use super::read_write::{self, Access};
use super::watched::{self, watched};
use super::{barrier, owner};
use crate::errno::Errno;
use crate::hook::Hook;

/// After a plain thread's wait to write: fibers may have been refused because of it.
fn given_up(error: c_int, lock: *mut pthread_rwlock_t) -> c_int {
    if error != 0 {
        read_write::unlocked(lock);
    }
    error
}

watched! {
    /// pthread_rwlock_rdlock(3).
    fn pthread_rwlock_rdlock(lock: *mut pthread_rwlock_t) -> c_int
        = |me| { read_write::lock(lock, me, Access::Read, None) }, |real| { real(lock) };

    /// pthread_rwlock_tryrdlock(3).
    fn pthread_rwlock_tryrdlock(lock: *mut pthread_rwlock_t) -> c_int
        = |me| { read_write::try_lock(lock, me, Access::Read) }, |real| { real(lock) };

    /// pthread_rwlock_timedrdlock(3).
    fn pthread_rwlock_timedrdlock(lock: *mut pthread_rwlock_t, at: *const timespec) -> c_int
        = |me| {
            read_write::lock(lock, me, Access::Read, Deadline::new(libc::CLOCK_REALTIME, at))
        },
        |real| { real(lock, at) };

    /// pthread_rwlock_clockrdlock(3).
    fn pthread_rwlock_clockrdlock(
        lock: *mut pthread_rwlock_t,
        clock: clockid_t,
        at: *const timespec,
    ) -> c_int
        = |me| {
            if is_known_clock(clock) {
                read_write::lock(lock, me, Access::Read, Deadline::new(clock, at))
            } else {
                libc::EINVAL
            }
        },
        |real| { real(lock, clock, at) };

    /// pthread_rwlock_wrlock(3).
    fn pthread_rwlock_wrlock(lock: *mut pthread_rwlock_t) -> c_int
        = |me| { read_write::lock(lock, me, Access::Write, None) }, |real| { real(lock) };

    /// pthread_rwlock_trywrlock(3).
    fn pthread_rwlock_trywrlock(lock: *mut pthread_rwlock_t) -> c_int
        = |me| { read_write::try_lock(lock, me, Access::Write) }, |real| { real(lock) };

    /// pthread_rwlock_timedwrlock(3).
    fn pthread_rwlock_timedwrlock(lock: *mut pthread_rwlock_t, at: *const timespec) -> c_int
        = |me| {
            read_write::lock(lock, me, Access::Write, Deadline::new(libc::CLOCK_REALTIME, at))
        },
        |real| { given_up(real(lock, at), lock) };

    /// pthread_rwlock_clockwrlock(3).
    fn pthread_rwlock_clockwrlock(
        lock: *mut pthread_rwlock_t,
        clock: clockid_t,
        at: *const timespec,
    ) -> c_int
        = |me| {
            if is_known_clock(clock) {
                read_write::lock(lock, me, Access::Write, Deadline::new(clock, at))
            } else {
                libc::EINVAL
            }
        },
        |real| { given_up(real(lock, clock, at), lock) };

    /// pthread_rwlock_unlock(3).
    fn pthread_rwlock_unlock(lock: *mut pthread_rwlock_t) -> c_int
        = |me| { read_write::unlock(lock, me) },
        |real| {
            let error = real(lock);
            read_write::unlocked(lock);
            error
        };

    /// pthread_barrier_wait(3).
    fn pthread_barrier_wait(barrier: *mut pthread_barrier_t) -> c_int
        = |_me| { barrier::wait_for_all(barrier) }, |real| { real(barrier) };

    /// pthread_barrier_destroy(3).
    fn pthread_barrier_destroy(barrier: *mut pthread_barrier_t) -> c_int
        = |_me| {
            barrier::wait_until_left(barrier);
            crate::real::pthread_barrier_destroy(barrier)
        },
        |real| { real(barrier) };
}

static SYSCALL: Hook = Hook::new(c"syscall", syscall as *const ());

/// syscall(2). What it is that is called decides.
///
/// # Safety
///
/// As for the C library's function of this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn syscall(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    if watched::is_past(&SYSCALL) || !kapok::on_fiber() {
        super::parker::look(number, a);
        // SAFETY: by the caller.
        return unsafe { crate::real::syscall(number, a, b, c, d, e, f) };
    }
    let called = watched::on_fiber(&SYSCALL, || {
        // SAFETY: by the caller.
        unsafe { super::system::call(number, [a, b, c, d, e, f]) }
    });
    called.unwrap_or_else(|Errno(error)| {
        crate::errno::set(error);
        -1
    })
}

static ONCE: Hook = Hook::new(c"pthread_once", pthread_once as *const ());
static CALL_ONCE: Hook = Hook::new(c"call_once", call_once as *const ());

/// Those that are not made by the macro.
pub(crate) static BY_HAND: &[&Hook] = &[&ONCE, &CALL_ONCE, &SYSCALL];

/// pthread_once(3).
///
/// # Safety
///
/// As for the C library's function of this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn pthread_once(
    once: *mut pthread_once_t,
    initialise: unsafe extern "C-unwind" fn(),
) -> c_int {
    if watched::is_past(&ONCE) || owner::current().is_none() {
        // SAFETY: by the caller.
        return unsafe { crate::real::pthread_once(once, initialise) };
    }
    // Counted as one that answers at once: what it calls may unwind past a count at its end.
    ONCE.count_call(false);
    // SAFETY: by the caller.
    unsafe { super::once::once(once, initialise) }
}

/// call_once(3).
///
/// # Safety
///
/// As for the C library's function of this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C-unwind" fn call_once(
    once: *mut pthread_once_t,
    initialise: unsafe extern "C-unwind" fn(),
) {
    // SAFETY: by the caller; in glibc they are one.
    unsafe { pthread_once(once, initialise) };
}
