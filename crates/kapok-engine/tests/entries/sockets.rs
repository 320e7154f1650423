use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use kapok_engine::entry::Entry;

use crate::places::{Place, header, is_close_on_exec, part, room};

pub(crate) const IPV4_BYTES: u32 = size_of::<libc::sockaddr_in>() as u32;

/// 127.0.0.1 at this port.
pub(crate) fn loopback(port: u16) -> libc::sockaddr_storage {
    // SAFETY: all zeros is a sockaddr_storage, and a sockaddr_in lies within one.
    unsafe {
        let mut address: libc::sockaddr_storage = zeroed();
        let ipv4 = (&raw mut address).cast::<libc::sockaddr_in>();
        (*ipv4).sin_family = libc::AF_INET as libc::sa_family_t;
        (*ipv4).sin_port = port.to_be();
        (*ipv4).sin_addr.s_addr = u32::from(Ipv4Addr::LOCALHOST).to_be();
        address
    }
}

/// The port of an IPv4 address.
pub(crate) fn port(address: &libc::sockaddr_storage) -> u16 {
    assert_eq!(i32::from(address.ss_family), libc::AF_INET);
    // SAFETY: it is one of that family.
    u16::from_be(unsafe { (*(&raw const *address).cast::<libc::sockaddr_in>()).sin_port })
}

/// The port that the kernel has given a socket.
fn bound(socket: &OwnedFd) -> u16 {
    let mut address = loopback(0);
    let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: writes to locals of that size.
    let res =
        unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut address).cast(), &raw mut len) };
    assert_eq!(res, 0);
    port(&address)
}

#[test]
fn from_socket_to_shutdown() {
    for mut place in Place::engines() {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
        let socket = Entry::socket(libc::AF_INET, kind, 0, 0);
        let listener = place.descriptor(&socket);
        assert!(is_close_on_exec(listener.as_raw_fd()));
        let any = loopback(0);
        let bind = Entry::bind(listener.as_raw_fd(), &raw const any, IPV4_BYTES);
        if place.has(&bind) {
            assert_eq!(place.ok(&bind), 0);
            assert_eq!(place.run(&bind), -libc::EINVAL, "it is bound");
            assert_eq!(place.ok(&Entry::listen(listener.as_raw_fd(), 8)), 0);
        } else {
            // SAFETY: the address is a local of that length.
            unsafe { libc::bind(listener.as_raw_fd(), (&raw const any).cast(), IPV4_BYTES) };
            // SAFETY: listen takes integers.
            unsafe { libc::listen(listener.as_raw_fd(), 8) };
        }
        let (mut peer, mut len) = (loopback(0), size_of::<libc::sockaddr_storage>() as u32);
        let fd = listener.as_raw_fd();
        let accepting =
            place.start(&Entry::accept(fd, &raw mut peer, &raw mut len, libc::SOCK_CLOEXEC));
        let client = place.descriptor(&socket);
        let there = loopback(bound(&listener));
        let fd = client.as_raw_fd();
        assert_eq!(place.ok(&Entry::connect(fd, &raw const there, IPV4_BYTES)), 0);
        let accepted = place.last(accepting);
        assert!(accepted >= 0, "{accepted}");
        // SAFETY: just made, and nobody else knows it.
        let server = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(accepted) };
        assert_eq!((len, port(&peer)), (IPV4_BYTES, bound(&client)));

        let mut bytes = [0; 8];
        let receiving = place.start(&Entry::recv(server.as_raw_fd(), bytes.as_mut_ptr(), 8, 0));
        assert_eq!(place.ok(&Entry::send(fd, b"hello".as_ptr(), 5, libc::MSG_NOSIGNAL)), 5);
        assert_eq!(place.last(receiving), 5);
        assert_eq!(&bytes[..5], b"hello");
        assert_eq!(place.ok(&Entry::shutdown(fd, libc::SHUT_WR)), 0);
        assert_eq!(place.ok(&Entry::recv(server.as_raw_fd(), bytes.as_mut_ptr(), 8, 0)), 0);
        assert_eq!(place.run(&Entry::send(fd, b"x".as_ptr(), 1, 0)), -libc::EPIPE, "and no signal");
        place.settled();
    }
}

#[test]
fn from_socket_to_shutdown_on_a_thread() {
    let mut place = Place::thread();
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK;
    let listener = place.descriptor(&Entry::socket(libc::AF_INET, kind, 0, 0));
    assert!(is_close_on_exec(listener.as_raw_fd()), "always off io_uring");
    let fd = listener.as_raw_fd();
    let any = loopback(0);
    assert_eq!(place.ok(&Entry::bind(fd, &raw const any, IPV4_BYTES)), 0);
    assert_eq!(place.ok(&Entry::listen(fd, 8)), 0);
    let port = bound(&listener);
    let client = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(30));
        let mut place = Place::thread();
        let client = place.descriptor(&Entry::socket(libc::AF_INET, libc::SOCK_STREAM, 0, 0));
        let there = loopback(port);
        assert_eq!(place.ok(&Entry::connect(client.as_raw_fd(), &raw const there, IPV4_BYTES)), 0);
        assert_eq!(place.ok(&Entry::send(client.as_raw_fd(), b"hi".as_ptr(), 2, 0)), 2);
        client
    });
    // The listener does not block, and still it is waited for; the flags go on.
    let none = std::ptr::null_mut();
    let accept = Entry::accept(fd, none, std::ptr::null_mut(), libc::SOCK_NONBLOCK);
    let server = place.descriptor(&accept);
    // SAFETY: asks for flags.
    let flags = unsafe { libc::fcntl(server.as_raw_fd(), libc::F_GETFL) };
    assert!(flags & libc::O_NONBLOCK != 0 && is_close_on_exec(server.as_raw_fd()));
    let mut bytes = [0; 8];
    assert_eq!(place.ok(&Entry::recv(server.as_raw_fd(), bytes.as_mut_ptr(), 8, 0)), 2);
    drop(client.join().unwrap());
}

