//! Mutexes whose holder the kernel knows by the number of its thread: robust ones, and those that
//! inherit or have a priority.
//!
//! They belong to the fiber's thread, as the kernel has it: a robust mutex is given up with
//! `EOWNERDEAD` when the *thread* ends, and priority is lent to the thread. What the kernel cannot keep
//! apart, two fibers of one thread, is kept apart here, by a note of which fiber took the mutex.
//!
//! A fiber does not queue for such a mutex, because it would do so in its thread's name: it tries
//! again, first soon and then less often. So there is no order among fibers that wait, a parked fiber
//! lends nobody its priority, and none is ever forgotten.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kapok::interpose;
use libc::{c_int, pthread_mutex_t};

use super::deadline::Deadline;
use super::mutex;
use super::per_process::PerProcess;
use crate::real;
use crate::signals::mask::aside;

const FIRST_NAP: Duration = Duration::from_micros(200);
const LONGEST_NAP: Duration = Duration::from_millis(10);

/// Which fiber has a mutex, by its address, and how often.
type Held = HashMap<usize, (u32, u32), BuildHasherDefault<DefaultHasher>>;

static HELD: PerProcess<Mutex<Held>> = {
    static FIRST: Mutex<Held> = Mutex::new(HashMap::with_hasher(BuildHasherDefault::new()));
    PerProcess::new(&FIRST)
};

/// Never held over a wait.
fn held() -> MutexGuard<'static, Held> {
    HELD.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// In the child of a fork: there the kernel has another thread, which holds nothing.
pub(super) fn forget() {
    HELD.renew(Mutex::new(HashMap::with_hasher(BuildHasherDefault::new())));
}

/// # Safety
///
/// As for [`lock`](super::mutex::lock), here and below.
pub(super) unsafe fn lock(
    mutex: *mut pthread_mutex_t,
    me: u32,
    deadline: Option<Deadline>,
) -> c_int {
    let mut nap = FIRST_NAP;
    loop {
        // SAFETY: by the caller.
        match unsafe { try_lock(mutex, me) } {
            libc::EBUSY => {}
            result => return result,
        }
        if let Some(deadline) = deadline {
            if !deadline.is_valid() {
                return libc::EINVAL;
            }
            if deadline.has_passed() {
                return libc::ETIMEDOUT;
            }
        }
        pause(nap);
        nap = (nap * 2).min(LONGEST_NAP);
    }
}

fn pause(nap: Duration) {
    match interpose::enter() {
        Some(inside) => {
            super::note_suspension();
            let nap = kapok::time::sleep_async(nap);
            let _ = kapok::shield(|| aside(|| inside.wait(nap, None)));
        }
        None => std::thread::sleep(nap),
    }
}

/// Who took the mutex, of this thread's fibers, and how often. What is noted may be over: with its thread,
/// or with another mutex at this address.
///
/// # Safety
///
/// As for [`lock`].
unsafe fn holder(held: &Held, mutex: *mut pthread_mutex_t) -> Option<(u32, u32)> {
    // SAFETY: by the caller.
    let thread = unsafe { mutex::thread_of_kernel_owned(mutex) };
    // SAFETY: no conditions.
    let mine = unsafe { libc::gettid() } as u32;
    held.get(&mutex.addr()).copied().filter(|_| thread == mine)
}

pub(super) unsafe fn try_lock(mutex: *mut pthread_mutex_t, me: u32) -> c_int {
    let mut held = held();
    // SAFETY: by the caller.
    let before = unsafe { holder(&held, mutex) };
    if before.is_some_and(|(holder, _)| holder != me) {
        return libc::EBUSY;
    }
    // SAFETY: by the caller.
    let result = unsafe { real::pthread_mutex_trylock(mutex) };
    if result == 0 || result == libc::EOWNERDEAD {
        let count = before.map_or(0, |(_, count)| count);
        held.insert(mutex.addr(), (me, count + 1));
    }
    result
}

pub(super) unsafe fn unlock(mutex: *mut pthread_mutex_t, me: u32) -> c_int {
    let mut held = held();
    // SAFETY: by the caller.
    let before = unsafe { holder(&held, mutex) };
    if before.is_some_and(|(holder, _)| holder != me) {
        return libc::EPERM;
    }
    // SAFETY: by the caller.
    let result = unsafe { real::pthread_mutex_unlock(mutex) };
    if let (0, Some((_, count))) = (result, before) {
        if count > 1 {
            held.insert(mutex.addr(), (me, count - 1));
        } else {
            held.remove(&mutex.addr());
        }
    }
    result
}
