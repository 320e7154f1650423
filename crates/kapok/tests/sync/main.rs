//! Locks, conditions and channels between workers of different kinds at once.
//!
//! Each behaviour is written once, over a way to start a worker; `behaviours!` at the end runs all
//! of them for each way. Beside those workers, which use the waiting forms, there are always tasks
//! on a small executor, which use the futures.

mod workers;

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use kapok::sync::channel::{self, RecvError, SendErrorReason};
use kapok::sync::{Condvar, Mutex, RwLock, Semaphore, oneshot};
use workers::{
    Spawn, ends, fiber_on_one_loop, fiber_on_two_loops, fiber_or_thread, join_all, poll_and_drop,
    rounds, switch, task, thread,
};

fn one_at_a_time_has_the_mutex(spawn: Spawn) {
    let (workers, rounds) = (3, rounds(20_000));
    let pair = Arc::new(Mutex::new((0, 0)));
    let mut joins = Vec::new();
    for _ in 0..workers {
        let of_worker = Arc::clone(&pair);
        joins.push(spawn(Box::new(move || {
            for _ in 0..rounds {
                let mut pair = of_worker.lock();
                pair.0 += 1;
                assert_eq!(pair.0, pair.1 + 1);
                pair.1 += 1;
            }
        })));
        let of_task = Arc::clone(&pair);
        joins.push(task(async move {
            for round in 0..rounds {
                let mut pair = of_task.lock_async().await;
                pair.0 += 1;
                if round % 64 == 0 {
                    // Held across a suspension.
                    switch().await;
                }
                assert_eq!(pair.0, pair.1 + 1);
                pair.1 += 1;
            }
        }));
    }
    join_all(joins);
    assert_eq!(*pair.lock(), (2 * workers * rounds, 2 * workers * rounds));
}

fn readers_see_what_writers_finished(spawn: Spawn) {
    let rounds = rounds(10_000);
    let pair = Arc::new(RwLock::new((0, 0)));
    let mut joins = Vec::new();
    for number in 0..4 {
        let pair_of_worker = Arc::clone(&pair);
        joins.push(spawn(Box::new(move || {
            for round in 0..rounds {
                if (round + number) % 4 == 0 {
                    let mut pair = pair_of_worker.write();
                    pair.0 += 1;
                    pair.1 += 1;
                    let pair = pair.downgrade();
                    assert_eq!(pair.0, pair.1);
                } else {
                    let pair = pair_of_worker.read();
                    assert_eq!(pair.0, pair.1);
                }
            }
        })));
    }
    for number in 0..2 {
        let pair = Arc::clone(&pair);
        joins.push(task(async move {
            for round in 0..rounds {
                if (round + number) % 4 == 0 {
                    let mut pair = pair.write_async().await;
                    pair.0 += 1;
                    if round % 16 == 0 {
                        switch().await;
                    }
                    pair.1 += 1;
                } else {
                    let pair = pair.read_async().await;
                    assert_eq!(pair.0, pair.1);
                }
            }
        }));
    }
    join_all(joins);
    let written = 6 * (rounds / 4);
    assert_eq!(*pair.read(), (written, written));
}

fn a_condition_is_passed_to_and_fro(spawn: Spawn) {
    let rounds = rounds(5_000);
    let shared = Arc::new((Mutex::new(0), Condvar::new()));
    let of_worker = Arc::clone(&shared);
    let ping = spawn(Box::new(move || {
        let (turn, changed) = &*of_worker;
        for round in 0..rounds {
            *changed.wait_while(turn.lock(), |turn| *turn != 2 * round) += 1;
            changed.notify_one();
        }
    }));
    let of_task = Arc::clone(&shared);
    let pong = task(async move {
        let (turn, changed) = &*of_task;
        for round in 0..rounds {
            let mut guard = turn.lock_async().await;
            while *guard != 2 * round + 1 {
                guard = changed.wait_async(guard).await;
            }
            *guard += 1;
            drop(guard);
            changed.notify_one();
        }
    });
    join_all(vec![ping, pong]);
    assert_eq!(*shared.0.lock(), 2 * rounds);
}

