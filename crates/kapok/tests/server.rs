//! The event-free API: listeners, handlers, and what becomes of connections.

mod harness;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream as StdTcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use harness::{Watchdog, alone, in_child};
use kapok::Runtime;
use kapok::net::{TcpListener, TcpStream};
use kapok::server::{Counters, Server, Stopper};
use socket2::{Domain, SockRef, Socket, Type};

const HOUR: Duration = Duration::from_secs(3600);

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn echo(stream: &TcpStream) -> std::io::Result<()> {
    let mut buf = [0; 4096];
    loop {
        match kapok::read(stream, &mut buf)? {
            0 => return Ok(()),
            count => kapok::write(stream, &buf[..count])?,
        }
    }
}

/// A server with this handler on a thread of its own.
struct Serving {
    address: SocketAddr,
    stopper: Stopper,
    thread: JoinHandle<Counters>,
}

impl Serving {
    fn new(handler: impl Fn(&TcpStream) -> std::io::Result<()> + Send + 'static) -> Serving {
        let (listener, address) = listener();
        let (send, stopper) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let mut server = Server::new(Runtime::new().unwrap());
            server.sweep_interval(Duration::from_millis(20)).register(listener, handler);
            send.send(server.stopper()).unwrap();
            server.run().unwrap()
        });
        Serving { address, stopper: stopper.recv().unwrap(), thread }
    }

    fn connect(&self) -> StdTcpStream {
        StdTcpStream::connect(self.address).unwrap()
    }

    /// Stops it; no edge was lost meanwhile.
    fn stop(self) -> Counters {
        self.stopper.stop();
        let counters = self.thread.join().unwrap();
        assert_eq!(counters.lost_edges, 0);
        counters
    }
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Has `text` echoed.
fn ask(stream: &mut StdTcpStream, text: &[u8]) {
    stream.write_all(text).unwrap();
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, text);
}

#[test]
fn handlers_serve_until_the_server_is_stopped_from_a_thread() {
    let _watchdog = Watchdog::new();
    let serving = Serving::new(echo);
    let mut clients: Vec<_> = (0..20).map(|_| serving.connect()).collect();
    for round in 0..10_u8 {
        for client in &mut clients {
            ask(client, &[round; 100]);
        }
    }
    // Those that are open then see the end, or a reset.
    let address = serving.address;
    let counters = serving.stop();
    assert_eq!((counters.accepted, counters.refused, counters.panicked), (20, 0, 0));
    for mut client in clients {
        assert!(matches!(client.read(&mut [0; 8]), Ok(0) | Err(_)));
    }
    let error = StdTcpStream::connect(address).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn the_short_form_is_stopped_by_a_handler() {
    let _watchdog = Watchdog::new();
    let (listener, address) = listener();
    let (other_listener, other_address) = self::listener();
    let server = thread::spawn(move || {
        kapok::register(listener, |stream| {
            let mut command = [0; 4];
            { stream }.read_exact(&mut command)?;
            kapok::write(stream, b"bye!")?;
            kapok::stop();
            Ok(())
        })
        .unwrap();
        kapok::register(other_listener, echo).unwrap();
        let started = std::rc::Rc::new(std::cell::Cell::new(false));
        let of_fiber = std::rc::Rc::clone(&started);
        kapok::start(move || of_fiber.set(kapok::on_fiber())).unwrap();
        let counters = kapok::run().unwrap();
        assert!(started.get());
        counters
    });
    let mut other = StdTcpStream::connect(other_address).unwrap();
    ask(&mut other, b"on the other listener");
    let mut client = StdTcpStream::connect(address).unwrap();
    client.write_all(b"stop").unwrap();
    let mut answer = [0; 4];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"bye!");
    let counters = server.join().unwrap();
    assert_eq!((counters.accepted, counters.lost_edges), (2, 0));
}

#[test]
fn without_listeners_run_ends_with_the_last_fiber() {
    let _watchdog = Watchdog::new();
    // On a thread of its own: what is registered belongs to the thread.
    let counters = thread::spawn(|| {
        let done = Arc::new(AtomicUsize::new(0));
        for number in 0..10 {
            let done = Arc::clone(&done);
            kapok::start(move || {
                kapok::sleep(Duration::from_millis(number)).unwrap();
                // And what they spawn in turn.
                kapok::spawn(move || {
                    kapok::sleep(Duration::from_millis(5)).unwrap();
                    done.fetch_add(1, Ordering::SeqCst);
                })
                .detach();
            })
            .unwrap();
        }
        kapok::run().unwrap();
        assert_eq!(done.load(Ordering::SeqCst), 10);
        // Nothing at all to do.
        kapok::run().unwrap()
    });
    assert_eq!(counters.join().unwrap(), Counters::default());
}

