use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;

use kapok_engine::Completion;
use kapok_engine::entry::Entry;

use crate::places::{Place, header, part, room};

fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

/// Sends, and checks the landings: two on a ring, one elsewhere.
#[track_caller]
fn sends(place: &mut Place, entry: &Entry, far: &mut TcpStream, expected: &[u8]) -> Completion {
    let key = place.start(entry);
    let first = place.next(key);
    assert_eq!(first.res, expected.len() as i32, "{}", place.name);
    let mut bytes = vec![0; expected.len()];
    far.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, expected);
    if !place.is_ring() {
        assert!(first.is_terminal() && !first.is_notification());
        return first;
    }
    assert!(!first.is_terminal() && !first.is_notification(), "{first:?}");
    let second = place.next(key);
    assert!(second.is_terminal() && second.is_notification(), "{second:?}");
    second
}

/// Carries out one that fails, which may land once or twice, and answers its result.
#[track_caller]
fn fails(place: &mut Place, entry: &Entry) -> i32 {
    let key = place.start(entry);
    let landed = place.next(key);
    if !landed.is_terminal() {
        let last = place.next(key);
        assert!(last.is_terminal() && last.is_notification(), "{last:?}");
    }
    landed.res
}

#[test]
fn lands_twice() {
    const REPORT_USAGE: u16 = 8;
    let bytes = vec![b'z'; 3000];
    for mut place in Place::all() {
        let (near, mut far) = connection();
        let fd = near.as_raw_fd();
        let send = Entry::send_zc(fd, bytes.as_ptr(), bytes.len(), libc::MSG_NOSIGNAL, 0);
        let second = sends(&mut place, &send, &mut far, &bytes);
        if place.is_ring() {
            assert_eq!(second.res, 0);
            let send = Entry::send_zc(fd, bytes.as_ptr(), bytes.len(), 0, REPORT_USAGE);
            let second = sends(&mut place, &send, &mut far, &bytes);
            // Over the loopback it is copied after all.
            assert_eq!(second.res as u32, 1 << 31, "{second:?}");
        }
        drop(far);
        place.settled();
        let closed = Entry::send_zc(1_000_000_000, bytes.as_ptr(), 1, 0, 0);
        assert_eq!(fails(&mut place, &closed), -libc::EBADF);
        place.settled();
    }
}

#[test]
fn from_registered_memory() {
    for mut place in Place::all() {
        let (near, mut far) = connection();
        let mut memory = vec![b'-'; 4096];
        memory[100..110].copy_from_slice(b"registered");
        if place.is_ring() {
            // SAFETY: it is unregistered before the memory is freed.
            unsafe { place.uring().register_buffers(&[room(&mut memory)]) }.unwrap();
        }
        let start = memory[100..].as_ptr();
        let send = Entry::send_zc_fixed(near.as_raw_fd(), start, 10, 0, 0, 0);
        sends(&mut place, &send, &mut far, b"registered");
        if place.is_ring() {
            place.uring().unregister_buffers().unwrap();
            assert_eq!(fails(&mut place, &send), -libc::EFAULT, "it is no longer registered");
        }
        place.settled();
    }
}

#[test]
fn messages() {
    for mut place in Place::all() {
        let (near, mut far) = connection();
        let fd = near.as_raw_fd();
        let mut memory = vec![b'-'; 4096];
        memory[..4].copy_from_slice(b"gath");
        memory[1000..1004].copy_from_slice(b"ered");
        let mut parts = [part(&memory[..4]), part(&memory[1000..1004])];
        let message = header(&mut parts);
        let send = Entry::sendmsg_zc(fd, &raw const message, 0);
        sends(&mut place, &send, &mut far, b"gathered");
        let is_new = place.is_ring()
            && !place
                .uring()
                .operations()
                .unwrap()
                .has(Entry::readv_fixed(0, &raw const parts[0], 0, 0, 0, 0).opcode());
        if is_new {
            crate::places::say("NOT IN THIS KERNEL: sendmsg_zc_fixed");
            continue;
        }
        if place.is_ring() {
            // SAFETY: it is unregistered before the memory is freed.
            unsafe { place.uring().register_buffers(&[room(&mut memory)]) }.unwrap();
        }
        let send = Entry::sendmsg_zc_fixed(fd, &raw const message, 0, 0);
        sends(&mut place, &send, &mut far, b"gathered");
        if place.is_ring() {
            place.uring().unregister_buffers().unwrap();
        }
        place.settled();
    }
}
