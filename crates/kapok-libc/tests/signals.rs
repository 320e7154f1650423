//! Signals: masks of fibers, waiting for signals, and whom a handler interrupts.
//!
//! Each test runs in a process of its own, since signals are a process's.

#![cfg(target_os = "linux")]

mod isolated;

use std::ffi::c_int;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use isolated::{
    HANDLED, SOON, change, errno, is_blocked, isolated, register, send, send_after, send_anyway,
    set,
};

#[test]
fn a_mask_is_the_fibers() {
    isolated("a_mask_is_the_fibers", || {
        let fibers: Vec<_> = [libc::SIGUSR1, libc::SIGUSR2]
            .into_iter()
            .map(|signal| {
                kapok::spawn_local(move || {
                    let other = libc::SIGUSR1 + libc::SIGUSR2 - signal;
                    assert!(!is_blocked(signal));
                    change(libc::SIG_BLOCK, &[signal]);
                    for _ in 0..5 {
                        let time = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
                        wait_in_a_hook(&time);
                        assert!(is_blocked(signal));
                        assert!(!is_blocked(other));
                    }
                })
            })
            .collect();
        for fiber in fibers {
            fiber.join().unwrap();
        }
        assert!(!is_blocked(libc::SIGUSR1));
        let fresh = kapok::spawn_local(|| is_blocked(libc::SIGUSR1) || is_blocked(libc::SIGUSR2));
        assert!(!fresh.join().unwrap());
    });
}

/// A hooked call that suspends for a while.
fn wait_in_a_hook(time: &libc::timespec) {
    let word = 0_u32;
    // SAFETY: locals.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            &raw const word,
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            0,
            time,
        );
    }
}

