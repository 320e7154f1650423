//! What holds for an engine as such: its kinds, its empty turns, bad descriptors, its end.

use std::os::fd::RawFd;
use std::time::Duration;

use kapok_engine::{Engine, Kind, Op, Readiness, Wait};

use crate::driver::{CANARY, Driver};
use crate::sockets::{
    Message, Ownership, Transport, accept, is_open, local_address, open_descriptors, pipe, put,
    raw_recv_soon, socket, stream_pair, tcp_client, tcp_listener, unix_pair,
};
use crate::world::{is_simulated, now, since};

conformance! {
    every_kind_is_tested,
    nop,
    empty_turns,
    bad_descriptors_are_errors,
    wrong_descriptors_are_errors,
    dropped_empty,
    dropped_with_operations_pending,
    dropped_before_the_first_turn,
    many_engines,
}

fn every_kind_is_tested(kind: Kind) {
    if kind == Kind::Sim {
        // Nobody gets into a simulated world by a name, or for being the next best.
        assert!(!Kind::ALL.contains(&kind) && kind.to_string().parse::<Kind>().is_err());
        assert!(kapok_engine::AnyEngine::new(kind, &kapok_engine::Config::default()).is_err());
        return;
    }
    let all: Vec<String> = Kind::ALL.iter().map(|kind| kind.to_string()).collect();
    assert_eq!(all.len(), 5, "a kind without tests: {all:?}");
    let name = kind.to_string();
    assert_eq!(all.iter().filter(|other| **other == name).count(), 1);
    let parsed: Kind = name.parse().unwrap_or_else(|_| panic!("{name} does not parse"));
    assert_eq!(parsed.to_string(), name);
    assert!("".parse::<Kind>().is_err() && "no such engine".parse::<Kind>().is_err());
}

fn nop(kind: Kind) {
    let mut driver = Driver::new(kind);
    for _ in 0..100 {
        let key = driver.nop();
        let landed = driver.wait_for(key);
        assert_eq!(landed.ok(), 0);
        assert!(!landed.at_once, "a nop lands after the next turn");
    }
    let keys: Vec<_> = (0..10).map(|_| driver.nop()).collect();
    for landed in driver.wait_for_all(&keys) {
        assert_eq!(landed.ok(), 0);
    }
}

fn empty_turns(kind: Kind) {
    let mut driver = Driver::new(kind);
    let start = now();
    for _ in 0..1000 {
        assert!(driver.turn(Wait::No).is_empty());
    }
    assert!(driver.turn(Wait::Until(start)).is_empty(), "a time in the past is no wait");
    assert!(since(start) < Duration::from_secs(5), "Wait::No waits");
    // The same with something in flight that does not land.
    let (a, b) = unix_pair();
    let recv = driver.recv(a.fd(), 8);
    let start = now();
    for _ in 0..1000 {
        assert!(driver.turn(Wait::No).is_empty());
    }
    assert!(since(start) < Duration::from_secs(5), "Wait::No waits");
    // A turn may end early, but not over and over.
    let until = now() + Duration::from_millis(30);
    let mut turns = 0;
    while now() < until {
        assert!(driver.turn(Wait::Until(until)).is_empty());
        turns += 1;
    }
    assert!(since(until) < Duration::from_secs(5), "Wait::Until waits too long");
    if driver.sleeps() {
        assert!(turns <= 40, "{turns} turns within 30 ms: it does not sleep");
    }
    put(b.fd(), b"x");
    assert_eq!(driver.wait_for(recv).bytes(), b"x");
}

/// Numbers that are not open. The process opens far fewer, and engines have theirs from 900 on.
const NOT_OPEN: [RawFd; 2] = [800, -1];

