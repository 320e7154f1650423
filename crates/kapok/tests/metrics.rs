//! Counters and gauges: they count what happened, and come back to nothing.

mod harness;

use std::io::{Read, Write};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use kapok::metrics::{Counts, LoopMetrics};
use kapok::net::{TcpListener, TcpStream, UnixStream};
use kapok::{Builder, Runtime};

use harness::{alone, engine, run, run_on, wait_until};

/// The loop that the caller is on.
fn here() -> LoopMetrics {
    let thread = std::thread::current();
    let mut loops = kapok::metrics().loops;
    loops.retain(|one| Some(&*one.thread) == thread.name());
    assert_eq!(loops.len(), 1, "each test has a thread of its own name");
    loops.remove(0)
}

fn counts() -> Counts {
    here().counts
}

#[test]
fn fibers_are_counted_by_what_became_of_them() {
    run(|| {
        let before = counts().fibers;
        let parked: Vec<_> = (0..10)
            .map(|_| kapok::spawn_local(|| kapok::sleep(Duration::from_secs(3600))))
            .collect();
        let panicked = kapok::spawn_local(|| panic!("on purpose"));
        assert!(panicked.join().is_err());
        let during = counts();
        assert_eq!(during.fibers.spawned - before.spawned, 11);
        assert_eq!(during.fibers.started - before.started, 11);
        assert_eq!(during.fibers.ended - before.ended, 1);
        assert_eq!(during.fibers.panicked - before.panicked, 1);
        assert_eq!(during.fibers.live - before.live, 10);
        assert_eq!(during.stacks.in_use, during.fibers.live);
        // The loop itself may look after its stacks by a timer.
        assert!((10..=11).contains(&during.engine.in_flight), "{during:?}");
        parked.iter().for_each(|fiber| fiber.cancel());
        parked.into_iter().for_each(|fiber| assert!(fiber.join().unwrap().is_err()));
        kapok::yield_now();
        let after = counts();
        assert_eq!(after.fibers.live, before.live);
        assert!(after.engine.in_flight <= 1);
        assert!(after.engine.cancels >= 10);
        assert!(after.stacks.warm >= 10, "{:?}", after.stacks);
    });
}

#[test]
fn operations_and_switches_are_counted() {
    run(|| {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let before = counts();
        let echo = kapok::spawn_local(move || {
            let mut buf = [0; 8];
            for _ in 0..100 {
                far.read_exact(&mut buf).unwrap();
                far.write_all(&buf).unwrap();
            }
        });
        let mut buf = [7; 8];
        for _ in 0..100 {
            near.write_all(&buf).unwrap();
            near.read_exact(&mut buf).unwrap();
        }
        echo.join().unwrap();
        let after = counts();
        let engine = after.engine;
        assert!(engine.submitted - before.engine.submitted >= 400, "{engine:?}");
        assert_eq!(
            engine.submitted,
            engine.done_at_once + engine.landed + engine.disarmed + engine.in_flight,
        );
        assert!(engine.in_flight <= 1, "{engine:?}");
        assert!(engine.done_at_once > before.engine.done_at_once);
        assert!(engine.landed > before.engine.landed);
        assert!(engine.system_calls > before.engine.system_calls);
        assert!(after.scheduler.switches - before.scheduler.switches >= 100);
        assert!(after.scheduler.turns - before.scheduler.turns >= 100);
        assert_eq!(engine.lost_edges, 0);
        if let Some(kind) = self::engine() {
            assert_eq!(here().engine, kind);
        }
    });
}

#[test]
fn what_is_left_in_a_socket_is_taken_without_a_wait() {
    run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let mut part = [0; 1024];
        for round in 0..3 {
            let sent: Vec<u8> = (0..32 * 1024).map(|at| (at / 1024 + round) as u8).collect();
            near.write_all(&sent).unwrap();
            let before = counts().engine;
            for expected in sent.chunks(1024) {
                far.read_exact(&mut part).unwrap();
                assert_eq!(part, expected);
            }
            let after = counts().engine;
            // Not the first, and whatever came late.
            assert!(after.done_at_once - before.done_at_once >= 24, "{before:?} {after:?}");
            // What was taken so is over with the last byte: this waits, and can be cancelled.
            let waited = kapok::timeout(Duration::from_millis(2), || far.read(&mut part));
            assert_eq!(waited.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
        }
        near.write_all(&[1; 2048]).unwrap();
        drop(near);
        assert_eq!(far.read_to_end(&mut Vec::new()).unwrap(), 2048);
    });
}

