//! I/O threads beside fibers: a fiber that waits for one keeps nobody waiting.

mod harness;

use std::io::{Read, Write};

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

/// Entries of io_uring, with nothing but this crate: where there is no function for one, `Pool::entry` takes
/// it together with what it names.
#[cfg(target_os = "linux")]
mod entries {
    use std::future::Future;
    use std::os::fd::{AsFd, AsRawFd, OwnedFd};
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::{Context, Waker};

    use kapok::Kind;
    use kapok::pool::entry::Entry;
    use kapok::pool::{Operation, Request, fs};

    use super::*;

    /// `FUTEX2_SIZE_U32 | FUTEX2_PRIVATE`.
    const FLAGS: u32 = 2 | 128;
    const ALL: u64 = u32::MAX as u64;

    /// How an operation is waited for.
    #[derive(Clone, Copy, Debug)]
    enum By {
        Block,
        Await,
    }

    impl By {
        fn wait<R: Request>(self, operation: Operation<'_, R>) -> R::Output {
            match self {
                By::Block => operation.block(),
                By::Await => kapok::block_on(operation),
            }
        }
    }

    /// The word is kept with the entry that waits for it to change.
    fn wait_for_word(pool: &Pool, word: &Arc<AtomicU32>, by: By) {
        let wait = |word: &mut Arc<AtomicU32>| Entry::futex_wait(word.as_ptr(), 5, ALL, FLAGS, 0);
        // SAFETY: the word is on the heap, and the clone keeps it; the kernel reads it as others do.
        let (landed, _) = by.wait(unsafe { pool.entry(word.clone(), wait) });
        assert_eq!(landed.unwrap().res, 0);
    }

    /// Wakes who waits for the word, by another entry, until there was one.
    fn wake(pool: &Pool, word: &Arc<AtomicU32>, by: By) {
        let wake = |word: &mut Arc<AtomicU32>| Entry::futex_wake(word.as_ptr(), 1, ALL, FLAGS, 0);
        loop {
            // SAFETY: as for the wait.
            let (woken, kept) = by.wait(unsafe { pool.entry(word.clone(), wake) });
            assert!(Arc::ptr_eq(&kept, word), "what is kept comes back");
            match woken.unwrap().res {
                0 => std::thread::yield_now(),
                woken => return assert_eq!(woken, 1),
            }
        }
    }

    fn use_entries(pool: &Pool, by: By, name: &str) {
        let path = std::env::temp_dir().join(format!("kapok-{name}-{}", std::process::id()));
        std::fs::write(&path, b"0123456789").unwrap();
        let file =
            OpenFile::from(std::fs::File::options().read(true).write(true).open(&path).unwrap());

        // From a file into a pipe.
        let (mut reader, writer) = std::io::pipe().unwrap();
        let writer = Arc::new(OwnedFd::from(writer));
        let moved = by.wait(pool.splice((&file, Some(6)), (&writer, None), 100));
        assert_eq!(moved.unwrap(), 4);
        let moved = by.wait(pool.splice((&file, Some(10)), (&writer, None), 100));
        assert_eq!(moved.unwrap(), 0, "the end of the file");
        let neither = by.wait(pool.splice((&file, None), (&file, None), 1));
        assert_eq!(neither.unwrap_err().raw_os_error(), Some(libc::EINVAL));
        drop(writer);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"6789");

        // Attributes, where the file system has them.
        kapok::block_on(async {
            let attribute = "user.kapok";
            match fs::set_xattr(pool, &path, attribute, "floats", 0).await {
                Ok(()) => {
                    let value = fs::get_xattr(pool, &path, attribute, vec![0; 16]).await;
                    assert_eq!((value.0.unwrap(), &value.1[..6]), (6, &b"floats"[..]));
                    let (len, _) = fs::get_xattr(pool, &path, attribute, Vec::new()).await;
                    assert_eq!(len.unwrap(), 6, "the length, without room");
                    let (none, _) = fs::get_xattr(pool, &path, "user.none", vec![0; 16]).await;
                    let none = none.unwrap_err().to_string();
                    assert!(none.contains("get the attribute user.none of") && none.contains(name));
                }
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::Unsupported, "{error}");
                    eprintln!("NOT ON THIS FILE SYSTEM: {error}");
                }
            }
        });

        // An entry that no function makes, and one that waits for another.
        let sync = |file: &mut OpenFile| {
            let fd = file.as_fd().as_raw_fd();
            Entry::sync_file_range(fd, 0, 0, libc::SYNC_FILE_RANGE_WRITE)
        };
        // SAFETY: the entry names no memory, and the clone keeps the descriptor open.
        let (landed, _) = by.wait(unsafe { pool.entry(file.clone(), sync) });
        assert_eq!(landed.unwrap().res, 0);
        let word = Arc::new(AtomicU32::new(5));
        let waker = {
            let (pool, word) = (pool.clone(), word.clone());
            std::thread::spawn(move || wake(&pool, &word, by))
        };
        wait_for_word(pool, &word, by);
        waker.join().unwrap();
        word.store(6, Ordering::Relaxed);
        let wait = |word: &mut Arc<AtomicU32>| Entry::futex_wait(word.as_ptr(), 5, ALL, FLAGS, 0);
        // SAFETY: as above.
        let (landed, _) = by.wait(unsafe { pool.entry(word, wait) });
        let error = landed.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EAGAIN), "it has another value: {error}");
        std::fs::remove_file(&path).unwrap();
    }

    fn pools() -> Vec<Pool> {
        let kinds = [Kind::Uring, Kind::Epoll];
        // Where io_uring is refused there is the other.
        kinds.into_iter().filter_map(|kind| Pool::builder().engine(kind).build().ok()).collect()
    }

    #[test]
    fn are_run_by_threads_fibers_and_tasks() {
        for pool in pools() {
            for by in [By::Block, By::Await] {
                use_entries(&pool, by, "entries-of-threads");
                // Another fiber runs while the entry waits.
                let pool = pool.clone();
                run(move || {
                    let word = Arc::new(AtomicU32::new(5));
                    let waiting = kapok::spawn_local({
                        let (pool, word) = (pool.clone(), word.clone());
                        move || wait_for_word(&pool, &word, by)
                    });
                    kapok::yield_now();
                    assert!(!waiting.is_finished());
                    wake(&pool, &word, by);
                    waiting.join().unwrap();
                    use_entries(&pool, by, "entries-of-fibers");
                });
            }
        }
    }

    /// What an entry names outlives its future.
    #[test]
    fn keep_what_they_name_until_they_have_landed() {
        for pool in pools() {
            let (reader, mut writer) = std::io::pipe().unwrap();
            let kept = (Arc::new(reader), vec![0; 16]);
            let open = kept.0.clone();
            let read = |(reader, bytes): &mut (Arc<std::io::PipeReader>, Vec<u8>)| {
                let fd = reader.as_raw_fd();
                Entry::read(fd, bytes.as_mut_ptr(), bytes.len(), u64::MAX)
            };
            // SAFETY: the bytes are on the heap and kept, and so is the pipe.
            let mut operation = unsafe { pool.entry(kept, read) };
            let context = &mut Context::from_waker(Waker::noop());
            assert!(Pin::new(&mut operation).poll(context).is_pending());
            drop(operation);
            // A thread that reads hears of no cancel, and has to be given something.
            writer.write_all(b"float").unwrap();
            harness::wait_until(|| Arc::strong_count(&open) == 1);
        }
    }
}
