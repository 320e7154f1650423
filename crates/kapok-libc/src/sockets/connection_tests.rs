//! Connections that are held back, however they came to be.

use std::ffi::c_int;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use libc::pollfd;

use super::{connected as connected_until, give_back, wait_for_connection};
use crate::call::Call;
use crate::wait::{Descriptor, Stopped};

/// Longer than anything takes that works.
const LIMIT: Duration = Duration::from_secs(10);

/// Numbers of descriptors are the process's, and are looked at.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    crate::install();
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn on_fiber<T: 'static>(main: impl FnOnce() -> T + 'static) -> T {
    kapok::Runtime::builder().threads(1).build().unwrap().run(main)
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// A client, and the connection that was accepted for it.
fn connected(listener: &TcpListener) -> (TcpStream, RawFd) {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    (client, listener.accept().unwrap().0.into_raw_fd())
}

/// Accepts a connection as an operation does that nobody waits for any more. Its client.
fn held_back(listener: &TcpListener) -> TcpStream {
    let (client, connection) = connected(listener);
    give_back(Descriptor::new(listener.as_raw_fd()), connection);
    client
}

fn limit_accepts(listener: &TcpListener, limit: Duration) {
    let time = libc::timeval {
        tv_sec: limit.as_secs() as libc::time_t,
        tv_usec: limit.subsec_micros() as libc::suseconds_t,
    };
    let (at, len) = ((&raw const time).cast(), size_of_val(&time) as libc::socklen_t);
    // SAFETY: reads a local.
    let set = unsafe {
        libc::setsockopt(listener.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, at, len)
    };
    assert_eq!(set, 0);
}

/// Runs `child` in the child of a fork, and gives what it makes of it.
fn fork(child: impl FnOnce() -> c_int) -> libc::pid_t {
    // SAFETY: the child does what may be done there, and ends.
    match unsafe { libc::fork() } {
        // SAFETY: as above.
        0 => unsafe {
            libc::alarm(LIMIT.as_secs() as u32 * 2);
            libc::_exit(child())
        },
        child => child,
    }
}

#[track_caller]
fn join(child: libc::pid_t) {
    let mut status = 0;
    // SAFETY: a child of ours; writes to a local.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, 0));
}

/// Accepts a connection and says something over it, or says that there is none.
fn serve(listener: &TcpListener, word: &[u8]) -> bool {
    listener.accept().and_then(|(mut connection, _)| connection.write_all(word)).is_ok()
}

fn hear(mut client: &TcpStream) -> Vec<u8> {
    let mut word = Vec::new();
    client.read_to_end(&mut word).unwrap();
    word
}

/// A limit that a fiber has come too late for.
fn past() -> Option<Instant> {
    Some(Instant::now() - Duration::from_millis(5))
}

#[test]
fn who_comes_too_late_for_a_limit_takes_a_connection_that_waits() {
    let _alone = alone();
    on_fiber(|| {
        let listener = listener();
        for _ in 0..20 {
            let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            assert!(crate::patience::seen(listener.as_raw_fd(), libc::POLLIN) != 0);
            let descriptor = Descriptor::new(listener.as_raw_fd());
            let accept = |call: &Call| wait_for_connection(call, descriptor, past());
            let (connection, _) = Call::of_interface(accept).unwrap().unwrap();
            // SAFETY: nobody else has the number.
            drop(unsafe { OwnedFd::from_raw_fd(connection) });
        }
    });
}

#[test]
fn a_connect_that_is_said_to_be_under_way_has_begun() {
    let _alone = alone();
    on_fiber(|| {
        let listener = listener();
        limit_accepts(&listener, LIMIT);
        let SocketAddr::V4(there) = listener.local_addr().unwrap() else { unreachable!() };
        // SAFETY: integers, for which zero is a value.
        let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        address.sin_family = libc::AF_INET as libc::sa_family_t;
        address.sin_port = there.port().to_be();
        address.sin_addr.s_addr = u32::from_ne_bytes(there.ip().octets());
        for _ in 0..20 {
            // SAFETY: makes a socket, which nobody else has.
            let socket =
                unsafe { OwnedFd::from_raw_fd(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0)) };
            let connect = |call: &Call| {
                let (at, len) = ((&raw const address).cast(), size_of_val(&address));
                let descriptor = Descriptor::new(socket.as_raw_fd());
                // SAFETY: a local.
                Ok(unsafe { connected_until(call, descriptor, (at, len as u32), past()) })
            };
            let landed = Call::of_interface(connect).unwrap().unwrap();
            assert!(matches!(landed, Ok(0) | Err(Stopped::TimedOut)), "{landed:?}");
            listener.accept().unwrap();
        }
    });
}

