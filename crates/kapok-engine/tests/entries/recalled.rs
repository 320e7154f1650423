//! What waits without a limit is cancelled, and holds nobody's thread beyond that.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use kapok_engine::Wait;
use kapok_engine::entry::{Entry, FutexWait};

use crate::places::{PATIENCE, Place, child};

/// `FUTEX2_SIZE_U32 | FUTEX2_PRIVATE`.
const FLAGS: u32 = 2 | 128;

/// Begins `entry`, lets it wait, and cancels it.
#[track_caller]
fn is_cancelled(place: &mut Place, entry: &Entry) {
    // Sixteen: more than one thread is held if any is.
    let keys: Vec<_> = (0..16).map(|_| place.start(entry)).collect();
    let until = Instant::now() + Duration::from_millis(60);
    while Instant::now() < until {
        place.turn(Wait::Until(until));
    }
    for &key in &keys {
        assert!(place.taken(key).is_none(), "{}: it does not wait", entry.name());
        place.cancel(key);
    }
    let began = Instant::now();
    for key in keys {
        assert_eq!(place.last(key), -libc::ECANCELED, "{}", entry.name());
    }
    assert!(began.elapsed() < PATIENCE / 2, "{}: it held its thread", entry.name());
    place.settled();
}

#[test]
fn waits_at_futex_words() {
    let mut place = Place::readiness();
    let words = [AtomicU32::new(5), AtomicU32::new(6)];
    is_cancelled(
        &mut place,
        &Entry::futex_wait(words[0].as_ptr(), 5, u64::from(u32::MAX), FLAGS, 0),
    );
    let waits =
        [FutexWait::new(words[0].as_ptr(), 5, FLAGS), FutexWait::new(words[1].as_ptr(), 6, FLAGS)];
    is_cancelled(&mut place, &Entry::futex_waitv(waits.as_ptr(), 2, 0));
}

#[test]
fn waits_for_epoll() {
    let mut place = Place::readiness();
    // SAFETY: just made, and nobody else knows it.
    let epoll = unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC)) };
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 4];
    is_cancelled(&mut place, &Entry::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), 4, 0));
}

#[test]
fn waits_for_a_child() {
    let mut place = Place::readiness();
    let mut child = child();
    let id = child.id() as libc::id_t;
    let wait = Entry::waitid(libc::P_PID, id, std::ptr::null_mut(), libc::WEXITED, 0);
    is_cancelled(&mut place, &wait);
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(7), "nobody else has waited for it");
}

#[test]
fn waits_for_either_end_of_a_pipe() {
    let mut place = Place::readiness();
    let (reader, writer) = std::io::pipe().unwrap();
    let (other_reader, other_writer) = std::io::pipe().unwrap();
    let (from, to) = (reader.as_raw_fd(), other_writer.as_raw_fd());
    is_cancelled(&mut place, &Entry::splice(from, -1, to, -1, 100, 0));
    is_cancelled(&mut place, &Entry::tee(from, to, 100, 0));
    // And nothing was taken: what comes now is all there.
    std::io::Write::write_all(&mut &writer, b"all").unwrap();
    assert_eq!(place.ok(&Entry::splice(from, -1, to, -1, 100, 0)), 3);
    let mut bytes = [0; 3];
    std::io::Read::read_exact(&mut &other_reader, &mut bytes).unwrap();
    assert_eq!(&bytes, b"all");
}
