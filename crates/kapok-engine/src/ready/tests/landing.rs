//! Every operation lands once: closed, cancelled, due, or woken for.

use super::*;

over_all! {
    closing_a_descriptor_lands_what_waits_for_it,
    a_number_in_a_new_epoch_does_not_serve_those_parked_in_the_old,
    cancelled_operations_land_once,
    a_bell_from_another_thread_ends_a_turn,
    timers_land_in_order_and_not_early,
}

mod over_all {
    use super::*;

    pub(super) fn closing_a_descriptor_lands_what_waits_for_it<S: Selector>() {
        let (near, far) = tcp_pair();
        let fd = far.as_raw_fd();
        descriptors::adopt(fd);
        let mut engine = Ready::<S>::new().unwrap();
        let mut bufs = [[0u8; 2]; 2];
        for (index, buf) in (0..).zip(&mut bufs) {
            assert_eq!(submit(&mut engine, index, recv(&far, buf, 0)), Submitted::Pending);
        }
        let urgent = Op::Poll { fd, events: Readiness(libc::POLLPRI) };
        assert_eq!(submit(&mut engine, 2, urgent), Submitted::Pending);
        descriptors::retire(fd);
        let fd = far.into_raw_fd();
        assert_eq!(submit(&mut engine, 3, Op::Close { fd }), Submitted::Done(0));
        let bad = -libc::EBADF;
        assert_eq!(land(&mut engine, 3), [(0, bad), (1, bad), (2, bad)]);
        assert_eq!((&near).read(&mut [0]).unwrap(), 0, "it was closed");
        assert_eq!(engine.in_flight(), 0);
    }

    pub(super) fn a_number_in_a_new_epoch_does_not_serve_those_parked_in_the_old<S: Selector>() {
        let (_near, far) = tcp_pair();
        let (mut other_near, other_far) = tcp_pair();
        let _adopted = Adopted::new(&far);
        let mut engine = Ready::<S>::new().unwrap();
        let (mut old, mut new) = ([0u8; 4], [0u8; 4]);
        assert_eq!(submit(&mut engine, 0, recv(&far, &mut old, 0)), Submitted::Pending);
        // Another object gets the number while the engine looks elsewhere.
        descriptors::retire(far.as_raw_fd());
        // SAFETY: both are open; dup2 replaces what `far` stands for.
        assert!(unsafe { libc::dup2(other_far.as_raw_fd(), far.as_raw_fd()) } >= 0);
        descriptors::adopt(far.as_raw_fd());
        assert_eq!(submit(&mut engine, 1, recv(&far, &mut new, 0)), Submitted::Pending);
        other_near.write_all(b"new").unwrap();
        assert_eq!(land(&mut engine, 2), [(0, -libc::EBADF), (1, 3)]);
        assert_eq!(&new, b"new\0");
    }

    pub(super) fn cancelled_operations_land_once<S: Selector>() {
        let (mut near, far) = tcp_pair();
        let mut engine = Ready::<S>::new().unwrap();
        let mut bufs = [[0u8; 2]; 3];
        for (index, buf) in (0..).zip(&mut bufs) {
            assert_eq!(submit(&mut engine, index, recv(&far, buf, 0)), Submitted::Pending);
        }
        let far_off = Instant::now() + Duration::from_secs(3600);
        assert_eq!(submit(&mut engine, 9, Op::Timer { deadline: far_off }), Submitted::Pending);
        engine.cancel(key(1));
        engine.cancel(key(1));
        engine.cancel(key(9));
        engine.cancel(Key::new(0, 4));
        engine.cancel(key(77));
        let cancelled = -libc::ECANCELED;
        assert_eq!(land(&mut engine, 2), [(1, cancelled), (9, cancelled)]);
        engine.cancel(key(1));
        near.write_all(b"abcd").unwrap();
        assert_eq!(land(&mut engine, 2), [(0, 2), (2, 2)]);
        assert_quiet(&mut engine);
    }

    pub(super) fn a_bell_from_another_thread_ends_a_turn<S: Selector>() {
        let mut engine = Ready::<S>::new().unwrap();
        let bell = engine.bell();
        let (before, mut out) = (Instant::now(), Vec::new());
        bell.ring();
        engine.turn(Wait::Until(before + LONG), &mut out).unwrap();
        for _ in 0..20 {
            let bell = bell.clone();
            let ringer = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(1));
                bell.ring();
            });
            engine.turn(Wait::Until(before + LONG), &mut out).unwrap();
            ringer.join().unwrap();
        }
        assert!(before.elapsed() < LONG / 2);
        assert_eq!(out, []);
    }

    pub(super) fn timers_land_in_order_and_not_early<S: Selector>() {
        let mut engine = Ready::<S>::new().unwrap();
        let start = Instant::now();
        for (index, ms) in [(0, 30), (1, 10), (2, 20), (3, 0)] {
            let deadline = start + Duration::from_millis(ms);
            assert_eq!(submit(&mut engine, index, Op::Timer { deadline }), Submitted::Pending);
        }
        let mut last = None;
        for (index, ms) in [(3, 0), (1, 10), (2, 20), (0, 30)] {
            let (key, _) = *last.insert(land_one(&mut engine));
            assert_eq!(key, index);
            assert!(start.elapsed() >= Duration::from_millis(ms));
        }
        let deadline = Instant::now() + Duration::from_millis(1);
        assert_eq!(submit(&mut engine, 5, Op::Timer { deadline }), Submitted::Pending);
        assert!(engine.disarm(key(5)) && !engine.disarm(key(5)) && !engine.disarm(key(0)));
        assert_eq!(engine.in_flight(), 0);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(submit(&mut engine, 4, Op::Nop), Submitted::Pending);
        assert_eq!(land(&mut engine, 1), [(4, 0)]);
    }

    /// One at a time even if the machine was so busy that several expired.
    fn land_one<S: Selector>(engine: &mut Ready<S>) -> (u32, i32) {
        thread_local! {
            static LEFT: std::cell::RefCell<std::collections::VecDeque<(u32, i32)>> =
                const { std::cell::RefCell::new(std::collections::VecDeque::new()) };
        }
        LEFT.with_borrow_mut(|left| {
            if left.is_empty() {
                left.extend(land(engine, 1));
            }
            left.pop_front().unwrap()
        })
    }
}
