//! A fiber that ticks every millisecond beside each call that blocks, on one thread: it goes on.

#![allow(clippy::type_complexity, reason = "tables of calls are written where they are called")]

use std::cell::UnsafeCell;
use std::collections::BTreeSet;
use std::ffi::{CString, c_int, c_void};
use std::fs::File;
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
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

/// Beside which the ticker stopped for too long, in this round.
static LATE: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());

/// How often everything is called: who blocks the thread does so each time, and a machine with much to do
/// is late beside one call or the other.
const ROUNDS: usize = 3;

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
    let began = Instant::now();
    let caller = kapok::spawn_local(blocks);
    caller.join().unwrap();
    let took = began.elapsed();
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

#[test]
fn the_ticker_goes_on_beside_each_call() {
    kapok_libc::install();
    let mut late: Option<BTreeSet<&str>> = None;
    for _ in 0..ROUNDS {
        kapok::Runtime::builder().threads(1).build().unwrap().run(|| {
            sockets();
            readiness();
            sleeps();
            files();
            disk();
            children();
            locks();
            names();
            signals();
        });
        let now = std::mem::take(&mut *LATE.lock().unwrap());
        let always = late.map_or(now.clone(), |late| late.intersection(&now).copied().collect());
        if always.is_empty() {
            return;
        }
        late = Some(always);
    }
    panic!("the ticker stopped each time beside {late:?}");
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

    receiving("readv", |fd| {
        // SAFETY: a part that is there, here and below.
        unsafe { libc::readv(fd, &part(&mut [0; 4]), 1) }
    });
    receiving("recvmmsg", |fd| {
        let (mut byte, none) = ([0; 4], null_mut());
        let mut part = part(&mut byte);
        let mut one = libc::mmsghdr { msg_hdr: message(&mut part), msg_len: 0 };
        // SAFETY: as above.
        unsafe { libc::recvmmsg(fd, &raw mut one, 1, 0, none) as isize }
    });
    sending("send", |fd| {
        let bytes = much();
        // SAFETY: bytes that are there.
        unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), 0) }
    });
    sending("write", |fd| {
        let bytes = much();
        // SAFETY: bytes that are there.
        unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) }
    });
    // SAFETY: as above.
    sending("writev", |fd| unsafe { libc::writev(fd, &part(&mut much()), 1) });
    sending("sendmsg", |fd| {
        let mut bytes = much();
        let mut part = part(&mut bytes);
        // SAFETY: as above.
        unsafe { libc::sendmsg(fd, &message(&mut part), 0) }
    });
    sending("sendmmsg", |fd| {
        let mut bytes = much();
        let mut part = part(&mut bytes);
        let mut one = libc::mmsghdr { msg_hdr: message(&mut part), msg_len: 0 };
        // SAFETY: as above.
        unsafe { libc::sendmmsg(fd, &raw mut one, 1, 0) as isize }
    });
    sending("sendfile", |fd| {
        let path = path("sent");
        std::fs::write(&path, much()).unwrap();
        let file = File::open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        // SAFETY: no offset is named.
        unsafe { libc::sendfile(fd, file.as_raw_fd(), null_mut(), 8 << 20) }
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
    beside_a_ticker("accept4", move || drop(accepting.accept().unwrap()));
    let (there, accepting) = (path.clone(), listener.as_raw_fd());
    later(move || drop(UnixStream::connect(there).unwrap()));
    beside_a_ticker("accept", move || {
        // SAFETY: no address is asked for; a number that nobody else has.
        unsafe { assert_eq!(libc::close(libc::accept(accepting, null_mut(), null_mut())), 0) };
    });
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
    receiving("pselect", |fd| {
        // SAFETY: as above.
        unsafe {
            let mut set: libc::fd_set = std::mem::zeroed();
            libc::FD_SET(fd, &raw mut set);
            libc::pselect(fd + 1, &raw mut set, null_mut(), null_mut(), null(), null()) as isize
        }
    });
    unsafe extern "C" {
        fn epoll_pwait2(
            epoll: c_int,
            events: *mut libc::epoll_event,
            most: c_int,
            timeout: *const libc::timespec,
            mask: *const libc::sigset_t,
        ) -> c_int;
    }
    let waits: [(&str, fn(RawFd, *mut libc::epoll_event) -> c_int); 2] = [
        // SAFETY: as above.
        ("epoll_pwait", |epoll, event| unsafe { libc::epoll_pwait(epoll, event, 1, -1, null()) }),
        // SAFETY: as above.
        ("epoll_pwait2", |epoll, event| unsafe { epoll_pwait2(epoll, event, 1, null(), null()) }),
    ];
    for (name, wait) in waits {
        receiving(name, move |fd| {
            let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
            // SAFETY: as above.
            let epoll = unsafe { libc::epoll_create1(0) };
            // SAFETY: as above.
            unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) };
            wait(epoll, &raw mut event) as isize
        });
    }
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
    beside_a_ticker("clock_nanosleep", || {
        let time = libc::timespec { tv_sec: 0, tv_nsec: 70_000_000 };
        let clock = libc::CLOCK_MONOTONIC;
        // SAFETY: a local.
        assert_eq!(unsafe { libc::clock_nanosleep(clock, 0, &raw const time, null_mut()) }, 0);
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
    let section = || {
        // SAFETY: integers.
        let mut section: libc::flock = unsafe { std::mem::zeroed() };
        section.l_type = libc::F_WRLCK as _;
        section
    };
    let locks: [(&str, fn(RawFd, &mut libc::flock) -> c_int); 3] = [
        // SAFETY: a section that is there.
        ("F_SETLKW", |fd, section| unsafe { libc::fcntl(fd, libc::F_SETLKW, section) }),
        // SAFETY: as above.
        ("F_OFD_SETLKW", |fd, section| unsafe { libc::fcntl(fd, libc::F_OFD_SETLKW, section) }),
        // SAFETY: no memory.
        ("lockf", |fd, _| unsafe { libc::lockf(fd, libc::F_LOCK, 0) }),
    ];
    for (name, lock) in locks {
        let (one, other) = (File::create(&path).unwrap(), File::create(&path).unwrap());
        // SAFETY: as above.
        let held = unsafe { libc::fcntl(one.as_raw_fd(), libc::F_OFD_SETLK, &mut section()) };
        assert_eq!(held, 0);
        later(move || drop(one));
        beside_a_ticker(name, move || assert_eq!(lock(other.as_raw_fd(), &mut section()), 0));
    }
    std::fs::remove_file(&path).unwrap();

    let fifo = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a name that ends.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    let there = path.clone();
    later(move || drop(File::options().write(true).open(there).unwrap()));
    beside_a_ticker("open", move || {
        // SAFETY: a name that ends; a number that nobody else has.
        unsafe { assert_eq!(libc::close(libc::open(fifo.as_ptr(), libc::O_RDONLY)), 0) };
    });
    std::fs::remove_file(path).unwrap();

    let [from, to] = pipe();
    let other = pipe()[1];
    later(move || write_byte(to));
    // SAFETY: no memory.
    beside_a_ticker("tee", move || assert_eq!(unsafe { libc::tee(from, other, 1, 0) }, 1));
}

/// What waits for a disk, or does not.
fn disk() {
    let path = path("disk");
    std::fs::write(&path, vec![7; 4 << 20]).unwrap();
    let open = || File::options().read(true).write(true).open(&path).unwrap();
    let room = || vec![0_u8; 1 << 20];
    let (file, bytes) = (open(), UnsafeCell::new(room()));
    again_beside_a_ticker("pread", move || {
        // SAFETY: room that is there, and nobody else's meanwhile.
        unsafe { libc::pread(file.as_raw_fd(), (*bytes.get()).as_mut_ptr().cast(), 1 << 20, 9) > 0 }
    });
    let (file, bytes) = (open(), room());
    again_beside_a_ticker("pwrite", move || {
        // SAFETY: bytes that are there.
        unsafe { libc::pwrite(file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 9) > 0 }
    });
    let (file, bytes) = (open(), room());
    again_beside_a_ticker("fsync", move || {
        // SAFETY: as above.
        unsafe {
            libc::pwrite(file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 9) > 0
                && libc::fsync(file.as_raw_fd()) == 0
                && libc::fdatasync(file.as_raw_fd()) == 0
        }
    });
    let (from, to) = (open(), open());
    again_beside_a_ticker("copy_file_range", move || {
        let (mut at, mut to_at) = (0, 2 << 20);
        let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
        // SAFETY: locals.
        unsafe { libc::copy_file_range(from, &raw mut at, to, &raw mut to_at, 1 << 20, 0) > 0 }
    });
    std::fs::remove_file(path).unwrap();
}

/// A child that ends after a while.
fn child() -> libc::pid_t {
    // SAFETY: the child makes system calls only.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            let time = libc::timespec { tv_sec: 0, tv_nsec: 80_000_000 };
            libc::syscall(libc::SYS_nanosleep, &raw const time, 0);
            libc::_exit(0);
        }
        assert!(child > 0);
        child
    }
}

