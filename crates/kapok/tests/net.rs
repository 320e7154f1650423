//! Sockets: that they do what std's do, on fibers and on threads, and keep every byte.

mod harness;

use std::hash::{DefaultHasher, Hasher};
use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::{
    Shutdown, SocketAddr, TcpListener as StdTcpListener, TcpStream as StdTcpStream,
    UdpSocket as StdUdpSocket,
};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::{Numbers, Watchdog, alone, engine, open_descriptors, run, run_on, scale, wait_until};
use kapok::Kind;
use kapok::net::{
    TcpListener, TcpStream, ToSocketAddrs, UdpSocket, UnixDatagram, UnixListener, UnixStream,
    wait_readable, wait_writable,
};
use kapok::sync::channel;
use socket2::SockRef;

const SHORT: Duration = Duration::from_millis(5);

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, peer) = listener.accept().unwrap();
    assert_eq!(peer, client.local_addr().unwrap());
    (client, server)
}

/// A path that nobody else uses; what is there goes with it.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        Place(std::env::temp_dir().join(format!("kapok-net-{}-{name}", std::process::id())))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A test for each kind of stream.
macro_rules! for_each_stream {
    ($($test:ident)+) => {
        mod tcp {$(
            #[test]
            fn $test() {
                super::run(|| {
                    let (one, other) = super::tcp_pair();
                    super::$test(one, other);
                });
            }
        )+}
        mod unix {$(
            #[test]
            fn $test() {
                super::run(|| {
                    let (one, other) = super::UnixStream::pair().unwrap();
                    super::$test(one, other);
                });
            }
        )+}
    };
}

for_each_stream! {
    echoes_come_back_whatever_their_size
    an_empty_buffer_is_not_the_end
    parts_are_read_and_written_in_order
    two_fibers_read_and_write_one_stream
    big_transfers_arrive_as_they_were_sent
}

trait Stream: Send + Sync + 'static {
    fn shut_down(&self, how: Shutdown);
}

impl Stream for TcpStream {
    fn shut_down(&self, how: Shutdown) {
        self.shutdown(how).unwrap();
    }
}

impl Stream for UnixStream {
    fn shut_down(&self, how: Shutdown) {
        self.shutdown(how).unwrap();
    }
}

fn echo<S>(stream: &S)
where
    for<'a> &'a S: Read + Write,
{
    let mut buf = [0; 4096];
    loop {
        match { stream }.read(&mut buf).unwrap() {
            0 => return,
            count => { stream }.write_all(&buf[..count]).unwrap(),
        }
    }
}

fn echoes_come_back_whatever_their_size<S: Stream>(client: S, server: S)
where
    for<'a> &'a S: Read + Write,
{
    let echo = kapok::spawn(move || echo(&server));
    let mut numbers = Numbers(1);
    for _ in 0..500 {
        let mut sent = vec![0; 1 + numbers.below(10_000)];
        numbers.fill(&mut sent);
        let mut received = vec![0; sent.len()];
        (&client).write_all(&sent).unwrap();
        (&client).read_exact(&mut received).unwrap();
        assert!(received == sent);
    }
    client.shut_down(Shutdown::Write);
    assert_eq!((&client).read(&mut [0; 8]).unwrap(), 0);
    echo.join().unwrap();
}

fn an_empty_buffer_is_not_the_end<S: Stream>(one: S, other: S)
where
    for<'a> &'a S: Read + Write,
{
    // Whether there is something to read or not.
    assert_eq!((&one).read(&mut []).unwrap(), 0);
    assert_eq!((&one).write(&[]).unwrap(), 0);
    (&other).write_all(b"ab").unwrap();
    assert_eq!((&one).read(&mut []).unwrap(), 0);
    let mut buf = [0; 8];
    assert_eq!((&one).read(&mut buf).unwrap(), 2);
    assert_eq!(&buf[..2], b"ab");
    drop(other);
    for _ in 0..3 {
        assert_eq!((&one).read(&mut buf).unwrap(), 0);
    }
}

