//! pthread_join(3): a thread waits for the thread.
//!
//! The C library waits at a word that is not ours to know, in which it also keeps that somebody joins.
//! So another thread makes the call, one for each fiber that waits, and the fiber waits for it.
//!
//! What that thread cannot see, since it is another: that a thread joins itself, which is asked here;
//! and that two threads join each other, which then both wait, as POSIX has it.

use std::ffi::{c_int, c_void};

use kapok::sync::oneshot;
use libc::pthread_t;

use super::deadline::Deadline;
use crate::call::Call;
use crate::signals::mask::{Blocked, aside};
use crate::{real, threads};

struct Joined(c_int, *mut c_void);
// SAFETY: what a thread returns is its joiner's, on whichever thread.
unsafe impl Send for Joined {}

/// Waits for the thread to end.
///
/// # Safety
///
/// The thread has not been joined or detached; `value` is null or valid for writing.
pub(super) unsafe fn join(
    call: &Call,
    thread: pthread_t,
    value: *mut *mut c_void,
    deadline: Option<Deadline>,
) -> c_int {
    if let Some(fiber) = threads::fiber_of(thread) {
        // SAFETY: by the caller.
        return unsafe { threads::join(call, fiber, value, deadline) };
    }
    // SAFETY: no conditions, and by the caller.
    unsafe {
        if thread == libc::pthread_self() {
            return libc::EDEADLK;
        }
        let tried = real::pthread_tryjoin_np(thread, value);
        if tried != libc::EBUSY {
            return tried;
        }
    }
    if let Some(deadline) = deadline {
        if !deadline.is_valid() {
            return libc::EINVAL;
        }
        if deadline.has_passed() {
            return libc::ETIMEDOUT;
        }
    }
    let (done, mut joined) = oneshot::channel();
    let wait = move || {
        let mut ended = std::ptr::null_mut();
        // SAFETY: by the caller of the fiber, which waits; the time is a local.
        let error = unsafe {
            match &deadline {
                Some(Deadline { clock, at }) => {
                    real::pthread_clockjoin_np(thread, &raw mut ended, *clock, at)
                }
                None => real::pthread_join(thread, &raw mut ended),
            }
        };
        let _ = done.send(Joined(error, ended));
    };
    let spawned = {
        let _blocked = Blocked::all();
        std::thread::Builder::new().name("kapok-join".into()).stack_size(128 << 10).spawn(wait)
    };
    if spawned.is_err() {
        return libc::EAGAIN;
    }
    // The thread has been joined when its end is told, whatever becomes of this fiber: so nothing
    // interrupts the wait.
    call.note_suspension();
    let waited = kapok::shield(|| aside(|| call.inside.wait(joined.recv_async(), None)));
    let Ok(Ok(Joined(error, ended))) = waited else { return libc::EAGAIN };
    if error == 0 && !value.is_null() {
        // SAFETY: by the caller.
        unsafe { *value = ended };
    }
    error
}
