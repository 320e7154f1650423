//! Cancellation, deadlines and shields: what they end, and what they leave alone. (That nothing is
//! lost by them is in `cancel_races`.)

mod harness;

use std::future::poll_fn;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream as StdTcpStream;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use harness::{run, run_on, scale, wait_until};
use kapok::net::{
    TcpListener, TcpStream, UdpSocket, UnixDatagram, UnixListener, UnixStream, wait_readable,
};
use kapok::sync::channel::{self, RecvError, SendErrorReason};
use kapok::sync::{Condvar, Mutex, Semaphore, oneshot};
use kapok::{Canceled, Interrupted, JoinError};
use socket2::{Domain, Socket, Type};

const HOUR: Duration = Duration::from_secs(3600);

/// Starts `wait` on a fiber, sees that it waits, cancels it, and returns its error.
fn cancel<T: Send + 'static>(what: &str, wait: impl FnOnce() -> T + Send + 'static) -> T {
    let fiber = kapok::spawn(wait);
    kapok::sleep(Duration::from_millis(3)).unwrap();
    assert!(!fiber.is_finished(), "{what} does not wait");
    fiber.cancel();
    fiber.join().unwrap_or_else(|error| panic!("{what}: {error}"))
}

fn assert_canceled<T>(what: &str, result: io::Result<T>) {
    let error = result.err().unwrap_or_else(|| panic!("{what} succeeded"));
    assert!(Canceled::is(&error), "{what}: {error:?}");
    assert!(!matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock), "{what}");
}

#[test]
fn sleeping_is_cancelled() {
    run(|| {
        assert_eq!(cancel("sleep", || kapok::sleep(HOUR)), Err(Interrupted::Canceled));
        assert_eq!(cancel("sleep", || kapok::sleep(Duration::MAX)), Err(Interrupted::Canceled));
    });
}

#[test]
fn reading_is_cancelled() {
    run(|| {
        let (mut unix, _peer) = UnixStream::pair().unwrap();
        assert_canceled("unix read", cancel("unix read", move || unix.read(&mut [0; 9])));
        let (mut unix, _peer) = UnixStream::pair().unwrap();
        assert_canceled("read_exact", cancel("read_exact", move || unix.read_exact(&mut [0; 9])));
        let (unix, _peer) = UnixStream::pair().unwrap();
        assert_canceled("peek", cancel("peek", move || unix.peek(&mut [0; 9])));
        let (unix, _peer) = UnixStream::pair().unwrap();
        assert_canceled("readable", cancel("readable", move || wait_readable(&unix)));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _peer = listener.accept().unwrap();
        assert_canceled("tcp read", cancel("tcp read", move || tcp.read(&mut [0; 9])));
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_canceled("recv_from", cancel("recv_from", move || udp.recv_from(&mut [0; 9])));
        let (datagrams, _peer) = UnixDatagram::pair().unwrap();
        assert_canceled("recv", cancel("recv", move || datagrams.recv(&mut [0; 9])));
    });
}

#[test]
fn writing_to_a_full_socket_is_cancelled() {
    run(|| {
        let (mut stream, _peer) = UnixStream::pair().unwrap();
        let writing = move || -> io::Result<()> {
            loop {
                stream.write_all(&[7; 64 << 10])?;
            }
        };
        assert_canceled("write", cancel("write", writing));
        let (datagrams, _peer) = UnixDatagram::pair().unwrap();
        let sending = move || -> io::Result<()> {
            loop {
                datagrams.send(&[7; 1 << 10])?;
            }
        };
        assert_canceled("send", cancel("send", sending));
    });
}

#[test]
fn accepting_is_cancelled() {
    run(|| {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_canceled("accept", cancel("accept", move || tcp.accept()));
        let path = std::env::temp_dir().join(format!("kapok-accept-{}", std::process::id()));
        let unix = UnixListener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_canceled("unix accept", cancel("unix accept", move || unix.accept()));
    });
}

