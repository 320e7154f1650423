//! An engine whose ring can no longer be entered: what it hands over, and that another goes on.

use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use kapok_engine::entry::Entry;
use kapok_engine::uring::Link;
use kapok_engine::{
    AnyEngine, Completions, Config, Engine, Key, Kind, Op, Readiness, Salvage, Submitted, Wait,
};

use crate::filter::{self, Threads};

conformance! {
    what_a_dead_ring_had_is_all_accounted_for,
    entries_and_chains_of_a_dead_ring_are_accounted_for,
    bells_of_a_dead_ring_ring_for_its_successor,
    a_backlog_outlives_its_ring,
    whatever_denies_it_a_ring_dies_alike,
}

fn engine(kind: Kind, submission_entries: u32) -> AnyEngine {
    let mut config = Config::default();
    config.submission_entries = submission_entries;
    config.simulation = Some(crate::world::simulation(0));
    AnyEngine::new(kind, &config).unwrap()
}

fn deny_enter(errno: i32) {
    filter::deny(&[libc::SYS_io_uring_enter], errno, Threads::Calling).expect("a filter");
}

fn recv(stream: &UnixStream, buf: &mut [u8]) -> Op {
    Op::Recv { fd: stream.as_raw_fd(), buf: buf.as_mut_ptr(), len: buf.len(), flags: 0 }
}

#[track_caller]
fn submit(engine: &mut AnyEngine, number: u32, op: Op) -> Key {
    let key = Key::new(number, number + 7);
    // SAFETY: the tests keep what they lend until they end by leaving the process.
    let submitted = unsafe { engine.submit(key, op) };
    assert_eq!(submitted, Submitted::Pending, "{op:?}");
    key
}

/// Turns until an error or the patience ends it.
fn breaks(engine: &mut AnyEngine, out: &mut Completions) -> std::io::Error {
    engine.turn(Wait::Until(Instant::now() + Duration::from_secs(10)), out).expect_err("it breaks")
}

/// An engine that is no ring does not break, and is not to be replaced.
fn is_no_ring(engine: &mut AnyEngine) -> bool {
    if engine.kind() == Kind::Uring {
        return false;
    }
    let before = engine.in_flight();
    let error = engine.replace_broken().expect_err("nothing replaces it");
    assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
    assert_eq!(engine.in_flight(), before);
    let mut out = Completions::new();
    engine.turn(Wait::No, &mut out).unwrap();
    true
}

fn keys_of(salvage: &Salvage) -> (Vec<Key>, Vec<Key>) {
    let unseen = salvage.unseen.iter().map(|(key, _)| *key).collect();
    (unseen, salvage.held.iter().map(|held| held.key).collect())
}

fn entries_and_chains_of_a_dead_ring_are_accounted_for(kind: Kind) {
    let mut engine = engine(kind, 64);
    if is_no_ring(&mut engine) {
        return;
    }
    let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
    let mut buffers = vec![[0xa5u8; 16]; 3];
    let starts: Vec<_> = buffers.iter_mut().map(|buffer| buffer.as_mut_ptr()).collect();
    let entries = [0, 1, 2].map(|at| Entry::recv(pairs[at].0.as_raw_fd(), starts[at], 16, 0));
    let mut out = Completions::new();
    // The kernel has the first, and not the others.
    let held = submit(&mut engine, 0, Op::Entry { entry: &raw const entries[0] });
    engine.turn(Wait::No, &mut out).unwrap();
    let unseen = submit(&mut engine, 1, Op::Entry { entry: &raw const entries[1] });
    let nop = Entry::nop();
    let chain = [(Key::new(2, 9), &raw const entries[2]), (Key::new(3, 9), &raw const nop)];
    let AnyEngine::Uring(ring) = &mut engine else { unreachable!("it is a ring") };
    // SAFETY: as in `submit`.
    unsafe { ring.submit_chain(&chain, Link::OnSuccess) }.unwrap();
    deny_enter(libc::EPERM);
    breaks(&mut engine, &mut out);
    let salvage = engine.replace_broken().unwrap();
    assert_eq!(keys_of(&salvage), (vec![unseen], vec![held]));
    assert_eq!((salvage.held[0].name, salvage.held[0].lends), ("recv", true));
    // What hangs on another is not begun by itself.
    out.extend(&salvage.landed);
    let over: Vec<_> = out.iter().map(|completion| (completion.key, completion.res)).collect();
    assert_eq!(over, [(chain[0].0, -libc::ECANCELED), (chain[1].0, -libc::ECANCELED)]);
    for (key, op) in salvage.unseen {
        // SAFETY: as in `submit`.
        assert_eq!(unsafe { engine.submit(key, op) }, Submitted::Pending);
    }
    std::io::Write::write_all(&mut &pairs[1].1, b"late").unwrap();
    out.clear();
    while engine.in_flight() > 0 {
        engine.turn(Wait::Forever, &mut out).unwrap();
    }
    assert_eq!((out[0].key, out[0].res, &buffers[1][..5]), (unseen, 4, &b"late\xa5"[..]));
    // What the dead ring holds stays lent.
    std::mem::forget((buffers, pairs));
}

