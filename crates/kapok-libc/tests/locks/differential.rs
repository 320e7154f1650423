//! The same calls on a bare thread and on a fiber: what they return is the same.

use std::sync::Arc;

use crate::calls::{
    Mutex, condition, mutex, plain, pthread_cond_clockwait, pthread_rwlock_timedrdlock,
    pthread_rwlock_timedwrlock, sem_clockwait, soon,
};
use crate::world::{on_fibers, rounds};

/// One thing that can be done to a mutex by one who may hold it. Nothing that waits for good.
#[derive(Clone, Copy, Debug)]
enum Step {
    Lock,
    TryLock,
    Unlock,
    TimedLock,
    InvalidTime,
    InvalidClock,
    PastTime,
    WaitAtCondition,
    WaitInvalid,
}

const STEPS: [Step; 9] = [
    Step::Lock,
    Step::TryLock,
    Step::Unlock,
    Step::TimedLock,
    Step::InvalidTime,
    Step::InvalidClock,
    Step::PastTime,
    Step::WaitAtCondition,
    Step::WaitInvalid,
];

/// Which locks are taken: what would wait for itself for good, or is undefined, is left out.
fn is_defined(kind: i32, step: Step, held: usize) -> bool {
    let owned_by_caller = [libc::PTHREAD_MUTEX_RECURSIVE, libc::PTHREAD_MUTEX_ERRORCHECK];
    match step {
        Step::Lock => held == 0 || owned_by_caller.contains(&kind),
        Step::Unlock => held > 0 || owned_by_caller.contains(&kind),
        Step::WaitAtCondition | Step::WaitInvalid => held == 1,
        _ => true,
    }
}

fn perform(mutex: &Mutex, step: Step) -> i32 {
    let monotonic = libc::CLOCK_MONOTONIC;
    let invalid = libc::timespec { tv_sec: 1, tv_nsec: 1_000_000_000 };
    let past = libc::timespec { tv_sec: -5, tv_nsec: 0 };
    let condition = condition(libc::CLOCK_REALTIME);
    match step {
        Step::Lock => mutex.lock(),
        Step::TryLock => mutex.try_lock(),
        Step::Unlock => mutex.unlock(),
        Step::TimedLock => mutex.lock_by(monotonic, soon(monotonic, 1)),
        Step::InvalidTime => mutex.lock_by(monotonic, invalid),
        Step::InvalidClock => mutex.lock_by(libc::CLOCK_BOOTTIME, soon(monotonic, 1)),
        Step::PastTime => mutex.lock_by(monotonic, past),
        Step::WaitAtCondition => condition.wait_until(mutex, soon(libc::CLOCK_REALTIME, 1)),
        Step::WaitInvalid => {
            let at = soon(monotonic, 1);
            // SAFETY: initialised objects, and a local.
            let clock =
                unsafe { pthread_cond_clockwait(condition.get(), mutex.get(), 7, &raw const at) };
            clock * 1000 + condition.wait_until(mutex, invalid)
        }
    }
}

/// A sequence of steps from a seed, and what each returned.
fn run(kind: i32, seed: u64, steps: usize) -> Vec<(Step, i32)> {
    let mutex = plain(kind);
    let mut state = seed | 1;
    let mut held = 0_usize;
    let mut done = Vec::new();
    while done.len() < steps {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let step = STEPS[(state >> 33) as usize % STEPS.len()];
        if !is_defined(kind, step, held) {
            continue;
        }
        let result = perform(&mutex, step);
        match (step, result) {
            (Step::Unlock, 0) => held -= 1,
            (
                Step::Lock | Step::TryLock | Step::TimedLock | Step::InvalidTime | Step::PastTime,
                0,
            ) => held += 1,
            _ => {}
        }
        done.push((step, result));
    }
    done
}

