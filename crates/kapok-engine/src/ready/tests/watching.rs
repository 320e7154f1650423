//! Polls, registrations, numbers, and edges that get lost.

use super::*;

over_all! {
    polls_do_not_take_and_do_not_miss,
    sweeps_find_nothing_where_nothing_is_lost,
}

mod over_all {
    use super::*;

    pub(super) fn polls_do_not_take_and_do_not_miss<S: Selector>() {
        let (mut near, far) = tcp_pair();
        let mut engine = Ready::<S>::new().unwrap();
        let fd = far.as_raw_fd();
        let both = Readiness::READABLE.union(Readiness::WRITABLE);
        let out = i32::from(Readiness::WRITABLE.0);
        assert_eq!(submit(&mut engine, 0, Op::Poll { fd, events: both }), Submitted::Done(out));
        let readable = Op::Poll { fd, events: Readiness::READABLE };
        for index in 0..2 {
            assert_eq!(submit(&mut engine, index, readable), Submitted::Pending);
        }
        assert_quiet(&mut engine);
        near.write_all(b"x").unwrap();
        assert_eq!(land(&mut engine, 2), [(0, 1), (1, 1)]);
        // An edge that was reported is not lost on those who come later.
        assert_eq!(result(&mut engine, readable), 1);
        assert_eq!((&far).read(&mut [0; 4]).unwrap(), 1);
        assert_eq!(submit(&mut engine, 2, readable), Submitted::Pending);
        drop(near);
        let (index, seen) = land(&mut engine, 1)[0];
        assert_eq!((index, seen & i32::from(libc::POLLIN)), (2, i32::from(libc::POLLIN)));
        let bad = Op::Poll { fd: 999_999_999, events: both };
        let res = if S::LIMIT.is_some() { -libc::EMFILE } else { -libc::EBADF };
        assert_eq!(submit(&mut engine, 3, bad), Submitted::Done(res));
    }

    pub(super) fn sweeps_find_nothing_where_nothing_is_lost<S: Selector>() {
        let mut engine = Ready::<S>::new().unwrap();
        let pairs: Vec<_> = (0..8).map(|_| tcp_pair()).collect();
        let _adopted: Vec<_> = pairs.iter().step_by(2).map(|(_, far)| Adopted::new(far)).collect();
        let mut bufs = [[0u8; 3]; 8];
        let mut waiting = [false; 8];
        for round in 0..200usize {
            for (index, (_, far)) in (0..).zip(&pairs) {
                let at = index as usize;
                while !waiting[at] {
                    let op = recv(far, &mut bufs[at], 0);
                    waiting[at] = submit(&mut engine, index, op) == Submitted::Pending;
                }
            }
            for (near, _) in pairs.iter().skip(round % 3).step_by(1 + round % 4) {
                let mut near = near;
                near.write_all(&b"some bytes"[..1 + round % 10]).unwrap();
            }
            if round % 2 == 0 {
                assert_eq!(engine.sweep().unwrap(), 0);
            }
            let mut out = Vec::new();
            engine.turn(Wait::No, &mut out).unwrap();
            for one in out {
                waiting[one.key.index() as usize] = false;
            }
        }
        assert_eq!(engine.lost_edges(), 0);
    }
}

#[test]
fn a_lost_edge_is_found_and_delivered() {
    for owned in [false, true] {
        let (mut near, far) = tcp_pair();
        let _adopted = owned.then(|| Adopted::new(&far));
        let mut engine = Ready::<Mio>::new().unwrap();
        let mut buf = [0u8; 8];
        let mut out = Vec::new();
        assert_eq!(submit(&mut engine, 0, recv(&far, &mut buf, 0)), Submitted::Pending);
        // The edge of having been registered while writable.
        assert_quiet(&mut engine);
        assert_eq!(engine.sweep().unwrap(), 0);
        engine.swallow = Some(far.as_raw_fd());
        near.write_all(b"lost").unwrap();
        let give_up = Instant::now() + LONG;
        while engine.swallow.is_some() && Instant::now() < give_up {
            engine.turn(Wait::Until(give_up), &mut out).unwrap();
        }
        assert_quiet(&mut engine);
        assert_eq!(engine.sweep().unwrap(), 0, "it may be on its way");
        assert_quiet(&mut engine);
        assert_eq!(engine.sweep().unwrap(), 1);
        assert_eq!(land(&mut engine, 1), [(0, 4)]);
        assert_eq!((engine.sweep().unwrap(), engine.lost_edges()), (0, 1));
    }
}

