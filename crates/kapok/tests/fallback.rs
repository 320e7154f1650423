//! Rings that die in mid-run, by a seccomp filter on all threads: who goes on and who never does.
//!
//! A filter stays for good, so each test has a process of its own.
#![cfg(target_os = "linux")]

#[path = "../../kapok-engine/examples/deny_uring/filter.rs"]
#[allow(dead_code, reason = "the example uses the rest")]
mod filter;
mod harness;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::net::TcpStream as StdTcpStream;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::ExitStatusExt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use filter::Threads;
use harness::{Watchdog, alone, in_child, wait_until};
use kapok::net::{TcpListener, TcpStream, UnixStream, readable_async, wait_readable};
use kapok::server::{self, Server};
use kapok::sync::channel;
use kapok::{JoinError, JoinHandle, Kind, Runtime, RuntimeBuilder};

const CANARY: u8 = 0xa5;
const HOUR: Duration = Duration::from_secs(3600);

/// Whether there is a ring to lose.
fn has_ring() -> bool {
    match Runtime::builder().engine(Kind::Uring).build() {
        Ok(_) => true,
        Err(error) => {
            let required = std::env::var("KAPOK_REQUIRE_URING").is_ok_and(|value| value == "1");
            assert!(!required, "KAPOK_REQUIRE_URING=1: {error}");
            eprintln!("SKIPPED: {error}");
            false
        }
    }
}

/// Runs `main` on rings, in a process of its own.
fn on_rings(name: &str, main: impl FnOnce() + 'static) {
    if has_ring() {
        alone(name, || builder().build().unwrap().run(main));
    }
}

fn builder() -> RuntimeBuilder {
    Runtime::builder().engine(Kind::Uring)
}

/// Has every ring of the process die at its next entry.
fn kill_rings(errno: i32) {
    filter::deny(&[libc::SYS_io_uring_enter], errno, Threads::All).expect("a filter");
}

/// Lets what was spawned reach the kernel.
fn settle() {
    kapok::sleep(Duration::from_millis(10)).unwrap();
    // What was handed to the engine before this wait is with the kernel when it ends.
    let (mut near, mut far) = UnixStream::pair().unwrap();
    let writer = kapok::spawn_local(move || far.write_all(b"."));
    near.read_exact(&mut [0]).unwrap();
    writer.join().unwrap().unwrap();
}

fn is_abandoned<T>(handle: JoinHandle<T>) -> bool {
    matches!(handle.join(), Err(JoinError::Abandoned))
}

/// An echo server of this loop, on a fiber that never ends.
fn serve_echo() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    kapok::spawn_local(move || -> io::Result<()> {
        loop {
            let (mut stream, _) = listener.accept()?;
            kapok::spawn_local(move || -> io::Result<()> {
                let mut buf = [0; 1024];
                loop {
                    match stream.read(&mut buf)? {
                        0 => return Ok(()),
                        count => stream.write_all(&buf[..count])?,
                    }
                }
            })
            .detach();
        }
    })
    .detach();
    address
}

fn ask(stream: &mut (impl Read + Write), text: &[u8]) {
    stream.write_all(text).unwrap();
    let mut reply = vec![0; text.len()];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply, text);
}

/// Fills this many bytes of the stack below, and says where they were.
#[inline(never)]
fn fill_stack<const BYTES: usize>(pattern: u8) -> usize {
    let mut deep = [pattern; BYTES];
    black_box(&mut deep);
    assert!(deep.iter().all(|&byte| byte == pattern));
    deep.as_ptr() as usize
}