fn children() {
    let waits: [(&str, fn(libc::pid_t) -> bool); 4] = [
        // SAFETY: no memory of ours, here and below.
        ("wait", |child| unsafe { libc::wait(null_mut()) == child }),
        // SAFETY: as above.
        ("waitpid", |child| unsafe { libc::waitpid(child, null_mut(), 0) == child }),
        // SAFETY: as above.
        ("wait4", |child| unsafe { libc::wait4(child, null_mut(), 0, null_mut()) == child }),
        // SAFETY: writes to a local.
        ("waitid", |child| unsafe {
            let mut info = std::mem::zeroed();
            libc::waitid(libc::P_PID, child as u32, &raw mut info, libc::WEXITED) == 0
        }),
    ];
    for (name, wait) in waits {
        beside_a_ticker(name, move || assert!(wait(child()), "{name}"));
    }
}

/// A lock of the C library's, all zeros of which is a new one.
struct Zeroed<T>(UnsafeCell<T>);

// SAFETY: the C library's objects are made to be shared by threads.
unsafe impl<T> Sync for Zeroed<T> {}
// SAFETY: and to be used by others than who made them.
unsafe impl<T> Send for Zeroed<T> {}

impl<T> Zeroed<T> {
    fn new() -> Arc<Zeroed<T>> {
        // SAFETY: plain words.
        Arc::new(Zeroed(UnsafeCell::new(unsafe { std::mem::zeroed() })))
    }

