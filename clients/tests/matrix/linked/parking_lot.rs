//! The crate `parking_lot`: what its locks are good for where fibers are.

use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};

use super::Points;
use crate::place::{Place, Which};
use crate::proof::{Client, Point};
use crate::ticker::beside_a_ticker;

pub(super) static CLIENT: Client = Client {
    name: "parking_lot",
    title: "crate parking_lot",
    server: Which::Nothing,
    remark: "One fiber of each thread waits at a time: see below.",
};

pub(super) fn points() -> Points {
    vec![(Point::Ticker, ticker), (Point::Other, other), (Point::Limit, limit)]
}

const WAIT: Duration = Duration::from_millis(100);

/// A stream on which a byte comes after a while.
fn slow() -> UnixStream {
    let (near, mut far) = UnixStream::pair().unwrap();
    thread::spawn(move || {
        thread::sleep(WAIT);
        far.write_all(b"!").unwrap();
    });
    near
}

fn read(mut stream: UnixStream) {
    stream.read_exact(&mut [0]).unwrap();
}

/// Plain threads that do the same.
fn beside(threads: usize, work: impl Fn() + Send + Sync + 'static) -> Vec<thread::JoinHandle<()>> {
    let work = Arc::new(work);
    (0..threads)
        .map(|_| {
            let work = Arc::clone(&work);
            thread::spawn(move || work())
        })
        .collect()
}

/// A ticker beside a fiber that waits for a lock, which another of its thread holds over a read; and
/// threads wait too.
fn ticker(_: &Place) {
    const ROUNDS: u32 = 3;
    let lock = Arc::new(Mutex::new(0));
    beside_a_ticker(WAIT * ROUNDS * 9 / 10, || {
        for _ in 0..ROUNDS {
            let held = Rc::new(Cell::new(false));
            let (there, holds) = (Arc::clone(&lock), Rc::clone(&held));
            let holder = kapok::spawn_local(move || {
                let mut count = there.lock();
                holds.set(true);
                read(slow());
                *count += 1;
            });
            while !held.get() {
                kapok::yield_now();
            }
            let shared = Arc::clone(&lock);
            let threads = beside(2, move || *shared.lock() += 1);
            // The one fiber that waits.
            *lock.lock() += 1;
            holder.join().unwrap();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        }
    });
    assert_eq!(*lock.lock(), 4 * ROUNDS);
}

/// A fiber waits at a condition for another of its thread, then for a thread; and to write, until others
/// of its thread have read.
fn other(_: &Place) {
    let pair = Rc::new((Mutex::new(0), Condvar::new()));
    let turns = Rc::clone(&pair);
    let waiter = kapok::spawn_local(move || {
        let mut turn = turns.0.lock();
        while *turn < 10 {
            turns.1.wait(&mut turn);
        }
    });
    for _ in 0..10 {
        thread::sleep(Duration::from_millis(2));
        *pair.0.lock() += 1;
        pair.1.notify_all();
    }
    waiter.join().unwrap();

    let pair = Arc::new((Mutex::new(false), Condvar::new()));
    let sets = Arc::clone(&pair);
    beside_a_ticker(WAIT * 9 / 10, || {
        let thread = thread::spawn(move || {
            thread::sleep(WAIT);
            *sets.0.lock() = true;
            sets.1.notify_one();
        });
        let mut set = pair.0.lock();
        pair.1.wait_while(&mut set, |set| !*set);
        drop(set);
        thread.join().unwrap();
    });

    let table = Arc::new(RwLock::new((0, 0)));
    let reading = Arc::new(AtomicU32::new(0));
    let readers: Vec<_> = (0..5)
        .map(|_| {
            let (table, reading) = (Arc::clone(&table), Arc::clone(&reading));
            kapok::spawn_local(move || {
                let pair = table.read();
                reading.fetch_add(1, Ordering::SeqCst);
                read(slow());
                assert_eq!(*pair, (0, 0));
                reading.fetch_sub(1, Ordering::SeqCst);
            })
        })
        .collect();
    while reading.load(Ordering::SeqCst) < 5 {
        kapok::yield_now();
    }
    beside_a_ticker(WAIT / 2, || {
        let mut pair = table.write();
        assert_eq!(reading.load(Ordering::SeqCst), 0, "readers were there");
        pair.0 += 1;
        let read_by_threads = Arc::clone(&table);
        let threads = beside(2, move || assert_eq!(*read_by_threads.read(), (1, 1)));
        read(slow());
        pair.1 += 1;
        drop(pair);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    readers.into_iter().for_each(|reader| reader.join().unwrap());
}

/// Waits that have a time limit end by it.
fn limit(_: &Place) {
    let lock = Rc::new(Mutex::new(()));
    let guard = lock.lock();
    let (same, condition) = (Rc::clone(&lock), Condvar::new());
    beside_a_ticker(WAIT * 18 / 10, || {
        let waiter = kapok::spawn_local(move || same.try_lock_for(WAIT).is_none());
        assert!(waiter.join().unwrap(), "it was locked");
        let mut guard = guard;
        assert!(condition.wait_for(&mut guard, WAIT).timed_out());
    });
}
