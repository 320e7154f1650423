//! Calls whose waits are out of the ordinary: huge sets, addresses that are half there, connections that
//! nobody fetches, and those that wait for people inside a call that waits for a disk elsewhere.

mod one_loop;

use std::cell::Cell;
use std::ffi::{CString, c_int};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr::null_mut;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use one_loop::{begin, connected, errno};

/// The helpers are those of the process.
static ALONE: Mutex<()> = Mutex::new(());

fn on_one_loop(main: impl FnOnce() + 'static) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    one_loop::run(Duration::from_secs(60), main);
}

#[test]
fn select_of_more_than_its_sets_hold_looks_at_what_there_is() {
    on_one_loop(|| {
        let (one, mut peer) = UnixStream::pair().unwrap();
        let fd = one.as_raw_fd();
        // As many as the process may have open, as old programs count them, and a set of the usual size at
        // the end of what is there.
        // SAFETY: a mapping of two pages, the second of which cannot be touched.
        let set: *mut libc::fd_set = unsafe {
            let (none, page) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, 4096);
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let at = libc::mmap(null_mut(), 2 * page, access, none, -1, 0);
            assert_ne!(at, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(at.byte_add(page), page, libc::PROT_NONE), 0);
            // Where the table of descriptors has room for more, so has the set.
            at.byte_add(page - size_of::<libc::fd_set>().max(table_size().div_ceil(8))).cast()
        };
        // SAFETY: a set that is there.
        unsafe { libc::FD_SET(fd, &mut *set) };
        let wait = move |timeout: Option<libc::timeval>| {
            let mut timeout = timeout;
            let timeout = timeout.as_mut().map_or(null_mut(), |timeout| &raw mut *timeout);
            // SAFETY: as many bits as the table of descriptors has are there.
            unsafe { libc::select(1 << 20, set, null_mut(), null_mut(), timeout) }
        };
        let soon = libc::timeval { tv_sec: 0, tv_usec: 2000 };
        assert_eq!(wait(Some(soon)), 0);
        // SAFETY: as above.
        unsafe {
            assert!(!libc::FD_ISSET(fd, &*set));
            libc::FD_SET(fd, &mut *set);
        }
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            peer.write_all(b"x").unwrap();
        });
        assert_eq!(wait(None), 1);
        // SAFETY: as above.
        assert!(unsafe { libc::FD_ISSET(fd, &*set) });
        writer.join().unwrap();
    });
}

/// How many numbers the process's table of descriptors has room for, in bits of whole bytes.
fn table_size() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn a_set_of_select_is_written_once_at_the_end() {
    on_one_loop(|| {
        let (one, mut peer) = UnixStream::pair().unwrap();
        let fd = one.as_raw_fd();
        // Beside the bits that count there is something else in the same memory.
        let memory = Rc::new(Cell::new([0_u64; 16]));
        let mut bits = [0_u64; 16];
        bits[fd as usize / 64] |= 1 << (fd % 64);
        memory.set(bits);
        let shared = Rc::clone(&memory);
        let selecting = begin(move || {
            let set = shared.as_ptr().cast::<libc::fd_set>();
            // SAFETY: a set that is there.
            unsafe { libc::select(fd + 1, set, null_mut(), null_mut(), null_mut()) }
        });
        kapok::sleep(Duration::from_millis(2)).unwrap();
        assert_eq!(memory.get(), bits, "while it waits it is as it was");
        peer.write_all(b"x").unwrap();
        assert_eq!(selecting.join().unwrap(), 1);
    });
}

#[test]
fn a_count_that_poll_refuses_is_refused_before_anybody_looks() {
    on_one_loop(|| {
        let mut one = libc::pollfd { fd: 0, events: 0, revents: 0 };
        for timeout in [0, 10] {
            // SAFETY: the kernel refuses the count.
            let res = unsafe { libc::poll(&raw mut one, libc::nfds_t::MAX, timeout) };
            assert_eq!((res, errno()), (-1, libc::EINVAL));
        }
    });
}