#[test]
fn errors_and_panics_of_handlers_end_their_connection_and_are_counted() {
    let _watchdog = Watchdog::new();
    let serving = Serving::new(|stream| {
        let mut command = [0; 1];
        { stream }.read_exact(&mut command)?;
        match command[0] {
            b'p' => panic!("told to panic"),
            b'e' => Err(std::io::Error::other("told to fail")),
            _ => kapok::write(stream, b"fine"),
        }
    });
    for (command, answer) in [("p", ""), ("e", ""), ("x", "fine"), ("p", ""), ("x", "fine")] {
        let mut client = serving.connect();
        client.write_all(command.as_bytes()).unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, answer);
    }
    let counters = serving.stop();
    assert_eq!((counters.accepted, counters.failed, counters.panicked), (5, 1, 2));
}

#[test]
fn a_connection_that_is_reset_while_its_handler_sleeps_is_reaped() {
    let _watchdog = Watchdog::new();
    let asleep = Arc::new(AtomicUsize::new(0));
    let ended = Arc::new(AtomicUsize::new(0));
    let (going, gone) = (Arc::clone(&asleep), Arc::clone(&ended));
    let serving = Serving::new(move |_| {
        going.fetch_add(1, Ordering::SeqCst);
        let result = kapok::sleep(HOUR);
        gone.fetch_add(1, Ordering::SeqCst);
        Ok(result?)
    });
    let stays = serving.connect();
    let leave: Vec<_> = (0..10).map(|_| serving.connect()).collect();
    wait_until(|| asleep.load(Ordering::SeqCst) == 11);
    for client in leave {
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    }
    wait_until(|| ended.load(Ordering::SeqCst) == 10);
    // Who has only said that it sends no more is left alone, sweep or not.
    stays.shutdown(Shutdown::Write).unwrap();
    thread::sleep(Duration::from_millis(100));
    assert_eq!(ended.load(Ordering::SeqCst), 10);
    let counters = serving.stop();
    assert_eq!((counters.reaped, counters.accepted), (10, 11));
    assert!(counters.sweeps > 0);
}

#[test]
fn a_half_closed_peer_still_gets_its_reply() {
    let _watchdog = Watchdog::new();
    let serving = Serving::new(|stream| {
        let mut question = String::new();
        { stream }.read_to_string(&mut question)?;
        // Across several sweeps.
        kapok::sleep(Duration::from_millis(100))?;
        kapok::write(stream, format!("{question}: answered").as_bytes())
    });
    let mut clients: Vec<_> = (0..5).map(|_| serving.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        write!(client, "question {number}").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
    }
    for (number, client) in clients.iter_mut().enumerate() {
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, format!("question {number}: answered"));
    }
    let counters = serving.stop();
    assert_eq!((counters.accepted, counters.reaped, counters.failed), (5, 0, 0));
}

fn limit_descriptors(limit: libc::rlim_t) {
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: the structure is read for the duration of the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
}

#[test]
fn a_server_without_descriptors_goes_on_serving() {
    let name = "a_server_without_descriptors_goes_on_serving";
    let output = in_child(name, &[], || {
        let _watchdog = Watchdog::new();
        let serving = Serving::new(echo);
        let mut first = serving.connect();
        ask(&mut first, b"before");
        // Has its descriptor before the others take all that are left.
        let late = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        limit_descriptors(64);
        // Each takes two descriptors of this process: soon the server finds none.
        let mut clients = Vec::new();
        while let Ok(client) = StdTcpStream::connect(serving.address) {
            clients.push(client);
        }
        assert!(clients.len() > 5, "{}", clients.len());
        // The server took the last of them or is short of one for those in its backlog: now it is.
        late.connect(&serving.address.into()).unwrap();
        for _ in 0..20 {
            ask(&mut first, b"while there are no descriptors");
            thread::sleep(Duration::from_millis(5));
        }
        // Some go, and those that waited in the backlog are served.
        drop(clients);
        let mut late = StdTcpStream::from(late);
        ask(&mut late, b"after");
        ask(&mut first, b"after");
        let counters = serving.stop();
        assert!(counters.refused > 0, "{counters:?}");
    });
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {text}", output.status);
}

