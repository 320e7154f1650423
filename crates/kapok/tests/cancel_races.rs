//! Cancels and time-outs in a race with what they end: what has landed is delivered, once and in its
//! order.

mod harness;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream as StdTcpStream};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use harness::{Numbers, alone, open_descriptors, run, run_on, scale, wait_until};
use kapok::Canceled;
use kapok::net::{TcpListener, TcpStream, UdpSocket, UnixDatagram, UnixStream};
use kapok::sync::channel::{self, RecvError, SendErrorReason};
use kapok::sync::{AcquireError, Mutex, Semaphore};
use socket2::SockRef;

const HOUR: Duration = Duration::from_secs(3600);

/// Sends the bytes of a counter to `peer`, while ever new fibers read from `stream` and are
/// cancelled or timed out at random: what the reads returned is what was sent.
fn interrupted_reads_lose_nothing<S>(stream: S, peer: S, seed: u64)
where
    S: Send + Sync + 'static,
    for<'a> &'a S: Read + Write,
{
    let rounds = scale(3_000, 100_000);
    let stream = Arc::new(stream);
    let mut numbers = Numbers(seed);
    let mut sender_numbers = Numbers(!seed);
    let over = Arc::new(AtomicBool::new(false));
    let of_sender = Arc::clone(&over);
    let sender = kapok::spawn(move || {
        let mut sent = 0_u64;
        while !of_sender.load(Ordering::SeqCst) {
            let chunk: Vec<u8> =
                (0..1 + sender_numbers.below(20)).flat_map(|_| next_word(&mut sent)).collect();
            (&peer).write_all(&chunk).unwrap();
            for _ in 0..sender_numbers.below(4) {
                kapok::yield_now();
            }
            if sender_numbers.below(8) == 0 {
                kapok::sleep(Duration::from_micros(50)).unwrap();
            }
        }
        drop(peer);
        sent
    });
    let mut received = Vec::new();
    let mut interrupted = 0;
    for _ in 0..rounds {
        let of_reader = Arc::clone(&stream);
        let (size, limit) = (1 + numbers.below(100), numbers.below(40));
        let reader = kapok::spawn(move || {
            let mut buf = [0; 100];
            let limit = if limit < 20 { Duration::from_micros(limit as u64) } else { HOUR };
            kapok::timeout(limit, || (&*of_reader).read(&mut buf[..size]))
                .map(|count| buf[..count].to_vec())
        });
        for _ in 0..numbers.below(6) {
            kapok::yield_now();
        }
        reader.cancel();
        match reader.join().unwrap() {
            Ok(bytes) => received.extend(bytes),
            Err(error) => {
                assert!(Canceled::is(&error) || error.kind() == ErrorKind::TimedOut, "{error}");
                interrupted += 1;
            }
        }
    }
    over.store(true, Ordering::SeqCst);
    (&*stream).read_to_end(&mut received).unwrap();
    let sent = sender.join().unwrap();
    assert!(interrupted > 0 && interrupted < rounds, "{interrupted} of {rounds} interrupted");
    assert_eq!(received.len() as u64, 8 * sent);
    for (number, word) in received.chunks_exact(8).enumerate() {
        assert_eq!(word, (number as u64).to_be_bytes(), "word {number}");
    }
}

fn next_word(counter: &mut u64) -> [u8; 8] {
    let word = counter.to_be_bytes();
    *counter += 1;
    word
}

#[test]
fn reads_that_are_interrupted_lose_nothing_of_a_unix_stream() {
    for threads in [1, 2] {
        run_on(threads, move || {
            let (stream, peer) = UnixStream::pair().unwrap();
            interrupted_reads_lose_nothing(stream, peer, threads as u64);
        });
    }
}

#[test]
fn reads_that_are_interrupted_lose_nothing_of_a_tcp_stream() {
    for threads in [1, 2] {
        run_on(threads, move || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (peer, _) = listener.accept().unwrap();
            interrupted_reads_lose_nothing(stream, peer, 10 + threads as u64);
        });
    }
}

/// One end of a pipe, as a stream that may be shared. One fiber at a time uses it.
struct Pipe(std::sync::Mutex<kapok::fs::File>);

impl Pipe {
    fn pair() -> (Pipe, Pipe) {
        let mut ends = [-1; 2];
        // SAFETY: pipe writes two descriptors to the array.
        assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
        // SAFETY: they were just made, and nobody else knows them.
        let [reader, writer] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
        let end = |fd: OwnedFd| Pipe(std::sync::Mutex::new(std::fs::File::from(fd).into()));
        (end(reader), end(writer))
    }
}

