//! The functions under test, as C has them.

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};

use libc::{clockid_t, pthread_cond_t, pthread_mutex_t, timespec};

unsafe extern "C" {
    pub(crate) fn pthread_mutex_clocklock(
        mutex: *mut pthread_mutex_t,
        clock: clockid_t,
        at: *const timespec,
    ) -> c_int;
    pub(crate) fn pthread_cond_clockwait(
        condition: *mut pthread_cond_t,
        mutex: *mut pthread_mutex_t,
        clock: clockid_t,
        at: *const timespec,
    ) -> c_int;
    pub(crate) fn pthread_rwlock_timedrdlock(
        lock: *mut libc::pthread_rwlock_t,
        at: *const timespec,
    ) -> c_int;
    pub(crate) fn pthread_rwlock_timedwrlock(
        lock: *mut libc::pthread_rwlock_t,
        at: *const timespec,
    ) -> c_int;
    pub(crate) fn pthread_once(once: *mut c_int, initialise: extern "C" fn()) -> c_int;
    pub(crate) fn sem_clockwait(
        semaphore: *mut libc::sem_t,
        clock: clockid_t,
        at: *const timespec,
    ) -> c_int;
    pub(crate) fn pthread_timedjoin_np(
        thread: libc::pthread_t,
        value: *mut *mut c_void,
        at: *const timespec,
    ) -> c_int;
}

/// An object of the C library in shared memory of this process.
pub(crate) struct Object<T>(UnsafeCell<T>);

// SAFETY: the C library's objects are made to be shared by threads.
unsafe impl<T> Sync for Object<T> {}
// SAFETY: and to be made by one and used by another.
unsafe impl<T> Send for Object<T> {}

impl<T> Object<T> {
    pub(crate) fn get(&self) -> *mut T {
        self.0.get()
    }

    pub(crate) fn made(make: impl FnOnce(*mut T) -> c_int) -> Object<T> {
        // SAFETY: plain words, for which zero is a value.
        let object = Object(UnsafeCell::new(unsafe { std::mem::zeroed() }));
        assert_eq!(make(object.get()), 0);
        object
    }
}

pub(crate) type Mutex = Object<pthread_mutex_t>;

/// A mutex of this type, and of this protocol and robustness.
pub(crate) fn mutex(kind: c_int, protocol: c_int, robust: bool) -> Mutex {
    Object::made(|mutex| {
        // SAFETY: attributes are initialised before they are used, and destroyed after.
        unsafe {
            let mut attributes: libc::pthread_mutexattr_t = std::mem::zeroed();
            let attributes = &raw mut attributes;
            libc::pthread_mutexattr_init(attributes);
            libc::pthread_mutexattr_settype(attributes, kind);
            libc::pthread_mutexattr_setprotocol(attributes, protocol);
            if robust {
                libc::pthread_mutexattr_setrobust(attributes, libc::PTHREAD_MUTEX_ROBUST);
            }
            let error = libc::pthread_mutex_init(mutex, attributes);
            libc::pthread_mutexattr_destroy(attributes);
            error
        }
    })
}

pub(crate) fn plain(kind: c_int) -> Mutex {
    mutex(kind, libc::PTHREAD_PRIO_NONE, false)
}

impl Mutex {
    pub(crate) fn lock(&self) -> c_int {
        // SAFETY: initialised, and shared as such objects are.
        unsafe { libc::pthread_mutex_lock(self.get()) }
    }

    pub(crate) fn try_lock(&self) -> c_int {
        // SAFETY: as above.
        unsafe { libc::pthread_mutex_trylock(self.get()) }
    }

    pub(crate) fn unlock(&self) -> c_int {
        // SAFETY: as above.
        unsafe { libc::pthread_mutex_unlock(self.get()) }
    }

    pub(crate) fn lock_by(&self, clock: clockid_t, at: timespec) -> c_int {
        // SAFETY: as above; a local.
        unsafe { pthread_mutex_clocklock(self.get(), clock, &raw const at) }
    }
}

pub(crate) type Condition = Object<pthread_cond_t>;

pub(crate) fn condition(clock: clockid_t) -> Condition {
    Object::made(|condition| {
        // SAFETY: as for mutexes.
        unsafe {
            let mut attributes: libc::pthread_condattr_t = std::mem::zeroed();
            let attributes = &raw mut attributes;
            libc::pthread_condattr_init(attributes);
            libc::pthread_condattr_setclock(attributes, clock);
            let error = libc::pthread_cond_init(condition, attributes);
            libc::pthread_condattr_destroy(attributes);
            error
        }
    })
}

impl Condition {
    pub(crate) fn wait(&self, mutex: &Mutex) -> c_int {
        // SAFETY: initialised, and shared as such objects are.
        unsafe { libc::pthread_cond_wait(self.get(), mutex.get()) }
    }

    pub(crate) fn wait_until(&self, mutex: &Mutex, at: timespec) -> c_int {
        // SAFETY: as above; a local.
        unsafe { libc::pthread_cond_timedwait(self.get(), mutex.get(), &raw const at) }
    }

    pub(crate) fn signal(&self) {
        // SAFETY: as above.
        assert_eq!(unsafe { libc::pthread_cond_signal(self.get()) }, 0);
    }

    pub(crate) fn broadcast(&self) {
        // SAFETY: as above.
        assert_eq!(unsafe { libc::pthread_cond_broadcast(self.get()) }, 0);
    }
}

/// So many milliseconds from now.
pub(crate) fn soon(clock: clockid_t, millis: i64) -> timespec {
    let mut now = timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to a local.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    let nanos = now.tv_nsec + millis * 1_000_000;
    timespec {
        tv_sec: now.tv_sec + nanos.div_euclid(1_000_000_000),
        tv_nsec: nanos.rem_euclid(1_000_000_000),
    }
}
