//! Operations that land again and again: accepting, receiving, waiting for events.
#![cfg(target_os = "linux")]

mod harness;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use harness::{block_on, descriptors, eventually, has_uring, poll_once, scale};
use kapok_engine::{Kind, Readiness};
use kapok_pool::{Listener, Pool, Via};

fn pools() -> Vec<Pool> {
    let mut pools = vec![Pool::builder().engine(Kind::Epoll).build().unwrap()];
    if has_uring() {
        pools.push(Pool::builder().engine(Kind::Uring).build().unwrap());
        pools.push(Pool::builder().engine(Kind::Uring).threads(2).build().unwrap());
    }
    pools
}

/// Polls the future of one step once and drops it, or lets it end.
macro_rules! next {
    ($stream:expr, $random:expr) => {
        loop {
            if $random.bool() {
                break block_on($stream.next());
            }
            if let Poll::Ready(outcome) = poll_once(&mut Box::pin($stream.next())) {
                break outcome;
            }
        }
    };
}

/// Connects, and says its number.
fn connect(listener: &Listener, number: u32) -> TcpStream {
    let mut stream = TcpStream::connect(listener.get_ref().local_addr().unwrap()).unwrap();
    stream.write_all(&number.to_le_bytes()).unwrap();
    stream
}

fn number(mut stream: &TcpStream) -> u32 {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

#[test]
fn every_connection_is_taken_once_whatever_is_dropped() {
    let _turn = harness::turn();
    for pool in pools() {
        let listener = Listener::new(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let count = scale(400, 5000) as u32;
        let mut random = fastrand::Rng::with_seed(3);
        let mut seen = vec![false; count as usize];
        std::thread::scope(|scope| {
            let listener = &listener;
            scope.spawn(move || {
                for client in 0..count {
                    // Until the other side has it, or many would wait.
                    let mut stream = connect(listener, client);
                    let _ = stream.read(&mut [0]);
                }
            });
            let mut incoming = pool.incoming(listener);
            for _ in 0..count {
                let stream = match random.u32(..10) {
                    0 => {
                        // Another takes its place.
                        drop(incoming);
                        incoming = pool.incoming(listener);
                        next!(incoming, random)
                    }
                    1 => {
                        drop(incoming);
                        let stream = block_on(pool.accept(listener));
                        incoming = pool.incoming(listener);
                        stream
                    }
                    _ => next!(incoming, random),
                };
                let stream = stream.unwrap();
                let client = number(&stream) as usize;
                assert!(!std::mem::replace(&mut seen[client], true), "{client} came twice");
            }
        });
        assert!(seen.iter().all(|&seen| seen));
        eventually("all has landed", || pool.stats().pending() == 0);
    }
}

#[test]
fn who_does_not_take_connections_leaves_them_to_the_kernel() {
    let _turn = harness::turn();
    if !has_uring() {
        return;
    }
    let pool = Pool::builder().engine(Kind::Uring).build().unwrap();
    let listener = Listener::new(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    let mut incoming = pool.incoming(&listener);
    assert!(poll_once(&mut Box::pin(incoming.next())).is_pending());
    let mut clients: Vec<TcpStream> = (0..100).map(|number| connect(&listener, number)).collect();
    eventually("it ends", || pool.stats().pending() == 0);
    let before = descriptors();
    clients.extend((100..150).map(|number| connect(&listener, number)));
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(descriptors() - before, 50, "some were accepted that nobody wants");
    let mut numbers: Vec<u32> =
        clients.iter().map(|_| number(&block_on(incoming.next()).unwrap())).collect();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..150));
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 253) as u8).collect()
}

#[test]
fn what_is_received_is_what_was_sent_whatever_is_dropped() {
    let _turn = harness::turn();
    for pool in pools() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let near = Arc::new(near);
        let sent = content(scale(3_000_000, 100_000_000));
        let mut random = fastrand::Rng::with_seed(4);
        let mut receiver = pool.receiver(&near);
        std::thread::scope(|scope| {
            let sent = &sent;
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(5);
                let mut rest = &sent[..];
                while !rest.is_empty() {
                    let count = random.usize(1..40_000).min(rest.len());
                    far.write_all(&rest[..count]).unwrap();
                    rest = &rest[count..];
                }
            });
            let mut at = 0;
            while let Some(piece) = next!(receiver, random) {
                let piece = piece.unwrap();
                assert!(!piece.is_empty());
                assert!(sent[at..].starts_with(&piece), "other bytes at {at}");
                at += piece.len();
            }
            assert_eq!(at, sent.len());
            assert!(block_on(receiver.next()).is_none());
        });
    }
}