#[test]
fn wakes_of_other_threads_and_waits_are_counted() {
    run(|| {
        let before = counts().scheduler;
        let (sender, mut receiver) = kapok::sync::oneshot::channel();
        let (go, gone) = mpsc::channel::<()>();
        let waker = std::thread::spawn(move || {
            gone.recv().unwrap();
            sender.send(7).unwrap();
        });
        let waiter = kapok::spawn_local(move || receiver.recv().unwrap());
        kapok::sleep(Duration::from_millis(5)).unwrap();
        go.send(()).unwrap();
        assert_eq!(waiter.join().unwrap(), 7);
        waker.join().unwrap();
        let after = counts().scheduler;
        assert_eq!(after.remote_wakes - before.remote_wakes, 1);
        assert!(after.waits > before.waits);
    });
}

#[test]
fn timers_that_are_taken_back_are_counted() {
    run(|| {
        let before = counts().engine.disarmed;
        let (sender, mut receiver) = kapok::sync::oneshot::channel();
        kapok::spawn_local(move || sender.send(()).unwrap()).detach();
        kapok::timeout(Duration::from_secs(3600), || receiver.recv()).unwrap();
        assert_eq!(counts().engine.disarmed - before, 1);
        assert!(counts().engine.in_flight <= 1);
    });
}

#[test]
fn the_total_keeps_what_ended_loops_have_counted() {
    alone("the_total_keeps_what_ended_loops_have_counted", || {
        let none = kapok::metrics();
        assert!(none.loops.is_empty());
        assert_eq!((none.loops_ended, none.total), (0, Counts::default()));
        run_on(2, || {
            (0..20).for_each(|_| kapok::spawn(|| ()).join().unwrap());
            wait_until(|| kapok::metrics().loops.len() == 2);
            let metrics = kapok::metrics();
            assert!(metrics.total.fibers.started >= 21);
            assert!(metrics.stack_bytes_reserved > 0);
            let mut places: Vec<usize> = metrics.loops.iter().map(|one| one.index).collect();
            places.sort_unstable();
            assert_eq!(places, [0, 1]);
        });
        let after = kapok::metrics();
        assert!(after.loops.is_empty());
        assert_eq!(after.loops_ended, 2);
        let Counts { engine, fibers, stacks, scheduler, .. } = after.total;
        assert_eq!((fibers.spawned, fibers.started, fibers.ended), (21, 21, 21));
        assert_eq!((fibers.live, stacks.in_use, stacks.warm), (0, 0, 0));
        assert_eq!((engine.in_flight, engine.backlog), (0, 0));
        assert_eq!((scheduler.ready, scheduler.unstarted), (0, 0));
        assert!(scheduler.switches >= 21);
    });
}

#[test]
fn what_does_not_end_and_what_never_starts_is_counted() {
    alone("what_does_not_end_and_what_never_starts_is_counted", || {
        let runtime = Runtime::builder().close_limit(Duration::from_millis(50)).build().unwrap();
        runtime.run(|| {
            let stays = Builder::new().name("stays");
            let (sender, mut receiver) = kapok::sync::oneshot::channel::<()>();
            let kept = Arc::new(sender);
            stays
                .spawn_local(move || {
                    let _kept = kept;
                    kapok::shield(|| receiver.recv())
                })
                .detach();
            kapok::yield_now();
            kapok::yield_now();
            // Cancelled with the loop it spawns one that starts, which spawns one that does not.
            kapok::spawn_local(|| {
                assert!(kapok::sleep(Duration::from_secs(3600)).is_err());
                kapok::spawn_local(|| kapok::spawn_local(|| ()).detach()).detach();
            })
            .detach();
            kapok::yield_now();
        });
        let after = kapok::metrics();
        assert_eq!(after.total.fibers.abandoned, 1);
        assert_eq!(after.total.fibers.discarded, 1);
        assert_eq!(after.total.fibers.live, 0);
        assert_eq!(after.stacks_leaked, 1);
    });
}