fn a_wait_with_a_limit_tells_which_way_it_ended(spawn: Spawn) {
    let shared = Arc::new((Mutex::new(false), Condvar::new()));
    let (answer, answers) = mpsc::channel();
    let of_worker = Arc::clone(&shared);
    let worker = spawn(Box::new(move || {
        let (flag, changed) = &*of_worker;
        let before = Instant::now();
        let (guard, notified) = changed.wait_timeout(flag.lock(), Duration::from_millis(20));
        assert!(!notified && before.elapsed() >= Duration::from_millis(20));
        drop(guard);
        let mut guard = flag.lock();
        answer.send(()).unwrap();
        while !*guard {
            let notified;
            (guard, notified) = changed.wait_timeout(guard, Duration::MAX / 2);
            assert!(notified);
        }
        let (_, notified) = changed.wait_until(guard, before);
        assert!(!notified, "the limit was over before");
    }));
    answers.recv().unwrap();
    *shared.0.lock() = true;
    shared.1.notify_one();
    worker();
}

fn permits_are_conserved(spawn: Spawn) {
    const TOTAL: usize = 4;
    let rounds = rounds(10_000);
    let semaphore = Arc::new(Semaphore::new(TOTAL));
    let held = Arc::new(AtomicUsize::new(0));
    let mut joins = Vec::new();
    let hold = |held: &AtomicUsize, count| {
        assert!(held.fetch_add(count, Ordering::SeqCst) + count <= TOTAL);
        held.fetch_sub(count, Ordering::SeqCst);
    };
    for number in 0..3 {
        let (of_worker, its_held) = (Arc::clone(&semaphore), Arc::clone(&held));
        joins.push(spawn(Box::new(move || {
            for round in 0..rounds {
                let count = 1 + (round + number) % TOTAL;
                let permit = of_worker.acquire_many(count).unwrap();
                hold(&its_held, count);
                drop(permit);
                drop(poll_and_drop(of_worker.acquire_many_async(count), round % 3));
            }
        })));
        let (of_task, its_held) = (Arc::clone(&semaphore), Arc::clone(&held));
        joins.push(task(async move {
            for round in 0..rounds {
                let permit = Arc::clone(&of_task).acquire_owned_async().await;
                hold(&its_held, 1);
                if round % 32 == 0 {
                    switch().await;
                }
                drop(permit);
            }
        }));
    }
    join_all(joins);
    assert_eq!(semaphore.available_permits(), TOTAL);
    assert!(semaphore.try_acquire_many(TOTAL).is_some());
}

/// Many senders and receivers, and futures dropped by the wayside: each value arrives once, those
/// of a sender in order.
fn values_arrive_once_and_in_order(spawn: Spawn, capacity: Option<usize>) {
    const SENDERS: usize = 4;
    const RECEIVERS: usize = 3;
    let rounds = rounds(10_000);
    let (sender, receiver) = capacity.map_or_else(channel::unbounded, channel::bounded);
    let mut joins = Vec::new();
    for number in 0..SENDERS {
        let sender = sender.clone();
        joins.push(if number % 2 == 0 {
            spawn(Box::new(move || {
                for round in 0..rounds {
                    sender.send((number, round)).unwrap();
                    assert!(capacity.is_none_or(|capacity| sender.len() <= capacity));
                }
            }))
        } else {
            task(async move {
                for round in 0..rounds {
                    if round % 8 == 0
                        && poll_and_drop(sender.send_async((number, round)), 2).is_some()
                    {
                        continue;
                    }
                    sender.send_async((number, round)).await.unwrap();
                }
            })
        });
    }
    drop(sender);
    let (results, got) = mpsc::channel();
    for number in 0..RECEIVERS {
        let (receiver, results) = (receiver.clone(), results.clone());
        joins.push(if number % 2 == 0 {
            spawn(Box::new(move || {
                let mut values = Vec::new();
                loop {
                    if values.len() % 8 == 0
                        && let Some(Ok(value)) = poll_and_drop(receiver.recv_async(), 2)
                    {
                        values.push(value);
                    }
                    match receiver.recv() {
                        Ok(value) => values.push(value),
                        Err(error) => break assert_eq!(error, RecvError::Disconnected),
                    }
                }
                results.send(values).unwrap();
            }))
        } else {
            task(async move {
                let mut values = Vec::new();
                while let Ok(value) = receiver.recv_async().await {
                    values.push(value);
                }
                results.send(values).unwrap();
            })
        });
    }
    drop((receiver, results));
    join_all(joins);
    let mut times = vec![0; SENDERS * rounds];
    for values in got {
        let mut last = [None; SENDERS];
        for (sender, round) in values {
            assert!(last[sender] < Some(round), "{round} of {sender} after {:?}", last[sender]);
            last[sender] = Some(round);
            times[sender * rounds + round] += 1;
        }
    }
    assert!(times.iter().all(|times| *times == 1));
}

