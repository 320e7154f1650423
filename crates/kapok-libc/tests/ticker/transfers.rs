//! Calls that move bytes, or wait to.

use super::*;

pub(super) fn sockets() {
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
    beside_a_ticker("send of datagrams", move || {
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

pub(super) fn files() {
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
    unsafe extern "C" {
        fn fcntl64(fd: c_int, command: c_int, ...) -> c_int;
        fn lockf64(fd: c_int, command: c_int, len: i64) -> c_int;
    }
    let locks: [(&str, fn(RawFd, &mut libc::flock) -> c_int); 5] = [
        // SAFETY: a section that is there.
        ("F_SETLKW", |fd, section| unsafe { libc::fcntl(fd, libc::F_SETLKW, section) }),
        // SAFETY: as above.
        ("F_OFD_SETLKW", |fd, section| unsafe { libc::fcntl(fd, libc::F_OFD_SETLKW, section) }),
        // SAFETY: no memory.
        ("lockf", |fd, _| unsafe { libc::lockf(fd, libc::F_LOCK, 0) }),
        // SAFETY: a section that is there.
        ("fcntl64", |fd, section| unsafe {
            fcntl64(fd, libc::F_SETLKW, std::ptr::from_mut(section))
        }),
        // SAFETY: no memory.
        ("lockf64", |fd, _| unsafe { lockf64(fd, libc::F_LOCK, 0) }),
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
pub(super) fn disk() {
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
