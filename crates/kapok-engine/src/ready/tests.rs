use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::ptr;

use super::*;
use crate::op::RawMetadata;
use crate::selector::{Busy, Mio, Poll, Select};

/// How long a machine may be busy with something else before a test gives up.
const LONG: Duration = Duration::from_secs(20);

/// Runs a test over every selector.
macro_rules! over_all {
    ($($name:ident),* $(,)?) => {$(
        #[test]
        fn $name() {
            over_all::$name::<Mio>();
            over_all::$name::<Poll>();
            over_all::$name::<Select>();
            over_all::$name::<Busy>();
        }
    )*};
}

over_all! {
    parked_receives_are_served_in_order,
    a_receive_of_all_waits_for_all_and_ends_with_what_there_is,
    the_end_of_a_stream_that_came_with_its_last_bytes_is_seen,
    urgent_data_does_not_hide_what_is_behind_it,
    passed_descriptors_do_not_hide_what_is_behind_them,
    closing_a_descriptor_lands_what_waits_for_it,
    a_number_in_a_new_epoch_does_not_serve_those_parked_in_the_old,
    cancelled_operations_land_once,
    files_go_through_threads,
    pipes_and_terminals_that_block_do_not_block_the_loop,
    a_bell_from_another_thread_ends_a_turn,
    timers_land_in_order_and_not_early,
    a_full_backlog_of_a_unix_listener_is_waited_out,
    a_full_unix_datagram_peer_is_waited_out,
    a_connect_that_is_refused_and_one_that_is_not,
    polls_do_not_take_and_do_not_miss,
    sweeps_find_nothing_where_nothing_is_lost,
    dropping_waits_for_threads,
}

fn key(index: u32) -> Key {
    Key::new(index, 3)
}

fn recv(fd: &impl AsRawFd, buf: &mut [u8], flags: i32) -> Op {
    Op::Recv { fd: fd.as_raw_fd(), buf: buf.as_mut_ptr(), len: buf.len(), flags }
}

fn submit<S: Selector>(engine: &mut Ready<S>, index: u32, op: Op) -> Submitted {
    // SAFETY: each test keeps what its operations name until they have landed or the engine is
    // dropped.
    unsafe { engine.submit(key(index), op) }
}

/// Turns until `count` operations have landed.
fn land<S: Selector>(engine: &mut Ready<S>, count: usize) -> Vec<(u32, i32)> {
    let (mut out, give_up) = (Vec::new(), Instant::now() + LONG);
    while out.len() < count {
        assert!(Instant::now() < give_up, "only {out:?} landed of {count}");
        engine.turn(Wait::Until(give_up), &mut out).unwrap();
    }
    out.iter().map(|one| (one.key.index(), one.res)).collect()
}

/// The result of an operation, at once or later.
fn result<S: Selector>(engine: &mut Ready<S>, op: Op) -> i32 {
    match submit(engine, 0, op) {
        Submitted::Done(res) => res,
        Submitted::Pending => land(engine, 1)[0].1,
    }
}

fn assert_quiet<S: Selector>(engine: &mut Ready<S>) {
    let mut out = Vec::new();
    for _ in 0..3 {
        engine.turn(Wait::No, &mut out).unwrap();
    }
    assert_eq!(out, []);
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    near.set_nodelay(true).unwrap();
    (near, listener.accept().unwrap().0)
}

/// A descriptor that the engine may remember things about while this lives.
struct Adopted<'a, F: AsRawFd>(&'a F);

impl<'a, F: AsRawFd> Adopted<'a, F> {
    fn new(of: &'a F) -> Self {
        descriptors::adopt(of.as_raw_fd());
        Adopted(of)
    }
}

impl<F: AsRawFd> Drop for Adopted<'_, F> {
    fn drop(&mut self) {
        descriptors::retire(self.0.as_raw_fd());
    }
}

mod over_all {
    use super::*;

    pub(super) fn parked_receives_are_served_in_order<S: Selector>() {
        for owned in [false, true] {
            let (mut near, far) = tcp_pair();
            let _adopted = owned.then(|| Adopted::new(&far));
            let mut engine = Ready::<S>::new().unwrap();
            let mut bufs = [[0u8; 2]; 3];
            for (index, buf) in (0..).zip(&mut bufs) {
                assert_eq!(submit(&mut engine, index, recv(&far, buf, 0)), Submitted::Pending);
            }
            assert_eq!(engine.in_flight(), 3);
            assert_quiet(&mut engine);
            near.write_all(b"abc").unwrap();
            assert_eq!(land(&mut engine, 2), [(0, 2), (1, 1)]);
            assert_quiet(&mut engine);
            near.write_all(b"d").unwrap();
            assert_eq!(land(&mut engine, 1), [(2, 1)]);
            assert_eq!(bufs, [*b"ab", *b"c\0", *b"d\0"]);
            assert_eq!(engine.in_flight(), 0);
        }
    }

