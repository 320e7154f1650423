//! A fiber that ticks every millisecond beside each call that blocks, on one thread: it goes on.

#![allow(clippy::type_complexity, reason = "tables of calls are written where they are called")]

#[path = "../c_resolver/mod.rs"]
mod c_resolver;
mod events;
mod never;
#[allow(dead_code, reason = "other tests need more of it")]
#[path = "../one_loop/mod.rs"]
mod one_loop;
mod resolver;
mod transfers;
mod variants;
mod waits;

use std::cell::UnsafeCell;
use std::collections::BTreeSet;
use std::ffi::{CString, c_char, c_int, c_void};
use std::fs::File;
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use events::{Zeroed, children, far, held, locks, names, readiness, signalled, signals, sleeps};
use never::nothing_is_left_out;
use resolver::resolver;
use transfers::{disk, files, sockets};
use variants::{closes, openings, positional, streams, turns};
use waits::{barriers, joins, limits, once};

/// How long each call blocks at least.
const BLOCKED: Duration = Duration::from_millis(60);

/// The largest gap between two ticks of `sleep` while `until` is not set.
fn largest_gap(sleep: impl Fn(), until: &AtomicBool) -> Duration {
    let (mut last, mut largest) = (Instant::now(), Duration::ZERO);
    while !until.load(Ordering::Acquire) {
        sleep();
        let now = Instant::now();
        largest = largest.max(now - last);
        last = now;
    }
    largest
}

/// Beside which the ticker stopped for too long, in this part.
static LATE: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());

/// How often a part is called at most in which the ticker was late: who blocks the thread does so each time,
/// and a machine with much to do is late beside one call or the other.
const ROUNDS: usize = 8;

/// The hooked functions that have suspended a fiber beside the ticker.
static SHOWN: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());

/// The names of all calls that were made beside it.
static CALLED: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());

/// How often each hooked function has suspended a fiber.
fn suspensions() -> impl Iterator<Item = (&'static str, u64)> {
    kapok_libc::hooks().map(|hook| (hook.name(), hook.counts().suspended))
}

/// How many calls [`beside_a_ticker`] has begun.
static BEGUN: AtomicU32 = AtomicU32::new(0);

/// Waits, on another thread than who calls this, until the next call has begun and has blocked for long
/// enough.
fn next_has_blocked() -> impl FnOnce() + Send + 'static {
    let begun = BEGUN.load(Ordering::SeqCst);
    move || {
        while BEGUN.load(Ordering::SeqCst) == begun {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(BLOCKED + Duration::from_millis(10));
    }
}

/// Calls `blocks` on a fiber with a ticker beside it, and notes it if the thread was blocked.
fn beside_a_ticker(name: &'static str, blocks: impl FnOnce() + 'static) {
    let tick = Duration::from_millis(1);
    let over = Arc::new(AtomicBool::new(false));
    // What a thread of its own gets on this machine, at this moment.
    let seen = Arc::clone(&over);
    let bare = std::thread::spawn(move || largest_gap(|| std::thread::sleep(tick), &seen));
    let seen = Arc::clone(&over);
    let ticker = kapok::spawn_local(move || largest_gap(|| kapok::sleep(tick).unwrap(), &seen));
    kapok::yield_now();
    let before: Vec<_> = suspensions().collect();
    let began = Instant::now();
    BEGUN.fetch_add(1, Ordering::SeqCst);
    let caller = kapok::spawn_local(blocks);
    caller.join().unwrap();
    let took = began.elapsed();
    let after = suspensions().zip(before).filter(|((_, after), (_, before))| after > before);
    SHOWN.lock().unwrap().extend(after.map(|((name, _), _)| name));
    CALLED.lock().unwrap().insert(name);
    over.store(true, Ordering::Release);
    let (gap, bare) = (ticker.join().unwrap(), bare.join().unwrap());
    println!("{name}: blocked for {took:?}, largest gap {gap:?}, of a bare thread {bare:?}");
    assert!(took >= BLOCKED, "{name} did not block: {took:?}");
    let limit = Duration::from_millis(20).max(bare * 3);
    if gap >= limit || gap >= BLOCKED.max(bare * 3) {
        println!("{name}: too late");
        LATE.lock().unwrap().insert(name);
    }
}

