//! A fiber that ticks every millisecond beside each call that blocks, on one thread: it goes on.

use std::ffi::c_int;
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

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

/// Calls `blocks` on a fiber with a ticker beside it; panics if the thread was blocked.
fn beside_a_ticker(name: &'static str, blocks: impl FnOnce() + 'static) {
    let tick = Duration::from_millis(1);
    let over = Arc::new(AtomicBool::new(false));
    // What a thread of its own gets on this machine, at this moment.
    let seen = Arc::clone(&over);
    let bare = std::thread::spawn(move || largest_gap(|| std::thread::sleep(tick), &seen));
    let seen = Arc::clone(&over);
    let ticker = kapok::spawn_local(move || largest_gap(|| kapok::sleep(tick).unwrap(), &seen));
    kapok::yield_now();
    let began = Instant::now();
    let caller = kapok::spawn_local(blocks);
    caller.join().unwrap();
    let took = began.elapsed();
    over.store(true, Ordering::Release);
    let (gap, bare) = (ticker.join().unwrap(), bare.join().unwrap());
    println!("{name}: blocked for {took:?}, largest gap {gap:?}, of a bare thread {bare:?}");
    assert!(took >= BLOCKED, "{name} did not block: {took:?}");
    let limit = Duration::from_millis(20).max(bare * 3);
    assert!(gap < limit && gap < BLOCKED.max(bare * 3), "{name}: a gap of {gap:?} ({bare:?})");
}

/// Does `f` from another thread once the call has blocked for long enough.
fn later(f: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || {
        std::thread::sleep(BLOCKED + Duration::from_millis(10));
        f();
    });
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

/// Runs `waits` on a socket to which a byte comes later.
fn receiving(name: &'static str, waits: impl Fn(RawFd) -> isize + 'static) {
    let (one, other) = UnixStream::pair().unwrap();
    later(move || write_byte(other.into_raw_fd()));
    beside_a_ticker(name, move || assert_eq!(waits(one.as_raw_fd()), 1, "{name}"));
}

#[test]
fn the_ticker_goes_on_beside_each_call() {
    kapok_libc::install();
    kapok::Runtime::builder().threads(1).build().unwrap().run(|| {
        sockets();
        readiness();
        sleeps();
        files();
    });
}

