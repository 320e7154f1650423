//! Cancel is a hint: at every stage, and in a race with what it cancels.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use kapok_engine::{Engine as _, Key, Kind, Op, Readiness, Wait};

use crate::driver::Driver;
use crate::isolated::{doing, scale};
use crate::sockets::{
    Descriptor, Message, Ownership, Transport, datagram_pairs, fill, landed_descriptor,
    open_descriptors, pattern, pipe, put, raw_recv, raw_recv_soon, raw_send, shrink_send_buffer,
    stream_pair, tcp_client, tcp_listener, unix_pair,
};
use crate::world::{is_simulated, now};

conformance! {
    every_pending_operation,
    before_the_first_turn,
    landed_but_not_taken,
    unknown_keys,
    twice,
    stale_generation,
    leaves_the_others_alone,
    cancelled_and_submitted_again,
    send_cancelled_in_the_middle,
    nothing_is_lost_in_step,
    while_others_take_what_comes,
    no_byte_is_lost_in_a_race,
    no_datagram_is_lost_in_a_race,
    no_connection_is_lost_in_a_race,
}

/// One operation of each sort that can pend, and what it stands on.
fn pend_everything(driver: &mut Driver) -> (Vec<Key>, Vec<Descriptor>) {
    let (mut keys, mut descriptors) = (Vec::new(), Vec::new());
    for ownership in Ownership::ALL {
        for transport in Transport::ALL {
            let (a, b) = stream_pair(transport, ownership);
            shrink_send_buffer(a.fd());
            fill(a.fd(), 0);
            keys.push(driver.recv(a.fd(), 64));
            keys.push(driver.recv_with(a.fd(), 64, libc::MSG_PEEK));
            keys.push(driver.recv_with(a.fd(), 64, libc::MSG_WAITALL));
            keys.push(driver.recv_message(a.fd(), Message::room(&[3, 5]), 0));
            keys.push(driver.poll(a.fd(), Readiness::READABLE));
            if transport == Transport::Unix {
                // TCP may find room after all, once the peer's kernel has moved it on.
                keys.push(driver.send(a.fd(), b"no room"));
                keys.push(driver.poll(a.fd(), Readiness::WRITABLE));
                let message = Message::new(vec![b"no room".to_vec()], None, vec![]);
                keys.push(driver.send_message(a.fd(), message, 0));
            }
            descriptors.extend([a, b]);
        }
        for (_, a, b) in datagram_pairs(ownership) {
            keys.push(driver.recv(a.fd(), 64));
            descriptors.extend([a, b]);
        }
        if is_simulated() {
            continue; // no pipes there
        }
        let (reader, writer) = pipe(ownership);
        keys.push(driver.read(reader.fd(), 64, Op::CURRENT_POSITION));
        keys.push(driver.poll(reader.fd(), Readiness::READABLE));
        descriptors.extend([reader, writer]);
    }
    let (listener, _) = tcp_listener(Ownership::Owned);
    keys.push(driver.accept(listener.fd()));
    keys.push(driver.accept_with_address(listener.fd()));
    descriptors.push(listener);
    keys.push(driver.timer(now() + Duration::from_secs(1000)));
    (keys, descriptors)
}

fn every_pending_operation(kind: Kind) {
    let mut driver = Driver::new(kind);
    let (keys, _descriptors) = pend_everything(&mut driver);
    driver.settle();
    driver.linger(Duration::from_millis(2));
    assert_eq!(driver.pending(), keys.len(), "something of this is over, and cannot be");
    for &key in &keys {
        driver.cancel(key);
    }
    for landed in driver.wait_for_all(&keys) {
        assert!(landed.was_cancelled(), "{:?} landed with {}", landed.op, landed.res);
    }
}