impl Read for &Pipe {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.lock().unwrap().read(buf)
    }
}

impl Write for &Pipe {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn reads_that_are_interrupted_lose_nothing_of_a_pipe() {
    for threads in [1, 2] {
        run_on(threads, move || {
            let (reader, writer) = Pipe::pair();
            interrupted_reads_lose_nothing(reader, writer, 20 + threads as u64);
        });
    }
}

/// Sends numbered datagrams by `send`, while ever new fibers wait for one by `receive` and are
/// interrupted at random: each comes once, and in order.
fn interrupted_receives_lose_nothing<S: Send + Sync + 'static>(
    (socket, peer): (S, S),
    send: fn(&S, &[u8]) -> io::Result<usize>,
    receive: fn(&S, &mut [u8]) -> io::Result<usize>,
) {
    // As many as surely find room.
    const WINDOW: u64 = 16;
    let total = scale(2_000, 100_000);
    let socket = Arc::new(socket);
    let (allow, allowed) = channel::unbounded();
    (0..WINDOW).for_each(|_| allow.send(()).unwrap());
    let sender = kapok::spawn(move || {
        for number in 0..total {
            allowed.recv().unwrap();
            assert_eq!(send(&peer, &u64::to_be_bytes(number)).unwrap(), 8);
            if number % 3 == 0 {
                kapok::yield_now();
            }
        }
    });
    let mut numbers = Numbers(6);
    let (mut expected, mut interrupted) = (0, 0);
    while expected < total {
        let of_fiber = Arc::clone(&socket);
        let limit = numbers.below(40);
        let receiver = kapok::spawn(move || {
            let mut number = [0; 64];
            let limit = if limit < 20 { Duration::from_micros(limit as u64) } else { HOUR };
            let count = kapok::timeout(limit, || receive(&of_fiber, &mut number))?;
            assert_eq!(count, 8);
            io::Result::Ok(u64::from_be_bytes(number[..8].try_into().unwrap()))
        });
        for _ in 0..numbers.below(6) {
            kapok::yield_now();
        }
        receiver.cancel();
        match receiver.join().unwrap() {
            Ok(number) => {
                assert_eq!(number, expected, "lost, doubled or out of order");
                expected += 1;
                let _ = allow.send(());
            }
            Err(error) => {
                assert!(Canceled::is(&error) || error.kind() == ErrorKind::TimedOut, "{error}");
                interrupted += 1;
            }
        }
    }
    sender.join().unwrap();
    assert!(interrupted > 0, "nothing was interrupted");
}

#[test]
fn receives_that_are_interrupted_lose_no_datagram() {
    for threads in [1, 2] {
        run_on(threads, || {
            let pair = UnixDatagram::pair().unwrap();
            interrupted_receives_lose_nothing(pair, UnixDatagram::send, UnixDatagram::recv);
            let [a, b] = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
            b.connect(a.local_addr().unwrap()).unwrap();
            // With the address of the sender: another operation than without.
            interrupted_receives_lose_nothing((a, b), UdpSocket::send, |socket, buf| {
                socket.recv_from(buf).map(|(count, _)| count)
            });
        });
    }
}

#[test]
fn writes_that_are_interrupted_tell_how_much_was_sent() {
    run(|| {
        let rounds = scale(2_000, 50_000);
        let (stream, mut peer) = UnixStream::pair().unwrap();
        SockRef::from(&stream).set_send_buffer_size(4096).unwrap();
        let stream = Arc::new(stream);
        let reader = kapok::spawn(move || {
            let mut numbers = Numbers(3);
            let (mut buf, mut received) = (vec![0; 8192], Vec::new());
            loop {
                let size = 1 + numbers.below(8192);
                match peer.read(&mut buf[..size]).unwrap() {
                    0 => return received,
                    count => received.extend_from_slice(&buf[..count]),
                }
                for _ in 0..numbers.below(5) {
                    kapok::yield_now();
                }
            }
        });
        let mut numbers = Numbers(4);
        let (mut sent, mut interrupted) = (Vec::new(), 0);
        for _ in 0..rounds {
            let mut bytes = vec![0; 1 + numbers.below(6000)];
            numbers.fill(&mut bytes);
            let (of_writer, of_fiber) = (Arc::clone(&stream), bytes.clone());
            let writer = kapok::spawn(move || (&*of_writer).write(&of_fiber));
            for _ in 0..numbers.below(4) {
                kapok::yield_now();
            }
            writer.cancel();
            match writer.join().unwrap() {
                Ok(count) => sent.extend_from_slice(&bytes[..count]),
                Err(error) => {
                    assert!(Canceled::is(&error), "{error}");
                    interrupted += 1;
                }
            }
        }
        stream.shutdown(Shutdown::Write).unwrap();
        assert!(interrupted > 0 && interrupted < rounds, "{interrupted} of {rounds}");
        let received = reader.join().unwrap();
        assert_eq!(received.len(), sent.len());
        assert!(received == sent, "the bytes differ");
    });
}

