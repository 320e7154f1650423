//! A pool whose ring is driven by the thread of a runtime: nothing is handed over to another thread, nothing is
//! lost, and whatever ends first, the rest ends too.

#![cfg(target_os = "linux")]

use std::cell::Cell;
use std::fs;
use std::future::Future;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kapok_pool::{Driver, EngineConfig, Pool, Readiness, Via};
use kapok_tokio::drive;
use tokio::runtime::{Builder, Runtime};
use tokio::task::LocalSet;

/// A pool that hands over everything, with little room.
fn driven(slots: u32) -> Option<(Pool, Driver)> {
    match Pool::builder().via(Via::Thread).slots(slots).channel(4).build_driven() {
        Ok(driven) => Some(driven),
        Err(error) => {
            let required = std::env::var("KAPOK_REQUIRE_URING").is_ok_and(|value| value == "1");
            assert!(!required, "KAPOK_REQUIRE_URING=1: {error}");
            eprintln!("SKIPPED: no io_uring: {error}");
            None
        }
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs `work` beside the driver, which is to end when the pool has gone.
fn beside<F: Future>((pool, driver): (Pool, Driver), work: impl FnOnce(Pool) -> F) -> F::Output {
    let (runtime, tasks) = (runtime(), LocalSet::new());
    let driving = tasks.spawn_local(drive(driver));
    tasks.block_on(&runtime, async {
        let output = work(pool).await;
        let ended = tokio::time::timeout(Duration::from_secs(20), driving).await;
        ended.expect("the driver ends with its pool").unwrap().unwrap();
        output
    })
}

/// The names of this process's threads.
fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect()
}

#[test]
fn tasks_read_a_file_and_no_thread_is_started() {
    let Some(driven) = driven(64) else { return };
    let path = std::env::temp_dir().join(format!("kapok-driven-{}", std::process::id()));
    let content: Vec<u8> =
        (0..1 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(&path, &content).unwrap();
    let file = Arc::new(fs::File::open(&path).unwrap());
    beside(driven, |pool| async move {
        let reads = (0..256_u64).map(|page| {
            let (pool, file) = (pool.clone(), Arc::clone(&file));
            tokio::task::spawn_local(async move {
                let (count, bytes) =
                    pool.read_at(&file, Vec::with_capacity(4096), page * 4096).await;
                assert_eq!(count.unwrap(), 4096);
                (page as usize, bytes)
            })
        });
        for read in reads.collect::<Vec<_>>() {
            let (page, bytes) = read.await.unwrap();
            assert_eq!(bytes[..], content[page * 4096..][..4096], "page {page}");
        }
        let named: Vec<String> =
            threads().into_iter().filter(|name| name.starts_with("kapok-io")).collect();
        assert!(named.is_empty(), "{named:?}");
        let stats = pool.stats();
        assert_eq!(stats.threads.len(), 1);
        assert_eq!(stats.threads[0].completed, 256);
    });
    fs::remove_file(path).unwrap();
}

#[test]
fn a_hundred_thousand_operations_through_little_room_end_each_once() {
    let Some(driven) = driven(16) else { return };
    let ended = Rc::new(Cell::new(0));
    beside(driven, |pool| {
        let ended = Rc::clone(&ended);
        async move {
            let tasks = (0..64).map(|_| {
                let (pool, ended) = (pool.clone(), Rc::clone(&ended));
                tokio::task::spawn_local(async move {
                    for _ in 0..1_600 {
                        pool.nop().await.unwrap();
                        ended.set(ended.get() + 1);
                    }
                })
            });
            for task in tasks.collect::<Vec<_>>() {
                task.await.unwrap();
            }
        }
    });
    assert_eq!(ended.get(), 64 * 1_600);
}

#[test]
fn a_deadline_of_the_ring_wakes_the_runtime_that_has_nothing_else() {
    let Some(driven) = driven(8) else { return };
    let took = beside(driven, |pool| async move {
        let begun = Instant::now();
        pool.sleep_until(begun + Duration::from_millis(60)).await.unwrap();
        begun.elapsed()
    });
    assert!(took >= Duration::from_millis(60), "{took:?}");
}

#[test]
fn what_lands_later_wakes_a_runtime_that_has_nothing_else() {
    let Some(driven) = driven(8) else { return };
    beside(driven, |pool| async move {
        let (near, mut far) = UnixStream::pair().unwrap();
        let near = Arc::new(near);
        let (asks, asked) = std::sync::mpsc::channel();
        let sends = std::thread::spawn(move || {
            for at in asked {
                std::thread::sleep(Duration::from_millis(3));
                far.write_all(&[at]).unwrap();
            }
        });
        for at in 0..50 {
            asks.send(at).unwrap();
            let receive = pool.recv(&near, vec![0; 16], 0);
            let (count, bytes) =
                tokio::time::timeout(Duration::from_secs(20), receive).await.expect("it is woken");
            assert_eq!((count.unwrap(), bytes[0]), (1, at));
        }
        drop(asks);
        sends.join().unwrap();
    });
}

/// Of the writes that bring them the kernel tells the ring's own eventfd later, or not at all.
#[test]
fn eventfds_become_readable_one_after_the_other() {
    let Some(driven) = driven(8) else { return };
    beside(driven, |pool| async move {
        for _ in 0..10 {
            // SAFETY: makes a descriptor, which nobody else has.
            let eventfd = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) };
            let eventfd = Arc::new(eventfd);
            let there = Arc::clone(&eventfd);
            let writes = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(5));
                let one = 1_u64;
                // SAFETY: eight bytes of a local.
                unsafe { libc::write(there.as_raw_fd(), (&raw const one).cast(), 8) }
            });
            let ready = pool.ready(&eventfd, Readiness::READABLE);
            let limit = Duration::from_secs(20);
            tokio::time::timeout(limit, ready).await.expect("it looks").unwrap();
            assert_eq!(writes.join().unwrap(), 8);
        }
    });
}

