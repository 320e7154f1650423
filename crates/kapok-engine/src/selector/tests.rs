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
    #[cfg(target_os = "linux")]
    reports_what_is_ready::<Epoll>();
    reports_what_is_ready::<Poll>();
    reports_what_is_ready::<Select>();
    reports_what_is_ready::<Busy>();
}

fn names_the_closed_one<S: Selector>() {
    let mut selector = S::new().unwrap();
    let (open, _peer) = UnixStream::pair().unwrap();
    // A number that is not open, and that no other test of this process gets near.
    let closed = 1022;
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
    #[cfg(target_os = "linux")]
    assert!(slept::<Epoll>(timeout) >= timeout);
    assert!(slept::<Poll>(timeout) >= timeout);
    assert!(slept::<Select>(timeout) >= timeout);
    assert!(slept::<Busy>(Duration::from_secs(3600)) < Duration::from_secs(60));
}

#[cfg(target_os = "linux")]
#[test]
fn epoll_says_what_mio_says() {
    fn said<S: Selector>(of: i32) -> Vec<Readiness> {
        let mut selector = S::new().unwrap();
        selector.watch(of, Readiness::READABLE, false).unwrap();
        wait(&mut selector, Duration::ZERO).iter().map(|event| event.seen).collect()
    }
    let (mut near, far) = UnixStream::pair().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let writer = std::cell::RefCell::new(Some(writer));
    let steps: [&mut dyn FnMut(); 5] = [
        &mut || near.write_all(b"x").unwrap(),
        &mut || far.shutdown(std::net::Shutdown::Read).unwrap(),
        &mut || far.shutdown(std::net::Shutdown::Both).unwrap(),
        &mut || writer.borrow_mut().as_mut().unwrap().write_all(b"x").unwrap(),
        &mut || drop(writer.borrow_mut().take()),
    ];
    for (number, step) in steps.into_iter().enumerate() {
        step();
        for fd in [far.as_raw_fd(), reader.as_raw_fd()] {
            assert_eq!(said::<Epoll>(fd), said::<Mio>(fd), "after step {number}");
        }
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(said::<Epoll>(writer.as_raw_fd()), said::<Mio>(writer.as_raw_fd()));
    assert!(!said::<Epoll>(writer.as_raw_fd()).is_empty());
}
