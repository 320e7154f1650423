//! Tests of signals: each in a process of its own, since signals are a process's.

#![allow(dead_code, reason = "not every test needs all of it")]

use std::ffi::{c_int, c_long};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use libc::pid_t;

#[path = "../engines/mod.rs"]
mod engines;

pub(crate) const VARIABLE: &str = "KAPOK_ISOLATED_TEST";

/// Runs `test`, the one of this name, in a process of its own. `None`: this is that process.
pub(crate) fn apart(name: &str) -> Option<Output> {
    if std::env::var(VARIABLE).as_deref() == Ok(name) {
        return None;
    }
    let mut command = Command::new("timeout");
    command.arg("180").arg(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(VARIABLE, name);
    Some(command.output().unwrap())
}

/// The same, which has to succeed, with `main` on the engines.
pub(crate) fn isolated(name: &str, main: impl Fn() + Clone + 'static) {
    if let Some(output) = apart(name) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", output.status);
        return;
    }
    kapok_libc::install();
    on_engines(main);
}

pub(crate) fn on_engines(main: impl Fn() + Clone + 'static) {
    for (_, builder) in engines::there() {
        builder.build().unwrap().run(main.clone());
    }
}

/// How often [`handle`] has run since it was registered.
pub(crate) static HANDLED: AtomicUsize = AtomicUsize::new(0);

pub(crate) extern "C" fn handle(_: c_int) {
    HANDLED.fetch_add(1, Ordering::SeqCst);
}

pub(crate) fn register(signal: c_int, flags: c_int) {
    // SAFETY: plain data; a handler that may run anywhere.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
        // What is asked for is what was given, not what is between.
        let mut old: libc::sigaction = std::mem::zeroed();
        assert_eq!(libc::sigaction(signal, std::ptr::null(), &raw mut old), 0);
        assert_eq!(old.sa_sigaction, handle as *const () as usize);
        assert_eq!(old.sa_flags & libc::SA_SIGINFO, flags & libc::SA_SIGINFO);
    }
    HANDLED.store(0, Ordering::SeqCst);
}

/// A set of signals.
pub(crate) fn set(signals: &[c_int]) -> libc::sigset_t {
    // SAFETY: plain data, filled before it is read.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for &signal in signals {
            libc::sigaddset(&raw mut set, signal);
        }
        set
    }
}

/// Changes the mask of who runs.
pub(crate) fn change(how: c_int, signals: &[c_int]) {
    let set = set(signals);
    // SAFETY: a local.
    let error = unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) };
    assert_eq!(error, 0);
}

pub(crate) fn is_blocked(signal: c_int) -> bool {
    let mut now = set(&[]);
    // SAFETY: writes to a local.
    unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut now);
        libc::sigismember(&raw const now, signal) == 1
    }
}

/// Sends the calling thread a signal in a while, once the fiber that calls this has suspended. Not the
/// process, of which the harness has a thread that would handle it.
pub(crate) fn send(signal: c_int, after: Duration) -> JoinHandle<()> {
    send_after(signal, move || std::thread::sleep(after))
}

/// The same after `before`, which is done by another thread.
pub(crate) fn send_after(signal: c_int, before: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    send_from(signal, move |thread| {
        before();
        until_it_waits(thread);
    })
}

/// The same wherever the thread is by then: for a signal that is blocked, or an engine that never waits.
pub(crate) fn send_anyway(signal: c_int, after: Duration) -> JoinHandle<()> {
    send_from(signal, move |_| std::thread::sleep(after))
}

fn send_from(signal: c_int, before: impl FnOnce(pid_t) + Send + 'static) -> JoinHandle<()> {
    // SAFETY: no conditions.
    let thread = unsafe { libc::gettid() };
    std::thread::spawn(move || {
        before(thread);
        // SAFETY: a thread of this process.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal) };
    })
}

/// Waits until the loop of a thread waits in its engine, as it does only where no fiber can run. A test
/// in which it never does is ended by its limit.
fn until_it_waits(thread: pid_t) {
    let path = format!("/proc/self/task/{thread}/syscall");
    let waits = |now: &str| {
        let call = now.split(' ').next().and_then(|number| number.parse().ok());
        call.is_some_and(|call| WAITS_OF_ENGINES.contains(&call))
    };
    // Of a thread that runs it tells no number.
    while !std::fs::read_to_string(&path).is_ok_and(|now| waits(&now)) {
        std::thread::sleep(Duration::from_micros(200));
    }
}

const WAITS_OF_ENGINES: &[c_long] = &[
    libc::SYS_io_uring_enter,
    libc::SYS_epoll_pwait,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
];

pub(crate) fn errno() -> c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

pub(crate) const SOON: Duration = Duration::from_millis(30);