fn before_the_first_turn(kind: Kind) {
    let mut driver = Driver::new(kind);
    let (keys, _descriptors) = pend_everything(&mut driver);
    for &key in &keys {
        driver.cancel(key);
    }
    for landed in driver.wait_for_all(&keys) {
        assert!(landed.was_cancelled(), "{:?} landed with {}", landed.op, landed.res);
    }
    // What cannot pend for long lands with what it came to.
    let (a, b) = unix_pair();
    let keys = [driver.nop(), driver.send(a.fd(), b"x"), driver.metadata(a.fd())];
    for &key in &keys {
        driver.cancel(key);
    }
    let landed = driver.wait_for_all(&keys);
    assert!(landed.iter().all(|landed| landed.res >= 0 || landed.was_cancelled()));
    let arrived = raw_recv(b.fd(), 8).is_ok();
    assert_eq!(landed[1].res == 1, arrived, "the send landed with {}", landed[1].res);
}

fn landed_but_not_taken(kind: Kind) {
    let mut driver = Driver::new(kind);
    for ownership in Ownership::ALL {
        for turned in [false, true] {
            let (a, b) = stream_pair(Transport::Unix, ownership);
            let recv = driver.recv(a.fd(), 16);
            if turned {
                driver.still_pending(recv);
            }
            put(b.fd(), b"in time");
            let landed = driver.cancel_and_wait(recv);
            if landed.was_cancelled() {
                let recv = driver.recv(a.fd(), 16);
                assert_eq!(driver.wait_for(recv).bytes(), b"in time");
            } else {
                assert_eq!(landed.bytes(), b"in time");
            }
            // Taken: nothing happens any more.
            driver.cancel(recv);
            driver.settle();
        }
    }
}

fn unknown_keys(kind: Kind) {
    let mut driver = Driver::new(kind);
    let (a, b) = unix_pair();
    let recv = driver.recv(a.fd(), 16);
    for turned in [false, true] {
        if turned {
            driver.settle();
        }
        for (index, generation) in
            [(0, 0), (0, 2), (1, 1), (12_345, 7), (u32::MAX, 1), (u32::MAX, u32::MAX - 1)]
        {
            let unknown = Key::new(index, generation);
            assert_ne!(unknown, recv);
            driver.cancel(unknown);
        }
    }
    driver.still_pending(recv);
    put(b.fd(), b"x");
    assert_eq!(driver.wait_for(recv).bytes(), b"x");
}

fn twice(kind: Kind) {
    let mut driver = Driver::new(kind);
    let (a, _b) = unix_pair();
    for turned in [false, true] {
        let recv = driver.recv(a.fd(), 16);
        let timer = driver.timer(now() + Duration::from_secs(1000));
        for key in [recv, timer, timer, recv, recv] {
            if turned {
                // Collects what landed, which is then cancelled again.
                driver.turn(Wait::No);
            }
            driver.cancel(key);
        }
        assert!(driver.wait_for(recv).was_cancelled());
        assert!(driver.wait_for(timer).was_cancelled());
        driver.settle();
    }
}

fn stale_generation(kind: Kind) {
    let mut driver = Driver::new(kind);
    let (a, b) = unix_pair();
    for turned in [false, true] {
        for _ in 0..10 {
            let old = driver.recv(a.fd(), 16);
            driver.cancel_and_wait(old);
            let new = driver.recv(a.fd(), 16);
            assert_eq!(new.index(), old.index(), "the slot was to be reused");
            if turned {
                driver.settle();
            }
            driver.cancel(old);
            driver.settle();
            assert!(!driver.has_landed(new), "a stale key cancels the slot's next operation");
            put(b.fd(), b"x");
            assert_eq!(driver.wait_for(new).bytes(), b"x");
        }
    }
}

