//! Several messages at once, where not all of them can be sent or received.

#![cfg(target_os = "linux")]

mod one_loop;

use std::ffi::c_int;
use std::io::Read;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use one_loop::{begin, connected, errno};

const SHORT: Duration = Duration::from_millis(30);

fn set(fd: RawFd, option: c_int, value: &[u8]) {
    let len = value.len() as libc::socklen_t;
    // SAFETY: reads a local of the length that is told.
    let res = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, value.as_ptr().cast(), len) };
    assert_eq!(res, 0);
}

/// What sendmmsg(2) of a large message and a small one returns, and how much of the large one went, if the
/// peer begins to read after the time that the first may take.
fn sent_to_a_late_reader(len: usize) -> (c_int, usize) {
    static BEGINS: AtomicBool = AtomicBool::new(false);
    let (server, mut client) = connected();
    set(server.as_raw_fd(), libc::SO_SNDBUF, &(64_i32 << 10).to_ne_bytes());
    let limit = [0_i64.to_ne_bytes(), (SHORT.as_micros() as i64).to_ne_bytes()].concat();
    set(server.as_raw_fd(), libc::SO_SNDTIMEO, &limit);
    BEGINS.store(false, Ordering::SeqCst);
    let reader = std::thread::spawn(move || {
        while !BEGINS.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        // While the second message would wait.
        std::thread::sleep(SHORT + SHORT / 2);
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        all
    });
    let (large, small) = (vec![1_u8; len], *b"small");
    let mut parts = [
        libc::iovec { iov_base: large.as_ptr().cast_mut().cast(), iov_len: large.len() },
        libc::iovec { iov_base: small.as_ptr().cast_mut().cast(), iov_len: small.len() },
    ];
    let mut messages = [0, 1].map(|index| {
        // SAFETY: all zeros is a header.
        let mut one: libc::mmsghdr = unsafe { std::mem::zeroed() };
        one.msg_hdr.msg_iov = &raw mut parts[index];
        one.msg_hdr.msg_iovlen = 1;
        one
    });
    BEGINS.store(true, Ordering::SeqCst);
    // SAFETY: two messages of bytes that stay.
    let sent = unsafe { libc::sendmmsg(server.as_raw_fd(), messages.as_mut_ptr(), 2, 0) };
    drop(server);
    let all = reader.join().unwrap();
    let of_large = messages[0].msg_len as usize;
    let of_small = if sent == 2 { small.len() } else { 0 };
    assert_eq!(all.len(), of_large + of_small);
    (sent, of_large)
}

#[test]
fn what_follows_a_message_that_was_cut_is_not_sent() {
    one_loop::run(Duration::from_secs(60), || {
        // More than the buffers of both sides take.
        let len = 16 << 20;
        let mut was_cut = false;
        for _ in 0..5 {
            let (sent, of_large) = sent_to_a_late_reader(len);
            match sent {
                // All of it, if the reader came before the time was over.
                2 => assert_eq!(of_large, len),
                _ => was_cut |= (sent, of_large < len) == (1, true),
            }
        }
        assert!(was_cut);
    });
}

#[test]
fn an_error_after_the_first_datagram_is_left_for_the_next_call() {
    one_loop::run(Duration::from_secs(60), || {
        let (near, far) = ["127.0.0.1:0"; 2].map(|any| UdpSocket::bind(any).unwrap()).into();
        near.connect(far.local_addr().unwrap()).unwrap();
        let fd = near.as_raw_fd();
        let receiver = begin(move || {
            let mut bytes = [[0_u8; 8]; 2];
            let mut parts = bytes.each_mut().map(|bytes| libc::iovec {
                iov_base: bytes.as_mut_ptr().cast(),
                iov_len: bytes.len(),
            });
            let mut messages = parts.each_mut().map(|part| {
                // SAFETY: all zeros is a header.
                let mut one: libc::mmsghdr = unsafe { std::mem::zeroed() };
                one.msg_hdr.msg_iov = part;
                one.msg_hdr.msg_iovlen = 1;
                one
            });
            // SAFETY: two messages with room for bytes.
            let received = unsafe { libc::recvmmsg(fd, messages.as_mut_ptr(), 2, 0, null_mut()) };
            (received, messages[0].msg_len, errno())
        });
        far.send_to(b"one", near.local_addr().unwrap()).unwrap();
        // It waits for the second.
        kapok::sleep(Duration::from_millis(5)).unwrap();
        assert!(!receiver.is_finished());
        drop(far);
        // Which nobody takes, and that is told.
        near.send(b"two").unwrap();
        let (received, len, _) = receiver.join().unwrap();
        assert_eq!((received, len), (1, 3));
        near.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let refused = near.recv(&mut [0; 8]).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ECONNREFUSED));
    });
}
