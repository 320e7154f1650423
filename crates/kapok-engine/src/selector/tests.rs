use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::*;

fn wait<S: Selector>(selector: &mut S, timeout: Duration) -> Vec<Event> {
    let mut events = Vec::new();
    selector.wait(Some(timeout), &mut events).unwrap();
    events
}

fn reports_what_is_ready<S: Selector>() {
    let mut selector = S::new().unwrap();
    let (mut near, far) = UnixStream::pair().unwrap();
    let fd = far.as_raw_fd();
    selector.watch(fd, Readiness::READABLE, false).unwrap();
    let readable = |events: &[Event]| {
        events.iter().any(|event| event.fd == fd && event.seen.intersects(Readiness::READABLE))
    };
    assert!(!readable(&wait(&mut selector, Duration::ZERO)));
    near.write_all(b"x").unwrap();
    assert!(readable(&wait(&mut selector, Duration::from_secs(10))));
    // Levels are said again; edges are not, but another watch says what holds. A wrong hint is
    // put right.
    assert_eq!(readable(&wait(&mut selector, Duration::ZERO)), !S::EDGES);
    for again in [true, false] {
        selector.watch(fd, Readiness::READABLE, again).unwrap();
        assert!(readable(&wait(&mut selector, Duration::from_secs(10))), "{again}");
    }
    selector.unwatch(fd);
    selector.unwatch(fd);
    assert!(wait(&mut selector, Duration::ZERO).is_empty());
    selector.watch(fd, Readiness::READABLE, true).unwrap();
    assert!(readable(&wait(&mut selector, Duration::from_secs(10))));
}

#[test]
fn each_selector_reports_what_is_ready() {
    reports_what_is_ready::<Mio>();
    reports_what_is_ready::<Poll>();
    reports_what_is_ready::<Select>();
    reports_what_is_ready::<Busy>();
}

fn names_the_closed_one<S: Selector>() {
    let mut selector = S::new().unwrap();
    let (open, _peer) = UnixStream::pair().unwrap();
    // A number that is not open, and that no other test of this process gets near.
    let closed = 1000;
    selector.watch(open.as_raw_fd(), Readiness::READABLE, false).unwrap();
    selector.watch(closed, Readiness::READABLE, false).unwrap();
    let events = wait(&mut selector, Duration::from_secs(10));
    assert_eq!(events, [Event { fd: closed, seen: Readiness(libc::POLLNVAL) }]);
}

#[test]
fn a_number_that_is_not_open_is_named_and_the_others_are_not() {
    names_the_closed_one::<Poll>();
    names_the_closed_one::<Select>();
    names_the_closed_one::<Busy>();
}

#[test]
fn select_refuses_what_its_sets_cannot_hold() {
    let mut select = Select::new().unwrap();
    let limit = Select::LIMIT.unwrap();
    let refused = |select: &mut Select, fd| {
        select.watch(fd, Readiness::READABLE, false).unwrap_err().raw_os_error()
    };
    assert_eq!(refused(&mut select, limit), Some(libc::EMFILE));
    assert_eq!(refused(&mut select, i32::MAX), Some(libc::EMFILE));
    assert_eq!(refused(&mut select, -1), Some(libc::EBADF));
    select.unwatch(limit);
    select.unwatch(-1);
    select.watch(limit - 1, Readiness::READABLE, false).unwrap();
    assert_eq!(select.bound(), limit as usize);
    select.unwatch(limit - 1);
    assert_eq!(select.bound(), 0);
}

#[test]
fn those_that_sleep_sleep_and_the_busy_one_does_not() {
    fn slept<S: Selector>(timeout: Duration) -> Duration {
        let mut selector = S::new().unwrap();
        let before = Instant::now();
        assert!(wait(&mut selector, timeout).is_empty());
        before.elapsed()
    }
    let timeout = Duration::from_micros(20_500);
    assert!(slept::<Mio>(timeout) >= timeout);
    assert!(slept::<Poll>(timeout) >= timeout);
    assert!(slept::<Select>(timeout) >= timeout);
    assert!(slept::<Busy>(Duration::from_secs(3600)) < Duration::from_secs(60));
}
