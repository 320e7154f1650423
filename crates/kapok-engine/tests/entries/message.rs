use std::os::fd::{AsRawFd as _, RawFd};

use kapok_engine::entry::{Entry, Slot};
use kapok_engine::{Completion, Key, Wait};

use crate::places::{Directory, Place, refused_elsewhere};

/// Two rings, and the descriptor of the second.
fn rings() -> Option<(Place, Place, RawFd)> {
    let (near, mut far) = (Place::ring()?, Place::ring()?);
    let fd = far.uring().as_raw_fd();
    Some((near, far, fd))
}

#[test]
fn lands_over_there() {
    let key = Key::message(7);
    refused_elsewhere(&Entry::msg_ring(0, 1, key, 0));
    let Some((mut near, mut far, ring)) = rings() else { return };
    assert_eq!(near.ok(&Entry::msg_ring(ring, 123, key, 0)), 0);
    assert_eq!(far.next(key), Completion { key, res: 123, flags: 0 });
    near.settled();
    far.settled();
    // To a thread that sleeps in its turn.
    std::thread::scope(|scope| {
        let (sent, is_sent) = std::sync::mpsc::channel();
        scope.spawn(move || {
            let Some(mut near) = Place::ring() else { return };
            std::thread::sleep(std::time::Duration::from_millis(30));
            near.ok(&Entry::msg_ring(ring, -1, Key::message(8), 0));
            sent.send(()).unwrap();
        });
        assert_eq!(far.next(Key::message(8)).res, -1);
        is_sent.recv().unwrap();
    });
    assert_eq!(near.run(&Entry::msg_ring(0, 1, key, 0)), -libc::EBADFD, "that is no ring");
}

#[test]
fn is_not_taken_for_an_operation() {
    let Some((mut near, mut far, ring)) = rings() else { return };
    // Keys of operations, of the engine's bell and of its cancels.
    let reserved = Key::RESERVED_GENERATION;
    for key in [Key::new(1, 1), Key::new(0, reserved), Key::new(1, reserved)] {
        assert_eq!(near.run(&Entry::msg_ring(ring, 0, key, 0)), -libc::EINVAL, "{key:?}");
        assert_eq!(near.run(&Entry::msg_ring_fd_alloc(ring, 0, key, 0)), -libc::EINVAL, "{key:?}");
    }
    far.turn(Wait::No);
    far.settled();
    assert!(Key::message(0).is_message() && !Key::new(0, reserved).is_message());
    assert!(std::panic::catch_unwind(|| Key::message(1 << 31)).is_err());
}

#[test]
fn lands_with_flags() {
    let key = Key::message(7);
    refused_elsewhere(&Entry::msg_ring_cqe_flags(0, 1, key, 0, 8));
    let Some((mut near, mut far, ring)) = rings() else { return };
    // A message may say anything: it takes no buffer, although the engine has some, and ends nothing.
    let (mut sender, receiver) = std::os::unix::net::UnixStream::pair().unwrap();
    std::io::Write::write_all(&mut sender, b"x").unwrap();
    let landed = far.receive_pooled(receiver.as_raw_fd());
    assert_eq!((landed.res, landed.buffer().is_some()), (1, true));
    let flags = Completion::BUFFER | Completion::MORE | 77 << 16;
    let send = Entry::msg_ring_cqe_flags(ring, -5, key, 0, flags);
    let res = near.run(&send);
    assert_eq!(res, 0);
    assert_eq!(far.next(key), Completion { key, res: -5, flags });
    far.settled();
}

#[test]
fn brings_a_descriptor() {
    const SKIP_LANDING: u32 = 1;
    let key = Key::message(9);
    refused_elsewhere(&Entry::msg_ring_fd(0, 1, Slot::At(2), key, 0));
    refused_elsewhere(&Entry::msg_ring_fd_alloc(0, 1, key, 0));
    let Some((mut near, mut far, ring)) = rings() else { return };
    let directory = Directory::new("message");
    std::fs::write(directory.0.join("a"), "sent").unwrap();
    let path = directory.path("a");
    near.uring().register_files_sparse(2).unwrap();
    far.uring().register_files_sparse(4).unwrap();
    near.ok(&Entry::open_direct(path.as_ptr(), libc::O_RDONLY, 0, Slot::At(1)));
    let read = |far: &mut Place, index: i32| {
        let mut bytes = [0; 8];
        let read = Entry::read(index, bytes.as_mut_ptr(), 8, 0).on_direct_descriptor();
        assert_eq!(far.ok(&read), 4);
        assert_eq!(&bytes[..4], b"sent");
    };
    assert_eq!(near.ok(&Entry::msg_ring_fd(ring, 1, Slot::At(2), key, 0)), 0);
    assert_eq!(far.next(key).res, 0);
    read(&mut far, 2);
    let index = near.ok(&Entry::msg_ring_fd_alloc(ring, 1, key, 0)) as i32;
    assert_eq!(far.next(key).res, index, "both are told");
    read(&mut far, index);
    assert_eq!(near.ok(&Entry::msg_ring_fd(ring, 1, Slot::At(3), key, SKIP_LANDING)), 0);
    far.turn(Wait::No);
    assert!(far.taken(key).is_none(), "nobody is told");
    read(&mut far, 3);
    assert_eq!(near.run(&Entry::msg_ring_fd(ring, 0, Slot::At(0), key, 0)), -libc::EBADF);
    near.settled();
    far.settled();
}
