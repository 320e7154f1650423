//! Locks and channels under futures that are polled and dropped at random, on one thread.
//!
//! Every step is chosen by a seeded generator and every wake-up is recorded, so a lost wake-up is
//! seen as such: nobody has been woken, and yet the first in line could go on.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use kapok::sync::channel::{self, RecvError, SendErrorReason, TryRecvError, TrySendError};
use kapok::sync::{Condvar, Mutex, RwLock, Semaphore, oneshot};

fn steps() -> usize {
    match std::env::var("KAPOK_SCALE").as_deref() {
        Ok("full") => 2_000_000,
        _ => 100_000,
    }
}

/// Xorshift: enough to shuffle steps, and the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A future and whether it was woken since it was last polled.
struct Task<'a, T, K> {
    future: Pin<Box<dyn Future<Output = T> + 'a>>,
    flag: Arc<Flag>,
    note: K,
}

impl<'a, T, K> Task<'a, T, K> {
    fn new(future: impl Future<Output = T> + 'a, note: K) -> Task<'a, T, K> {
        Task { future: Box::pin(future), flag: Arc::default(), note }
    }

    fn poll(&mut self) -> Poll<T> {
        self.flag.0.store(false, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&self.flag));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }

    fn woken(&self) -> bool {
        self.flag.0.load(Ordering::Relaxed)
    }
}

/// Polls those that were woken until nobody is any more.
fn settle<T, K>(tasks: &mut Vec<Task<'_, T, K>>, mut done: impl FnMut(T, K)) {
    while let Some(at) = tasks.iter().position(Task::woken) {
        if let Poll::Ready(output) = tasks[at].poll() {
            done(output, tasks.remove(at).note);
        }
    }
}

#[test]
fn a_semaphore_loses_neither_permits_nor_wake_ups() {
    const TOTAL: usize = 5;
    for seed in 1..=4 {
        let semaphore = Semaphore::new(TOTAL);
        let mut random = Random(seed);
        let (mut waiting, mut held) = (Vec::new(), Vec::new());
        for _ in 0..steps() / 4 {
            match random.below(10) {
                0..3 if waiting.len() < 12 => {
                    let need = 1 + random.below(3);
                    let mut task = Task::new(semaphore.acquire_many_async(need), need);
                    match task.poll() {
                        Poll::Ready(permit) => held.push((permit, need)),
                        Poll::Pending => waiting.push(task),
                    }
                }
                3 if !waiting.is_empty() => drop(waiting.remove(random.below(waiting.len()))),
                4..6 if !waiting.is_empty() => {
                    // Woken or not: polls without a reason must be harmless.
                    let at = random.below(waiting.len());
                    if let Poll::Ready(permit) = waiting[at].poll() {
                        held.push((permit, waiting.remove(at).note));
                    }
                }
                6..8 if !held.is_empty() => drop(held.swap_remove(random.below(held.len()))),
                8 => {
                    if let Some(permit) = semaphore.try_acquire() {
                        held.push((permit, 1));
                    }
                }
                9 => {
                    settle(&mut waiting, |permit, need| held.push((permit, need)));
                    if let Some(first) = waiting.first() {
                        assert!(first.note > semaphore.available_permits(), "a lost wake-up");
                    }
                }
                _ => {}
            }
            let taken: usize = held.iter().map(|(_, count)| count).sum();
            assert_eq!(taken + semaphore.available_permits(), TOTAL);
        }
        waiting.clear();
        held.clear();
        assert!(semaphore.try_acquire_many(TOTAL).is_some(), "nothing stays reserved");
    }
}

