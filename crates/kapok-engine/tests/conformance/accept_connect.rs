//! Connections: made, refused, waited for, accepted by one of many.

use std::time::Duration;

use kapok_engine::Kind;

use crate::driver::{Driver, PATIENCE};
use crate::sockets::{
    Address, Descriptor, Directory, Ownership, is_close_on_exec, landed_descriptor, listen,
    local_address, put, raw_recv_soon, remove_name, socket, tcp_client, tcp_listener, tcp_socket,
    udp_socket, unix_client, unix_listener,
};
use crate::world::{now, since};

/// Listening and connecting sockets have `O_NONBLOCK`: the contract says so.
const NONBLOCKING: [Ownership; 2] = [Ownership::Foreign, Ownership::Owned];

conformance! {
    accept_fills_the_address,
    accept_without_address,
    accept_cuts_the_address_to_the_room,
    accept_waits,
    accept_unix,
    accept_many_at_once,
    each_connection_goes_to_one_accept,
    accept_without_descriptors_left,
    connect_and_talk,
    connect_refused,
    connect_unix,
    connect_datagram,
    connect_twice,
    connect_to_a_full_backlog,
    connect_cancelled,
}

fn accept_fills_the_address(kind: Kind) {
    for ownership in NONBLOCKING {
        let mut driver = Driver::new(kind);
        let (listener, address) = tcp_listener(ownership);
        for there_before in [true, false] {
            let early = there_before.then(|| tcp_client(address));
            let accept = driver.accept_with_address(listener.fd());
            let client = early.unwrap_or_else(|| {
                driver.still_pending(accept);
                tcp_client(address)
            });
            let landed = driver.wait_for(accept);
            let accepted = landed_descriptor(landed.ok());
            let peer = landed.lent.address.as_ref().unwrap();
            assert_eq!(peer.as_inet(), local_address(client.fd()).as_inet());
            assert!(is_close_on_exec(accepted.fd()), "an accepted socket is not close-on-exec");
            put(accepted.fd(), b"hello");
            assert_eq!(raw_recv_soon(client.fd(), 16), b"hello");
        }
    }
}

fn accept_without_address(kind: Kind) {
    let mut driver = Driver::new(kind);
    let (listener, address) = tcp_listener(Ownership::Owned);
    let accept = driver.accept(listener.fd());
    let _client = tcp_client(address);
    let accepted = landed_descriptor(driver.wait_for(accept).ok());
    assert!(is_close_on_exec(accepted.fd()));
}

fn accept_cuts_the_address_to_the_room(kind: Kind) {
    let mut driver = Driver::new(kind);
    let (listener, address) = tcp_listener(Ownership::Owned);
    let mut room = Box::new(Address::room());
    room.len = 4;
    let op = kapok_engine::Op::Accept {
        fd: listener.fd(),
        addr: &raw mut room.storage,
        addr_len: &raw mut room.len,
    };
    let accept = driver.submit(op, crate::driver::Lent::address(room));
    let client = tcp_client(address);
    let landed = driver.wait_for(accept);
    drop(landed_descriptor(landed.ok()));
    let room = landed.lent.address.as_ref().unwrap();
    assert_eq!(room.len as usize, size_of::<libc::sockaddr_in>(), "not the address's real length");
    let mut whole = Address::inet(local_address(client.fd()).as_inet());
    // SAFETY: both are addresses of at least eight bytes.
    unsafe {
        let given = (&raw const room.storage).cast::<[u8; 8]>().read();
        let wanted = (&raw mut whole.storage).cast::<[u8; 8]>().read();
        assert_eq!(given[..4], wanted[..4]);
        assert_eq!(given[4..], [0; 4], "written beyond the room");
    }
}

fn accept_waits(kind: Kind) {
    for ownership in NONBLOCKING {
        let mut driver = Driver::new(kind);
        let (listener, address) = tcp_listener(ownership);
        for _ in 0..10 {
            let accept = driver.accept(listener.fd());
            driver.settle();
            let client = tcp_client(address);
            drop(landed_descriptor(driver.wait_for(accept).ok()));
            drop(client);
        }
        let accept = driver.accept(listener.fd());
        driver.still_pending(accept);
        assert!(driver.cancel_and_wait(accept).was_cancelled());
    }
}

fn accept_unix(kind: Kind) {
    let directory = Directory::new();
    let path = directory.join("socket");
    let mut driver = Driver::new(kind);
    let listener = unix_listener(&path, Ownership::Owned);
    let accept = driver.accept_with_address(listener.fd());
    driver.still_pending(accept);
    let _client = unix_client(&path);
    let landed = driver.wait_for(accept);
    drop(landed_descriptor(landed.ok()));
    let peer = landed.lent.address.as_ref().unwrap();
    assert_eq!(peer.family(), libc::AF_UNIX);
    // An unbound client has no name: the family is all of its address.
    assert_eq!(peer.len as usize, std::mem::offset_of!(libc::sockaddr_un, sun_path));
}

