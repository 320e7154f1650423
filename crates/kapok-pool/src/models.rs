//! `RUSTFLAGS="--cfg loom" cargo test --release -p kapok-pool --lib model`

use std::sync::Arc;
use std::task::{Wake, Waker};

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::thread;

use crate::cell::{Cell, Landed, Landing};
use crate::channel::{Channel, Refused};
use crate::free::FreeList;
use crate::sleep::SleepFlag;

const OUTCOME: Landed = Landed { res: 7, flags: 0 };

/// Runs a model with as many forced switches as find all that more would find, as far as was seen.
fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

struct Woken(AtomicBool);

impl Woken {
    fn new() -> (Arc<Woken>, Waker) {
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        (Arc::clone(&woken), Waker::from(woken))
    }

    fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The I/O thread's side of a cell. Says whether the cell was left to it.
fn land(cell: &Cell) -> bool {
    // SAFETY: each model has one lander, which lands once.
    match unsafe { cell.land(OUTCOME) } {
        Landing::Delivered(waker) => {
            if let Some(waker) = waker {
                waker.wake();
            }
            false
        }
        Landing::Abandoned => true,
    }
}

#[test]
fn model_of_a_waiter_that_polls_with_one_waker_and_another() {
    check(|| {
        let cell = Arc::new(Cell::new());
        let lander = thread::spawn({
            let cell = Arc::clone(&cell);
            move || assert!(!land(&cell))
        });
        let (_, first) = Woken::new();
        let (woken, second) = Woken::new();
        // SAFETY: this thread is the waiter, and stops when it has the result.
        let seen = unsafe { cell.poll(&first).or_else(|| cell.poll(&second)) };
        lander.join().unwrap();
        match seen {
            Some(outcome) => assert_eq!(outcome, OUTCOME),
            None => {
                assert!(woken.is(), "the waiter was not woken");
                // SAFETY: as above.
                assert_eq!(unsafe { cell.poll(&second) }, Some(OUTCOME));
            }
        }
    });
}

#[test]
fn model_of_a_waiter_that_goes_away() {
    check(|| {
        let cell = Arc::new(Cell::new());
        let lander = thread::spawn({
            let cell = Arc::clone(&cell);
            move || land(&cell)
        });
        let (_, waker) = Woken::new();
        // SAFETY: this thread is the waiter, and stops when it has the result or has gone away.
        let seen = unsafe { cell.poll(&waker).or_else(|| cell.abandon()) };
        let left_to_lander = lander.join().unwrap();
        assert_eq!(seen.is_none(), left_to_lander, "the cell is nobody's, or both have it");
    });
}

#[test]
fn model_of_a_cell_that_is_used_again_at_once() {
    check(|| {
        let cell = Arc::new(Cell::new());
        let lander = thread::spawn({
            let cell = Arc::clone(&cell);
            move || assert!(!land(&cell))
        });
        let (_, waker) = Woken::new();
        // SAFETY: this thread is the waiter, and once it has the result it is the next submitter.
        unsafe {
            let mut seen = cell.poll(&waker);
            for _ in 0..2 {
                seen = seen.or_else(|| cell.poll(&waker));
            }
            if seen.is_some() {
                cell.reset();
                // Writes where the lander may still read, if it had not let go.
                assert_eq!(cell.poll(&waker), None);
            }
        }
        lander.join().unwrap();
    });
}

#[test]
fn model_of_a_free_list_whose_top_goes_and_comes_back() {
    check(|| {
        let list = Arc::new(FreeList::new(3, 1));
        let places: Arc<[UnsafeCell<u32>; 3]> =
            Arc::new(std::array::from_fn(|_| UnsafeCell::new(0)));
        let take = |list: &FreeList, places: &[UnsafeCell<u32>; 3]| {
            let index = list.pop(0)?;
            // SAFETY: loom checks that nobody else has it.
            places[index as usize].with_mut(|place| unsafe { *place += 1 });
            Some(index)
        };
        let other = thread::spawn({
            let (list, places) = (Arc::clone(&list), Arc::clone(&places));
            move || {
                let (one, two) = (take(&list, &places), take(&list, &places));
                list.push(one.expect("three are there for three"), 0);
                two
            }
        });
        let mine = take(&list, &places);
        let theirs = other.join().unwrap();
        let mut all: Vec<u32> = [mine, theirs].into_iter().flatten().collect();
        all.extend(std::iter::from_fn(|| take(&list, &places)));
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2]);
    });
}

