//! Datagrams: boundaries, addresses, truncation.

use std::path::Path;

use kapok_engine::{Kind, Op, Wait};

use crate::driver::Driver;
use crate::sockets::{
    Address, Descriptor, Directory, Message, Ownership, datagram_pairs, packet_pair, pattern, put,
    raw_recv, udp_socket, unix_datagram,
};
use crate::world::is_simulated;

conformance! {
    echo,
    boundaries_are_kept,
    an_empty_datagram_is_no_end,
    truncated,
    wait_all_is_for_one_message,
    addresses,
    unix_addresses,
    peek,
    refused,
    the_other_one_of_a_pair_is_gone,
    a_unix_connection_is_to_a_socket_and_not_to_its_name,
    what_is_lost_with_a_peer_makes_room_for_others,
    shut_down_for_receiving,
    each_goes_to_one_of_many_receivers,
    a_full_queue_makes_a_send_wait,
}

fn over_all(kind: Kind, body: fn(&mut Driver, &Descriptor, &Descriptor)) {
    for ownership in Ownership::ALL {
        let mut driver = Driver::new(kind);
        for (name, a, b) in datagram_pairs(ownership) {
            crate::isolated::doing(format_args!("{name} datagrams, {ownership:?}"));
            body(&mut driver, &a, &b);
        }
    }
}

fn echo(kind: Kind) {
    over_all(kind, |driver, a, b| {
        for round in 0..30 {
            let datagram = pattern(round, 1 + 30 * round);
            let recv = driver.recv(b.fd(), 2000);
            driver.turn(Wait::No);
            let send = driver.send(a.fd(), &datagram);
            assert_eq!(driver.wait_for(send).ok(), datagram.len());
            assert_eq!(driver.wait_for(recv).bytes(), datagram);
            let send = driver.send(b.fd(), &datagram);
            assert_eq!(driver.wait_for(send).ok(), datagram.len());
            let recv = driver.recv(a.fd(), 2000);
            assert_eq!(driver.wait_for(recv).bytes(), datagram);
        }
    });
}

fn boundaries_are_kept(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let recv = driver.recv(b.fd(), 100);
        driver.still_pending(recv);
        for len in 1..=8 {
            put(a.fd(), &pattern(len, len));
        }
        // One edge, eight datagrams.
        assert_eq!(driver.wait_for(recv).bytes(), pattern(1, 1));
        for len in 2..=8 {
            let recv = driver.recv(b.fd(), 100);
            assert_eq!(driver.wait_for(recv).bytes(), pattern(len, len));
        }
        let recv = driver.recv(b.fd(), 100);
        driver.still_pending(recv);
        put(a.fd(), b"ninth");
        assert_eq!(driver.wait_for(recv).bytes(), b"ninth");
    });
}

fn an_empty_datagram_is_no_end(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let recv = driver.recv(b.fd(), 100);
        driver.still_pending(recv);
        let send = driver.send(a.fd(), b"");
        assert_eq!(driver.wait_for(send).ok(), 0);
        assert_eq!(driver.wait_for(recv).ok(), 0);
        let recv = driver.recv(b.fd(), 100);
        driver.still_pending(recv);
        put(a.fd(), b"goes on");
        assert_eq!(driver.wait_for(recv).bytes(), b"goes on");
    });
}

fn truncated(kind: Kind) {
    over_all(kind, |driver, a, b| {
        put(a.fd(), b"too long for it");
        let recv = driver.recv(b.fd(), 8);
        assert_eq!(driver.wait_for(recv).bytes(), b"too long");
        put(a.fd(), b"too long for it");
        let recv = driver.recv_message(b.fd(), Message::room(&[4, 4]), 0);
        let landed = driver.wait_for(recv);
        assert_eq!(landed.ok(), 8);
        let message = landed.lent.message.as_ref().unwrap();
        assert_eq!(message.bytes(), b"too long");
        assert!(message.flags() & libc::MSG_TRUNC != 0, "the flags do not say so");
        // The rest is gone, not next.
        let recv = driver.recv(b.fd(), 8);
        driver.still_pending(recv);
        put(a.fd(), b"next");
        assert_eq!(driver.wait_for(recv).bytes(), b"next");
    });
}

