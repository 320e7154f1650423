//! Entries of which each waits for the one before it.

use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use kapok_engine::entry::Entry;
use kapok_engine::uring::Link;
use kapok_engine::{Config, Engine as _, Op, Submitted, Wait};

use crate::places::Place;

const CANCELED: i32 = -libc::ECANCELED;

/// A ring of this many entries.
fn small(entries: u32) -> Option<Place> {
    let mut config = Config::default();
    config.submission_entries = entries;
    config.completion_entries = 64;
    Place::ring_with(&config)
}

fn landings(place: &mut Place, entries: &[Entry], link: Link) -> Vec<i32> {
    let keys = place.start_chain(entries, link).unwrap();
    keys.into_iter().map(|key| place.last(key)).collect()
}

#[test]
fn each_begins_when_the_one_before_it_is_over() {
    for link in [Link::OnSuccess, Link::Always] {
        let Some(mut place) = Place::ring() else { return };
        let (near, mut far) = UnixStream::pair().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let (from, to) = (reader.as_raw_fd(), writer.as_raw_fd());
        let (mut byte, mut bytes) = (0, [0; 4]);
        let entries = [
            Entry::recv(near.as_raw_fd(), &raw mut byte, 1, 0),
            Entry::write(to, b"then".as_ptr(), 4, u64::MAX),
            Entry::read(from, bytes.as_mut_ptr(), 4, u64::MAX),
        ];
        let keys = place.start_chain(&entries, link).unwrap();
        for _ in 0..5 {
            place.turn(Wait::No);
        }
        // Nothing was received, so nothing was written.
        let mut waiting: libc::c_int = -1;
        // SAFETY: the request writes one int, to a local.
        unsafe { libc::ioctl(from, libc::FIONREAD, &raw mut waiting) };
        assert_eq!(waiting, 0, "{link:?}");
        assert!(keys.iter().all(|&key| place.taken(key).is_none()), "{link:?}");
        far.write_all(b"x").unwrap();
        let landed: Vec<i32> = keys.into_iter().map(|key| place.last(key)).collect();
        assert_eq!((landed, &bytes), (vec![1, 4, 4], b"then"));
        place.settled();
    }
}

#[test]
fn the_rest_is_cancelled_when_one_fails_or_goes_on_all_the_same() {
    let Some(mut place) = Place::ring() else { return };
    let bad = Entry::fsync(1_000_000_000, 0);
    let entries = [Entry::nop(), bad, Entry::nop(), Entry::nop()];
    let landed = landings(&mut place, &entries, Link::OnSuccess);
    assert_eq!(landed, [0, -libc::EBADF, CANCELED, CANCELED]);
    let landed = landings(&mut place, &entries, Link::Always);
    assert_eq!(landed, [0, -libc::EBADF, 0, 0]);
    place.settled();
}

#[test]
fn a_chain_is_not_cut_by_a_turn_or_a_full_queue() {
    // A failing entry shows whether what follows hangs on it.
    let bad = Entry::fsync(1_000_000_000, 0);
    for (entries, lone) in [(1024, 30), (1024, 31), (8, 0), (8, 3), (8, 5), (8, 7), (8, 8), (8, 20)]
    {
        let Some(mut place) = small(entries) else { return };
        let alone: Vec<_> = (0..lone).map(|_| place.start(&Entry::nop())).collect();
        let capacity = entries as usize;
        let len = capacity.min(40);
        let mut chain = vec![Entry::nop(); len];
        chain[0] = bad;
        let keys = [(); 3].map(|()| place.start_chain(&chain, Link::OnSuccess).unwrap());
        let after = place.start(&Entry::nop());
        for keys in keys {
            let landed: Vec<i32> = keys.into_iter().map(|key| place.last(key)).collect();
            assert_eq!(landed[0], -libc::EBADF);
            assert!(
                landed[1..].iter().all(|&res| res == CANCELED),
                "{entries}, {lone}: {landed:?}"
            );
        }
        assert_eq!(place.last(after), 0, "what comes after hangs on nothing");
        for key in alone {
            assert_eq!(place.last(key), 0);
        }
        place.settled();
    }
}

#[test]
fn none_and_too_many_are_refused_and_so_is_what_an_engine_cannot_have() {
    let Some(mut place) = small(8) else { return };
    assert!(place.start_chain(&[], Link::OnSuccess).is_err());
    let capacity = (1..).find(|&len| {
        let chain = vec![Entry::nop(); len];
        match place.start_chain(&chain, Link::OnSuccess) {
            Ok(keys) => {
                keys.into_iter().for_each(|key| assert_eq!(place.last(key), 0));
                false
            }
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
                true
            }
        }
    });
    assert!(capacity.is_some_and(|len| len > 8), "{capacity:?}");
    let message = Entry::msg_ring(0, 0, kapok_engine::Key::new(1, 1), 0);
    let error = place.start_chain(&[Entry::nop(), message], Link::OnSuccess).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    place.turn(Wait::No);
    place.settled();
}