#[test]
fn one_holder_alone_is_answered_alike() {
    kapok_libc::install();
    let seeds = rounds(20_000) / 1_000;
    for kind in [
        libc::PTHREAD_MUTEX_NORMAL,
        libc::PTHREAD_MUTEX_RECURSIVE,
        libc::PTHREAD_MUTEX_ERRORCHECK,
        3,
    ] {
        for seed in 0..seeds as u64 {
            let on_thread = std::thread::spawn(move || format!("{:?}", run(kind, seed, 50)));
            let on_thread = on_thread.join().unwrap();
            on_fibers(1, move || {
                let on_fiber = format!("{:?}", run(kind, seed, 50));
                assert_eq!(on_fiber, on_thread, "kind {kind}, seed {seed}");
            });
        }
    }
}

/// What a second one is told, elsewhere, while another holds the lock.
fn contended(kind: i32, elsewhere: fn(Attempt) -> Vec<i32>) -> Vec<i32> {
    let mutex = Arc::new(plain(kind));
    assert_eq!(mutex.lock(), 0);
    let there = Arc::clone(&mutex);
    let told = elsewhere(Box::new(move || {
        let steps = [Step::TryLock, Step::TimedLock, Step::InvalidTime, Step::PastTime];
        let mut told: Vec<i32> = steps.iter().map(|&step| perform(&there, step)).collect();
        if kind == libc::PTHREAD_MUTEX_RECURSIVE || kind == libc::PTHREAD_MUTEX_ERRORCHECK {
            told.push(perform(&there, Step::Unlock));
        }
        told
    }));
    assert_eq!(mutex.unlock(), 0);
    told
}

type Attempt = Box<dyn FnOnce() -> Vec<i32> + Send>;

#[test]
fn a_second_one_is_answered_alike() {
    kapok_libc::install();
    for kind in [0, 1, 2, 3] {
        let on_thread = contended(kind, |attempt| std::thread::spawn(attempt).join().unwrap());
        assert_eq!(on_thread[0], libc::EBUSY);
        on_fibers(1, move || {
            let on_fiber = contended(kind, |attempt| kapok::spawn_local(attempt).join().unwrap());
            assert_eq!(on_fiber, on_thread, "kind {kind}");
        });
    }
}

/// Results and errnos of calls on semaphores.
fn semaphores() -> Vec<(i32, i32)> {
    let errno = || std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
    let invalid = libc::timespec { tv_sec: 1, tv_nsec: -1 };
    let past = libc::timespec { tv_sec: 1, tv_nsec: 0 };
    let mut results = Vec::new();
    // SAFETY: an object of our own, initialised before it is used and destroyed after; locals.
    unsafe {
        let mut object: libc::sem_t = std::mem::zeroed();
        let semaphore = &raw mut object;
        libc::sem_init(semaphore, 0, 1);
        let clock = libc::CLOCK_MONOTONIC;
        let soon = [soon(libc::CLOCK_REALTIME, 1), soon(clock, 1)];
        for [at, by] in [[invalid; 2], [past; 2], soon, [invalid; 2], [past; 2]] {
            *libc::__errno_location() = 0;
            results.push((libc::sem_timedwait(semaphore, &raw const at), errno()));
            results.push((sem_clockwait(semaphore, clock, &raw const by), errno()));
            results.push((sem_clockwait(semaphore, 9, &raw const by), errno()));
            results.push((libc::sem_trywait(semaphore), errno()));
            libc::sem_post(semaphore);
        }
        libc::sem_destroy(semaphore);
    }
    results
}

