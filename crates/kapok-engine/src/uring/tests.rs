//! What the kernel does not do on demand.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd};

use linux_raw_sys::io_uring::io_uring_register_op;

use super::*;
use crate::engine::Engine as _;

/// The completions of `turns` turns.
fn turns(engine: &mut Uring, turns: usize) -> Vec<(Key, i32)> {
    let mut out = Completions::new();
    for _ in 0..turns {
        engine.turn(Wait::No, &mut out).unwrap();
    }
    out.iter().map(|completion| (completion.key, completion.res)).collect()
}

/// A kernel that has no memory for the second of a pair takes it alone, later, and it is over at once.
#[test]
fn a_write_whose_follower_comes_first_lands_with_its_own_outcome() {
    let Ok(mut engine) = Uring::new(8, 16, 4096) else { return };
    // SAFETY: makes a file, which nobody else has.
    let mut file = unsafe { File::from_raw_fd(libc::memfd_create(c"file".as_ptr(), 0)) };
    let (key, fd) = (Key::new(3, 1), file.as_raw_fd());
    engine.in_kernel += 1;
    engine.note(key, fd, 0, Form::Holding);
    // SAFETY: it names nothing.
    unsafe { engine.push(encode::nop(entries::follower(key))) };
    assert_eq!(turns(&mut engine, 2), []);
    assert_eq!(engine.in_flight(), 1);
    let op = Op::Write { fd, buf: b"bytes".as_ptr(), len: 5, offset: 0 };
    // SAFETY: static bytes, and a file that is open.
    unsafe { engine.push(encode::encode(key, &op).unwrap()) };
    while engine.in_flight() > 0 {
        let landed = turns(&mut engine, 1);
        assert!(landed.is_empty() || landed == [(key, 5)], "{landed:?}");
    }
    let mut written = String::new();
    file.read_to_string(&mut written).unwrap();
    assert_eq!(written, "bytes");
}

#[test]
fn a_ring_of_one_entry_writes_too() {
    let Ok(mut engine) = Uring::new(1, 2, 4096) else { return };
    // SAFETY: makes a file, which nobody else has.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"file".as_ptr(), 0)) };
    let fd = file.as_raw_fd();
    let mut out = Completions::new();
    for at in 0..4 {
        let op = Op::Write { fd, buf: b"bytes".as_ptr(), len: 5, offset: u64::from(at) * 5 };
        // SAFETY: static bytes, and a file that is open.
        assert_eq!(unsafe { engine.submit(Key::new(at, 1), op) }, Submitted::Pending);
    }
    let until = Instant::now() + Duration::from_secs(10);
    while engine.in_flight() > 0 && Instant::now() < until {
        engine.turn(Wait::Until(until), &mut out).unwrap();
    }
    assert!(out.iter().all(|completion| completion.res == 5));
    assert_eq!((out.len(), file.metadata().unwrap().len()), (4, 20));
}

/// What is left of a send that did not copy is others' to end; and nobody cancels the engine's own.
#[test]
fn what_no_cancel_ends_is_not_asked_for() {
    let Ok(mut engine) = Uring::new(8, 16, 4096) else { return };
    turns(&mut engine, 1);
    let (sent, other) = (Key::new(3, 1), Key::new(4, 1));
    for (key, opcode) in [(sent, crate::entry::abi::SEND_ZC), (other, crate::entry::abi::RECV)] {
        engine.note(key, -1, opcode, Form::Entry);
        engine.pending[key.index() as usize].has_landed_once();
    }
    for key in [sent, BELL, CANCEL, cancel::key_of(other), entries::follower(other)] {
        engine.cancel(key);
        assert_eq!(engine.ring.unsubmitted(), 0, "{key:?}");
    }
    engine.cancel(other);
    assert_eq!(engine.ring.unsubmitted(), 1);
    // The kernel finds none. Asked for again, and again, and only once each time.
    engine.cancel(other);
    let begun = Instant::now();
    while engine.pending[4].cancels < 4 && begun.elapsed() < Duration::from_secs(10) {
        assert_eq!(turns(&mut engine, 1), []);
        assert!(engine.missed.slots.len() <= 1);
    }
    assert_eq!(engine.pending[4].cancels, 4);
    assert!(begun.elapsed() >= Duration::from_millis(1 + 2 + 4), "each time after twice as long");
    // Nor when it is over.
    engine.pending[4].fd = NO_DESCRIPTOR;
    std::thread::sleep(Duration::from_millis(20));
    turns(&mut engine, 3);
    assert_eq!((engine.pending[4].cancels, engine.missed.at()), (4, None));
}

/// As many workers as a ring is to have at least, or what the kernel takes by itself.
#[test]
fn files_have_enough_of_the_kernels_workers() {
    // By themselves those of a thread are no more than the entries of its first ring.
    let most = std::thread::spawn(|| {
        let engine = Uring::new(8, 16, 4096).ok()?;
        let mut most = [0_u32; 2];
        let register = io_uring_register_op::IORING_REGISTER_IOWQ_MAX_WORKERS as u32;
        // SAFETY: two numbers, which outlive the call; zeros ask.
        unsafe { engine.ring.register(register, most.as_mut_ptr().cast(), 2) }.unwrap();
        Some(most)
    });
    if let Some(most) = most.join().unwrap() {
        assert!(most[0] >= 16, "{most:?}");
    }
}