fn what_a_dead_ring_had_is_all_accounted_for(kind: Kind) {
    let mut engine = engine(kind, 64);
    let pairs: Vec<_> = (0..4).map(|_| UnixStream::pair().unwrap()).collect();
    let mut buffers = vec![[0xa5u8; 16]; 4];
    let mut out = Completions::new();
    // The kernel has these.
    let held = submit(&mut engine, 0, recv(&pairs[0].0, &mut buffers[0]));
    let fd: RawFd = pairs[1].0.as_raw_fd();
    let polled = submit(&mut engine, 1, Op::Poll { fd, events: Readiness::READABLE });
    engine.turn(Wait::No, &mut out).unwrap();
    assert!(out.is_empty());
    // It does not have these.
    let unseen = submit(&mut engine, 2, recv(&pairs[2].0, &mut buffers[2]));
    // Not before the ring breaks.
    let late = Instant::now() + Duration::from_millis(500);
    let timer = submit(&mut engine, 3, Op::Timer { deadline: late });
    let withdrawn = submit(&mut engine, 4, recv(&pairs[3].0, &mut buffers[3]));
    engine.cancel(withdrawn);
    // SAFETY: makes a file, which nobody else has.
    let file = unsafe { std::fs::File::from_raw_fd(libc::memfd_create(c"file".as_ptr(), 0)) };
    let write = |bytes: &'static [u8], offset| {
        let (buf, len) = (bytes.as_ptr(), bytes.len());
        Op::Write { fd: file.as_raw_fd(), buf, len, offset }
    };
    let unwritten = submit(&mut engine, 5, write(b"unwritten", 10));
    engine.cancel(unwritten);
    let written = submit(&mut engine, 6, write(b"written", 0));
    if is_no_ring(&mut engine) {
        return;
    }
    deny_enter(libc::EPERM);

    let error = breaks(&mut engine, &mut out);
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    let salvage = engine.replace_broken().unwrap();
    // What was over is told, by the turn or by the salvage.
    out.extend(&salvage.landed);
    let over: Vec<_> = out.iter().map(|completion| (completion.key, completion.res)).collect();
    assert_eq!(over, [withdrawn, unwritten].map(|key| (key, -libc::ECANCELED)));
    assert_eq!(keys_of(&salvage), (vec![unseen, written, timer], vec![held, polled]));
    let natures: Vec<_> = salvage.held.iter().map(|held| (held.name, held.lends)).collect();
    assert_eq!(natures, [("recv", true), ("poll", false)]);
    assert_eq!((engine.kind(), engine.in_flight()), (Kind::Epoll, 0));

    // The new engine carries out what the old one never began.
    for (key, op) in salvage.unseen {
        // SAFETY: as in `submit`.
        assert_eq!(unsafe { engine.submit(key, op) }, Submitted::Pending);
    }
    for (_, peer) in &pairs {
        std::io::Write::write_all(&mut &*peer, b"late").unwrap();
    }
    let mut out = Completions::new();
    while engine.in_flight() > 0 {
        engine.turn(Wait::Forever, &mut out).unwrap();
    }
    let mut over: Vec<_> = out.iter().map(|completion| (completion.key, completion.res)).collect();
    over.sort();
    assert_eq!(over, [(unseen, 4), (timer, 0), (written, 7)]);
    assert!(Instant::now() >= late);
    assert_eq!(file.metadata().unwrap().len(), 7);
    assert_eq!(&buffers[2][..5], b"late\xa5");
    assert_eq!(buffers[3], [0xa5; 16], "withdrawn");
    // What the dead ring holds stays lent.
    std::mem::forget(buffers);
}