    pub(super) fn a_receive_of_all_waits_for_all_and_ends_with_what_there_is<S: Selector>() {
        for owned in [false, true] {
            let (mut near, far) = tcp_pair();
            let _adopted = owned.then(|| Adopted::new(&far));
            let mut engine = Ready::<S>::new().unwrap();
            let mut buf = [0u8; 6];
            let op = recv(&far, &mut buf, libc::MSG_WAITALL);
            near.write_all(b"ab").unwrap();
            assert_eq!(submit(&mut engine, 0, op), Submitted::Pending);
            near.write_all(b"cd").unwrap();
            assert_quiet(&mut engine);
            near.write_all(b"efgh").unwrap();
            assert_eq!(land(&mut engine, 1), [(0, 6)]);
            assert_eq!(&buf, b"abcdef");
            assert_eq!(submit(&mut engine, 1, op), Submitted::Pending);
            engine.cancel(key(1));
            assert_eq!(land(&mut engine, 1), [(1, 2)], "what was received is not taken back");
            near.write_all(b"ij").unwrap();
            drop(near);
            assert_eq!(result(&mut engine, op), 2);
            assert_eq!(result(&mut engine, op), 0);
        }
        // The flag means nothing to datagrams.
        let (near, far) = UnixDatagram::pair().unwrap();
        near.send(b"xyz").unwrap();
        let mut engine = Ready::<S>::new().unwrap();
        let mut buf = [0u8; 8];
        let op = recv(&far, &mut buf, libc::MSG_WAITALL);
        assert_eq!(submit(&mut engine, 0, op), Submitted::Done(3));
    }

    pub(super) fn the_end_of_a_stream_that_came_with_its_last_bytes_is_seen<S: Selector>() {
        let (mut near, far) = tcp_pair();
        let _adopted = Adopted::new(&far);
        let mut engine = Ready::<S>::new().unwrap();
        let mut buf = [0u8; 64];
        let op = recv(&far, &mut buf, 0);
        for round in 0..3 {
            assert_eq!(submit(&mut engine, 0, op), Submitted::Pending, "{round}");
            near.write_all(b"hello").unwrap();
            assert_eq!(land(&mut engine, 1), [(0, 5)]);
            // That was short, so the next one is not even attempted.
            assert!(!engine.table.entry(far.as_raw_fd()).unwrap().readable);
        }
        assert_eq!(submit(&mut engine, 0, op), Submitted::Pending);
        near.write_all(b"bye").unwrap();
        drop(near);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(land(&mut engine, 1), [(0, 3)]);
        assert_eq!(result(&mut engine, op), 0);
        assert_eq!(result(&mut engine, op), 0);
    }

    pub(super) fn urgent_data_does_not_hide_what_is_behind_it<S: Selector>() {
        let (mut near, far) = tcp_pair();
        let _adopted = Adopted::new(&far);
        let mut engine = Ready::<S>::new().unwrap();
        let mut buf = [0u8; 64];
        let op = recv(&far, &mut buf, 0);
        assert_eq!(submit(&mut engine, 0, op), Submitted::Pending);
        near.write_all(b"before").unwrap();
        let urgent =
            Op::Send { fd: near.as_raw_fd(), buf: b"!".as_ptr(), len: 1, flags: libc::MSG_OOB };
        // SAFETY: the byte is static.
        assert_eq!(unsafe { perform(&urgent, true) }, 1);
        near.write_all(b"after").unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(land(&mut engine, 1), [(0, 6)]);
        assert_eq!(result(&mut engine, op), 5);
        assert_eq!(&buf[..5], b"after");
    }

