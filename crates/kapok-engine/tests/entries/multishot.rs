use std::collections::VecDeque;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use kapok_engine::entry::{Entry, Slot};
use kapok_engine::{Buffers, Completion, Key, Wait};

use crate::places::{Place, header, refused_elsewhere};

const GROUP: u16 = 3;

/// What landed in one of the buffers, which is given back.
fn bytes(buffers: &Buffers, completion: Completion) -> Vec<u8> {
    let id = completion.buffer().unwrap_or_else(|| panic!("{completion:?} has no buffer"));
    let len = completion.res as usize;
    assert!(len <= buffers.bytes());
    // SAFETY: it was received into a buffer that is ours since it landed, and goes back once.
    unsafe {
        let bytes = std::slice::from_raw_parts(buffers.start(id).as_ptr(), len).to_vec();
        buffers.give_back(id);
        bytes
    }
}

/// A ring with a group of buffers of this size.
fn ring(bytes: u32) -> Option<(Place, Rc<Buffers>)> {
    let mut place = Place::ring()?;
    let buffers = place.uring().add_buffers(GROUP, bytes).expect("groups can be added");
    Some((place, buffers))
}

/// Cancels `key` and takes its last landing.
fn end(place: &mut Place, key: Key) {
    place.cancel(key);
    assert_eq!(place.last(key), -libc::ECANCELED);
    place.settled();
}

#[test]
fn receives() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let receive = Entry::recv_multishot(near.as_raw_fd(), std::ptr::null_mut(), 0, 0);
    refused_elsewhere(&receive);
    refused_elsewhere(&receive.with_buffer_group(GROUP));
    let Some((mut place, buffers)) = ring(64) else { return };
    let key = place.start(&receive.with_buffer_group(GROUP));
    // More often than there are buffers.
    for round in 0..400u32 {
        far.write_all(&round.to_le_bytes()).unwrap();
        let landed = place.next(key);
        assert!(!landed.is_terminal(), "{landed:?}");
        assert_eq!(bytes(&buffers, landed), round.to_le_bytes());
    }
    end(&mut place, key);

    // The end of the stream is its last.
    let key = place.start(&receive.with_buffer_group(GROUP));
    drop(far);
    assert_eq!(place.last(key), 0);
    place.settled();
}

#[test]
fn ends_when_there_are_no_buffers_left() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let receive = Entry::recv_multishot(near.as_raw_fd(), std::ptr::null_mut(), 0, 0);
    let Some((mut place, buffers)) = ring(4) else { return };
    let key = place.start(&receive.with_buffer_group(GROUP));
    far.write_all(&[9; 4 * 200]).unwrap();
    let mut landed = VecDeque::new();
    let last = loop {
        let completion = place.next(key);
        if completion.is_terminal() {
            break completion;
        }
        landed.push_back(completion);
    };
    assert_eq!((last.res, landed.len()), (-libc::ENOBUFS, 128));
    for completion in landed {
        assert_eq!(bytes(&buffers, completion), [9; 4]);
    }
    // It is started again, and the rest is there.
    let key = place.start(&receive.with_buffer_group(GROUP));
    for _ in 128..200 {
        let landed = place.next(key);
        assert_eq!(bytes(&buffers, landed), [9; 4]);
    }
    end(&mut place, key);
}

#[test]
fn the_engines_own_group_is_nobody_elses() {
    let Some(mut place) = Place::ring() else { return };
    let receive = Entry::recv_multishot(0, std::ptr::null_mut(), 0, 0).with_buffer_group(0);
    assert_eq!(place.run(&receive), -libc::EINVAL);
    let mut byte = 0;
    let provide = Entry::provide_buffers(&raw mut byte, 1, 1, 0, 0);
    assert_eq!(place.run(&provide), -libc::EINVAL);
    assert_eq!(place.run(&Entry::remove_buffers(1, 0)), -libc::EINVAL);
    assert!(place.uring().add_buffers(0, 16).is_err());
    assert!(place.uring().add_buffers(5, 0).is_err());
    place.uring().add_buffers(5, 16).unwrap();
    let error = place.uring().add_buffers(5, 16).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
}

#[test]
fn reads() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let read = Entry::read_multishot(reader.as_raw_fd(), 0, u64::MAX, GROUP);
    refused_elsewhere(&read);
    let Some((mut place, buffers)) = ring(64) else { return };
    if !place.uring().operations().unwrap().has(read.opcode()) {
        assert_eq!(place.run(&read), -libc::EINVAL);
        return;
    }
    let key = place.start(&read);
    for word in ["one", "two", "three"] {
        writer.write_all(word.as_bytes()).unwrap();
        let landed = place.next(key);
        assert!(!landed.is_terminal());
        assert_eq!(bytes(&buffers, landed), word.as_bytes());
    }
    end(&mut place, key);
}

