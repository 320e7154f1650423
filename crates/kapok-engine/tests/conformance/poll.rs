//! Readiness as an operation: any descriptor, nothing taken out of it.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use kapok_engine::{Engine as _, Key, Kind, Readiness, Wait};

use crate::driver::Driver;
use crate::sockets::{
    Descriptor, Ownership, Transport, fill, pipe, put, raw_recv, raw_write, shrink_send_buffer,
    stream_pair, tcp_client, tcp_listener, tcp_socket, unix_pair,
};
use crate::world::{is_simulated, now};

conformance! {
    readable,
    writable,
    one_direction_is_not_the_other,
    takes_nothing,
    many_on_one_descriptor,
    again_and_again,
    hang_up,
    broken_pipe,
    peer_closed_its_half,
    peer_shut_both_halves,
    listener,
    connecting,
    regular_file,
    other_sorts,
    nothing_asked_for,
}

#[track_caller]
fn sees(driver: &mut Driver, key: Key, wanted: Readiness) {
    let landed = driver.wait_for(key);
    let seen = Readiness(landed.ok() as i16);
    assert!(seen.intersects(wanted), "{:?} landed with {seen:?}, not {wanted:?}", landed.op);
}

fn over_all(kind: Kind, body: fn(&mut Driver, Descriptor, Descriptor)) {
    for transport in Transport::ALL {
        for ownership in Ownership::ALL {
            let (a, b) = stream_pair(transport, ownership);
            body(&mut Driver::new(kind), a, b);
        }
    }
}

fn readable(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let poll = driver.poll(a.fd(), Readiness::READABLE);
        driver.still_pending(poll);
        put(b.fd(), b"x");
        sees(driver, poll, Readiness::READABLE);
        // Ready already.
        let poll = driver.poll(a.fd(), Readiness::READABLE);
        sees(driver, poll, Readiness::READABLE);
        assert_eq!(raw_recv(a.fd(), 8).unwrap(), b"x");
        // Taken behind the engine's back: not readable, whatever it remembers.
        let poll = driver.poll(a.fd(), Readiness::READABLE);
        driver.still_pending(poll);
        drop(b);
        sees(driver, poll, Readiness::READABLE);
        let poll = driver.poll(a.fd(), Readiness::READABLE);
        sees(driver, poll, Readiness::READABLE);
    });
}

fn writable(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let poll = driver.poll(a.fd(), Readiness::WRITABLE);
        sees(driver, poll, Readiness::WRITABLE);
        shrink_send_buffer(a.fd());
        fill(a.fd(), 0);
        driver.linger(Duration::from_millis(2));
        // TCP may move what it took on to the peer: until it does not.
        while fill(a.fd(), 0) > 0 {
            driver.linger(Duration::from_millis(2));
        }
        let poll = driver.poll(a.fd(), Readiness::WRITABLE);
        let deadline = now() + crate::driver::PATIENCE;
        driver.settle();
        while !driver.has_landed(poll) {
            assert!(now() < deadline, "the drained socket is not writable");
            let _ = raw_recv(b.fd(), 65536);
            driver.turn(Wait::Until(now() + Duration::from_millis(1)));
        }
        sees(driver, poll, Readiness::WRITABLE);
    });
}

fn one_direction_is_not_the_other(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let read = driver.poll(a.fd(), Readiness::READABLE);
        let write = driver.poll(a.fd(), Readiness::WRITABLE);
        sees(driver, write, Readiness::WRITABLE);
        driver.still_pending(read);
        let either = driver.poll(a.fd(), Readiness::READABLE.union(Readiness::WRITABLE));
        sees(driver, either, Readiness::WRITABLE);
        driver.still_pending(read);
        put(b.fd(), b"x");
        sees(driver, read, Readiness::READABLE);
        let either = driver.poll(a.fd(), Readiness::READABLE.union(Readiness::WRITABLE));
        let seen = Readiness(driver.wait_for(either).ok() as i16);
        assert!(seen.intersects(Readiness::READABLE) && seen.intersects(Readiness::WRITABLE));
    });
}

