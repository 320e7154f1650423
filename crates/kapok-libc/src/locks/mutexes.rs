//! The calls on mutexes and conditions, POSIX's and C11's.

use std::ffi::c_int;

use libc::{clockid_t, pthread_cond_t, pthread_mutex_t, timespec};

use super::condition;
use super::deadline::{Deadline, is_known_clock};
use super::mutex;
use super::watched::watched;

/// What C11's functions return, by what POSIX's return.
fn c11(error: c_int) -> c_int {
    const SUCCESS: c_int = 0;
    const BUSY: c_int = 1;
    const ERROR: c_int = 2;
    const NO_MEMORY: c_int = 3;
    const TIMED_OUT: c_int = 4;
    match error {
        0 => SUCCESS,
        libc::EBUSY => BUSY,
        libc::ENOMEM => NO_MEMORY,
        libc::ETIMEDOUT => TIMED_OUT,
        _ => ERROR,
    }
}

watched! {
    /// pthread_mutex_lock(3).
    fn pthread_mutex_lock(mutex: *mut pthread_mutex_t) -> c_int
        = |me| { mutex::lock(mutex, me, None) }, |real| { real(mutex) };

    /// pthread_mutex_trylock(3).
    fn pthread_mutex_trylock(mutex: *mut pthread_mutex_t) -> c_int
        = |me| { mutex::try_lock(mutex, me) }, |real| { real(mutex) };

    /// pthread_mutex_timedlock(3).
    fn pthread_mutex_timedlock(mutex: *mut pthread_mutex_t, at: *const timespec) -> c_int
        = |me| { mutex::lock(mutex, me, Deadline::new(libc::CLOCK_REALTIME, at)) },
        |real| { real(mutex, at) };

    /// pthread_mutex_clocklock(3).
    fn pthread_mutex_clocklock(
        mutex: *mut pthread_mutex_t,
        clock: clockid_t,
        at: *const timespec,
    ) -> c_int
        = |me| {
            if is_known_clock(clock) {
                mutex::lock(mutex, me, Deadline::new(clock, at))
            } else {
                libc::EINVAL
            }
        },
        |real| { real(mutex, clock, at) };

    /// pthread_mutex_unlock(3).
    fn pthread_mutex_unlock(mutex: *mut pthread_mutex_t) -> c_int
        = |me| { mutex::unlock(mutex, me) }, |real| { real(mutex) };

    /// pthread_cond_wait(3).
    fn pthread_cond_wait(condition: *mut pthread_cond_t, mutex: *mut pthread_mutex_t) -> c_int
        = |me| { condition::wait(condition, mutex, me, None) }, |real| { real(condition, mutex) };

    /// pthread_cond_timedwait(3).
    fn pthread_cond_timedwait(
        condition: *mut pthread_cond_t,
        mutex: *mut pthread_mutex_t,
        at: *const timespec,
    ) -> c_int
        = |me| {
            let deadline = Deadline::new(condition::clock(condition), at);
            condition::wait(condition, mutex, me, deadline)
        },
        |real| { real(condition, mutex, at) };

    /// pthread_cond_clockwait(3).
    fn pthread_cond_clockwait(
        condition: *mut pthread_cond_t,
        mutex: *mut pthread_mutex_t,
        clock: clockid_t,
        at: *const timespec,
    ) -> c_int
        = |me| {
            if is_known_clock(clock) {
                condition::wait(condition, mutex, me, Deadline::new(clock, at))
            } else {
                libc::EINVAL
            }
        },
        |real| { real(condition, mutex, clock, at) };

    /// pthread_cond_signal(3).
    fn pthread_cond_signal(condition: *mut pthread_cond_t) -> c_int
        = |_me| { condition::signal(condition); crate::real::pthread_cond_signal(condition) },
        |real| { condition::signal(condition); real(condition) };

    /// pthread_cond_broadcast(3).
    fn pthread_cond_broadcast(condition: *mut pthread_cond_t) -> c_int
        = |_me| { condition::broadcast(condition); crate::real::pthread_cond_broadcast(condition) },
        |real| { condition::broadcast(condition); real(condition) };

    /// mtx_lock(3).
    fn mtx_lock(mutex: *mut pthread_mutex_t) -> c_int
        = |me| { c11(mutex::lock(mutex, me, None)) }, |real| { real(mutex) };

    /// mtx_trylock(3).
    fn mtx_trylock(mutex: *mut pthread_mutex_t) -> c_int
        = |me| { c11(mutex::try_lock(mutex, me)) }, |real| { real(mutex) };

    /// mtx_timedlock(3).
    fn mtx_timedlock(mutex: *mut pthread_mutex_t, at: *const timespec) -> c_int
        = |me| { c11(mutex::lock(mutex, me, Deadline::new(libc::CLOCK_REALTIME, at))) },
        |real| { real(mutex, at) };

    /// mtx_unlock(3).
    fn mtx_unlock(mutex: *mut pthread_mutex_t) -> c_int
        = |me| { c11(mutex::unlock(mutex, me)) }, |real| { real(mutex) };

    /// cnd_wait(3).
    fn cnd_wait(condition: *mut pthread_cond_t, mutex: *mut pthread_mutex_t) -> c_int
        = |me| { c11(condition::wait(condition, mutex, me, None)) },
        |real| { real(condition, mutex) };

    /// cnd_timedwait(3).
    fn cnd_timedwait(
        condition: *mut pthread_cond_t,
        mutex: *mut pthread_mutex_t,
        at: *const timespec,
    ) -> c_int
        = |me| {
            let deadline = Deadline::new(libc::CLOCK_REALTIME, at);
            c11(condition::wait(condition, mutex, me, deadline))
        },
        |real| { real(condition, mutex, at) };

    /// cnd_signal(3).
    fn cnd_signal(condition: *mut pthread_cond_t) -> c_int
        = |_me| { condition::signal(condition); c11(crate::real::pthread_cond_signal(condition)) },
        |real| { condition::signal(condition); real(condition) };

    /// cnd_broadcast(3).
    fn cnd_broadcast(condition: *mut pthread_cond_t) -> c_int
        = |_me| {
            condition::broadcast(condition);
            c11(crate::real::pthread_cond_broadcast(condition))
        },
        |real| { condition::broadcast(condition); real(condition) };
}