fn leaves_the_others_alone(kind: Kind) {
    let mut driver = Driver::new(kind);
    for ownership in Ownership::ALL {
        let (a, b) = stream_pair(Transport::Tcp, ownership);
        let first = driver.recv(a.fd(), 4);
        let second = driver.recv(a.fd(), 4);
        let readable = driver.poll(a.fd(), Readiness::READABLE);
        driver.settle();
        assert!(driver.cancel_and_wait(first).was_cancelled());
        driver.still_pending(second);
        driver.still_pending(readable);
        put(b.fd(), b"left");
        assert_eq!(driver.wait_for(second).bytes(), b"left");
        // The byte may have been gone before the poll looked.
        driver.settle();
        let landed = driver.cancel_and_wait(readable);
        assert!(landed.was_cancelled() || landed.res & 1 == 1, "{}", landed.res);
    }
}

fn cancelled_and_submitted_again(kind: Kind) {
    let mut driver = Driver::new(kind);
    for ownership in Ownership::ALL {
        let (a, b) = stream_pair(Transport::Unix, ownership);
        // The next one is there before the last one has landed.
        let mut recv = driver.recv(a.fd(), 16);
        for round in 0..100 {
            if round % 3 == 0 {
                driver.turn(Wait::No);
            }
            driver.cancel(recv);
            let next = driver.recv(a.fd(), 16);
            assert!(driver.wait_for(recv).was_cancelled());
            recv = next;
        }
        put(b.fd(), b"last");
        assert_eq!(driver.wait_for(recv).bytes(), b"last");
    }
}

/// What a cancelled send got rid of is its result, to the byte.
fn send_cancelled_in_the_middle(kind: Kind) {
    for transport in Transport::ALL {
        for ownership in Ownership::ALL {
            let mut driver = Driver::new(kind);
            let (a, b) = stream_pair(transport, ownership);
            shrink_send_buffer(a.fd());
            let (mut sent, mut got) = (0, Vec::new());
            for round in 0..30 {
                let send = driver.send(a.fd(), &pattern(sent, 9000));
                if round % 3 == 0 {
                    driver.turn(Wait::No);
                }
                if let Ok(bytes) = raw_recv(b.fd(), 1 + round * 97) {
                    got.extend_from_slice(&bytes);
                }
                let landed = driver.cancel_and_wait(send);
                sent += if landed.was_cancelled() { 0 } else { landed.ok() };
            }
            while got.len() < sent {
                got.extend_from_slice(&raw_recv_soon(b.fd(), 65536));
            }
            assert!(got == pattern(0, sent), "the bytes are not those that were sent");
            std::thread::sleep(Duration::from_millis(1));
            assert!(raw_recv(b.fd(), 16).is_err(), "more came than was said to be sent");
        }
    }
}

/// The data comes at every step between submission and landing, in one thread.
fn nothing_is_lost_in_step(kind: Kind) {
    let mut driver = Driver::new(kind);
    for ownership in Ownership::ALL {
        for transport in Transport::ALL {
            let (a, b) = stream_pair(transport, ownership);
            let (mut sent, mut got) = (0, 0);
            for round in 0..300 * scale() {
                doing(format_args!("{transport:?}, {ownership:?}, round {round}"));
                let (step, len) = (round % 6, 1 + round % 5);
                let send = |at: usize, sent: &mut usize| {
                    if step == at {
                        put(b.fd(), &pattern(*sent, len));
                        *sent += len;
                    }
                };
                send(0, &mut sent);
                let recv = driver.recv(a.fd(), 3);
                send(1, &mut sent);
                if round % 4 != 0 {
                    driver.turn(Wait::No);
                }
                send(2, &mut sent);
                driver.cancel(recv);
                send(3, &mut sent);
                driver.turn(Wait::No);
                send(4, &mut sent);
                let landed = driver.wait_for(recv);
                if !landed.was_cancelled() {
                    assert_eq!(landed.bytes(), pattern(got, landed.ok()));
                    got += landed.ok();
                }
                // Now and then, all of it.
                while round % 10 == 9 && got < sent {
                    let recv = driver.recv(a.fd(), 64);
                    let landed = driver.wait_for(recv);
                    assert_eq!(landed.bytes(), pattern(got, landed.ok()));
                    got += landed.ok();
                }
            }
        }
    }
}