/// recv(2): the flag has no effect where there are boundaries.
fn wait_all_is_for_one_message(kind: Kind) {
    for ownership in Ownership::ALL {
        let mut driver = Driver::new(kind);
        let mut pairs = Vec::from(datagram_pairs(ownership));
        pairs.extend((!is_simulated()).then(|| packet_pair(ownership)));
        for (name, a, b) in &pairs {
            crate::isolated::doing(format_args!("{name}, {ownership:?}"));
            for _ in 0..3 {
                let recv = driver.recv_with(b.fd(), 100, libc::MSG_WAITALL);
                driver.still_pending(recv);
                put(a.fd(), b"one");
                assert_eq!(driver.wait_for(recv).bytes(), b"one");
                put(a.fd(), b"two");
                put(a.fd(), b"three");
                let recv = driver.recv_with(b.fd(), 100, libc::MSG_WAITALL);
                assert_eq!(driver.wait_for(recv).bytes(), b"two");
                let room = Message::room(&[50, 50]);
                let recv = driver.recv_message(b.fd(), room, libc::MSG_WAITALL);
                assert_eq!(driver.wait_for(recv).ok(), 5);
            }
        }
    }
}

fn addresses(kind: Kind) {
    for ownership in Ownership::ALL {
        let mut driver = Driver::new(kind);
        let ((a, a_address), (b, b_address)) = (udp_socket(ownership), udp_socket(ownership));
        let recv = driver.recv_message(b.fd(), Message::room(&[10, 10]), 0);
        driver.still_pending(recv);
        let to = Some(Address::inet(b_address));
        let message = Message::new(vec![b"to an ".to_vec(), b"address".to_vec()], to, vec![]);
        let send = driver.send_message(a.fd(), message, 0);
        assert_eq!(driver.wait_for(send).ok(), 13);
        let landed = driver.wait_for(recv);
        assert_eq!(landed.ok(), 13);
        let message = landed.lent.message.as_ref().unwrap();
        assert_eq!(&message.bytes()[..13], b"to an address");
        assert_eq!(message.sender().as_inet(), a_address);
        // The answer, to the address that came.
        let answer = Message::new(vec![b"answer".to_vec()], Some(message.sender()), vec![]);
        let send = driver.send_message(b.fd(), answer, 0);
        assert_eq!(driver.wait_for(send).ok(), 6);
        let recv = driver.recv_message(a.fd(), Message::room(&[64]), 0);
        let landed = driver.wait_for(recv);
        assert_eq!(landed.ok(), 6);
        assert_eq!(landed.lent.message.as_ref().unwrap().sender().as_inet(), b_address);
        // Without an address there is nowhere to send to.
        let send = driver.send(a.fd(), b"where");
        driver.wait_for(send).failed_with(&[libc::EDESTADDRREQ, libc::ENOTCONN]);
        let long = driver.send_message(
            a.fd(),
            Message::new(vec![vec![0; 70_000]], Some(Address::inet(b_address)), vec![]),
            0,
        );
        driver.wait_for(long).failed_with(&[libc::EMSGSIZE]);
    }
}

fn unix_addresses(kind: Kind) {
    let directory = Directory::new();
    let (here, there) = (directory.join("here"), directory.join("there"));
    let (a, b) = (unix_datagram(&here), unix_datagram(&there));
    let mut driver = Driver::new(kind);
    let recv = driver.recv_message(b.fd(), Message::room(&[64]), 0);
    driver.still_pending(recv);
    let to = Some(Address::unix(&there));
    let send = driver.send_message(a.fd(), Message::new(vec![b"hello".to_vec()], to, vec![]), 0);
    assert_eq!(driver.wait_for(send).ok(), 5);
    let landed = driver.wait_for(recv);
    assert_eq!(landed.ok(), 5);
    assert_eq!(landed.lent.message.as_ref().unwrap().sender().as_unix(), here);
    let to = Some(Address::unix(&directory.join("nowhere")));
    let send = driver.send_message(a.fd(), Message::new(vec![b"hello".to_vec()], to, vec![]), 0);
    driver.wait_for(send).failed_with(&[libc::ENOENT]);
}