#[test]
fn fibers_whose_memory_a_dead_ring_holds_are_abandoned_and_all_else_goes_on() {
    let name = "fibers_whose_memory_a_dead_ring_holds_are_abandoned_and_all_else_goes_on";
    on_rings(name, || {
        const COUNT: usize = 200;
        let address = serve_echo();
        ask(&mut TcpStream::connect(address).unwrap(), b"before");
        let lent: Rc<RefCell<Vec<*const [u8; 512]>>> = Rc::default();
        let mut peers = Vec::new();
        let readers: Vec<_> = (0..COUNT)
            .map(|_| {
                let (mut stream, peer) = UnixStream::pair().unwrap();
                peers.push(peer);
                let lent = Rc::clone(&lent);
                kapok::spawn_local(move || {
                    let mut buf = [CANARY; 512];
                    lent.borrow_mut().push(&raw const buf);
                    let _ = stream.read(&mut buf);
                    unreachable!("it never resumes");
                })
            })
            .collect();
        wait_until(|| lent.borrow().len() == COUNT);
        settle();
        kill_rings(libc::EPERM);

        // At once, and not when the loop closes.
        let began = Instant::now();
        for reader in readers {
            assert!(is_abandoned(reader));
        }
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
        let incidents = kapok::incidents();
        assert_eq!((incidents.engines_replaced, incidents.fibers_abandoned), (1, COUNT as u64));
        assert_eq!(kapok::stack_usage().leaked, COUNT);

        // Late, for operations that nobody waits for any more.
        for peer in &mut peers {
            peer.write_all(b"late").unwrap();
        }
        // New fibers have stacks of their own, which they use up.
        let addresses: Vec<usize> = lent.borrow().iter().map(|buf| *buf as usize).collect();
        for round in 0..3u8 {
            let fillers: Vec<_> = (0..2 * COUNT)
                .map(|_| {
                    kapok::spawn_local(move || {
                        kapok::yield_now();
                        fill_stack::<{ 96 << 10 }>(round)
                    })
                })
                .collect();
            for filler in fillers {
                let at = filler.join().unwrap();
                // Those of two stacks are further from each other.
                let same = |address: &&usize| address.abs_diff(at) < 128 << 10;
                let found = addresses.iter().find(same);
                assert_eq!(found, None, "a stack with lent memory was used again");
            }
        }
        for buf in lent.borrow().iter() {
            // SAFETY: on a stack that is leaked. Nobody but the kernel writes to it.
            let buf = unsafe { buf.read_volatile() };
            // The kernel may still have carried the receive out.
            let rest = if buf.starts_with(b"late") { &buf[4..] } else { &buf[..] };
            assert!(rest.iter().all(|&byte| byte == CANARY), "lent memory was written: {buf:?}");
        }
        // The acceptor has outlived the ring, and whoever it serves now reads and writes.
        let clients: Vec<_> = (0..50)
            .map(|number: u32| {
                kapok::spawn(move || {
                    let mut stream = TcpStream::connect(address).unwrap();
                    for round in 0..10u32 {
                        ask(&mut stream, &[number.to_le_bytes(), round.to_le_bytes()].concat());
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
    });
}

#[test]
fn what_lends_nothing_outlives_its_ring() {
    on_rings("what_lends_nothing_outlives_its_ring", || {
        let (mut polled, mut poller) = StdUnixStream::pair().unwrap();
        let on_fiber = kapok::spawn_local(move || {
            wait_readable(&polled).unwrap();
            polled.read(&mut [0; 8]).unwrap()
        });
        let (selected, mut selector) = UnixStream::pair().unwrap();
        let in_select = kapok::spawn_local(move || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut turns = 0;
            loop {
                kapok::select! {
                    ready = readable_async(&selected) => { ready.unwrap(); return turns },
                    accepted = listener.accept_async() => drop(accepted),
                    () = kapok::time::sleep_async(Duration::from_millis(30)) => turns += 1,
                }
            }
        });
        let slept = kapok::spawn_local(|| {
            let began = Instant::now();
            kapok::sleep(Duration::from_millis(100)).unwrap();
            began.elapsed()
        });
        let timed_out = kapok::spawn_local(|| {
            let (receiver, _sender) = (channel::unbounded::<()>().1, ());
            kapok::timeout(Duration::from_millis(50), || receiver.recv()).is_err()
        });
        let (sender, receiver) = channel::unbounded::<u32>();
        let unparked = kapok::spawn_local(move || receiver.recv().unwrap());
        let cancelled = kapok::spawn_local(|| kapok::sleep(HOUR));
        settle();
        kill_rings(libc::ENOSYS);
        settle();
        assert_eq!(kapok::incidents().engines_replaced, 1);

        let waker = std::thread::spawn(move || {
            // The loop sleeps by now: another thread's bell must wake it.
            std::thread::sleep(Duration::from_millis(50));
            sender.send(7).unwrap();
        });
        assert_eq!(unparked.join().unwrap(), 7);
        waker.join().unwrap();
        poller.write_all(b"polled").unwrap();
        assert_eq!(on_fiber.join().unwrap(), 6);
        assert!(slept.join().unwrap() >= Duration::from_millis(100));
        assert!(timed_out.join().unwrap());
        cancelled.cancel();
        assert!(cancelled.join().unwrap().is_err());
        selector.write_all(b"selected").unwrap();
        assert!(in_select.join().unwrap() > 0, "timers went on");
        assert_eq!(kapok::incidents().fibers_abandoned, 0);
    });
}

#[test]
fn what_the_ring_never_saw_is_carried_out_by_its_successor() {
    on_rings("what_the_ring_never_saw_is_carried_out_by_its_successor", || {
        kill_rings(libc::EACCES);
        // More than its queue holds, none of which the kernel gets to see.
        let (mut readers, mut peers) = (Vec::new(), Vec::new());
        for at in 0..700u32 {
            let (mut stream, peer) = UnixStream::pair().unwrap();
            peers.push(peer);
            readers.push(kapok::spawn_local(move || {
                let mut buf = [0; 4];
                stream.read_exact(&mut buf).unwrap();
                assert_eq!(u32::from_le_bytes(buf), at);
                let path = std::env::current_exe().unwrap();
                kapok::fs::File::open(path).unwrap().read_exact(&mut buf).unwrap();
                assert_eq!(&buf, b"\x7fELF");
            }));
        }
        settle();
        for (at, mut peer) in (0u32..).zip(peers) {
            peer.write_all(&at.to_le_bytes()).unwrap();
        }
        for reader in readers {
            reader.join().unwrap();
        }
        let incidents = kapok::incidents();
        assert_eq!((incidents.engines_replaced, incidents.fibers_abandoned), (1, 0));
    });
}

/// Accepts whose futures go away, before and after their ring has died.
#[test]
fn accepts_that_are_given_up_do_not_keep_a_dead_loop_open() {
    let began = Instant::now();
    on_rings("accepts_that_are_given_up_do_not_keep_a_dead_loop_open", || {
        let listener = Rc::new(TcpListener::bind("127.0.0.1:0").unwrap());
        let address = listener.local_addr().unwrap();
        let give_up = Rc::new(Cell::new(false));
        let before = {
            let (listener, give_up) = (Rc::clone(&listener), Rc::clone(&give_up));
            kapok::spawn_local(move || {
                while !give_up.get() {
                    kapok::select! {
                        accepted = listener.accept_async() => drop(accepted),
                        _ = poll_fn(|context| {
                            context.waker().wake_by_ref();
                            if give_up.get() { Poll::Ready(()) } else { Poll::Pending }
                        }) => {},
                    }
                }
            })
        };
        let after = {
            let listener = Rc::clone(&listener);
            kapok::spawn_local(move || {
                kapok::select! {
                    biased;
                    () = poll_fn(|_| match kapok::incidents().engines_replaced {
                        0 => Poll::Pending,
                        _ => Poll::Ready(()),
                    }) => {},
                    accepted = listener.accept_async() => drop(accepted),
                }
            })
        };
        settle();
        kill_rings(libc::EPERM);
        give_up.set(true);
        before.join().unwrap();
        after.join().unwrap();
        // Nothing of it takes the next connection.
        let client = std::thread::spawn(move || StdTcpStream::connect(address).unwrap());
        listener.accept().unwrap();
        client.join().unwrap();
        assert_eq!(kapok::incidents().fibers_abandoned, 0);
    });
    // The loop, when it closed, did not wait for what never lands.
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
}

#[test]
fn a_scope_that_waits_for_a_fiber_in_a_dead_ring_ends_the_process_with_the_reason() {
    let name = "a_scope_that_waits_for_a_fiber_in_a_dead_ring_ends_the_process_with_the_reason";
    if !has_ring() {
        return;
    }
    let output = in_child(name, &[], || {
        builder().build().unwrap().run(|| {
            let (stream, _peer) = UnixStream::pair().unwrap();
            let mut bytes = [0; 64];
            kapok::scope(|scope| {
                let (mut stream, bytes) = (&stream, &mut bytes);
                let named = kapok::Builder::new().name("borrower");
                scope.spawn_named(named, move || stream.read(bytes).unwrap());
                settle();
                kill_rings(libc::EPERM);
            });
            unreachable!("the scope never ends");
        });
    });
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{}: {text}", output.status);
    assert!(text.contains("a scope waits for that fiber"), "{text}");
    assert!(text.contains("\"borrower\"") && text.contains("in its recv"), "{text}");
}

/// A fiber in the ring whose own scope others have borrowed from: they end, it does not.
#[test]
fn children_of_an_abandoned_scope_keep_what_they_borrowed() {
    on_rings("children_of_an_abandoned_scope_keep_what_they_borrowed", || {
        let ended = Rc::new(Cell::new(0));
        let count = Rc::clone(&ended);
        let owner = kapok::spawn_local(move || {
            let words = vec!["shared".to_owned(); 100];
            let (mut stream, _peer) = UnixStream::pair().unwrap();
            kapok::scope(|scope| {
                for _ in 0..20 {
                    let (words, count) = (&words, Rc::clone(&count));
                    scope.spawn_local(move || {
                        kapok::sleep(Duration::from_millis(60)).unwrap();
                        assert!(words.iter().all(|word| word == "shared"));
                        count.set(count.get() + 1);
                    });
                }
                let _ = stream.read(&mut [0; 8]);
                unreachable!("it never resumes");
            });
        });
        settle();
        kill_rings(libc::EPERM);
        assert!(is_abandoned(owner));
        wait_until(|| ended.get() == 20);
    });
}

#[test]
fn every_loop_of_a_runtime_survives_its_ring() {
    let name = "every_loop_of_a_runtime_survives_its_ring";
    if !has_ring() {
        return;
    }
    alone(name, || {
        let started = Arc::new(AtomicUsize::new(0));
        builder().threads(3).build().unwrap().run(move || {
            // One on each loop, so that none of them is new afterwards.
            let holders: Vec<_> = (0..3)
                .map(|_| {
                    let started = Arc::clone(&started);
                    kapok::spawn(move || {
                        started.fetch_add(1, Ordering::SeqCst);
                        let (mut stream, _peer) = UnixStream::pair().unwrap();
                        let _ = stream.read(&mut [0; 8]);
                    })
                })
                .collect();
            wait_until(|| started.load(Ordering::SeqCst) == 3);
            // The other loops are other threads: time for their reads to get to the kernel.
            kapok::sleep(Duration::from_millis(200)).unwrap();
            kill_rings(libc::EPERM);
            // A loop that waits in its ring waits on; it finds the ring dead when it is wanted next.
            holders.iter().for_each(JoinHandle::cancel);
            for holder in holders {
                assert!(is_abandoned(holder));
            }
            // Work still moves, and unparks cross.
            for _ in 0..50 {
                let (sender, receiver) = channel::bounded(1);
                let pairs: Vec<_> = (0..20)
                    .map(|at| {
                        let sender = sender.clone();
                        kapok::spawn(move || {
                            kapok::yield_now();
                            sender.send(at).unwrap();
                        })
                    })
                    .collect();
                let sum: u32 = (0..20).map(|_| receiver.recv().unwrap()).sum();
                assert_eq!(sum, 190);
                for pair in pairs {
                    pair.join().unwrap();
                }
            }
        });
        let incidents = kapok::incidents();
        // A loop that was idle all the time may end without having entered its ring again.
        assert!((1..=3).contains(&incidents.engines_replaced), "{incidents:?}");
        assert_eq!(incidents.fibers_abandoned, 3);
    });
}

#[test]
fn a_server_serves_on_when_its_ring_has_died() {
    let name = "a_server_serves_on_when_its_ring_has_died";
    if !has_ring() {
        return;
    }
    alone(name, || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (give_stopper, stopper) = std::sync::mpsc::channel();
        let serving = std::thread::spawn(move || {
            let _watchdog = Watchdog::new();
            let mut server = Server::new(builder().build().unwrap());
            server.sweep_interval(Duration::from_millis(20));
            server.register(listener, |stream| {
                let mut buf = [0; 256];
                loop {
                    match server::read(stream, &mut buf)? {
                        0 => return Ok(()),
                        count => server::write(stream, &buf[..count])?,
                    }
                }
            });
            give_stopper.send(server.stopper()).unwrap();
            server.run().unwrap()
        });
        let stopper = stopper.recv().unwrap();
        let mut before: Vec<_> = (0..10).map(|_| StdTcpStream::connect(address).unwrap()).collect();
        before.iter_mut().for_each(|stream| ask(stream, b"before"));
        // Their handlers read again by now.
        std::thread::sleep(Duration::from_millis(100));
        kill_rings(libc::EPERM);
        for round in 0..5u8 {
            let mut after: Vec<_> =
                (0..10).map(|_| StdTcpStream::connect(address).unwrap()).collect();
            after.iter_mut().for_each(|stream| ask(stream, &[round; 200]));
        }
        // Those before are not answered, and disturb nobody. (Unless a busy machine kept one from
        // reading again in time.)
        let mut answered = 0;
        for stream in &mut before {
            stream.write_all(b"?").unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            answered += u64::from(stream.read(&mut [0]).is_ok());
        }
        stopper.stop();
        let began = Instant::now();
        let counters = serving.join().unwrap();
        assert!(began.elapsed() < Duration::from_secs(8), "it waited for what never ends");
        assert_eq!((counters.accepted, counters.refused, counters.lost_edges), (60, 0, 0));
        let abandoned = kapok::incidents().fibers_abandoned;
        assert!(abandoned > 0 && answered + abandoned <= 10, "{answered} and {abandoned}");
    });
}

#[test]
fn a_loop_that_closes_when_its_ring_dies_ends_at_once() {
    let name = "a_loop_that_closes_when_its_ring_dies_ends_at_once";
    if !has_ring() {
        return;
    }
    alone(name, || {
        let began = Instant::now();
        let runtime = builder().close_limit(HOUR).build().unwrap();
        let handles = runtime.run(|| {
            let handles: Vec<_> = (0..20)
                .map(|_| {
                    kapok::spawn_local(|| {
                        let (mut stream, _peer) = UnixStream::pair().unwrap();
                        stream.read(&mut [0; 64])
                    })
                })
                .collect();
            settle();
            kill_rings(libc::EPERM);
            handles
        });
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
        assert!(handles.into_iter().all(is_abandoned));
        // The thread can have another runtime, which finds that there are no rings.
        assert!(builder().build().is_err());
        let another = Runtime::builder().engine(Kind::Epoll).build().unwrap();
        assert_eq!(another.run(|| 6 * 7), 42);
    });
}

#[test]
fn a_main_fiber_in_a_dead_ring_is_told_to_the_caller() {
    let name = "a_main_fiber_in_a_dead_ring_is_told_to_the_caller";
    if !has_ring() {
        return;
    }
    alone(name, || {
        let result = std::panic::catch_unwind(|| {
            builder().build().unwrap().run(|| {
                let (mut stream, _peer) = UnixStream::pair().unwrap();
                kapok::spawn_local(|| {
                    settle();
                    kill_rings(libc::EPERM);
                })
                .detach();
                let _ = stream.read(&mut [0; 64]);
            });
        });
        let panic = result.unwrap_err();
        let text = panic.downcast_ref::<String>().expect("a text");
        assert!(text.contains("abandoned"), "{text}");
    });
}

/// Nothing takes the place of epoll.
#[test]
fn a_broken_readiness_engine_ends_the_process_with_the_reason() {
    let name = "a_broken_readiness_engine_ends_the_process_with_the_reason";
    let output = in_child(name, &[], || {
        Runtime::builder().engine(Kind::Epoll).build().unwrap().run(|| {
            settle();
            let mut calls = vec![libc::SYS_epoll_pwait];
            #[cfg(target_arch = "x86_64")]
            calls.push(libc::SYS_epoll_wait);
            filter::deny(&calls, libc::EPERM, Threads::All).unwrap();
            settle();
        });
    });
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{}: {text}", output.status);
    assert!(text.contains("the epoll engine broke in mid-run"), "{text}");
}
