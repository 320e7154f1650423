//! Timers, and the time that a turn waits.

use std::time::Duration;

use kapok_engine::{Engine as _, Kind, Wait};

use crate::driver::Driver;
use crate::isolated::scale;
use crate::sockets::{put, unix_pair};
use crate::world::{now, since};

/// Late by more than this is a failure even on a busy machine.
const LATE: Duration = Duration::from_secs(3);
/// Later than any test runs, and too far for an `int` of milliseconds.
const FAR: [Duration; 3] = [
    Duration::from_secs(60),
    Duration::from_secs(60 * 24 * 3600),
    Duration::from_secs(1000 * 365 * 24 * 3600),
];

conformance! {
    not_early_and_not_very_late,
    in_order,
    same_deadline,
    past_deadline,
    cancelled_before,
    cancelled_after,
    far_deadlines,
    ten_thousand,
    end_any_wait,
    wait_for_io_ends_on_time,
    slots_are_reused,
    disarmed,
    disarm_races_with_the_deadline,
}

fn not_early_and_not_very_late(kind: Kind) {
    let mut driver = Driver::new(kind);
    for micros in [1, 50, 500, 999, 1000, 1001, 1999, 5000, 12_345] {
        let deadline = driver.engine().now() + Duration::from_micros(micros);
        let timer = driver.timer(deadline);
        let landed = driver.wait_for(timer);
        let now = driver.engine().now();
        assert_eq!(landed.ok(), 0);
        assert!(now >= deadline, "{:?} early", deadline - now);
        assert!(now - deadline < LATE, "{:?} late", now - deadline);
    }
    // While it waits it sleeps.
    let deadline = now() + Duration::from_millis(30);
    let timer = driver.timer(deadline);
    let mut turns = 0;
    while !driver.has_landed(timer) {
        driver.turn(Wait::Forever);
        turns += 1;
    }
    assert!(now() >= deadline, "early");
    if driver.sleeps() {
        assert!(turns <= 40, "{turns} turns for one timer: it does not sleep");
    }
    driver.wait_for(timer);
}

fn in_order(kind: Kind) {
    let mut driver = Driver::new(kind);
    let start = now();
    // 7 is prime to 50: every number once, shuffled.
    let mut timers: Vec<_> = (0..50u64)
        .map(|at| at * 7 % 50)
        .map(|at| (at, driver.timer(start + Duration::from_micros(1000 + 300 * at))))
        .collect();
    let mut order = Vec::new();
    while order.len() < timers.len() {
        order.extend(driver.turn(Wait::Until(start + LATE)));
    }
    timers.sort();
    let expected: Vec<_> = timers.iter().map(|&(_, key)| key).collect();
    assert_eq!(order, expected, "timers land out of order");
    driver.wait_for_all(&expected);
}

fn same_deadline(kind: Kind) {
    let mut driver = Driver::new(kind);
    let deadline = now() + Duration::from_millis(5);
    let timers: Vec<_> = (0..100).map(|_| driver.timer(deadline)).collect();
    for landed in driver.wait_for_all(&timers) {
        assert_eq!(landed.ok(), 0);
    }
    assert!(now() >= deadline);
}

fn past_deadline(kind: Kind) {
    let mut driver = Driver::new(kind);
    let now = now();
    for deadline in [now, now - Duration::from_millis(1), now - Duration::from_secs(1)] {
        let timer = driver.timer(deadline);
        if !driver.has_landed(timer) {
            // It does not wait for what is over.
            driver.turn(Wait::No);
        }
        assert!(driver.has_landed(timer), "a deadline in the past waits for more than a turn");
        assert_eq!(driver.wait_for(timer).ok(), 0);
    }
}

