//! `pthread_cond_t` on fibers.
//!
//! How the C library queues threads at a condition is its own affair and changes from release to
//! release. So fibers queue beside it (see [`queue`](super::queue)), and a signal wakes the first fiber
//! and the C library's first thread. If both wait, one of them wakes up for no reason, which POSIX
//! allows; that neither is forgotten needs no knowledge of the other's queue.
//!
//! A condition that is shared between processes may be signalled by one where no fiber is known: there
//! a fiber looks at its condition every few milliseconds, as if woken for no reason.

use std::sync::OnceLock;

use libc::{c_int, pthread_cond_t, pthread_mutex_t, timespec};

use super::deadline::Deadline;
use super::queue::{self, End, Place};
use super::{mutex, watched};

/// How long a fiber waits at a condition of several processes before it wakes up for no reason.
const SHARED_WAIT: timespec = timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// Waits, on a fiber, until the condition is signalled or `deadline` has passed, without the mutex,
/// and takes the mutex again.
///
/// # Safety
///
/// Condition and mutex are such, and stay such during the call.
pub(crate) unsafe fn wait(
    condition: *mut pthread_cond_t,
    mutex: *mut pthread_mutex_t,
    me: u32,
    deadline: Option<Deadline>,
) -> c_int {
    if deadline.is_some_and(|deadline| !deadline.is_valid()) {
        return libc::EINVAL;
    }
    // SAFETY: by the caller.
    let shared = unsafe { flags(condition) }.shared;
    let place = Place::take(condition.addr());
    // SAFETY: by the caller.
    let error = unsafe { mutex::unlock_to_wait(mutex, me) };
    if error != 0 {
        // A signal that went to this fiber meanwhile is another's.
        if !place.leave() {
            signal(condition);
        }
        return error;
    }
    let soon = shared.then(|| Deadline::after(SHARED_WAIT));
    let ended = match (deadline, soon) {
        (Some(deadline), _) if deadline.has_passed() => {
            // The mutex is free for once: for those who wait for it.
            watched::give_way();
            if place.leave() { End::TimedOut } else { End::Woken }
        }
        (_, Some(soon)) => {
            place.wait(Some(soon));
            End::Woken
        }
        (deadline, None) => place.wait(deadline),
    };
    drop(place);
    // SAFETY: by the caller.
    let error = unsafe { mutex::lock_after_wait(mutex, me) };
    match (error, ended) {
        (0, End::TimedOut) => libc::ETIMEDOUT,
        (error, _) => error,
    }
}

/// Wakes a fiber that waits.
pub(crate) fn signal(condition: *mut pthread_cond_t) {
    queue::wake(condition.addr(), 1);
}

/// Wakes all fibers that wait.
pub(crate) fn broadcast(condition: *mut pthread_cond_t) {
    queue::wake(condition.addr(), usize::MAX);
}

/// The clock of the condition's deadlines.
///
/// # Safety
///
/// The condition is one.
pub(crate) unsafe fn clock(condition: *mut pthread_cond_t) -> libc::clockid_t {
    // SAFETY: by the caller.
    if unsafe { flags(condition) }.monotonic { libc::CLOCK_MONOTONIC } else { libc::CLOCK_REALTIME }
}

/// What a condition was initialised with.
#[derive(Clone, Copy, Debug)]
struct Flags {
    shared: bool,
    monotonic: bool,
}

/// Where the C library keeps that: found by initialising conditions and looking.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Layout {
    shared: (usize, u8),
    monotonic: (usize, u8),
}

static LAYOUT: OnceLock<Option<Layout>> = OnceLock::new();

type Bytes = [u8; size_of::<pthread_cond_t>()];

/// Whether it is known where conditions keep their clock. On a plain thread.
pub(crate) fn is_as_expected() -> bool {
    LAYOUT.get_or_init(find_layout).is_some()
}

unsafe fn flags(condition: *mut pthread_cond_t) -> Flags {
    let Some(Some(layout)) = LAYOUT.get() else {
        return Flags { shared: false, monotonic: false };
    };
    let is_set = |(byte, bit): (usize, u8)| {
        // SAFETY: by the caller, and `find_layout` has found the byte in a condition. It is in a word
        // that is changed by atomic operations only.
        let byte =
            unsafe { std::sync::atomic::AtomicU8::from_ptr(condition.cast::<u8>().add(byte)) };
        byte.load(std::sync::atomic::Ordering::Relaxed) & bit != 0
    };
    Flags { shared: is_set(layout.shared), monotonic: is_set(layout.monotonic) }
}

fn find_layout() -> Option<Layout> {
    let plain = initialised(false, libc::CLOCK_REALTIME)?;
    if plain != [0; size_of::<pthread_cond_t>()] {
        // Not what `PTHREAD_COND_INITIALIZER` is.
        return None;
    }
    let one_bit = |bytes: Bytes| {
        let mut set = (0..).zip(bytes).filter(|(_, byte)| *byte != 0);
        let found = set.next()?;
        (set.next().is_none() && found.1.is_power_of_two()).then_some(found)
    };
    Some(Layout {
        shared: one_bit(initialised(true, libc::CLOCK_REALTIME)?)?,
        monotonic: one_bit(initialised(false, libc::CLOCK_MONOTONIC)?)?,
    })
}

fn initialised(shared: bool, clock: libc::clockid_t) -> Option<Bytes> {
    // SAFETY: objects of our own, initialised before they are used and destroyed after; a condition is
    // plain words, so its bytes can be read.
    unsafe {
        let mut attributes: libc::pthread_condattr_t = std::mem::zeroed();
        let mut condition: pthread_cond_t = std::mem::zeroed();
        libc::pthread_condattr_init(&raw mut attributes);
        let with =
            if shared { libc::PTHREAD_PROCESS_SHARED } else { libc::PTHREAD_PROCESS_PRIVATE };
        libc::pthread_condattr_setpshared(&raw mut attributes, with);
        libc::pthread_condattr_setclock(&raw mut attributes, clock);
        let error = libc::pthread_cond_init(&raw mut condition, &raw const attributes);
        let bytes = (&raw const condition).cast::<Bytes>().read();
        libc::pthread_cond_destroy(&raw mut condition);
        libc::pthread_condattr_destroy(&raw mut attributes);
        (error == 0).then_some(bytes)
    }
}