#[test]
fn a_server_whose_engine_is_gone_by_now_says_so_and_begins_nothing() {
    alone("a_server_whose_engine_is_gone_by_now_says_so_and_begins_nothing", || {
        let server = Server::new(Runtime::new().unwrap());
        let begun = Arc::new(AtomicBool::new(false));
        let begins = Arc::clone(&begun);
        limit_descriptors(3);
        let run =
            kapok::foreign::run_server(server, move |_| begins.store(true, Ordering::Relaxed));
        assert!(run.is_err(), "{run:?}");
        assert!(!begun.load(Ordering::Relaxed));
    });
}

#[test]
fn threads_have_loops_of_their_own() {
    alone("threads_have_loops_of_their_own", || {
        let _watchdog = Watchdog::new();
        let ready = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..3)
            .map(|number: u8| {
                let (listener, address) = listener();
                let ready = Arc::clone(&ready);
                let server = thread::spawn(move || {
                    let id = thread::current().id();
                    kapok::register(listener, move |stream| {
                        assert_eq!(thread::current().id(), id);
                        kapok::write(stream, &[number])
                    })
                    .unwrap();
                    kapok::start(move || {
                        ready.fetch_add(1, Ordering::SeqCst);
                    })
                    .unwrap();
                    kapok::run().unwrap()
                });
                (address, server)
            })
            .collect();
        wait_until(|| ready.load(Ordering::SeqCst) == 3);
        for round in 0..30 {
            let number = round % 3;
            let mut client = StdTcpStream::connect(threads[number].0).unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).unwrap();
            assert_eq!(answer, [number as u8]);
        }
        // From a thread without a loop: all of them.
        kapok::stop();
        for (_, server) in threads {
            let counters = server.join().unwrap();
            assert_eq!((counters.accepted, counters.panicked, counters.lost_edges), (10, 0, 0));
        }
    });
}

#[test]
fn a_storm_of_connections_loses_no_edge() {
    let _watchdog = Watchdog::new();
    let serving = Serving::new(echo);
    let address = serving.address;
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|client: u8| {
            let over = Arc::clone(&over);
            thread::spawn(move || {
                let mut count = 0;
                while !over.load(Ordering::SeqCst) {
                    let mut stream = StdTcpStream::connect(address).unwrap();
                    for round in 0..10 {
                        ask(&mut stream, &[client.wrapping_add(round); 1000]);
                    }
                    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                    count += 1;
                }
                count
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(500));
    over.store(true, Ordering::SeqCst);
    let count: u64 = clients.into_iter().map(|client| client.join().unwrap()).sum();
    let counters = serving.stop();
    assert_eq!((counters.accepted, counters.refused, counters.panicked), (count, 0, 0));
    assert!(counters.sweeps > 0);
}

#[cfg(target_os = "linux")]
#[test]
fn a_message_in_the_error_queue_is_no_reset() {
    use std::os::fd::AsRawFd;

    let _watchdog = Watchdog::new();
    let serving = Serving::new(|stream| {
        let (fd, on) = (stream.as_raw_fd(), 1_i32);
        let size = size_of_val(&on) as libc::socklen_t;
        let text = [7_u8; 4096];
        // SAFETY: an option of that size; bytes that outlive the connection's last use of them.
        unsafe {
            let option = (&raw const on).cast();
            assert_eq!(libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_ZEROCOPY, option, size), 0);
            let sent = libc::send(fd, text.as_ptr().cast(), text.len(), libc::MSG_ZEROCOPY);
            assert_eq!(sent, text.len() as isize);
        }
        // Across several sweeps.
        kapok::sleep(Duration::from_millis(100))?;
        echo(stream)
    });
    let mut client = serving.connect();
    client.read_exact(&mut [0; 4096]).unwrap();
    thread::sleep(Duration::from_millis(150));
    ask(&mut client, b"still here");
    // The stop ends it.
    let counters = serving.stop();
    assert_eq!((counters.accepted, counters.reaped), (1, 0));
}

#[cfg(target_os = "linux")]
#[test]
fn a_server_ends_though_its_last_fiber_finds_no_stack() {
    alone("a_server_ends_though_its_last_fiber_finds_no_stack", || {
        let _watchdog = Watchdog::new();
        let limit = libc::rlimit { rlim_cur: 600 << 20, rlim_max: 600 << 20 };
        // SAFETY: the structure is read for the duration of the call.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
        kapok::start(|| {
            kapok::Builder::new().stack_size(1 << 30).spawn(|| ()).detach();
        })
        .unwrap();
        kapok::run().unwrap();
        assert_eq!(kapok::incidents().fibers_without_stack, 1);
    });
}