#[test]
fn a_small_ring_leaves_nothing_behind_that_the_kernel_has_not_seen() {
    let mut engine = EngineConfig::default();
    engine.submission_entries = 4;
    let built = Pool::builder().via(Via::Thread).engine_config(engine).build_driven();
    let Ok(driven) = built else { return };
    beside(driven, |pool| async move {
        let (near, _far) = UnixStream::pair().unwrap();
        let near = Arc::new(near);
        let waiting: Vec<_> = (0..8)
            .map(|_| {
                let (pool, near) = (pool.clone(), Arc::clone(&near));
                tokio::task::spawn_local(async move { pool.recv(&near, vec![0; 16], 0).await.0 })
            })
            .collect();
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, pool.nop()).await.expect("it is submitted").unwrap();
        pool.shutdown(Duration::ZERO);
        for waits in waiting {
            waits.await.unwrap().unwrap_err();
        }
    });
}

/// How long a receive goes on for which nothing comes, once its pool is shut down, with its driver or without.
fn receives_on(grace: Duration, drops_driver: bool) -> Duration {
    let Some((pool, driver)) = driven(8) else { return grace };
    let (runtime, tasks) = (runtime(), LocalSet::new());
    let driving = tasks.spawn_local(drive(driver));
    tasks.block_on(&runtime, async {
        let (near, _far) = UnixStream::pair().unwrap();
        let near = Arc::new(near);
        let mut waits = std::pin::pin!(pool.recv(&near, vec![0; 8], 0));
        let early = tokio::time::timeout(Duration::from_millis(20), &mut waits).await;
        assert!(early.is_err());
        let begun = Instant::now();
        // It does not wait, or it would for ever.
        pool.shutdown(grace);
        tokio::task::yield_now().await;
        if drops_driver {
            driving.abort();
        }
        let ended = driving.await;
        assert_eq!(ended.is_err_and(|error| error.is_cancelled()), drops_driver);
        assert_eq!(waits.await.0.unwrap_err().raw_os_error(), Some(libc::ECANCELED));
        begun.elapsed()
    })
}

#[test]
fn a_pool_that_is_shut_down_ends_its_driver_after_what_has_begun() {
    let grace = Duration::from_millis(50);
    assert!(receives_on(grace, false) >= grace, "it had so long to end");
}

#[test]
fn a_driver_that_is_dropped_has_no_grace() {
    receives_on(Duration::MAX, true);
}