fn cancelled_before(kind: Kind) {
    let mut driver = Driver::new(kind);
    let far = now() + FAR[0];
    let near = now() + Duration::from_millis(20);
    // Before the first turn, and after.
    let timer = driver.timer(far);
    assert!(driver.cancel_and_wait(timer).was_cancelled());
    let timer = driver.timer(far);
    driver.still_pending(timer);
    let kept = driver.timer(near);
    assert!(driver.cancel_and_wait(timer).was_cancelled());
    assert_eq!(driver.wait_for(kept).ok(), 0);
    assert!(now() >= near);
    // The earliest of several, the latest, and one in the middle.
    let timers: Vec<_> = (0..5).map(|at| driver.timer(far + Duration::from_secs(at))).collect();
    for at in [0, 4, 2, 1, 3] {
        assert!(driver.cancel_and_wait(timers[at]).was_cancelled());
    }
}

fn cancelled_after(kind: Kind) {
    let mut driver = Driver::new(kind);
    // Over, but not taken: it lands once, with either.
    let timer = driver.timer(now() + Duration::from_millis(1));
    std::thread::sleep(Duration::from_millis(5));
    let landed = driver.cancel_and_wait(timer);
    assert!(landed.res == 0 || landed.was_cancelled(), "{}", landed.res);
    // Landed and taken: nothing happens.
    driver.cancel(timer);
    driver.settle();
}

fn far_deadlines(kind: Kind) {
    let mut driver = Driver::new(kind);
    let start = now();
    let far: Vec<_> = FAR.iter().map(|&far| driver.timer(start + far)).collect();
    let near = driver.timer(now() + Duration::from_millis(5));
    assert_eq!(driver.wait_for(near).ok(), 0);
    // Nothing but far timers, and a wait as far: a byte ends it.
    let (a, b) = unix_pair();
    for wait in FAR.map(|far| Wait::Until(start + far)).into_iter().chain([Wait::Forever]) {
        let recv = driver.recv(a.fd(), 8);
        driver.settle();
        let sender = {
            let b = b.duplicate();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(5));
                put(b.fd(), b"x");
            })
        };
        let mut turns = 0;
        while !driver.has_landed(recv) {
            driver.turn(wait);
            turns += 1;
        }
        if driver.sleeps() {
            assert!(turns < 100, "{turns} turns in {wait:?}: it does not sleep");
        }
        assert_eq!(driver.wait_for(recv).bytes(), b"x");
        sender.join().unwrap();
    }
    for timer in far {
        assert!(driver.cancel_and_wait(timer).was_cancelled());
    }
}

fn ten_thousand(kind: Kind) {
    let mut driver = Driver::new(kind);
    let count = 10_000 * scale() as u64;
    let start = now();
    let timers: Vec<_> = (0..count)
        .map(|at| driver.timer(start + Duration::from_micros(at * 7919 % 50_000)))
        .collect();
    // Every third is cancelled, some of them after they fired.
    for &timer in timers.iter().step_by(3) {
        driver.cancel(timer);
    }
    for (at, landed) in driver.wait_for_all(&timers).iter().enumerate() {
        let cancelled = at % 3 == 0 && landed.was_cancelled();
        assert!(cancelled || landed.res == 0, "timer {at} landed with {}", landed.res);
    }
    assert!(since(start) >= Duration::from_micros(49_000));
    assert_eq!(driver.engine().in_flight(), 0);
}

fn end_any_wait(kind: Kind) {
    let mut driver = Driver::new(kind);
    for wait in [Wait::Forever, Wait::Until(now() + FAR[0])] {
        let deadline = now() + Duration::from_millis(3);
        let timer = driver.timer(deadline);
        while !driver.has_landed(timer) {
            driver.turn(wait);
        }
        assert_eq!(driver.wait_for(timer).ok(), 0);
        assert!(since(deadline) < LATE);
    }
    // A wait that ends before the timer leaves it alone.
    let timer = driver.timer(now() + FAR[0]);
    let until = now() + Duration::from_millis(5);
    while now() < until {
        assert!(driver.turn(Wait::Until(until)).is_empty());
    }
    assert!(since(until) < LATE);
    assert!(driver.cancel_and_wait(timer).was_cancelled());
}