fn values_through_a_narrow_channel(spawn: Spawn) {
    values_arrive_once_and_in_order(spawn, Some(1));
}

fn values_through_a_bounded_channel(spawn: Spawn) {
    values_arrive_once_and_in_order(spawn, Some(16));
}

fn values_through_an_unbounded_channel(spawn: Spawn) {
    values_arrive_once_and_in_order(spawn, None);
}

fn who_waits_learns_that_the_other_side_is_gone(spawn: Spawn) {
    let (sender, receiver) = channel::bounded::<u32>(1);
    let receivers: Vec<_> = (0..2)
        .map(|_| {
            let receiver = receiver.clone();
            spawn(Box::new(move || assert_eq!(receiver.recv(), Err(RecvError::Disconnected))))
        })
        .collect();
    thread::sleep(Duration::from_millis(5));
    drop(sender);
    join_all(receivers);

    let (sender, receiver) = channel::bounded(1);
    sender.send(0).unwrap();
    let senders: Vec<_> = (1..3)
        .map(|number| {
            let sender = sender.clone();
            spawn(Box::new(move || {
                let error = sender.send(number).unwrap_err();
                assert_eq!((error.reason, error.value), (SendErrorReason::Disconnected, number));
            }))
        })
        .collect();
    thread::sleep(Duration::from_millis(5));
    drop(receiver);
    join_all(senders);
}

fn requests_are_answered_once(spawn: Spawn) {
    let rounds = rounds(5_000);
    let (requests, received) = channel::bounded::<(usize, oneshot::Sender<usize>)>(4);
    let server = spawn(Box::new(move || {
        for (number, answer) in received {
            // Some gave up, some get no answer.
            if number % 7 != 0 {
                let _ = answer.send(2 * number);
            }
        }
    }));
    let of_task = requests.clone();
    let client = task(async move {
        for number in 0..rounds {
            let (answer, answered) = oneshot::channel();
            of_task.send_async((number, answer)).await.unwrap();
            if number % 5 == 0 {
                poll_and_drop(answered, 1);
                continue;
            }
            let expected =
                if number % 7 == 0 { Err(RecvError::Disconnected) } else { Ok(2 * number) };
            assert_eq!(answered.await, expected);
        }
    });
    let caller = spawn(Box::new(move || {
        for number in 0..rounds {
            let (answer, mut answered) = oneshot::channel();
            requests.send((number, answer)).unwrap();
            let expected =
                if number % 7 == 0 { Err(RecvError::Disconnected) } else { Ok(2 * number) };
            assert_eq!(answered.recv(), expected);
        }
    }));
    join_all(vec![client, caller, server]);
}

