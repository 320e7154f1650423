//! Waits at futex words.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kapok_engine::{Engine as _, Key, Kind, Op};

use crate::driver::{Driver, Lent};

conformance! {
    a_plain_wake_ends_a_wait,
    a_word_that_has_changed_is_not_waited_at,
    only_wakers_of_the_mask_are_heard,
    a_cancelled_wait_has_left_the_word,
    the_flags_of_a_wait_are_no_descriptor,
}

fn wait(word: &AtomicU32, mask: u32) -> Op {
    Op::FutexWait { word: word.as_ptr(), expected: 0, mask, shared: false }
}

/// As any thread does it: how many were woken.
fn wake(word: &AtomicU32, mask: u32) -> i64 {
    let operation = libc::FUTEX_WAKE_BITSET | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the call reads nothing and writes nothing.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, 1, 0, 0, mask) }
}

/// Submits a wait. None where there are none, which is said at once.
fn submit(driver: &mut Driver, kind: Kind, op: Op) -> Option<Key> {
    let key = driver.submit(op, Lent::default());
    if kind != Kind::Uring {
        assert_eq!(driver.wait_for(key).res, -libc::ENOSYS);
        return None;
    }
    driver.settle();
    Some(key)
}

fn a_plain_wake_ends_a_wait(kind: Kind) {
    let word = AtomicU32::new(0);
    let mut driver = Driver::new(kind);
    let Some(first) = submit(&mut driver, kind, wait(&word, u32::MAX)) else { return };
    let Some(second) = submit(&mut driver, kind, wait(&word, u32::MAX)) else { return };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(5));
            assert_eq!(wake(&word, u32::MAX), 1);
        });
        assert_eq!(driver.wait_for(first).res, 0, "in the order of arrival");
    });
    assert_eq!(driver.pending(), 1);
    assert_eq!(wake(&word, u32::MAX), 1);
    assert_eq!(driver.wait_for(second).res, 0);
}

fn a_word_that_has_changed_is_not_waited_at(kind: Kind) {
    let word = AtomicU32::new(0);
    let mut driver = Driver::new(kind);
    // Changed when the kernel looks, not when it was submitted.
    let key = driver.submit(wait(&word, u32::MAX), Lent::default());
    word.store(1, Ordering::Relaxed);
    let expected = if kind == Kind::Uring { -libc::EAGAIN } else { -libc::ENOSYS };
    assert_eq!(driver.wait_for(key).res, expected);
}

fn only_wakers_of_the_mask_are_heard(kind: Kind) {
    let word = AtomicU32::new(0);
    let mut driver = Driver::new(kind);
    let Some(key) = submit(&mut driver, kind, wait(&word, 0b10)) else { return };
    assert_eq!(wake(&word, 0b01), 0);
    driver.settle();
    assert_eq!(driver.pending(), 1);
    assert_eq!(wake(&word, 0b11), 1);
    assert_eq!(driver.wait_for(key).res, 0);
}

fn a_cancelled_wait_has_left_the_word(kind: Kind) {
    let word = AtomicU32::new(0);
    let mut driver = Driver::new(kind);
    let Some(key) = submit(&mut driver, kind, wait(&word, u32::MAX)) else { return };
    driver.engine().cancel(key);
    assert_eq!(driver.wait_for(key).res, -libc::ECANCELED);
    assert_eq!(wake(&word, u32::MAX), 0, "a wake-up went to nobody");
}

fn the_flags_of_a_wait_are_no_descriptor(kind: Kind) {
    let word = AtomicU32::new(0);
    let mut driver = Driver::new(kind);
    let Some(key) = submit(&mut driver, kind, wait(&word, u32::MAX)) else { return };
    // `FUTEX2_SIZE_U32 | FUTEX2_PRIVATE`, as a number of a file.
    // SAFETY: makes a descriptor of a number that is free in this process.
    let fd = unsafe { libc::dup2(0, 130) };
    assert_eq!(fd, 130);
    let close = driver.submit(Op::Close { fd }, Lent::default());
    assert_eq!(driver.wait_for(close).res, 0);
    driver.settle();
    assert_eq!(driver.pending(), 1, "the wait was taken for one on the descriptor");
    wake(&word, u32::MAX);
    assert_eq!(driver.wait_for(key).res, 0);
}