fn takes_nothing(kind: Kind) {
    over_all(kind, |driver, a, b| {
        for _ in 0..10 {
            let poll = driver.poll(a.fd(), Readiness::READABLE);
            driver.turn(Wait::No);
            put(b.fd(), b"all of it");
            sees(driver, poll, Readiness::READABLE);
            let poll = driver.poll(a.fd(), Readiness::READABLE);
            let _ = driver.cancel_and_wait(poll);
            let recv = driver.recv(a.fd(), 64);
            assert_eq!(driver.wait_for(recv).bytes(), b"all of it");
        }
    });
}

fn many_on_one_descriptor(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let duplicate = a.duplicate();
        let mut polls: Vec<_> = (0..5).map(|_| driver.poll(a.fd(), Readiness::READABLE)).collect();
        polls.push(driver.poll(duplicate.fd(), Readiness::READABLE));
        driver.settle();
        let cancelled = polls.remove(2);
        assert!(driver.cancel_and_wait(cancelled).was_cancelled());
        put(b.fd(), b"x");
        // Readiness is nobody's: all see it.
        for poll in polls {
            sees(driver, poll, Readiness::READABLE);
        }
    });
}

fn again_and_again(kind: Kind) {
    let mut driver = Driver::new(kind);
    let (a, b) = unix_pair();
    for _ in 0..200 {
        let poll = driver.poll(a.fd(), Readiness::READABLE);
        driver.turn(Wait::No);
        assert!(!driver.has_landed(poll), "readable, and nothing is there");
        put(b.fd(), b"x");
        sees(&mut driver, poll, Readiness::READABLE);
        assert_eq!(raw_recv(a.fd(), 8).unwrap(), b"x");
    }
}

fn hang_up(kind: Kind) {
    for ownership in Ownership::ALL {
        let mut driver = Driver::new(kind);
        let (reader, writer) = pipe(ownership);
        let poll = driver.poll(reader.fd(), Readiness::READABLE);
        driver.still_pending(poll);
        drop(writer);
        sees(&mut driver, poll, Readiness::HANG_UP.union(Readiness::READABLE));
    }
    over_all(kind, |driver, a, b| {
        let poll = driver.poll(a.fd(), Readiness::READABLE);
        driver.still_pending(poll);
        crate::sockets::reset_on_close(b.fd());
        drop(b);
        let any = Readiness::READABLE.union(Readiness::HANG_UP).union(Readiness::ERROR);
        sees(driver, poll, any);
    });
}

fn broken_pipe(kind: Kind) {
    for ownership in Ownership::ALL {
        let mut driver = Driver::new(kind);
        let (reader, writer) = pipe(ownership);
        crate::sockets::set_nonblocking(writer.fd(), true);
        while raw_write(writer.fd(), &[0; 4096]).is_ok() {}
        let poll = driver.poll(writer.fd(), Readiness::WRITABLE);
        driver.still_pending(poll);
        drop(reader);
        let any = Readiness::WRITABLE.union(Readiness::ERROR).union(Readiness::HANG_UP);
        sees(&mut driver, poll, any);
    }
}

fn peer_closed_its_half(kind: Kind) {
    over_all(kind, |driver, a, b| {
        let any = Readiness::READABLE.union(Readiness::READ_CLOSED);
        let poll = driver.poll(a.fd(), any);
        driver.still_pending(poll);
        let shutdown = driver.shutdown(b.fd(), libc::SHUT_WR);
        driver.wait_for(shutdown).ok();
        sees(driver, poll, any);
    });
}

/// Of a Unix stream that is the end of both directions on both sides.
fn peer_shut_both_halves(kind: Kind) {
    for ownership in Ownership::ALL {
        let mut driver = Driver::new(kind);
        let (a, b) = stream_pair(Transport::Unix, ownership);
        let poll = driver.poll(a.fd(), Readiness::READABLE);
        driver.still_pending(poll);
        let shutdown = driver.shutdown(b.fd(), libc::SHUT_RDWR);
        driver.wait_for(shutdown).ok();
        sees(&mut driver, poll, Readiness::HANG_UP);
    }
}