#[test]
fn an_empty_datagram_is_a_piece_and_not_the_end() {
    let _turn = harness::turn();
    for (number, pool) in pools().into_iter().enumerate() {
        let (near, far) = UnixDatagram::pair().unwrap();
        let near = Arc::new(near);
        let mut receiver = pool.receiver(&near);
        for message in [&b"before"[..], b"", b"", b"behind"] {
            far.send(message).unwrap();
            assert_eq!(block_on(receiver.next()).unwrap().unwrap(), message);
        }
        // Those that nobody has taken yet are there too.
        assert!(poll_once(&mut Box::pin(receiver.next())).is_pending());
        far.send(b"").unwrap();
        far.send(b"last").unwrap();
        assert_eq!(block_on(receiver.next()).unwrap().unwrap(), b"");
        let (mut pieces, said) = block_on(receiver.stop());
        said.unwrap();
        // The second was received already, or is in the socket yet.
        if pieces.is_empty() {
            let mut rest = [0; 8];
            let count = near.recv(&mut rest).unwrap();
            pieces.push(rest[..count].to_vec());
        }
        assert_eq!(pieces, [b"last"]);
        // Nothing comes behind a shutdown, of which the first, off io_uring, is told.
        if number == 0 {
            near.shutdown(std::net::Shutdown::Read).unwrap();
            assert!(block_on(pool.receiver(&near).next()).is_none());
        }
    }
}

#[test]
fn one_operation_receives_many_times() {
    let _turn = harness::turn();
    if !has_uring() {
        return;
    }
    let pool = Pool::builder().engine(Kind::Uring).via(Via::Thread).build().unwrap();
    let (near, mut far) = UnixStream::pair().unwrap();
    let near = Arc::new(near);
    let mut receiver = pool.receiver(&near);
    for number in 0..200u8 {
        far.write_all(&[number; 3]).unwrap();
        assert_eq!(block_on(receiver.next()).unwrap().unwrap(), [number; 3]);
    }
    let stats = pool.stats();
    assert_eq!(stats.threads[0].submitted, 1, "{stats:?}");
    drop(far);
    assert!(block_on(receiver.next()).is_none());
    eventually("it is over", || pool.stats().threads[0].completed == 1);
    // An error is one, again and again.
    let file = Arc::new(std::fs::File::open("/dev/null").unwrap());
    let mut receiver = pool.receiver(&file);
    for _ in 0..2 {
        let error = block_on(receiver.next()).unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK));
    }
}

