//! Receives into the loop's own buffers.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use crate::harness::run;
use kapok::net::{Received, TcpListener, TcpStream, UnixStream};

/// What a buffer of the loop's takes.
const BUFFER_BYTES: usize = 16 * 1024;

/// More than a thread has large buffers, and than fits between two sockets.
const STREAM_BYTES: usize = 12 << 20;

/// Byte `at` of a stream, so that no two parts are alike.
fn byte(at: usize) -> u8 {
    (at.wrapping_mul(2_654_435_761) >> 13) as u8
}

fn connection() -> (std::net::TcpStream, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (stream, listener.accept().unwrap().0)
}

/// A connection whose peer, a thread, sends the stream as fast as it can.
fn streamed() -> (TcpStream, std::thread::JoinHandle<()>) {
    let (stream, mut peer) = connection();
    let sender = std::thread::spawn(move || {
        let bytes: Vec<u8> = (0..STREAM_BYTES).map(byte).collect();
        // A receiver that gave up is its own test's to tell.
        let _ = peer.write_all(&bytes);
    });
    (TcpStream::try_from(stream).unwrap(), sender)
}

/// That `received` is what comes at `at`.
fn check(received: &[u8], at: usize) {
    let wrong = received.iter().enumerate().position(|(place, &it)| it != byte(at + place));
    assert_eq!(wrong, None, "of {} bytes at {at}", received.len());
}

#[test]
fn of_a_stream_that_is_ahead_more_is_received_at_once() {
    run(|| {
        let (stream, sender) = streamed();
        let (mut at, mut most) = (0, 0);
        loop {
            let received = stream.receive().unwrap();
            if received.is_empty() {
                break;
            }
            check(&received, at);
            at += received.len();
            most = most.max(received.len());
            // The peer gets ahead.
            std::thread::sleep(Duration::from_micros(200));
        }
        assert_eq!(at, STREAM_BYTES);
        assert!(most > BUFFER_BYTES, "{most} at once");
        sender.join().unwrap();
    });
}

#[test]
fn pieces_of_a_stream_are_whole_while_they_are_held_and_dropped_in_any_order() {
    run(|| {
        let (stream, sender) = streamed();
        let (mut at, mut held) = (0, Vec::<(usize, Received)>::new());
        loop {
            let received = stream.receive().unwrap();
            if received.is_empty() {
                break;
            }
            let len = received.len();
            held.push((at, received));
            at += len;
            if held.len() > 40 {
                for place in [37, 3, 20, 0] {
                    let (at, received) = held.swap_remove(place);
                    check(&received, at);
                }
            }
            // For good: there is one less.
            if at == len {
                let (at, received) = held.swap_remove(0);
                check(&received, at);
                std::mem::forget(received);
            }
        }
        assert_eq!(at, STREAM_BYTES);
        held.iter().for_each(|(at, received)| check(received, *at));
        sender.join().unwrap();
    });
}

#[test]
fn reads_receives_and_interruptions_take_a_stream_apart_in_order() {
    run(|| {
        let (mut stream, sender) = streamed();
        let mut at = 0;
        let mut own = vec![0; 40_000];
        for turn in 0.. {
            // Cancelled before it begins: nothing is taken.
            if turn % 5 == 0 {
                let fiber = kapok::spawn_local(move || {
                    (stream.receive().map(|received| received.len()), stream)
                });
                fiber.cancel();
                let (received, back) = fiber.join().unwrap();
                assert!(kapok::Canceled::is(&received.unwrap_err()));
                stream = back;
            }
            stream.set_read_timeout((turn % 3 == 0).then_some(Duration::from_secs(60))).unwrap();
            let len = if turn % 2 == 0 {
                let received = stream.receive().unwrap();
                check(&received, at);
                received.len()
            } else {
                let len = stream.read(&mut own).unwrap();
                check(&own[..len], at);
                len
            };
            if len == 0 {
                break;
            }
            at += len;
        }
        assert_eq!(at, STREAM_BYTES);
        sender.join().unwrap();
    });
}

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

/// One that does not wait, like one that does: what came before is had, and then it is the end.
#[test]
fn a_stream_that_was_shut_down_for_receiving_is_at_its_end() {
    for nonblocking in [false, true] {
        run(move || {
            let (one, mut peer) = std::os::unix::net::UnixStream::pair().unwrap();
            peer.write_all(b"before").unwrap();
            one.set_nonblocking(nonblocking).unwrap();
            let one = UnixStream::try_from(one).unwrap();
            one.shutdown(std::net::Shutdown::Read).unwrap();
            assert_eq!(&one.receive().unwrap()[..], b"before", "{nonblocking}");
            assert!(one.receive().unwrap().is_empty(), "{nonblocking}");
            drop(peer);

            let (tcp, mut peer) = connection();
            peer.write_all(b"before").unwrap();
            tcp.set_nonblocking(nonblocking).unwrap();
            let tcp = TcpStream::try_from(tcp).unwrap();
            while tcp.peek(&mut [0]).is_err() {}
            tcp.shutdown(std::net::Shutdown::Read).unwrap();
            assert_eq!(&tcp.receive().unwrap()[..], b"before", "{nonblocking}");
            assert!(tcp.receive().unwrap().is_empty(), "{nonblocking}");
            drop(peer);
        });
    }
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
