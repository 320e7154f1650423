//! I/O threads beside fibers: a fiber that waits for one keeps nobody waiting.

mod harness;

use std::io::Write;

use harness::run;
use kapok::pool::{File, OpenFile, Pool, Via};

#[test]
fn fibers_read_through_io_threads() {
    run(|| {
        let path = std::env::temp_dir().join(format!("kapok-pool-{}", std::process::id()));
        let content: Vec<u8> = (0..100 * 1000).map(|at: u32| (at / 1000) as u8).collect();
        std::fs::File::create(&path).unwrap().write_all(&content).unwrap();
        let pool = Pool::builder().via(Via::Thread).build().unwrap();
        let file = kapok::block_on(File::open(&pool, &path)).unwrap();
        std::fs::remove_file(&path).unwrap();
        let readers: Vec<_> = (0..100u64)
            .map(|at| {
                let file = file.clone();
                kapok::spawn_local(move || {
                    let (read, buffer) =
                        kapok::block_on(file.read_exact_at(vec![0; 1000], at * 1000));
                    read.unwrap();
                    buffer
                })
            })
            .collect();
        for (at, reader) in readers.into_iter().enumerate() {
            assert_eq!(reader.join().unwrap(), vec![at as u8; 1000]);
        }
    });
}

/// The thread of the fibers goes on: what one waits for, another does.
#[test]
fn a_fiber_that_waits_for_an_io_thread_lets_others_run() {
    run(|| {
        let pool = Pool::builder().via(Via::Thread).build().unwrap();
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let near = std::sync::Arc::new(near);
        let receiver = kapok::spawn_local(move || {
            let (received, buffer) = kapok::block_on(pool.recv(&near, vec![0; 16], 0));
            (received.unwrap(), buffer)
        });
        kapok::yield_now();
        assert!(!receiver.is_finished());
        (&far).write_all(b"float").unwrap();
        let (count, buffer) = receiver.join().unwrap();
        assert_eq!(&buffer[..count], b"float");
    });
}

/// What a fiber blocks for runs on its own loop: no I/O thread hears of it.
#[test]
fn what_a_fiber_blocks_for_runs_on_its_own_ring() {
    run(|| {
        let path = std::env::temp_dir().join(format!("kapok-own-ring-{}", std::process::id()));
        let content: Vec<u8> = (0..64 * 512).map(|at: u32| (at / 512) as u8).collect();
        std::fs::File::create(&path).unwrap().write_all(&content).unwrap();
        let pool = Pool::builder().via(Via::Ring).build().unwrap();
        let file =
            OpenFile::from(std::fs::File::options().read(true).write(true).open(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        let fibers: Vec<_> = (0..64u64)
            .map(|at| {
                let (pool, file) = (pool.clone(), file.clone());
                kapok::spawn_local(move || {
                    let (read, buffer) = pool.read_at(&file, vec![0; 512], at * 512).block();
                    assert_eq!((read.unwrap(), buffer), (512, vec![at as u8; 512]));
                    let (written, _) = pool.write_at(&file, vec![!at as u8; 512], at * 512).block();
                    assert_eq!(written.unwrap(), 512);
                    pool.sync(&file, true).block().unwrap();
                    pool.nop().block().unwrap();
                    // By all ways but its own the same bytes come.
                    for via in [Via::Auto, Via::Caller, Via::Thread] {
                        let read = pool.read_at(&file, vec![0; 512], at * 512).via(via);
                        assert_eq!(read.block().1, vec![!at as u8; 512], "via {via}");
                    }
                })
            })
            .collect();
        let before = pool.stats().threads[0].submitted;
        assert_eq!(before, 0);
        for fiber in fibers {
            fiber.join().unwrap();
        }
        // Those of `Via::Thread`, and of `Via::Caller` what the cache did not have: of four by the ring none.
        let after = pool.stats().threads[0].submitted;
        assert!((64..=128).contains(&after), "{after} operations reached the I/O thread");
    });
}

/// A call that would have kept its whole loop waiting: by every way only the fiber waits.
#[test]
fn a_fiber_that_blocks_for_an_operation_lets_others_run() {
    run(|| {
        for via in [Via::Auto, Via::Caller, Via::Ring, Via::Thread] {
            let pool = Pool::builder().via(via).build().unwrap();
            let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
            let near = std::sync::Arc::new(near);
            let receiver = kapok::spawn_local(move || {
                let (received, buffer) = pool.recv(&near, vec![0; 16], 0).block();
                (received.unwrap(), buffer)
            });
            kapok::yield_now();
            assert!(!receiver.is_finished());
            (&far).write_all(b"float").unwrap();
            let (count, buffer) = receiver.join().unwrap();
            assert_eq!(&buffer[..count], b"float", "via {via}");
        }
    });
}

/// The buffer and the reason come back when a fiber is cancelled, and nothing is lent any more.
#[test]
fn a_cancelled_fiber_gets_its_buffer_back() {
    run(|| {
        let pool = Pool::builder().via(Via::Ring).build().unwrap();
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let near = std::sync::Arc::new(near);
        let receiver = kapok::spawn_local({
            let (pool, near) = (pool.clone(), near.clone());
            move || pool.recv(&near, vec![7; 16], 0).block()
        });
        kapok::yield_now();
        receiver.cancel();
        let (received, buffer) = receiver.join().unwrap();
        let error = received.unwrap_err();
        assert!(
            !matches!(
                error.kind(),
                std::io::ErrorKind::Interrupted | std::io::ErrorKind::WouldBlock
            ),
            "{error:?}"
        );
        assert_eq!(buffer, [7; 16]);
        // What comes now is the next one's.
        (&far).write_all(b"late").unwrap();
        let (received, buffer) = pool.recv(&near, vec![0; 16], 0).block();
        assert_eq!(&buffer[..received.unwrap()], b"late");
    });
}

/// A fiber that finds all it reads in the page cache still lets others run.
#[test]
fn reads_that_never_wait_let_other_fibers_run() {
    run(|| {
        let path = std::env::temp_dir().join(format!("kapok-cached-{}", std::process::id()));
        std::fs::File::create(&path).unwrap().write_all(&[1; 4096]).unwrap();
        let pool = Pool::builder().build().unwrap();
        let file = OpenFile::from(std::fs::File::open(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        let stop = std::rc::Rc::new(std::cell::Cell::new(false));
        let reader = kapok::spawn_local({
            let stop = stop.clone();
            move || {
                let mut reads = 0u64;
                let mut buffer = vec![0; 4096];
                while !stop.get() && reads < 10_000_000 {
                    let (read, back) = pool.read_at(&file, buffer, 0).block();
                    buffer = back;
                    assert_eq!(read.unwrap(), 4096);
                    reads += 1;
                }
                reads
            }
        });
        kapok::yield_now();
        stop.set(true);
        assert!(reader.join().unwrap() < 10_000, "it kept the others waiting");
    });
}