/// Connects until told to stop, says a number each time and has it back, and leaves without a trace
/// (the ports are not to run out).
fn connect_and_say(address: std::net::SocketAddr, next: &AtomicUsize, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        let number = (next.fetch_add(1, Ordering::SeqCst) as u32).to_be_bytes();
        let mut stream = StdTcpStream::connect(address).expect("a connection");
        stream.write_all(&number).unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(answer, number);
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// One race between an accept and what ends it: a timer, or a cancel.
fn race_for_a_connection(listener: &Arc<TcpListener>, numbers: &mut Numbers) -> Option<TcpStream> {
    let limit = Duration::from_micros(numbers.below(60) as u64);
    if numbers.below(4) > 0 {
        return kapok::select! {
            accepted = listener.accept_async() => Some(accepted.unwrap().0),
            () = kapok::time::sleep_async(limit) => None,
        };
    }
    let of_fiber = Arc::clone(listener);
    let accept = kapok::spawn_local(move || of_fiber.accept());
    for _ in 0..numbers.below(5) {
        kapok::yield_now();
    }
    accept.cancel();
    match accept.join().unwrap() {
        Ok((stream, _)) => Some(stream),
        Err(error) => {
            assert!(Canceled::is(&error), "{error}");
            None
        }
    }
}

#[test]
fn each_connection_is_accepted_once_whoever_wins_the_race() {
    alone("each_connection_is_accepted_once_whoever_wins_the_race", || {
        run(|| {
            let races = scale(20_000, 1_000_000);
            let listener = Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
            let address = listener.local_addr().unwrap();
            // What is opened once and for all is open before we count.
            kapok::sleep(Duration::from_millis(1)).unwrap();
            let before = open_descriptors();
            let (next, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
            let clients = [0, 1].map(|_| {
                let (next, stop) = (Arc::clone(&next), Arc::clone(&stop));
                thread::spawn(move || connect_and_say(address, &next, &stop))
            });
            let mut numbers = Numbers(5);
            let (mut raced, mut accepted) = (0, 0);
            let (say, said) = channel::unbounded();
            while !clients.iter().all(|client| client.is_finished()) {
                raced += 1;
                if raced == races {
                    stop.store(true, Ordering::SeqCst);
                }
                let Some(mut stream) = race_for_a_connection(&listener, &mut numbers) else {
                    continue;
                };
                accepted += 1;
                let say = say.clone();
                kapok::spawn_local(move || {
                    let mut number = [0; 4];
                    stream.read_exact(&mut number).unwrap();
                    say.send(u32::from_be_bytes(number) as usize).unwrap();
                    stream.write_all(&number).unwrap();
                })
                .detach();
            }
            for client in clients {
                client.join().unwrap();
            }
            let total = next.load(Ordering::SeqCst);
            assert_eq!(accepted, total, "of {raced} races");
            assert!(total > 0 && total < raced, "{total} of {raced} races won");
            let mut seen = vec![false; total];
            for _ in 0..total {
                let number = said.recv().unwrap();
                assert!(!std::mem::replace(&mut seen[number], true), "{number} twice");
            }
            wait_until(|| open_descriptors() == before);
        });
    });
}

#[test]
fn a_dropped_accept_leaves_the_connection_to_the_next() {
    run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        for round in 0..200 {
            kapok::select! {
                biased;
                accepted = listener.accept_async() => panic!("{accepted:?} from nowhere"),
                () = kapok::time::sleep_async(Duration::ZERO) => {}
            }
            // The accept that lost may still be in flight now.
            let client = StdTcpStream::connect(address).unwrap();
            if round % 2 == 0 {
                kapok::yield_now();
            }
            let (_, peer) = kapok::timeout(Duration::from_secs(20), || listener.accept()).unwrap();
            assert_eq!(peer, client.local_addr().unwrap());
        }
    });
}