/// A time-out beside a receive, as a server arms it: whichever comes first.
fn wait_for_io_ends_on_time(kind: Kind) {
    let mut driver = Driver::new(kind);
    let (a, b) = unix_pair();
    for round in 0..20 {
        let recv = driver.recv(a.fd(), 8);
        if round % 2 == 0 {
            let deadline = now() + Duration::from_millis(2);
            let timer = driver.timer(deadline);
            assert_eq!(driver.wait_for(timer).ok(), 0);
            assert!(now() >= deadline && since(deadline) < LATE);
            assert!(driver.cancel_and_wait(recv).was_cancelled());
        } else {
            let timer = driver.timer(now() + FAR[0]);
            driver.settle();
            put(b.fd(), b"x");
            assert_eq!(driver.wait_for(recv).bytes(), b"x");
            assert!(driver.cancel_and_wait(timer).was_cancelled());
        }
    }
}

/// A slot's next timer is not disturbed by its last one.
fn slots_are_reused(kind: Kind) {
    let mut driver = Driver::new(kind);
    for round in 0..200u64 {
        let old = driver.timer(now() + FAR[0]);
        if round % 2 == 0 {
            driver.turn(Wait::No);
        }
        assert!(driver.cancel_and_wait(old).was_cancelled());
        let new = driver.timer(now() + Duration::from_micros(100));
        assert_eq!(new.index(), old.index(), "the slot was to be reused");
        driver.cancel(old);
        assert_eq!(driver.wait_for(new).ok(), 0);
    }
}

fn disarmed(kind: Kind) {
    let mut driver = Driver::new(kind);
    let far = now() + FAR[0];
    for turned in [false, true] {
        let timer = driver.timer(far);
        let kept = driver.timer(now() + Duration::from_millis(2));
        if turned {
            driver.turn(Wait::No);
        }
        assert!(driver.disarm(timer), "a timer that has not gone off");
        assert!(!driver.disarm(timer), "a timer that is gone");
        driver.cancel(timer);
        assert_eq!(driver.wait_for(kept).ok(), 0);
        assert!(!driver.disarm(kept), "a timer that has landed");
        driver.settle();
    }
    // Cancelled already: it is to land, so it cannot be taken back.
    let timer = driver.timer(far);
    driver.cancel(timer);
    assert!(!driver.disarm(timer), "a timer that is to land");
    assert!(driver.wait_for(timer).was_cancelled());
    // What is no timer, or nobody's, stays as it is. A stale key does not take the slot's next one.
    let (a, b) = unix_pair();
    let recv = driver.recv(a.fd(), 8);
    assert!(!driver.disarm(recv), "a receive is no timer");
    assert!(!driver.disarm(kapok_engine::Key::new(u32::MAX, 3)), "nobody's key");
    put(b.fd(), b"x");
    assert_eq!(driver.wait_for(recv).bytes(), b"x");
    let old = driver.timer(far);
    assert!(driver.disarm(old));
    let new = driver.timer(now() + Duration::from_millis(1));
    assert_eq!(new.index(), old.index(), "the slot was to be reused");
    assert!(!driver.disarm(old), "a stale key");
    assert_eq!(driver.wait_for(new).ok(), 0);
}

/// Taken back or landed: one of the two, always.
fn disarm_races_with_the_deadline(kind: Kind) {
    let mut driver = Driver::new(kind);
    let (mut gone, mut went_off) = (0, 0);
    for round in 0..500 * scale() as u64 {
        let timer = driver.timer(now() + Duration::from_micros(round % 20));
        for _ in 0..round % 4 {
            driver.turn(Wait::No);
        }
        if driver.disarm(timer) {
            gone += 1;
            assert!(!driver.has_landed(timer));
        } else {
            assert_eq!(driver.wait_for(timer).ok(), 0);
            went_off += 1;
        }
    }
    driver.settle();
    assert_eq!(gone + went_off, 500 * scale());
}
