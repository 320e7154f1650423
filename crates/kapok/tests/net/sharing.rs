//! Sockets that go between fibers, threads, loops and std.

use std::io::{ErrorKind, Read, Write};
use std::net::{
    TcpListener as StdTcpListener, TcpStream as StdTcpStream, UdpSocket as StdUdpSocket,
};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use crate::harness::{Watchdog, run, run_on, scale, wait_until};
use crate::{SHORT, echo, tcp_pair};
use kapok::net::{TcpListener, TcpStream, UdpSocket, UnixStream, wait_writable};
use kapok::sync::channel;

/// Reads from a std stream, which must wait as std's do.
fn read_late(mut std: impl Read + Send + 'static, write: impl FnOnce()) {
    let reader = thread::spawn(move || {
        let mut buf = [0; 4];
        std.read_exact(&mut buf).map(|()| buf)
    });
    kapok::sleep(Duration::from_millis(10)).unwrap();
    write();
    wait_until(|| reader.is_finished());
    assert_eq!(reader.join().unwrap().expect("a blocking read"), *b"late");
}

#[test]
fn std_has_the_sockets_as_it_knows_them() {
    run(|| {
        // The one that connected, and the one that was accepted, after a wait on the loop.
        for accepted in [false, true] {
            let (one, other) = tcp_pair();
            let (mut to_std, mut stays) = if accepted { (other, one) } else { (one, other) };
            let reader = kapok::spawn(move || {
                to_std.read_exact(&mut [0; 1]).unwrap();
                to_std
            });
            kapok::yield_now();
            stays.write_all(b"x").unwrap();
            let std = StdTcpStream::from(reader.join().unwrap());
            read_late(std, || stays.write_all(b"late").unwrap());
        }
        let (one, mut other) = UnixStream::pair().unwrap();
        let std = std::os::unix::net::UnixStream::from(one);
        read_late(std, || other.write_all(b"late").unwrap());

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        kapok::timeout(SHORT, || listener.accept()).unwrap_err();
        let std = StdTcpListener::from(listener);
        let acceptor = thread::spawn(move || std.accept().map(|(_, peer)| peer));
        kapok::sleep(Duration::from_millis(10)).unwrap();
        let client = TcpStream::connect(address).unwrap();
        wait_until(|| acceptor.is_finished());
        assert_eq!(acceptor.join().unwrap().unwrap(), client.local_addr().unwrap());

        // There and back, and as a bare descriptor.
        let listener = StdTcpListener::bind("127.0.0.1:0").unwrap();
        let listener = TcpListener::try_from(listener).unwrap();
        let client = StdTcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_nonblocking(true).unwrap();
        let mut client = TcpStream::try_from(client).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let reader = kapok::spawn(move || client.read(&mut [0; 8]).map(|count| (count, client)));
        kapok::sleep(SHORT).unwrap();
        server.write_all(b"four").unwrap();
        let (count, client) = reader.join().unwrap().unwrap();
        assert_eq!(count, 4);
        let fd = client.as_raw_fd();
        let owned = OwnedFd::from(client);
        assert_eq!(owned.as_raw_fd(), fd);
        let udp = StdUdpSocket::from(UdpSocket::bind("127.0.0.1:0").unwrap());
        assert!(UdpSocket::try_from(udp).unwrap().local_addr().unwrap().port() > 0);
    });
}

#[test]
fn sockets_work_on_plain_threads() {
    let _watchdog = Watchdog::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        echo(&stream);
    });
    thread::sleep(SHORT);
    let mut client = TcpStream::connect(address).unwrap();
    thread::sleep(SHORT);
    client.write_all(b"on threads").unwrap();
    let mut buf = [0; 10];
    client.read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"on threads");
    wait_writable(&client).unwrap();
    drop(client);
    server.join().unwrap();
    let (one, other) =
        (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let address = one.local_addr().unwrap();
    let receiver = thread::spawn(move || one.recv_from(&mut [0; 8]).unwrap());
    thread::sleep(SHORT);
    other.send_to(b"dgram", address).unwrap();
    assert_eq!(receiver.join().unwrap(), (5, other.local_addr().unwrap()));
}

#[test]
fn a_stream_goes_between_threads_and_fibers() {
    let _watchdog = Watchdog::new();
    let (mut of_thread, of_fiber) = UnixStream::pair().unwrap();
    let (handed_in, handed_out) = std::sync::mpsc::channel();
    let fiber = thread::spawn(move || {
        run(move || {
            let mut of_fiber = of_fiber;
            let mut buf = [0; 2];
            of_fiber.read_exact(&mut buf).unwrap();
            handed_in.send(of_fiber).unwrap();
            buf
        })
    });
    thread::sleep(SHORT);
    of_thread.write_all(b"in").unwrap();
    assert_eq!(fiber.join().unwrap(), *b"in");
    let mut back = handed_out.recv().unwrap();
    back.write_all(b"out").unwrap();
    let mut buf = [0; 3];
    of_thread.read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"out");
}