    pub(super) fn passed_descriptors_do_not_hide_what_is_behind_them<S: Selector>() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let _adopted = Adopted::new(&far);
        let mut engine = Ready::<S>::new().unwrap();
        let mut buf = [0u8; 64];
        let op = recv(&far, &mut buf, 0);
        assert_eq!(submit(&mut engine, 0, op), Submitted::Pending);
        send_descriptor(&near, b"with", 0);
        near.write_all(b"behind").unwrap();
        assert_eq!(land(&mut engine, 1), [(0, 4)]);
        assert_eq!(result(&mut engine, op), 6);
    }

    fn send_descriptor(over: &UnixStream, bytes: &[u8], fd: RawFd) {
        let mut part =
            libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let mut control = [0u64; 8];
        // SAFETY: a header over locals that outlive the call; the control buffer is aligned and has
        // room for one descriptor.
        unsafe {
            let mut msg: libc::msghdr = std::mem::zeroed();
            msg.msg_iov = &raw mut part;
            msg.msg_iovlen = 1;
            msg.msg_control = control.as_mut_ptr().cast();
            msg.msg_controllen = libc::CMSG_SPACE(4) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const msg);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(4) as _;
            libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd);
            let op = Op::SendMsg { fd: over.as_raw_fd(), msg: &raw const msg, flags: 0 };
            assert_eq!(perform(&op, true), bytes.len() as i32);
        }
    }

    pub(super) fn closing_a_descriptor_lands_what_waits_for_it<S: Selector>() {
        let (near, far) = tcp_pair();
        let fd = far.as_raw_fd();
        descriptors::adopt(fd);
        let mut engine = Ready::<S>::new().unwrap();
        let mut bufs = [[0u8; 2]; 2];
        for (index, buf) in (0..).zip(&mut bufs) {
            assert_eq!(submit(&mut engine, index, recv(&far, buf, 0)), Submitted::Pending);
        }
        let urgent = Op::Poll { fd, events: Readiness(libc::POLLPRI) };
        assert_eq!(submit(&mut engine, 2, urgent), Submitted::Pending);
        descriptors::retire(fd);
        let fd = far.into_raw_fd();
        assert_eq!(submit(&mut engine, 3, Op::Close { fd }), Submitted::Done(0));
        let bad = -libc::EBADF;
        assert_eq!(land(&mut engine, 3), [(0, bad), (1, bad), (2, bad)]);
        assert_eq!((&near).read(&mut [0]).unwrap(), 0, "it was closed");
        assert_eq!(engine.in_flight(), 0);
    }

    pub(super) fn a_number_in_a_new_epoch_does_not_serve_those_parked_in_the_old<S: Selector>() {
        let (_near, far) = tcp_pair();
        let (mut other_near, other_far) = tcp_pair();
        let _adopted = Adopted::new(&far);
        let mut engine = Ready::<S>::new().unwrap();
        let (mut old, mut new) = ([0u8; 4], [0u8; 4]);
        assert_eq!(submit(&mut engine, 0, recv(&far, &mut old, 0)), Submitted::Pending);
        // Another object gets the number while the engine looks elsewhere.
        descriptors::retire(far.as_raw_fd());
        // SAFETY: both are open; dup2 replaces what `far` stands for.
        assert!(unsafe { libc::dup2(other_far.as_raw_fd(), far.as_raw_fd()) } >= 0);
        descriptors::adopt(far.as_raw_fd());
        assert_eq!(submit(&mut engine, 1, recv(&far, &mut new, 0)), Submitted::Pending);
        other_near.write_all(b"new").unwrap();
        assert_eq!(land(&mut engine, 2), [(0, -libc::EBADF), (1, 3)]);
        assert_eq!(&new, b"new\0");
    }

    pub(super) fn cancelled_operations_land_once<S: Selector>() {
        let (mut near, far) = tcp_pair();
        let mut engine = Ready::<S>::new().unwrap();
        let mut bufs = [[0u8; 2]; 3];
        for (index, buf) in (0..).zip(&mut bufs) {
            assert_eq!(submit(&mut engine, index, recv(&far, buf, 0)), Submitted::Pending);
        }
        let far_off = Instant::now() + Duration::from_secs(3600);
        assert_eq!(submit(&mut engine, 9, Op::Timer { deadline: far_off }), Submitted::Pending);
        engine.cancel(key(1));
        engine.cancel(key(1));
        engine.cancel(key(9));
        engine.cancel(Key::new(0, 4));
        engine.cancel(key(77));
        let cancelled = -libc::ECANCELED;
        assert_eq!(land(&mut engine, 2), [(1, cancelled), (9, cancelled)]);
        engine.cancel(key(1));
        near.write_all(b"abcd").unwrap();
        assert_eq!(land(&mut engine, 2), [(0, 2), (2, 2)]);
        assert_quiet(&mut engine);
    }

    pub(super) fn files_go_through_threads<S: Selector>() {
        let mut engine = Ready::<S>::new().unwrap();
        let dir = std::ffi::CString::new(std::env::temp_dir().to_str().unwrap()).unwrap();
        let flags = libc::O_TMPFILE | libc::O_RDWR;
        let open = Op::Open { dir: libc::AT_FDCWD, path: dir.as_ptr(), flags, mode: 0o600 };
        assert_eq!(submit(&mut engine, 5, open), Submitted::Pending);
        let fd = land(&mut engine, 1)[0].1;
        assert!(fd >= 0, "{fd}");
        let text = b"through a thread";
        let (buf, len) = (text.as_ptr(), text.len());
        let count = len as i32;
        assert_eq!(result(&mut engine, Op::Write { fd, buf, len, offset: 4 }), count);
        assert_eq!(result(&mut engine, Op::Sync { fd, data_only: false }), 0);
        assert_eq!(result(&mut engine, Op::Sync { fd, data_only: true }), 0);
        let mut back = [0u8; 32];
        let buf = back.as_mut_ptr();
        assert_eq!(result(&mut engine, Op::Read { fd, buf, len: 32, offset: 4 }), count);
        assert_eq!(&back[..text.len()], text);
        let offset = Op::CURRENT_POSITION;
        assert_eq!(result(&mut engine, Op::Read { fd, buf, len: 32, offset }), count + 4);
        assert_eq!(result(&mut engine, Op::Read { fd, buf, len: 32, offset }), 0);
        // SAFETY: all zeros is one.
        let mut metadata: RawMetadata = unsafe { std::mem::zeroed() };
        assert_eq!(result(&mut engine, Op::Metadata { fd, out: &raw mut metadata }), 0);
        assert_eq!(metadata.stx_size, u64::from(count as u32 + 4));
        assert_eq!(result(&mut engine, Op::Close { fd }), 0);
        assert_eq!(engine.in_flight(), 0);
    }

    pub(super) fn pipes_and_terminals_that_block_do_not_block_the_loop<S: Selector>() {
        let mut engine = Ready::<S>::new().unwrap();
        let read = |fd: &dyn Fn() -> RawFd, buf: &mut [u8]| Op::Read {
            fd: fd(),
            buf: buf.as_mut_ptr(),
            len: buf.len(),
            offset: Op::CURRENT_POSITION,
        };
        let mut buf = [0u8; 8];

        let (reader, mut writer) = std::io::pipe().unwrap();
        let op = read(&|| reader.as_raw_fd(), &mut buf);
        assert_eq!(submit(&mut engine, 1, op), Submitted::Pending);
        assert_quiet(&mut engine);
        writer.write_all(b"pipe").unwrap();
        assert_eq!(land(&mut engine, 1), [(1, 4)]);
        drop(writer);
        assert_eq!(result(&mut engine, op), 0);

        // A terminal has no non-blocking form at all.
        let (mut near, far) = (0, 0);
        let mut far = far;
        // SAFETY: openpty writes two descriptors; the rest may be null.
        let res = unsafe {
            libc::openpty(
                &raw mut near,
                &raw mut far,
                ptr::null_mut(),
                ptr::null_mut(),
                ptr::null_mut(),
            )
        };
        assert_eq!(res, 0);
        // SAFETY: they were just made.
        let (near, far) = unsafe { (File::from_raw_fd(near), OwnedFd::from_raw_fd(far)) };
        let op = read(&|| far.as_raw_fd(), &mut buf);
        assert_eq!(submit(&mut engine, 2, op), Submitted::Pending);
        assert_quiet(&mut engine);
        (&near).write_all(b"tty\n").unwrap();
        assert_eq!(land(&mut engine, 1), [(2, 4)]);

        let (near, far) = UnixStream::pair().unwrap();
        let op = read(&|| far.as_raw_fd(), &mut buf);
        assert_eq!(submit(&mut engine, 3, op), Submitted::Pending);
        (&near).write_all(b"sock").unwrap();
        assert_eq!(land(&mut engine, 1), [(3, 4)]);
        let write = Op::Write {
            fd: far.as_raw_fd(),
            buf: b"back".as_ptr(),
            len: 4,
            offset: Op::CURRENT_POSITION,
        };
        assert_eq!(result(&mut engine, write), 4);
        assert_eq!(result(&mut engine, Op::Shutdown { fd: far.as_raw_fd(), how: 2 }), 0);
        assert_eq!(result(&mut engine, write), -libc::EPIPE);
    }

    pub(super) fn a_bell_from_another_thread_ends_a_turn<S: Selector>() {
        let mut engine = Ready::<S>::new().unwrap();
        let bell = engine.bell();
        let (before, mut out) = (Instant::now(), Vec::new());
        bell.ring();
        engine.turn(Wait::Until(before + LONG), &mut out).unwrap();
        for _ in 0..20 {
            let bell = bell.clone();
            let ringer = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(1));
                bell.ring();
            });
            engine.turn(Wait::Until(before + LONG), &mut out).unwrap();
            ringer.join().unwrap();
        }
        assert!(before.elapsed() < LONG / 2);
        assert_eq!(out, []);
    }

    pub(super) fn timers_land_in_order_and_not_early<S: Selector>() {
        let mut engine = Ready::<S>::new().unwrap();
        let start = Instant::now();
        for (index, ms) in [(0, 30), (1, 10), (2, 20), (3, 0)] {
            let deadline = start + Duration::from_millis(ms);
            assert_eq!(submit(&mut engine, index, Op::Timer { deadline }), Submitted::Pending);
        }
        let mut last = None;
        for (index, ms) in [(3, 0), (1, 10), (2, 20), (0, 30)] {
            let (key, _) = *last.insert(land_one(&mut engine));
            assert_eq!(key, index);
            assert!(start.elapsed() >= Duration::from_millis(ms));
        }
        let deadline = Instant::now() + Duration::from_millis(1);
        assert_eq!(submit(&mut engine, 5, Op::Timer { deadline }), Submitted::Pending);
        assert!(engine.disarm(key(5)) && !engine.disarm(key(5)) && !engine.disarm(key(0)));
        assert_eq!(engine.in_flight(), 0);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(submit(&mut engine, 4, Op::Nop), Submitted::Pending);
        assert_eq!(land(&mut engine, 1), [(4, 0)]);
    }

    /// One at a time even if the machine was so busy that several expired.
    fn land_one<S: Selector>(engine: &mut Ready<S>) -> (u32, i32) {
        thread_local! {
            static LEFT: std::cell::RefCell<std::collections::VecDeque<(u32, i32)>> =
                const { std::cell::RefCell::new(std::collections::VecDeque::new()) };
        }
        LEFT.with_borrow_mut(|left| {
            if left.is_empty() {
                left.extend(land(engine, 1));
            }
            left.pop_front().unwrap()
        })
    }

    fn unix_address(path: &std::path::Path) -> (libc::sockaddr_storage, libc::socklen_t) {
        use std::os::unix::ffi::OsStrExt as _;
        let bytes = path.as_os_str().as_bytes();
        // SAFETY: all zeros is an address of no family; sockaddr_un fits sockaddr_storage.
        unsafe {
            let mut storage: libc::sockaddr_storage = std::mem::zeroed();
            let unix = (&raw mut storage).cast::<libc::sockaddr_un>();
            (*unix).sun_family = libc::AF_UNIX as libc::sa_family_t;
            assert!(bytes.len() < (*unix).sun_path.len());
            ptr::copy_nonoverlapping(
                bytes.as_ptr().cast(),
                (&raw mut (*unix).sun_path).cast::<libc::c_char>(),
                bytes.len(),
            );
            (storage, size_of::<libc::sockaddr_un>() as libc::socklen_t)
        }
    }

    fn unix_path(name: &str) -> std::path::PathBuf {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        std::env::temp_dir().join(format!("kapok-{name}-{}-{number}", std::process::id()))
    }

    fn socket(family: i32, kind: i32) -> OwnedFd {
        let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no memory is passed, and the descriptor is new.
        unsafe {
            let fd = libc::socket(family, kind, 0);
            assert!(fd >= 0);
            OwnedFd::from_raw_fd(fd)
        }
    }

    pub(super) fn a_full_backlog_of_a_unix_listener_is_waited_out<S: Selector>() {
        let path = unix_path("backlog");
        let listener = UnixListener::bind(&path).unwrap();
        // SAFETY: no memory is passed.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
        let (address, addr_len) = unix_address(&path);
        let mut engine = Ready::<S>::new().unwrap();
        let clients: Vec<_> = (0..4).map(|_| socket(libc::AF_UNIX, libc::SOCK_STREAM)).collect();
        let mut pending = 0;
        for (index, client) in (0..).zip(&clients) {
            let op = Op::Connect { fd: client.as_raw_fd(), addr: &raw const address, addr_len };
            match submit(&mut engine, index, op) {
                Submitted::Done(res) => assert_eq!(res, 0),
                Submitted::Pending => pending += 1,
            }
        }
        assert!(pending >= 2);
        // One of those that wait can be cancelled, and the rest gets through.
        engine.cancel(key(3));
        assert_eq!(land(&mut engine, 1), [(3, -libc::ECANCELED)]);
        let accepted: Vec<_> = (0..3).map(|_| listener.accept().unwrap()).collect();
        for (_, res) in land(&mut engine, pending - 1) {
            assert_eq!(res, 0);
        }
        drop((accepted, std::fs::remove_file(path)));
    }

    pub(super) fn a_full_unix_datagram_peer_is_waited_out<S: Selector>() {
        let path = unix_path("peer");
        let peer = UnixDatagram::bind(&path).unwrap();
        let (mut address, msg_namelen) = unix_address(&path);
        let sender = UnixDatagram::unbound().unwrap();
        let mut part = libc::iovec { iov_base: b"x".as_ptr().cast_mut().cast(), iov_len: 1 };
        // SAFETY: all zeros is an empty header.
        let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
        msg.msg_name = (&raw mut address).cast();
        msg.msg_namelen = msg_namelen;
        msg.msg_iov = &raw mut part;
        msg.msg_iovlen = 1;
        let op = Op::SendMsg { fd: sender.as_raw_fd(), msg: &raw const msg, flags: 0 };
        let mut engine = Ready::<S>::new().unwrap();
        let mut sent = 0;
        while submit(&mut engine, 0, op) == Submitted::Done(1) {
            sent += 1;
        }
        assert_quiet(&mut engine);
        for _ in 0..sent {
            assert_eq!(peer.recv(&mut [0; 4]).unwrap(), 1);
        }
        assert_eq!(land(&mut engine, 1), [(0, 1)]);
        drop(std::fs::remove_file(path));
    }

    pub(super) fn a_connect_that_is_refused_and_one_that_is_not<S: Selector>() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        // SAFETY: all zeros is an address of no family; sockaddr_in fits sockaddr_storage.
        let address = unsafe {
            let mut storage: libc::sockaddr_storage = std::mem::zeroed();
            let inet = (&raw mut storage).cast::<libc::sockaddr_in>();
            (*inet).sin_family = libc::AF_INET as libc::sa_family_t;
            (*inet).sin_port = port.to_be();
            (*inet).sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
            storage
        };
        let addr_len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        let connect = |client: &OwnedFd| Op::Connect {
            fd: client.as_raw_fd(),
            addr: &raw const address,
            addr_len,
        };
        let mut engine = Ready::<S>::new().unwrap();
        let fd = listener.as_raw_fd();
        let accept = Op::Accept { fd, addr: ptr::null_mut(), addr_len: ptr::null_mut() };
        for index in 1..4 {
            assert_eq!(submit(&mut engine, index, accept), Submitted::Pending);
        }
        let clients: Vec<_> = (0..3).map(|_| socket(libc::AF_INET, libc::SOCK_STREAM)).collect();
        let mut accepted = Vec::new();
        for client in &clients {
            match submit(&mut engine, 0, connect(client)) {
                Submitted::Done(res) => assert_eq!(res, 0),
                Submitted::Pending => accepted.extend(land(&mut engine, 1)),
            }
        }
        let give_up = Instant::now() + LONG;
        while engine.in_flight() > 0 {
            assert!(Instant::now() < give_up);
            accepted.extend(land(&mut engine, 1));
        }
        for &(index, res) in &accepted {
            assert!(res >= 0, "{res}");
            if index > 0 {
                // SAFETY: an accepted descriptor that nobody else knows.
                let stream = unsafe { OwnedFd::from_raw_fd(res) };
                assert!(!crate::sys::is_nonblocking(stream.as_raw_fd()));
            }
        }
        assert_eq!(accepted.iter().filter(|(index, _)| *index > 0).count(), 3);
        assert_eq!(result(&mut engine, connect(&clients[0])), -libc::EISCONN);
        drop(listener);
        let refused = socket(libc::AF_INET, libc::SOCK_STREAM);
        assert_eq!(result(&mut engine, connect(&refused)), -libc::ECONNREFUSED);
    }

    pub(super) fn polls_do_not_take_and_do_not_miss<S: Selector>() {
        let (mut near, far) = tcp_pair();
        let mut engine = Ready::<S>::new().unwrap();
        let fd = far.as_raw_fd();
        let both = Readiness::READABLE.union(Readiness::WRITABLE);
        let out = i32::from(Readiness::WRITABLE.0);
        assert_eq!(submit(&mut engine, 0, Op::Poll { fd, events: both }), Submitted::Done(out));
        let readable = Op::Poll { fd, events: Readiness::READABLE };
        for index in 0..2 {
            assert_eq!(submit(&mut engine, index, readable), Submitted::Pending);
        }
        assert_quiet(&mut engine);
        near.write_all(b"x").unwrap();
        assert_eq!(land(&mut engine, 2), [(0, 1), (1, 1)]);
        // An edge that was reported is not lost on those who come later.
        assert_eq!(result(&mut engine, readable), 1);
        assert_eq!((&far).read(&mut [0; 4]).unwrap(), 1);
        assert_eq!(submit(&mut engine, 2, readable), Submitted::Pending);
        drop(near);
        let (index, seen) = land(&mut engine, 1)[0];
        assert_eq!((index, seen & i32::from(libc::POLLIN)), (2, i32::from(libc::POLLIN)));
        let bad = Op::Poll { fd: 999_999_999, events: both };
        let res = if S::LIMIT.is_some() { -libc::EMFILE } else { -libc::EBADF };
        assert_eq!(submit(&mut engine, 3, bad), Submitted::Done(res));
    }

    pub(super) fn sweeps_find_nothing_where_nothing_is_lost<S: Selector>() {
        let mut engine = Ready::<S>::new().unwrap();
        let pairs: Vec<_> = (0..8).map(|_| tcp_pair()).collect();
        let _adopted: Vec<_> = pairs.iter().step_by(2).map(|(_, far)| Adopted::new(far)).collect();
        let mut bufs = [[0u8; 3]; 8];
        let mut waiting = [false; 8];
        for round in 0..200usize {
            for (index, (_, far)) in (0..).zip(&pairs) {
                let at = index as usize;
                while !waiting[at] {
                    let op = recv(far, &mut bufs[at], 0);
                    waiting[at] = submit(&mut engine, index, op) == Submitted::Pending;
                }
            }
            for (near, _) in pairs.iter().skip(round % 3).step_by(1 + round % 4) {
                let mut near = near;
                near.write_all(&b"some bytes"[..1 + round % 10]).unwrap();
            }
            if round % 2 == 0 {
                assert_eq!(engine.sweep().unwrap(), 0);
            }
            let mut out = Vec::new();
            engine.turn(Wait::No, &mut out).unwrap();
            for one in out {
                waiting[one.key.index() as usize] = false;
            }
        }
        assert_eq!(engine.lost_edges(), 0);
    }

    pub(super) fn dropping_waits_for_threads<S: Selector>() {
        let mut engine = Ready::<S>::new().unwrap();
        let file = File::open("/proc/self/exe").unwrap();
        // SAFETY: all zeros is one.
        let mut metadata: Vec<RawMetadata> =
            (0..64).map(|_| unsafe { std::mem::zeroed() }).collect();
        for (index, out) in (0..).zip(&mut metadata) {
            let op = Op::Metadata { fd: file.as_raw_fd(), out };
            assert_eq!(submit(&mut engine, index, op), Submitted::Pending);
        }
        drop(engine);
        // Each was either carried out or never will be.
        let sizes: Vec<u64> = metadata.iter().map(|one| one.stx_size).collect();
        std::thread::sleep(Duration::from_millis(20));
        assert!(metadata.iter().map(|one| one.stx_size).eq(sizes));
    }
}