fn parts_are_read_and_written_in_order<S: Stream>(one: S, other: S)
where
    for<'a> &'a S: Read + Write,
{
    let parts =
        [IoSlice::new(b"one "), IoSlice::new(b""), IoSlice::new(b"two "), IoSlice::new(b"3")];
    let reader = kapok::spawn(move || {
        let (mut first, mut second) = ([0; 6], [0; 6]);
        let mut parts = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)];
        let count = (&other).read_vectored(&mut parts).unwrap();
        ([first, second].concat(), count)
    });
    kapok::yield_now();
    assert_eq!((&one).write_vectored(&parts).unwrap(), 9);
    let (bytes, count) = reader.join().unwrap();
    assert_eq!((&bytes[..9], count), (&b"one two 3"[..], 9));
    // More parts than the kernel takes at once.
    let many = vec![IoSlice::new(b"x"); 3000];
    let count = (&one).write_vectored(&many).unwrap();
    assert!((1..=3000).contains(&count), "{count}");
}

fn two_fibers_read_and_write_one_stream<S: Stream>(one: S, other: S)
where
    for<'a> &'a S: Read + Write,
{
    const TOTAL: usize = 2 << 20;
    // Both ends send more than fits, so both have to do both at once.
    let send = |stream: &S, seed| {
        let mut numbers = Numbers(seed);
        let mut bytes = vec![0; TOTAL];
        numbers.fill(&mut bytes);
        { stream }.write_all(&bytes).unwrap();
        bytes
    };
    let receive = |stream: &S| {
        let mut bytes = vec![0; TOTAL];
        { stream }.read_exact(&mut bytes).unwrap();
        bytes
    };
    kapok::scope(|scope| {
        let sent = [scope.spawn(|| send(&one, 1)), scope.spawn(|| send(&other, 2))];
        let received = [scope.spawn(|| receive(&other)), scope.spawn(|| receive(&one))];
        for (sent, received) in sent.into_iter().zip(received) {
            assert!(sent.join().unwrap() == received.join().unwrap());
        }
    });
}

fn big_transfers_arrive_as_they_were_sent<S: Stream>(one: S, other: S)
where
    for<'a> &'a S: Read + Write,
{
    const TOTAL: usize = 64 << 20;
    let sender = kapok::spawn(move || {
        let (mut numbers, mut hasher) = (Numbers(3), DefaultHasher::new());
        let mut chunk = vec![0; 1 << 20];
        for _ in 0..TOTAL / chunk.len() {
            numbers.fill(&mut chunk);
            hasher.write(&chunk);
            (&one).write_all(&chunk).unwrap();
        }
        hasher.finish()
    });
    // Hashed in the same pieces: a hash need not be the same over others.
    let (mut hasher, mut chunk, mut total) = (DefaultHasher::new(), vec![0; 1 << 20], 0);
    while total < TOTAL {
        (&other).read_exact(&mut chunk).unwrap();
        hasher.write(&chunk);
        total += chunk.len();
    }
    assert_eq!((&other).read(&mut chunk).unwrap(), 0);
    assert_eq!(hasher.finish(), sender.join().unwrap());
}

#[test]
fn peeking_takes_nothing() {
    run(|| {
        let (mut one, mut other) = tcp_pair();
        let peeker = kapok::spawn(move || {
            let mut buf = [0; 8];
            for _ in 0..2 {
                assert_eq!(other.peek(&mut buf).unwrap(), 4);
                assert_eq!(&buf[..4], b"look");
            }
            other.read(&mut buf).unwrap()
        });
        kapok::yield_now();
        one.write_all(b"look").unwrap();
        assert_eq!(peeker.join().unwrap(), 4);
    });
}