    fn at(&self) -> *mut T {
        self.0.get()
    }
}

/// Runs `takes` while a thread holds what it takes for long enough.
fn held<T: 'static>(
    name: &'static str,
    take: unsafe extern "C" fn(*mut T) -> c_int,
    give: unsafe extern "C" fn(*mut T) -> c_int,
    takes: impl FnOnce(*mut T) -> c_int + 'static,
) {
    let lock = Zeroed::<T>::new();
    let (there, (tells, told)) = (Arc::clone(&lock), std::sync::mpsc::channel());
    std::thread::spawn(move || {
        // SAFETY: a lock that is there.
        assert_eq!(unsafe { take(there.at()) }, 0);
        tells.send(()).unwrap();
        std::thread::sleep(BLOCKED * 2);
        // SAFETY: held by this thread.
        assert_eq!(unsafe { give(there.at()) }, 0);
    });
    // The thread holds it soon, and sleeps long enough for the ticker to begin.
    told.recv().unwrap();
    beside_a_ticker(name, move || {
        assert_eq!(takes(lock.at()), 0, "{name}");
        // SAFETY: held by this fiber.
        assert_eq!(unsafe { give(lock.at()) }, 0);
    });
}

/// In a while, and later than anything here waits.
fn far() -> libc::timespec {
    // SAFETY: writes to a local.
    unsafe {
        let mut now = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now);
        libc::timespec { tv_sec: now.tv_sec + 60, ..now }
    }
}

