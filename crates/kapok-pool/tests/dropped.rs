//! Futures that are dropped at every stage of their operation: no buffer, descriptor or slot is lost,
//! and nothing is written to memory that was given back.

mod harness;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use harness::{Canaries, Scratch, descriptors, eventually, has_uring, poll_once, scale};
use kapok_pool::{Pool, Via};

const SLOTS: u32 = 128;

fn pool() -> Pool {
    // Small, so that some wait for room.
    Pool::builder().threads(2).slots(SLOTS).channel(16).take(8).via(Via::Thread).build().unwrap()
}

/// All slots can be had: as many operations as there are slots are in flight at once.
fn all_slots_are_there(pool: &Pool) {
    eventually("what was cancelled has landed", || pool.stats().pending() == 0);
    let (near, _far) = UnixStream::pair().unwrap();
    let near = Arc::new(near);
    let mut all: Vec<_> = (0..SLOTS).map(|_| pool.recv(&near, vec![0; 1], 0)).collect();
    eventually("every slot is there", || {
        all.iter_mut().for_each(|one| assert!(poll_once(one).is_pending()));
        pool.stats().pending() == u64::from(SLOTS)
    });
    drop(all);
    eventually("what was cancelled has landed", || pool.stats().pending() == 0);
}

#[test]
fn dropped_at_every_stage_nothing_is_lost_and_nothing_written_late() {
    let _turn = harness::turn();
    has_uring();
    let pool = pool();
    let canaries = Canaries::default();
    let content: Vec<u8> = (0..4096).map(|at| at as u8).collect();
    let file = Scratch::new("dropped", &content);
    let file = file.open();
    let (near, mut far) = UnixStream::pair().unwrap();
    let (near, mut drain) = (Arc::new(near.try_clone().unwrap()), near);
    drain.set_nonblocking(true).unwrap();
    // Whatever starts on its own account has started.
    drop(pool.read_at(&file, canaries.lend(64), 0).block());
    let before = descriptors();
    let mut random = fastrand::Rng::with_seed(5);
    let mut live = Vec::new();
    let mut live_reads = Vec::new();
    let mut completed = 0;
    for round in 0..scale(100_000, 1_000_000) {
        let stage = random.u32(..6);
        // A receive never ends by itself, but for what is written now and then.
        if random.bool() {
            let mut receive = pool.recv(&near, canaries.lend(64), 0);
            if stage > 0 {
                completed += u32::from(poll_once(&mut receive).is_ready());
            }
            if stage > 3 {
                live.push(receive);
            }
        } else {
            let mut read = pool.read_at(&file, canaries.lend(256), u64::from(random.u16(..3000)));
            if stage > 0 && poll_once(&mut read).is_ready() {
                completed += 1;
                continue;
            }
            match stage {
                2 => std::thread::yield_now(),
                3 => std::hint::spin_loop(),
                4.. => live_reads.push(read),
                _ => {}
            }
        }
        if live.len() > 40 {
            drop(live.swap_remove(random.usize(..live.len())));
        }
        if live_reads.len() > 20 {
            let mut read = live_reads.swap_remove(random.usize(..live_reads.len()));
            if let Poll::Ready((count, buffer)) = poll_once(&mut read) {
                completed += 1;
                assert_eq!(count.unwrap(), 256);
                drop(buffer);
            }
        }
        if round % 64 == 0 {
            far.write_all(b"bytes that may land late").unwrap();
        }
        if round % 1024 == 0 {
            let mut sink = [0; 4096];
            while drain.read(&mut sink).is_ok() {}
            canaries.check(2000);
        }
    }
    drop((live, live_reads));
    assert!(completed > 0, "nothing ever landed before it was dropped");
    all_slots_are_there(&pool);
    eventually("every buffer came back", || canaries.given_back() == canaries.lent());
    canaries.check(0);
    assert_eq!(descriptors(), before);
    let cancelled: u64 = pool.stats().threads.iter().map(|thread| thread.cancelled).sum();
    assert!(cancelled > 1000, "{cancelled} were in flight when they were dropped");
}

#[test]
fn dropping_never_blocks() {
    let _turn = harness::turn();
    has_uring();
    let pool = pool();
    let (near, _far) = UnixStream::pair().unwrap();
    let near = Arc::new(near);
    let mut longest = Duration::ZERO;
    for _ in 0..200 {
        let mut receive = pool.recv(&near, vec![0; 16], 0);
        assert!(poll_once(&mut receive).is_pending());
        let began = Instant::now();
        drop(receive);
        longest = longest.max(began.elapsed());
    }
    // A receive that is waited for would take for ever.
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    all_slots_are_there(&pool);
}

#[test]
fn a_forgotten_future_keeps_its_descriptor_open() {
    let _turn = harness::turn();
    has_uring();
    let pool = pool();
    let (near, mut far) = UnixStream::pair().unwrap();
    let near = Arc::new(near);
    let mut receive = pool.recv(&near, vec![0; 16], 0);
    assert!(poll_once(&mut receive).is_pending());
    std::mem::forget(receive);
    drop(near);
    // It is still open: somebody receives.
    far.write_all(b"x").unwrap();
    // The future's handle on the pool is never dropped.
    pool.shutdown(Duration::from_secs(10));
}

#[test]
fn who_waits_for_room_and_goes_away_hands_its_turn_on() {
    let _turn = harness::turn();
    has_uring();
    let pool = Pool::builder().slots(2).via(Via::Thread).build().unwrap();
    let (near, mut far) = UnixStream::pair().unwrap();
    let (other, _far) = UnixStream::pair().unwrap();
    let near = [Arc::new(near), Arc::new(other)];
    for _ in 0..200 {
        let mut first: Vec<_> = near.iter().map(|near| pool.recv(near, vec![0; 1], 0)).collect();
        eventually("both have a slot", || {
            first.iter_mut().for_each(|one| assert!(poll_once(one).is_pending()));
            pool.stats().pending() == 2 && pool.stats().waiting == 0
        });
        let mut second = pool.nop();
        assert!(poll_once(&mut second).is_pending());
        std::thread::scope(|scope| {
            // The last one to stand in the line.
            let third = scope.spawn(|| harness::block_on(pool.nop()));
            eventually("both stand in the line", || {
                // The first may have been woken for room that was none for it.
                let stand = pool.stats().waiting == 2;
                stand || poll_once(&mut second).is_ready()
            });
            // One slot gets free, and who was woken for it does not want it any more.
            far.write_all(b"x").unwrap();
            assert_eq!(first.swap_remove(0).block().0.unwrap(), 1);
            drop(second);
            third.join().unwrap().unwrap();
        });
        drop(first);
        eventually("what was cancelled has landed", || pool.stats().pending() == 0);
    }
}
