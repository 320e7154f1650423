//! What the contract promises of calls that wait, and that needs somebody else to be seen: a second fiber,
//! another holder of the same description, a child.

#![cfg(target_os = "linux")]

mod backlog;
mod one_loop;

use std::ffi::c_int;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use backlog::full_listener;
use one_loop::{begin, connected, errno};

fn on_one_loop(main: impl FnOnce() + 'static) {
    one_loop::run(Duration::from_secs(60), main);
}

/// Long enough for a fiber to be where it waits.
const A_WHILE: Duration = Duration::from_millis(10);

/// A call of no hurry, with what it returned and errno.
fn told(result: impl Into<i64>) -> (i64, c_int) {
    let result = result.into();
    (result, if result < 0 { errno() } else { 0 })
}

/// How often a function suspended its fiber so far.
fn suspended(name: &str) -> u64 {
    kapok_libc::hooks().find(|hook| hook.name() == name).unwrap().counts().suspended
}

/// A path that nothing has yet, for this process.
fn fresh(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("kapok-{name}-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

fn pipe() -> [OwnedFd; 2] {
    let mut fds = [0; 2];
    // SAFETY: room for two, which are ours.
    unsafe {
        assert_eq!(libc::pipe(fds.as_mut_ptr()), 0);
        fds.map(|fd| OwnedFd::from_raw_fd(fd))
    }
}

unsafe extern "C" {
    fn fcntl64(fd: c_int, command: c_int, argument: *mut libc::flock) -> c_int;
    fn lockf64(fd: c_int, command: c_int, len: i64) -> c_int;
}

/// Of the first ten bytes.
fn section(kind: c_int) -> libc::flock {
    // SAFETY: integers.
    let mut section: libc::flock = unsafe { std::mem::zeroed() };
    section.l_type = kind as _;
    section.l_len = 10;
    section
}

/// Locks the first ten bytes of a file, and waits for them.
type Lock = fn(RawFd) -> c_int;

#[test]
fn a_section_of_a_file_is_waited_for_by_the_fiber() {
    // SAFETY: locals.
    let ways: [(&str, Lock); 5] = [
        ("fcntl", |fd| unsafe { libc::fcntl(fd, libc::F_SETLKW, &mut section(libc::F_WRLCK)) }),
        ("fcntl64", |fd| unsafe { fcntl64(fd, libc::F_SETLKW, &mut section(libc::F_WRLCK)) }),
        ("fcntl", |fd| unsafe { libc::fcntl(fd, libc::F_OFD_SETLKW, &mut section(libc::F_WRLCK)) }),
        // SAFETY: no memory.
        ("lockf", |fd| unsafe { libc::lockf(fd, libc::F_LOCK, 10) }),
        ("lockf64", |fd| unsafe { lockf64(fd, libc::F_LOCK, 10) }),
    ];
    on_one_loop(move || {
        for (way, (name, lock)) in ways.into_iter().enumerate() {
            let path = fresh(&format!("contract-section-{way}"));
            // Of two descriptions, since what a process locks is never in its own way.
            let holder = File::create_new(&path).unwrap();
            let other = File::options().read(true).write(true).open(&path).unwrap();
            let held = |kind| {
                // SAFETY: a section that is there.
                told(unsafe {
                    libc::fcntl(holder.as_raw_fd(), libc::F_OFD_SETLK, &mut section(kind))
                })
            };
            assert_eq!(held(libc::F_WRLCK), (0, 0));
            let before = suspended(name);
            let waiting = begin(move || (told(lock(other.as_raw_fd())), other));
            kapok::sleep(A_WHILE).unwrap();
            assert!(!waiting.is_finished(), "{name}, way {way}");
            assert_eq!(held(libc::F_UNLCK), (0, 0));
            let (locked, other) = waiting.join().unwrap();
            assert_eq!(locked, (0, 0), "{name}, way {way}");
            assert_eq!(suspended(name), before + 1, "{name}, way {way}");
            assert_eq!(held(libc::F_WRLCK), (-1, libc::EAGAIN), "{name}, way {way}: nobody has it");
            drop(other);
            std::fs::remove_file(path).unwrap();
        }
    });
}

#[test]
fn a_shutdown_wakes_those_who_wait_for_the_socket() {
    on_one_loop(|| {
        for of_tcp in [true, false] {
            let pair = || -> [OwnedFd; 2] {
                if of_tcp {
                    let (one, other) = connected();
                    return [one.into(), other.into()];
                }
                let (one, other) = UnixStream::pair().unwrap();
                [one.into(), other.into()]
            };
            let down = |fd: RawFd, how: c_int| {
                kapok::sleep(A_WHILE).unwrap();
                // SAFETY: no memory.
                assert_eq!(unsafe { libc::shutdown(fd, how) }, 0);
            };
            let [one, _other] = pair();
            let fd = one.as_raw_fd();
            let receiver = begin(move || {
                // SAFETY: bytes, or room, of the length that is told.
                told(unsafe { libc::recv(fd, [0_u8; 4].as_mut_ptr().cast(), 4, 0) } as i64)
            });
            down(fd, libc::SHUT_RD);
            assert_eq!(receiver.join().unwrap(), (0, 0), "TCP: {of_tcp}");

            let [one, _other] = pair();
            let fd = one.as_raw_fd();
            let poller = begin(move || {
                let mut one = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
                // SAFETY: a local.
                let count = unsafe { libc::poll(&raw mut one, 1, -1) };
                (count, one.revents & (libc::POLLIN | libc::POLLHUP))
            });
            down(fd, libc::SHUT_RDWR);
            assert_eq!(poller.join().unwrap(), (1, libc::POLLIN | libc::POLLHUP), "TCP: {of_tcp}");

            // Who sends has sent a part; the next hears of it. While there is no room in a socket of AF_UNIX
            // poll(2) tells of the end of both directions alone, and select(2) not at all.
            for by_thread in [false, true] {
                let [one, _other] = pair();
                let fd = one.as_raw_fd();
                let sender = begin(move || {
                    let bytes = vec![0_u8; 16 << 20];
                    let send = || {
                        // SAFETY: bytes, or room, of the length that is told.
                        told(unsafe {
                            let at = bytes.as_ptr().cast();
                            libc::send(fd, at, bytes.len(), libc::MSG_NOSIGNAL) as i64
                        })
                    };
                    (send(), send())
                });
                if by_thread {
                    kapok::sleep(A_WHILE).unwrap();
                    // SAFETY: no memory.
                    let shut =
                        std::thread::spawn(move || unsafe { libc::shutdown(fd, libc::SHUT_WR) });
                    assert_eq!(shut.join().unwrap(), 0);
                } else {
                    down(fd, libc::SHUT_WR);
                }
                let (first, second) = sender.join().unwrap();
                assert!(first.0 > 0 && first.0 < 16 << 20, "TCP: {of_tcp}: {first:?}");
                assert_eq!(second, (-1, libc::EPIPE), "TCP: {of_tcp}");
            }
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let fd = listener.as_raw_fd();
        // SAFETY: no address is asked for.
        let accepting = begin(move || told(unsafe { libc::accept(fd, null_mut(), null_mut()) }));
        kapok::sleep(A_WHILE).unwrap();
        // SAFETY: no memory.
        assert_eq!(unsafe { libc::shutdown(fd, libc::SHUT_RD) }, 0);
        assert_eq!(accepting.join().unwrap(), (-1, libc::EINVAL));
    });
}

/// The same as [`full_listener`], of AF_UNIX.
fn full_unix_listener(path: &std::path::Path) -> (UnixListener, UnixStream) {
    let listener = UnixListener::bind(path).unwrap();
    // SAFETY: no memory.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let first = UnixStream::connect(path).unwrap();
    (listener, first)
}

fn unconnected(family: c_int) -> OwnedFd {
    // SAFETY: no memory; what it makes is ours.
    unsafe {
        let fd = libc::socket(family, libc::SOCK_STREAM, 0);
        assert!(fd >= 0);
        OwnedFd::from_raw_fd(fd)
    }
}

/// connect(2) to the address that a socket is bound to.
fn connect_to(fd: RawFd, listener: RawFd) -> (i64, c_int) {
    // SAFETY: room as told, and an address of the length that it has.
    unsafe {
        let mut storage: libc::sockaddr_storage = std::mem::zeroed();
        let mut len = size_of_val(&storage) as libc::socklen_t;
        let at = (&raw mut storage).cast();
        assert_eq!(libc::getsockname(listener, at, &raw mut len), 0);
        told(libc::connect(fd, at, len))
    }
}

fn limit_sends(fd: RawFd, limit: Duration) {
    let limit = libc::timeval { tv_sec: 0, tv_usec: limit.as_micros() as i64 };
    let len = size_of_val(&limit) as libc::socklen_t;
    // SAFETY: reads a local.
    let set = unsafe {
        let value = (&raw const limit).cast();
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_SNDTIMEO, value, len)
    };
    assert_eq!(set, 0);
}

#[test]
fn a_connect_ends_at_its_sockets_time_limit() {
    on_one_loop(|| {
        let (listener, _first) = full_listener();
        let socket = unconnected(libc::AF_INET);
        limit_sends(socket.as_raw_fd(), A_WHILE * 2);
        let begun = Instant::now();
        let connecting = begin(move || {
            let (fd, to) = (socket.as_raw_fd(), listener.as_raw_fd());
            // It goes on meanwhile, which a second call waits for as long.
            (connect_to(fd, to), connect_to(fd, to), listener)
        });
        let (first, second, _listener) = connecting.join().unwrap();
        assert_eq!((first, second), ((-1, libc::EINPROGRESS), (-1, libc::EALREADY)));
        assert!(begun.elapsed() >= A_WHILE * 4, "{:?}", begun.elapsed());

        let path = fresh("contract-limit");
        let (listener, _first) = full_unix_listener(&path);
        let socket = unconnected(libc::AF_UNIX);
        limit_sends(socket.as_raw_fd(), A_WHILE * 2);
        let begun = Instant::now();
        let connecting = begin(move || connect_to(socket.as_raw_fd(), listener.as_raw_fd()));
        assert_eq!(connecting.join().unwrap(), (-1, libc::EAGAIN));
        assert!(begun.elapsed() >= A_WHILE * 2, "{:?}", begun.elapsed());
        std::fs::remove_file(path).unwrap();
    });
}

/// libgo returned 115 to MySQL, which is `EINPROGRESS`: the kernel's answer to its own non-blocking try.
#[test]
fn a_connect_that_waits_returns_when_it_is_connected() {
    on_one_loop(|| {
        let (listener, first) = full_listener();
        let path = fresh("contract-waits");
        let (unix, unix_first) = full_unix_listener(&path);
        let (to, to_unix) = (listener.as_raw_fd(), unix.as_raw_fd());
        let connect = |family, to| {
            begin(move || {
                let socket = unconnected(family);
                // SAFETY: the thread's own errno.
                unsafe { *libc::__errno_location() = 77 };
                let connected = connect_to(socket.as_raw_fd(), to);
                // SAFETY: as above.
                (connected, unsafe { *libc::__errno_location() }, socket)
            })
        };
        let both = [connect(libc::AF_INET, to), connect(libc::AF_UNIX, to_unix)];
        kapok::sleep(A_WHILE * 2).unwrap();
        assert!(both.iter().all(|one| !one.is_finished()), "there was room");
        // Room for them; the network tries again after a second.
        drop((listener.accept().unwrap(), unix.accept().unwrap(), first, unix_first));
        for one in both {
            let (connected, errno, socket) = one.join().unwrap();
            assert_eq!((connected, errno), ((0, 0), 77));
            File::from(socket).write_all(b"there").unwrap();
        }
        let mut bytes = [0; 5];
        listener.accept().unwrap().0.read_exact(&mut bytes).unwrap();
        unix.accept().unwrap().0.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"there");
        std::fs::remove_file(path).unwrap();
    });
}

/// Fibers of two loops, a plain thread: each has records that nobody else has, and all of one piece.
#[test]
fn readers_of_one_description_share_its_offset_and_no_record() {
    const RECORDS: usize = 3_000;
    const RECORD: usize = 1024;
    kapok_libc::install();
    let path = fresh("contract-offset");
    let bytes: Vec<u8> =
        (0..RECORDS as u32).flat_map(|number| number.to_ne_bytes().repeat(RECORD / 4)).collect();
    std::fs::write(&path, bytes).unwrap();
    let file = File::open(&path).unwrap();
    // By two numbers: the offset is the description's.
    let (file, again) = (file.try_clone().unwrap(), file);
    let read_on = |mut file: File| {
        let mut numbers = Vec::new();
        loop {
            let mut record = [0_u8; RECORD];
            match file.read(&mut record).unwrap() {
                0 => return numbers,
                count => assert_eq!(count, RECORD, "a part"),
            }
            let number = u32::from_ne_bytes(record[..4].try_into().unwrap());
            assert_eq!(record[..], number.to_ne_bytes().repeat(RECORD / 4), "of two records");
            numbers.push(number);
            if kapok::on_fiber() {
                kapok::yield_now();
            }
        }
    };
    let beside = again.try_clone().unwrap();
    let thread = std::thread::spawn(move || read_on(beside));
    let runtime = kapok::Runtime::builder().threads(2).build().unwrap();
    let mut numbers = runtime.run(move || {
        let fibers: Vec<_> = [&file, &again, &file, &again]
            .map(|file| file.try_clone().unwrap())
            .into_iter()
            .map(|file| kapok::spawn(move || read_on(file)))
            .collect();
        fibers.into_iter().flat_map(|fiber| fiber.join().unwrap()).collect::<Vec<_>>()
    });
    numbers.extend(thread.join().unwrap());
    numbers.sort_unstable();
    assert!(numbers.iter().copied().eq(0..RECORDS as u32), "{} records", numbers.len());
    std::fs::remove_file(path).unwrap();
}

/// Runs `f` in the child of a fork, which makes system calls only.
fn in_a_child(f: impl FnOnce() -> bool) {
    // SAFETY: see above.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::_exit(c_int::from(!f()));
        }
        assert!(child > 0);
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        assert_eq!(status, 0);
    }
}

