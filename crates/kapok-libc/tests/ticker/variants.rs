//! The same calls by their other names: those of checked buffers, of large files and of old.

use std::cell::RefCell;
use std::ffi::CStr;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;

use super::*;

unsafe extern "C" {
    fn __read_chk(fd: c_int, buf: *mut c_void, len: usize, room: usize) -> isize;
    fn __recv_chk(fd: c_int, buf: *mut c_void, len: usize, room: usize, flags: c_int) -> isize;
    fn __recvfrom_chk(
        fd: c_int,
        buf: *mut c_void,
        len: usize,
        room: usize,
        flags: c_int,
        addr: *mut libc::sockaddr,
        addr_len: *mut libc::socklen_t,
    ) -> isize;
    fn __poll_chk(fds: *mut libc::pollfd, count: libc::nfds_t, ms: c_int, room: usize) -> c_int;
    fn __ppoll_chk(
        fds: *mut libc::pollfd,
        count: libc::nfds_t,
        timeout: *const libc::timespec,
        mask: *const libc::sigset_t,
        room: usize,
    ) -> c_int;
    fn __pread_chk(fd: c_int, buf: *mut c_void, len: usize, at: i64, room: usize) -> isize;
    fn __pread64_chk(fd: c_int, buf: *mut c_void, len: usize, at: i64, room: usize) -> isize;
    fn preadv64v2(fd: c_int, parts: *const libc::iovec, n: c_int, at: i64, flags: c_int) -> isize;
    fn pwritev64v2(fd: c_int, parts: *const libc::iovec, n: c_int, at: i64, flags: c_int) -> isize;
    fn __open_2(path: *const c_char, flags: c_int) -> c_int;
    fn __open64_2(path: *const c_char, flags: c_int) -> c_int;
    fn __openat_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int;
    fn __openat64_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int;
    fn closefrom(first: c_int);
    fn thrd_sleep(time: *const libc::timespec, left: *mut libc::timespec) -> c_int;
    fn thrd_yield();
    fn __sched_yield() -> c_int;
}

pub(super) fn streams() {
    fn readable(fd: RawFd) -> libc::pollfd {
        libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
    }
    let receives: [(&str, fn(RawFd) -> isize); 7] = [
        // SAFETY: room for what is asked, here and below.
        ("__read_chk", |fd| unsafe { __read_chk(fd, [0u8; 4].as_mut_ptr().cast(), 4, 4) }),
        // SAFETY: as above.
        ("__recv_chk", |fd| unsafe { __recv_chk(fd, [0u8; 4].as_mut_ptr().cast(), 4, 4, 0) }),
        // SAFETY: as above.
        ("__recvfrom_chk", |fd| unsafe {
            let bytes = [0u8; 4].as_mut_ptr().cast();
            __recvfrom_chk(fd, bytes, 4, 4, 0, null_mut(), null_mut())
        }),
        // SAFETY: as above.
        ("preadv2 of a socket", |fd| unsafe { libc::preadv2(fd, &part(&mut [0; 4]), 1, -1, 0) }),
        // SAFETY: as above.
        ("preadv64v2 of a socket", |fd| unsafe { preadv64v2(fd, &part(&mut [0; 4]), 1, -1, 0) }),
        // SAFETY: a local.
        ("__poll_chk", |fd| unsafe {
            let mut one = readable(fd);
            __poll_chk(&raw mut one, 1, -1, size_of_val(&one)) as isize
        }),
        // SAFETY: as above.
        ("__ppoll_chk", |fd| unsafe {
            let mut one = readable(fd);
            __ppoll_chk(&raw mut one, 1, null(), null(), size_of_val(&one)) as isize
        }),
    ];
    for (name, receive) in receives {
        receiving(name, receive);
    }
    let sends: [(&str, fn(RawFd) -> isize); 4] = [
        // SAFETY: bytes that are there, here and below.
        ("sendto", |fd| unsafe {
            let bytes = much();
            libc::sendto(fd, bytes.as_ptr().cast(), bytes.len(), 0, null(), 0)
        }),
        // SAFETY: as above.
        ("pwritev2 of a socket", |fd| unsafe { libc::pwritev2(fd, &part(&mut much()), 1, -1, 0) }),
        // SAFETY: as above.
        ("pwritev64v2 of a socket", |fd| unsafe { pwritev64v2(fd, &part(&mut much()), 1, -1, 0) }),
        ("sendfile64", |fd| {
            let file = file_of("sent", &much());
            // SAFETY: no offset is named.
            unsafe { libc::sendfile64(fd, file.as_raw_fd(), null_mut(), 8 << 20) }
        }),
    ];
    for (name, send) in sends {
        sending(name, send);
    }
}