#[test]
fn who_takes_nothing_holds_the_sender_back_and_gets_all_of_it() {
    let _turn = harness::turn();
    for pool in pools() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let near = Arc::new(near);
        let sent = content(8 << 20);
        let mut receiver = pool.receiver(&near);
        let mut received = match poll_once(&mut Box::pin(receiver.next())) {
            Poll::Ready(piece) => piece.unwrap().unwrap(),
            Poll::Pending => Vec::new(),
        };
        far.set_nonblocking(true).unwrap();
        let (mut count, mut full) = (0, 0);
        // Nobody takes anything: after a while there is no room any more.
        while full < 50 && count < sent.len() {
            match far.write(&sent[count..]) {
                Ok(written) => (count, full) = (count + written, 0),
                Err(_) => {
                    full += 1;
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
        assert!(count < 7 << 20, "{count} bytes went into memory");
        far.set_nonblocking(false).unwrap();
        std::thread::scope(|scope| {
            let rest = &sent[count..];
            scope.spawn(move || far.write_all(rest).unwrap());
            while let Some(piece) = block_on(receiver.next()) {
                received.extend(piece.unwrap());
            }
        });
        assert!(received == sent);
    }
}

#[test]
fn a_receiver_that_is_stopped_leaves_the_rest_in_the_socket() {
    let _turn = harness::turn();
    for pool in pools() {
        for round in 0..scale(50, 2000) {
            let (near, mut far) = UnixStream::pair().unwrap();
            let near = Arc::new(near);
            let sent = content(20_000);
            let mut receiver = pool.receiver(&near);
            let mut all = Vec::new();
            std::thread::scope(|scope| {
                let sent = &sent;
                scope.spawn(move || {
                    for piece in sent.chunks(100 + round) {
                        far.write_all(piece).unwrap();
                    }
                });
                while all.len() < 3000 {
                    all.extend(block_on(receiver.next()).unwrap().unwrap());
                }
                let (rest, said) = block_on(receiver.stop());
                said.unwrap();
                all.extend(rest.concat());
                // And from here on as ever.
                (&*near).read_to_end(&mut all).unwrap();
            });
            assert!(all == sent, "round {round}");
        }
        eventually("all has landed", || pool.stats().pending() == 0);
    }
}

#[test]
fn a_receiver_that_is_stopped_tells_of_a_reset() {
    let _turn = harness::turn();
    for pool in pools() {
        let (near, mut far) = UnixStream::pair().unwrap();
        // What the peer leaves unread makes a reset of its end.
        (&near).write_all(b"unread").unwrap();
        let mut receiver = pool.receiver(&Arc::new(near));
        far.write_all(b"data").unwrap();
        assert_eq!(block_on(receiver.next()).unwrap().unwrap(), b"data");
        assert!(poll_once(&mut Box::pin(receiver.next())).is_pending());
        drop(far);
        eventually("the reset has landed", || pool.stats().pending() == 0);
        let (rest, said) = block_on(receiver.stop());
        assert!(rest.is_empty());
        assert_eq!(said.unwrap_err().raw_os_error(), Some(libc::ECONNRESET));
    }
}

#[test]
fn receivers_that_are_dropped_leave_nothing_behind() {
    let _turn = harness::turn();
    for pool in pools() {
        let before = descriptors();
        for round in 0..scale(500, 20_000) {
            let (near, mut far) = UnixStream::pair().unwrap();
            let near = Arc::new(near);
            let mut receiver = pool.receiver(&near);
            let _ = poll_once(&mut Box::pin(receiver.next()));
            far.write_all(&[7; 100]).unwrap();
            if round % 2 == 0 {
                block_on(receiver.next()).unwrap().unwrap();
            }
            far.write_all(&[7; 100]).unwrap();
        }
        eventually("all has landed", || pool.stats().pending() == 0 && descriptors() <= before);
    }
}

#[test]
fn events_are_told_as_they_come() {
    let _turn = harness::turn();
    for pool in pools() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let near = Arc::new(near);
        let mut random = fastrand::Rng::with_seed(6);
        let mut watch = pool.watch(&near, Readiness::READABLE);
        assert!(poll_once(&mut Box::pin(watch.next())).is_pending());
        for number in 0..100u8 {
            far.write_all(&[number]).unwrap();
            let seen = next!(watch, random).unwrap();
            assert!(seen.intersects(Readiness::READABLE), "{seen:?}");
            let mut bytes = [0; 4];
            near.set_nonblocking(true).unwrap();
            while let Ok(count) = (&*near).read(&mut bytes) {
                assert_eq!(bytes[..count], [number][..count]);
            }
        }
        drop(far);
        while !next!(watch, random).unwrap().intersects(Readiness::HANG_UP) {}
        drop(watch);
        eventually("all has landed", || pool.stats().pending() == 0);
    }
}

#[test]
fn streams_of_a_pool_that_is_shut_down_say_so() {
    let _turn = harness::turn();
    for pool in pools() {
        let (near, _far) = UnixStream::pair().unwrap();
        let near = Arc::new(near);
        let listener = Listener::new(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let (mut receiver, mut incoming) = (pool.receiver(&near), pool.incoming(&listener));
        let mut watch = pool.watch(&near, Readiness::READABLE);
        assert!(poll_once(&mut Box::pin(receiver.next())).is_pending());
        assert!(poll_once(&mut Box::pin(incoming.next())).is_pending());
        assert!(poll_once(&mut Box::pin(watch.next())).is_pending());
        pool.shutdown(Duration::ZERO);
        let late = std::io::ErrorKind::NotConnected;
        assert_eq!(block_on(receiver.next()).unwrap().unwrap_err().kind(), late);
        assert_eq!(block_on(incoming.next()).unwrap_err().kind(), late);
        assert!(block_on(watch.next()).is_err());
    }
}