/// Sends a descriptor over a socket, and gives what came out at the other end.
fn sent_over(socket: [RawFd; 2], fd: RawFd) -> OwnedFd {
    // SAFETY: headers of what is there, with room for one descriptor, which is ours once it has come.
    unsafe {
        let mut byte = 1_u8;
        let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let mut room = [0_u64; 8];
        let mut message: libc::msghdr = std::mem::zeroed();
        (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
        message.msg_control = room.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as _;
        let head = libc::CMSG_FIRSTHDR(&raw const message);
        (*head).cmsg_level = libc::SOL_SOCKET;
        (*head).cmsg_type = libc::SCM_RIGHTS;
        (*head).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(head).cast::<c_int>().write_unaligned(fd);
        assert_eq!(libc::sendmsg(socket[0], &raw const message, 0), 1);
        assert_eq!(libc::recvmsg(socket[1], &raw mut message, 0), 1);
        let head = libc::CMSG_FIRSTHDR(&raw const message);
        OwnedFd::from_raw_fd(libc::CMSG_DATA(head).cast::<c_int>().read_unaligned())
    }
}

/// Sets or clears `O_NONBLOCK`, past every hook.
fn set_nonblocking(fd: RawFd, on: bool) -> bool {
    let flags = libc::O_RDWR | if on { libc::O_NONBLOCK } else { 0 };
    // SAFETY: no memory.
    unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_SETFL, flags) == 0 }
}

