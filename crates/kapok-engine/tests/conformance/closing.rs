//! Descriptors that are closed, with operations pending and with none, and their numbers reused.
//!
//! The hazard is an engine that keeps what it knows by number: it would take a new socket for the
//! old one, wait for an edge that was eaten long ago, or let an old operation take the bytes of a
//! new socket.

use std::os::fd::RawFd;

use kapok_engine::{Kind, Op, Readiness};

use crate::driver::{Driver, Landed};
use crate::sockets::{
    Descriptor, Ownership, Transport, close_number, is_open, landed_descriptor, local_address,
    pipe, put, raw_recv, stream_pair, tcp_client, tcp_listener,
};

conformance! {
    close,
    close_with_receive_pending,
    close_after_cancel,
    close_while_the_cancel_is_on_its_way,
    closed_receive_takes_nothing_from_the_next_socket,
    number_reused,
    number_reused_with_data_waiting,
    number_reused_by_another_sort,
    number_reused_across_directions,
    duplicate_outlives_its_number,
    number_given_back_to_the_same_file,
    listener_number_reused,
}

/// Runs `body` over both transports and every ownership.
fn over_all(kind: Kind, body: fn(&mut Driver, Transport, Ownership)) {
    for transport in Transport::ALL {
        for ownership in Ownership::ALL {
            crate::isolated::doing(format_args!("{transport:?}, {ownership:?}"));
            body(&mut Driver::new(kind), transport, ownership);
        }
    }
}

/// A new pair, whose first end has this number.
fn stream_pair_at(
    number: RawFd,
    transport: Transport,
    ownership: Ownership,
) -> (Descriptor, Descriptor) {
    let (a, b) = stream_pair(transport, ownership);
    match number {
        _ if a.fd() == number => (a, b),
        _ if b.fd() == number => (b, a),
        _ => (a.move_to(number), b),
    }
}

/// Both directions work, whether the operation or the data comes first.
#[track_caller]
fn works(driver: &mut Driver, a: &Descriptor, b: &Descriptor) {
    for _ in 0..2 {
        let recv = driver.recv(a.fd(), 16);
        driver.still_pending(recv);
        put(b.fd(), b"ping");
        assert_eq!(driver.wait_for(recv).bytes(), b"ping");
        put(b.fd(), b"more");
        let recv = driver.recv(a.fd(), 16);
        assert_eq!(driver.wait_for(recv).bytes(), b"more");
        let send = driver.send(a.fd(), b"pong");
        assert_eq!(driver.wait_for(send).ok(), 4);
        assert_eq!(crate::sockets::raw_recv_soon(b.fd(), 16), b"pong");
        let writable = driver.poll(a.fd(), Readiness::WRITABLE);
        assert!(driver.wait_for(writable).ok() > 0);
    }
}

/// A receive whose descriptor was closed came to nothing.
#[track_caller]
fn came_to_nothing(landed: &Landed) {
    assert!(
        landed.was_cancelled() || landed.res == -libc::EBADF || landed.res == 0,
        "the receive on a closed descriptor landed with {}",
        landed.res
    );
}

fn close(kind: Kind) {
    over_all(kind, |driver, transport, ownership| {
        let (a, b) = stream_pair(transport, ownership);
        works(driver, &a, &b);
        let number = a.into_number();
        let close = driver.close(number);
        assert_eq!(driver.wait_for(close).ok(), 0);
        assert!(!is_open(number));
        let recv = driver.recv(b.fd(), 16);
        assert_eq!(driver.wait_for(recv).ok(), 0, "the peer does not see it");
        let again = driver.close(number);
        driver.wait_for(again).failed_with(&[libc::EBADF]);
    });
}

fn close_with_receive_pending(kind: Kind) {
    over_all(kind, |driver, transport, ownership| {
        let (a, b) = stream_pair(transport, ownership);
        let recv = driver.recv(a.fd(), 16);
        driver.still_pending(recv);
        let number = a.into_number();
        let close = driver.close(number);
        assert_eq!(driver.wait_for(close).ok(), 0);
        // It may wait on the file that was there, which only a cancel ends.
        came_to_nothing(&driver.cancel_and_wait(recv));
        drop(b);
        let (a, b) = stream_pair_at(number, transport, ownership);
        works(driver, &a, &b);
    });
}

