//! The bell: another thread ends a turn, and no ring is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kapok_engine::{Engine as _, Kind, Wait};

use crate::driver::Driver;
use crate::isolated::{doing, scale};
use crate::sockets::{put, unix_pair};
use crate::world::{is_simulated, now, since};

/// Later than this, it was not the bell that ended the wait.
const PROMPT: Duration = Duration::from_secs(5);

conformance! {
    ends_a_wait,
    rung_before_the_turn,
    rung_many_times,
    does_not_hide_what_lands,
    outlives_the_engine,
    rings_race_with_sleep,
    rings_and_bytes_race_with_sleep,
}

fn ends_a_wait(kind: Kind) {
    let mut driver = Driver::new(kind);
    for busy in [false, true] {
        let (a, _b) = unix_pair();
        let recv = busy.then(|| driver.recv(a.fd(), 16));
        // A simulated clock does not wait for other threads: it is at the end of a limit at once.
        let limit = Wait::Until(now() + Duration::from_secs(1000));
        for wait in [Wait::Forever, if is_simulated() { Wait::Forever } else { limit }] {
            let rung = Arc::new(AtomicUsize::new(0));
            let ringer = {
                let (bell, rung) = (driver.engine().bell(), Arc::clone(&rung));
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(3));
                    rung.store(1, Ordering::Release);
                    bell.ring();
                })
            };
            let start = now();
            // It may wake for nothing, but the ring must wake it.
            while rung.load(Ordering::Acquire) == 0 {
                assert!(driver.turn(wait).is_empty());
            }
            assert!(since(start) < PROMPT);
            ringer.join().unwrap();
            driver.turn(Wait::No);
        }
        if let Some(recv) = recv {
            assert!(driver.cancel_and_wait(recv).was_cancelled());
        }
    }
}

fn rung_before_the_turn(kind: Kind) {
    let mut driver = Driver::new(kind);
    let bell = driver.engine().bell();
    for _ in 0..100 {
        bell.ring();
        let start = now();
        assert!(driver.turn(Wait::Forever).is_empty());
        assert!(since(start) < PROMPT);
    }
    // The very first turn of an engine.
    let mut driver = Driver::new(kind);
    driver.engine().bell().ring();
    assert!(driver.turn(Wait::Forever).is_empty());
}

fn rung_many_times(kind: Kind) {
    let mut driver = Driver::new(kind);
    let bells: Vec<_> = (0..10).map(|_| driver.engine().bell()).collect();
    for _ in 0..20 {
        for bell in &bells {
            for _ in 0..100 {
                bell.clone().ring();
            }
        }
        assert!(driver.turn(Wait::Forever).is_empty());
        // The rings are used up: now it sleeps again, but for a wake-up or two.
        if driver.sleeps() {
            let until = now() + Duration::from_millis(2);
            let mut turns = 0;
            while now() < until {
                driver.turn(Wait::Until(until));
                turns += 1;
            }
            assert!(turns <= 20, "{turns} turns: old rings are not used up");
        }
    }
}

fn does_not_hide_what_lands(kind: Kind) {
    let mut driver = Driver::new(kind);
    let bell = driver.engine().bell();
    let (a, b) = unix_pair();
    for round in 0..200 {
        let recv = driver.recv(a.fd(), 16);
        if round % 2 == 0 {
            driver.turn(Wait::No);
        }
        put(b.fd(), b"x");
        bell.ring();
        assert_eq!(driver.wait_for(recv).bytes(), b"x");
    }
    // However often it is rung, the loop comes to its completions and timers.
    let timer = driver.timer(now() + Duration::from_millis(3));
    let deadline = now() + PROMPT;
    while !driver.has_landed(timer) {
        assert!(now() < deadline, "rings starve a timer");
        bell.ring();
        driver.turn(Wait::Forever);
    }
    assert_eq!(driver.wait_for(timer).ok(), 0);
    let recv = driver.recv(a.fd(), 16);
    driver.settle();
    put(b.fd(), b"x");
    while !driver.has_landed(recv) {
        assert!(now() < deadline, "rings starve a receive");
        bell.ring();
        driver.turn(Wait::Forever);
    }
    assert_eq!(driver.wait_for(recv).bytes(), b"x");
}

