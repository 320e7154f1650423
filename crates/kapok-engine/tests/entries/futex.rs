use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kapok_engine::Wait;
use kapok_engine::entry::{Entry, FutexWait};

use crate::places::{PATIENCE, Place};

/// `FUTEX2_SIZE_U32 | FUTEX2_PRIVATE`.
const FLAGS: u32 = 2 | 128;
const ALL: u64 = u32::MAX as u64;

/// Wakes those that wait for `word`, from here, until there was one.
fn wake_until_somebody_was(place: &mut Place, word: &AtomicU32, mask: u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match place.ok(&Entry::futex_wake(word.as_ptr(), 8, mask, FLAGS, 0)) {
            0 => std::thread::sleep(Duration::from_millis(1)),
            woken => return assert_eq!(woken, 1, "{}", place.name),
        }
        assert!(Instant::now() < deadline, "{}: nobody waits", place.name);
    }
}

#[test]
fn waits_and_is_woken() {
    for mut place in Place::engines() {
        let word = AtomicU32::new(5);
        let wait = |value, mask| Entry::futex_wait(word.as_ptr(), value, mask, FLAGS, 0);
        if !place.has(&wait(6, ALL)) {
            continue;
        }
        assert_eq!(place.run(&wait(6, ALL)), -libc::EAGAIN, "it has another value");
        assert_eq!(place.run(&wait(5, 0)), -libc::EINVAL, "it could not be woken");
        let key = place.start(&wait(5, 0b10));
        place.turn(Wait::No);
        assert!(place.taken(key).is_none(), "{}", place.name);
        let other = Entry::futex_wake(word.as_ptr(), 8, 0b01, FLAGS, 0);
        assert_eq!(place.ok(&other), 0, "its mask is another");
        wake_until_somebody_was(&mut place, &word, 0b11);
        assert_eq!(place.last(key), 0);
        place.settled();
    }
}

#[test]
fn is_cancelled_on_a_ring() {
    let Some(mut place) = Place::ring() else { return };
    let word = AtomicU32::new(5);
    let wait = Entry::futex_wait(word.as_ptr(), 5, ALL, FLAGS, 0);
    if !place.uring().operations().unwrap().has(wait.opcode()) {
        return;
    }
    let key = place.start(&wait);
    place.turn(Wait::No);
    place.cancel(key);
    assert_eq!(place.last(key), -libc::ECANCELED);
    place.settled();
}

#[test]
fn a_thread_waits_and_is_woken() {
    static WORD: AtomicU32 = AtomicU32::new(5);
    let waiting = std::thread::spawn(|| {
        Place::thread().run(&Entry::futex_wait(WORD.as_ptr(), 5, ALL, FLAGS, 0))
    });
    wake_until_somebody_was(&mut Place::thread(), &WORD, ALL);
    assert_eq!(waiting.join().unwrap(), 0);
    let small = Entry::futex_wait(WORD.as_ptr(), 5, ALL, 1 | 128, 0);
    assert_eq!(Place::thread().run(&small), -libc::EINVAL, "only words of 32 bits");
}

#[test]
fn waits_for_several() {
    for mut place in Place::engines() {
        let words = [AtomicU32::new(1), AtomicU32::new(2)];
        let waits = [(0, 1), (1, 2)]
            .map(|(at, value)| FutexWait::new(words[at as usize].as_ptr(), value, FLAGS));
        let wait = Entry::futex_waitv(waits.as_ptr(), 2, 0);
        if !place.has(&wait) {
            continue;
        }
        let key = place.start(&wait);
        place.turn(Wait::No);
        assert!(place.taken(key).is_none());
        wake_until_somebody_was(&mut place, &words[1], ALL);
        assert_eq!(place.last(key), 1, "the index of the word");
        words[0].store(9, Ordering::Relaxed);
        assert_eq!(place.run(&wait), -libc::EAGAIN);
        place.settled();
    }
}
