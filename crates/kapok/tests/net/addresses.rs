//! Connecting: addresses, names, and what is said when nobody is there.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener as StdTcpListener};

use crate::harness::run;
use crate::{Place, SHORT};
use kapok::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket, UnixListener, UnixStream};

/// An address at which nobody listens.
fn nobody() -> SocketAddr {
    StdTcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn a_refused_connection_is_told_with_its_address() {
    run(|| {
        for round in 0..20 {
            let address = nobody();
            let error = TcpStream::connect(address).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "round {round}: {error}");
            assert!(error.to_string().contains(&address.to_string()), "{error}");
            let error = TcpStream::connect_timeout(&address, SHORT * 100).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "round {round}: {error}");
        }
        let missing = Place::new("missing");
        let error = UnixStream::connect(&missing.0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains(missing.0.to_str().unwrap()), "{error}");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = listener.local_addr().unwrap();
        let error = TcpListener::bind(taken).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&taken.to_string()), "{error}");
    });
}

#[test]
fn connecting_goes_on_to_the_next_address() {
    run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        let stream = TcpStream::connect(&[nobody(), nobody(), good][..]).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        let (first, last) = (nobody(), nobody());
        let error = TcpStream::connect(&[first, last][..]).unwrap_err();
        assert!(error.to_string().contains(&last.to_string()), "{error}");
        let none: &[SocketAddr] = &[];
        assert_eq!(TcpStream::connect(none).unwrap_err().kind(), ErrorKind::InvalidInput);
    });
}

#[test]
fn names_are_resolved() {
    run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = kapok::spawn(move || {
            for _ in 0..3 {
                listener.accept().unwrap();
            }
        });
        TcpStream::connect(format!("localhost:{port}")).unwrap();
        TcpStream::connect(("localhost", port)).unwrap();
        TcpStream::connect((String::from("127.0.0.1"), port)).unwrap();
        acceptor.join().unwrap();
        let addresses = "[::1]:80".to_socket_addrs().unwrap();
        assert_eq!(addresses, ["[::1]:80".parse::<SocketAddr>().unwrap()]);
    });
}

#[test]
fn bad_addresses_are_invalid_input() {
    run(|| {
        for bad in ["127.0.0.1", "localhost", "127.0.0.1:99999", "localhost:http", "localhost:", ""]
        {
            for error in [
                TcpStream::connect(bad).unwrap_err(),
                TcpListener::bind(bad).unwrap_err(),
                UdpSocket::bind(bad).unwrap_err(),
            ] {
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad:?}: {error}");
                assert!(error.to_string().contains(&format!("{bad:?}")), "{bad:?}: {error}");
            }
        }
        let long = "x".repeat(200);
        assert_eq!(UnixListener::bind(&long).unwrap_err().kind(), ErrorKind::InvalidInput);
    });
}