#[test]
fn what_the_main_fiber_blocks_stays_blocked_while_it_waits() {
    isolated("what_the_main_fiber_blocks_stays_blocked_while_it_waits", || {
        register(libc::SIGUSR1, 0);
        HANDLED.store(0, Ordering::SeqCst);
        change(libc::SIG_BLOCK, &[libc::SIGUSR1]);
        let sender = send(libc::SIGUSR1, Duration::ZERO);
        wait_in_a_hook(&libc::timespec { tv_sec: 0, tv_nsec: 50_000_000 });
        sender.join().unwrap();
        assert_eq!(HANDLED.load(Ordering::SeqCst), 0);
        change(libc::SIG_UNBLOCK, &[libc::SIGUSR1]);
        assert_eq!(HANDLED.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn signals_are_taken_by_the_fiber_that_waits_for_them() {
    isolated("signals_are_taken_by_the_fiber_that_waits_for_them", || {
        let wanted = set(&[libc::SIGUSR1, libc::SIGUSR2]);
        change(libc::SIG_BLOCK, &[libc::SIGUSR1, libc::SIGUSR2]);
        let ticks = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&ticks);
        let ticker = kapok::spawn_local(move || {
            while kapok::sleep(Duration::from_millis(1)).is_ok() {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        // Sent once another fiber of the thread has run in the meantime, or has had long enough.
        let send_after_ticks = |signal| {
            let ticks = Arc::clone(&ticks);
            let (begun, begin) = (ticks.load(Ordering::Relaxed), Instant::now());
            send_after(signal, move || {
                while ticks.load(Ordering::Relaxed) < begun + 10 {
                    assert!(begin.elapsed() < Duration::from_secs(10), "the thread was blocked");
                    std::thread::sleep(Duration::from_millis(1));
                }
            })
        };
        for signal in [libc::SIGUSR1, libc::SIGUSR2] {
            let sender = send_after_ticks(signal);
            let mut taken = 0;
            // SAFETY: locals.
            assert_eq!(unsafe { libc::sigwait(&raw const wanted, &raw mut taken) }, 0);
            assert_eq!(taken, signal);
            sender.join().unwrap();
        }
        // SAFETY: as above.
        unsafe {
            let sender = send_after_ticks(libc::SIGUSR1);
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let taken = libc::sigwaitinfo(&raw const wanted, &raw mut info);
            assert_eq!((taken, info.si_signo), (libc::SIGUSR1, libc::SIGUSR1));
            sender.join().unwrap();
            let limit = libc::timespec { tv_sec: 0, tv_nsec: 20_000_000 };
            let begin = Instant::now();
            let null = std::ptr::null_mut();
            assert_eq!(libc::sigtimedwait(&raw const wanted, null, &raw const limit), -1);
            assert_eq!(errno(), libc::EAGAIN);
            assert!(begin.elapsed() >= Duration::from_millis(20));
            let invalid = libc::timespec { tv_sec: 0, tv_nsec: -1 };
            assert_eq!(libc::sigtimedwait(&raw const wanted, null, &raw const invalid), -1);
            assert_eq!(errno(), libc::EINVAL);
        }
        ticker.cancel();
        ticker.join().unwrap();
        change(libc::SIG_UNBLOCK, &[libc::SIGUSR1, libc::SIGUSR2]);
    });
}

unsafe extern "C" {
    fn __sigsuspend(blocked: *const libc::sigset_t) -> c_int;
}

#[test]
fn a_handler_ends_pause_and_sigsuspend() {
    isolated("a_handler_ends_pause_and_sigsuspend", || {
        for flags in [0, libc::SA_RESTART, libc::SA_SIGINFO] {
            register(libc::SIGUSR1, flags);
            HANDLED.store(0, Ordering::SeqCst);
            let sender = send(libc::SIGUSR1, SOON);
            // SAFETY: no conditions.
            assert_eq!(unsafe { libc::pause() }, -1);
            assert_eq!(errno(), libc::EINTR);
            assert_eq!(HANDLED.load(Ordering::SeqCst), 1);
            sender.join().unwrap();

            // Pending while it is blocked, and let in by the call alone.
            change(libc::SIG_BLOCK, &[libc::SIGUSR1]);
            send_anyway(libc::SIGUSR1, Duration::ZERO).join().unwrap();
            assert_eq!(HANDLED.load(Ordering::SeqCst), 1);
            let none = set(&[]);
            // SAFETY: a local.
            assert_eq!(unsafe { libc::sigsuspend(&raw const none) }, -1);
            assert_eq!(errno(), libc::EINTR);
            assert_eq!(HANDLED.load(Ordering::SeqCst), 2);
            assert!(is_blocked(libc::SIGUSR1));
            // And by the C library's own name, beside a fiber that shows that the thread is not blocked.
            let over = Arc::new(AtomicBool::new(false));
            let seen = Arc::clone(&over);
            let sender = send_after(libc::SIGUSR1, move || {
                while !seen.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let beside = kapok::spawn_local(move || {
                let slept = kapok::sleep(Duration::from_millis(1)).is_ok();
                over.store(true, Ordering::SeqCst);
                slept
            });
            // SAFETY: a local.
            assert_eq!(unsafe { __sigsuspend(&raw const none) }, -1);
            assert_eq!(errno(), libc::EINTR);
            assert_eq!(HANDLED.load(Ordering::SeqCst), 3);
            assert!(is_blocked(libc::SIGUSR1) && beside.is_finished());
            assert!(beside.join().unwrap());
            sender.join().unwrap();
            change(libc::SIG_UNBLOCK, &[libc::SIGUSR1]);
        }
    });
}

#[test]
fn the_main_fiber_is_interrupted_first_and_then_who_lets_the_signal() {
    isolated("the_main_fiber_is_interrupted_first_and_then_who_lets_the_signal", || {
        register(libc::SIGUSR1, 0);
        // Masks known: that of the main fiber lets everything.
        change(libc::SIG_UNBLOCK, &[libc::SIGUSR1]);
        let semaphore = Box::leak(Box::new(unsafe_semaphore()));
        let at = std::ptr::from_mut(semaphore).expose_provenance();
        let wait = move || {
            // SAFETY: initialised, and never freed.
            let res = unsafe { libc::sem_wait(std::ptr::with_exposed_provenance_mut(at)) };
            (res, errno())
        };
        let blocks = kapok::spawn_local(move || {
            change(libc::SIG_BLOCK, &[libc::SIGUSR1]);
            wait()
        });
        let lets = kapok::spawn_local(move || {
            change(libc::SIG_UNBLOCK, &[libc::SIGUSR1]);
            wait()
        });
        kapok::sleep(Duration::from_millis(5)).unwrap();
        let sender = send(libc::SIGUSR1, SOON);
        assert_eq!(wait(), (-1, libc::EINTR), "the main fiber");
        sender.join().unwrap();
        assert!(!lets.is_finished() && !blocks.is_finished());
        // The main fiber does not wait in a hooked call now, nor does it run.
        let sender = send(libc::SIGUSR1, SOON);
        kapok::blocking(move || sender.join().unwrap()).unwrap();
        let begin = Instant::now();
        while !lets.is_finished() && begin.elapsed() < Duration::from_secs(20) {
            kapok::sleep(Duration::from_millis(1)).unwrap();
        }
        assert_eq!(lets.join().unwrap(), (-1, libc::EINTR));
        assert!(!blocks.is_finished());
        // SAFETY: as above.
        unsafe { libc::sem_post(std::ptr::with_exposed_provenance_mut(at)) };
        assert_eq!(blocks.join().unwrap().0, 0);
    });
}

fn unsafe_semaphore() -> libc::sem_t {
    // SAFETY: plain data; initialised here, and moved before anybody waits.
    unsafe {
        let mut semaphore: libc::sem_t = std::mem::zeroed();
        libc::sem_init(&raw mut semaphore, 0, 0);
        semaphore
    }
}

#[test]
fn a_handler_that_restarts_interrupts_no_wait_that_can_start_again() {
    isolated("a_handler_that_restarts_interrupts_no_wait_that_can_start_again", || {
        register(libc::SIGUSR1, libc::SA_RESTART);
        HANDLED.store(0, Ordering::SeqCst);
        // It ends when its input does.
        let begin = || std::process::Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let mut child = begin();
        let input = child.stdin.take();
        let sender = send(libc::SIGUSR1, SOON);
        let closer = std::thread::spawn(move || {
            while HANDLED.load(Ordering::SeqCst) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            // Who was interrupted would be told first.
            std::thread::sleep(SOON);
            drop(input);
        });
        let mut status = 0;
        // SAFETY: a child of ours; a local.
        let waited = unsafe { libc::waitpid(child.id() as i32, &raw mut status, 0) };
        assert_eq!(waited, child.id() as i32);
        assert_eq!(HANDLED.load(Ordering::SeqCst), 1);
        sender.join().unwrap();
        closer.join().unwrap();
        // Without it the same wait ends.
        register(libc::SIGUSR1, 0);
        child = begin();
        let sender = send(libc::SIGUSR1, SOON);
        // SAFETY: as above.
        let waited = unsafe { libc::waitpid(child.id() as i32, &raw mut status, 0) };
        assert_eq!((waited, errno()), (-1, libc::EINTR));
        sender.join().unwrap();
        child.wait().unwrap();
    });
}

/// Makes a call during which a handler with `SA_RESTART` runs, and gives what it returned and errno.
fn interrupted(what: &str, call: impl FnOnce() -> i64) -> (i64, c_int) {
    HANDLED.store(0, Ordering::SeqCst);
    let sender = send(libc::SIGUSR1, SOON);
    let begin = Instant::now();
    let result = call();
    let error = errno();
    assert!(begin.elapsed() < LONG, "{what} was not ended by a handler with SA_RESTART");
    sender.join().unwrap();
    assert_eq!(HANDLED.load(Ordering::SeqCst), 1, "{what}");
    (result, error)
}

/// How long the calls would wait.
const LONG: Duration = Duration::from_secs(20);

#[test]
fn a_handler_that_restarts_ends_what_never_starts_again() {
    isolated("a_handler_that_restarts_ends_what_never_starts_again", || {
        register(libc::SIGUSR1, libc::SA_RESTART);
        let ended = (-1, libc::EINTR);
        let mut fds = [0; 2];
        let limit = libc::timeval { tv_sec: LONG.as_secs() as i64, tv_usec: 0 };
        let time = libc::timespec { tv_sec: LONG.as_secs() as i64, tv_nsec: 0 };
        let milliseconds = LONG.as_millis() as c_int;
        // SAFETY: locals of the sizes that are told, for all of it.
        unsafe {
            assert_eq!(libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, fds.as_mut_ptr()), 0);
            let mut one = libc::pollfd { fd: fds[0], events: libc::POLLIN, revents: 0 };
            let poll = || i64::from(libc::poll(&raw mut one, 1, milliseconds));
            assert_eq!(interrupted("poll", poll), ended);

            let select = || {
                let mut readable: libc::fd_set = std::mem::zeroed();
                libc::FD_SET(fds[0], &raw mut readable);
                let (null, mut limit) = (std::ptr::null_mut(), limit);
                let (readable, limit) = (&raw mut readable, &raw mut limit);
                i64::from(libc::select(fds[0] + 1, readable, null, null, limit))
            };
            assert_eq!(interrupted("select", select), ended);

            let epoll = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            let mut event = libc::epoll_event { events: 0, u64: 0 };
            let wait = || i64::from(libc::epoll_wait(epoll, &raw mut event, 1, milliseconds));
            assert_eq!(interrupted("epoll_wait", wait), ended);
            libc::close(epoll);

            let mut left = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            let sleep = || i64::from(libc::nanosleep(&raw const time, &raw mut left));
            assert_eq!(interrupted("nanosleep", sleep), ended);
            assert!(left.tv_sec >= 1, "{}", left.tv_sec);

            let sleep = || i64::from(libc::sleep(LONG.as_secs() as u32));
            assert!(interrupted("sleep", sleep).0 >= 1);

            let mut at = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut at);
            at.tv_sec += time.tv_sec;
            let sleep = || {
                let (clock, null) = (libc::CLOCK_MONOTONIC, std::ptr::null_mut());
                i64::from(libc::clock_nanosleep(clock, libc::TIMER_ABSTIME, &raw const at, null))
            };
            assert_eq!(interrupted("clock_nanosleep", sleep).0, i64::from(libc::EINTR));

            // A socket with a time-out, unlike one without.
            let len = size_of_val(&limit) as libc::socklen_t;
            let option = (&raw const limit).cast();
            let set = libc::setsockopt(fds[0], libc::SOL_SOCKET, libc::SO_RCVTIMEO, option, len);
            assert_eq!(set, 0);
            let mut byte = 0_u8;
            let recv = || libc::recv(fds[0], (&raw mut byte).cast(), 1, 0) as i64;
            assert_eq!(interrupted("recv", recv), ended);
            for fd in fds {
                libc::close(fd);
            }
        }
    });
}

#[test]
fn a_wait_for_a_signal_needs_no_descriptor() {
    isolated("a_wait_for_a_signal_needs_no_descriptor", || {
        change(libc::SIG_BLOCK, &[libc::SIGUSR1]);
        // SAFETY: a local, written before it is read.
        let before = unsafe {
            let mut limit: libc::rlimit = std::mem::zeroed();
            assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
            // For poll(2), and nothing more.
            let none = libc::rlimit { rlim_cur: 1, ..limit };
            assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none), 0);
            limit
        };
        let wanted = set(&[libc::SIGUSR1]);
        // Blocked, and so it may come at any time; where the thread waits nobody could read.
        let sender = send_anyway(libc::SIGUSR1, SOON);
        let mut taken = 0;
        // SAFETY: locals.
        let error = unsafe { libc::sigwait(&raw const wanted, &raw mut taken) };
        // SAFETY: as it was.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const before) };
        assert_eq!((error, taken), (0, libc::SIGUSR1));
        sender.join().unwrap();
        change(libc::SIG_UNBLOCK, &[libc::SIGUSR1]);
    });
}