/// Accepts on a fiber with this address, while another ticks, and connects after a while.
fn accept_with(addr: *mut libc::sockaddr, len: *mut libc::socklen_t) -> (c_int, c_int, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (addr, len) = (addr as usize, len as usize);
    let accepting = begin(move || {
        // SAFETY: addresses that are there, or are faults that the kernel finds.
        let res = unsafe {
            let addr = std::ptr::with_exposed_provenance_mut(addr);
            let len = std::ptr::with_exposed_provenance_mut(len);
            libc::accept(listener.as_raw_fd(), addr, len)
        };
        (res, errno())
    });
    let begun = Instant::now();
    kapok::sleep(Duration::from_millis(20)).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "the thread was blocked");
    let client = TcpStream::connect(address).unwrap();
    let (res, error) = accepting.join().unwrap();
    (res, error, client)
}

#[test]
fn an_accept_with_half_an_address_suspends() {
    on_one_loop(|| {
        let mut len: libc::socklen_t = 16;
        let (fd, _, mut client) = accept_with(null_mut(), &raw mut len);
        assert!(fd >= 0);
        assert_eq!(len, 16);
        // SAFETY: a number of ours.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        let mut room = [0_u8; 16];
        let at = room.as_mut_ptr().cast();
        let mut negative = libc::socklen_t::MAX;
        for (len, error) in [(null_mut(), libc::EFAULT), (&raw mut negative, libc::EINVAL)] {
            let (res, found, mut client) = accept_with(at, len);
            assert_eq!((res, found), (-1, error));
            // The connection is lost, as it is with the system call.
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
        }
    });
}

/// A connection whose making suspends nobody, so that the loop has not turned when it is there.
fn connect_at_once(to: std::net::SocketAddr) -> TcpStream {
    let address = address_of(to);
    let (at, len) = ((&raw const address).cast(), size_of_val(&address) as libc::socklen_t);
    // SAFETY: a local; a descriptor that is ours.
    let client = unsafe {
        let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK;
        let fd = libc::socket(libc::AF_INET, kind, 0);
        assert!(libc::connect(fd, at, len) == 0 || errno() == libc::EINPROGRESS);
        TcpStream::from_raw_fd(fd)
    };
    client.set_nonblocking(false).unwrap();
    client
}

fn address_of(to: std::net::SocketAddr) -> libc::sockaddr_in {
    let std::net::SocketAddr::V4(to) = to else { unreachable!() };
    // SAFETY: integers.
    let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    address.sin_family = libc::AF_INET as _;
    address.sin_port = to.port().to_be();
    address.sin_addr.s_addr = u32::from_ne_bytes(to.ip().octets());
    address
}

#[test]
fn a_connection_that_comes_as_its_accept_is_stopped_is_served() {
    on_one_loop(|| {
        let listener = Rc::new(TcpListener::bind("127.0.0.1:0").unwrap());
        let address = listener.local_addr().unwrap();
        for round in 0..400_u32 {
            let accepts = || {
                let listener = Rc::clone(&listener);
                begin(move || listener.accept().map(|(connection, _)| connection))
            };
            let (first, second) = (accepts(), accepts());
            kapok::sleep(Duration::from_micros(200)).unwrap();
            let client = connect_at_once(address);
            // So that the cancel finds the accept begun, with a thread, landed and over.
            for _ in 0..round % 5 {
                kapok::yield_now();
            }
            let until = Instant::now() + Duration::from_micros(u64::from(round / 5 % 8) * 10);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            first.cancel();
            // Nobody else comes: the other gets this connection, or it has been accepted already.
            let by_first = first.join().unwrap();
            let other = by_first.is_ok().then(|| TcpStream::connect(address).unwrap());
            let by_second = second.join().unwrap().unwrap();
            let accepted = by_first.unwrap_or(by_second);
            assert_eq!(accepted.peer_addr().unwrap(), client.local_addr().unwrap(), "{round}");
            drop(other);
        }
    });
}

