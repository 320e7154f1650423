//! Listeners whose backlog is known.

use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

/// A listener that takes no further connection until somebody accepts, with what fills it.
#[allow(dead_code, reason = "not every test needs one")]
pub(crate) fn full_listener() -> (TcpListener, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // SAFETY: no memory.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let first = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    arrived(listener.as_raw_fd(), 1);
    (listener, first)
}

/// Waits until so many connections are in the listener's backlog. connect(2) returns before the last
/// acknowledgement is there, on a busy machine long before.
pub(crate) fn arrived(listener: RawFd, backlog: usize) {
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        // `tcpi_unacked`, which tells it of a listener.
        let mut info = [0_u32; 7];
        let mut len = size_of_val(&info) as libc::socklen_t;
        // SAFETY: a local of the size that is told.
        unsafe {
            let value = info.as_mut_ptr().cast();
            libc::getsockopt(listener, libc::IPPROTO_TCP, libc::TCP_INFO, value, &raw mut len);
        }
        if info[6] as usize >= backlog || Instant::now() > deadline {
            return;
        }
        std::thread::yield_now();
    }
}