fn listener(kind: Kind) {
    for ownership in [Ownership::Foreign, Ownership::Owned] {
        let mut driver = Driver::new(kind);
        let (listener, address) = tcp_listener(ownership);
        let poll = driver.poll(listener.fd(), Readiness::READABLE);
        driver.still_pending(poll);
        let _client = tcp_client(address);
        sees(&mut driver, poll, Readiness::READABLE);
        // And the connection is still there.
        let accept = driver.accept(listener.fd());
        drop(crate::sockets::landed_descriptor(driver.wait_for(accept).ok()));
    }
}

fn connecting(kind: Kind) {
    let mut driver = Driver::new(kind);
    let (_listener, address) = tcp_listener(Ownership::Foreign);
    let socket = tcp_socket(Ownership::Foreign);
    let address = crate::sockets::Address::inet(address);
    // SAFETY: the address is a local, of the length given.
    let answer =
        unsafe { libc::connect(socket.fd(), (&raw const address.storage).cast(), address.len) };
    assert!(
        answer == 0 || std::io::Error::last_os_error().raw_os_error() == Some(libc::EINPROGRESS)
    );
    let poll = driver.poll(socket.fd(), Readiness::WRITABLE);
    sees(&mut driver, poll, Readiness::WRITABLE);
}

/// poll(2) takes regular files, which are always ready. epoll(7) does not.
fn regular_file(kind: Kind) {
    let mut driver = Driver::new(kind);
    let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
    for _ in 0..3 {
        let poll = driver.poll(file.as_raw_fd(), Readiness::READABLE);
        sees(&mut driver, poll, Readiness::READABLE);
    }
    let directory = std::fs::File::open("/").unwrap();
    let poll = driver.poll(directory.as_raw_fd(), Readiness::READABLE);
    sees(&mut driver, poll, Readiness::READABLE);
    let null = std::fs::File::options().write(true).open("/dev/null").unwrap();
    let poll = driver.poll(null.as_raw_fd(), Readiness::WRITABLE);
    sees(&mut driver, poll, Readiness::WRITABLE);
}

fn other_sorts(kind: Kind) {
    let mut driver = Driver::new(kind);
    for (_, a, b) in crate::sockets::datagram_pairs(Ownership::Foreign) {
        let poll = driver.poll(a.fd(), Readiness::READABLE);
        driver.still_pending(poll);
        put(b.fd(), b"x");
        sees(&mut driver, poll, Readiness::READABLE);
    }
    #[cfg(target_os = "linux")]
    {
        // SAFETY: eventfd takes no memory; the descriptor is new.
        let event = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) };
        let poll = driver.poll(event.as_raw_fd(), Readiness::READABLE);
        driver.still_pending(poll);
        assert_eq!(raw_write(event.as_raw_fd(), &1u64.to_ne_bytes()).unwrap(), 8);
        sees(&mut driver, poll, Readiness::READABLE);
        if is_simulated() {
            return; // what waits in the kernel sees nothing of a simulated socket
        }
        // An epoll instance in which something is ready is readable itself.
        // SAFETY: epoll_create1 takes no memory; the descriptor is new.
        let nested = unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC)) };
        let (a, b) = unix_pair();
        let mut interest = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        // SAFETY: the event is a local.
        let added = unsafe {
            libc::epoll_ctl(nested.as_raw_fd(), libc::EPOLL_CTL_ADD, a.fd(), &raw mut interest)
        };
        assert_eq!(added, 0);
        let poll = driver.poll(nested.as_raw_fd(), Readiness::READABLE);
        driver.still_pending(poll);
        put(b.fd(), b"x");
        sees(&mut driver, poll, Readiness::READABLE);
    }
    assert_eq!(driver.engine().in_flight(), 0);
}

/// Errors and the end of the stream are reported, asked for or not.
fn nothing_asked_for(kind: Kind) {
    let mut driver = Driver::new(kind);
    let (a, b) = unix_pair();
    let poll = driver.poll(a.fd(), Readiness(0));
    driver.still_pending(poll);
    put(b.fd(), b"x");
    driver.still_pending(poll);
    drop(b);
    sees(&mut driver, poll, Readiness::HANG_UP.union(Readiness::ERROR));
}
