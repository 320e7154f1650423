//! No buffer comes back while the kernel still reads it.
#![cfg(target_os = "linux")]

mod harness;

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use kapok_pool::entry::Entry;
use kapok_pool::{Kind, Pool, Via};

/// Has sends with `MSG_ZEROCOPY` go without a copy.
fn allow_zero_copy(socket: &TcpStream) {
    let (fd, on) = (socket.as_raw_fd(), 1);
    let (level, option, len) = (libc::SOL_SOCKET, libc::SO_ZEROCOPY, size_of::<i32>() as u32);
    // SAFETY: reads a local of that length.
    let set = unsafe { libc::setsockopt(fd, level, option, (&raw const on).cast(), len) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

/// Whether the kernel tells within `limit_ms` that it is done with pages of a sender's.
fn is_told_of_pages(socket: &TcpStream, limit_ms: i32) -> bool {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one place, which is a local.
    assert!(unsafe { libc::poll(&raw mut poll, 1, limit_ms) } >= 0);
    poll.revents & libc::POLLERR != 0
}

#[test]
fn a_send_copies_whatever_its_flags_say() {
    const LEN: usize = 64 << 10;
    let mut kinds = vec![Kind::Epoll];
    kinds.extend(harness::has_uring().then_some(Kind::Uring));
    for kind in kinds {
        let pool = Pool::builder().engine(kind).build().unwrap();
        for via in [Via::Auto, Via::Thread] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut far, _) = listener.accept().unwrap();
            allow_zero_copy(&near);
            let near = Arc::new(near);
            let flags = libc::MSG_ZEROCOPY | libc::MSG_NOSIGNAL;
            let (count, mut content) = pool.send(&near, vec![7; LEN], flags).via(via).block();
            let count = count.unwrap();
            // It is the sender's again, whatever has been received by now.
            content.fill(8);
            let mut received = vec![0; count];
            far.read_exact(&mut received).unwrap();
            assert!(received.iter().all(|&byte| byte == 7), "{kind}, {via}: a page was sent late");
            assert!(!is_told_of_pages(&near, 100), "{kind}, {via}: pages were lent to the kernel");
        }
    }
}

/// It lands twice: with how much was sent, and when the kernel reads the bytes no more.
#[test]
fn an_entry_that_sends_without_a_copy_tells_how_much_it_sent() {
    if !harness::has_uring() {
        return;
    }
    const LEN: usize = 64 << 10;
    let pool = Pool::builder().engine(Kind::Uring).build().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    let send = |(socket, bytes): &mut (TcpStream, Vec<u8>)| {
        Entry::send_zc(socket.as_raw_fd(), bytes.as_ptr(), bytes.len(), 0, 0)
    };
    let receiving = std::thread::spawn(move || {
        let mut received = Vec::new();
        far.read_to_end(&mut received).unwrap();
        received
    });
    // SAFETY: the bytes are on the heap and kept, and so is the socket.
    let operation = unsafe { pool.entry((near, vec![7; LEN]), send) };
    let (landed, (socket, mut bytes)) = operation.block();
    let count = landed.unwrap().res as usize;
    assert!(count > 0, "the second landing counts nothing");
    bytes.fill(8);
    drop(socket);
    assert_eq!(receiving.join().unwrap(), vec![7; count]);
}