#[test]
fn waits_for_a_channel_that_are_cancelled_lose_no_value() {
    for (threads, capacity) in [(1, 1), (2, 1), (1, 16), (2, 16)] {
        run_on(threads, move || {
            let total = scale(3_000, 200_000);
            let (sender, receiver) = channel::bounded::<usize>(capacity);
            // Each value is sent by fibers that are cancelled until one of them has got rid of it.
            let sending = kapok::spawn(move || {
                let mut numbers = Numbers(7);
                let (mut next, mut cancelled) = (0, 0);
                while next < total {
                    let of_fiber = sender.clone();
                    let fiber = kapok::spawn(move || of_fiber.send(next));
                    for _ in 0..numbers.below(5) {
                        kapok::yield_now();
                    }
                    fiber.cancel();
                    match fiber.join().unwrap() {
                        Ok(()) => next += 1,
                        Err(error) => {
                            assert_eq!(error.reason, SendErrorReason::Canceled);
                            assert_eq!(error.value, next, "not the value that was not sent");
                            cancelled += 1;
                        }
                    }
                }
                cancelled
            });
            let mut numbers = Numbers(8);
            let (mut expected, mut cancelled) = (0, 0);
            loop {
                let of_fiber = receiver.clone();
                let fiber = kapok::spawn(move || of_fiber.recv());
                for _ in 0..numbers.below(5) {
                    kapok::yield_now();
                }
                fiber.cancel();
                match fiber.join().unwrap() {
                    Ok(value) => {
                        assert_eq!(value, expected, "lost, doubled or out of order");
                        expected += 1;
                    }
                    Err(RecvError::Canceled) => cancelled += 1,
                    Err(error) => {
                        assert_eq!(error, RecvError::Disconnected);
                        break;
                    }
                }
            }
            assert_eq!(expected, total);
            let unsent = sending.join().unwrap();
            assert!(cancelled + unsent > 0, "nothing was cancelled");
        });
    }
}

#[test]
fn waits_for_permits_that_are_cancelled_keep_none() {
    for threads in [1, 2] {
        run_on(threads, || {
            const PERMITS: usize = 3;
            let semaphore = Arc::new(Semaphore::new(PERMITS));
            let mut numbers = Numbers(9);
            let (mut acquired, mut cancelled) = (0, 0);
            for _ in 0..scale(500, 20_000) {
                let fibers: Vec<_> = (0..8)
                    .map(|_| {
                        let semaphore = Arc::clone(&semaphore);
                        let (count, held) = (1 + numbers.below(PERMITS), numbers.below(3));
                        kapok::spawn(move || {
                            let permits = semaphore.acquire_many(count)?;
                            (0..held).for_each(|_| kapok::yield_now());
                            drop(permits);
                            Ok::<(), AcquireError>(())
                        })
                    })
                    .collect();
                for fiber in &fibers {
                    if numbers.below(3) == 0 {
                        kapok::yield_now();
                    }
                    if numbers.below(3) > 0 {
                        fiber.cancel();
                    }
                }
                for fiber in fibers {
                    match fiber.join().unwrap() {
                        Ok(()) => acquired += 1,
                        Err(error) => {
                            assert_eq!(error, AcquireError::Canceled);
                            cancelled += 1;
                        }
                    }
                }
                assert_eq!(semaphore.available_permits(), PERMITS, "a permit is gone");
            }
            assert!(acquired > 0 && cancelled > 0, "{acquired} acquired, {cancelled} cancelled");
        });
    }
}

#[test]
fn a_lock_handed_to_the_loser_of_a_race_goes_on_to_the_next() {
    for threads in [1, 2] {
        run_on(threads, || {
            let shared = Arc::new(Mutex::new(0));
            let mut expected = 0;
            for round in 0..scale(300, 20_000) {
                let mut numbers = Numbers(round);
                let fibers: Vec<_> = (0..6)
                    .map(|_| {
                        let shared = Arc::clone(&shared);
                        let limit = Duration::from_micros(numbers.below(30) as u64);
                        let yields = numbers.below(4);
                        kapok::spawn(move || {
                            kapok::select! {
                                mut guard = shared.lock_async() => {
                                    let before = *guard;
                                    (0..yields).for_each(|_| kapok::yield_now());
                                    *guard = before + 1;
                                    1
                                },
                                () = kapok::time::sleep_async(limit) => 0,
                            }
                        })
                    })
                    .collect();
                expected += fibers.into_iter().map(|fiber| fiber.join().unwrap()).sum::<i32>();
                assert_eq!(*shared.try_lock().expect("nobody holds it"), expected);
            }
            assert!(expected > 0);
        });
    }
}