#[test]
fn a_foreign_number_closed_under_an_operation_is_noticed() {
    fn noticed<S: Selector>() {
        let (_near, far) = tcp_pair();
        let mut engine = Ready::<S>::new().unwrap();
        let mut buf = [0u8; 8];
        // A number so high that no other test of this process is given it meanwhile: Kapok's own, from 900
        // on, are fewer than a hundred.
        // SAFETY: fcntl with integers; the number is closed below.
        let fd = unsafe { libc::fcntl(far.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 1000) };
        assert!((1000..1024).contains(&fd));
        assert_eq!(submit(&mut engine, 0, recv(&fd, &mut buf, 0)), Submitted::Pending);
        // SAFETY: made above.
        assert_eq!(unsafe { libc::close(fd) }, 0);
        assert_eq!(engine.sweep().unwrap(), 0);
        assert_eq!(land(&mut engine, 1), [(0, -libc::EBADF)]);
    }
    noticed::<Mio>();
    noticed::<Poll>();
    noticed::<Select>();
    noticed::<Busy>();
}

#[test]
fn descriptors_beyond_the_sets_of_select_are_refused() {
    let mut engine = Ready::<Select>::new().unwrap();
    let limit = engine.descriptor_limit().unwrap();
    assert_eq!(limit, 1024);
    let (mut near, far) = tcp_pair();
    // SAFETY: getrlimit and setrlimit on a local; fcntl with integers makes a new descriptor.
    let high = unsafe {
        let mut files: libc::rlimit = std::mem::zeroed();
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut files), 0);
        files.rlim_cur = files.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files), 0);
        let fd = libc::fcntl(far.as_raw_fd(), libc::F_DUPFD_CLOEXEC, limit);
        assert!(fd >= limit);
        OwnedFd::from_raw_fd(fd)
    };
    near.write_all(b"x").unwrap();
    let mut buf = [0u8; 1];
    let op = recv(&high, &mut buf, 0);
    assert_eq!(submit(&mut engine, 0, op), Submitted::Done(-libc::EMFILE));
    assert_eq!(submit(&mut engine, 0, recv(&far, &mut buf, 0)), Submitted::Done(1));
    // A file of such a number is none of select's business.
    let file = File::open("/proc/self/exe").unwrap();
    // SAFETY: as above.
    let high = unsafe {
        OwnedFd::from_raw_fd(libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, limit))
    };
    let buf = buf.as_mut_ptr();
    let read = Op::Read { fd: high.as_raw_fd(), buf, len: 1, offset: 0 };
    assert_eq!(result(&mut engine, read), 1);
}

#[test]
fn waiting_costs_no_registration_on_owned_descriptors() {
    let (mut near, far) = tcp_pair();
    let _adopted = Adopted::new(&far);
    let mut engine = Ready::<Mio>::new().unwrap();
    let mut buf = [0u8; 64];
    let op = recv(&far, &mut buf, 0);
    assert_eq!(submit(&mut engine, 0, op), Submitted::Pending);
    assert_quiet(&mut engine);
    let entry = engine.table.entry(far.as_raw_fd()).unwrap();
    assert!(entry.watched && !entry.readable && !entry.unsettled);
    near.write_all(b"x").unwrap();
    assert_eq!(land(&mut engine, 1), [(0, 1)]);
    // Nothing is known to be there, so the data that comes now is not even looked for …
    near.write_all(b"y").unwrap();
    assert_eq!(submit(&mut engine, 0, op), Submitted::Pending);
    // … before its edge.
    assert_eq!(land(&mut engine, 1), [(0, 1)]);
}
