//! std's own net types, unmodified, on fibers of one thread.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::{Duration, Instant};

fn on_one_loop(main: impl FnOnce() + 'static) {
    kapok_libc::install();
    kapok::Runtime::builder().threads(1).build().unwrap().run(main);
}

#[test]
fn tcp() {
    on_one_loop(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = kapok::spawn(move || {
            for _ in 0..20 {
                let (mut stream, peer) = listener.accept().unwrap();
                assert!(peer.ip().is_loopback() && peer.port() != 0);
                kapok::spawn(move || {
                    let mut bytes = Vec::new();
                    stream.read_to_end(&mut bytes).unwrap();
                    stream.write_all(&bytes).unwrap();
                })
                .detach();
            }
        });
        let clients: Vec<_> = (0..20u8)
            .map(|number| {
                kapok::spawn(move || {
                    let mut stream = TcpStream::connect(address).unwrap();
                    // More than the sockets hold: the write waits for the server.
                    let bytes = vec![number; 3_000_000];
                    let mut writer = stream.try_clone().unwrap();
                    writer.write_all(&bytes).unwrap();
                    writer.shutdown(std::net::Shutdown::Write).unwrap();
                    let mut echo = Vec::new();
                    stream.read_to_end(&mut echo).unwrap();
                    assert!(echo == bytes);
                })
            })
            .collect();
        server.join().unwrap();
        for client in clients {
            client.join().unwrap();
        }
    });
}

#[test]
fn unix_streams() {
    on_one_loop(|| {
        let path = std::env::temp_dir().join(format!("kapok-libc-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let client = kapok::spawn({
            let path = path.clone();
            move || {
                let mut stream = UnixStream::connect(path).unwrap();
                let mut greeting = [0; 5];
                stream.read_exact(&mut greeting).unwrap();
                stream.write_all(&greeting).unwrap();
            }
        });
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"hello").unwrap();
        let mut echo = String::new();
        stream.read_to_string(&mut echo).unwrap();
        assert_eq!(echo, "hello");
        client.join().unwrap();
        std::fs::remove_file(path).unwrap();
    });
}

#[test]
fn datagrams() {
    on_one_loop(|| {
        let one = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = one.local_addr().unwrap();
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        let from = other.local_addr().unwrap();
        let receiver = kapok::spawn(move || {
            let mut buf = [0; 16];
            let (count, peer) = one.recv_from(&mut buf).unwrap();
            (buf[..count].to_vec(), peer)
        });
        kapok::yield_now();
        other.send_to(b"datagram", address).unwrap();
        assert_eq!(receiver.join().unwrap(), (b"datagram".to_vec(), from));

        // A peer that is full makes the sender wait.
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        let sending = kapok::spawn(move || {
            for number in 0..1000u32 {
                sender.send(&number.to_ne_bytes()).unwrap();
            }
        });
        for number in 0..1000u32 {
            let mut bytes = [0; 4];
            receiver.recv(&mut bytes).unwrap();
            assert_eq!(u32::from_ne_bytes(bytes), number);
        }
        sending.join().unwrap();
    });
}

#[test]
fn time_outs() {
    on_one_loop(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        // Settable again and again, and gone with the socket.
        for ms in [5, 10, 5] {
            stream.set_read_timeout(Some(Duration::from_millis(ms))).unwrap();
            let began = Instant::now();
            let error = stream.read(&mut [0; 8]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
            assert!(began.elapsed() >= Duration::from_millis(ms));
        }
        // As the kernel has it, a duplicate shares them.
        let began = Instant::now();
        let error = stream.try_clone().unwrap().read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        assert!(began.elapsed() >= Duration::from_millis(5));
    });
}

#[test]
fn sleeping() {
    on_one_loop(|| {
        let began = Instant::now();
        let sleepers: Vec<_> = (0..100)
            .map(|_| kapok::spawn(|| std::thread::sleep(Duration::from_millis(100))))
            .collect();
        for sleeper in sleepers {
            sleeper.join().unwrap();
        }
        // One after the other they would take 10 s.
        assert!((0.1..5.0).contains(&began.elapsed().as_secs_f64()));
    });
}