fn accept_many_at_once(kind: Kind) {
    let mut driver = Driver::new(kind);
    let (listener, address) = tcp_listener(Ownership::Owned);
    let accept = driver.accept(listener.fd());
    driver.settle();
    // One edge, twenty connections.
    let clients: Vec<_> = (0..20).map(|_| tcp_client(address)).collect();
    let mut accepted = vec![landed_descriptor(driver.wait_for(accept).ok())];
    while accepted.len() < clients.len() {
        let accept = driver.accept(listener.fd());
        accepted.push(landed_descriptor(driver.wait_for(accept).ok()));
    }
    let accept = driver.accept(listener.fd());
    driver.still_pending(accept);
    let _last = tcp_client(address);
    drop(landed_descriptor(driver.wait_for(accept).ok()));
}

fn each_connection_goes_to_one_accept(kind: Kind) {
    for ownership in NONBLOCKING {
        let mut driver = Driver::new(kind);
        let (listener, address) = tcp_listener(ownership);
        let accepts: Vec<_> = (0..10).map(|_| driver.accept_with_address(listener.fd())).collect();
        driver.settle();
        let clients: Vec<_> = (0..10).map(|_| tcp_client(address)).collect();
        let mut expected: Vec<_> =
            clients.iter().map(|c| local_address(c.fd()).as_inet()).collect();
        let landed = driver.wait_for_all(&accepts);
        let mut peers: Vec<_> = landed
            .iter()
            .map(|landed| {
                drop(landed_descriptor(landed.ok()));
                landed.lent.address.as_ref().unwrap().as_inet()
            })
            .collect();
        expected.sort();
        peers.sort();
        assert_eq!(peers, expected);
    }
}

fn accept_without_descriptors_left(kind: Kind) {
    let mut driver = Driver::new(kind);
    let (listener, address) = tcp_listener(Ownership::Owned);
    let warm = driver.accept(listener.fd());
    driver.settle();
    let first = tcp_client(address);
    drop(landed_descriptor(driver.wait_for(warm).ok()));
    let client = tcp_client(address);
    // SAFETY: plain integers, and pointers to a local.
    let mut limit: libc::rlimit = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    // Nothing below this number is free.
    let full = first.duplicate().fd();
    let none = libc::rlimit { rlim_cur: full as libc::rlim_t, ..limit };
    // SAFETY: a pointer to a local.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none) }, 0);
    let accept = driver.accept(listener.fd());
    let landed = driver.wait_for(accept);
    // SAFETY: a pointer to a local.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    landed.failed_with(&[libc::EMFILE]);
    // The connection is still there.
    let accept = driver.accept_with_address(listener.fd());
    let landed = driver.wait_for(accept);
    drop(landed_descriptor(landed.ok()));
    let peer = landed.lent.address.as_ref().unwrap().as_inet();
    assert_eq!(peer, local_address(client.fd()).as_inet());
}

fn connect_and_talk(kind: Kind) {
    for ownership in NONBLOCKING {
        let mut driver = Driver::new(kind);
        let (listener, address) = tcp_listener(ownership);
        for _ in 0..20 {
            let socket = tcp_socket(ownership);
            let connect = driver.connect(socket.fd(), Address::inet(address));
            let accept = driver.accept_with_address(listener.fd());
            assert_eq!(driver.wait_for(connect).ok(), 0);
            let landed = driver.wait_for(accept);
            let accepted = landed_descriptor(landed.ok());
            let recv = driver.recv(socket.fd(), 16);
            let send = driver.send(accepted.fd(), b"welcome");
            assert_eq!(driver.wait_for(recv).bytes(), b"welcome");
            driver.wait_for(send).ok();
            let recv = driver.recv(accepted.fd(), 16);
            let send = driver.send(socket.fd(), b"thanks");
            assert_eq!(driver.wait_for(recv).bytes(), b"thanks");
            driver.wait_for(send).ok();
        }
    }
}

fn connect_refused(kind: Kind) {
    for ownership in NONBLOCKING {
        let mut driver = Driver::new(kind);
        // Bound, so that nobody else listens there, but not listening.
        let bound = udp_socket(Ownership::Foreign);
        let (listener, address) = tcp_listener(ownership);
        drop(listener);
        let socket = tcp_socket(ownership);
        let connect = driver.connect(socket.fd(), Address::inet(address));
        driver.wait_for(connect).failed_with(&[libc::ECONNREFUSED]);
        // What state the socket is in is anyone's guess, says connect(2). Its number is not
        // cursed, though.
        let number = socket.fd();
        let (listener, address) = tcp_listener(ownership);
        let next = tcp_socket(ownership);
        drop(socket);
        let socket = next.move_to(number);
        let connect = driver.connect(socket.fd(), Address::inet(address));
        assert_eq!(driver.wait_for(connect).ok(), 0);
        drop((listener, bound));
        let unix = Address::unix(std::path::Path::new("/nowhere"));
        let socket = tcp_socket(ownership);
        let connect = driver.connect(socket.fd(), unix);
        driver.wait_for(connect).failed_with(&[libc::EAFNOSUPPORT, libc::EINVAL]);
    }
}