#[test]
fn receives_messages() {
    /// `struct io_uring_recvmsg_out`.
    const HEADER_BYTES: usize = 16;
    const NAME_BYTES: usize = 28;
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut message = header(&mut []);
    message.msg_namelen = NAME_BYTES as u32;
    let receive = Entry::recvmsg_multishot(receiver.as_raw_fd(), &raw mut message, 0);
    refused_elsewhere(&receive);
    let Some((mut place, buffers)) = ring(256) else { return };
    let key = place.start(&receive.with_buffer_group(GROUP));
    for word in ["first", "second"] {
        sender.send_to(word.as_bytes(), receiver.local_addr().unwrap()).unwrap();
        let landed = place.next(key);
        assert!(!landed.is_terminal(), "{landed:?}");
        let bytes = bytes(&buffers, landed);
        let field = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(
            (field(0), field(4), field(8)),
            (16, 0, word.len() as u32),
            "name, control, bytes"
        );
        assert_eq!(&bytes[HEADER_BYTES + NAME_BYTES..], word.as_bytes());
    }
    end(&mut place, key);
}

/// Two connections to this listener.
fn connect(listener: &TcpListener) -> [TcpStream; 2] {
    let address = listener.local_addr().unwrap();
    [(); 2].map(|()| TcpStream::connect(address).unwrap())
}

#[test]
fn accepts() {
    for mut place in Place::all() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let fd = listener.as_raw_fd();
        let (none, no_len) = (std::ptr::null_mut(), std::ptr::null_mut());
        let accept = Entry::multishot_accept(fd, none, no_len, libc::SOCK_CLOEXEC);
        let _clients = connect(&listener);
        let mut key = place.start(&accept);
        for _ in 0..2 {
            let landed = place.next(key);
            assert!(landed.res >= 0, "{landed:?}");
            // SAFETY: just made, and nobody else knows it.
            drop(unsafe { OwnedFd::from_raw_fd(landed.res) });
            assert_eq!(landed.is_terminal(), !place.is_ring(), "{}: {landed:?}", place.name);
            if landed.is_terminal() && place.name != "thread" {
                key = place.start(&accept);
            } else if landed.is_terminal() {
                break;
            }
        }
        if place.name != "thread" {
            end(&mut place, key);
        }
    }
}

#[test]
fn accepts_into_the_table() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (none, no_len) = (std::ptr::null_mut(), std::ptr::null_mut());
    let accept = Entry::multishot_accept_direct(listener.as_raw_fd(), none, no_len, 0);
    refused_elsewhere(&accept);
    let Some(mut place) = Place::ring() else { return };
    place.uring().register_files_sparse(8).unwrap();
    let key = place.start(&accept);
    let mut clients = connect(&listener);
    let mut indices = [0, 1].map(|_| {
        let landed = place.next(key);
        assert!(!landed.is_terminal() && landed.res >= 0, "{landed:?}");
        landed.res as RawFd
    });
    for (client, &index) in clients.iter_mut().zip(&indices) {
        client.write_all(b"hi").unwrap();
        let mut bytes = [0; 4];
        let recv = Entry::recv(index, bytes.as_mut_ptr(), 4, 0).on_direct_descriptor();
        assert_eq!(place.ok(&recv), 2);
        assert_eq!(place.ok(&Entry::close_direct(index as u32)), 0);
    }
    indices.sort_unstable();
    assert_ne!(indices[0], indices[1]);
    end(&mut place, key);
    // There is room for eight, and it may be used again.
    let socket = Entry::socket_direct(libc::AF_INET, libc::SOCK_STREAM, 0, Slot::At(7), 0);
    assert_eq!(place.ok(&socket), 0);
}

#[test]
fn polls() {
    const READABLE: i32 = libc::POLLIN as i32;
    for mut place in Place::all() {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"x").unwrap();
        let poll = Entry::poll_multishot(near.as_raw_fd(), READABLE as u32);
        let key = place.start(&poll);
        let landed = place.next(key);
        assert_eq!(landed.res, READABLE);
        assert_eq!(landed.is_terminal(), !place.is_ring(), "{}: {landed:?}", place.name);
        if !place.is_ring() {
            place.settled();
            continue;
        }
        place.turn(Wait::No);
        assert!(place.taken(key).is_none(), "it is told once of each event");
        for _ in 0..3 {
            far.write_all(b"x").unwrap();
            let landed = place.next(key);
            assert_eq!((landed.res, landed.is_terminal()), (READABLE, false));
        }
        end(&mut place, key);
    }
}