/// Futures that are polled once for nobody and dropped, between workers that must all be served.
fn a_storm_of_dropped_waits_stops_nobody(spawn: Spawn) {
    let rounds = rounds(100_000) / 4;
    let mutex = Arc::new(Mutex::new(0));
    let lock = Arc::new(RwLock::new(0));
    let (sender, receiver) = channel::bounded(2);
    let over = Arc::new(AtomicBool::new(false));
    let mut joins = Vec::new();
    for _ in 0..2 {
        let (mutex, lock, over) = (Arc::clone(&mutex), Arc::clone(&lock), Arc::clone(&over));
        let (sender, receiver) = (sender.clone(), receiver.clone());
        joins.push(task(async move {
            while !over.load(Ordering::Relaxed) {
                for polls in [1, 2, 1, 3] {
                    drop(poll_and_drop(mutex.lock_async(), polls));
                    drop(poll_and_drop(lock.write_async(), polls));
                    drop(poll_and_drop(lock.read_async(), polls));
                    // What it takes goes back: the sum below stays.
                    if let Some(Ok(value)) = poll_and_drop(receiver.recv_async(), polls) {
                        sender.send_async(value).await.unwrap();
                    }
                    if let Some(sent) = poll_and_drop(sender.send_async(1), polls) {
                        sent.unwrap();
                        assert_eq!(receiver.recv_async().await, Ok(1));
                    }
                }
                switch().await;
            }
        }));
    }
    let mut served = Vec::new();
    for _ in 0..2 {
        let (mutex, lock) = (Arc::clone(&mutex), Arc::clone(&lock));
        served.push(spawn(Box::new(move || {
            for round in 0..rounds {
                *mutex.lock() += 1;
                match round % 4 {
                    0 => *lock.write() += 1,
                    _ => drop(lock.read()),
                }
            }
        })));
    }
    let sent = spawn(Box::new(move || {
        for _ in 0..rounds {
            sender.send(1).unwrap();
        }
    }));
    let received = spawn(Box::new(move || {
        for _ in 0..rounds {
            assert_eq!(receiver.recv(), Ok(1));
        }
    }));
    served.extend([sent, received]);
    join_all(served);
    over.store(true, Ordering::Relaxed);
    join_all(joins);
    assert_eq!(*mutex.lock(), 2 * rounds);
    assert_eq!(*lock.read(), 2 * rounds.div_ceil(4));
}

/// One worker takes the lock again as soon as it let it go; another wants it now and then.
fn nobody_starves_beside_a_busy_worker(spawn: Spawn) {
    let shared = Arc::new((Mutex::new(()), RwLock::new(()), AtomicBool::new(false)));
    let mut busy = Vec::new();
    for _ in 0..2 {
        let shared = Arc::clone(&shared);
        busy.push(spawn(Box::new(move || {
            while !shared.2.load(Ordering::Relaxed) {
                let held = (shared.0.lock(), shared.1.read());
                let until = Instant::now() + Duration::from_micros(50);
                while Instant::now() < until {
                    std::hint::spin_loop();
                }
                drop(held);
            }
        })));
    }
    for _ in 0..20 {
        drop(shared.1.write());
        drop(shared.0.lock());
    }
    let of_task = Arc::clone(&shared);
    task(async move {
        for _ in 0..20 {
            drop(of_task.0.lock_async().await);
            drop(of_task.1.write_async().await);
        }
    })();
    shared.2.store(true, Ordering::Relaxed);
    join_all(busy);
}

/// All behaviours, for each way to start a worker.
macro_rules! behaviours {
    ($($kind:ident: $spawn:path;)+ => $behaviours:tt) => {
        $(behaviours!(@of $kind $spawn => $behaviours);)+
    };
    (@of $kind:ident $spawn:path => [$($behaviour:ident)+]) => {
        mod $kind {
            $(#[test]
            fn $behaviour() {
                super::ends(|| super::$behaviour($spawn));
            })+
        }
    };
}

behaviours! {
    on_threads: super::thread;
    on_fibers_of_one_loop: super::fiber_on_one_loop;
    on_fibers_of_two_loops: super::fiber_on_two_loops;
    on_fibers_and_threads: super::fiber_or_thread;
    => [
        one_at_a_time_has_the_mutex
        readers_see_what_writers_finished
        a_condition_is_passed_to_and_fro
        a_wait_with_a_limit_tells_which_way_it_ended
        permits_are_conserved
        values_through_a_narrow_channel
        values_through_a_bounded_channel
        values_through_an_unbounded_channel
        who_waits_learns_that_the_other_side_is_gone
        requests_are_answered_once
        a_storm_of_dropped_waits_stops_nobody
        nobody_starves_beside_a_busy_worker
    ]
}