#[test]
fn threads_of_others_have_their_operations_carried_out_too() {
    let Some(driven) = driven(8) else { return };
    beside(driven, |pool| async move {
        let others: Vec<_> = (0..4)
            .map(|_| {
                let pool = pool.clone();
                std::thread::spawn(move || {
                    for _ in 0..500 {
                        pool.nop().block().unwrap();
                    }
                })
            })
            .collect();
        drop(pool);
        // It sleeps whenever they have nothing.
        for other in others {
            while !other.is_finished() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            other.join().unwrap();
        }
    });
}

#[test]
fn a_receive_that_nobody_waits_for_any_more_ends_and_takes_nothing() {
    let Some(driven) = driven(2) else { return };
    beside(driven, |pool| async move {
        let (near, mut far) = UnixStream::pair().unwrap();
        let near = Arc::new(near);
        for _ in 0..100 {
            let receives = pool.recv(&near, vec![0; 16], 0);
            let timely = tokio::time::timeout(Duration::from_micros(50), receives).await;
            assert!(timely.is_err(), "nothing was sent");
        }
        far.write_all(b"late").unwrap();
        let (count, bytes) = pool.recv(&near, vec![0; 16], 0).await;
        assert_eq!(&bytes[..count.unwrap()], b"late");
    });
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// In a process of its own: it counts descriptors.
#[test]
fn a_driver_that_is_dropped_cancels_what_is_in_flight_and_gives_every_buffer_back() {
    if std::env::var_os("KAPOK_DRIVEN_ALONE").is_none() {
        let name = "a_driver_that_is_dropped_cancels_what_is_in_flight_and_gives_every_buffer_back";
        let alone = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env("KAPOK_DRIVEN_ALONE", "1")
            .status();
        assert!(alone.unwrap().success());
        return;
    }
    for round in 0..20 {
        let before = descriptors();
        let Some((pool, driver)) = driven(64) else { return };
        let (near, far) = UnixStream::pair().unwrap();
        let near = Arc::new(near);
        let (runtime, tasks) = (runtime(), LocalSet::new());
        let driving = tasks.spawn_local(drive(driver));
        let waiting: Vec<_> = (0..32)
            .map(|_| {
                let (pool, near) = (pool.clone(), Arc::clone(&near));
                tasks.spawn_local(async move { pool.recv(&near, vec![7; 4096], 0).await })
            })
            .collect();
        tasks.block_on(&runtime, async {
            while pool.stats().threads[0].in_flight < 32 {
                tokio::task::yield_now().await;
            }
            driving.abort();
            assert!(driving.await.unwrap_err().is_cancelled());
            for waits in waiting {
                let (count, buffer) = waits.await.unwrap();
                let error = count.unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::ECANCELED), "round {round}: {error}");
                assert_eq!(buffer, [7; 4096]);
            }
            let late = pool.nop().await.unwrap_err();
            assert_eq!(late.kind(), io::ErrorKind::NotConnected);
        });
        drop((pool, near, far, tasks, runtime));
        assert_eq!(descriptors(), before, "round {round}");
    }
}

#[test]
fn a_panic_between_two_polls_leaves_nothing_in_flight() {
    let Some((pool, driver)) = driven(8) else { return };
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let (runtime, tasks) = (runtime(), LocalSet::new());
        let _driving = tasks.spawn_local(drive(driver));
        tasks.block_on(&runtime, async {
            let (near, _far) = UnixStream::pair().unwrap();
            let near = Arc::new(near);
            let receives = pool.recv(&near, vec![0; 8], 0);
            let _ = tokio::time::timeout(Duration::from_millis(5), receives).await;
            panic!("in the middle");
        });
    }));
    assert!(unwound.is_err());
    assert_eq!(pool.stats().pending(), 0);
}

#[test]
fn only_a_ring_is_driven() {
    let refused = Pool::builder().engine(kapok_pool::Kind::Epoll).build_driven().unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
    assert!(refused.to_string().contains("epoll"), "{refused}");
    let nonsense = Pool::builder().slots(0).build_driven().unwrap_err();
    assert_eq!(nonsense.kind(), io::ErrorKind::InvalidInput);
}
