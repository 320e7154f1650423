//! `pthread_mutex_t` of every kind.

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::calls::{Mutex, condition, mutex, plain, soon};
use crate::world::{on_fibers, rounds, suspended, until};

struct Counted {
    mutex: Mutex,
    count: UnsafeCell<usize>,
}

// SAFETY: the count is changed under the mutex only, which is what is tested.
unsafe impl Sync for Counted {}
// SAFETY: as above.
unsafe impl Send for Counted {}

fn storm(mutex: Mutex, fibers: usize, plain: usize, total: usize) {
    let each = total / (fibers + plain);
    let shared = Arc::new(Counted { mutex, count: UnsafeCell::new(0) });
    let work = {
        let shared = Arc::clone(&shared);
        move |index: usize| {
            for round in 0..each {
                assert_eq!(shared.mutex.lock(), 0);
                // SAFETY: under the mutex.
                let seen = unsafe { *shared.count.get() };
                if (round + index).is_multiple_of(16) && kapok::on_fiber() {
                    kapok::yield_now();
                }
                // SAFETY: under the mutex.
                unsafe { *shared.count.get() = seen + 1 };
                assert_eq!(shared.mutex.unlock(), 0);
            }
        }
    };
    let plain: Vec<_> = (0..plain)
        .map(|index| {
            let work = work.clone();
            std::thread::spawn(move || work(index))
        })
        .collect();
    let parallel = plain.len();
    let fibers: Vec<_> = (0..fibers)
        .map(|index| {
            let work = work.clone();
            kapok::spawn(move || work(parallel + index))
        })
        .collect();
    for fiber in fibers {
        fiber.join().unwrap();
    }
    for thread in plain {
        thread.join().unwrap();
    }
    // SAFETY: nobody else is left.
    assert_eq!(unsafe { *shared.count.get() }, each * (parallel + (total / each - parallel)));
}

const KINDS: [i32; 4] = [
    libc::PTHREAD_MUTEX_NORMAL,
    libc::PTHREAD_MUTEX_RECURSIVE,
    libc::PTHREAD_MUTEX_ERRORCHECK,
    // Adaptive, which has no name here.
    3,
];

#[test]
fn mutexes_keep_fibers_of_one_thread_apart() {
    let total = rounds(20_000);
    on_fibers(1, move || {
        for kind in KINDS {
            storm(plain(kind), 8, 0, total / KINDS.len());
        }
    });
}

#[test]
fn mutexes_keep_fibers_and_threads_apart() {
    let total = rounds(20_000);
    on_fibers(2, move || {
        for kind in KINDS {
            storm(plain(kind), 6, 2, total / KINDS.len());
        }
    });
}

#[test]
fn robust_mutexes_and_those_with_priorities_keep_fibers_apart() {
    on_fibers(1, || {
        for (protocol, robust) in [
            (libc::PTHREAD_PRIO_INHERIT, false),
            (libc::PTHREAD_PRIO_NONE, true),
            (libc::PTHREAD_PRIO_INHERIT, true),
        ] {
            storm(mutex(libc::PTHREAD_MUTEX_NORMAL, protocol, robust), 4, 1, 400);
        }
    });
}

#[test]
fn a_robust_mutex_tells_a_fiber_that_a_thread_has_ended() {
    on_fibers(1, || {
        let mutex = Arc::new(mutex(libc::PTHREAD_MUTEX_NORMAL, libc::PTHREAD_PRIO_NONE, true));
        let there = Arc::clone(&mutex);
        std::thread::spawn(move || assert_eq!(there.lock(), 0)).join().unwrap();
        assert_eq!(mutex.lock(), libc::EOWNERDEAD);
        // SAFETY: held, by this thread.
        assert_eq!(unsafe { libc::pthread_mutex_consistent(mutex.get()) }, 0);
        assert_eq!(mutex.unlock(), 0);
        assert_eq!(mutex.lock(), 0);
        assert_eq!(mutex.unlock(), 0);
    });
}

#[test]
fn two_fibers_of_one_thread_are_two_holders() {
    on_fibers(1, || {
        for kind in [libc::PTHREAD_MUTEX_RECURSIVE, libc::PTHREAD_MUTEX_ERRORCHECK] {
            let mutex = Arc::new(plain(kind));
            assert_eq!(mutex.lock(), 0);
            let there = Arc::clone(&mutex);
            let before = suspended("pthread_mutex_lock");
            let other = kapok::spawn_local(move || {
                assert_eq!(there.try_lock(), libc::EBUSY);
                assert_eq!(there.unlock(), libc::EPERM);
                assert_eq!(there.lock(), 0);
                assert_eq!(there.unlock(), 0);
            });
            kapok::sleep(Duration::from_millis(3)).unwrap();
            assert_eq!(mutex.unlock(), 0);
            other.join().unwrap();
            // Other tests count there too.
            assert!(suspended("pthread_mutex_lock") > before);
        }
    });
}