fn outlives_the_engine(kind: Kind) {
    let mut driver = Driver::new(kind);
    let bell = driver.engine().bell();
    drop(driver);
    bell.ring();
    let other = bell.clone();
    std::thread::spawn(move || other.ring()).join().unwrap();
    // Numbers that were the engine's are others' now: a late ring must not write to them.
    let pairs: Vec<_> = (0..20).map(|_| unix_pair()).collect();
    for _ in 0..100 {
        bell.ring();
    }
    for (a, b) in &pairs {
        assert!(crate::sockets::raw_recv(a.fd(), 16).is_err());
        assert!(crate::sockets::raw_recv(b.fd(), 16).is_err());
    }
    // Rung while the engine goes away.
    for _ in 0..50 {
        let mut driver = Driver::new(kind);
        let bell = driver.engine().bell();
        let ringer = std::thread::spawn(move || (0..100).for_each(|_| bell.ring()));
        driver.turn(Wait::No);
        drop(driver);
        ringer.join().unwrap();
    }
}

/// Another thread publishes a number and rings; whoever sleeps through it sleeps for good, and the
/// watchdog says so.
fn rings_race_with_sleep(kind: Kind) {
    let mut driver = Driver::new(kind);
    let bell = driver.engine().bell();
    let rounds = 10_000 * scale();
    let wanted = Arc::new(AtomicUsize::new(0));
    let published = Arc::new(AtomicUsize::new(0));
    let ringer = {
        let (wanted, published) = (Arc::clone(&wanted), Arc::clone(&published));
        std::thread::spawn(move || {
            for round in 1..=rounds {
                let mut spins = 0u32;
                while wanted.load(Ordering::Acquire) < round {
                    spins += 1;
                    if spins.is_multiple_of(64) {
                        std::thread::yield_now();
                    } else {
                        std::hint::spin_loop();
                    }
                }
                // Sooner and later, around the moment at which the loop falls asleep.
                for _ in 0..round * 31 % 1500 {
                    std::hint::spin_loop();
                }
                published.store(round, Ordering::Release);
                bell.ring();
            }
        })
    };
    for round in 1..=rounds {
        if round % 256 == 0 {
            doing(format_args!("waiting for ring {round} of {rounds}, or one soon after"));
        }
        wanted.store(round, Ordering::Release);
        while published.load(Ordering::Acquire) < round {
            driver.turn(Wait::Forever);
        }
    }
    ringer.join().unwrap();
}

/// The same with a byte in place of every other ring.
fn rings_and_bytes_race_with_sleep(kind: Kind) {
    let mut driver = Driver::new(kind);
    let bell = driver.engine().bell();
    let (a, b) = unix_pair();
    let rounds = 3000 * scale();
    let wanted = Arc::new(AtomicUsize::new(0));
    let published = Arc::new(AtomicUsize::new(0));
    let other = {
        let (wanted, published) = (Arc::clone(&wanted), Arc::clone(&published));
        std::thread::spawn(move || {
            for round in 1..=rounds {
                while wanted.load(Ordering::Acquire) < round {
                    std::thread::yield_now();
                }
                for _ in 0..round * 31 % 1500 {
                    std::hint::spin_loop();
                }
                if round % 2 == 0 {
                    published.store(round, Ordering::Release);
                    bell.ring();
                } else {
                    put(b.fd(), &[round as u8]);
                }
            }
            // Closed only after the last receive was cancelled, or that would be its end.
            b
        })
    };
    let mut recv = driver.recv(a.fd(), 16);
    for round in 1..=rounds {
        if round % 64 == 1 {
            doing(format_args!("waiting for ring or byte {round} of {rounds}, or one soon after"));
        }
        wanted.store(round, Ordering::Release);
        if round % 2 == 0 {
            while published.load(Ordering::Acquire) < round {
                driver.turn(Wait::Forever);
            }
        } else {
            while !driver.has_landed(recv) {
                driver.turn(Wait::Forever);
            }
            assert_eq!(driver.wait_for(recv).bytes(), [round as u8]);
            recv = driver.recv(a.fd(), 16);
        }
    }
    let _b = other.join().unwrap();
    assert!(driver.cancel_and_wait(recv).was_cancelled());
}