#[test]
fn a_rwlock_keeps_readers_and_writers_apart_and_awake() {
    enum Guard<'a> {
        Read(#[allow(dead_code)] kapok::sync::RwLockReadGuard<'a, u32>),
        Write(#[allow(dead_code)] kapok::sync::RwLockWriteGuard<'a, u32>),
    }
    let lock = RwLock::new(0);
    let mut random = Random(11);
    let mut held: Vec<Guard<'_>> = Vec::new();
    let mut waiting: Vec<Task<'_, Guard<'_>, bool>> = Vec::new();
    for _ in 0..steps() {
        match random.below(9) {
            at @ 0..3 if waiting.len() < 12 => {
                let lock = &lock;
                let mut task = match at {
                    0 => Task::new(async { Guard::Write(lock.write_async().await) }, true),
                    _ => Task::new(async { Guard::Read(lock.read_async().await) }, false),
                };
                match task.poll() {
                    Poll::Ready(guard) => held.push(guard),
                    Poll::Pending => waiting.push(task),
                }
            }
            3 if !waiting.is_empty() => drop(waiting.remove(random.below(waiting.len()))),
            4 if !waiting.is_empty() => {
                let at = random.below(waiting.len());
                if let Poll::Ready(guard) = waiting[at].poll() {
                    held.push(guard);
                    waiting.remove(at);
                }
            }
            5..7 if !held.is_empty() => drop(held.swap_remove(random.below(held.len()))),
            7 if !held.is_empty() => {
                held = held
                    .into_iter()
                    .map(|guard| match guard {
                        Guard::Write(guard) => Guard::Read(guard.downgrade()),
                        read => read,
                    })
                    .collect();
            }
            8 => {
                settle(&mut waiting, |guard, _| held.push(guard));
                let writing = held.iter().any(|guard| matches!(guard, Guard::Write(_)));
                match waiting.first() {
                    Some(writer) if writer.note => assert!(!held.is_empty(), "a lost wake-up"),
                    Some(_) => assert!(writing, "a lost wake-up"),
                    None => {}
                }
            }
            _ => {}
        }
        let writers = held.iter().filter(|guard| matches!(guard, Guard::Write(_))).count();
        assert!(writers == 0 || held.len() == 1, "{writers} writers among {}", held.len());
    }
}

/// Counts how many of its kind are alive.
struct Counted {
    number: usize,
    alive: Arc<AtomicUsize>,
}

impl Counted {
    fn new(number: usize, alive: &Arc<AtomicUsize>) -> Counted {
        alive.fetch_add(1, Ordering::Relaxed);
        Counted { number, alive: Arc::clone(alive) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

#[test]
fn a_channel_loses_neither_values_nor_wake_ups() {
    const CAPACITY: usize = 3;
    let alive = Arc::new(AtomicUsize::new(0));
    for bounded in [true, false] {
        let (sender, receiver) =
            if bounded { channel::bounded(CAPACITY) } else { channel::unbounded() };
        let mut random = Random(23);
        let mut next = 0;
        // What the channel holds, by what the sends and receives said.
        let mut model = VecDeque::new();
        let (mut sending, mut receiving) = (Vec::new(), Vec::new());
        for _ in 0..steps() {
            match random.below(11) {
                0..3 if sending.len() < 8 => {
                    let mut task = Task::new(sender.send_async(Counted::new(next, &alive)), next);
                    match task.poll() {
                        Poll::Ready(sent) => {
                            sent.unwrap();
                            model.push_back(next);
                        }
                        Poll::Pending => sending.push(task),
                    }
                    next += 1;
                }
                3..6 if receiving.len() < 8 => {
                    let mut task = Task::new(receiver.recv_async(), ());
                    match task.poll() {
                        Poll::Ready(value) => {
                            assert_eq!(Some(value.unwrap().number), model.pop_front());
                        }
                        Poll::Pending => receiving.push(task),
                    }
                }
                6 if !sending.is_empty() => drop(sending.remove(random.below(sending.len()))),
                7 if !receiving.is_empty() => {
                    drop(receiving.remove(random.below(receiving.len())));
                }
                8 => {
                    if let Ok(value) = receiver.try_recv() {
                        assert_eq!(Some(value.number), model.pop_front());
                    }
                }
                9 => {
                    if let Ok(()) = sender.try_send(Counted::new(next, &alive)) {
                        model.push_back(next);
                    }
                    next += 1;
                }
                10 => {
                    // A sender that goes on wakes a receiver, and the other way round.
                    while sending.iter().any(Task::woken) || receiving.iter().any(Task::woken) {
                        settle(&mut sending, |sent, number| {
                            sent.unwrap();
                            model.push_back(number);
                        });
                        settle(&mut receiving, |value, ()| {
                            assert_eq!(Some(value.unwrap().number), model.pop_front());
                        });
                    }
                    assert!(receiving.is_empty() || model.is_empty(), "a lost wake-up");
                    assert!(sending.is_empty() || model.len() == CAPACITY, "a lost wake-up");
                }
                _ => {}
            }
            assert_eq!(receiver.len(), model.len());
            assert!(!bounded || model.len() <= CAPACITY);
            assert_eq!(alive.load(Ordering::Relaxed), model.len() + sending.len());
        }
        drop((sending, receiving));
        drop((sender, receiver));
        assert_eq!(alive.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn a_notification_of_a_dropped_waiter_goes_to_another() {
    let (mutex, condvar) = (Mutex::new(()), Condvar::new());
    let mut first = Task::new(condvar.wait_async(mutex.try_lock().unwrap()), ());
    assert!(first.poll().is_pending());
    let mut second = Task::new(condvar.wait_async(mutex.try_lock().unwrap()), ());
    assert!(second.poll().is_pending());
    let mut third = Task::new(condvar.wait_async(mutex.try_lock().unwrap()), ());
    assert!(third.poll().is_pending());

    condvar.notify_one();
    assert!(first.woken() && !second.woken());
    // Not even polled since.
    drop(first);
    assert!(second.woken() && !third.woken());
    // Notified and seen, but the mutex is another's.
    let guard = mutex.try_lock().unwrap();
    assert!(second.poll().is_pending());
    drop(second);
    assert!(third.woken());
    assert!(third.poll().is_pending());
    drop(guard);
    assert!(third.poll().is_ready());
    // And with nobody left it is gone: the next waiter waits.
    let mut fourth = Task::new(condvar.wait_async(mutex.try_lock().unwrap()), ());
    assert!(fourth.poll().is_pending());
    assert!(fourth.poll().is_pending());
    drop(fourth);
    condvar.notify_all();
    assert!(mutex.try_lock().is_some());
}

#[test]
fn notify_all_wakes_everybody_once() {
    let (mutex, condvar) = (Mutex::new(()), Condvar::new());
    let mut tasks: Vec<_> = (0..20)
        .map(|_| Task::new(condvar.wait_async(mutex.try_lock().unwrap()), ()))
        .map(|mut task| {
            assert!(task.poll().is_pending());
            task
        })
        .collect();
    condvar.notify_all();
    assert!(tasks.iter().all(Task::woken));
    let mut finished = 0;
    settle(&mut tasks, |_guard, ()| finished += 1);
    assert_eq!(finished, 20);
}

#[test]
fn newcomers_overtake_a_waiter_at_most_eight_times() {
    let mutex = Mutex::new(());
    let mut guard = mutex.try_lock();
    let mut waiter = Task::new(mutex.lock_async(), ());
    assert!(waiter.poll().is_pending());
    let mut overtaken = 0;
    loop {
        drop(guard.take());
        assert!(waiter.woken(), "a lost wake-up");
        guard = mutex.try_lock();
        if guard.is_none() {
            break;
        }
        assert!(waiter.poll().is_pending());
        overtaken += 1;
        assert!(overtaken <= 8, "overtaken without end");
    }
    // Free, but reserved: for the waiter, not for a newcomer in either form.
    let mut newcomer = Task::new(mutex.lock_async(), ());
    assert!(newcomer.poll().is_pending());
    let Poll::Ready(held) = waiter.poll() else { panic!("not served") };
    drop(held);
    assert!(newcomer.woken());
    assert!(newcomer.poll().is_ready());
    assert!(mutex.try_lock().is_some());
}

#[test]
fn a_reservation_ends_with_the_waiter_that_made_it() {
    let mutex = Mutex::new(());
    let guard = mutex.try_lock();
    let mut waiter = Task::new(mutex.lock_async(), ());
    assert!(waiter.poll().is_pending());
    std::thread::sleep(Duration::from_millis(2));
    drop(guard);
    // Woken in vain, and it has waited long.
    let guard = mutex.try_lock();
    assert!(guard.is_some() && waiter.poll().is_pending());
    drop(guard);
    assert!(mutex.try_lock().is_none());
    drop(waiter);
    assert!(mutex.try_lock().is_some());
}

#[test]
fn a_writer_is_not_starved_by_overlapping_readers() {
    let lock = RwLock::new(0);
    let mut reader = lock.try_read().unwrap();
    let mut writer = Task::new(lock.write_async(), ());
    assert!(writer.poll().is_pending());
    std::thread::sleep(Duration::from_millis(2));
    let mut rounds = 0;
    // The next reader comes before the last one goes.
    while let Some(next) = lock.try_read() {
        reader = next;
        rounds += 1;
        assert!(rounds < 3, "readers overtake without end");
    }
    drop(reader);
    assert!(writer.woken());
    assert!(writer.poll().is_ready());
    assert!(lock.try_read().is_some());
}

#[test]
fn many_permits_are_not_starved_by_few() {
    let semaphore = Semaphore::new(4);
    let mut held: VecDeque<_> = (0..4).map(|_| semaphore.try_acquire().unwrap()).collect();
    let mut greedy = Task::new(semaphore.acquire_many_async(4), ());
    assert!(greedy.poll().is_pending());
    std::thread::sleep(Duration::from_millis(2));
    held.pop_front();
    assert!(semaphore.try_acquire().is_none(), "kept for the one that waits");
    held.clear();
    assert!(greedy.woken() && greedy.poll().is_ready());
}

#[test]
fn a_bounded_channel_holds_its_capacity_and_no_more() {
    let (sender, receiver) = channel::bounded(2);
    sender.try_send(1).unwrap();
    sender.send(2).unwrap();
    assert_eq!(sender.try_send(3), Err(TrySendError::Full(3)));
    assert_eq!(receiver.try_recv(), Ok(1));
    sender.try_send(3).unwrap();
    assert_eq!((receiver.recv(), receiver.recv()), (Ok(2), Ok(3)));
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
}

#[test]
#[should_panic(expected = "capacity of at least 1")]
fn a_channel_without_capacity_is_refused() {
    let _ = channel::bounded::<()>(0);
}

#[test]
fn receivers_get_what_is_left_and_then_the_end() {
    let (sender, receiver) = channel::bounded(4);
    let last = sender.clone();
    sender.send(1).unwrap();
    drop(sender);
    last.send(2).unwrap();
    let mut early = Task::new(receiver.recv_async(), ());
    assert_eq!(early.poll(), Poll::Ready(Ok(1)));
    assert_eq!(receiver.recv(), Ok(2));
    let mut late = Task::new(receiver.recv_async(), ());
    assert!(late.poll().is_pending());
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
    drop(last);
    assert!(late.woken());
    assert_eq!(late.poll(), Poll::Ready(Err(RecvError::Disconnected)));
    assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));
    assert!(receiver.is_disconnected() && receiver.iter().next().is_none());
}

#[test]
fn senders_get_their_values_back_when_the_receivers_are_gone() {
    let alive = Arc::new(AtomicUsize::new(0));
    let (sender, receiver) = channel::bounded(1);
    sender.send(Counted::new(0, &alive)).unwrap();
    let mut blocked = Task::new(sender.send_async(Counted::new(1, &alive)), ());
    assert!(blocked.poll().is_pending());
    drop(receiver.clone());
    assert!(!blocked.woken() && !sender.is_disconnected());
    drop(receiver);
    assert_eq!(alive.load(Ordering::Relaxed), 1, "what was in the channel is dropped with it");
    assert!(blocked.woken() && sender.is_disconnected());
    let Poll::Ready(Err(error)) = blocked.poll() else { panic!("sent to nobody") };
    assert_eq!((error.reason, error.value.number), (SendErrorReason::Disconnected, 1));
    drop(error);
    let error = sender.send(Counted::new(2, &alive)).unwrap_err();
    assert_eq!((error.reason, error.into_value().number), (SendErrorReason::Disconnected, 2));
    let error = sender.try_send(Counted::new(3, &alive)).unwrap_err();
    assert!(matches!(&error, TrySendError::Disconnected(value) if value.number == 3));
    drop(error);
    assert_eq!(alive.load(Ordering::Relaxed), 0);
}

#[test]
fn a_oneshot_gives_its_value_to_one_side_or_the_other() {
    let (sender, receiver) = oneshot::channel();
    assert!(!sender.is_disconnected());
    drop(receiver);
    assert!(sender.is_disconnected());
    assert_eq!(sender.send(1), Err(1));

    let (sender, mut receiver) = oneshot::channel();
    let mut task = Task::new(receiver.recv_async(), ());
    assert!(task.poll().is_pending());
    // The value comes after the wait was given up.
    let flag = Arc::clone(&task.flag);
    drop(task);
    sender.send(2).unwrap();
    assert!(flag.0.load(Ordering::Relaxed));
    assert_eq!(receiver.recv(), Ok(2));
    assert_eq!(receiver.recv(), Err(RecvError::Disconnected));

    let (sender, receiver) = oneshot::channel::<u8>();
    let mut task = Task::new(receiver, ());
    assert!(task.poll().is_pending());
    drop(sender);
    assert!(task.woken());
    assert_eq!(task.poll(), Poll::Ready(Err(RecvError::Disconnected)));

    let alive = Arc::new(AtomicUsize::new(0));
    let (sender, receiver) = oneshot::channel();
    assert!(sender.send(Counted::new(0, &alive)).is_ok());
    drop(receiver);
    assert_eq!(alive.load(Ordering::Relaxed), 0);
}

#[test]
fn wakers_run_and_end_without_the_lock() {
    /// Comes back to the semaphore from `wake` and from its destructor.
    struct Meddler(Arc<Semaphore>, Arc<AtomicUsize>);
    impl Wake for Meddler {
        fn wake(self: Arc<Self>) {
            // Needs the queue's lock: it enters the queue and leaves it.
            let mut task = Task::new(self.0.acquire_many_async(100), ());
            assert!(task.poll().is_pending());
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }
    impl Drop for Meddler {
        fn drop(&mut self) {
            let mut task = Task::new(self.0.acquire_many_async(100), ());
            assert!(task.poll().is_pending());
            self.1.fetch_add(10, Ordering::Relaxed);
        }
    }
    let (semaphore, calls) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut future = Box::pin(semaphore.acquire_async());
    for _ in 0..2 {
        let waker = Waker::from(Arc::new(Meddler(Arc::clone(&semaphore), Arc::clone(&calls))));
        assert!(future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    }
    assert_eq!(calls.load(Ordering::Relaxed), 10, "the replaced waker has ended");
    semaphore.add_permits(1);
    assert_eq!(calls.load(Ordering::Relaxed), 21, "the other was woken and has ended");
    assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
}