fn bad_descriptors_are_errors(kind: Kind) {
    let mut driver = Driver::new(kind);
    for fd in NOT_OPEN {
        assert!(!is_open(fd));
        let ebadf = &[libc::EBADF];
        let keys = [
            driver.recv(fd, 8),
            driver.send(fd, b"x"),
            driver.recv_message(fd, Message::room(&[8]), 0),
            driver.send_message(fd, Message::new(vec![b"x".to_vec()], None, vec![]), 0),
            driver.accept(fd),
            driver.accept_with_address(fd),
            driver.connect(fd, crate::sockets::Address::inet(([127, 0, 0, 1], 9).into())),
            driver.shutdown(fd, libc::SHUT_WR),
            driver.read(fd, 8, 0),
            driver.read(fd, 8, Op::CURRENT_POSITION),
            driver.write(fd, b"x", 0),
            driver.write(fd, b"x", Op::CURRENT_POSITION),
            driver.sync(fd, false),
            driver.sync(fd, true),
            driver.metadata(fd),
            driver.close(fd),
        ];
        for landed in driver.wait_for_all(&keys) {
            landed.failed_with(ebadf);
        }
        let poll = driver.poll(fd, Readiness::READABLE);
        let landed = driver.wait_for(poll);
        let res = landed.res;
        assert!(res == -libc::EBADF || res & i32::from(libc::POLLNVAL) != 0, "poll: {res}");
    }
    let open = driver.open(NOT_OPEN[0], "relative", libc::O_RDONLY, 0);
    driver.wait_for(open).failed_with(&[libc::EBADF]);
}

fn wrong_descriptors_are_errors(kind: Kind) {
    let mut driver = Driver::new(kind);
    if !is_simulated() {
        wrong_ends_of_a_pipe_are_errors(&mut driver);
    }
    let unconnected = crate::sockets::tcp_socket(Ownership::Foreign);
    let shutdown = driver.shutdown(unconnected.fd(), libc::SHUT_WR);
    driver.wait_for(shutdown).failed_with(&[libc::ENOTCONN]);
    let recv = driver.recv(unconnected.fd(), 8);
    driver.wait_for(recv).failed_with(&[libc::ENOTCONN]);
    let send = driver.send(unconnected.fd(), b"x");
    driver.wait_for(send).failed_with(&[libc::EPIPE, libc::ENOTCONN]);
    let accept = driver.accept(unconnected.fd());
    driver.wait_for(accept).failed_with(&[libc::EINVAL]);
    let datagrams = socket(libc::AF_INET, libc::SOCK_DGRAM, Ownership::Foreign);
    let accept = driver.accept(datagrams.fd());
    driver.wait_for(accept).failed_with(&[libc::EOPNOTSUPP]);
    let (a, _b) = unix_pair();
    let recv = driver.recv_with(a.fd(), 8, libc::MSG_OOB);
    assert!(driver.wait_for(recv).res < 0, "out-of-band data where there is none");
}

fn wrong_ends_of_a_pipe_are_errors(driver: &mut Driver) {
    let (reader, writer) = pipe(Ownership::Foreign);
    let enotsock = &[libc::ENOTSOCK];
    let keys = [
        driver.recv(reader.fd(), 8),
        driver.send(writer.fd(), b"x"),
        driver.recv_message(reader.fd(), Message::room(&[8]), 0),
        driver.accept(reader.fd()),
        driver.shutdown(writer.fd(), libc::SHUT_WR),
    ];
    for landed in driver.wait_for_all(&keys) {
        landed.failed_with(enotsock);
    }
    let read = driver.read(writer.fd(), 8, Op::CURRENT_POSITION);
    driver.wait_for(read).failed_with(&[libc::EBADF]);
    let write = driver.write(reader.fd(), b"x", Op::CURRENT_POSITION);
    driver.wait_for(write).failed_with(&[libc::EBADF]);
}

fn dropped_empty(kind: Kind) {
    let before = open_descriptors();
    for _ in 0..20 {
        let mut driver = Driver::new(kind);
        let nop = driver.nop();
        driver.wait_for(nop);
    }
    assert_eq!(open_descriptors(), before, "a dropped engine leaves descriptors open");
}

fn dropped_with_operations_pending(kind: Kind) {
    dropped_pending(kind, true);
}

fn dropped_before_the_first_turn(kind: Kind) {
    dropped_pending(kind, false);
}

