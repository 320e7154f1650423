use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;

use kapok_engine::entry::Entry;
use kapok_engine::{Key, Wait};

use crate::places::{Place, refused_elsewhere};

const ALL: u32 = 1;
const ANY: u32 = 4;

#[test]
fn nothing_is_done() {
    for mut place in Place::all() {
        for _ in 0..100 {
            assert_eq!(place.ok(&Entry::nop()), 0);
        }
        place.settled();
    }
}

#[test]
fn by_key() {
    for mut place in Place::engines() {
        let (near, _far) = UnixStream::pair().unwrap();
        let mut bytes = [0; 4];
        let receive = place.start(&Entry::recv(near.as_raw_fd(), bytes.as_mut_ptr(), 4, 0));
        place.turn(Wait::No);
        assert_eq!(place.ok(&Entry::cancel(receive, 0)), 0);
        assert_eq!(place.last(receive), -libc::ECANCELED);
        assert_eq!(place.run(&Entry::cancel(receive, 0)), -libc::ENOENT);
        place.settled();
    }
    assert_eq!(Place::thread().run(&Entry::cancel(Key::new(1, 1), 0)), -libc::EOPNOTSUPP);
}

#[test]
fn by_descriptor() {
    refused_elsewhere(&Entry::cancel_fd(0, 0));
    let Some(mut place) = Place::ring() else { return };
    let (near, far) = UnixStream::pair().unwrap();
    let polls: Vec<Key> = [&near, &near, &far]
        .map(|end| place.start(&Entry::poll_add(end.as_raw_fd(), libc::POLLIN as u32)))
        .to_vec();
    place.turn(Wait::No);
    assert_eq!(place.ok(&Entry::cancel_fd(near.as_raw_fd(), ALL)), 2);
    assert_eq!((place.last(polls[0]), place.last(polls[1])), (-libc::ECANCELED, -libc::ECANCELED));
    assert!(place.taken(polls[2]).is_none(), "the other end is another file");
    assert_eq!(place.run(&Entry::cancel_fd(near.as_raw_fd(), 0)), -libc::ENOENT);
    place.cancel(polls[2]);
    assert_eq!(place.last(polls[2]), -libc::ECANCELED);
    place.settled();
}

#[test]
fn everything_and_the_bell_is_heard_all_the_same() {
    let Some(mut place) = Place::ring() else { return };
    let (near, _far) = UnixStream::pair().unwrap();
    let poll = place.start(&Entry::poll_add(near.as_raw_fd(), libc::POLLIN as u32));
    place.turn(Wait::No);
    // The bell's own poll is among them.
    assert_eq!(place.ok(&Entry::cancel(Key::new(0, 0), ALL | ANY)), 2);
    assert_eq!(place.last(poll), -libc::ECANCELED);
    let bell = kapok_engine::Engine::bell(place.engine());
    let ringing = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        bell.ring();
    });
    let begun = std::time::Instant::now();
    place.turn(Wait::Until(begun + crate::places::PATIENCE));
    assert!(begun.elapsed() < crate::places::PATIENCE / 2, "it was deaf");
    ringing.join().unwrap();
    place.settled();
}