#[test]
fn datagrams() {
    for mut place in Place::all() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let there = loopback(receiver.local_addr().unwrap().port());
        let send = Entry::sendto(
            sender.as_raw_fd(),
            b"datagram".as_ptr(),
            8,
            0,
            &raw const there,
            IPV4_BYTES as u16,
        );
        assert_eq!(place.ok(&send), 8);
        let mut bytes = [0; 16];
        let (len, from) = receiver.recv_from(&mut bytes).unwrap();
        assert_eq!((&bytes[..len], from), (&b"datagram"[..], sender.local_addr().unwrap()));
        let nowhere = Entry::sendto(sender.as_raw_fd(), b"x".as_ptr(), 1, 0, std::ptr::null(), 0);
        assert_eq!(place.run(&nowhere), -libc::EDESTADDRREQ);
        place.settled();
    }
}

#[test]
fn messages() {
    for mut place in Place::all() {
        let (near, far) = UnixStream::pair().unwrap();
        let mut parts = [part(b"scat"), part(b"tered")];
        let sent = header(&mut parts);
        assert_eq!(place.ok(&Entry::sendmsg(near.as_raw_fd(), &raw const sent, 0)), 9);
        let (mut first, mut second) = ([0; 3], [0; 10]);
        let mut rooms = [room(&mut first), room(&mut second)];
        let mut received = header(&mut rooms);
        assert_eq!(place.ok(&Entry::recvmsg(far.as_raw_fd(), &raw mut received, 0)), 9);
        assert_eq!((&first, &second[..6]), (b"sca", &b"ttered"[..]));
        let none = Entry::recvmsg(far.as_raw_fd(), &raw mut received, libc::MSG_DONTWAIT as u32);
        assert_eq!(place.run(&none), -libc::EAGAIN);
        place.settled();
    }
}

#[test]
fn a_receive_that_waits_is_cancelled() {
    for mut place in Place::engines() {
        let (near, _far) = UnixStream::pair().unwrap();
        let mut byte = 0;
        let key = place.start(&Entry::recv(near.as_raw_fd(), &raw mut byte, 1, 0));
        place.turn(kapok_engine::Wait::No);
        place.cancel(key);
        assert_eq!(place.last(key), -libc::ECANCELED, "{}", place.name);
        // One that the kernel has not seen.
        let key = place.start(&Entry::recv(near.as_raw_fd(), &raw mut byte, 1, 0));
        place.cancel(key);
        assert_eq!(place.last(key), -libc::ECANCELED, "{}", place.name);
        place.settled();
    }
}

#[test]
fn closing_a_descriptor_ends_what_is_pending_on_it() {
    use std::os::fd::IntoRawFd as _;

    use kapok_engine::{Engine as _, Op, Submitted};

    for mut place in Place::engines() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap().into_raw_fd();
        // SAFETY: sets flags.
        unsafe { libc::fcntl(listener, libc::F_SETFL, libc::O_NONBLOCK) };
        let (none, none_len) = (std::ptr::null_mut(), std::ptr::null_mut());
        let key = place.start(&Entry::accept(listener, none, none_len, libc::SOCK_CLOEXEC));
        // Its number is a place in a table, which is not the same as a descriptor's.
        let other = place.is_ring().then(|| {
            let (near, far) = UnixStream::pair().unwrap();
            place.uring().register_files_sparse(listener as u32 + 1).unwrap();
            let mut fds = [near.as_raw_fd()];
            assert_eq!(place.ok(&Entry::files_update(fds.as_mut_ptr(), 1, listener)), 1);
            (place.start(&Entry::poll_add(listener, 1).on_direct_descriptor()), far)
        });
        place.turn(kapok_engine::Wait::No);
        let closing = place.next_key();
        // SAFETY: it names no memory, and the number is nobody else's.
        let closed = unsafe { place.engine().submit(closing, Op::Close { fd: listener }) };
        assert_eq!(closed, Submitted::Done(0));
        let res = place.last(key);
        assert!([-libc::ECANCELED, -libc::EBADF].contains(&res), "{}: {res}", place.name);
        if let Some((other, mut far)) = other {
            assert!(place.taken(other).is_none());
            std::io::Write::write_all(&mut far, b"x").unwrap();
            assert_eq!(place.last(other), 1, "it was not cancelled");
        }
        place.settled();
    }
}