unsafe extern "C" {
    fn mtx_lock(mutex: *mut libc::pthread_mutex_t) -> c_int;
    fn mtx_unlock(mutex: *mut libc::pthread_mutex_t) -> c_int;
    fn pthread_rwlock_timedwrlock(
        lock: *mut libc::pthread_rwlock_t,
        at: *const libc::timespec,
    ) -> c_int;
}

fn locks() {
    use libc::{
        pthread_mutex_lock, pthread_mutex_t, pthread_mutex_timedlock, pthread_mutex_unlock,
        pthread_rwlock_rdlock, pthread_rwlock_t, pthread_rwlock_unlock, pthread_rwlock_wrlock,
    };
    let (lock, unlock) = (pthread_mutex_lock, pthread_mutex_unlock);
    let (write, done) = (pthread_rwlock_wrlock, pthread_rwlock_unlock);
    // SAFETY: locks that are there, and a local, for all of these.
    unsafe {
        held::<pthread_mutex_t>("pthread_mutex_lock", lock, unlock, move |at| lock(at));
        held::<pthread_mutex_t>("pthread_mutex_timedlock", lock, unlock, |at| {
            pthread_mutex_timedlock(at, &far())
        });
        held::<pthread_mutex_t>("mtx_lock", mtx_lock, mtx_unlock, |at| mtx_lock(at));
        held::<pthread_rwlock_t>("pthread_rwlock_wrlock", write, done, move |at| write(at));
        held::<pthread_rwlock_t>("pthread_rwlock_rdlock", write, done, |at| {
            pthread_rwlock_rdlock(at)
        });
        held::<pthread_rwlock_t>("pthread_rwlock_timedwrlock", write, done, |at| {
            pthread_rwlock_timedwrlock(at, &far())
        });
    }

    let waits: [(&str, fn(*mut libc::sem_t) -> c_int); 2] = [
        // SAFETY: a semaphore that is there, and a local.
        ("sem_wait", |at| unsafe { libc::sem_wait(at) }),
        // SAFETY: as above.
        ("sem_timedwait", |at| unsafe { libc::sem_timedwait(at, &far()) }),
    ];
    for (name, wait) in waits {
        let semaphore = Zeroed::<libc::sem_t>::new();
        let there = Arc::clone(&semaphore);
        // SAFETY: a semaphore that is there; all zeros is an empty one.
        later(move || assert_eq!(unsafe { libc::sem_post(there.at()) }, 0));
        beside_a_ticker(name, move || assert_eq!(wait(semaphore.at()), 0));
    }

    type Wait = fn(*mut libc::pthread_cond_t, *mut libc::pthread_mutex_t) -> c_int;
    let waits: [(&str, Wait); 2] = [
        // SAFETY: a condition and a mutex that are there, and a local.
        ("pthread_cond_wait", |at, mutex| unsafe { libc::pthread_cond_wait(at, mutex) }),
        // SAFETY: as above.
        ("pthread_cond_timedwait", |at, mutex| unsafe {
            libc::pthread_cond_timedwait(at, mutex, &far())
        }),
    ];
    for (name, wait) in waits {
        let both = Zeroed::<(libc::pthread_cond_t, libc::pthread_mutex_t)>::new();
        let there = Arc::clone(&both);
        type Both = (libc::pthread_cond_t, libc::pthread_mutex_t);
        // SAFETY: as above; places, of which nothing is read.
        let at =
            |both: &Zeroed<Both>| unsafe { (&raw mut (*both.at()).0, &raw mut (*both.at()).1) };
        later(move || {
            let (condition, mutex) = at(&there);
            // SAFETY: as above.
            unsafe {
                libc::pthread_mutex_lock(mutex);
                libc::pthread_cond_signal(condition);
                libc::pthread_mutex_unlock(mutex);
            }
        });
        beside_a_ticker(name, move || {
            let (condition, mutex) = at(&both);
            // SAFETY: as above.
            unsafe { libc::pthread_mutex_lock(mutex) };
            assert_eq!(wait(condition, mutex), 0);
            // SAFETY: as above.
            unsafe { libc::pthread_mutex_unlock(mutex) };
        });
    }

    let barrier = Zeroed::<libc::pthread_barrier_t>::new();
    // SAFETY: a barrier that is there, for two.
    assert_eq!(unsafe { libc::pthread_barrier_init(barrier.at(), null(), 2) }, 0);
    let there = Arc::clone(&barrier);
    // SAFETY: as above.
    later(move || unsafe {
        libc::pthread_barrier_wait(there.at());
    });
    // SAFETY: as above.
    beside_a_ticker("pthread_barrier_wait", move || unsafe {
        libc::pthread_barrier_wait(barrier.at());
    });

    let thread = std::thread::spawn(|| std::thread::sleep(BLOCKED * 2));
    beside_a_ticker("pthread_join", move || thread.join().unwrap());

    let word = Arc::new(AtomicU32::new(0));
    let there = Arc::clone(&word);
    let futex = |word: &AtomicU32, operation: c_int, value: u32| {
        let operation = operation | libc::FUTEX_PRIVATE_FLAG;
        // SAFETY: a word that is there; no time limit.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, null::<c_void>()) }
    };
    later(move || assert_eq!(futex(&there, libc::FUTEX_WAKE, 1), 1));
    beside_a_ticker("futex", move || assert_eq!(futex(&word, libc::FUTEX_WAIT, 0), 0));
}