#[test]
fn the_child_of_a_fork_may_have_it_and_then_its_parent_has_not() {
    let _alone = alone();
    on_fiber(|| {
        let listener = listener();
        let client = held_back(&listener);
        limit_accepts(&listener, Duration::from_millis(50));
        join(fork(|| c_int::from(!serve(&listener, b"child"))));
        assert!(!serve(&listener, b"parent"), "both have it");
        assert_eq!(hear(&client), b"child");
    });
}

#[test]
fn the_parent_may_have_it_and_then_the_child_of_a_fork_has_not() {
    let _alone = alone();
    on_fiber(|| {
        let listener = listener();
        let client = held_back(&listener);
        limit_accepts(&listener, Duration::from_millis(50));
        let (mut here, mut there) = std::os::unix::net::UnixStream::pair().unwrap();
        let child = fork(|| {
            // SAFETY: numbers of ours: what the parent closes is closed then.
            unsafe { libc::close(client.as_raw_fd()) };
            let _ = there.read(&mut [0]);
            let none = !serve(&listener, b"child");
            let _ = there.write(&[1]);
            let _ = there.read(&mut [0]);
            c_int::from(!none)
        });
        assert!(serve(&listener, b"parent"));
        here.write_all(&[1]).unwrap();
        here.read_exact(&mut [0]).unwrap();
        // Ended, although there is another process that had it.
        assert_eq!(hear(&client), b"parent");
        here.write_all(&[1]).unwrap();
        join(child);
    });
}

#[test]
fn a_child_looks_for_it_even_if_another_thread_did_as_its_parent_forked() {
    let _alone = alone();
    on_fiber(|| {
        let listener = listener();
        let _client = held_back(&listener);
        let fd = listener.as_raw_fd();
        let stop = Arc::new(AtomicUsize::new(0));
        let stops = Arc::clone(&stop);
        let looker = thread::spawn(move || {
            while stops.load(Ordering::Relaxed) == 0 {
                assert!(super::returned::has_returned(fd));
            }
        });
        for _ in 0..30 {
            join(fork(|| c_int::from(!super::returned::has_returned(fd))));
        }
        stop.store(1, Ordering::Relaxed);
        looker.join().unwrap();
    });
}

#[test]
fn plain_threads_have_it_too() {
    let _alone = alone();
    on_fiber(|| {
        let listener = Arc::new(listener());
        let client = held_back(&listener);
        limit_accepts(&listener, Duration::from_millis(900));
        thread::spawn(move || {
            let fd = listener.as_raw_fd();
            let mut one = pollfd { fd, events: libc::POLLIN, revents: 0 };
            // SAFETY: a local.
            assert_eq!(unsafe { libc::poll(&raw mut one, 1, 2000) }, 1);
            assert_eq!(one.revents, libc::POLLIN);
            // SAFETY: integers, for which zero is a value; a set that is there.
            unsafe {
                let mut set: libc::fd_set = std::mem::zeroed();
                libc::FD_SET(fd, &raw mut set);
                let mut time = libc::timeval { tv_sec: 2, tv_usec: 0 };
                let (set, none, time) = (&raw mut set, null_mut(), &raw mut time);
                assert_eq!(libc::select(fd + 1, set, none, none, time), 1);
                assert!(libc::FD_ISSET(fd, set));
            }
            let epoll = Epoll::of(fd, libc::EPOLLIN);
            assert_eq!(epoll.wait(2000), Some((libc::EPOLLIN as u32, fd as u64)));
            assert!(serve(&listener, b"thread"));
            assert_eq!(epoll.wait(0), None);
        })
        .join()
        .unwrap();
        assert_eq!(hear(&client), b"thread");
    });
}

