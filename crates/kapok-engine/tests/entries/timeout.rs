use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use kapok_engine::entry::{Entry, Timespec};
use kapok_engine::uring::Link;
use kapok_engine::{Key, Wait};

use crate::places::{Place, refused_elsewhere};

const ABSOLUTE: u32 = 1;
const FAR: Duration = Duration::from_secs(3600);

#[test]
fn goes_off() {
    for mut place in Place::all() {
        let limit = Duration::from_millis(30);
        let time = Timespec::from(limit);
        let begun = Instant::now();
        assert_eq!(place.run(&Entry::timeout(&raw const time, 0, 0)), -libc::ETIME);
        assert!(begun.elapsed() >= limit, "{}: {:?}", place.name, begun.elapsed());
        // A time that has passed, on the monotonic clock.
        let past = Timespec { seconds: 0, nanoseconds: 1 };
        assert_eq!(place.run(&Entry::timeout(&raw const past, 0, ABSOLUTE)), -libc::ETIME);
        let never = Timespec { seconds: -1, nanoseconds: 0 };
        assert_eq!(place.run(&Entry::timeout(&raw const never, 0, 0)), -libc::EINVAL);
        place.settled();
    }
}

#[test]
fn counts_completions_on_a_ring() {
    let time = Timespec::from(FAR);
    refused_elsewhere(&Entry::timeout(&raw const time, 1, 0));
    let Some(mut place) = Place::ring() else { return };
    let timeout = place.start(&Entry::timeout(&raw const time, 1, 0));
    place.turn(Wait::No);
    assert!(place.taken(timeout).is_none());
    assert_eq!(place.ok(&Entry::nop()), 0);
    assert_eq!(place.last(timeout), 0, "another has landed");
    place.settled();
}

#[test]
fn is_removed() {
    let time = Timespec::from(FAR);
    for mut place in Place::engines() {
        let timeout = place.start(&Entry::timeout(&raw const time, 0, 0));
        place.turn(Wait::No);
        assert_eq!(place.ok(&Entry::timeout_remove(timeout, 0)), 0);
        assert_eq!(place.last(timeout), -libc::ECANCELED);
        assert_eq!(place.run(&Entry::timeout_remove(timeout, 0)), -libc::ENOENT);
        // By the engine, like everything.
        let timeout = place.start(&Entry::timeout(&raw const time, 0, 0));
        place.turn(Wait::No);
        place.cancel(timeout);
        assert_eq!(place.last(timeout), -libc::ECANCELED);
        place.settled();
    }
    assert_eq!(Place::thread().run(&Entry::timeout_remove(Key::new(1, 1), 0)), -libc::EOPNOTSUPP);
}

#[test]
fn is_updated() {
    let (time, soon) = (Timespec::from(FAR), Timespec::from(Duration::from_millis(1)));
    for mut place in Place::engines() {
        let timeout = place.start(&Entry::timeout(&raw const time, 0, 0));
        place.turn(Wait::No);
        assert_eq!(place.ok(&Entry::timeout_update(&raw const soon, timeout, 0)), 0);
        assert_eq!(place.last(timeout), -libc::ETIME);
        let late = Entry::timeout_update(&raw const soon, timeout, 0);
        assert_eq!(place.run(&late), -libc::ENOENT);
        place.settled();
    }
}

#[test]
fn is_linked() {
    let soon = Timespec::from(Duration::from_millis(20));
    let late = Timespec::from(FAR);
    refused_elsewhere(&Entry::link_timeout(&raw const soon, 0));
    let Some(mut place) = Place::ring() else { return };
    let (near, mut far) = UnixStream::pair().unwrap();
    let mut byte = 0;
    let recv = Entry::recv(near.as_raw_fd(), &raw mut byte, 1, 0);
    let limited = |place: &mut Place, time: *const Timespec| {
        let chain = [recv, Entry::link_timeout(time, 0)];
        let keys = place.start_chain(&chain, Link::OnSuccess).unwrap();
        (keys[0], keys[1])
    };
    let (receive, limit) = limited(&mut place, &raw const soon);
    assert_eq!(place.last(receive), -libc::ECANCELED, "nothing came");
    assert_eq!(place.last(limit), -libc::ETIME);

    let (receive, limit) = limited(&mut place, &raw const late);
    place.turn(Wait::No);
    far.write_all(b"x").unwrap();
    assert_eq!(place.last(receive), 1);
    assert_eq!(place.last(limit), -libc::ECANCELED);

    // Alone it has nothing to limit.
    assert_eq!(place.run(&Entry::link_timeout(&raw const soon, 0)), -libc::EINVAL);
    place.settled();
}