#[test]
fn a_first_send_that_connects_waits_as_a_thread_does() {
    on_one_loop(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = address_of(listener.local_addr().unwrap());
        let (at, len) = ((&raw const address).cast(), size_of_val(&address) as libc::socklen_t);
        let bytes = vec![9_u8; 300_000];
        for deferred in [false, true] {
            // SAFETY: no memory; a descriptor that is ours.
            let socket =
                unsafe { OwnedFd::from_raw_fd(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0)) };
            let fd = socket.as_raw_fd();
            let reader = {
                let listener = listener.try_clone().unwrap();
                std::thread::spawn(move || {
                    let mut all = Vec::new();
                    listener.accept().unwrap().0.read_to_end(&mut all).unwrap();
                    all.len()
                })
            };
            // SAFETY: locals, and bytes that are there.
            let sent = unsafe {
                if deferred {
                    let on: c_int = 1;
                    let (name, value) = (libc::TCP_FASTOPEN_CONNECT, (&raw const on).cast());
                    assert_eq!(libc::setsockopt(fd, libc::IPPROTO_TCP, name, value, 4), 0);
                    assert_eq!(libc::connect(fd, at, len), 0);
                    libc::send(fd, bytes.as_ptr().cast(), bytes.len(), 0)
                } else {
                    let (from, flags) = (bytes.as_ptr().cast(), libc::MSG_FASTOPEN);
                    libc::sendto(fd, from, bytes.len(), flags, at, len)
                }
            };
            assert_eq!(sent, bytes.len() as isize, "deferred: {deferred}, errno {}", errno());
            drop(socket);
            assert_eq!(reader.join().unwrap(), bytes.len());
        }
        // One that does not wait says what the thread's says.
        // SAFETY: as above.
        unsafe {
            let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK;
            let socket = OwnedFd::from_raw_fd(libc::socket(libc::AF_INET, kind, 0));
            let (from, flags) = (bytes.as_ptr().cast(), libc::MSG_FASTOPEN);
            let sent = libc::sendto(socket.as_raw_fd(), from, 10, flags, at, len);
            assert!(sent == 10 || (sent, errno()) == (-1, libc::EINPROGRESS));
        }
    });
}

/// The helpers that there are for one test: few, so that a test can use them up.
struct FewHelpers(usize);

impl FewHelpers {
    fn new() -> FewHelpers {
        let before = kapok_engine::offload::max_threads();
        kapok_engine::offload::set_max_threads(4);
        FewHelpers(before)
    }
}

impl Drop for FewHelpers {
    fn drop(&mut self) {
        kapok_engine::offload::set_max_threads(self.0);
    }
}

fn file_of(bytes: &[u8]) -> std::fs::File {
    // SAFETY: a name that ends; a descriptor that is ours.
    let mut file = unsafe { std::fs::File::from_raw_fd(libc::memfd_create(c"calls".as_ptr(), 0)) };
    file.write_all(bytes).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file
}

/// Has a socket have room for little: less than what is moved at once.
fn small_buffer(socket: &TcpStream) {
    let (bytes, fd): (c_int, RawFd) = (16 << 10, socket.as_raw_fd());
    // SAFETY: reads a local.
    let set = unsafe {
        let value = (&raw const bytes).cast();
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, value, 4)
    };
    assert_eq!(set, 0);
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index % 251) as u8).collect()
}

#[test]
fn downloads_that_stall_leave_the_helpers_to_others() {
    on_one_loop(|| {
        let _few = FewHelpers::new();
        let bytes = pattern(1 << 20);
        let pairs: Vec<_> = (0..12).map(|_| connected()).collect();
        let mut clients = Vec::new();
        let downloads: Vec<_> = pairs
            .into_iter()
            .enumerate()
            .map(|(index, (server, client))| {
                clients.push(client);
                small_buffer(&server);
                let mut file = file_of(&bytes);
                begin(move || {
                    let mut offset: libc::off_t = 5;
                    let by_offset = index % 2 == 0;
                    let at = if by_offset { &raw mut offset } else { null_mut() };
                    let (to, from) = (server.as_raw_fd(), file.as_raw_fd());
                    // SAFETY: an offset that is there.
                    let sent = unsafe { libc::sendfile(to, from, at, usize::MAX >> 1) };
                    (sent, offset, file.stream_position().unwrap(), by_offset)
                })
            })
            .collect();
        kapok::sleep(Duration::from_millis(50)).unwrap();
        // All of them wait for their readers, and a file can be read.
        assert!(!std::fs::read("/proc/self/comm").unwrap().is_empty());
        for (index, client) in clients.iter_mut().enumerate() {
            let skipped = if index % 2 == 0 { 5 } else { 0 };
            let mut got = vec![0; bytes.len() - skipped];
            client.read_exact(&mut got).unwrap();
            assert!(got == bytes[skipped..], "download {index}");
        }
        for download in downloads {
            let (sent, offset, position, by_offset) = download.join().unwrap();
            let expected = if by_offset { (1 << 20) - 5 } else { 1 << 20 };
            assert_eq!(sent, expected);
            let ends = if by_offset { (1 << 20, 0) } else { (5, 1 << 20) };
            assert_eq!((offset, position), ends);
        }
    });
}