/// A name that a file answers.
fn names() {
    again_beside_a_ticker("getaddrinfo", || {
        let mut found = null_mut();
        // SAFETY: a name that ends, and what was found, once.
        unsafe {
            let error = libc::getaddrinfo(c"localhost".as_ptr(), null(), null(), &raw mut found);
            if error == 0 {
                libc::freeaddrinfo(found);
            }
            error == 0
        }
    });
}

fn signals() {
    extern "C" fn handle(_: c_int) {}
    const SIGNAL: c_int = libc::SIGUSR1;
    // SAFETY: no conditions.
    let thread = unsafe { libc::gettid() };
    let kill = move || {
        // SAFETY: a thread of this process.
        later(move || unsafe {
            libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, SIGNAL);
        });
    };
    // SAFETY: plain data, and a handler that may run anywhere.
    let set = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handle as *const () as usize;
        assert_eq!(libc::sigaction(SIGNAL, &raw const action, null_mut()), 0);
        let mut set = std::mem::zeroed();
        libc::sigaddset(&raw mut set, SIGNAL);
        set
    };
    kill();
    // SAFETY: no memory.
    beside_a_ticker("pause", || assert_eq!(unsafe { libc::pause() }, -1));
    kill();
    beside_a_ticker("sigsuspend", || {
        // SAFETY: a set of none.
        assert_eq!(unsafe { libc::sigsuspend(&std::mem::zeroed()) }, -1);
    });
    // Whoever is made from here on has it blocked too.
    let change = |how| {
        // SAFETY: a local.
        assert_eq!(unsafe { libc::pthread_sigmask(how, &raw const set, null_mut()) }, 0);
    };
    change(libc::SIG_BLOCK);
    let waits: [(&str, fn(&libc::sigset_t) -> bool); 3] = [
        // SAFETY: locals.
        ("sigwait", |set| unsafe {
            let mut taken = 0;
            libc::sigwait(set, &raw mut taken) == 0 && taken == SIGNAL
        }),
        // SAFETY: as above.
        ("sigwaitinfo", |set| unsafe { libc::sigwaitinfo(set, null_mut()) == SIGNAL }),
        // SAFETY: as above.
        ("sigtimedwait", |set| unsafe {
            let limit = libc::timespec { tv_sec: 60, tv_nsec: 0 };
            libc::sigtimedwait(set, null_mut(), &raw const limit) == SIGNAL
        }),
    ];
    for (name, wait) in waits {
        kill();
        beside_a_ticker(name, move || assert!(wait(&set), "{name}"));
    }
    change(libc::SIG_UNBLOCK);
}