#[test]
fn who_shares_the_description_sets_whether_it_waits() {
    on_one_loop(|| {
        let (one, mut other) = UnixStream::pair().unwrap();
        let (mut courier, fd) = (UnixStream::pair().unwrap(), one.as_raw_fd());
        let sockets = [courier.0.as_raw_fd(), courier.1.as_raw_fd()];
        let by_child = |on| in_a_child(move || set_nonblocking(fd, on));
        let received = sent_over(sockets, fd);
        let by_receiver = |on| assert!(set_nonblocking(received.as_raw_fd(), on));
        let ways: [&dyn Fn(bool); 2] = [&by_child, &by_receiver];
        for set in ways {
            set(true);
            let mut reader = one.try_clone().unwrap();
            let refused = begin(move || reader.read(&mut [0; 4]).unwrap_err().raw_os_error());
            assert_eq!(refused.join().unwrap(), Some(libc::EAGAIN));
            // And waits again, once they have cleared it.
            set(false);
            let mut reader = one.try_clone().unwrap();
            let waiting = begin(move || reader.read(&mut [0; 4]).unwrap());
            kapok::sleep(A_WHILE).unwrap();
            assert!(!waiting.is_finished());
            other.write_all(b"x").unwrap();
            assert_eq!(waiting.join().unwrap(), 1);
        }
        courier.0.write_all(b"x").unwrap();
        assert_eq!(courier.1.read(&mut [0; 4]).unwrap(), 1);
    });
}

