//! What happens when the system has no more of something: an error that says so, or a wait, and
//! everybody else goes on. See docs/design/exhaustion.md.
//!
//! Limits and filters are a process's own, so most tests have one to themselves.
#![cfg(target_os = "linux")]

#[path = "../../kapok-engine/examples/deny_uring/filter.rs"]
#[allow(dead_code, reason = "the example uses the rest")]
mod filter;
mod harness;

use std::cell::Cell;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream as StdTcpStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use filter::Threads;
use harness::{Watchdog, alone, engine, in_child, run, scale, wait_until};
use kapok::net::{TcpListener, TcpStream, UnixStream};
use kapok::server::{self, Server};
use kapok::{EngineConfig, JoinError, Kind, Runtime};
use kapok_engine::offload;

type Resource = libc::__rlimit_resource_t;

/// Sets the soft limit, and gives it back when dropped.
struct Limited(Resource, libc::rlimit);

impl Limited {
    fn to(resource: Resource, value: u64) -> Limited {
        let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: both calls use local structures only.
        unsafe {
            assert_eq!(libc::getrlimit(resource, &mut before), 0);
            let limit = libc::rlimit { rlim_cur: value, rlim_max: before.rlim_max };
            assert_eq!(libc::setrlimit(resource, &limit), 0, "{}", io::Error::last_os_error());
        }
        Limited(resource, before)
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        // SAFETY: reads a structure of ours.
        assert_eq!(unsafe { libc::setrlimit(self.0, &self.1) }, 0);
    }
}

/// Sees to it that no descriptor is free.
fn without_descriptors() -> Limited {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let highest = open.filter_map(|fd| fd.ok()?.file_name().to_str()?.parse::<u64>().ok()).max();
    // Gaps below the highest number are filled.
    let limited = Limited::to(libc::RLIMIT_NOFILE, highest.unwrap() + 1);
    // SAFETY: duplicates a descriptor that every process of a test has. They are never closed.
    while unsafe { libc::fcntl(0, libc::F_DUPFD_CLOEXEC, 0) } >= 0 {}
    limited
}

/// Becomes a user to whom no further thread is granted. Root is exempt from the limit.
fn without_threads() {
    // SAFETY: calls without pointers.
    unsafe {
        if libc::geteuid() == 0 {
            let nobody_else = 200_000 + libc::getpid() as libc::uid_t;
            assert_eq!(libc::setuid(nobody_else), 0);
        }
    }
    // There are more already: the test's own.
    std::mem::forget(Limited::to(libc::RLIMIT_NPROC, 1));
    assert!(std::thread::Builder::new().spawn(|| ()).is_err(), "a thread was granted");
}

fn ask(stream: &mut (impl Read + Write), text: &[u8]) {
    stream.write_all(text).unwrap();
    let mut reply = vec![0; text.len()];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply, text);
}

/// Thousands in flight through rings with room for one: submissions, completions and cancels.
#[test]
fn rings_that_are_far_too_small_lose_nothing() {
    for (submissions, completions) in [(1, 1), (1, 2), (2, 4), (2, 64)] {
        let _watchdog = Watchdog::new();
        let mut config = EngineConfig::default();
        config.submission_entries = submissions;
        config.completion_entries = completions;
        let runtime = Runtime::builder().engine_config(config).build().unwrap();
        runtime.run(|| {
            // Two descriptors each, and select(2) takes no number from 1,024 on.
            let count = if engine() == Some(Kind::Select) { 200 } else { scale(1000, 4000) };
            let served = Rc::new(Cell::new(0));
            let (mut readers, mut cancelled, mut peers) = (Vec::new(), Vec::new(), Vec::new());
            for at in 0..count {
                let (mut stream, peer) = UnixStream::pair().unwrap();
                let served = Rc::clone(&served);
                let reader = kapok::spawn_local(move || {
                    let mut buf = [0; 4];
                    stream.read_exact(&mut buf)?;
                    served.set(served.get() + 1);
                    Ok::<u32, io::Error>(u32::from_le_bytes(buf))
                });
                if at % 4 == 0 {
                    cancelled.push(reader);
                } else {
                    readers.push((at, reader));
                }
                peers.push(peer);
            }
            kapok::sleep(Duration::from_millis(10)).unwrap();
            // All at once: more completions than the ring has room for.
            cancelled.iter().for_each(kapok::JoinHandle::cancel);
            for (at, peer) in (0u32..).zip(&mut peers) {
                if at % 4 != 0 {
                    peer.write_all(&at.to_le_bytes()).unwrap();
                }
            }
            for reader in cancelled {
                assert!(kapok::Canceled::is(&reader.join().unwrap().unwrap_err()));
            }
            for (at, reader) in readers {
                assert_eq!(reader.join().unwrap().unwrap(), at);
            }
            assert_eq!(served.get(), count - count / 4);
        });
    }
}