#[test]
fn what_a_thread_unlocks_inside_of_libc_wakes_a_fiber() {
    // The thread waits at a condition, by which it unlocks in a function that nobody hooks, again and
    // again, while fibers wait for the mutex.
    let total = rounds(2_000);
    on_fibers(1, move || {
        let shared = Arc::new((
            plain(libc::PTHREAD_MUTEX_NORMAL),
            condition(libc::CLOCK_REALTIME),
            AtomicUsize::new(0),
        ));
        let there = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let (mutex, condition, rounds) = &*there;
            assert_eq!(mutex.lock(), 0);
            while rounds.load(Ordering::SeqCst) < total {
                // Fibers queue for the mutex by now; only this unlocks it.
                assert!(
                    [0, libc::ETIMEDOUT]
                        .contains(&condition.wait_until(mutex, soon(libc::CLOCK_REALTIME, 1_000)))
                );
            }
            assert_eq!(mutex.unlock(), 0);
        });
        let fibers: Vec<_> = (0..2)
            .map(|_| {
                let shared = Arc::clone(&shared);
                kapok::spawn_local(move || {
                    let (mutex, condition, rounds) = &*shared;
                    while rounds.load(Ordering::SeqCst) < total {
                        assert_eq!(mutex.lock(), 0);
                        rounds.fetch_add(1, Ordering::SeqCst);
                        condition.signal();
                        assert_eq!(mutex.unlock(), 0);
                    }
                })
            })
            .collect();
        for fiber in fibers {
            fiber.join().unwrap();
        }
        thread.join().unwrap();
    });
}

#[test]
fn a_wake_up_for_a_wait_that_was_given_up_goes_to_the_next() {
    // Each takes a third of a millisecond, whatever the machine.
    let total = rounds(400).min(100_000);
    on_fibers(1, move || {
        let mutex = Arc::new(plain(libc::PTHREAD_MUTEX_NORMAL));
        let taken = Arc::new(AtomicUsize::new(0));
        // Some give up at about the time at which they would be woken, others never.
        let fibers: Vec<_> = (0..8)
            .map(|index| {
                let (mutex, taken) = (Arc::clone(&mutex), Arc::clone(&taken));
                kapok::spawn_local(move || {
                    while taken.load(Ordering::SeqCst) < total {
                        let error = if index % 2 == 0 {
                            mutex.lock_by(libc::CLOCK_MONOTONIC, soon(libc::CLOCK_MONOTONIC, 1))
                        } else {
                            mutex.lock()
                        };
                        if error == libc::ETIMEDOUT {
                            continue;
                        }
                        assert_eq!(error, 0);
                        taken.fetch_add(1, Ordering::SeqCst);
                        kapok::sleep(Duration::from_micros(300)).unwrap();
                        assert_eq!(mutex.unlock(), 0);
                        kapok::yield_now();
                    }
                })
            })
            .collect();
        while taken.load(Ordering::SeqCst) < total {
            let before = taken.load(Ordering::SeqCst);
            until(|| taken.load(Ordering::SeqCst) > before);
        }
        for fiber in fibers {
            fiber.join().unwrap();
        }
    });
}

#[test]
fn the_child_of_a_fork_holds_what_its_fiber_held() {
    on_fibers(1, || {
        let checked = plain(libc::PTHREAD_MUTEX_ERRORCHECK);
        assert_eq!(checked.lock(), 0);
        // SAFETY: the child makes system calls and calls on locks only.
        match unsafe { libc::fork() } {
            0 => {
                let held = checked.lock() == libc::EDEADLK;
                let released = checked.unlock() == 0;
                let refused = checked.unlock() == libc::EPERM;
                let ok = held && released && refused;
                // SAFETY: ends the child.
                unsafe { libc::_exit(if ok { 0 } else { 1 }) }
            }
            child => {
                let mut status = 0;
                // SAFETY: a child of ours; writes to a local.
                assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
                assert_eq!(status, 0);
                assert_eq!(checked.unlock(), 0);
            }
        }
    });
}