#[test]
fn connecting_is_cancelled() {
    run(|| {
        // A listener without room: who comes next waits for its turn.
        let full = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        full.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        full.listen(0).unwrap();
        let address = full.local_addr().unwrap().as_socket().unwrap();
        let _queued = StdTcpStream::connect(address).unwrap();
        assert_canceled("connect", cancel("connect", move || TcpStream::connect(address)));
        let limit = Duration::from_millis(5);
        let error = TcpStream::connect_timeout(&address, limit).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");

        let path = std::env::temp_dir().join(format!("kapok-connect-{}", std::process::id()));
        let full = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        full.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
        full.listen(0).unwrap();
        let _queued = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let (of_fiber, of_other) = (path.clone(), path.clone());
        let connecting = move || UnixStream::connect(of_fiber);
        assert_canceled("unix connect", cancel("unix connect", connecting));
        // And who waits long enough gets in.
        let waiting = kapok::spawn(move || UnixStream::connect(of_other));
        kapok::sleep(Duration::from_millis(3)).unwrap();
        assert!(!waiting.is_finished());
        drop(full.accept().unwrap());
        waiting.join().unwrap().unwrap();
        std::fs::remove_file(&path).unwrap();
    });
}

#[test]
fn waiting_for_other_fibers_is_cancelled() {
    run(|| {
        let (_sender, receiver) = channel::bounded::<u32>(1);
        assert_eq!(cancel("recv", move || receiver.recv()), Err(RecvError::Canceled));
        let (sender, _receiver) = channel::bounded(1);
        sender.send(1).unwrap();
        let error = cancel("send", move || sender.send(2)).unwrap_err();
        assert_eq!((error.reason, error.value), (SendErrorReason::Canceled, 2));
        let (_answer, mut answered) = oneshot::channel::<u32>();
        assert_eq!(cancel("oneshot", move || answered.recv()), Err(RecvError::Canceled));
        let semaphore = Arc::new(Semaphore::new(0));
        let of_fiber = Arc::clone(&semaphore);
        let error = cancel("acquire", move || of_fiber.acquire().map(drop)).unwrap_err();
        assert_eq!(error, kapok::sync::AcquireError::Canceled);
        let sleeper = kapok::spawn(|| kapok::sleep(Duration::from_millis(200)));
        let error = cancel("join", move || sleeper.join()).unwrap_err();
        assert!(matches!(error, JoinError::Canceled), "{error}");
    });
}

#[test]
fn locks_and_futures_are_not_interrupted() {
    run(|| {
        let mutex = Arc::new(Mutex::new(0));
        let of_fiber = Arc::clone(&mutex);
        let guard = mutex.lock();
        let locker = kapok::spawn(move || {
            let mut guard = of_fiber.lock();
            *guard += 1;
            kapok::check_interrupted()
        });
        kapok::yield_now();
        locker.cancel();
        kapok::sleep(Duration::from_millis(5)).unwrap();
        assert!(!locker.is_finished());
        drop(guard);
        assert_eq!(locker.join().unwrap(), Err(Interrupted::Canceled));
        assert_eq!(*mutex.lock(), 1);

        let ready = Arc::new((AtomicBool::new(false), std::sync::Mutex::new(None)));
        let of_future = Arc::clone(&ready);
        let waiter = kapok::spawn(move || {
            kapok::block_on(poll_fn(|context| match of_future.0.load(Ordering::SeqCst) {
                true => Poll::Ready(5),
                false => {
                    *of_future.1.lock().unwrap() = Some(context.waker().clone());
                    Poll::Pending
                }
            }))
        });
        kapok::yield_now();
        waiter.cancel();
        kapok::sleep(Duration::from_millis(5)).unwrap();
        assert!(!waiter.is_finished());
        ready.0.store(true, Ordering::SeqCst);
        ready.1.lock().unwrap().take().unwrap().wake();
        assert_eq!(waiter.join().unwrap(), 5);

        let shared = Arc::new((Mutex::new(false), Condvar::new()));
        let of_fiber = Arc::clone(&shared);
        let waiter = kapok::spawn(move || *of_fiber.1.wait_while(of_fiber.0.lock(), |told| !*told));
        kapok::yield_now();
        waiter.cancel();
        kapok::sleep(Duration::from_millis(5)).unwrap();
        assert!(!waiter.is_finished());
        *shared.0.lock() = true;
        shared.1.notify_all();
        assert!(waiter.join().unwrap());
    });
}

