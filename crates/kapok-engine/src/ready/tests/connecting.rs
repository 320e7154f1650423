//! Connects, and the full queues that poll(2) says nothing about.

use super::*;

over_all! {
    a_full_backlog_of_a_unix_listener_is_waited_out,
    a_full_unix_datagram_peer_is_waited_out,
    a_cancelled_connect_is_not_tried_again,
    a_connect_that_is_refused_and_one_that_is_not,
}

mod over_all {
    use super::*;

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
                Submitted::Done(res) | Submitted::DoneIn(res, _) => assert_eq!(res, 0),
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

    /// Whoever cancels it may close the number, which is another socket's from then on.
    pub(super) fn a_cancelled_connect_is_not_tried_again<S: Selector>() {
        let path = unix_path("cancelled");
        let listener = UnixListener::bind(&path).unwrap();
        // SAFETY: no memory is passed.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
        let (address, addr_len) = unix_address(&path);
        let connect = |client: &OwnedFd| Op::Connect {
            fd: client.as_raw_fd(),
            addr: &raw const address,
            addr_len,
        };
        let mut engine = Ready::<S>::new().unwrap();
        let first = socket(libc::AF_UNIX, libc::SOCK_STREAM);
        assert_eq!(submit(&mut engine, 0, connect(&first)), Submitted::Done(0));
        let waits = socket(libc::AF_UNIX, libc::SOCK_STREAM);
        assert_eq!(submit(&mut engine, 1, connect(&waits)), Submitted::Pending);
        // Long enough for it to be tried seldom.
        std::thread::sleep(Duration::from_millis(40));
        engine.cancel(key(1));
        let other = socket(libc::AF_UNIX, libc::SOCK_STREAM);
        // SAFETY: the number is this test's, and goes on being an open file.
        assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), waits.as_raw_fd()) }, waits.as_raw_fd());
        drop(listener.accept().unwrap());
        std::thread::sleep(Duration::from_millis(40));
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "another socket was connected");
        assert_eq!(land(&mut engine, 1), [(1, -libc::ECANCELED)]);
        drop(std::fs::remove_file(path));
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
                Submitted::Done(res) | Submitted::DoneIn(res, _) => assert_eq!(res, 0),
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
}