#[test]
fn who_accepts_without_waiting_has_it() {
    let _alone = alone();
    on_fiber(|| {
        let listener = listener();
        let client = held_back(&listener);
        listener.set_nonblocking(true).unwrap();
        assert!(serve(&listener, b"at once"));
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(hear(&client), b"at once");
    });
}

#[test]
fn it_is_closed_with_its_listener() {
    let _alone = alone();
    on_fiber(|| {
        let listener = listener();
        let client = held_back(&listener);
        drop(listener);
        assert_eq!(hear(&client), b"");
    });
}

#[test]
fn it_is_that_of_all_who_have_the_listener() {
    let _alone = alone();
    on_fiber(|| {
        let listener = listener();
        let client = held_back(&listener);
        assert!(serve(&listener.try_clone().unwrap(), b"by another number"));
        assert_eq!(hear(&client), b"by another number");
    });
}

struct Epoll(RawFd);

impl Epoll {
    fn of(fd: RawFd, events: c_int) -> Epoll {
        // SAFETY: reads a local.
        unsafe {
            let epoll = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            let mut event = libc::epoll_event { events: events as u32, u64: fd as u64 };
            assert_eq!(libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event), 0);
            Epoll(epoll)
        }
    }

    fn wait(&self, milliseconds: c_int) -> Option<(u32, u64)> {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: room for one.
        let count = unsafe { libc::epoll_wait(self.0, &raw mut event, 1, milliseconds) };
        assert!(count >= 0);
        (count == 1).then_some((event.events, event.u64))
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        // SAFETY: a number of ours.
        unsafe { libc::close(self.0) };
    }
}

#[test]
fn who_waits_at_an_epoll_instance_is_told() {
    let _alone = alone();
    on_fiber(|| {
        let listener = listener();
        let fd = listener.as_raw_fd();
        for flags in [0, libc::EPOLLET, libc::EPOLLONESHOT] {
            // Nothing is left for the kernel to announce.
            let (client, connection) = connected(&listener);
            let epoll = Epoll::of(fd, libc::EPOLLIN | libc::EPOLLRDHUP | flags);
            let there = Descriptor::new(fd);
            let giver = thread::spawn(move || {
                thread::sleep(Duration::from_millis(30));
                give_back(there, connection);
            });
            assert_eq!(epoll.wait(5000), Some((libc::EPOLLIN as u32, fd as u64)), "{flags:x}");
            giver.join().unwrap();
            if flags == libc::EPOLLONESHOT {
                assert_eq!(epoll.wait(0), None);
            }
            assert!(serve(&listener, b"told"));
            assert_eq!(hear(&client), b"told");
            assert_eq!(epoll.wait(0), None, "{flags:x}");
        }
    });
}

#[test]
fn what_comes_back_as_a_wait_begins_is_not_missed() {
    let _alone = alone();
    on_fiber(|| {
        const ROUNDS: usize = 1500;
        let listener = Arc::new(listener());
        let other = std::os::unix::net::UnixStream::pair().unwrap();
        let round = Arc::new(AtomicUsize::new(0));
        let giver = {
            let (listener, round) = (Arc::clone(&listener), Arc::clone(&round));
            thread::spawn(move || {
                let listener_at = Descriptor::new(listener.as_raw_fd());
                for next in 1..=ROUNDS {
                    // Nobody waits for it here: any descriptor does.
                    let (one, _) = std::os::unix::net::UnixStream::pair().unwrap();
                    while round.load(Ordering::Acquire) < next {
                        thread::yield_now();
                    }
                    let begin = Instant::now();
                    while begin.elapsed() < Duration::from_nanos((next % 100) as u64 * 400) {}
                    give_back(listener_at, one.into_raw_fd());
                }
            })
        };
        for next in 1..=ROUNDS {
            let fds = [listener.as_raw_fd(), other.0.as_raw_fd()];
            let mut both = fds.map(|fd| pollfd { fd, events: libc::POLLIN, revents: 0 });
            round.store(next, Ordering::Release);
            let by_accept = next % 3 == 0;
            if !by_accept {
                let count = if next % 3 == 1 { 1 } else { 2 };
                let begun = Instant::now();
                // SAFETY: as many as are told.
                let ready = unsafe { libc::poll(both.as_mut_ptr(), count, 3000) };
                assert_eq!(ready, 1, "round {next}");
                // At its end it looks once more.
                assert!(begun.elapsed() < Duration::from_millis(2900), "missed in round {next}");
            }
            limit_accepts(&listener, Duration::from_millis(900));
            // SAFETY: no address is asked for.
            let fd = unsafe { libc::accept(listener.as_raw_fd(), null_mut(), null_mut()) };
            assert!(fd >= 0, "round {next}");
            // SAFETY: a number that is ours alone.
            drop(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) });
        }
        giver.join().unwrap();
    });
}

