//! std's own locks, which are futexes by syscall(2).

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, OnceLock, RwLock, mpsc};
use std::thread;
use std::time::Duration;

use crate::world::{on_fibers, rounds, suspended, until};

/// So many fibers and so many plain threads, all doing the same.
fn together(fibers: usize, threads: usize, work: impl Fn(usize) + Send + Sync + 'static) {
    let work = Arc::new(work);
    let plain: Vec<_> = (0..threads)
        .map(|index| {
            let work = Arc::clone(&work);
            thread::spawn(move || work(index))
        })
        .collect();
    let fibers: Vec<_> = (0..fibers)
        .map(|index| {
            let work = Arc::clone(&work);
            kapok::spawn(move || work(threads + index))
        })
        .collect();
    for fiber in fibers {
        fiber.join().unwrap();
    }
    for thread in plain {
        // A fiber that waits for a thread.
        thread.join().unwrap();
    }
}

#[test]
fn a_mutex_held_by_a_parked_fiber_parks_the_next() {
    on_fibers(1, || {
        let (mut reader, mut writer) = UnixStream::pair().unwrap();
        let lock = Arc::new(Mutex::new(0_u32));
        let before = suspended("syscall");
        let (held, there) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&lock));
        let holds = Arc::clone(&held);
        let holder = kapok::spawn_local(move || {
            let mut value = there.lock().unwrap();
            holds.store(1, Ordering::SeqCst);
            // Held over a read that blocks.
            let mut byte = [0];
            wait_readable(&reader);
            reader.read_exact(&mut byte).unwrap();
            *value += u32::from(byte[0]);
        });
        until(|| held.load(Ordering::SeqCst) == 1);
        let waiters: Vec<_> = (0..10)
            .map(|_| {
                let lock = Arc::clone(&lock);
                kapok::spawn_local(move || *lock.lock().unwrap() += 1)
            })
            .collect();
        // They are all parked, or nothing of this would run.
        until(|| suspended("syscall") >= before);
        kapok::sleep(Duration::from_millis(5)).unwrap();
        writer.write_all(&[90]).unwrap();
        holder.join().unwrap();
        for waiter in waiters {
            waiter.join().unwrap();
        }
        assert_eq!(*lock.lock().unwrap(), 100);
        assert!(suspended("syscall") >= before + 10);
    });
}

/// Suspends the fiber until the socket is readable.
fn wait_readable(socket: &UnixStream) {
    let socket = kapok::net::UnixStream::try_from(socket.try_clone().unwrap()).unwrap();
    kapok::block_on(socket.readable_async()).unwrap();
}

fn rounds_on_a_mutex(threads: usize, fibers: usize, plain: usize) {
    let total = rounds(20_000);
    on_fibers(threads, move || {
        let lock = Arc::new(Mutex::new(0_usize));
        let each = total / (fibers + plain);
        let shared = Arc::clone(&lock);
        together(fibers, plain, move |index| {
            for round in 0..each {
                let mut value = shared.lock().unwrap();
                let seen = *value;
                if (round + index).is_multiple_of(16) && kapok::on_fiber() {
                    // Held over a suspension.
                    kapok::yield_now();
                }
                *value = seen + 1;
            }
        });
        assert_eq!(*lock.lock().unwrap(), each * (fibers + plain));
    });
}

#[test]
fn a_mutex_among_fibers_of_one_thread() {
    rounds_on_a_mutex(1, 8, 0);
}

#[test]
fn a_mutex_among_fibers_of_two_threads_and_plain_threads() {
    rounds_on_a_mutex(2, 8, 2);
}

#[test]
fn a_condition_hands_over_between_fibers_and_threads() {
    let total = rounds(5_000);
    for (threads, plain) in [(1, 0), (1, 1), (2, 2)] {
        on_fibers(threads, move || {
            let parties = 4 + plain;
            let turn = Arc::new((Mutex::new(0_usize), Condvar::new()));
            let each = total / parties;
            let shared = Arc::clone(&turn);
            together(4, plain, move |index| {
                for round in 0..each {
                    let mut now = shared.0.lock().unwrap();
                    while *now != round * parties + index {
                        now = shared.1.wait(now).unwrap();
                    }
                    *now += 1;
                    shared.1.notify_all();
                }
            });
            assert_eq!(*turn.0.lock().unwrap(), each * parties);
        });
    }
}