#[test]
fn cancellation_is_a_level() {
    run(|| {
        let (mut stream, mut peer) = UnixStream::pair().unwrap();
        let mut later = stream.try_clone().unwrap();
        let fiber = kapok::spawn(move || {
            assert_canceled("the first read", stream.read(&mut [0; 8]));
            peer.write_all(b"kept").unwrap_err();
            kapok::shield(|| peer.write_all(b"kept")).unwrap();
            for _ in 0..3 {
                assert_canceled("a later read", stream.read(&mut [0; 8]));
                assert_eq!(kapok::sleep(Duration::ZERO), Err(Interrupted::Canceled));
                assert_eq!(kapok::check_interrupted(), Err(Interrupted::Canceled));
                kapok::yield_now();
            }
        });
        kapok::sleep(Duration::from_millis(2)).unwrap();
        fiber.cancel();
        fiber.cancel();
        fiber.join().unwrap();
        let mut kept = [0; 4];
        later.read_exact(&mut kept).unwrap();
        assert_eq!(&kept, b"kept");
    });
}

#[test]
fn who_is_cancelled_before_its_start_runs_to_its_first_wait() {
    run(|| {
        let fiber = kapok::spawn(|| (6 * 7, kapok::sleep(HOUR)));
        fiber.cancel();
        assert_eq!(fiber.join().unwrap(), (42, Err(Interrupted::Canceled)));
        // Cancelling what is over is harmless, from wherever.
        let over = kapok::spawn(|| 1);
        wait_until(|| over.is_finished());
        over.cancel();
        assert_eq!(over.join().unwrap(), 1);
        let sleeper = kapok::spawn(|| kapok::sleep(HOUR));
        let thread = thread::spawn(move || {
            sleeper.cancel();
            sleeper.join().unwrap()
        });
        wait_until(|| thread.is_finished());
        assert_eq!(thread.join().unwrap(), Err(Interrupted::Canceled));
    });
}

#[test]
fn a_shield_lets_clean_up_wait() {
    run(|| {
        let fiber = kapok::spawn(|| {
            kapok::sleep(HOUR).unwrap_err();
            let inside = kapok::shield(|| {
                kapok::check_interrupted().unwrap();
                kapok::shield(|| kapok::sleep(Duration::from_millis(1))).unwrap();
                // The outer one is still on.
                kapok::sleep(Duration::from_millis(1))
            });
            (inside, kapok::check_interrupted())
        });
        kapok::yield_now();
        fiber.cancel();
        assert_eq!(fiber.join().unwrap(), (Ok(()), Err(Interrupted::Canceled)));
        // Cancelled while it is in the shield: told after.
        let fiber = kapok::spawn(|| {
            let inside = kapok::shield(|| kapok::sleep(Duration::from_millis(10)));
            (inside, kapok::sleep(HOUR))
        });
        kapok::yield_now();
        fiber.cancel();
        assert_eq!(fiber.join().unwrap(), (Ok(()), Err(Interrupted::Canceled)));
        // A shield ends with a panic too.
        let fiber = kapok::spawn(|| {
            let _ = catch_unwind(|| kapok::shield(|| panic!("in a shield")));
            kapok::sleep(HOUR)
        });
        fiber.cancel();
        assert_eq!(fiber.join().unwrap(), Err(Interrupted::Canceled));
    });
}