/// Drops an engine in mid-operation. Nothing may be written to the memory afterwards, and nothing
/// that arrives afterwards may be swallowed.
fn dropped_pending(kind: Kind, turned: bool) {
    for ownership in Ownership::ALL {
        let before = open_descriptors();
        let (tcp, tcp_peer) = stream_pair(Transport::Tcp, ownership);
        let (unix, unix_peer) = stream_pair(Transport::Unix, ownership);
        let (message, message_peer) = stream_pair(Transport::Unix, ownership);
        let (reader, writer) = pipe(ownership);
        let (listener, address) = tcp_listener(Ownership::Foreign);
        let mut driver = Driver::new(kind);
        driver.recv(tcp.fd(), 64);
        driver.recv(unix.fd(), 64);
        driver.recv_message(message.fd(), Message::room(&[32, 32]), 0);
        driver.read(reader.fd(), 64, Op::CURRENT_POSITION);
        driver.poll(tcp.fd(), Readiness::READABLE);
        driver.timer(now() + Duration::from_secs(1000));
        driver.accept(listener.fd());
        assert_eq!(driver.pending(), 7, "nothing of this can be over already");
        if turned {
            driver.settle();
        }
        let start = now();
        let lent = driver.drop_engine();
        assert!(since(start) < Duration::from_secs(5), "the drop hangs");
        assert_eq!(lent.len(), 7);
        for peer in [&tcp_peer, &unix_peer, &message_peer] {
            put(peer.fd(), b"too late");
        }
        assert_eq!(crate::sockets::raw_write(writer.fd(), b"too late").unwrap(), 8);
        let client = tcp_client(address);
        for socket in [&tcp, &unix, &message] {
            assert_eq!(raw_recv_soon(socket.fd(), 64), b"too late", "bytes were swallowed");
        }
        let (accepted, peer) = accept(listener.fd());
        assert_eq!(peer, local_address(client.fd()).as_inet());
        std::thread::sleep(Duration::from_millis(5));
        for lent in lent {
            assert!(lent.buffer.iter().all(|&byte| byte == CANARY), "memory was written late");
            if let Some(message) = &lent.message {
                assert!(message.bytes().iter().all(|&b| b == 0), "memory was written late");
            }
        }
        drop((tcp, tcp_peer, unix, unix_peer, message, message_peer, reader, writer));
        drop((listener, client, accepted));
        assert_eq!(open_descriptors(), before, "a dropped engine leaves descriptors open");
    }
}

/// Engines of one process, and of one thread, do not disturb each other.
fn many_engines(kind: Kind) {
    let mut drivers: Vec<Driver> = (0..8).map(|_| Driver::new(kind)).collect();
    let pairs: Vec<_> = (0..8).map(|_| unix_pair()).collect();
    let keys: Vec<_> =
        drivers.iter_mut().zip(&pairs).map(|(driver, pair)| driver.recv(pair.0.fd(), 8)).collect();
    drivers.iter_mut().for_each(Driver::settle);
    for (at, ((driver, pair), key)) in drivers.iter_mut().zip(&pairs).zip(keys).enumerate() {
        put(pair.1.fd(), &[at as u8]);
        assert_eq!(driver.wait_for(key).bytes(), [at as u8]);
        assert_eq!(driver.engine().in_flight(), 0);
    }
    // Two engines wait for the same descriptor: one gets the byte, the other waits on.
    let [first, second] = &mut drivers[..2] else { unreachable!() };
    let (a, b) = &pairs[0];
    let keys = [first.recv(a.fd(), 8), second.recv(a.fd(), 8)];
    first.settle();
    second.settle();
    put(b.fd(), b"1");
    let deadline = now() + crate::driver::PATIENCE;
    while !first.has_landed(keys[0]) && !second.has_landed(keys[1]) {
        assert!(now() < deadline, "neither engine got the byte");
        first.turn(Wait::No);
        second.turn(Wait::No);
    }
    put(b.fd(), b"2");
    let mut got = [first.wait_for(keys[0]), second.wait_for(keys[1])].map(|l| l.bytes().to_vec());
    got.sort();
    assert_eq!(got, [b"1".to_vec(), b"2".to_vec()]);
}