fn connect_unix(kind: Kind) {
    let directory = Directory::new();
    let path = directory.join("socket");
    for ownership in NONBLOCKING {
        let mut driver = Driver::new(kind);
        let new = || socket(libc::AF_UNIX, libc::SOCK_STREAM, ownership);
        let nowhere = new();
        let connect = driver.connect(nowhere.fd(), Address::unix(&directory.join("nowhere")));
        driver.wait_for(connect).failed_with(&[libc::ENOENT]);
        let listener = unix_listener(&path, Ownership::Foreign);
        let client = new();
        let connect = driver.connect(client.fd(), Address::unix(&path));
        assert_eq!(driver.wait_for(connect).ok(), 0);
        let accept = driver.accept(listener.fd());
        let accepted = landed_descriptor(driver.wait_for(accept).ok());
        put(accepted.fd(), b"hello");
        let recv = driver.recv(client.fd(), 16);
        assert_eq!(driver.wait_for(recv).bytes(), b"hello");
        drop(listener);
        let late = new();
        let connect = driver.connect(late.fd(), Address::unix(&path));
        driver.wait_for(connect).failed_with(&[libc::ECONNREFUSED]);
        remove_name(&path);
    }
}

fn connect_datagram(kind: Kind) {
    let mut driver = Driver::new(kind);
    let (server, address) = udp_socket(Ownership::Foreign);
    let client = socket(libc::AF_INET, libc::SOCK_DGRAM, Ownership::Owned);
    let connect = driver.connect(client.fd(), Address::inet(address));
    assert_eq!(driver.wait_for(connect).ok(), 0);
    let recv = driver.recv(server.fd(), 16);
    let send = driver.send(client.fd(), b"hello");
    assert_eq!(driver.wait_for(recv).bytes(), b"hello");
    driver.wait_for(send).ok();
}

fn connect_twice(kind: Kind) {
    let mut driver = Driver::new(kind);
    let (_listener, address) = tcp_listener(Ownership::Owned);
    let socket = tcp_socket(Ownership::Owned);
    let connect = driver.connect(socket.fd(), Address::inet(address));
    assert_eq!(driver.wait_for(connect).ok(), 0);
    let again = driver.connect(socket.fd(), Address::inet(address));
    driver.wait_for(again).failed_with(&[libc::EISCONN]);
}

/// Connects until one has to wait, because the listener's queue is full. Returns all sockets and
/// the connect that waits, which is that of the last one.
fn fill_backlog(
    driver: &mut Driver,
    listener: &Descriptor,
    address: std::net::SocketAddr,
) -> (Vec<Descriptor>, kapok_engine::Key) {
    listen(listener.fd(), 0);
    let mut sockets = Vec::new();
    loop {
        assert!(sockets.len() < 16, "the backlog has no end");
        let socket = tcp_socket(Ownership::Owned);
        let connect = driver.connect(socket.fd(), Address::inet(address));
        sockets.push(socket);
        driver.linger(Duration::from_millis(30));
        match driver.take(connect) {
            Some(landed) => assert_eq!(landed.ok(), 0),
            None => return (sockets, connect),
        }
    }
}

fn connect_to_a_full_backlog(kind: Kind) {
    let mut driver = Driver::new(kind);
    let (listener, address) = tcp_listener(Ownership::Owned);
    let (sockets, waiting) = fill_backlog(&mut driver, &listener, address);
    // Room is made; the next retransmission, a second later or three, finds it.
    let mut accepted = Vec::new();
    let mut accept = driver.accept(listener.fd());
    let deadline = now() + PATIENCE;
    while accepted.len() < sockets.len() {
        assert!(now() < deadline, "the last connection does not come");
        driver.progress(deadline);
        if let Some(landed) = driver.take(accept) {
            accepted.push(landed_descriptor(landed.ok()));
            accept = driver.accept(listener.fd());
        }
    }
    assert_eq!(driver.wait_for(waiting).ok(), 0);
    assert!(driver.cancel_and_wait(accept).was_cancelled());
    put(sockets.last().unwrap().fd(), b"at last");
    assert_eq!(raw_recv_soon(accepted.last().unwrap().fd(), 16), b"at last");
}

fn connect_cancelled(kind: Kind) {
    let mut driver = Driver::new(kind);
    let (listener, address) = tcp_listener(Ownership::Owned);
    let (sockets, waiting) = fill_backlog(&mut driver, &listener, address);
    let start = now();
    let landed = driver.cancel_and_wait(waiting);
    assert!(landed.was_cancelled() || landed.ok() == 0);
    assert!(since(start) < Duration::from_secs(10), "the cancel waits for the connect");
    drop(sockets);
    // Before its first turn.
    let (listener, address) = tcp_listener(Ownership::Owned);
    let socket = tcp_socket(Ownership::Owned);
    let connect = driver.connect(socket.fd(), Address::inet(address));
    let landed = driver.cancel_and_wait(connect);
    assert!(landed.was_cancelled() || landed.ok() == 0);
    drop(listener);
}