#[test]
fn a_lost_edge_is_found_and_delivered() {
    for owned in [false, true] {
        let (mut near, far) = tcp_pair();
        let _adopted = owned.then(|| Adopted::new(&far));
        let mut engine = Ready::<Mio>::new().unwrap();
        let mut buf = [0u8; 8];
        let mut out = Vec::new();
        assert_eq!(submit(&mut engine, 0, recv(&far, &mut buf, 0)), Submitted::Pending);
        // The edge of having been registered while writable.
        assert_quiet(&mut engine);
        assert_eq!(engine.sweep().unwrap(), 0);
        engine.swallow = Some(far.as_raw_fd());
        near.write_all(b"lost").unwrap();
        let give_up = Instant::now() + LONG;
        while engine.swallow.is_some() && Instant::now() < give_up {
            engine.turn(Wait::Until(give_up), &mut out).unwrap();
        }
        assert_quiet(&mut engine);
        assert_eq!(engine.sweep().unwrap(), 0, "it may be on its way");
        assert_quiet(&mut engine);
        assert_eq!(engine.sweep().unwrap(), 1);
        assert_eq!(land(&mut engine, 1), [(0, 4)]);
        assert_eq!((engine.sweep().unwrap(), engine.lost_edges()), (0, 1));
    }
}