/// Has these bytes, and no name.
fn file_of(name: &str, bytes: &[u8]) -> File {
    let path = path(name);
    std::fs::write(&path, bytes).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

/// Transfers at an offset.
pub(super) fn positional() {
    let transfers: [(&str, fn(RawFd, &mut [u8]) -> isize); 14] = [
        // SAFETY: bytes that are there, for all of these.
        ("pread64", |fd, to| unsafe { libc::pread64(fd, to.as_mut_ptr().cast(), to.len(), 9) }),
        // SAFETY: as above.
        ("__pread_chk", |fd, to| unsafe {
            __pread_chk(fd, to.as_mut_ptr().cast(), to.len(), 9, to.len())
        }),
        // SAFETY: as above.
        ("__pread64_chk", |fd, to| unsafe {
            __pread64_chk(fd, to.as_mut_ptr().cast(), to.len(), 9, to.len())
        }),
        // SAFETY: as above.
        ("preadv", |fd, to| unsafe { libc::preadv(fd, &part(to), 1, 9) }),
        // SAFETY: as above.
        ("preadv64", |fd, to| unsafe { libc::preadv64(fd, &part(to), 1, 9) }),
        // SAFETY: as above.
        ("preadv2", |fd, to| unsafe { libc::preadv2(fd, &part(to), 1, 9, 0) }),
        // SAFETY: as above.
        ("preadv64v2", |fd, to| unsafe { preadv64v2(fd, &part(to), 1, 9, 0) }),
        // SAFETY: as above.
        ("pwrite64", |fd, of| unsafe { libc::pwrite64(fd, of.as_ptr().cast(), of.len(), 9) }),
        // SAFETY: as above.
        ("pwritev", |fd, of| unsafe { libc::pwritev(fd, &part(of), 1, 9) }),
        // SAFETY: as above.
        ("pwritev64", |fd, of| unsafe { libc::pwritev64(fd, &part(of), 1, 9) }),
        // SAFETY: as above.
        ("pwritev2", |fd, of| unsafe { libc::pwritev2(fd, &part(of), 1, 9, 0) }),
        // SAFETY: as above.
        ("pwritev64v2", |fd, of| unsafe { pwritev64v2(fd, &part(of), 1, 9, 0) }),
        // SAFETY: as above.
        ("read of a file", |fd, to| unsafe {
            libc::lseek(fd, 9, libc::SEEK_SET);
            libc::read(fd, to.as_mut_ptr().cast(), to.len())
        }),
        // SAFETY: as above.
        ("write of a file", |fd, of| unsafe {
            libc::lseek(fd, 9, libc::SEEK_SET);
            libc::write(fd, of.as_ptr().cast(), of.len())
        }),
    ];
    for (name, transfer) in transfers {
        let file = file_of("positional", &vec![7; 1 << 20]);
        let bytes = RefCell::new(vec![7; 1 << 18]);
        again_beside_a_ticker(name, move || {
            transfer(file.as_raw_fd(), &mut bytes.borrow_mut()) > 0
        });
    }
}

/// A FIFO waits for its other end, by whatever name it is opened.
pub(super) fn openings() {
    const READS: c_int = libc::O_RDONLY;
    let path = path("fifo");
    let whole = CString::new(path.as_os_str().as_bytes()).unwrap();
    let last = CString::new(path.file_name().unwrap().as_bytes()).unwrap();
    // SAFETY: a name that ends.
    assert_eq!(unsafe { libc::mkfifo(whole.as_ptr(), 0o600) }, 0);
    let dir = File::open(path.parent().unwrap()).unwrap();

    // By the whole name, or by the last part of it in a directory.
    let opens: [(&str, fn(&CStr, RawFd, &CStr) -> c_int); 9] = [
        // SAFETY: names that end, for all of these.
        ("open64", |whole, _, _| unsafe { libc::open64(whole.as_ptr(), READS) }),
        // SAFETY: as above.
        ("openat", |_, dir, last| unsafe { libc::openat(dir, last.as_ptr(), READS) }),
        // SAFETY: as above.
        ("openat64", |_, dir, last| unsafe { libc::openat64(dir, last.as_ptr(), READS) }),
        // SAFETY: as above.
        ("__open_2", |whole, _, _| unsafe { __open_2(whole.as_ptr(), READS) }),
        // SAFETY: as above.
        ("__open64_2", |whole, _, _| unsafe { __open64_2(whole.as_ptr(), READS) }),
        // SAFETY: as above.
        ("__openat_2", |_, dir, last| unsafe { __openat_2(dir, last.as_ptr(), READS) }),
        // SAFETY: as above.
        ("__openat64_2", |_, dir, last| unsafe { __openat64_2(dir, last.as_ptr(), READS) }),
        // SAFETY: as above.
        ("creat", |whole, _, _| unsafe { libc::creat(whole.as_ptr(), 0o600) }),
        // SAFETY: as above.
        ("creat64", |whole, _, _| unsafe { libc::creat64(whole.as_ptr(), 0o600) }),
    ];
    for (name, open) in opens {
        let writes = name.starts_with("creat");
        let other = path.clone();
        later(move || drop(File::options().read(writes).write(!writes).open(other).unwrap()));
        let (whole, last, dir) = (whole.clone(), last.clone(), dir.as_raw_fd());
        beside_a_ticker(name, move || {
            let opened = open(&whole, dir, &last);
            assert!(opened >= 0, "{name}: {}", std::io::Error::last_os_error());
            // SAFETY: a number that nobody else has.
            assert_eq!(unsafe { libc::close(opened) }, 0);
        });
    }
    std::fs::remove_file(path).unwrap();
}

/// Closes of a file, which may wait for its file system: its own, and of what another takes the number of.
pub(super) fn closes() {
    /// A new number of the file, from `least` on.
    fn copy(file: RawFd, least: RawFd) -> RawFd {
        // SAFETY: no memory.
        let copied = unsafe { libc::fcntl(file, libc::F_DUPFD_CLOEXEC, least) };
        assert!(copied >= least, "{}", std::io::Error::last_os_error());
        copied
    }

    /// Of all numbers those that closefrom(3) may close: beyond Kapok's own.
    fn last() -> RawFd {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: writes to a local.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
        limit.rlim_cur.min(4096) as RawFd - 1
    }

    let closes: [(&str, fn(RawFd) -> bool); 5] = [
        // SAFETY: no memory, and numbers that nobody else has, for all of these.
        ("close", |file| unsafe { libc::close(copy(file, 0)) == 0 }),
        // SAFETY: as above.
        ("dup2", |file| unsafe {
            let new = copy(file, 0);
            libc::dup2(file, new) == new && libc::close(new) == 0
        }),
        // SAFETY: as above.
        ("dup3", |file| unsafe {
            let new = copy(file, 0);
            libc::dup3(file, new, libc::O_CLOEXEC) == new && libc::close(new) == 0
        }),
        // SAFETY: as above.
        ("close_range", |file| unsafe {
            let new = copy(file, 0) as u32;
            libc::close_range(new, new, 0) == 0
        }),
        // SAFETY: as above.
        ("closefrom", |file| unsafe {
            closefrom(copy(file, last()));
            true
        }),
    ];
    for (name, close) in closes {
        let file = file_of("closed", b"x");
        again_beside_a_ticker(name, move || close(file.as_raw_fd()));
    }

    // Kapok's own numbers, which are spared, lie behind it. It waits for a peer that takes nothing.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let _peer = listener.accept().unwrap();
    one.set_nonblocking(true).unwrap();
    while (&one).write(&[0; 1 << 16]).is_ok() {}
    let linger = libc::linger { l_onoff: 1, l_linger: 1 };
    let (at, len) = ((&raw const linger).cast(), size_of_val(&linger) as u32);
    // SAFETY: reads a local.
    let set =
        unsafe { libc::setsockopt(one.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, at, len) };
    assert_eq!(set, 0);
    let high = copy(one.as_raw_fd(), 880) as u32;
    drop(one);
    beside_a_ticker("close_range around Kapok's own", move || {
        // SAFETY: no memory, and numbers that nobody else has.
        assert_eq!(unsafe { libc::close_range(high, libc::FD_SETSIZE as u32 - 1, 0) }, 0);
    });
}

pub(super) fn turns() {
    beside_a_ticker("thrd_sleep", || {
        let time = libc::timespec { tv_sec: 0, tv_nsec: 70_000_000 };
        // SAFETY: a local.
        assert_eq!(unsafe { thrd_sleep(&raw const time, null_mut()) }, 0);
    });
    let yields: [(&str, fn() -> bool); 3] = [
        // SAFETY: no memory, for all of these.
        ("sched_yield", || unsafe { libc::sched_yield() == 0 }),
        // SAFETY: as above.
        ("__sched_yield", || unsafe { __sched_yield() == 0 }),
        // SAFETY: as above.
        ("thrd_yield", || unsafe {
            thrd_yield();
            true
        }),
    ];
    for (name, give_way) in yields {
        again_beside_a_ticker(name, move || {
            // Each gives the processor to other programs too, for as long as these may have it: so they
            // are not many, and what is seen is that the calls suspend.
            kapok::sleep(Duration::from_millis(5)).unwrap();
            give_way()
        });
    }
}