#[test]
fn fibers_without_a_stack_say_why_and_the_loop_goes_on() {
    alone("fibers_without_a_stack_say_why_and_the_loop_goes_on", || {
        run(|| {
            let big = || kapok::Builder::new().name("big").stack_size(20 << 20);
            big().spawn_local(|| ()).join().unwrap();
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            let pages: u64 = statm.split_whitespace().next().unwrap().parse().unwrap();
            let _limited = Limited::to(libc::RLIMIT_AS, pages * 4096 + (100 << 20));
            let go_on = Rc::new(Cell::new(false));
            let fibers: Vec<_> = (0..100)
                .map(|at| {
                    let go_on = Rc::clone(&go_on);
                    big().spawn_local(move || {
                        wait_until(|| go_on.get());
                        at
                    })
                })
                .collect();
            // Small ones have their stacks from elsewhere.
            for _ in 0..50 {
                kapok::spawn(kapok::yield_now).join().unwrap();
            }
            go_on.set(true);
            let (mut started, mut refused) = (0, 0);
            for (at, fiber) in fibers.into_iter().enumerate() {
                match fiber.join() {
                    Ok(answer) => {
                        assert_eq!(answer, at);
                        started += 1;
                    }
                    Err(JoinError::NoStack(error)) => {
                        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
                        assert!(error.to_string().contains("ulimit -v"), "{error}");
                        refused += 1;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            assert!(started >= 2 && refused >= 50, "{started} started, {refused} refused");
            assert_eq!(kapok::incidents().fibers_without_stack, refused);
            // Stacks that have come back are used again, a scope's children included.
            kapok::scope(|scope| {
                let child = scope.spawn_named(big(), || 7);
                assert_eq!(child.join().unwrap(), 7);
            });
        });
    });
}

/// Stacks are what takes address space; what is left over is for everybody else.
#[test]
fn stacks_leave_the_heap_room_where_address_space_is_limited() {
    alone("stacks_leave_the_heap_room_where_address_space_is_limited", || {
        run(|| {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            let pages: u64 = statm.split_whitespace().next().unwrap().parse().unwrap();
            let _limited = Limited::to(libc::RLIMIT_AS, pages * 4096 + (400 << 20));
            let hour = Duration::from_secs(3600);
            let sleepers: Vec<_> =
                (0..3000).map(|_| kapok::spawn_local(move || kapok::sleep(hour))).collect();
            while kapok::metrics().total.scheduler.unstarted > 0 {
                kapok::yield_now();
            }
            // What an allocator asks for, past what it has in store.
            let (len, flags) = (16 << 20, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            // SAFETY: a fresh mapping, which nobody uses and which is given back.
            let room =
                unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
            assert_ne!(room, libc::MAP_FAILED, "{}", io::Error::last_os_error());
            // SAFETY: as above.
            assert_eq!(unsafe { libc::munmap(room, len) }, 0);
            let (mut slept, mut refused) = (0, 0);
            for sleeper in sleepers {
                sleeper.cancel();
                match sleeper.join() {
                    Ok(_) => slept += 1,
                    Err(JoinError::NoStack(_)) => refused += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            assert!(slept >= 1000 && refused >= 500, "{slept} slept, {refused} refused");
        });
    });
}

#[test]
fn a_scope_outlives_children_without_a_stack() {
    alone("a_scope_outlives_children_without_a_stack", || {
        run(|| {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            let pages: u64 = statm.split_whitespace().next().unwrap().parse().unwrap();
            let _limited = Limited::to(libc::RLIMIT_AS, pages * 4096 + (100 << 20));
            let words = vec!["borrowed".to_owned(); 3];
            kapok::scope(|scope| {
                let words = &words;
                let huge = kapok::Builder::new().stack_size(500 << 20);
                let child = scope.spawn_named(huge, move || words.len());
                assert!(matches!(child.join(), Err(JoinError::NoStack(_))));
            });
            drop(words);
        });
    });
}

/// File operations on a readiness engine, `blocking` and name look-ups all run on offload threads.
#[test]
fn without_offload_threads_calls_fail_and_none_hangs() {
    alone("without_offload_threads_calls_fail_and_none_hangs", || {
        let _watchdog = Watchdog::new();
        without_threads();
        let runtime = Runtime::builder().engine(Kind::Epoll).build().unwrap();
        runtime.run(|| {
            let began = Instant::now();
            let check = |what: &str, error: io::Error| {
                assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{what}: {error}");
            };
            let error = kapok::blocking(|| ()).unwrap_err();
            assert!(error.to_string().contains("ulimit -u"), "{error}");
            check("blocking", error);
            check("open", kapok::fs::File::open("/proc/self/exe").unwrap_err());
            let error = TcpStream::connect("localhost:1").unwrap_err();
            assert!(error.to_string().contains("look up \"localhost\""), "{error}");
            check("look up", error);
            // What needs no thread works.
            let (mut a, mut b) = UnixStream::pair().unwrap();
            let echo = kapok::spawn_local(move || {
                let mut buf = [0; 3];
                b.read_exact(&mut buf).unwrap();
                b.write_all(&buf).unwrap();
            });
            ask(&mut a, b"yes");
            echo.join().unwrap();
            assert!(began.elapsed() < Duration::from_secs(8));
            assert!(kapok::incidents().threads_refused >= 3);
        });
    });
}

#[test]
fn refused_threads_leave_their_work_to_those_there_are() {
    alone("refused_threads_leave_their_work_to_those_there_are", || {
        let _watchdog = Watchdog::new();
        let runtime = Runtime::builder().engine(Kind::Epoll).build().unwrap();
        runtime.run(|| {
            kapok::blocking(|| ()).unwrap();
            without_threads();
            let fibers: Vec<_> = (0..100)
                .map(|at| {
                    kapok::spawn(move || {
                        let doubled = kapok::blocking(|| at * 2).unwrap();
                        let mut magic = [0; 4];
                        let file = kapok::fs::File::open("/proc/self/exe").unwrap();
                        assert_eq!(file.read_at(&mut magic, 0).unwrap(), 4);
                        (doubled, magic)
                    })
                })
                .collect();
            for (at, fiber) in fibers.into_iter().enumerate() {
                assert_eq!(fiber.join().unwrap(), (at * 2, *b"\x7fELF"));
            }
        });
        assert_eq!(offload::threads(), 1);
    });
}

/// Many at once, none of whom gets a thread: each is told, or run; nobody counts on another's thread
/// that is then refused.
#[test]
fn jobs_that_compete_for_refused_threads_are_all_told() {
    alone("jobs_that_compete_for_refused_threads_are_all_told", || {
        let _watchdog = Watchdog::new();
        let rounds = scale(300, 5000);
        let barrier = Arc::new(std::sync::Barrier::new(9));
        let told = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (barrier, told) = (Arc::clone(&barrier), Arc::clone(&told));
                std::thread::spawn(move || {
                    barrier.wait();
                    barrier.wait();
                    for _ in 0..rounds {
                        let run = Arc::clone(&told);
                        let refused = offload::spawn(move || {
                            run.fetch_add(1, Ordering::SeqCst);
                        });
                        if refused.is_err() {
                            told.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                })
            })
            .collect();
        barrier.wait();
        without_threads();
        barrier.wait();
        for thread in threads {
            thread.join().unwrap();
        }
        wait_until(|| told.load(Ordering::SeqCst) == 8 * rounds);
        assert!(offload::refused() > 0);
    });
}

#[test]
fn without_descriptors_calls_say_what_they_could_not_open() {
    alone("without_descriptors_calls_say_what_they_could_not_open", || {
        run(|| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            // What is lazily made, made: a thread of the offload pool.
            let _ = kapok::fs::File::open("/proc/self/exe").unwrap();
            let limited = without_descriptors();
            let error = TcpStream::connect(address).unwrap_err();
            assert!(error.to_string().contains(&address.to_string()), "{error}");
            assert!(error.to_string().contains("os error 24"), "{error}");
            let error = kapok::fs::File::open("/proc/self/exe").unwrap_err();
            assert!(error.to_string().contains("/proc/self/exe"), "{error}");
            assert!(error.to_string().contains("os error 24"), "{error}");
            let error = UnixStream::pair().unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
            drop(limited);
            TcpStream::connect(address).unwrap();
            listener.accept().unwrap();
        });
    });
}

/// The server's side of `ENFILE`, `ENOBUFS` and `ENOMEM`, which a filter answers to accept4(2).
#[test]
fn a_server_that_cannot_accept_pauses_and_serves_whom_it_has() {
    let name = "a_server_that_cannot_accept_pauses_and_serves_whom_it_has";
    const ERRNO: &str = "KAPOK_TEST_ERRNO";
    for errno in [libc::ENFILE, libc::ENOBUFS, libc::ENOMEM] {
        let output = in_child(name, &[(ERRNO, &errno.to_string())], || {
            let errno = std::env::var(ERRNO).unwrap().parse().unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let (give_stopper, stopper) = std::sync::mpsc::channel();
            let serving = std::thread::spawn(move || {
                let mut server =
                    Server::new(Runtime::builder().engine(Kind::Epoll).build().unwrap());
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
            let mut first = StdTcpStream::connect(address).unwrap();
            ask(&mut first, b"before");
            filter::deny(&[libc::SYS_accept4], errno, Threads::All).unwrap();
            let _second = StdTcpStream::connect(address).unwrap();
            let (began, spent) = (Instant::now(), cpu_time());
            while began.elapsed() < Duration::from_millis(400) {
                ask(&mut first, b"meanwhile");
                std::thread::sleep(Duration::from_millis(10));
            }
            let (spent, window) = (cpu_time() - spent, began.elapsed());
            assert!(spent < window / 2, "{spent:?} of CPU in {window:?}: it spins");
            stopper.stop();
            let counters = serving.join().unwrap();
            assert_eq!(counters.accepted, 1);
            // 10 ms, doubled each time up to a second.
            let most = 2 + (window.as_millis() / 10).ilog2() as u64;
            assert!((1..=most).contains(&counters.refused), "{counters:?} in {window:?}");
        });
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "errno {errno}: {text}");
    }
}

fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to a local structure.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The kernel has no buffers for a socket: the call says so, once, and nothing else ends.
#[test]
fn sends_and_receives_without_buffers_return_the_error() {
    alone("sends_and_receives_without_buffers_return_the_error", || {
        let _watchdog = Watchdog::new();
        let runtime = Runtime::builder().engine(Kind::Epoll).build().unwrap();
        runtime.run(|| {
            let (mut a, mut b) = UnixStream::pair().unwrap();
            a.write_all(b"in the socket").unwrap();
            let ticks = Rc::new(Cell::new(0));
            let count = Rc::clone(&ticks);
            let ticker = kapok::spawn_local(move || {
                while kapok::sleep(Duration::from_millis(1)).is_ok() {
                    count.set(count.get() + 1);
                }
            });
            let sends = [libc::SYS_sendto, libc::SYS_sendmsg];
            filter::deny(&sends, libc::ENOBUFS, Threads::All).unwrap();
            let receives = [libc::SYS_recvfrom, libc::SYS_recvmsg];
            filter::deny(&receives, libc::ENOMEM, Threads::All).unwrap();
            for _ in 0..10 {
                let error = a.write(b"more").unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS));
                let error = b.read(&mut [0; 64]).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
            }
            wait_until(|| ticks.get() > 10);
            ticker.cancel();
            ticker.join().unwrap();
        });
    });
}

/// In a network namespace whose port range is tiny.
#[test]
fn a_connect_without_a_free_port_names_the_address() {
    alone("a_connect_without_a_free_port_names_the_address", || {
        if let Err(error) = enter_network_with_ports("40000 40003") {
            eprintln!("SKIPPED: no network namespace of our own: {error}");
            return;
        }
        run(|| {
            let listener = TcpListener::bind("127.0.0.1:7").unwrap();
            let address = listener.local_addr().unwrap();
            let mut streams = Vec::new();
            let error = loop {
                match TcpStream::connect(address) {
                    Ok(stream) => streams.push(stream),
                    Err(error) => break error,
                }
                assert!(streams.len() <= 4, "more connections than ports");
            };
            assert_eq!(error.kind(), ErrorKind::AddrNotAvailable, "{error}");
            assert!(error.to_string().contains("127.0.0.1:7"), "{error}");
            assert!(error.to_string().contains("ip_local_port_range"), "{error}");
            // One that is closed by its peer's side first makes room.
            let (accepted, _) = listener.accept().unwrap();
            drop(accepted);
            drop(streams.remove(0));
            TcpStream::connect(address).unwrap();
        });
    });
}

/// Moves the calling thread to a network namespace with a loopback device and these local ports.
fn enter_network_with_ports(range: &str) -> io::Result<()> {
    // An ordinary user needs a user namespace around it.
    // SAFETY: calls without pointers.
    let entered = unsafe {
        libc::unshare(libc::CLONE_NEWNET) == 0
            || libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) == 0
    };
    if !entered {
        return Err(io::Error::last_os_error());
    }
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    // SAFETY: integers and bytes, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
    // SAFETY: reads a request that outlives the call.
    if unsafe { libc::ioctl(fd, libc::SIOCSIFFLAGS, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", range)?;
    std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")
}