/// The descriptor gets ready as the operation begins to wait, and the cancel comes before it is tried again,
/// in vain: what was there has gone elsewhere. `IO_APOLL_READY` of the kernel's `io_uring/poll.c`, for which
/// others have to stand in the way: an enter does twenty pieces of work.
fn while_others_take_what_comes(kind: Kind) {
    const OTHERS: usize = 40;
    if is_simulated() {
        return; // Nothing is taken there while an operation begins.
    }
    let mut driver = Driver::new(kind);
    let ((a, b), (watched, bell)) = (unix_pair(), unix_pair());
    let (mine, ours) = (a.fd(), watched.fd());
    let (begun, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let rounds = 10_000 * scale();
    let taker = std::thread::spawn({
        let (begun, ended) = (Arc::clone(&begun), Arc::clone(&ended));
        move || {
            for round in 1..=rounds {
                while begun.load(Ordering::SeqCst) < round {
                    std::thread::yield_now();
                }
                put(bell.fd(), b"x");
                for _ in 0..round % 8 {
                    put(b.fd(), b"x");
                    let _ = raw_recv(mine, 8);
                }
                let _ = raw_recv(ours, 8);
                ended.store(round, Ordering::SeqCst);
            }
            // Until it is joined: the end of a stream would land what the last cancel has missed.
            (b, bell)
        }
    });
    let mut others = Vec::new();
    for round in 1..=rounds {
        doing(format_args!("round {round} of {rounds}"));
        others.retain(|&key| driver.take(key).is_none());
        while others.len() < OTHERS {
            others.push(driver.poll(ours, Readiness::READABLE));
        }
        driver.turn(Wait::No);
        begun.store(round, Ordering::SeqCst);
        for _ in 0..round % 400 {
            std::hint::spin_loop();
        }
        let recv = driver.recv(mine, 64);
        driver.turn(Wait::No);
        driver.cancel(recv);
        while ended.load(Ordering::SeqCst) < round {
            driver.turn(Wait::No);
            std::thread::yield_now();
        }
        // Nothing comes any more.
        let landed = driver.wait_for(recv);
        assert!(landed.was_cancelled() || landed.ok() > 0);
    }
    let _ends = taker.join().unwrap();
    for key in others {
        driver.cancel_and_wait(key);
    }
}

/// Whatever the outcome of each race between arrival and cancel: all bytes come, in order.
fn no_byte_is_lost_in_a_race(kind: Kind) {
    for (transport, ownership) in [
        (Transport::Tcp, Ownership::Owned),
        (Transport::Unix, Ownership::Foreign),
        (Transport::Unix, Ownership::ForeignBlocking),
    ] {
        let mut driver = Driver::new(kind);
        let (a, b) = stream_pair(transport, ownership);
        let rounds = 1500 * scale();
        let over = Arc::new(AtomicBool::new(false));
        let sender = {
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                let mut sent = 0;
                while !over.load(Ordering::Relaxed) {
                    let bytes = pattern(sent, 1 + sent % 5);
                    match raw_send(b.fd(), &bytes) {
                        Ok(n) => sent += n,
                        Err(_) => std::thread::yield_now(),
                    }
                    for _ in 0..sent % 400 {
                        std::hint::spin_loop();
                    }
                }
                sent
            })
        };
        let mut got = 0;
        let (mut cancelled, mut received) = (0, 0);
        let mut check = |landed: crate::driver::Landed| {
            let bytes = landed.bytes();
            assert!(!bytes.is_empty(), "the end in mid-stream");
            assert!(bytes == pattern(got, bytes.len()), "bytes lost or doubled at {got}");
            got += bytes.len();
        };
        for round in 0..rounds {
            doing(format_args!("{transport:?}, {ownership:?}, round {round} of {rounds}"));
            let recv = driver.recv(a.fd(), 1 + round % 4096);
            for _ in 0..round % 3 {
                driver.turn(Wait::No);
            }
            let landed = driver.cancel_and_wait(recv);
            if landed.was_cancelled() {
                cancelled += 1;
            } else {
                received += 1;
                check(landed);
            }
        }
        over.store(true, Ordering::Relaxed);
        let sent = sender.join().unwrap();
        // The sending end is closed: what is left, and then the end.
        loop {
            let recv = driver.recv(a.fd(), 65536);
            let landed = driver.wait_for(recv);
            if landed.ok() == 0 {
                break;
            }
            check(landed);
        }
        assert_eq!(got, sent, "{cancelled} receives were cancelled and {received} were not");
    }
}