/// Who waits is woken when there is something to take, one after the other; who tries again and again
/// comes at the same moment as others.
#[test]
fn those_who_try_do_not_take_the_same_permit() {
    const LIMIT: usize = 2;
    // By the clock: they must get to run at the same time, and not one after the other.
    let length = Duration::from_secs(2) * rounds(1) as u32;
    let shared = Arc::new((Mutex::new(0), Semaphore::new(LIMIT), AtomicUsize::new(0)));
    let work = move |shared: &(Mutex<usize>, Semaphore, AtomicUsize)| {
        let (mutex, semaphore, held) = shared;
        let (end, mut locked) = (Instant::now() + length, 0);
        while Instant::now() < end {
            for _ in 0..100 {
                if let Some(mut count) = mutex.try_lock() {
                    // Not in one step: a second one in here would undo it.
                    let next = *count + 1;
                    std::hint::spin_loop();
                    *count = next;
                    locked += 1;
                }
                if let Some(_permit) = semaphore.try_acquire() {
                    assert!(held.fetch_add(1, Ordering::SeqCst) < LIMIT);
                    held.fetch_sub(1, Ordering::SeqCst);
                }
            }
        }
        locked
    };
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || work(&shared))
        })
        .collect();
    let locked: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert_eq!(*shared.0.lock(), locked);
    assert_eq!(shared.1.available_permits(), LIMIT);
}

#[test]
fn who_is_told_and_goes_away_passes_it_on() {
    struct Told(AtomicUsize);
    impl Wake for Told {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let semaphore = Semaphore::new(1);
    let permit = semaphore.acquire().unwrap();
    let told = [0; 2].map(|_| Arc::new(Told(AtomicUsize::new(0))));
    let poll = |future: Pin<&mut dyn Future<Output = _>>, told: &Arc<Told>| {
        future.poll(&mut Context::from_waker(&Waker::from(Arc::clone(told)))).map(drop)
    };
    let (mut first, mut second) =
        (Box::pin(semaphore.acquire_async()), Box::pin(semaphore.acquire_async()));
    assert!(poll(first.as_mut(), &told[0]).is_pending());
    assert!(poll(second.as_mut(), &told[1]).is_pending());
    drop(permit);
    let times = || told.each_ref().map(|told| told.0.load(Ordering::SeqCst));
    assert_eq!(times(), [1, 0], "one permit, for the first");
    drop(first);
    assert_eq!(times(), [1, 1]);
    assert!(poll(second.as_mut(), &told[1]).is_ready());
}

#[test]
fn a_panic_releases_the_lock_and_marks_nothing() {
    let mutex = Arc::new(Mutex::new(1));
    let of_thread = Arc::clone(&mutex);
    let result = thread::spawn(move || {
        let _guard = of_thread.lock();
        panic!("on purpose");
    })
    .join();
    assert!(result.is_err());
    assert_eq!(*mutex.lock(), 1);
}

#[test]
fn locks_may_be_statics() {
    static COUNT: Mutex<u32> = Mutex::new(0);
    static LIMIT: Semaphore = Semaphore::new(1);
    static CHANGED: Condvar = Condvar::new();
    static NAMES: RwLock<Vec<&str>> = RwLock::new(Vec::new());
    let permit = LIMIT.acquire().unwrap();
    let worker = thread::spawn(|| {
        *COUNT.lock() += 1;
        NAMES.write().push("worker");
        CHANGED.notify_all();
        assert!(LIMIT.try_acquire().is_none());
    });
    assert_eq!(*CHANGED.wait_while(COUNT.lock(), |count| *count == 0), 1);
    worker.join().unwrap();
    drop(permit);
    assert_eq!(*NAMES.read(), ["worker"]);
}

#[test]
fn guards_and_futures_go_where_their_data_may() {
    fn send<T: Send>(_: &T) {}
    fn sync<T: Sync>(_: &T) {}
    let (mutex, lock) = (Mutex::new(0), RwLock::new(0));
    let (sender, receiver) = channel::bounded::<Box<u8>>(1);
    let condvar = Condvar::new();
    let semaphore = Semaphore::new(1);
    send(&mutex.lock_async());
    send(&lock.write_async());
    send(&condvar.wait_async(mutex.lock()));
    send(&semaphore.acquire_async());
    send(&sender.send_async(Box::new(1)));
    send(&receiver.recv_async());
    send(&mutex.lock());
    sync(&mutex.lock());
    send(&lock.read());
    sync(&lock.write());
    sync(&sender);
    sync(&receiver);
    // A value that may be moved but not shared: locked by a mutex it may be shared.
    sync(&Mutex::new(std::cell::Cell::new(0)));
}