fn bells_of_a_dead_ring_ring_for_its_successor(kind: Kind) {
    let mut engine = engine(kind, 8);
    let bell = engine.bell();
    let mut out = Completions::new();
    engine.turn(Wait::No, &mut out).unwrap();
    if is_no_ring(&mut engine) {
        return;
    }
    deny_enter(libc::ENOSYS);
    breaks(&mut engine, &mut out);
    engine.replace_broken().unwrap();
    for _ in 0..100 {
        std::thread::scope(|scope| {
            let bell = bell.clone();
            let (asleep, ring) = std::sync::mpsc::channel();
            scope.spawn(move || {
                ring.recv().unwrap();
                std::thread::sleep(Duration::from_micros(200));
                bell.ring();
            });
            asleep.send(()).unwrap();
            // The test's own limit ends it if the bell is not heard.
            engine.turn(Wait::Forever, &mut out).unwrap();
        });
    }
    assert!(out.is_empty());
}

/// More than the submission queue takes, and the ring dies when it is to be flushed.
fn a_backlog_outlives_its_ring(kind: Kind) {
    let mut engine = engine(kind, 2);
    if is_no_ring(&mut engine) {
        return;
    }
    deny_enter(libc::EACCES);
    let pairs: Vec<_> = (0..50).map(|_| UnixStream::pair().unwrap()).collect();
    let mut buffers = vec![[0u8; 4]; 50];
    let keys: Vec<_> = (0..)
        .zip(pairs.iter().zip(&mut buffers))
        .map(|(at, ((stream, _), buffer))| submit(&mut engine, at, recv(stream, buffer)))
        .collect();
    let mut out = Completions::new();
    breaks(&mut engine, &mut out);
    let salvage = engine.replace_broken().unwrap();
    assert_eq!(keys_of(&salvage), (keys.clone(), vec![]), "in the order of their submission");
    for (key, op) in salvage.unseen {
        // SAFETY: as in `submit`.
        assert_eq!(unsafe { engine.submit(key, op) }, Submitted::Pending);
    }
    for (at, (_, peer)) in (0u8..).zip(&pairs) {
        std::io::Write::write_all(&mut &*peer, &[at]).unwrap();
    }
    while engine.in_flight() > 0 {
        engine.turn(Wait::Forever, &mut out).unwrap();
    }
    assert_eq!(out.len(), keys.len());
    for (at, buffer) in (0u8..).zip(&buffers) {
        assert_eq!(*buffer, [at, 0, 0, 0]);
    }
}

fn whatever_denies_it_a_ring_dies_alike(kind: Kind) {
    for errno in [libc::EPERM, libc::ENOSYS, libc::EACCES] {
        // A filter stays with its thread.
        let outcome = std::thread::spawn(move || {
            let mut engine = engine(kind, 8);
            if is_no_ring(&mut engine) {
                return;
            }
            deny_enter(errno);
            let error = breaks(&mut engine, &mut Completions::new());
            assert_eq!(error.raw_os_error(), Some(errno));
            assert_eq!(engine.replace_broken().unwrap().held, []);
            // Nor is a new one to be had: the constructor tries it.
            let refused = AnyEngine::new(Kind::Uring, &Config::default()).err();
            assert_eq!(refused.and_then(|error| error.raw_os_error()), Some(errno));
            assert_eq!(AnyEngine::best(&Config::default()).unwrap().kind(), Kind::Epoll);
        });
        outcome.join().unwrap();
    }
}