fn no_datagram_is_lost_in_a_race(kind: Kind) {
    for ownership in Ownership::ALL {
        // Not UDP: it may drop what finds no room.
        let [_, (_, a, b)] = datagram_pairs(ownership);
        let mut driver = Driver::new(kind);
        let count = 800 * scale() as u32;
        let sender = std::thread::spawn(move || {
            for number in 0..count {
                while raw_send(b.fd(), &number.to_ne_bytes()).is_err() {
                    std::thread::yield_now();
                }
                for _ in 0..number % 300 {
                    std::hint::spin_loop();
                }
            }
        });
        let mut next = 0u32;
        let mut round = 0;
        let deadline = now() + crate::driver::PATIENCE * scale() as u32;
        while next < count {
            assert!(now() < deadline, "datagram {next} never came");
            doing(format_args!("{ownership:?}, datagram {next} of {count}"));
            round += 1;
            let recv = driver.recv(a.fd(), 16);
            for _ in 0..round % 3 {
                driver.turn(Wait::No);
            }
            let landed = driver.cancel_and_wait(recv);
            if landed.was_cancelled() {
                std::thread::yield_now();
            } else {
                assert_eq!(landed.bytes(), next.to_ne_bytes(), "lost, doubled or out of order");
                next += 1;
            }
        }
        sender.join().unwrap();
    }
}

fn no_connection_is_lost_in_a_race(kind: Kind) {
    let mut driver = Driver::new(kind);
    let (listener, address) = tcp_listener(Ownership::Owned);
    let warm = driver.accept(listener.fd());
    driver.settle();
    driver.cancel_and_wait(warm);
    let before = open_descriptors();
    let count = 150 * scale();
    let connector = std::thread::spawn(move || {
        let mut clients = Vec::new();
        for at in 0..count {
            // Few enough at once that the backlog never overflows, and a reset leaves no TIME_WAIT.
            if clients.len() == 50 {
                clients.remove(0);
            }
            let client = tcp_client(address);
            crate::sockets::reset_on_close(client.fd());
            clients.push(client);
            for _ in 0..at % 7 * 100 {
                std::hint::spin_loop();
            }
            if at % 10 == 9 {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        clients
    });
    let mut accepted = 0;
    let mut round = 0;
    let deadline = now() + crate::driver::PATIENCE * scale() as u32;
    while accepted < count {
        assert!(now() < deadline, "{accepted} of {count} connections came");
        doing(format_args!("{accepted} of {count} connections accepted"));
        round += 1;
        let accept = driver.accept_with_address(listener.fd());
        for _ in 0..round % 3 {
            driver.turn(Wait::No);
        }
        let landed = driver.cancel_and_wait(accept);
        if landed.was_cancelled() {
            std::thread::yield_now();
        } else {
            drop(landed_descriptor(landed.ok()));
            accepted += 1;
        }
    }
    drop(connector.join().unwrap());
    assert_eq!(open_descriptors(), before, "a descriptor was leaked");
    assert_eq!(driver.engine().in_flight(), 0);
}