fn tee(from: &OwnedFd, to: &OwnedFd, len: usize) -> (i64, c_int) {
    // SAFETY: no memory.
    told(unsafe { libc::tee(from.as_raw_fd(), to.as_raw_fd(), len, 0) } as i64)
}

#[test]
fn a_tee_waits_for_bytes_and_for_room() {
    on_one_loop(|| {
        let ([from, mut fills], [got, to]) = (pipe().map(File::from), pipe().map(File::from));
        let (from, to) = (OwnedFd::from(from), OwnedFd::from(to));
        let waiting = begin(move || (tee(&from, &to, 64), from, to));
        kapok::sleep(A_WHILE).unwrap();
        assert!(!waiting.is_finished());
        fills.write_all(b"both have it").unwrap();
        let (teed, from, to) = waiting.join().unwrap();
        assert_eq!(teed, (12, 0));
        let mut bytes = [0; 12];
        (&got).read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"both have it");

        // As many pieces as the other pipe has places for, whatever their size.
        // SAFETY: no memory.
        unsafe { libc::fcntl(to.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
        assert_eq!(tee(&from, &to, 64), (12, 0));
        let waiting = begin(move || (tee(&from, &to, 64), from));
        kapok::sleep(A_WHILE).unwrap();
        assert!(!waiting.is_finished());
        (&got).read_exact(&mut bytes).unwrap();
        let (teed, from) = waiting.join().unwrap();
        assert_eq!(teed, (12, 0));
        (&got).read_exact(&mut bytes).unwrap();
        File::from(from).read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"both have it");
    });
}