fn peek(kind: Kind) {
    over_all(kind, |driver, a, b| {
        put(a.fd(), b"first");
        put(a.fd(), b"second");
        for _ in 0..3 {
            let peek = driver.recv_with(b.fd(), 100, libc::MSG_PEEK);
            assert_eq!(driver.wait_for(peek).bytes(), b"first");
        }
        for expected in [&b"first"[..], b"second"] {
            let recv = driver.recv(b.fd(), 100);
            assert_eq!(driver.wait_for(recv).bytes(), expected);
        }
    });
}

/// Nobody listens there: the answer of the network is an error of the pending receive.
fn refused(kind: Kind) {
    for ownership in Ownership::ALL {
        let mut driver = Driver::new(kind);
        let (a, b) = crate::sockets::udp_pair(ownership);
        let recv = driver.recv(a.fd(), 16);
        driver.still_pending(recv);
        drop(b);
        driver.turn(Wait::No);
        let send = driver.send(a.fd(), b"anyone?");
        assert_eq!(driver.wait_for(send).ok(), 7);
        driver.wait_for(recv).failed_with(&[libc::ECONNREFUSED]);
        let recv = driver.recv(a.fd(), 16);
        driver.still_pending(recv);
        assert!(driver.cancel_and_wait(recv).was_cancelled());
    }
}

fn the_other_one_of_a_pair_is_gone(kind: Kind) {
    for ownership in Ownership::ALL {
        let mut driver = Driver::new(kind);
        let [_, (_, a, b)] = datagram_pairs(ownership);
        drop(b);
        driver.turn(Wait::No);
        let send = driver.send(a.fd(), b"anyone?");
        driver.wait_for(send).failed_with(&[libc::ECONNREFUSED]);
        // Told once, it is a socket like any other.
        let send = driver.send(a.fd(), b"anyone?");
        driver.wait_for(send).failed_with(&[libc::ENOTCONN]);
    }
}

/// A Unix datagram socket at `path` that is connected to the one at `to`.
fn connected(driver: &mut Driver, path: &Path, to: &Path) -> Descriptor {
    let socket = unix_datagram(path);
    let connect = driver.connect(socket.fd(), Address::unix(to));
    assert_eq!(driver.wait_for(connect).ok(), 0);
    socket
}

fn a_unix_connection_is_to_a_socket_and_not_to_its_name(kind: Kind) {
    let directory = Directory::new();
    let [here, there, elsewhere] = ["here", "there", "elsewhere"].map(|name| directory.join(name));
    let mut driver = Driver::new(kind);
    let first = unix_datagram(&there);
    let a = connected(&mut driver, &here, &there);
    let other = unix_datagram(&elsewhere);
    put(a.fd(), b"first");
    let recv = driver.recv(first.fd(), 16);
    assert_eq!(driver.wait_for(recv).bytes(), b"first");
    // It hears of nobody else.
    let connect = driver.connect(other.fd(), Address::unix(&here));
    driver.wait_for(connect).failed_with(&[libc::EPERM]);
    let to = Some(Address::unix(&here));
    let send = driver.send_message(other.fd(), Message::new(vec![b"me".to_vec()], to, vec![]), 0);
    driver.wait_for(send).failed_with(&[libc::EPERM]);
    drop(first);
    crate::sockets::remove_name(&there);
    let second = unix_datagram(&there);
    driver.turn(Wait::No);
    let send = driver.send(a.fd(), b"gone");
    driver.wait_for(send).failed_with(&[libc::ECONNREFUSED]);
    let send = driver.send(a.fd(), b"gone");
    driver.wait_for(send).failed_with(&[libc::ENOTCONN]);
    let connect = driver.connect(a.fd(), Address::unix(&there));
    assert_eq!(driver.wait_for(connect).ok(), 0);
    put(a.fd(), b"second");
    let recv = driver.recv(second.fd(), 16);
    assert_eq!(driver.wait_for(recv).bytes(), b"second");
}

