//! Receives into the engine's own buffers.

use std::time::Duration;

use kapok_engine::{Engine as _, Key, Kind, Op, Wait};

use crate::driver::{Driver, Landed, Lent};
use crate::sockets::{Ownership, Transport, fill, pattern, put, raw_recv_soon, stream_pair};

conformance! {
    a_buffer_is_taken_when_bytes_have_come,
    neither_an_end_nor_a_cancel_takes_a_buffer,
    when_all_are_taken_nothing_is_received,
    large_messages_come_in_parts,
    beside_receives_with_memory_of_their_own,
}

/// As many as an engine has.
const BUFFERS: usize = 128;

fn receive(driver: &mut Driver, fd: i32) -> Key {
    driver.submit(Op::RecvPooled { fd }, Lent::default())
}

/// What has landed in a buffer, which is given back.
#[track_caller]
fn received(driver: &mut Driver, landed: &Landed) -> Vec<u8> {
    let id = landed.buffer.expect("it has landed in a buffer");
    let buffers = driver.engine().buffers().expect("there are buffers").clone();
    assert!(landed.ok() <= buffers.bytes());
    // SAFETY: so many bytes were received there, and the buffer is ours until it is given back.
    unsafe {
        let bytes = std::slice::from_raw_parts(buffers.start(id).as_ptr(), landed.ok()).to_vec();
        buffers.give_back(id);
        bytes
    }
}

fn a_buffer_is_taken_when_bytes_have_come(kind: Kind) {
    for transport in Transport::ALL {
        for ownership in Ownership::ALL {
            let mut driver = Driver::new(kind);
            // More that wait than there are buffers: those that wait hold none.
            let count = driver.stream_capacity(2 * BUFFERS);
            let pairs: Vec<_> = (0..count).map(|_| stream_pair(transport, ownership)).collect();
            let keys: Vec<Key> =
                pairs.iter().map(|(_, to)| receive(&mut driver, to.fd())).collect();
            driver.settle();
            assert_eq!(driver.pending(), count);
            for (round, ((from, to), key)) in pairs.iter().zip(keys).enumerate() {
                let message = pattern(round, 1 + round * 7);
                put(from.fd(), &message);
                let landed = driver.wait_for(key);
                assert_eq!(received(&mut driver, &landed), message, "{transport:?}");
                // Bytes that are there already.
                put(from.fd(), &message);
                let key = receive(&mut driver, to.fd());
                let landed = driver.wait_for(key);
                assert_eq!(received(&mut driver, &landed), message, "{transport:?}");
            }
        }
    }
}

fn neither_an_end_nor_a_cancel_takes_a_buffer(kind: Kind) {
    let mut driver = Driver::new(kind);
    for _ in 0..2 * BUFFERS {
        let (from, to) = stream_pair(Transport::Unix, Ownership::Owned);
        let key = receive(&mut driver, to.fd());
        driver.turn(Wait::No);
        let landed = driver.cancel_and_wait(key);
        assert!(landed.was_cancelled() && landed.buffer.is_none());
        put(from.fd(), b"still there");
        assert_eq!(raw_recv_soon(to.fd(), 100), b"still there");
        drop(from);
        let key = receive(&mut driver, to.fd());
        let landed = driver.wait_for(key);
        assert_eq!((landed.ok(), landed.buffer), (0, None));
    }
    let (from, to) = stream_pair(Transport::Unix, Ownership::Owned);
    put(from.fd(), b"and there are buffers left");
    let key = receive(&mut driver, to.fd());
    let landed = driver.wait_for(key);
    assert_eq!(received(&mut driver, &landed), b"and there are buffers left");
}

fn when_all_are_taken_nothing_is_received(kind: Kind) {
    let mut driver = Driver::new(kind);
    let (from, to) = stream_pair(Transport::Unix, Ownership::Owned);
    let mut held = Vec::new();
    for round in 0..BUFFERS {
        put(from.fd(), &pattern(round, 10));
        let key = receive(&mut driver, to.fd());
        held.push((round, driver.wait_for(key)));
    }
    put(from.fd(), b"one too many");
    let key = receive(&mut driver, to.fd());
    let landed = driver.wait_for(key);
    landed.failed_with(&[libc::ENOBUFS]);
    assert!(landed.buffer.is_none());
    let key = driver.recv(to.fd(), 100);
    assert_eq!(driver.wait_for(key).bytes(), b"one too many");

    // Each has kept its own, and they can all be used again.
    for (round, landed) in held {
        assert_eq!(received(&mut driver, &landed), pattern(round, 10));
    }
    for round in 0..2 * BUFFERS {
        put(from.fd(), &pattern(round, 20));
        let key = receive(&mut driver, to.fd());
        let landed = driver.wait_for(key);
        assert_eq!(received(&mut driver, &landed), pattern(round, 20));
    }
}

fn large_messages_come_in_parts(kind: Kind) {
    let mut driver = Driver::new(kind);
    let (from, to) = stream_pair(Transport::Tcp, Ownership::Owned);
    let sent = fill(from.fd(), 3);
    drop(from);
    let mut all = Vec::new();
    loop {
        let key = receive(&mut driver, to.fd());
        let landed = driver.wait_for(key);
        if landed.ok() == 0 {
            break;
        }
        all.extend(received(&mut driver, &landed));
    }
    assert_eq!(all.len(), sent);
    assert!(all == pattern(3, sent), "the bytes are not what was sent, in order");
}

/// Which of the two is served first is the engine's affair.
fn beside_receives_with_memory_of_their_own(kind: Kind) {
    let mut driver = Driver::new(kind);
    let (from, to) = stream_pair(Transport::Unix, Ownership::Owned);
    for _ in 0..BUFFERS {
        let own = driver.recv(to.fd(), 100);
        let pooled = receive(&mut driver, to.fd());
        driver.settle();
        put(from.fd(), b"first");
        while !driver.has_landed(own) && !driver.has_landed(pooled) {
            driver.linger(Duration::from_millis(1));
        }
        put(from.fd(), b"second");
        let own = driver.wait_for(own);
        let pooled = driver.wait_for(pooled);
        let mut both = [own.bytes().to_vec(), received(&mut driver, &pooled)];
        both.sort();
        assert_eq!(both, [&b"first"[..], b"second"]);
    }
}
