//! The calls that wait and own nothing: on semaphores, for threads, and for nothing but a turn.

use std::ffi::{c_int, c_void};

use libc::{clockid_t, pthread_t, sem_t, timespec};

use super::deadline::{Deadline, is_known_clock};
use super::{join, semaphore};
use crate::call::Call;
use crate::errno::{self, Errno};
use crate::hook::hooks;
use crate::kernel::kernel;
use crate::signals::mask::aside;
use crate::{real, threads};

/// Lets other fibers run, and other threads.
fn give_way(call: &Call) {
    // SAFETY: it takes nothing.
    let _ = unsafe { kernel!(libc::SYS_sched_yield, 0, 0, 0, 0, 0) };
    if !crate::allocator::has_called() {
        call.note_suspension();
        aside(|| call.inside.yield_now());
    }
}

hooks! {
    /// sched_yield(2).
    fn sched_yield() -> c_int = |call| {
        give_way(call);
        Ok(0)
    }

    /// The same, by the C library's own name.
    fn __sched_yield() -> c_int = |call| {
        give_way(call);
        Ok(0)
    }

    /// thrd_yield(3).
    fn thrd_yield() -> () = |call| {
        give_way(call);
        Ok(())
    }

    /// sem_trywait(3). Who tries again and again lets others run, as everybody who does not wait.
    fn sem_trywait(semaphore: *mut sem_t) -> c_int = |_call| {
        if real::sem_trywait(semaphore) == 0 { Ok(0) } else { Err(Errno(errno::get())) }
    }

    /// sem_wait(3).
    fn sem_wait(semaphore: *mut sem_t) -> c_int = |call| {
        semaphore::wait(call, semaphore, None)
    }

    /// sem_timedwait(3).
    fn sem_timedwait(semaphore: *mut sem_t, at: *const timespec) -> c_int = |call| {
        semaphore::wait(call, semaphore, Deadline::new(libc::CLOCK_REALTIME, at))
    }

    /// sem_clockwait(3).
    fn sem_clockwait(semaphore: *mut sem_t, clock: clockid_t, at: *const timespec) -> c_int
        = |call| {
            if !is_known_clock(clock) {
                return Err(Errno(libc::EINVAL));
            }
            semaphore::wait(call, semaphore, Deadline::new(clock, at))
        }

    /// pthread_join(3).
    fn pthread_join(thread: pthread_t, value: *mut *mut c_void) -> c_int = before {
        if let Some(fiber) = threads::fiber_of(thread)
            && !kapok::on_fiber()
        {
            // SAFETY: by the caller.
            return unsafe { threads::join_on_thread(fiber, value) };
        }
    }
    |call| {
        Ok(join::join(call, thread, value, None))
    }

    /// pthread_timedjoin_np(3).
    fn pthread_timedjoin_np(
        thread: pthread_t,
        value: *mut *mut c_void,
        at: *const timespec,
    ) -> c_int = |call| {
        Ok(join::join(call, thread, value, Deadline::new(libc::CLOCK_REALTIME, at)))
    }

    /// pthread_clockjoin_np(3).
    fn pthread_clockjoin_np(
        thread: pthread_t,
        value: *mut *mut c_void,
        clock: clockid_t,
        at: *const timespec,
    ) -> c_int = |call| {
        if !is_known_clock(clock) {
            return Ok(libc::EINVAL);
        }
        Ok(join::join(call, thread, value, Deadline::new(clock, at)))
    }

    /// thrd_join(3).
    fn thrd_join(thread: pthread_t, value: *mut c_int) -> c_int = |call| {
        let mut ended = std::ptr::null_mut();
        let error = join::join(call, thread, &raw mut ended, None);
        if error == 0 && !value.is_null() {
            *value = ended.addr() as c_int;
        }
        // `thrd_success`, `thrd_error`.
        Ok(if error == 0 { 0 } else { 2 })
    }
}
