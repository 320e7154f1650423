//! The end of a pool.

mod harness;

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::{Canaries, Scratch, block_on, descriptors, eventually, has_uring, poll_once};
use kapok_engine::Kind;
use kapok_pool::{OpenOptions, Pool, Via};

#[test]
fn a_shutdown_with_ten_thousand_in_flight_returns_every_buffer() {
    let _turn = harness::turn();
    has_uring();
    const COUNT: usize = 10_000;
    let pool = Pool::builder()
        .threads(2)
        .slots(16 * 1024)
        .channel(8 * 1024)
        .in_flight(16 * 1024)
        .via(Via::Thread)
        .build()
        .unwrap();
    let (near, _far) = UnixStream::pair().unwrap();
    let near = Arc::new(near);
    let canaries = Canaries::default();
    let mut all: Vec<_> = (0..COUNT).map(|_| pool.recv(&near, canaries.lend(16), 0)).collect();
    all.iter_mut().for_each(|one| assert!(poll_once(one).is_pending()));
    eventually("all are in flight", || {
        pool.stats().threads.iter().map(|thread| thread.in_flight).sum::<u64>() == COUNT as u64
    });
    pool.shutdown(Duration::ZERO);
    assert_eq!(pool.stats().pending(), 0);
    assert_eq!(canaries.given_back(), 0);
    for one in all {
        let (result, buffer) = block_on(one);
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ECANCELED));
        drop(buffer);
    }
    assert_eq!(canaries.given_back(), COUNT);
    canaries.check(0);
}

#[test]
fn what_ends_within_the_grace_is_not_cancelled() {
    let _turn = harness::turn();
    has_uring();
    let pool = Pool::builder().via(Via::Thread).build().unwrap();
    let (near, _far) = UnixStream::pair().unwrap();
    let near = Arc::new(near);
    let mut endless = pool.recv(&near, vec![0; 16], 0);
    assert!(poll_once(&mut endless).is_pending());
    let deadline = Instant::now() + Duration::from_millis(100);
    let mut sleeps: Vec<_> = (0..100).map(|_| pool.sleep_until(deadline)).collect();
    sleeps.iter_mut().for_each(|one| assert!(poll_once(one).is_pending()));
    pool.shutdown(Duration::from_secs(2));
    for sleep in sleeps {
        block_on(sleep).unwrap();
    }
    let (result, _) = block_on(endless);
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ECANCELED));
}

#[test]
fn after_a_shutdown_operations_fail_and_their_buffers_come_back() {
    let _turn = harness::turn();
    has_uring();
    let file = Scratch::new("late", b"late").open();
    let pool = Pool::builder().slots(1).build().unwrap();
    let other = pool.clone();
    // One that waits for room hears of it too.
    let (near, _far) = UnixStream::pair().unwrap();
    let near = Arc::new(near);
    let mut first = pool.recv(&near, vec![1; 1], 0);
    let mut second = pool.recv(&near, vec![2; 2], 0);
    assert!(poll_once(&mut first).is_pending());
    assert!(poll_once(&mut second).is_pending());
    pool.shutdown(Duration::ZERO);
    assert_eq!(block_on(first).0.unwrap_err().raw_os_error(), Some(libc::ECANCELED));
    let (result, buffer) = block_on(second);
    assert_eq!((result.unwrap_err().kind(), buffer.len()), (ErrorKind::NotConnected, 2));
    for via in [Via::Auto, Via::Thread] {
        let (result, buffer) = other.read_at(&file, vec![7; 7], 1 << 40).via(via).block();
        match via {
            // What needs no thread is carried out, or refused like the rest.
            Via::Auto => assert!(matches!(
                result.map_err(|error| error.kind()),
                Ok(0) | Err(ErrorKind::NotConnected)
            )),
            _ => assert_eq!(result.unwrap_err().kind(), ErrorKind::NotConnected),
        }
        assert_eq!(buffer, [7; 7]);
    }
    // A second shutdown has nothing to do.
    other.shutdown(Duration::from_secs(1));
}

