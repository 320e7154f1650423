//! Receives into the loop's own buffers.

use std::io::{ErrorKind, Write};
use std::time::Duration;

use crate::harness::run;
use kapok::net::{TcpListener, TcpStream, UnixStream};

#[test]
fn what_was_received_is_there_until_it_is_dropped() {
    run(|| {
        let (mut one, other) = UnixStream::pair().unwrap();
        let mut held = Vec::new();
        // More than there are buffers: the rest is allocated.
        for round in 0..300_u32 {
            one.write_all(&round.to_le_bytes()).unwrap();
            held.push(other.receive().unwrap());
        }
        for (round, mut received) in (0..300_u32).zip(held) {
            assert_eq!(received[..], round.to_le_bytes());
            received[0] = 7;
            assert_eq!(received[0], 7);
        }
        drop(one);
        assert!(other.receive().unwrap().is_empty());
    });
}

#[test]
fn many_connections_that_wait_are_served_from_few_buffers() {
    run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut clients = Vec::new();
        for _ in 0..200 {
            clients.push(TcpStream::connect(address).unwrap());
            let (mut stream, _) = listener.accept().unwrap();
            kapok::spawn_local(move || {
                loop {
                    let received = stream.receive().unwrap();
                    if received.is_empty() {
                        return;
                    }
                    stream.write_all(&received).unwrap();
                }
            })
            .detach();
        }
        for round in 0..5_u8 {
            for client in &mut clients {
                client.write_all(&[round; 100]).unwrap();
            }
            for client in &clients {
                let mut all = Vec::new();
                while all.len() < 100 {
                    all.extend_from_slice(&client.receive().unwrap());
                }
                assert_eq!(all, [round; 100]);
            }
        }
    });
}

#[test]
fn a_receive_is_interrupted_like_a_read_and_loses_nothing() {
    run(|| {
        let (mut one, other) = UnixStream::pair().unwrap();
        other.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        assert_eq!(other.receive().unwrap_err().kind(), ErrorKind::TimedOut);
        let mut other = other;
        other.set_read_timeout(None).unwrap();
        let fiber = kapok::spawn_local(move || (other.receive().map(|it| it.to_vec()), other));
        kapok::yield_now();
        fiber.cancel();
        let (received, back) = fiber.join().unwrap();
        assert!(kapok::Canceled::is(&received.unwrap_err()));
        other = back;
        one.write_all(b"after all").unwrap();
        assert_eq!(&other.receive().unwrap()[..], b"after all");
    });
}

#[test]
fn what_was_received_outlives_its_loop() {
    let received = run(|| {
        let (mut one, other) = UnixStream::pair().unwrap();
        one.write_all(b"still here").unwrap();
        other.receive().unwrap()
    });
    assert_eq!(&received[..], b"still here");
}

#[test]
fn on_a_plain_thread_it_blocks() {
    let (mut one, other) = std::os::unix::net::UnixStream::pair().unwrap();
    let other = UnixStream::try_from(other).unwrap();
    one.write_all(b"plainly").unwrap();
    assert_eq!(&other.receive().unwrap()[..], b"plainly");
    drop(one);
    assert!(other.receive().unwrap().is_empty());
}