#[test]
fn time_outs_belong_to_the_object() {
    run(|| {
        let (mut one, mut other) = UnixStream::pair().unwrap();
        assert_eq!(one.read_timeout().unwrap(), None);
        let error = one.set_read_timeout(Some(Duration::ZERO)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        one.set_read_timeout(Some(SHORT)).unwrap();
        assert_eq!(one.read_timeout().unwrap(), Some(SHORT));
        let before = Instant::now();
        assert_eq!(one.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(before.elapsed() >= SHORT);
        // What comes later is there, and the time-out is one of each read.
        other.write_all(b"late").unwrap();
        assert_eq!(one.read(&mut [0; 8]).unwrap(), 4);
        let clone = one.try_clone().unwrap();
        assert_eq!(clone.read_timeout().unwrap(), Some(SHORT));
        clone.set_read_timeout(None).unwrap();
        assert_eq!(one.read_timeout().unwrap(), Some(SHORT));
        one.set_write_timeout(Some(SHORT)).unwrap();
        let error = loop {
            if let Err(error) = one.write(&[0; 64 << 10]) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(one.take_error().unwrap().is_none());
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.set_read_timeout(Some(SHORT)).unwrap();
        assert_eq!(udp.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::TimedOut);
    });
}

#[test]
fn a_half_closed_stream_still_goes_the_other_way() {
    run(|| {
        let (mut client, mut server) = tcp_pair();
        let server = kapok::spawn(move || {
            let mut question = String::new();
            server.read_to_string(&mut question).unwrap();
            kapok::sleep(SHORT).unwrap();
            server.write_all(format!("{question}? Yes.").as_bytes()).unwrap();
        });
        client.write_all(b"Still there").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.write(b"more").unwrap_err().kind(), ErrorKind::BrokenPipe);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "Still there? Yes.");
        server.join().unwrap();
    });
}

#[test]
fn shutting_down_ends_a_read_that_waits() {
    run(|| {
        let (one, _other) = tcp_pair();
        kapok::scope(|scope| {
            let reader = scope.spawn(|| { &one }.read(&mut [0; 8]));
            kapok::sleep(SHORT).unwrap();
            one.shutdown(Shutdown::Both).unwrap();
            assert_eq!(reader.join().unwrap().unwrap(), 0);
        });
    });
}

#[test]
fn a_reset_is_an_error_and_not_the_end() {
    run(|| {
        for wait in [false, true] {
            let (client, mut server) = tcp_pair();
            let reader = kapok::spawn(move || server.read(&mut [0; 8]));
            if wait {
                kapok::sleep(SHORT).unwrap();
            }
            SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            drop(client);
            let error = reader.join().unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        }
        let (client, mut server) = tcp_pair();
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        let writer = kapok::spawn(move || {
            loop {
                if let Err(error) = server.write_all(&[0; 64 << 10]) {
                    break error;
                }
            }
        });
        kapok::sleep(SHORT).unwrap();
        drop(client);
        let kind = writer.join().unwrap().kind();
        assert!(matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{kind}");
    });
}

#[test]
fn clones_share_the_stream() {
    run(|| {
        let (one, mut other) = tcp_pair();
        let mut clone = one.try_clone().unwrap();
        assert_ne!(clone.as_raw_fd(), one.as_raw_fd());
        drop(one);
        clone.write_all(b"by the clone").unwrap();
        let mut buf = [0; 12];
        other.read_exact(&mut buf).unwrap();
        assert_eq!(&buf, b"by the clone");
        drop(clone);
        assert_eq!(other.read(&mut buf).unwrap(), 0);
    });
}

#[test]
fn halves_work_apart_and_come_together() {
    run(|| {
        let (one, other) = tcp_pair();
        let port = one.local_addr().unwrap().port();
        let (mut reading, mut writing) = one.split();
        let echo = kapok::spawn(move || echo(&other));
        let writer = kapok::spawn(move || {
            for number in 0..1000_u32 {
                writing.write_all(&number.to_be_bytes()).unwrap();
            }
            writing
        });
        for number in 0..1000_u32 {
            let mut word = [0; 4];
            reading.read_exact(&mut word).unwrap();
            assert_eq!(u32::from_be_bytes(word), number);
        }
        let writing = writer.join().unwrap();
        let (stranger, _) = tcp_pair();
        let (stranger, _) = stranger.split();
        let (_, writing) = stranger.reunite(writing).unwrap_err();
        let one = reading.reunite(writing).unwrap();
        assert_eq!(one.local_addr().unwrap().port(), port);
        drop(one);
        echo.join().unwrap();
    });
}

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

#[test]
fn readiness_takes_nothing() {
    run(|| {
        let (mut one, mut other) = UnixStream::pair().unwrap();
        let writer = kapok::spawn(move || {
            kapok::sleep(SHORT).unwrap();
            other.write_all(b"ready").unwrap();
            kapok::sleep(SHORT).unwrap();
        });
        wait_readable(&one).unwrap();
        let won = kapok::select! {
            biased;
            ready = one.readable_async() => ready.is_ok(),
            () = kapok::time::sleep_async(Duration::from_secs(20)) => false,
        };
        assert!(won);
        let mut buf = [0; 5];
        one.read_exact(&mut buf).unwrap();
        assert_eq!(&buf, b"ready");
        // The end is readable too.
        wait_readable(&one).unwrap();
        writer.join().unwrap();
        assert_eq!(one.read(&mut buf).unwrap(), 0);
    });
}

#[test]
fn hundreds_connect_at_once_and_all_are_served() {
    alone("hundreds_connect_at_once_and_all_are_served", || {
        // select(2) knows no numbers above 1023.
        let count = if engine() == Some(Kind::Select) { 300 } else { 500 };
        run_on(2, move || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            // When both loops have what they need.
            on_another_loop(|| ()).join().unwrap();
            let before = open_descriptors();
            let (open, opened) = channel::unbounded();
            let clients: Vec<_> = (0..count)
                .map(|number| {
                    let open = open.clone();
                    kapok::spawn(move || {
                        let mut stream = TcpStream::connect(address).unwrap();
                        open.send(()).unwrap();
                        stream.write_all(&[number as u8; 100]).unwrap();
                        let mut buf = [0; 100];
                        stream.read_exact(&mut buf).unwrap();
                        assert_eq!(buf, [number as u8; 100]);
                    })
                })
                .collect();
            // They are all connected before the first is accepted.
            for _ in 0..count {
                opened.recv().unwrap();
            }
            let streams = listener.incoming().take(count).map(Result::unwrap);
            let servers: Vec<_> =
                streams.map(|stream| kapok::spawn(move || echo(&stream))).collect();
            clients.into_iter().for_each(|client| client.join().unwrap());
            servers.into_iter().for_each(|server| server.join().unwrap());
            wait_until(|| open_descriptors() == before);
        });
    });
}

#[test]
fn several_fibers_accept_from_one_listener() {
    run_on(2, || {
        const COUNT: usize = 200;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let acceptors: Vec<_> = (0..4)
            .map(|_| {
                let listener = listener.try_clone().unwrap();
                let accepted = Arc::clone(&accepted);
                kapok::spawn(move || {
                    while let Ok((mut stream, _)) = listener.accept() {
                        accepted.fetch_add(1, Ordering::SeqCst);
                        stream.write_all(b"!").unwrap();
                    }
                })
            })
            .collect();
        kapok::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..COUNT / 4 {
                        let mut stream = TcpStream::connect(address).unwrap();
                        stream.read_exact(&mut [0; 1]).unwrap();
                    }
                });
            }
        });
        assert_eq!(accepted.load(Ordering::SeqCst), COUNT);
        for acceptor in acceptors {
            acceptor.cancel();
            acceptor.join().unwrap();
        }
    });
}

/// Starts `f` on another loop than the caller's.
fn on_another_loop<T: Send + 'static>(
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
