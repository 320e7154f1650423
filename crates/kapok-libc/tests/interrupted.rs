//! What calls that have begun return when a handler ends them, and what they pass on.
//!
//! Each test runs in a process of its own, since signals and filters are a process's.

#![cfg(target_os = "linux")]

mod backlog;
mod isolated;

use std::ffi::c_int;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use backlog::full_listener;
use isolated::{HANDLED, SOON, errno, isolated, register, send};

/// What a call returned and errno, while a handler has run.
fn struck(what: &str, call: impl FnOnce() -> i64) -> (i64, c_int) {
    let before = HANDLED.load(std::sync::atomic::Ordering::SeqCst);
    let sender = send(libc::SIGUSR1, SOON);
    let result = call();
    let error = if result < 0 { errno() } else { 0 };
    sender.join().unwrap();
    assert_eq!(HANDLED.load(std::sync::atomic::Ordering::SeqCst), before + 1, "{what}");
    (result, error)
}

/// A pair of TCP and one of AF_UNIX.
fn pairs() -> [(&'static str, OwnedFd, OwnedFd); 2] {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = listener.accept().unwrap().0;
    let (one, other) = UnixStream::pair().unwrap();
    [("TCP", client.into(), server.into()), ("AF_UNIX", one.into(), other.into())]
}

#[test]
fn a_handler_leaves_a_receive_of_all_what_has_come() {
    isolated("a_handler_leaves_a_receive_of_all_what_has_come", || {
        // A handler that restarts what it interrupts finds nothing to restart either.
        for flags in [0, libc::SA_RESTART] {
            register(libc::SIGUSR1, flags);
            for (kind, one, other) in pairs() {
                let mut other = std::fs::File::from(other);
                other.write_all(b"two").unwrap();
                let mut bytes = [0_u8; 6];
                let (fd, at) = (one.as_raw_fd(), bytes.as_mut_ptr().cast());
                // SAFETY: room of that length.
                let receive = || unsafe { libc::recv(fd, at, 6, libc::MSG_WAITALL) as i64 };
                assert_eq!(struck(kind, receive), (3, 0), "{kind}");
                assert_eq!(&bytes, b"two\0\0\0", "{kind}");
                // The rest is the next call's.
                other.write_all(b"more").unwrap();
                let mut bytes = [0_u8; 4];
                // SAFETY: as above.
                let count =
                    unsafe { libc::recv(fd, bytes.as_mut_ptr().cast(), 4, libc::MSG_WAITALL) };
                assert_eq!((count, &bytes), (4, b"more"), "{kind}");
            }
        }
    });
}

type Sends = fn(RawFd, &[u8]) -> isize;

#[test]
fn a_handler_leaves_a_send_what_has_gone() {
    const LEN: usize = 16 << 20;
    isolated("a_handler_leaves_a_send_what_has_gone", || {
        let sends: [(&str, Sends); 2] = [
            // SAFETY: bytes that are there.
            ("send", |fd, bytes| unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), 0) }),
            // SAFETY: as above.
            ("write", |fd, bytes| unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) }),
        ];
        for flags in [0, libc::SA_RESTART] {
            register(libc::SIGUSR1, flags);
            for (name, sends) in sends {
                for (kind, one, other) in pairs() {
                    let bytes = vec![7_u8; LEN];
                    let (gone, error) = struck(name, || sends(one.as_raw_fd(), &bytes) as i64);
                    assert!(error == 0 && gone > 0 && gone < LEN as i64, "{name}, {kind}: {gone}");
                    // As many have come as were told.
                    drop(one);
                    let mut came = Vec::new();
                    std::fs::File::from(other).read_to_end(&mut came).unwrap();
                    assert_eq!(came.len() as i64, gone, "{name}, {kind}");
                }
                // With nothing to show for it, it is interrupted, or begun again.
                if flags == 0 {
                    let [_, (kind, one, _other)] = pairs();
                    let bytes = vec![7_u8; LEN];
                    struck(name, || sends(one.as_raw_fd(), &bytes) as i64);
                    let again = struck(name, || sends(one.as_raw_fd(), &bytes) as i64);
                    assert_eq!(again, (-1, libc::EINTR), "{name}, {kind}");
                }
            }
        }
    });
}