fn close_after_cancel(kind: Kind) {
    over_all(kind, |driver, transport, ownership| {
        for _ in 0..3 {
            let (a, _b) = stream_pair(transport, ownership);
            let recv = driver.recv(a.fd(), 16);
            driver.still_pending(recv);
            assert!(driver.cancel_and_wait(recv).was_cancelled());
            let number = a.into_number();
            close_number(number);
            let (a, b) = stream_pair_at(number, transport, ownership);
            works(driver, &a, &b);
        }
    });
}

fn close_while_the_cancel_is_on_its_way(kind: Kind) {
    over_all(kind, |driver, transport, ownership| {
        for turned in [true, false] {
            let (a, _b) = stream_pair(transport, ownership);
            let recv = driver.recv(a.fd(), 16);
            // An operation that no turn has passed on yet may find the number closed.
            if turned {
                driver.still_pending(recv);
            }
            driver.cancel(recv);
            let number = a.into_number();
            close_number(number);
            came_to_nothing(&driver.wait_for(recv));
            let (a, b) = stream_pair_at(number, transport, ownership);
            works(driver, &a, &b);
        }
    });
}

/// The old receive is still pending when the number is in use again. It acts on the old socket, if
/// on any.
fn closed_receive_takes_nothing_from_the_next_socket(kind: Kind) {
    over_all(kind, |driver, transport, ownership| {
        let (a, old_peer) = stream_pair(transport, ownership);
        let (c, new_peer) = stream_pair(transport, ownership);
        let old = driver.recv(a.fd(), 16);
        driver.still_pending(old);
        let number = a.into_number();
        let close = driver.close(number);
        assert_eq!(driver.wait_for(close).ok(), 0);
        let c = c.move_to(number);
        put(new_peer.fd(), b"for the new one");
        driver.settle();
        let new = driver.recv(c.fd(), 16);
        assert_eq!(driver.wait_for(new).bytes(), b"for the new one");
        works(driver, &c, &new_peer);
        came_to_nothing(&driver.cancel_and_wait(old));
        drop(old_peer);
        works(driver, &c, &new_peer);
    });
}

fn number_reused(kind: Kind) {
    over_all(kind, |driver, transport, ownership| {
        let (first, _peer) = stream_pair(transport, ownership);
        let number = first.fd();
        let mut present = first;
        for round in 0..6 {
            let (next, peer) = stream_pair(transport, ownership);
            drop(present);
            present = next.move_to(number);
            works(driver, &present, &peer);
            if round % 2 == 0 {
                // The end of the old stream is no news about the new one.
                drop(peer);
                let recv = driver.recv(present.fd(), 16);
                assert_eq!(driver.wait_for(recv).ok(), 0);
            }
        }
    });
}

/// The edge comes before the engine knows of the new socket, and no other follows.
fn number_reused_with_data_waiting(kind: Kind) {
    over_all(kind, |driver, transport, ownership| {
        let (first, first_peer) = stream_pair(transport, ownership);
        works(driver, &first, &first_peer);
        let number = first.fd();
        let mut present = first;
        for _ in 0..6 {
            let (next, peer) = stream_pair(transport, ownership);
            put(peer.fd(), b"waiting");
            drop(present);
            present = next.move_to(number);
            let recv = driver.recv(present.fd(), 4);
            assert_eq!(driver.wait_for(recv).bytes(), b"wait");
            let poll = driver.poll(present.fd(), Readiness::READABLE);
            assert!(driver.wait_for(poll).ok() > 0);
            let recv = driver.recv(present.fd(), 16);
            assert_eq!(driver.wait_for(recv).bytes(), b"ing");
            let recv = driver.recv(present.fd(), 16);
            driver.still_pending(recv);
            drop(peer);
            assert_eq!(driver.wait_for(recv).ok(), 0);
        }
    });
}

fn number_reused_by_another_sort(kind: Kind) {
    over_all(kind, |driver, transport, ownership| {
        let (socket, peer) = stream_pair(transport, ownership);
        works(driver, &socket, &peer);
        let number = socket.fd();
        let (reader, writer) = pipe(ownership);
        drop((socket, peer));
        let reader = reader.move_to(number);
        let read = driver.read(reader.fd(), 16, Op::CURRENT_POSITION);
        driver.still_pending(read);
        assert_eq!(crate::sockets::raw_write(writer.fd(), b"pipe").unwrap(), 4);
        assert_eq!(driver.wait_for(read).bytes(), b"pipe");
        let (socket, peer) = stream_pair(transport, ownership);
        drop((reader, writer));
        let socket = socket.move_to(number);
        works(driver, &socket, &peer);
    });
}