#[test]
fn a_foreign_number_closed_under_an_operation_is_noticed() {
    fn noticed<S: Selector>() {
        let (_near, far) = tcp_pair();
        let mut engine = Ready::<S>::new().unwrap();
        let mut buf = [0u8; 8];
        // A number so high that no other test of this process is given it meanwhile.
        // SAFETY: fcntl with integers; the number is closed below.
        let fd = unsafe { libc::fcntl(far.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 900) };
        assert!((900..1024).contains(&fd));
        assert_eq!(submit(&mut engine, 0, recv(&fd, &mut buf, 0)), Submitted::Pending);
        // SAFETY: made above.
        assert_eq!(unsafe { libc::close(fd) }, 0);
        assert_eq!(engine.sweep().unwrap(), 0);
        assert_eq!(land(&mut engine, 1), [(0, -libc::EBADF)]);
    }
    noticed::<Mio>();
    noticed::<Poll>();
    noticed::<Select>();
    noticed::<Busy>();
}

#[test]
fn descriptors_beyond_the_sets_of_select_are_refused() {
    let mut engine = Ready::<Select>::new().unwrap();
    let limit = engine.descriptor_limit().unwrap();
    assert_eq!(limit, 1024);
    let (mut near, far) = tcp_pair();
    // SAFETY: getrlimit and setrlimit on a local; fcntl with integers makes a new descriptor.
    let high = unsafe {
        let mut files: libc::rlimit = std::mem::zeroed();
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut files), 0);
        files.rlim_cur = files.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files), 0);
        let fd = libc::fcntl(far.as_raw_fd(), libc::F_DUPFD_CLOEXEC, limit);
        assert!(fd >= limit);
        OwnedFd::from_raw_fd(fd)
    };
    near.write_all(b"x").unwrap();
    let mut buf = [0u8; 1];
    let op = recv(&high, &mut buf, 0);
    assert_eq!(submit(&mut engine, 0, op), Submitted::Done(-libc::EMFILE));
    assert_eq!(submit(&mut engine, 0, recv(&far, &mut buf, 0)), Submitted::Done(1));
    // A file of such a number is none of select's business.
    let file = File::open("/proc/self/exe").unwrap();
    // SAFETY: as above.
    let high = unsafe {
        OwnedFd::from_raw_fd(libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, limit))
    };
    let buf = buf.as_mut_ptr();
    let read = Op::Read { fd: high.as_raw_fd(), buf, len: 1, offset: 0 };
    assert_eq!(result(&mut engine, read), 1);
}

#[test]
fn waiting_costs_no_registration_on_owned_descriptors() {
    let (mut near, far) = tcp_pair();
    let _adopted = Adopted::new(&far);
    let mut engine = Ready::<Mio>::new().unwrap();
    let mut buf = [0u8; 64];
    let op = recv(&far, &mut buf, 0);
    assert_eq!(submit(&mut engine, 0, op), Submitted::Pending);
    assert_quiet(&mut engine);
    let entry = engine.table.entry(far.as_raw_fd()).unwrap();
    assert!(entry.watched && !entry.readable && !entry.unsettled);
    near.write_all(b"x").unwrap();
    assert_eq!(land(&mut engine, 1), [(0, 1)]);
    // Nothing is known to be there, so the data that comes now is not even looked for …
    near.write_all(b"y").unwrap();
    assert_eq!(submit(&mut engine, 0, op), Submitted::Pending);
    // … before its edge.
    assert_eq!(land(&mut engine, 1), [(0, 1)]);
}
