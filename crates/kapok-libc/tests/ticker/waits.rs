//! Waits for others by the less common calls: with a time limit, by a clock, once and at the end.

use std::os::unix::thread::JoinHandleExt;
use std::sync::mpsc::channel;

use libc::{
    clockid_t, pthread_barrier_t, pthread_cond_t, pthread_mutex_t, pthread_once_t,
    pthread_rwlock_t, pthread_t, sem_t, timespec,
};

use super::*;

const REAL: clockid_t = libc::CLOCK_REALTIME;
const MONOTONIC: clockid_t = libc::CLOCK_MONOTONIC;

unsafe extern "C" {
    fn mtx_lock(mutex: *mut pthread_mutex_t) -> c_int;
    fn mtx_timedlock(mutex: *mut pthread_mutex_t, at: *const timespec) -> c_int;
    fn mtx_unlock(mutex: *mut pthread_mutex_t) -> c_int;
    fn cnd_wait(condition: *mut pthread_cond_t, mutex: *mut pthread_mutex_t) -> c_int;
    fn cnd_timedwait(
        condition: *mut pthread_cond_t,
        mutex: *mut pthread_mutex_t,
        at: *const timespec,
    ) -> c_int;
    fn pthread_mutex_clocklock(
        mutex: *mut pthread_mutex_t,
        clock: clockid_t,
        at: *const timespec,
    ) -> c_int;
    fn pthread_cond_clockwait(
        condition: *mut pthread_cond_t,
        mutex: *mut pthread_mutex_t,
        clock: clockid_t,
        at: *const timespec,
    ) -> c_int;
    fn pthread_rwlock_timedrdlock(lock: *mut pthread_rwlock_t, at: *const timespec) -> c_int;
    fn pthread_rwlock_clockrdlock(
        lock: *mut pthread_rwlock_t,
        clock: clockid_t,
        at: *const timespec,
    ) -> c_int;
    fn pthread_rwlock_clockwrlock(
        lock: *mut pthread_rwlock_t,
        clock: clockid_t,
        at: *const timespec,
    ) -> c_int;
    fn sem_clockwait(semaphore: *mut sem_t, clock: clockid_t, at: *const timespec) -> c_int;
    fn pthread_timedjoin_np(
        thread: pthread_t,
        value: *mut *mut c_void,
        at: *const timespec,
    ) -> c_int;
    fn pthread_clockjoin_np(
        thread: pthread_t,
        value: *mut *mut c_void,
        clock: clockid_t,
        at: *const timespec,
    ) -> c_int;
    fn thrd_join(thread: pthread_t, value: *mut c_int) -> c_int;
    fn pthread_once(once: *mut pthread_once_t, initialise: extern "C" fn()) -> c_int;
    fn call_once(once: *mut pthread_once_t, initialise: extern "C" fn());
}

/// Locks, semaphores and conditions.
pub(super) fn limits() {
    use libc::{
        pthread_mutex_lock, pthread_mutex_unlock, pthread_rwlock_unlock, pthread_rwlock_wrlock,
    };
    held::<pthread_mutex_t>("mtx_timedlock", mtx_lock, mtx_unlock, |at| {
        // SAFETY: a lock that is there, and a local, for all of these.
        unsafe { mtx_timedlock(at, &far(REAL)) }
    });
    let (lock, unlock) = (pthread_mutex_lock, pthread_mutex_unlock);
    held::<pthread_mutex_t>("pthread_mutex_clocklock", lock, unlock, |at| {
        // SAFETY: as above.
        unsafe { pthread_mutex_clocklock(at, MONOTONIC, &far(MONOTONIC)) }
    });
    let takes: [(&str, fn(*mut pthread_rwlock_t) -> c_int); 3] = [
        // SAFETY: as above.
        ("pthread_rwlock_timedrdlock", |at| unsafe { pthread_rwlock_timedrdlock(at, &far(REAL)) }),
        // SAFETY: as above.
        ("pthread_rwlock_clockrdlock", |at| unsafe {
            pthread_rwlock_clockrdlock(at, MONOTONIC, &far(MONOTONIC))
        }),
        // SAFETY: as above.
        ("pthread_rwlock_clockwrlock", |at| unsafe {
            pthread_rwlock_clockwrlock(at, MONOTONIC, &far(MONOTONIC))
        }),
    ];
    for (name, take) in takes {
        held(name, pthread_rwlock_wrlock, pthread_rwlock_unlock, take);
    }

    let semaphore = Zeroed::<sem_t>::new();
    let there = Arc::clone(&semaphore);
    // SAFETY: a semaphore that is there; all zeros is an empty one.
    later(move || assert_eq!(unsafe { libc::sem_post(there.at()) }, 0));
    beside_a_ticker("sem_clockwait", move || {
        // SAFETY: as above, and a local.
        let error = unsafe { sem_clockwait(semaphore.at(), MONOTONIC, &far(MONOTONIC)) };
        assert_eq!(error, 0);
    });

    let waits: [(&str, fn(*mut pthread_cond_t, *mut pthread_mutex_t) -> c_int); 3] = [
        // SAFETY: a condition and a mutex that are there, and a local.
        ("cnd_wait", |at, mutex| unsafe { cnd_wait(at, mutex) }),
        // SAFETY: as above.
        ("cnd_timedwait", |at, mutex| unsafe { cnd_timedwait(at, mutex, &far(REAL)) }),
        // SAFETY: as above.
        ("pthread_cond_clockwait", |at, mutex| unsafe {
            pthread_cond_clockwait(at, mutex, MONOTONIC, &far(MONOTONIC))
        }),
    ];
    for (name, wait) in waits {
        signalled(name, wait);
    }
}

