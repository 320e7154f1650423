//! Children, and waiting for them on fibers.

#![cfg(target_os = "linux")]

mod engines;

use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

unsafe extern "C" {
    fn vfork() -> libc::pid_t;
}

/// Those that wait for any child must not take another test's.
static ALONE: Mutex<()> = Mutex::new(());

/// How often it is tried: a thread that is blocked is so each time, and a machine with much to do lets it
/// go on too late once.
const ROUNDS: usize = 3;

/// Runs `main` on the engines, beside a fiber that shows that the thread was not blocked.
fn on_fibers(main: impl Fn() + Clone + 'static) {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    kapok_libc::install();
    for (kind, builder) in engines::there() {
        let runtime = builder.build().unwrap();
        let main = main.clone();
        runtime.run(move || {
            let ticks = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&ticks);
            let ticker = kapok::spawn_local(move || {
                while kapok::sleep(Duration::from_millis(1)).is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            });
            let ticked = (0..ROUNDS).any(|_| {
                ticks.store(0, Ordering::Relaxed);
                main();
                ticks.load(Ordering::Relaxed) >= 10
            });
            assert!(ticked, "{kind}: the thread was blocked");
            ticker.cancel();
            ticker.join().unwrap();
        });
    }
}

/// A child that ends with `status` after a while.
fn child(status: i32) -> libc::pid_t {
    // SAFETY: the child makes system calls only.
    match unsafe { libc::fork() } {
        0 => {
            let time = libc::timespec { tv_sec: 0, tv_nsec: 80_000_000 };
            // SAFETY: reads a local, and ends the child.
            unsafe {
                libc::syscall(libc::SYS_nanosleep, &raw const time, 0);
                libc::_exit(status)
            }
        }
        child => child,
    }
}

#[test]
fn a_child_of_std_is_waited_for() {
    on_fibers(|| {
        let begin = Command::new("sh").args(["-c", "sleep 0.1; exit 3"]).spawn();
        let mut child = begin.unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(3));
        let output = Command::new("sh").args(["-c", "sleep 0.05; echo $((6 * 7))"]).output();
        assert_eq!(output.unwrap().stdout, b"42\n");
    });
}

#[test]
fn all_ways_to_wait_for_a_child() {
    on_fibers(|| {
        let mut status = 0;
        let status_of = |status| (libc::WIFEXITED(status), libc::WEXITSTATUS(status));
        // SAFETY: children of ours; locals.
        unsafe {
            let one = child(1);
            assert_eq!(libc::waitpid(one, &raw mut status, libc::WNOHANG), 0);
            assert_eq!(libc::waitpid(one, &raw mut status, 0), one);
            assert_eq!(status_of(status), (true, 1));

            let any = child(2);
            assert_eq!(libc::wait(&raw mut status), any);
            assert_eq!(status_of(status), (true, 2));

            let used = child(3);
            let mut usage: libc::rusage = std::mem::zeroed();
            assert_eq!(libc::wait4(used, &raw mut status, 0, &raw mut usage), used);
            assert_eq!(status_of(status), (true, 3));

            let named = child(4);
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let at = &raw mut info;
            assert_eq!(libc::waitid(libc::P_PID, named as u32, at, libc::WEXITED), 0);
            assert_eq!((info.si_pid(), info.si_status()), (named, 4));

            let stopped = child(5);
            libc::kill(stopped, libc::SIGSTOP);
            assert_eq!(libc::waitpid(stopped, &raw mut status, libc::WUNTRACED), stopped);
            assert!(libc::WIFSTOPPED(status));
            libc::kill(stopped, libc::SIGCONT);
            assert_eq!(libc::waitpid(stopped, &raw mut status, 0), stopped);
            assert_eq!(status_of(status), (true, 5));

            assert_eq!(libc::waitpid(-1, &raw mut status, 0), -1);
            assert_eq!(*libc::__errno_location(), libc::ECHILD);
        }
    });
}

#[test]
fn fibers_wait_for_a_child_each() {
    on_fibers(|| {
        let fibers: Vec<_> = (0..20)
            .map(|number| {
                kapok::spawn_local(move || {
                    let child = child(number);
                    let mut status = 0;
                    // SAFETY: a child of ours; a local.
                    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
                    assert_eq!(libc::WEXITSTATUS(status), number);
                })
            })
            .collect();
        for fiber in fibers {
            fiber.join().unwrap();
        }
    });
}

/// Calls vfork and then what uses the stack, on the fiber.
#[inline(never)]
fn by_vfork(executes: bool) -> i32 {
    let program =
        [c"sh".as_ptr(), c"-c".as_ptr(), c"sleep 0.08; exit 6".as_ptr(), std::ptr::null()];
    // SAFETY: the child calls nothing but exec and _exit, and a pipe's write.
    let child = unsafe { vfork() };
    if child == 0 {
        // SAFETY: as above.
        unsafe {
            if executes {
                libc::execv(c"/bin/sh".as_ptr(), program.as_ptr());
            }
            libc::_exit(7);
        }
    }
    assert!(child > 0);
    let mut status = 0;
    // SAFETY: a child of ours; a local.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    libc::WEXITSTATUS(status)
}

#[test]
fn vfork_returns_twice() {
    on_fibers(|| {
        assert_eq!(by_vfork(true), 6);
        assert_eq!(by_vfork(false), 7);
        kapok::sleep(Duration::from_millis(15)).unwrap();
    });
    // And on a plain thread, where it is the C library's.
    assert_eq!(std::thread::spawn(|| by_vfork(false)).join().unwrap(), 7);
}