#[test]
fn select_tells_what_was_left_of_its_time_when_something_came() {
    on_one_loop(|| {
        let (one, mut other) = UnixStream::pair().unwrap();
        let selecting = begin(move || {
            let fd = one.as_raw_fd();
            let limit = libc::timeval { tv_sec: 50, tv_usec: 0 };
            let exact = libc::timespec { tv_sec: 50, tv_nsec: 0 };
            let mut left = limit;
            // SAFETY: locals.
            unsafe {
                let mut set: libc::fd_set = std::mem::zeroed();
                libc::FD_SET(fd, &raw mut set);
                let (readable, null) = (&raw mut set, null_mut());
                let selected = libc::select(fd + 1, readable, null, null, &raw mut left);
                let at = &raw const exact;
                let again = libc::pselect(fd + 1, readable, null, null, at, std::ptr::null());
                ((selected, again), limit, left, exact.tv_sec)
            }
        });
        kapok::sleep(A_WHILE * 3).unwrap();
        other.write_all(b"x").unwrap();
        let (counts, limit, left, exact) = selecting.join().unwrap();
        assert_eq!((counts, exact), ((1, 1), 50));
        let of =
            |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
        let passed = of(limit) - of(left);
        assert!(passed >= A_WHILE * 3 && passed < Duration::from_secs(40), "{passed:?}");
    });
}