fn pipe() -> [OwnedFd; 2] {
    let mut fds = [0; 2];
    // SAFETY: writes to a local; what it makes is ours.
    unsafe {
        assert_eq!(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC), 0);
        fds.map(|fd| OwnedFd::from_raw_fd(fd))
    }
}

fn splice(from: RawFd, out: RawFd, len: usize) -> isize {
    // SAFETY: no memory.
    unsafe { libc::splice(from, null_mut(), out, null_mut(), len, 0) }
}

#[test]
fn splices_that_stall_leave_the_helpers_to_others() {
    on_one_loop(|| {
        let _few = FewHelpers::new();
        // From an empty pipe to another; to a socket that is full; to a pipe that is full.
        let (from, to) = (pipe(), pipe());
        let (numbers, target) = (from[0].as_raw_fd(), to[1].as_raw_fd());
        let waiting: Vec<_> = (0..6).map(|_| begin(move || splice(numbers, target, 1))).collect();
        let (server, mut client) = connected();
        small_buffer(&server);
        server.set_nonblocking(true).unwrap();
        let filled = (&server).write(&vec![1; 16 << 20]).unwrap();
        server.set_nonblocking(false).unwrap();
        let full = pipe();
        let sender = {
            let (to, from) = (server.as_raw_fd(), full[0].as_raw_fd());
            let bytes = pattern(60_000);
            // SAFETY: bytes that are there, which the pipe has room for.
            let wrote =
                unsafe { libc::write(full[1].as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
            assert_eq!(wrote, 60_000);
            (0..6).map(move |_| begin(move || splice(from, to, 10_000))).collect::<Vec<_>>()
        };
        // What all of them wake for only one of them gets.
        let put = |bytes: &[u8]| {
            // SAFETY: bytes that are there.
            let wrote =
                unsafe { libc::write(from[1].as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
            assert_eq!(wrote, bytes.len() as isize);
        };
        put(b"a");
        kapok::sleep(Duration::from_millis(20)).unwrap();
        assert!(!std::fs::read("/proc/self/comm").unwrap().is_empty());
        let mut got = vec![0; filled + 60_000];
        client.read_exact(&mut got).unwrap();
        let sent: isize = sender.into_iter().map(|one| one.join().unwrap()).sum();
        assert_eq!(sent, 60_000);
        assert!(got[filled..] == pattern(60_000));
        put(b"bcdef");
        for one in waiting {
            assert_eq!(one.join().unwrap(), 1);
        }
        drop(server);
        // From connections that say nothing: from two of them several at once.
        let (quiet, into) = ([connected(), connected()], pipe());
        let waiting: Vec<_> = (0..8)
            .map(|index| {
                let (from, out) = (quiet[index % 2].0.as_raw_fd(), into[1].as_raw_fd());
                let flags = if index < 4 { libc::SPLICE_F_NONBLOCK } else { 0 };
                // SAFETY: no memory.
                begin(move || unsafe { libc::splice(from, null_mut(), out, null_mut(), 1, flags) })
            })
            .collect();
        kapok::sleep(Duration::from_millis(20)).unwrap();
        assert!(!std::fs::read("/proc/self/comm").unwrap().is_empty());
        for (_, client) in &quiet {
            (&*client).write_all(b"x").unwrap();
        }
        kapok::sleep(Duration::from_millis(20)).unwrap();
        assert!(!std::fs::read("/proc/self/comm").unwrap().is_empty());
        assert_eq!(waiting.iter().filter(|one| one.is_finished()).count(), 2);
        for (_, client) in &quiet {
            (&*client).write_all(b"yyy").unwrap();
        }
        let moved: isize = waiting.into_iter().map(|one| one.join().unwrap()).sum();
        assert_eq!(moved, 8);
    });
}

#[test]
fn a_fifo_that_nobody_else_opens_leaves_the_helpers_to_others() {
    on_one_loop(|| {
        let _few = FewHelpers::new();
        let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("fifos");
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        let paths: Vec<_> = (0..8)
            .map(|index| {
                let path = directory.join(format!("fifo-{index}"));
                let path = CString::new(path.to_str().unwrap()).unwrap();
                // SAFETY: a name that ends.
                assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
                path
            })
            .collect();
        let open = |path: &CString, flags: c_int| {
            let path = path.clone();
            begin(move || {
                // SAFETY: a name that ends.
                let fd = unsafe { libc::open(path.as_ptr(), flags) };
                (fd, errno())
            })
        };
        let readers: Vec<_> = paths.iter().map(|path| open(path, libc::O_RDONLY)).collect();
        kapok::sleep(Duration::from_millis(20)).unwrap();
        // One who gives up does not stay.
        let lonely = directory.join("lonely");
        let lonely = CString::new(lonely.to_str().unwrap()).unwrap();
        // SAFETY: a name that ends.
        assert_eq!(unsafe { libc::mkfifo(lonely.as_ptr(), 0o600) }, 0);
        let gives_up = open(&lonely, libc::O_WRONLY);
        kapok::sleep(Duration::from_millis(5)).unwrap();
        gives_up.cancel();
        assert_eq!(gives_up.join().unwrap(), (-1, libc::ECANCELED));
        // Its thread is let go, and closes what it gets.
        // SAFETY: a name that ends; a descriptor that is ours.
        let mut other_end = unsafe {
            let flags = libc::O_RDONLY | libc::O_NONBLOCK;
            std::fs::File::from_raw_fd(libc::open(lonely.as_ptr(), flags))
        };
        assert_eq!(other_end.read(&mut [0]).unwrap_or(0), 0);
        for (path, reader) in paths.iter().zip(readers) {
            let (writer, _) = open(path, libc::O_WRONLY).join().unwrap();
            let (reader, _) = reader.join().unwrap();
            assert!(writer >= 0 && reader >= 0);
            // SAFETY: descriptors that are ours.
            let (mut writer, mut reader) =
                unsafe { (std::fs::File::from_raw_fd(writer), std::fs::File::from_raw_fd(reader)) };
            writer.write_all(b"through").unwrap();
            let mut bytes = [0; 7];
            reader.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"through");
        }
    });
}

#[test]
fn what_the_engine_does_for_itself_is_no_call_of_the_programs() {
    on_one_loop(|| {
        let count = |name: &str| {
            let hook = kapok_libc::hooks().find(|hook| hook.name() == name).unwrap();
            hook.counts()
        };
        let names = ["write", "read", "pthread_sigmask", "sigprocmask", "poll", "close"];
        let before = names.map(count);
        // A helper thread is started under the pool's lock; its result rings the bell, and so does a
        // waker on a fiber.
        for _ in 0..40 {
            let all: Vec<_> = (0..8)
                .map(|_| begin(|| kapok::blocking(std::thread::yield_now).unwrap()))
                .collect();
            let (sender, mut receiver) = kapok::sync::oneshot::channel();
            let other = std::thread::spawn(move || {
                kapok::Runtime::builder().threads(1).build().unwrap().run(move || {
                    let waiting = kapok::spawn_local(move || receiver.recv());
                    waiting.join().unwrap().unwrap();
                });
            });
            std::thread::sleep(Duration::from_millis(1));
            sender.send(()).unwrap();
            all.into_iter().for_each(|one| one.join().unwrap());
            other.join().unwrap();
        }
        assert_eq!(names.map(count), before);
    });
}

#[test]
fn a_number_in_the_thousands_is_waited_for_too() {
    on_one_loop(|| {
        let (one, mut peer) = UnixStream::pair().unwrap();
        // SAFETY: numbers; what it makes is ours.
        let high = unsafe { libc::fcntl(one.into_raw_fd(), libc::F_DUPFD, 3000) };
        assert!(high >= 3000);
        let reader = begin(move || {
            // Twice as many words as a set of the usual size has.
            let mut set = vec![0_u64; 64];
            set[high as usize / 64] |= 1 << (high % 64);
            let at = set.as_mut_ptr().cast();
            // SAFETY: as many bits as are counted are there.
            let res = unsafe { libc::select(high + 1, at, null_mut(), null_mut(), null_mut()) };
            (res, set[high as usize / 64])
        });
        peer.write_all(b"x").unwrap();
        assert_eq!(reader.join().unwrap(), (1, 1 << (high % 64)));
    });
}