fn sockets() {
    // SAFETY: room for what is asked.
    receiving("recv", |fd| unsafe { libc::recv(fd, [0u8; 4].as_mut_ptr().cast(), 4, 0) });
    // SAFETY: as above.
    receiving("read", |fd| unsafe { libc::read(fd, [0u8; 4].as_mut_ptr().cast(), 4) });
    // SAFETY: as above.
    receiving("recvfrom", |fd| unsafe {
        libc::recvfrom(fd, [0u8; 4].as_mut_ptr().cast(), 4, 0, null_mut(), null_mut())
    });
    receiving("recvmsg", |fd| {
        let mut byte = [0u8; 4];
        let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 4 };
        // SAFETY: integers and pointers.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        // SAFETY: a header of what is there.
        unsafe { libc::recvmsg(fd, &raw mut message, 0) }
    });
    receiving("splice", |fd| {
        // SAFETY: no offsets.
        unsafe { libc::splice(fd, null_mut(), pipe()[1], null_mut(), 4, 0) }
    });

    let (one, other) = UnixStream::pair().unwrap();
    later(move || {
        std::io::copy(&mut (&other), &mut std::io::sink()).unwrap();
    });
    beside_a_ticker("send", move || {
        let bytes = vec![0u8; 8 << 20];
        // SAFETY: bytes that are there.
        let sent = unsafe { libc::send(one.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        assert_eq!(sent, 8 << 20);
    });
    let (one, other) = UnixDatagram::pair().unwrap();
    later(move || while other.recv(&mut [0; 8]).is_ok() {});
    beside_a_ticker("sendto", move || {
        for _ in 0..2000 {
            one.send(b"x").unwrap();
        }
    });

    let path = std::env::temp_dir().join(format!("kapok-ticker-{}", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    let there = path.clone();
    later(move || drop(UnixStream::connect(there).unwrap()));
    let accepting = listener.try_clone().unwrap();
    beside_a_ticker("accept", move || drop(accepting.accept().unwrap()));
    // SAFETY: no memory. A backlog of one.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let there = path.clone();
    let first = UnixStream::connect(&path).unwrap();
    later(move || {
        drop(listener.accept().unwrap());
        std::thread::sleep(Duration::from_millis(50));
    });
    beside_a_ticker("connect", move || drop(UnixStream::connect(there).unwrap()));
    drop(first);
    std::fs::remove_file(path).unwrap();
}

fn readiness() {
    receiving("poll", |fd| {
        let mut one = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: locals, here and below.
        unsafe { libc::poll(&raw mut one, 1, -1) as isize }
    });
    receiving("poll of several", |fd| {
        let quiet = pipe()[0];
        let mut both = [fd, quiet].map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
        // SAFETY: as above.
        unsafe { libc::poll(both.as_mut_ptr(), 2, -1) as isize }
    });
    receiving("ppoll", |fd| {
        let mut one = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: as above.
        unsafe { libc::ppoll(&raw mut one, 1, null(), null()) as isize }
    });
    receiving("select", |fd| {
        // SAFETY: as above.
        unsafe {
            let mut set: libc::fd_set = std::mem::zeroed();
            libc::FD_SET(fd, &raw mut set);
            libc::select(fd + 1, &raw mut set, null_mut(), null_mut(), null_mut()) as isize
        }
    });
    receiving("epoll_wait", |fd| {
        // SAFETY: as above.
        unsafe {
            let epoll = libc::epoll_create1(0);
            let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
            libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event);
            libc::epoll_wait(epoll, &raw mut event, 1, -1) as isize
        }
    });
    beside_a_ticker("poll of nothing", || {
        // SAFETY: no descriptors.
        assert_eq!(unsafe { libc::poll(null_mut(), 0, 70) }, 0);
    });
}

fn sleeps() {
    // SAFETY: no memory.
    beside_a_ticker("usleep", || assert_eq!(unsafe { libc::usleep(70_000) }, 0));
    beside_a_ticker("nanosleep", || {
        let time = libc::timespec { tv_sec: 0, tv_nsec: 70_000_000 };
        // SAFETY: a local.
        assert_eq!(unsafe { libc::nanosleep(&raw const time, null_mut()) }, 0);
    });
    beside_a_ticker("std::thread::sleep", || std::thread::sleep(Duration::from_millis(70)));
    // SAFETY: as above.
    beside_a_ticker("sleep", || assert_eq!(unsafe { libc::sleep(1) }, 0));
}

fn files() {
    let [from, to] = pipe();
    later(move || write_byte(to));
    beside_a_ticker("read of a pipe", move || {
        // SAFETY: room for a byte.
        assert_eq!(unsafe { libc::read(from, [0u8; 1].as_mut_ptr().cast(), 1) }, 1);
    });
    let [from, to] = pipe();
    later(move || {
        let mut bytes = vec![0u8; 1 << 20];
        let mut left = 1 << 20;
        while left > 0 {
            // SAFETY: room for as much as is asked.
            left -= unsafe { libc::read(from, bytes.as_mut_ptr().cast(), left) } as usize;
        }
    });
    beside_a_ticker("write of a pipe", move || {
        let bytes = vec![0u8; 1 << 20];
        // SAFETY: bytes that are there.
        let written = unsafe { libc::write(to, bytes.as_ptr().cast(), bytes.len()) };
        assert_eq!(written, 1 << 20);
    });
    let path = std::env::temp_dir().join(format!("kapok-ticker-lock-{}", std::process::id()));
    let (one, other) =
        (std::fs::File::create(&path).unwrap(), std::fs::File::create(&path).unwrap());
    let lock = |fd: RawFd, operation: c_int| {
        // SAFETY: no memory.
        assert_eq!(unsafe { libc::flock(fd, operation) }, 0);
    };
    lock(one.as_raw_fd(), libc::LOCK_EX);
    later(move || drop(one));
    beside_a_ticker("flock", move || lock(other.as_raw_fd(), libc::LOCK_EX));
    std::fs::remove_file(path).unwrap();
}
