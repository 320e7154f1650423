use std::io::Write as _;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use kapok_engine::entry::Entry;
use kapok_engine::{Key, Wait};

use crate::places::{Place, refused_elsewhere};

const READABLE: u32 = libc::POLLIN as u32;
const WRITABLE: u32 = libc::POLLOUT as u32;
const UPDATE_EVENTS: u32 = 2;

#[test]
fn polls() {
    for mut place in Place::all() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let fd = near.as_raw_fd();
        assert_eq!(place.ok(&Entry::poll_add(fd, WRITABLE)), WRITABLE as usize);
        if place.name == "thread" {
            far.write_all(b"x").unwrap();
        }
        let key = place.start(&Entry::poll_add(fd, READABLE));
        if place.name != "thread" {
            place.turn(Wait::No);
            assert!(place.taken(key).is_none(), "there is nothing to read");
            far.write_all(b"x").unwrap();
        }
        assert_eq!(place.last(key), READABLE as i32);
        assert_eq!(place.run(&Entry::poll_add(1_000_000_000, READABLE)), -libc::EBADF);
        place.settled();
    }
}

#[test]
fn removes() {
    for mut place in Place::engines() {
        let (near, _far) = UnixStream::pair().unwrap();
        let poll = place.start(&Entry::poll_add(near.as_raw_fd(), READABLE));
        place.turn(Wait::No);
        assert_eq!(place.ok(&Entry::poll_remove(poll)), 0);
        assert_eq!(place.last(poll), -libc::ECANCELED);
        assert_eq!(place.run(&Entry::poll_remove(poll)), -libc::ENOENT);
        place.settled();
    }
    assert_eq!(Place::thread().run(&Entry::poll_remove(Key::new(1, 1))), -libc::EOPNOTSUPP);
}

#[test]
fn updates() {
    let key = Key::new(1, 1);
    refused_elsewhere(&Entry::poll_update(key, None, READABLE, UPDATE_EVENTS));
    let Some(mut place) = Place::ring() else { return };
    let (near, _far) = UnixStream::pair().unwrap();
    let poll = place.start(&Entry::poll_add(near.as_raw_fd(), READABLE));
    place.turn(Wait::No);
    assert!(place.taken(poll).is_none());
    assert_eq!(place.ok(&Entry::poll_update(poll, None, WRITABLE, UPDATE_EVENTS)), 0);
    assert_eq!(place.last(poll), WRITABLE as i32);
    assert_eq!(place.run(&Entry::poll_update(poll, None, WRITABLE, UPDATE_EVENTS)), -libc::ENOENT);
    // Under another name it would land on somebody else.
    let rename = Entry::poll_update(poll, Some(Key::new(2, 99)), 0, 0);
    assert_eq!(place.run(&rename), -libc::EOPNOTSUPP);
    // What the engine itself waits for, its bell among it, is nobody else's to end.
    for index in [0, 1, 2] {
        let own = Key::new(index, Key::RESERVED_GENERATION);
        assert_eq!(
            place.run(&Entry::poll_update(own, None, WRITABLE, UPDATE_EVENTS)),
            -libc::EINVAL
        );
        assert_eq!(place.run(&Entry::poll_remove(own)), -libc::EINVAL);
        assert_eq!(place.run(&Entry::cancel(own, 0)), -libc::EINVAL);
    }
    place.settled();
}

#[test]
fn waits_for_epoll() {
    for mut place in Place::all() {
        // SAFETY: just made, and nobody else knows it.
        let epoll = unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC)) };
        let (near, mut far) = UnixStream::pair().unwrap();
        let (fd, of) = (epoll.as_raw_fd(), near.as_raw_fd());
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 77 };
        let add = Entry::epoll_ctl(fd, of, libc::EPOLL_CTL_ADD, &raw mut event);
        assert_eq!(place.ok(&add), 0);
        assert_eq!(place.run(&add), -libc::EEXIST);
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 4];
        let wait = Entry::epoll_wait(fd, events.as_mut_ptr(), 4, 0);
        if place.name == "thread" {
            far.write_all(b"x").unwrap();
        }
        if !place.has(&wait) {
            continue;
        }
        let key = place.start(&wait);
        if place.name != "thread" {
            place.turn(Wait::No);
            assert!(place.taken(key).is_none(), "there is no event");
            far.write_all(b"x").unwrap();
        }
        assert_eq!(place.last(key), 1);
        let seen = events[0];
        assert_eq!(({ seen.events }, { seen.u64 }), (libc::EPOLLIN as u32, 77));
        place.settled();
    }
}