#[test]
fn the_last_handle_takes_the_threads_and_rings_along() {
    let _turn = harness::turn();
    has_uring();
    let file = Scratch::new("last", b"last").open();
    drop(Pool::builder().build().unwrap());
    let before = descriptors();
    for _ in 0..20 {
        let pool = Pool::builder().threads(3).via(Via::Thread).build().unwrap();
        assert!(descriptors() > before);
        let mut abandoned = pool.read_at(&file, vec![0; 4], 0);
        let _ = poll_once(&mut abandoned);
        drop(abandoned);
        drop(pool);
    }
    eventually("the rings are gone", || descriptors() <= before);
}

#[test]
fn an_operation_with_a_handle_of_its_own_outlives_the_borrow() {
    let _turn = harness::turn();
    has_uring();
    let file = Scratch::new("owned", b"owned").open();
    let read = {
        let pool = Pool::builder().via(Via::Thread).build().unwrap();
        pool.read_at(&file, Vec::with_capacity(16), 0).owned()
    };
    let (count, buffer) = std::thread::spawn(|| block_on(read)).join().unwrap();
    assert_eq!((count.unwrap(), &buffer[..]), (5, &b"owned"[..]));
}

#[test]
fn the_opening_of_a_fifo_that_nobody_else_opens_holds_no_shutdown_up() {
    let _turn = harness::turn();
    // Rings open one end without the other.
    for kind in [Kind::Epoll, Kind::Poll] {
        for for_reading in [true, false] {
            let before = descriptors();
            // Who is left waiting is seen by who opens the other end, so each has its own.
            let name = format!("kapok-pool-fifo-{}-{kind}-{for_reading}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
            // SAFETY: the path ends.
            assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
            let pool = Pool::builder().engine(kind).via(Via::Thread).build().unwrap();
            let mut options = OpenOptions::new();
            options.read(for_reading).write(!for_reading);
            let mut open = Box::pin(options.open(&pool, &path));
            assert!(poll_once(&mut open).is_pending());
            // It is taken up, and waits.
            std::thread::sleep(Duration::from_millis(100));
            let early = poll_once(&mut open);
            assert!(early.is_pending(), "{kind}, reading {for_reading}: {early:?}");
            let (tell, told) = std::sync::mpsc::channel();
            let other = pool.clone();
            std::thread::spawn(move || {
                other.shutdown(Duration::ZERO);
                drop(other);
                tell.send(())
            });
            told.recv_timeout(Duration::from_secs(20)).expect("the shutdown takes for ever");
            let error = block_on(open).unwrap_err();
            let said = std::error::Error::source(&error).unwrap().to_string();
            assert!(said.contains(&format!("os error {}", libc::ECANCELED)), "{kind}: {said}");
            drop(pool);
            // Both ends: whoever is still in the call comes out of it, and keeps nothing open.
            let both = std::fs::File::options().read(true).write(true).open(&path).unwrap();
            eventually("nothing stays open", || descriptors() <= before + 1);
            drop(both);
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn a_shutdown_beside_another_waits_as_long() {
    let _turn = harness::turn();
    has_uring();
    let pool = Pool::builder().via(Via::Thread).build().unwrap();
    let (near, _far) = UnixStream::pair().unwrap();
    let near = Arc::new(near);
    let mut endless = pool.recv(&near, vec![0; 16], 0);
    assert!(poll_once(&mut endless).is_pending());
    std::thread::scope(|scope| {
        scope.spawn(|| pool.shutdown(Duration::from_millis(500)));
        eventually("the other has begun", || pool.nop().block().is_err());
        std::thread::sleep(Duration::from_millis(50));
        pool.shutdown(Duration::from_secs(1));
        assert_eq!(pool.stats().pending(), 0);
    });
    let (result, _) = block_on(endless);
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ECANCELED));
}