/// The reader's end of the last pair becomes the writer's end of the next, and the other way.
fn number_reused_across_directions(kind: Kind) {
    over_all(kind, |driver, transport, ownership| {
        for _ in 0..2 {
            let (a, b) = stream_pair(transport, ownership);
            let (a_number, b_number) = (a.fd(), b.fd());
            works(driver, &a, &b);
            works(driver, &b, &a);
            let (c, d) = stream_pair(transport, ownership);
            drop((a, b));
            let (c, d) = (c.move_to(b_number), d.move_to(a_number));
            works(driver, &c, &d);
            works(driver, &d, &c);
        }
    });
}

/// epoll registers open files: a closed number whose file lives on under another stays registered.
fn duplicate_outlives_its_number(kind: Kind) {
    over_all(kind, |driver, transport, ownership| {
        let (a, a_peer) = stream_pair(transport, ownership);
        works(driver, &a, &a_peer);
        let duplicate = a.duplicate();
        let number = a.fd();
        drop(a);
        let (c, c_peer) = stream_pair_at(number, transport, ownership);
        let recv = driver.recv(c.fd(), 16);
        // News of the old file, which is not the number's any more.
        put(a_peer.fd(), b"for the duplicate");
        driver.still_pending(recv);
        let other = driver.recv(duplicate.fd(), 64);
        assert_eq!(driver.wait_for(other).bytes(), b"for the duplicate");
        driver.still_pending(recv);
        put(c_peer.fd(), b"for the new");
        assert_eq!(driver.wait_for(recv).bytes(), b"for the new");
        works(driver, &c, &c_peer);
        works(driver, &duplicate, &a_peer);
    });
}

/// The same file comes back under the same number: registered already, and not to be trusted.
fn number_given_back_to_the_same_file(kind: Kind) {
    over_all(kind, |driver, transport, ownership| {
        let (a, peer) = stream_pair(transport, ownership);
        works(driver, &a, &peer);
        let number = a.fd();
        let keeper = a.duplicate();
        drop(a);
        let (between, between_peer) = stream_pair_at(number, transport, ownership);
        works(driver, &between, &between_peer);
        drop(between);
        put(peer.fd(), b"meanwhile");
        let back = keeper.move_to(number);
        let recv = driver.recv(back.fd(), 16);
        assert_eq!(driver.wait_for(recv).bytes(), b"meanwhile");
        works(driver, &back, &peer);
    });
}

fn listener_number_reused(kind: Kind) {
    for ownership in [Ownership::Foreign, Ownership::Owned] {
        let mut driver = Driver::new(kind);
        let (listener, address) = tcp_listener(ownership);
        let number = listener.fd();
        let accept = driver.accept(listener.fd());
        driver.still_pending(accept);
        let client = tcp_client(address);
        drop(landed_descriptor(driver.wait_for(accept).ok()));
        drop(client);
        // With an accept pending, closed by the engine.
        let accept = driver.accept(listener.fd());
        driver.still_pending(accept);
        let close = driver.close(listener.into_number());
        assert_eq!(driver.wait_for(close).ok(), 0);
        let landed = driver.cancel_and_wait(accept);
        assert!(landed.res < 0, "accepted from a closed listener: {}", landed.res);
        let (listener, address) = tcp_listener(ownership);
        let listener = if listener.fd() == number { listener } else { listener.move_to(number) };
        // The connection is there before the engine knows of the listener.
        let client = tcp_client(address);
        let accept = driver.accept_with_address(listener.fd());
        let landed = driver.wait_for(accept);
        let accepted = landed_descriptor(landed.ok());
        let peer = landed.lent.address.as_ref().unwrap().as_inet();
        assert_eq!(peer, local_address(client.fd()).as_inet());
        drop(accepted);
        assert!(raw_recv(listener.fd(), 1).is_err(), "a listener has no bytes");
    }
}
