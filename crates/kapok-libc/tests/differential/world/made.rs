//! What a world is made of, and what the network has still to do for it.

use std::ffi::{c_int, c_long};
use std::mem::zeroed;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

pub(super) fn pair(domain: c_int, kind: c_int) -> [RawFd; 2] {
    let mut fds = [0; 2];
    // SAFETY: writes to a local.
    assert_eq!(unsafe { libc::socketpair(domain, kind, 0, fds.as_mut_ptr()) }, 0);
    fds
}

pub(super) fn loopback() -> libc::sockaddr_in {
    // SAFETY: integers.
    let mut address: libc::sockaddr_in = unsafe { zeroed() };
    address.sin_family = libc::AF_INET as _;
    address.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
    address
}

pub(super) fn bound(kind: c_int) -> (RawFd, libc::sockaddr_in) {
    let mut address = loopback();
    let mut len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: locals of the sizes that are told.
    unsafe {
        let fd = libc::socket(libc::AF_INET, kind, 0);
        assert!(fd >= 0);
        assert_eq!(libc::bind(fd, (&raw const address).cast(), len), 0);
        assert_eq!(libc::getsockname(fd, (&raw mut address).cast(), &raw mut len), 0);
        (fd, address)
    }
}

/// Waits until the peer of a TCP socket has acknowledged its end, which wakes those who wait for the socket
/// at a time of the peer's choice.
pub(super) fn acknowledged(fd: RawFd, peer: RawFd) {
    /// `TCP_FIN_WAIT1`, `TCP_LAST_ACK` and `TCP_CLOSING`.
    const ON_ITS_WAY: [u8; 3] = [4, 9, 11];
    let (on, tcp): (c_int, _) = (1, libc::IPPROTO_TCP);
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        // The state comes first.
        let mut info = [0_u8; 8];
        let mut len = info.len() as libc::socklen_t;
        // SAFETY: locals of the sizes that are told.
        unsafe {
            let value = (&raw const on).cast();
            libc::setsockopt(peer, tcp, libc::TCP_QUICKACK, value, size_of_val(&on) as _);
            libc::getsockopt(fd, tcp, libc::TCP_INFO, (&raw mut info).cast(), &raw mut len);
        }
        if !ON_ITS_WAY.contains(&info[0]) || Instant::now() > deadline {
            return;
        }
        std::hint::spin_loop();
    }
}

pub(super) fn connect(fd: RawFd, address: &libc::sockaddr_in) -> c_int {
    // SAFETY: an address of its size.
    unsafe { libc::connect(fd, (&raw const *address).cast(), size_of_val(address) as _) }
}

pub(super) fn set_time_outs(fd: RawFd, ms: u32) -> c_int {
    let time = libc::timeval { tv_sec: 0, tv_usec: c_long::from(ms) * 1000 };
    let mut res = 0;
    for name in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
        // SAFETY: reads a local.
        res |= unsafe {
            let len = size_of_val(&time) as libc::socklen_t;
            libc::setsockopt(fd, libc::SOL_SOCKET, name, (&raw const time).cast(), len)
        };
    }
    res
}

/// An unnamed file of 5,000 bytes.
pub(super) fn file() -> RawFd {
    // SAFETY: a name that ends, and bytes that are there.
    unsafe {
        let fd = libc::memfd_create(c"differential".as_ptr(), 0);
        assert!(fd >= 0);
        let bytes: Vec<u8> = (0..5000).map(|index| index as u8).collect();
        assert_eq!(libc::pwrite(fd, bytes.as_ptr().cast(), bytes.len(), 0), 5000);
        fd
    }
}