/// Does `f` from another thread once the next call has blocked for long enough.
fn later(f: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let has_blocked = next_has_blocked();
    std::thread::spawn(move || {
        has_blocked();
        f();
    })
}

/// Calls `blocks` as [`beside_a_ticker`] does, and does `ends` from another thread, again and again until
/// the call is over: what comes before the call waits is lost.
fn until_over(
    name: &'static str,
    ends: impl Fn() + Send + 'static,
    blocks: impl FnOnce() + 'static,
) {
    let over = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&over);
    let ending = later(move || {
        while !seen.load(Ordering::SeqCst) {
            ends();
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    beside_a_ticker(name, move || {
        blocks();
        over.store(true, Ordering::SeqCst);
    });
    ending.join().unwrap();
}

fn pipe() -> [RawFd; 2] {
    let mut fds = [0; 2];
    // SAFETY: room for two.
    assert_eq!(unsafe { libc::pipe(fds.as_mut_ptr()) }, 0);
    fds
}

fn write_byte(fd: RawFd) {
    // SAFETY: a byte that is there.
    assert_eq!(unsafe { libc::write(fd, b"x".as_ptr().cast(), 1) }, 1);
}

/// The same of a call that has an end of its own, and waits for a disk or a helper: again and again.
fn again_beside_a_ticker(name: &'static str, call: impl Fn() -> bool + 'static) {
    beside_a_ticker(name, move || {
        let begun = Instant::now();
        while begun.elapsed() < BLOCKED + Duration::from_millis(10) {
            assert!(call(), "{name}: {}", std::io::Error::last_os_error());
        }
    });
}

/// Of this process.
fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("kapok-ticker-{name}-{}", std::process::id()))
}

/// Runs `sends` on a socket that is full until its peer takes what there is.
fn sending(name: &'static str, sends: impl Fn(RawFd) -> isize + 'static) {
    let (one, other) = UnixStream::pair().unwrap();
    later(move || {
        std::io::copy(&mut (&other), &mut std::io::sink()).unwrap();
    });
    beside_a_ticker(name, move || assert!(sends(one.as_raw_fd()) > 0, "{name}"));
}

/// A header of a message with one part.
fn message(part: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: integers and pointers.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = part;
    message.msg_iovlen = 1;
    message
}

fn part(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

/// More than a socket has room for.
fn much() -> Vec<u8> {
    vec![0; 8 << 20]
}

/// Runs `waits` on a socket to which a byte comes later.
fn receiving(name: &'static str, waits: impl Fn(RawFd) -> isize + 'static) {
    let (one, other) = UnixStream::pair().unwrap();
    later(move || write_byte(other.into_raw_fd()));
    beside_a_ticker(name, move || assert_eq!(waits(one.as_raw_fd()), 1, "{name}"));
}

/// All calls, in parts that stand on their own.
const PARTS: &[fn()] = &[
    sockets, streams, readiness, sleeps, turns, files, openings, disk, positional, closes,
    children, locks, limits, once, barriers, joins, names, resolver, signals,
];

/// Makes the calls of a part. Beside which the ticker was late.
fn late_in(part: fn()) -> BTreeSet<&'static str> {
    one_loop::run(Duration::from_secs(200), part);
    std::mem::take(&mut *LATE.lock().unwrap())
}

#[test]
fn the_ticker_goes_on_beside_each_call() {
    let mut left: Vec<_> = PARTS.iter().map(|part| (*part, late_in(*part))).collect();
    nothing_is_left_out();
    for _ in 1..ROUNDS {
        left.retain(|(_, late)| !late.is_empty());
        for (part, late) in &mut left {
            let again = late_in(*part);
            late.retain(|name| again.contains(name));
        }
    }
    let always: BTreeSet<_> = left.iter().flat_map(|(_, late)| late).collect();
    assert!(always.is_empty(), "the ticker stopped each time beside {always:?}");
}