#[test]
fn the_nearest_deadline_counts() {
    run(|| {
        const SHORT: Duration = Duration::from_millis(10);
        let took = |f: &dyn Fn() -> Result<(), Interrupted>| {
            let before = Instant::now();
            assert_eq!(f(), Err(Interrupted::DeadlineElapsed));
            let took = before.elapsed();
            assert!(took >= SHORT && took < HOUR / 10, "{took:?}");
        };
        took(&|| kapok::timeout(SHORT, || kapok::sleep(HOUR)));
        took(&|| kapok::timeout(HOUR, || kapok::timeout(SHORT, || kapok::sleep(HOUR))));
        took(&|| kapok::timeout(SHORT, || kapok::timeout(HOUR, || kapok::sleep(HOUR))));
        took(&|| kapok::shield(|| kapok::timeout(SHORT, || kapok::sleep(HOUR))));
        // A deadline around a shield does not reach in, and has passed behind it.
        kapok::timeout(Duration::from_millis(1), || {
            kapok::shield(|| kapok::sleep(SHORT)).unwrap();
            assert_eq!(kapok::sleep(Duration::ZERO), Err(Interrupted::DeadlineElapsed));
            assert_eq!(kapok::check_interrupted(), Err(Interrupted::DeadlineElapsed));
            let (mut quiet, _peer) = UnixStream::pair().unwrap();
            assert_eq!(quiet.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::TimedOut);
        });
        // The inner one over, the outer one is still far away.
        kapok::timeout(HOUR, || {
            kapok::timeout(SHORT, || kapok::sleep(HOUR)).unwrap_err();
            kapok::sleep(SHORT).unwrap();
        });
        kapok::check_interrupted().unwrap();
        // A panic takes its deadline with it.
        let _ = catch_unwind(|| kapok::timeout(Duration::ZERO, || panic!("under a deadline")));
        kapok::sleep(Duration::from_millis(1)).unwrap();
        assert_eq!(kapok::timeout(Duration::MAX, || 5), 5);
    });
}

#[test]
fn deadlines_end_every_kind_of_wait_with_their_own_error() {
    run(|| {
        const SHORT: Duration = Duration::from_millis(3);
        let (mut stream, _peer) = UnixStream::pair().unwrap();
        let error = kapok::timeout(SHORT, || stream.read(&mut [0; 1])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(!Canceled::is(&error));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = kapok::timeout(SHORT, || listener.accept()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        let (_sender, receiver) = channel::bounded::<u32>(1);
        assert_eq!(kapok::timeout(SHORT, || receiver.recv()), Err(RecvError::DeadlineElapsed));
        let semaphore = Semaphore::new(0);
        let error = kapok::timeout(SHORT, || semaphore.acquire().map(drop)).unwrap_err();
        assert_eq!(error, kapok::sync::AcquireError::DeadlineElapsed);
        let sleeper = kapok::spawn(|| kapok::sleep(HOUR));
        sleeper.cancel();
        let slow = kapok::spawn(|| kapok::sleep(Duration::from_millis(100)));
        let error = kapok::timeout(SHORT, || slow.join()).unwrap_err();
        assert!(matches!(error, JoinError::DeadlineElapsed), "{error}");
        // What is there is taken, deadline or not, as long as it has not passed.
        assert_eq!(kapok::timeout(HOUR, || sleeper.join()).unwrap(), Err(Interrupted::Canceled));
    });
}

#[test]
fn a_deadline_around_a_scope_ends_its_children() {
    run_on(2, || {
        let (outcomes, after) = kapok::timeout(Duration::from_millis(10), || {
            let outcomes = kapok::scope(|scope| {
                let children: Vec<_> = (0..8).map(|_| scope.spawn(|| kapok::sleep(HOUR))).collect();
                // The wait for them is under the deadline too; they are read when they are over.
                kapok::shield(|| {
                    children.into_iter().map(|child| child.join().unwrap()).collect::<Vec<_>>()
                })
            });
            (outcomes, kapok::check_interrupted())
        });
        assert_eq!(outcomes, [Err(Interrupted::DeadlineElapsed); 8]);
        assert_eq!(after, Err(Interrupted::DeadlineElapsed));
    });
}

#[test]
fn a_storm_of_cancels_from_other_threads_ends_every_fiber_once() {
    run_on(2, || {
        for _ in 0..scale(20, 1000) {
            let fibers: Vec<_> = (0..50)
                .map(|number| {
                    kapok::spawn(move || match number % 3 {
                        0 => kapok::sleep(HOUR).is_err(),
                        1 => {
                            let (mut stream, _peer) = UnixStream::pair().unwrap();
                            stream.read(&mut [0; 64]).is_err()
                        }
                        _ => {
                            let (_sender, receiver) = channel::bounded::<()>(1);
                            receiver.recv().is_err()
                        }
                    })
                })
                .collect();
            let thread = thread::spawn(move || {
                fibers.iter().for_each(|fiber| fiber.cancel());
                fibers.into_iter().all(|fiber| fiber.join().unwrap())
            });
            wait_until(|| thread.is_finished());
            assert!(thread.join().unwrap());
        }
    });
}