#[test]
fn of_many_that_wait_for_a_few_things_only_those_run_that_may_get_one() {
    const FIBERS: usize = 300;
    const TIMES: usize = 20;
    on_fibers(1, || {
        let things = Arc::new((Mutex::new(4_usize), Condvar::new()));
        let looks = Arc::new(AtomicUsize::new(0));
        let fibers: Vec<_> = (0..FIBERS)
            .map(|_| {
                let (things, looks) = (Arc::clone(&things), Arc::clone(&looks));
                kapok::spawn_local(move || {
                    let (free, returned) = &*things;
                    for _ in 0..TIMES {
                        let mut free_now = returned
                            .wait_while(free.lock().unwrap(), |free| {
                                looks.fetch_add(1, Ordering::Relaxed);
                                *free == 0
                            })
                            .unwrap();
                        *free_now -= 1;
                        drop(free_now);
                        kapok::time::sleep(Duration::from_micros(200)).unwrap();
                        *free.lock().unwrap() += 1;
                        returned.notify_one();
                    }
                })
            })
            .collect();
        for fiber in fibers {
            fiber.join().unwrap();
        }
        // One before the wait, one after it, and some more where another was faster.
        let each = looks.load(Ordering::Relaxed) as f64 / (FIBERS * TIMES) as f64;
        assert!(each < 3.5, "each looks {each} times");
    });
}