/// Starts `f` on another loop than the caller's.
pub(crate) fn on_another_loop<T: Send + 'static>(
    f: impl FnOnce() -> T + Send + 'static,
) -> kapok::JoinHandle<T> {
    let home = thread::current().id();
    let (decided, decision) = channel::unbounded();
    let mut f = Some(f);
    loop {
        let decided = decided.clone();
        let given = f.take().unwrap();
        let handle = kapok::spawn(move || {
            if thread::current().id() == home {
                decided.send(Some(given)).ok();
                return None;
            }
            decided.send(None).ok();
            Some(given())
        });
        match decision.recv().unwrap() {
            None => {
                return kapok::spawn(move || handle.join().unwrap().expect("it ran"));
            }
            Some(given) => f = Some(given),
        }
        kapok::sleep(Duration::from_millis(1)).unwrap();
    }
}

/// Has the loop wait on `stream`, so that its engine knows the descriptor, and checks what comes.
fn wait_for_number(stream: &UnixStream, peer: &UnixStream, number: u64) {
    kapok::scope(|scope| {
        let reader = scope.spawn_local(|| {
            let mut word = [0; 8];
            { stream }.read_exact(&mut word).unwrap();
            u64::from_be_bytes(word)
        });
        kapok::yield_now();
        { peer }.write_all(&number.to_be_bytes()).unwrap();
        assert_eq!(reader.join().unwrap(), number);
    });
}

#[test]
fn descriptors_that_move_between_loops_and_are_used_again_stay_apart() {
    let rounds = scale(5_000, 200_000);
    run_on(2, move || {
        // Each way: made and waited on by one loop, waited on and closed by the other.
        let (send_there, received_there) = channel::bounded::<(u64, UnixStream, UnixStream)>(8);
        let (send_back, received_back) = channel::bounded::<(u64, UnixStream, UnixStream)>(8);
        let other = on_another_loop(move || {
            for (number, stream, peer) in received_there {
                wait_for_number(&stream, &peer, number);
                if number % 3 == 0 {
                    // A clone waits too, and is closed first or last.
                    let clone = stream.try_clone().unwrap();
                    wait_for_number(&clone, &peer, !number);
                    if number % 2 == 0 {
                        drop(stream);
                        wait_for_number(&clone, &peer, number + 1);
                    }
                } else {
                    drop((stream, peer));
                }
                let (stream, peer) = UnixStream::pair().unwrap();
                wait_for_number(&peer, &stream, number);
                send_back.send((number, stream, peer)).unwrap();
            }
        });
        let home = kapok::spawn_local(move || {
            for (number, stream, peer) in received_back {
                wait_for_number(&stream, &peer, number);
                wait_for_number(&peer, &stream, !number);
            }
        });
        let mut kept = Vec::new();
        for number in 0..rounds {
            let (stream, peer) = UnixStream::pair().unwrap();
            wait_for_number(&stream, &peer, number);
            if number % 5 == 0 {
                kept.push(stream.try_clone().unwrap());
            }
            if kept.len() > 16 {
                kept.clear();
            }
            if number % 7 == 0 {
                // A wait that is given up leaves the descriptor behind in the engine.
                let limit = Duration::from_micros(10);
                let given_up = kapok::timeout(limit, || { &stream }.read(&mut [0; 8]));
                assert_eq!(given_up.unwrap_err().kind(), ErrorKind::TimedOut);
            }
            send_there.send((number, stream, peer)).unwrap();
        }
        drop(send_there);
        other.join().unwrap();
        home.join().unwrap();
    });
}

#[test]
fn a_listener_that_another_makes_blocking_blocks_no_loop() {
    run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // What std has is to wait as std's do, and shares the description.
        drop(StdTcpListener::from(listener.try_clone().unwrap()));
        let ended = kapok::timeout(SHORT, || listener.accept());
        ended.expect_err("nobody has connected");
        let address = listener.local_addr().unwrap();
        let acceptor = kapok::spawn(move || listener.accept().map(|(_, peer)| peer));
        kapok::yield_now();
        let client = TcpStream::connect(address).unwrap();
        assert_eq!(acceptor.join().unwrap().unwrap(), client.local_addr().unwrap());
    });
}