#[test]
fn model_of_a_free_list_that_somebody_waits_for() {
    check(|| {
        let list = Arc::new(FreeList::new(2, 2));
        let (one, _two) = (list.pop(0).unwrap(), list.pop(0).unwrap());
        let waiting = Arc::new(AtomicU32::new(0));
        let giver = thread::spawn({
            let (list, waiting) = (Arc::clone(&list), Arc::clone(&waiting));
            move || {
                list.push(one, 1);
                waiting.load(Ordering::Relaxed) > 0
            }
        });
        waiting.fetch_add(1, Ordering::Relaxed);
        let found = list.pop_announced(0).is_some();
        let wakes = giver.join().unwrap();
        assert!(found || wakes, "one waits, and nobody will wake it");
    });
}

#[test]
fn model_of_a_channel_with_two_that_put_in() {
    check(|| {
        let channel = Arc::new(Channel::new(2));
        channel.open();
        let payload: Arc<[UnsafeCell<u32>; 2]> =
            Arc::new(std::array::from_fn(|_| UnsafeCell::new(0)));
        let producers = [0u32, 1].map(|number| {
            let (channel, payload) = (Arc::clone(&channel), Arc::clone(&payload));
            thread::spawn(move || {
                // SAFETY: loom checks that it is seen only after it was put in.
                payload[number as usize].with_mut(|place| unsafe { *place = number + 1 });
                channel.push(number).unwrap();
            })
        });
        let mut seen = Vec::new();
        while seen.len() < 2 {
            match channel.pop() {
                Some(number) => {
                    // SAFETY: as above.
                    let value = payload[number as usize].with(|place| unsafe { *place });
                    assert_eq!(value, number + 1);
                    seen.push(number);
                }
                None => thread::yield_now(),
            }
        }
        producers.into_iter().for_each(|producer| producer.join().unwrap());
        seen.sort_unstable();
        assert_eq!(seen, [0, 1]);
        assert!(channel.is_empty());
    });
}

#[test]
fn model_of_a_channel_that_is_closed() {
    check(|| {
        let channel = Arc::new(Channel::new(2));
        channel.open();
        let producer = thread::spawn({
            let channel = Arc::clone(&channel);
            move || match channel.push(1) {
                Ok(()) => true,
                Err(refused) => {
                    assert_eq!(refused, Refused::Closed);
                    false
                }
            }
        });
        channel.close();
        let mut taken = false;
        while !channel.is_finished() {
            match channel.pop() {
                Some(_) => taken = true,
                None => thread::yield_now(),
            }
        }
        assert_eq!(taken, producer.join().unwrap(), "lost, or taken from nowhere");
    });
}

#[test]
fn model_of_a_thread_that_falls_asleep_while_two_call() {
    check(|| {
        let flag = Arc::new(SleepFlag::new());
        let messages = Arc::new(AtomicU32::new(0));
        let sleeper = kapok_engine::Sleeper::new();
        let callers = [0, 1].map(|_| {
            let (flag, messages, bell) = (Arc::clone(&flag), Arc::clone(&messages), sleeper.bell());
            thread::spawn(move || {
                messages.fetch_add(1, Ordering::Relaxed);
                flag.notify(|| bell.ring());
            })
        });
        while messages.load(Ordering::Relaxed) < 2 {
            flag.fall_asleep();
            if messages.load(Ordering::Relaxed) < 2 {
                sleeper.turn();
            }
            flag.wake_up();
        }
        callers.into_iter().for_each(|caller| caller.join().unwrap());
    });
}
