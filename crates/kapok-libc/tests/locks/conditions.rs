//! `pthread_cond_t` between fibers and threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::calls::{condition, plain, soon};
use crate::world::{on_fibers, rounds, until};

#[test]
fn a_queue_of_work_between_fibers_and_threads_loses_nothing() {
    let total = rounds(5_000);
    for (threads, plain_threads) in [(1, 0), (2, 2)] {
        on_fibers(threads, move || {
            let shared = Arc::new((
                plain(libc::PTHREAD_MUTEX_NORMAL),
                condition(libc::CLOCK_REALTIME),
                AtomicUsize::new(0),
                AtomicUsize::new(0),
                AtomicBool::new(false),
            ));
            // One signal for each piece of work: one that is lost leaves work undone for good.
            let take = {
                let shared = Arc::clone(&shared);
                move || {
                    let (mutex, condition, there, done, over) = &*shared;
                    loop {
                        assert_eq!(mutex.lock(), 0);
                        while there.load(Ordering::Relaxed) == 0 {
                            if over.load(Ordering::Relaxed) {
                                assert_eq!(mutex.unlock(), 0);
                                return;
                            }
                            assert_eq!(condition.wait(mutex), 0);
                        }
                        there.fetch_sub(1, Ordering::Relaxed);
                        assert_eq!(mutex.unlock(), 0);
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                }
            };
            let threads: Vec<_> =
                (0..plain_threads).map(|_| std::thread::spawn(take.clone())).collect();
            let fibers: Vec<_> = (0..4).map(|_| kapok::spawn(take.clone())).collect();
            let (mutex, condition, there, done, over) = &*shared;
            for round in 0..total {
                assert_eq!(mutex.lock(), 0);
                there.fetch_add(1, Ordering::Relaxed);
                condition.signal();
                assert_eq!(mutex.unlock(), 0);
                if round.is_multiple_of(32) {
                    kapok::yield_now();
                }
            }
            until(|| done.load(Ordering::SeqCst) == total);
            assert_eq!(mutex.lock(), 0);
            over.store(true, Ordering::Relaxed);
            condition.broadcast();
            assert_eq!(mutex.unlock(), 0);
            for fiber in fibers {
                fiber.join().unwrap();
            }
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }
}

#[test]
fn waits_end_at_their_time_by_the_clock_of_the_condition() {
    on_fibers(1, || {
        let mutex = plain(libc::PTHREAD_MUTEX_NORMAL);
        for clock in [libc::CLOCK_REALTIME, libc::CLOCK_MONOTONIC] {
            let condition = condition(clock);
            assert_eq!(mutex.lock(), 0);
            let begin = Instant::now();
            assert_eq!(condition.wait_until(&mutex, soon(clock, 20)), libc::ETIMEDOUT);
            assert!(begin.elapsed() >= Duration::from_millis(19));
            assert!(begin.elapsed() < Duration::from_secs(20));
            // The mutex is held again.
            assert_eq!(mutex.try_lock(), libc::EBUSY);
            assert_eq!(mutex.unlock(), 0);
        }
    });
}

#[test]
fn a_signal_wakes_a_fiber_and_a_thread_alike() {
    on_fibers(1, || {
        for fiber_first in [false, true] {
            let shared = Arc::new((
                plain(libc::PTHREAD_MUTEX_NORMAL),
                condition(libc::CLOCK_REALTIME),
                AtomicUsize::new(0),
                AtomicUsize::new(0),
            ));
            let wait = {
                let shared = Arc::clone(&shared);
                move || {
                    let (mutex, condition, waits, permits) = &*shared;
                    assert_eq!(mutex.lock(), 0);
                    waits.fetch_add(1, Ordering::SeqCst);
                    while permits.load(Ordering::SeqCst) == 0 {
                        assert_eq!(condition.wait(mutex), 0);
                    }
                    permits.fetch_sub(1, Ordering::SeqCst);
                    assert_eq!(mutex.unlock(), 0);
                }
            };
            let (mutex, condition, waits, permits) = &*shared;
            let (mut fiber, mut thread) = (None, None);
            for now in [fiber_first, !fiber_first] {
                if now {
                    fiber = Some(kapok::spawn_local(wait.clone()));
                } else {
                    thread = Some(std::thread::spawn(wait.clone()));
                }
                let wanted = 1 + usize::from(now != fiber_first);
                until(|| waits.load(Ordering::SeqCst) == wanted);
            }
            for _ in 0..2 {
                assert_eq!(mutex.lock(), 0);
                permits.fetch_add(1, Ordering::SeqCst);
                condition.signal();
                assert_eq!(mutex.unlock(), 0);
                kapok::sleep(Duration::from_millis(5)).unwrap();
            }
            fiber.unwrap().join().unwrap();
            thread.unwrap().join().unwrap();
        }
    });
}