#[test]
fn listeners_have_theirs_beside_each_other() {
    let _alone = alone();
    on_fiber(|| {
        let listeners = [listener(), listener(), listener()];
        let clients: Vec<_> = listeners.iter().map(held_back).collect();
        for (listener, client) in listeners.iter().zip(&clients) {
            assert!(serve(listener, b"its own"));
            assert_eq!(hear(client), b"its own");
        }
    });
}

#[test]
fn who_waits_by_another_number_is_told() {
    let _alone = alone();
    on_fiber(|| {
        let listener = listener();
        let other = listener.try_clone().unwrap();
        for polls in [false, true] {
            let (client, connection) = connected(&listener);
            let there = Descriptor::new(listener.as_raw_fd());
            let giver = thread::spawn(move || {
                thread::sleep(Duration::from_millis(30));
                give_back(there, connection);
            });
            limit_accepts(&listener, Duration::from_secs(5));
            let begun = Instant::now();
            if polls {
                let mut one = pollfd { fd: other.as_raw_fd(), events: libc::POLLIN, revents: 0 };
                // SAFETY: a local.
                assert_eq!(unsafe { libc::poll(&raw mut one, 1, 5000) }, 1);
                assert!(begun.elapsed() < Duration::from_secs(4), "it was not told");
            }
            assert!(serve(&other, b"told"));
            assert!(begun.elapsed() < Duration::from_secs(4), "it was not told");
            assert_eq!(hear(&client), b"told");
            giver.join().unwrap();
        }
    });
}

#[test]
fn who_has_the_number_of_a_closed_listener_hears_nothing() {
    let _alone = alone();
    on_fiber(|| {
        let listener = listener();
        let (client, connection) = connected(&listener);
        let there = Descriptor::new(listener.as_raw_fd());
        drop(listener);
        let before = crate::wait::looks();
        give_back(there, connection);
        assert_eq!(crate::wait::looks(), before);
        assert_eq!(hear(&client), b"");
    });
}

#[test]
fn it_stays_where_there_is_no_number_for_it() {
    let _alone = alone();
    on_fiber(|| {
        let listener = listener();
        let client = held_back(&listener);
        let fd = listener.as_raw_fd();
        limit_accepts(&listener, Duration::from_secs(5));
        let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        let taken = {
            // SAFETY: locals; the limit is put back.
            unsafe {
                assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut before), 0);
                // Those of the standard streams.
                let none = libc::rlimit { rlim_cur: 3, ..before };
                assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none), 0);
            }
            let taken = super::returned::take(fd);
            // SAFETY: as above.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const before) }, 0);
            taken
        };
        assert_eq!(taken, None);
        assert!(serve(&listener, b"still there"));
        assert_eq!(hear(&client), b"still there");
    });
}

#[test]
fn a_loop_sleeps_while_nobody_takes_it() {
    let _alone = alone();
    let loops = kapok::Runtime::builder().engine(kapok::Kind::Epoll).threads(1).build().unwrap();
    loops.run(|| {
        let listener = listener();
        limit_accepts(&listener, Duration::from_millis(10));
        // The engine has it from now on.
        assert!(listener.accept().is_err());
        let _client = held_back(&listener);
        let used = || {
            let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: writes to a local.
            unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
            Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
        };
        let before = used();
        kapok::time::sleep(Duration::from_millis(500)).unwrap();
        assert!(used() - before < Duration::from_millis(200), "it has not slept");
    });
}