#[test]
fn a_timed_wait_at_a_condition_ends() {
    on_fibers(1, || {
        let pair = (Mutex::new(()), Condvar::new());
        let ticks = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&ticks);
        let ticker = kapok::spawn_local(move || {
            while kapok::sleep(Duration::from_millis(1)).is_ok() {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        // A thread that is blocked is so each time; a machine with much to do is late once.
        let ticked = (0..3).any(|_| {
            ticks.store(0, Ordering::Relaxed);
            let (begin, limit) = (std::time::Instant::now(), Duration::from_millis(50));
            let (_guard, ended) = pair.1.wait_timeout(pair.0.lock().unwrap(), limit).unwrap();
            assert!(ended.timed_out());
            assert!(begin.elapsed() >= limit);
            ticks.load(Ordering::Relaxed) >= 5
        });
        assert!(ticked, "the thread was blocked");
        ticker.cancel();
        ticker.join().unwrap();
    });
}

#[test]
fn a_read_write_lock_keeps_writers_alone() {
    let total = rounds(10_000);
    on_fibers(2, move || {
        let lock = Arc::new(RwLock::new((0_usize, 0_usize)));
        let each = total / 8;
        let shared = Arc::clone(&lock);
        together(6, 2, move |index| {
            for round in 0..each {
                if (round + index).is_multiple_of(4) {
                    let mut pair = shared.write().unwrap();
                    pair.0 += 1;
                    if kapok::on_fiber() {
                        kapok::yield_now();
                    }
                    pair.1 += 1;
                } else {
                    let pair = shared.read().unwrap();
                    assert_eq!(pair.0, pair.1);
                    if round.is_multiple_of(8) && kapok::on_fiber() {
                        kapok::yield_now();
                    }
                }
            }
        });
        let pair = lock.read().unwrap();
        assert_eq!(pair.0, pair.1);
    });
}

#[test]
fn channels_between_fibers_and_threads() {
    let total = rounds(4_000);
    for fibers_send in [false, true] {
        on_fibers(2, move || {
            let (sender, receiver) = mpsc::sync_channel::<usize>(4);
            let receiver = Arc::new(Mutex::new(receiver));
            let sum = Arc::new(AtomicUsize::new(0));
            let each = total / 4;
            let counted = Arc::clone(&sum);
            together(4, 4, move |index| {
                let (sender, receiver) = (sender.clone(), Arc::clone(&receiver));
                for round in 0..each {
                    if (index >= 4) == fibers_send {
                        sender.send(round).unwrap();
                    } else {
                        let value = receiver.lock().unwrap().recv().unwrap();
                        counted.fetch_add(value, Ordering::Relaxed);
                    }
                }
            });
            assert_eq!(sum.load(Ordering::Relaxed), 4 * (each * (each - 1) / 2));
        });
    }
}

#[test]
fn fibers_of_one_thread_that_are_parked_by_std_hear_of_an_unpark() {
    on_fibers(1, || {
        let here = thread::current();
        let flags: Arc<Vec<_>> = Arc::new((0..4).map(|_| AtomicUsize::new(0)).collect());
        let fibers: Vec<_> = (0..4)
            .map(|index| {
                let flags = Arc::clone(&flags);
                kapok::spawn_local(move || {
                    while flags[index].load(Ordering::SeqCst) == 0 {
                        thread::park();
                    }
                })
            })
            .collect();
        let there = Arc::clone(&flags);
        let waker = thread::spawn(move || {
            for flag in there.iter().rev() {
                thread::sleep(Duration::from_millis(3));
                flag.store(1, Ordering::SeqCst);
                here.unpark();
            }
        });
        for fiber in fibers {
            fiber.join().unwrap();
        }
        waker.join().unwrap();
    });
}

#[test]
fn a_fiber_unparks_another_of_its_thread() {
    on_fibers(1, || {
        let here = thread::current();
        let turn = Arc::new(AtomicUsize::new(0));
        let there = Arc::clone(&turn);
        let parks = kapok::spawn_local(move || {
            for round in 0..50 {
                while there.load(Ordering::SeqCst) != 2 * round + 1 {
                    thread::park();
                }
                there.store(2 * round + 2, Ordering::SeqCst);
            }
        });
        for round in 0..50 {
            turn.store(2 * round + 1, Ordering::SeqCst);
            here.unpark();
            // Not by a park, which would take the token that was meant for the other.
            until(|| turn.load(Ordering::SeqCst) == 2 * round + 2);
        }
        parks.join().unwrap();
    });
}

#[test]
fn a_barrier_lets_all_go_together() {
    // So many arrivals.
    let total = rounds(1_600) / 16;
    on_fibers(2, move || {
        let barrier = Arc::new(Barrier::new(8));
        let arrived = Arc::new(AtomicUsize::new(0));
        let leaders = Arc::new(AtomicUsize::new(0));
        let (all, led) = (Arc::clone(&arrived), Arc::clone(&leaders));
        together(6, 2, move |_| {
            for round in 0..total {
                all.fetch_add(1, Ordering::SeqCst);
                if barrier.wait().is_leader() {
                    led.fetch_add(1, Ordering::SeqCst);
                }
                assert!(all.load(Ordering::SeqCst) >= 8 * (round + 1));
                barrier.wait();
            }
        });
        assert_eq!(leaders.load(Ordering::SeqCst), total);
    });
}

#[test]
fn what_is_made_once_is_waited_for_by_fibers_of_the_same_thread() {
    on_fibers(1, || {
        let cell = Arc::new(OnceLock::new());
        let made = Arc::new(AtomicUsize::new(0));
        let fibers: Vec<_> = (0..8)
            .map(|_| {
                let (cell, made) = (Arc::clone(&cell), Arc::clone(&made));
                kapok::spawn_local(move || {
                    *cell.get_or_init(|| {
                        kapok::sleep(Duration::from_millis(5)).unwrap();
                        made.fetch_add(1, Ordering::SeqCst) + 41
                    })
                })
            })
            .collect();
        for fiber in fibers {
            assert_eq!(fiber.join().unwrap(), 41);
        }
        assert_eq!(made.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn cells_are_made_once_by_fibers_of_two_threads_and_plain_threads() {
    let total = rounds(4_000) / 8;
    on_fibers(2, move || {
        let cells: Arc<Vec<OnceLock<usize>>> =
            Arc::new((0..total).map(|_| OnceLock::new()).collect());
        let made = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&made);
        together(6, 2, move |_| {
            for (number, cell) in cells.iter().enumerate() {
                let value = cell.get_or_init(|| {
                    if number.is_multiple_of(4) && kapok::on_fiber() {
                        // Made over a suspension.
                        kapok::yield_now();
                    }
                    counted.fetch_add(1, Ordering::SeqCst);
                    number
                });
                assert_eq!(*value, number);
            }
        });
        assert_eq!(made.load(Ordering::SeqCst), total);
    });
}

/// Two ends of a socket and a thread that sends back what it gets.
struct Echo {
    near: UnixStream,
    thread: Option<thread::JoinHandle<()>>,
}

impl Echo {
    fn new() -> Echo {
        let (near, mut far) = UnixStream::pair().unwrap();
        let thread = thread::spawn(move || {
            let mut byte = [0];
            while far.read_exact(&mut byte).is_ok() {
                far.write_all(&byte).unwrap();
            }
        });
        Echo { near, thread: Some(thread) }
    }

    /// A read that blocks: what it waits for is still to be sent.
    fn ask(&self) {
        (&self.near).write_all(&[7]).unwrap();
        let mut byte = [0];
        (&self.near).read_exact(&mut byte).unwrap();
        assert_eq!(byte, [7]);
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.near.shutdown(std::net::Shutdown::Both).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Each lock in turn, with a read that blocks while it is held, by fibers of one thread and of two, and by
/// plain threads.
#[test]
fn locks_are_held_over_reads_that_block() {
    const PARTIES: usize = 6;
    let total = rounds(1_200);
    for threads in [1, 2] {
        on_fibers(threads, move || {
            let before = suspended("read") + suspended("recv");
            let each = total / PARTIES / 2;
            let mutex = Arc::new(Mutex::new(0_usize));
            let table = Arc::new(RwLock::new((0_usize, 0_usize)));
            let turn = Arc::new((Mutex::new(0_usize), Condvar::new()));
            let cells: Vec<OnceLock<usize>> = (0..each).map(|_| OnceLock::new()).collect();
            let made = Arc::new(AtomicUsize::new(0));
            let (counted, pairs, turns) =
                (Arc::clone(&mutex), Arc::clone(&table), Arc::clone(&turn));
            let makes = Arc::clone(&made);
            together(PARTIES - 2, 2, move |index| {
                let echo = Echo::new();
                for (round, cell) in cells.iter().enumerate() {
                    {
                        let mut count = counted.lock().unwrap();
                        let seen = *count;
                        echo.ask();
                        *count = seen + 1;
                    }
                    if round % PARTIES == index {
                        let mut pair = pairs.write().unwrap();
                        pair.0 += 1;
                        echo.ask();
                        pair.1 += 1;
                    } else {
                        let pair = pairs.read().unwrap();
                        let seen = *pair;
                        echo.ask();
                        assert_eq!((pair.0, *pair), (pair.1, seen));
                    }
                    let value = cell.get_or_init(|| {
                        echo.ask();
                        makes.fetch_add(1, Ordering::SeqCst);
                        round
                    });
                    assert_eq!(*value, round);
                    let mut now = turns.0.lock().unwrap();
                    while *now != round * PARTIES + index {
                        now = turns.1.wait(now).unwrap();
                    }
                    if round % 4 == 0 {
                        echo.ask();
                    }
                    *now += 1;
                    turns.1.notify_all();
                }
            });
            assert_eq!(*mutex.lock().unwrap(), each * PARTIES);
            assert_eq!(*turn.0.lock().unwrap(), each * PARTIES);
            assert_eq!(made.load(Ordering::SeqCst), each);
            let pair = *table.read().unwrap();
            assert_eq!(pair.0, pair.1);
            // Bare threads would pass as well.
            assert!(suspended("read") + suspended("recv") > before);
        });
    }
}

/// The usual queue of a pool of workers, fed by a plain thread: who receives holds the mutex, also while
/// nothing comes, and here for a read that blocks besides.
#[test]
fn a_receiver_behind_a_mutex_is_held_over_reads_that_block() {
    const PARTIES: usize = 6;
    let total = rounds(600);
    for threads in [1, 2] {
        on_fibers(threads, move || {
            let (sender, receiver) = mpsc::channel::<usize>();
            let receiver = Arc::new(Mutex::new(receiver));
            let (count, sum) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let feeder = thread::spawn(move || {
                for value in 0..total {
                    if value.is_multiple_of(50) {
                        thread::sleep(Duration::from_millis(1));
                    }
                    sender.send(value).unwrap();
                }
            });
            let (counts, sums) = (Arc::clone(&count), Arc::clone(&sum));
            together(PARTIES - 2, 2, move |_| {
                let echo = Echo::new();
                loop {
                    let queue = receiver.lock().unwrap();
                    let Ok(value) = queue.recv() else { return };
                    echo.ask();
                    drop(queue);
                    counts.fetch_add(1, Ordering::SeqCst);
                    sums.fetch_add(value, Ordering::SeqCst);
                }
            });
            feeder.join().unwrap();
            let got = (count.load(Ordering::SeqCst), sum.load(Ordering::SeqCst));
            assert_eq!(got, (total, total * (total - 1) / 2));
        });
    }
}

/// Between two fibers of one thread std wakes nobody who is parked; who looks again after a time is served.
#[test]
fn a_channel_within_a_thread_is_served_by_its_time_limit() {
    on_fibers(1, || {
        let (sender, receiver) = mpsc::channel::<usize>();
        let receives = kapok::spawn_local(move || {
            let mut received = Vec::new();
            while received.len() < 20 {
                match receiver.recv_timeout(Duration::from_millis(2)) {
                    Ok(value) => received.push(value),
                    Err(mpsc::RecvTimeoutError::Timeout) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            received
        });
        for value in 0..20 {
            // It is parked by now.
            kapok::sleep(Duration::from_millis(1)).unwrap();
            sender.send(value).unwrap();
        }
        assert_eq!(receives.join().unwrap(), (0..20).collect::<Vec<_>>());
    });
}
