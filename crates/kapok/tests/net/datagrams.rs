//! Datagrams, and Unix sockets of both kinds by their paths.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use crate::harness::{alone, run};
use crate::{Place, echo};
use kapok::net::{UdpSocket, UnixDatagram, UnixListener, UnixStream};

#[test]
fn datagrams_keep_their_bounds() {
    run(|| {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (to, from) = (server.local_addr().unwrap(), client.local_addr().unwrap());
        assert_eq!(client.peer_addr().unwrap_err().kind(), ErrorKind::NotConnected);
        let receiver = kapok::spawn(move || {
            let mut buf = [0; 16];
            let mut seen = vec![server.recv_from(&mut buf).unwrap()];
            assert_eq!(&buf[..5], b"first");
            assert_eq!(server.peek_from(&mut buf).unwrap(), (0, from));
            seen.push(server.recv_from(&mut buf).unwrap());
            // Too long for the buffer: its end is lost, the next is whole.
            seen.push(server.recv_from(&mut buf).unwrap());
            seen.push(server.recv_from(&mut buf).unwrap());
            assert_eq!(&buf[..4], b"last");
            server.send_to(b"reply", from).unwrap();
            seen
        });
        kapok::sleep(Duration::from_millis(1)).unwrap();
        for datagram in [&b"first"[..], b"", &[7; 40], b"last"] {
            assert_eq!(client.send_to(datagram, to).unwrap(), datagram.len());
        }
        assert_eq!(receiver.join().unwrap(), [5, 0, 16, 4].map(|count| (count, from)));
        client.connect(to).unwrap();
        assert_eq!(client.peer_addr().unwrap(), to);
        let mut buf = [0; 8];
        assert_eq!(client.peek(&mut buf).unwrap(), 5);
        assert_eq!(client.recv(&mut buf).unwrap(), 5);
        assert_eq!(&buf[..5], b"reply");
        // The receiver is gone.
        assert_eq!(client.send(b"?").unwrap(), 1);
        assert_eq!(client.recv(&mut buf).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let none: &[SocketAddr] = &[];
        assert_eq!(client.send_to(b"?", none).unwrap_err().kind(), ErrorKind::InvalidInput);
    });
}

#[test]
fn unix_sockets_are_found_by_path() {
    run(|| {
        let place = Place::new("stream");
        let listener = UnixListener::bind(&place.0).unwrap();
        assert_eq!(listener.local_addr().unwrap().as_pathname(), Some(&*place.0));
        let error = UnixListener::bind(&place.0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(error.to_string().contains(place.0.to_str().unwrap()), "{error}");
        let server = kapok::spawn(move || {
            let (stream, peer) = listener.accept().unwrap();
            assert!(peer.is_unnamed());
            echo(&stream);
        });
        let mut client = UnixStream::connect(&place.0).unwrap();
        assert_eq!(client.peer_addr().unwrap().as_pathname(), Some(&*place.0));
        client.write_all(b"path").unwrap();
        let mut buf = [0; 4];
        client.read_exact(&mut buf).unwrap();
        assert_eq!(&buf, b"path");
        drop(client);
        server.join().unwrap();
        assert_eq!(UnixStream::connect(&place.0).unwrap_err().kind(), ErrorKind::ConnectionRefused);

        let (here, there) = (Place::new("here"), Place::new("there"));
        let one = UnixDatagram::bind(&here.0).unwrap();
        let other = UnixDatagram::bind(&there.0).unwrap();
        let receiver = kapok::spawn(move || {
            let mut buf = [0; 8];
            let (count, from) = other.recv_from(&mut buf).unwrap();
            other.send_to(&buf[..count], from.as_pathname().unwrap()).unwrap();
        });
        kapok::yield_now();
        one.send_to(b"boxed", &there.0).unwrap();
        assert_eq!(one.recv(&mut buf).unwrap(), 4, "cut to the buffer");
        assert_eq!(&buf, b"boxe");
        receiver.join().unwrap();
        assert_eq!(one.send_to(b"?", &there.0).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let unbound = UnixDatagram::unbound().unwrap();
        unbound.connect(&here.0).unwrap();
        unbound.send(b"last").unwrap();
        assert_eq!(one.recv(&mut buf).unwrap(), 4);
    });
}

/// poll(2) calls a socket writable whose peer, found by its name, has no room.
#[test]
fn a_send_of_a_fiber_that_unwinds_gives_up_on_a_full_peer() {
    struct SendsOnDrop(UnixDatagram, PathBuf, mpsc::Sender<io::Result<usize>>);
    impl Drop for SendsOnDrop {
        fn drop(&mut self) {
            let _ = self.2.send(self.0.send_to(b"?", &self.1));
        }
    }
    alone("datagrams::a_send_of_a_fiber_that_unwinds_gives_up_on_a_full_peer", || {
        run(|| {
            let place = Place::new("full");
            let _full = UnixDatagram::bind(&place.0).unwrap();
            let filler = std::os::unix::net::UnixDatagram::unbound().unwrap();
            filler.set_nonblocking(true).unwrap();
            while filler.send_to(b"!", &place.0).is_ok() {}
            let (sender, sent) = mpsc::channel();
            let sends = SendsOnDrop(UnixDatagram::unbound().unwrap(), place.0.clone(), sender);
            let fiber = kapok::spawn(move || {
                let _sends = sends;
                panic!("on purpose");
            });
            assert!(fiber.join().is_err());
            assert_eq!(sent.recv().unwrap().unwrap_err().kind(), ErrorKind::TimedOut);
        });
    });
}
