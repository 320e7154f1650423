//! What a stream does besides transfers: time-outs, its end, halves, readiness.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::harness::run;
use crate::{SHORT, echo, tcp_pair};
use kapok::net::{UdpSocket, UnixStream, wait_readable};
use socket2::SockRef;

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