#[test]
fn one_that_is_cancelled_takes_the_rest_with_it_and_nothing_else() {
    let Some(mut place) = Place::ring() else { return };
    let (near, _far) = UnixStream::pair().unwrap();
    let mut byte = 0;
    let receive = Entry::recv(near.as_raw_fd(), &raw mut byte, 1, 0);
    for seen in [false, true] {
        let chain = [receive, Entry::nop(), Entry::nop()];
        let keys = place.start_chain(&chain, Link::OnSuccess).unwrap();
        let after = place.start(&Entry::nop());
        if seen {
            place.turn(Wait::No);
        }
        place.cancel(keys[0]);
        let landed: Vec<i32> = keys.into_iter().map(|key| place.last(key)).collect();
        assert_eq!(landed, [CANCELED; 3]);
        assert_eq!(place.last(after), 0);
    }
    place.settled();
}

#[test]
fn one_that_is_cancelled_before_it_begins_ends_as_it_begins() {
    let Some(mut place) = Place::ring() else { return };
    let (near, mut far) = UnixStream::pair().unwrap();
    let (quiet, _peer) = UnixStream::pair().unwrap();
    let mut bytes = [0; 2];
    let receive = |end: &UnixStream, byte: &mut u8| Entry::recv(end.as_raw_fd(), byte, 1, 0);
    let [first, second] = &mut bytes;
    let chain = [receive(&near, first), receive(&quiet, second), Entry::nop()];
    let keys = place.start_chain(&chain, Link::OnSuccess).unwrap();
    place.turn(Wait::No);
    place.cancel(keys[1]);
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(20) {
        place.turn(Wait::Until(began + Duration::from_millis(20)));
    }
    assert!(keys.iter().all(|&key| place.taken(key).is_none()));
    far.write_all(b"x").unwrap();
    let landed: Vec<i32> = keys.into_iter().map(|key| place.last(key)).collect();
    assert_eq!(landed, [1, CANCELED, CANCELED]);
    place.settled();
}

#[test]
fn closing_a_descriptor_ends_the_chain_that_waits_for_the_queue() {
    let Some(mut place) = small(4) else { return };
    let (mut near, far) = UnixStream::pair().unwrap();
    let fd = std::os::fd::IntoRawFd::into_raw_fd(far);
    // They fill the queue, so the chain waits behind them.
    let before: Vec<_> = (0..4).map(|_| place.start(&Entry::nop())).collect();
    let chain = [Entry::nop(), Entry::write(fd, b"x".as_ptr(), 1, u64::MAX), Entry::nop()];
    let keys = place.start_chain(&chain, Link::OnSuccess).unwrap();
    let closing = place.next_key();
    // SAFETY: it names no memory, and the number is nobody else's.
    let closed = unsafe { place.engine().submit(closing, Op::Close { fd }) };
    assert_eq!(closed, Submitted::Done(0));
    // The number's next use.
    let (other, mut far) = UnixStream::pair().unwrap();
    let landed: Vec<i32> = keys.into_iter().map(|key| place.last(key)).collect();
    assert_eq!((landed[0], landed[2]), (0, CANCELED), "{landed:?}");
    assert!([-libc::EBADF, CANCELED].contains(&landed[1]), "{landed:?}");
    for key in before {
        assert_eq!(place.last(key), 0);
    }
    drop(other);
    let mut bytes = Vec::new();
    far.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"", "nothing was written to another's descriptor");
    near.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"");
    place.settled();
}

#[test]
fn a_ring_that_is_dropped_ends_its_chains() {
    let (near, _far) = UnixStream::pair().unwrap();
    let mut byte = 0;
    let Some(mut place) = Place::ring() else { return };
    let receive = Entry::recv(near.as_raw_fd(), &raw mut byte, 1, 0);
    for _ in 0..3 {
        place.start_chain(&[receive, Entry::nop()], Link::Always).unwrap();
        // The end of one is the beginning of the next, after everything was cancelled.
        place.start_chain(&[receive, receive, receive], Link::Always).unwrap();
    }
    place.turn(Wait::No);
    let begun = std::time::Instant::now();
    drop(place);
    assert!(begun.elapsed() < std::time::Duration::from_secs(8), "it did not have to wait");
}