/// connect(2) to the address that a socket is bound to.
fn connect_to(fd: RawFd, listener: RawFd) -> i64 {
    // SAFETY: room as told, and an address of the length that it has.
    unsafe {
        let mut storage: libc::sockaddr_storage = std::mem::zeroed();
        let mut len = size_of_val(&storage) as libc::socklen_t;
        let at = (&raw mut storage).cast();
        assert_eq!(libc::getsockname(listener, at, &raw mut len), 0);
        i64::from(libc::connect(fd, at, len))
    }
}

#[test]
fn a_connect_that_a_handler_ends_goes_on() {
    isolated("a_connect_that_a_handler_ends_goes_on", || {
        register(libc::SIGUSR1, 0);
        let (listener, first) = full_listener();
        let to = listener.as_raw_fd();
        // SAFETY: no memory; a descriptor that is ours.
        let socket = unsafe {
            let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
            assert!(socket >= 0);
            OwnedFd::from_raw_fd(socket)
        };
        let fd = socket.as_raw_fd();
        assert_eq!(struck("connect", || connect_to(fd, to)), (-1, libc::EINTR));
        let set_nonblocking = |on| {
            let flags = libc::O_RDWR | if on { libc::O_NONBLOCK } else { 0 };
            // SAFETY: no memory.
            assert_eq!(unsafe { libc::fcntl(fd, libc::F_SETFL, flags) }, 0);
        };
        set_nonblocking(true);
        assert_eq!((connect_to(fd, to), errno()), (-1, libc::EALREADY));
        set_nonblocking(false);
        // It may be interrupted again, and is what it was.
        assert_eq!(struck("connect", || connect_to(fd, to)), (-1, libc::EINTR));
        drop((listener.accept().unwrap(), first));
        // One more that waits has it when the network has tried again.
        assert_eq!(connect_to(fd, to), 0);
        assert_eq!((connect_to(fd, to), errno()), (-1, libc::EISCONN));
    });
}

/// Linux itself has nobody accept a connection that is gone: it is handed out, and tells at the first read.
/// So a filter says it, of calls; what a ring accepts goes past that.
#[test]
fn accept_passes_on_that_the_connection_is_gone() {
    if isolated::apart("accept_passes_on_that_the_connection_is_gone").is_some_and(|output| {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", output.status);
        true
    }) {
        return;
    }
    kapok_libc::install();
    let runtime = kapok::Runtime::builder().threads(1).engine(kapok::Kind::Epoll).build().unwrap();
    runtime.run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // Whose threads are there already, or come from those that are.
        kapok::blocking(refuse_accepts).unwrap();
        let accepting = kapok::spawn_local(move || listener.accept().unwrap_err().raw_os_error());
        kapok::sleep(Duration::from_millis(10)).unwrap();
        assert!(!accepting.is_finished());
        let _client = TcpStream::connect(address).unwrap();
        assert_eq!(accepting.join().unwrap(), Some(libc::ECONNABORTED));
    });
}

/// Has every accept(2) of this process answered with `ECONNABORTED`.
fn refuse_accepts() {
    const FOR_ALL_THREADS: libc::c_ulong = 1;
    let [load, equal, answer] = [
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    ]
    .map(|code| code as u16);
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let gone = libc::SECCOMP_RET_ERRNO | libc::ECONNABORTED as u32;
    let mut steps = [
        step(load, 0, 0, 0),
        step(equal, 1, 0, libc::SYS_accept as u32),
        step(equal, 0, 1, libc::SYS_accept4 as u32),
        step(answer, 0, 0, gone),
        step(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: a program that is there, for a process that ends with this test.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        let set = libc::syscall(libc::SYS_seccomp, mode, FOR_ALL_THREADS, &raw const program);
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    }
}