/// A function of C has no argument, so what it runs is here.
static INITIALISES: Mutex<Option<Box<dyn FnOnce() + Send>>> = Mutex::new(None);

extern "C" fn initialise() {
    let initialises = INITIALISES.lock().unwrap().take();
    initialises.expect("it runs once")();
}

/// Another thread initialises meanwhile.
pub(super) fn once() {
    let calls: [(&str, fn(*mut pthread_once_t)); 2] = [
        // SAFETY: one that is there, and a function that may be called.
        ("pthread_once", |at| assert_eq!(unsafe { pthread_once(at, initialise) }, 0)),
        // SAFETY: as above.
        ("call_once", |at| unsafe { call_once(at, initialise) }),
    ];
    for (name, call) in calls {
        let (once, (tells, told)) = (Zeroed::<pthread_once_t>::new(), channel());
        let (there, has_blocked) = (Arc::clone(&once), next_has_blocked());
        *INITIALISES.lock().unwrap() = Some(Box::new(move || {
            tells.send(()).unwrap();
            has_blocked();
        }));
        let other = std::thread::spawn(move || call(there.at()));
        told.recv().unwrap();
        beside_a_ticker(name, move || call(once.at()));
        other.join().unwrap();
    }
}

/// A barrier is destroyed by the last to come, while the others have yet to leave it.
pub(super) fn barriers() {
    again_beside_a_ticker("pthread_barrier_destroy", || {
        let barrier = Zeroed::<pthread_barrier_t>::new();
        // SAFETY: a barrier that is there, for two; as below.
        assert_eq!(unsafe { libc::pthread_barrier_init(barrier.at(), null(), 2) }, 0);
        let there = Arc::clone(&barrier);
        let wait = |barrier: &Zeroed<pthread_barrier_t>| {
            // SAFETY: as above.
            unsafe { libc::pthread_barrier_wait(barrier.at()) };
        };
        let other = kapok::spawn_local(move || wait(&there));
        kapok::yield_now();
        wait(&barrier);
        // SAFETY: as above.
        let error = unsafe { libc::pthread_barrier_destroy(barrier.at()) };
        other.join().unwrap();
        error == 0
    });
}

pub(super) fn joins() {
    let joins: [(&str, fn(pthread_t) -> c_int); 3] = [
        // SAFETY: a thread that nobody else joins, and locals, for all of these.
        ("pthread_timedjoin_np", |thread| unsafe {
            pthread_timedjoin_np(thread, null_mut(), &far(REAL))
        }),
        // SAFETY: as above.
        ("pthread_clockjoin_np", |thread| unsafe {
            pthread_clockjoin_np(thread, null_mut(), MONOTONIC, &far(MONOTONIC))
        }),
        // SAFETY: as above.
        ("thrd_join", |thread| unsafe { thrd_join(thread, null_mut()) }),
    ];
    for (name, join) in joins {
        let thread = std::thread::spawn(next_has_blocked());
        beside_a_ticker(name, move || assert_eq!(join(thread.into_pthread_t()), 0, "{name}"));
    }
}