/// What a socket has not received when it learns that its peer is gone is lost, and who waited for
/// room there goes on.
fn what_is_lost_with_a_peer_makes_room_for_others(kind: Kind) {
    let directory = Directory::new();
    let [here, there, elsewhere] = ["here", "there", "elsewhere"].map(|name| directory.join(name));
    let mut driver = Driver::new(kind);
    let (a, b) = (unix_datagram(&here), unix_datagram(&there));
    let third = connected(&mut driver, &elsewhere, &here);
    let mut sent = 0;
    while crate::sockets::raw_send(third.fd(), &[0; 400]).is_ok() {
        sent += 1;
        assert!(sent < 10_000, "the queue has no end");
    }
    let send = driver.send(third.fd(), &[1; 400]);
    driver.still_pending(send);
    let connect = driver.connect(a.fd(), Address::unix(&there));
    assert_eq!(driver.wait_for(connect).ok(), 0);
    drop(b);
    driver.turn(Wait::No);
    let refused = driver.send(a.fd(), b"anyone?");
    driver.wait_for(refused).failed_with(&[libc::ECONNREFUSED]);
    assert_eq!(driver.wait_for(send).ok(), 400);
    let recv = driver.recv(a.fd(), 1000);
    assert_eq!(driver.wait_for(recv).bytes(), [1; 400]);
}

/// What waits is woken, what is there is still received, and then there is an end.
fn shut_down_for_receiving(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let recv = driver.recv(b.fd(), 16);
        driver.still_pending(recv);
        put(a.fd(), b"before");
        assert_eq!(driver.wait_for(recv).bytes(), b"before");
        let recv = driver.recv(b.fd(), 16);
        driver.still_pending(recv);
        let shutdown = driver.shutdown(b.fd(), libc::SHUT_RD);
        driver.wait_for(shutdown).ok();
        assert_eq!(driver.wait_for(recv).ok(), 0);
        driver.turn(Wait::No);
        let recv = driver.recv(b.fd(), 16);
        assert_eq!(driver.wait_for(recv).ok(), 0);
        #[cfg(target_os = "linux")]
        {
            let recv = driver.recv_with(b.fd(), 16, libc::MSG_DONTWAIT);
            driver.wait_for(recv).failed_with(&[libc::EAGAIN]);
        }
        // Of these, io_uring takes `O_NONBLOCK` for the wish not to wait.
        let rings = driver.engine().kind() == Kind::Uring;
        let recv = driver.recv_message(b.fd(), Message::room(&[8, 8]), 0);
        let res = driver.wait_for(recv).res;
        assert!(res == 0 || rings && res == -libc::EAGAIN, "{res}");
        let read = driver.read(b.fd(), 16, Op::CURRENT_POSITION);
        let res = driver.wait_for(read).res;
        assert!(res == 0 || rings && res == -libc::EAGAIN, "{res}");
    });
}

fn each_goes_to_one_of_many_receivers(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let recvs: Vec<_> = (0..8).map(|_| driver.recv(b.fd(), 100)).collect();
        driver.settle();
        // Unix datagram queues may hold no more than ten.
        for at in 0..8u8 {
            put(a.fd(), &[at; 5]);
        }
        let mut got: Vec<u8> =
            driver.wait_for_all(&recvs).iter().map(|landed| landed.bytes()[0]).collect();
        got.sort();
        assert_eq!(got, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert!(raw_recv(b.fd(), 100).is_err(), "something is left over");
    });
}

fn a_full_queue_makes_a_send_wait(kind: Kind) {
    for ownership in Ownership::ALL {
        let mut driver = Driver::new(kind);
        let [_, (_, a, b)] = datagram_pairs(ownership);
        crate::sockets::shrink_send_buffer(a.fd());
        let datagram = |number: u32| [number.to_ne_bytes(); 100].concat();
        let mut sent = 0;
        while crate::sockets::raw_send(a.fd(), &datagram(sent)).is_ok() {
            sent += 1;
            assert!(sent < 10_000, "the queue has no end");
        }
        let send = driver.send(a.fd(), &datagram(sent));
        driver.still_pending(send);
        for number in 0..=sent {
            let recv = driver.recv(b.fd(), 1000);
            assert_eq!(driver.wait_for(recv).bytes(), datagram(number));
        }
        assert_eq!(driver.wait_for(send).ok(), 400);
    }
}
