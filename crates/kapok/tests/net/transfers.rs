//! Bytes through streams of both kinds: in order, whatever their size, in parts and in both
//! directions at once.

use std::hash::{DefaultHasher, Hasher};
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;

use crate::harness::{Numbers, run};
use crate::{echo, tcp_pair};
use kapok::net::{TcpStream, UnixStream};

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
    assert_eq!((&one).read_vectored(&mut [IoSliceMut::new(&mut [])]).unwrap(), 0);
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
        ([first, second].concat(), count, other)
    });
    kapok::yield_now();
    assert_eq!((&one).write_vectored(&parts).unwrap(), 9);
    let (bytes, count, _other) = reader.join().unwrap();
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