/// Results of calls on read-write locks by one who holds them.
fn read_write_locks() -> Vec<i32> {
    let mut results = Vec::new();
    // SAFETY: as above.
    unsafe {
        let mut object: libc::pthread_rwlock_t = std::mem::zeroed();
        let lock = &raw mut object;
        libc::pthread_rwlock_init(lock, std::ptr::null());
        let at = soon(libc::CLOCK_REALTIME, 1);
        let invalid = libc::timespec { tv_sec: 1, tv_nsec: -1 };
        results.push(libc::pthread_rwlock_wrlock(lock));
        results.push(libc::pthread_rwlock_wrlock(lock));
        results.push(libc::pthread_rwlock_rdlock(lock));
        results.push(libc::pthread_rwlock_trywrlock(lock));
        results.push(libc::pthread_rwlock_tryrdlock(lock));
        results.push(pthread_rwlock_timedwrlock(lock, &raw const at));
        results.push(libc::pthread_rwlock_unlock(lock));
        results.push(libc::pthread_rwlock_rdlock(lock));
        results.push(libc::pthread_rwlock_rdlock(lock));
        results.push(libc::pthread_rwlock_trywrlock(lock));
        results.push(pthread_rwlock_timedwrlock(lock, &raw const at));
        results.push(pthread_rwlock_timedwrlock(lock, &raw const invalid));
        results.push(libc::pthread_rwlock_unlock(lock));
        results.push(libc::pthread_rwlock_unlock(lock));
        results.push(pthread_rwlock_timedrdlock(lock, &raw const invalid));
        results.push(libc::pthread_rwlock_destroy(lock));
    }
    results
}

/// Results and errnos of futex(2) by syscall(2).
fn futexes() -> Vec<(i64, i32)> {
    let word = std::sync::atomic::AtomicU32::new(5);
    let mut results = Vec::new();
    let times = [
        libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 },
        libc::timespec { tv_sec: -1, tv_nsec: 0 },
        libc::timespec { tv_sec: 0, tv_nsec: 1_000_000_000 },
    ];
    // First, while nobody has waited there: a wait that has just been given up may still be counted.
    let wake = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: nothing is read or written.
    results.push((unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), wake, 5) }, 0));
    for expected in [4, 5] {
        for operation in [
            libc::FUTEX_WAIT,
            libc::FUTEX_WAIT_BITSET,
            libc::FUTEX_WAIT_BITSET | libc::FUTEX_CLOCK_REALTIME,
        ] {
            for at in &times {
                for mask in [0, 1, u32::MAX] {
                    // SAFETY: locals; the word is not waited at without a time.
                    unsafe {
                        *libc::__errno_location() = 0;
                        let res = libc::syscall(
                            libc::SYS_futex,
                            word.as_ptr(),
                            operation | libc::FUTEX_PRIVATE_FLAG,
                            expected,
                            std::ptr::from_ref(at),
                            0,
                            mask,
                        );
                        results.push((res, *libc::__errno_location()));
                    }
                }
            }
        }
    }
    results
}

#[test]
fn semaphores_read_write_locks_and_futexes_answer_alike() {
    kapok_libc::install();
    let threads = std::thread::spawn(|| (semaphores(), read_write_locks(), futexes()));
    let on_thread = threads.join().unwrap();
    on_fibers(1, move || {
        assert_eq!(semaphores(), on_thread.0);
        assert_eq!(read_write_locks(), on_thread.1);
        assert_eq!(futexes(), on_thread.2);
    });
}

#[test]
fn robust_mutexes_and_those_with_priorities_answer_alike() {
    kapok_libc::install();
    let answers = || {
        let mut told = Vec::new();
        for (protocol, robust) in [
            (libc::PTHREAD_PRIO_INHERIT, false),
            (libc::PTHREAD_PRIO_NONE, true),
            (libc::PTHREAD_PRIO_INHERIT, true),
        ] {
            for kind in [libc::PTHREAD_MUTEX_RECURSIVE, libc::PTHREAD_MUTEX_ERRORCHECK] {
                let mutex = mutex(kind, protocol, robust);
                told.extend([mutex.lock(), mutex.lock(), mutex.unlock()]);
                told.extend([mutex.unlock(), mutex.unlock()]);
            }
        }
        told
    };
    let on_thread = std::thread::spawn(answers).join().unwrap();
    on_fibers(1, move || assert_eq!(answers(), on_thread));
}
