//! Files, buffers and leases as people use them.

mod harness;

use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::time::SystemTime;

use harness::{Scratch, block_on, descriptors, eventually, has_uring, poll_once};
use kapok_pool::{Buffers, Descriptor, File, OpenOptions, Part, Pool, Via, fs, raw_os_error};

fn pools() -> Vec<Pool> {
    has_uring();
    [Via::Auto, Via::Caller, Via::Thread]
        .into_iter()
        .map(|via| Pool::builder().via(via).build().unwrap())
        .collect()
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 256) as u8).collect()
}

#[test]
fn what_is_written_is_read_back_by_every_way() {
    let _turn = harness::turn();
    for pool in pools() {
        let scratch = Scratch::new("back", b"");
        block_on(async {
            let file = File::create(&pool, &scratch.0).await.unwrap();
            let content = bytes(300_000);
            let (written, content) = file.write_all_at(content, 5).await;
            written.unwrap();
            file.sync_data().await.unwrap();
            file.sync_all().await.unwrap();
            assert_eq!(file.metadata().await.unwrap().len(), 300_005);
            let (count, all) = file.read_to_end(b"head".to_vec()).await;
            assert_eq!(count.unwrap(), 300_005);
            assert_eq!(&all[..9], b"head\0\0\0\0\0");
            assert_eq!(&all[9..], content);
            let (read, part) = file.read_exact_at(vec![0; 1000], 105).await;
            read.unwrap();
            assert_eq!(part, content[100..1100]);
            file.close().await.unwrap();
        });
    }
}

#[test]
fn the_end_of_a_file_is_told_from_a_page_that_is_not_cached() {
    let _turn = harness::turn();
    for pool in pools() {
        let scratch = Scratch::new("end", &bytes(5000));
        block_on(async {
            let file = File::open(&pool, &scratch.0).await.unwrap();
            for (offset, count) in [(0, 5000), (4096, 904), (4999, 1), (5000, 0), (1 << 40, 0)] {
                let (read, buffer) = file.read_at(Vec::with_capacity(8192), offset).await;
                assert_eq!((read.unwrap(), buffer.len()), (count, count));
            }
            let (read, buffer) = file.read_exact_at(vec![0; 100], 4990).await;
            assert_eq!(read.unwrap_err().kind(), ErrorKind::UnexpectedEof);
            assert_eq!(buffer[..10], bytes(5000)[4990..]);
            // An empty room, and an offset that is no position.
            let (read, _) = file.read_at(Vec::new(), 0).await;
            assert_eq!(read.unwrap(), 0);
            for offset in [u64::MAX, 1 << 63] {
                let (read, _) = file.read_at(vec![0; 4], offset).await;
                assert_eq!(read.unwrap_err().kind(), ErrorKind::InvalidInput);
            }
        });
    }
}

#[test]
fn a_read_that_finds_half_of_it_in_the_page_cache_comes_to_all_of_it() {
    let _turn = harness::turn();
    const HALF: usize = 1 << 20;
    let pool = Pool::builder().via(Via::Caller).build().unwrap();
    let scratch = Scratch::new("half", &bytes(2 * HALF));
    block_on(async {
        let file = File::open(&pool, &scratch.0).await.unwrap();
        file.sync_all().await.unwrap();
        // SAFETY: advice on an open file.
        let advice = unsafe {
            libc::posix_fadvise(file.handle().raw(), HALF as i64, 0, libc::POSIX_FADV_DONTNEED)
        };
        assert_eq!(advice, 0);
        let (read, buffer) = file.read_at(vec![0; 2 * HALF], 0).await;
        assert_eq!(read.unwrap(), 2 * HALF);
        assert!(buffer == bytes(2 * HALF));
    });
}

#[test]
fn appends_go_to_the_end() {
    let _turn = harness::turn();
    for pool in pools() {
        let scratch = Scratch::new("append", b"one ");
        block_on(async {
            let mut options = OpenOptions::new();
            let file = options.append(true).read(true).open(&pool, &scratch.0).await.unwrap();
            for part in ["two ", "three"] {
                let (count, _) = file.append(part).await;
                assert_eq!(count.unwrap(), part.len());
            }
            let (_, all) = file.read_to_end(Vec::new()).await;
            assert_eq!(all, b"one two three");
        });
    }
}

#[test]
fn errors_name_the_file_and_the_contradiction() {
    let _turn = harness::turn();
    for pool in pools() {
        block_on(async {
            let error = File::open(&pool, "/nowhere/at/all").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
            let error = OpenOptions::new().open(&pool, "/dev/null").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            let error = File::open(&pool, "/dev/\0").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            // A file that was opened for reading only.
            let file = File::open(&pool, "/proc/self/exe").await.unwrap();
            let (written, buffer) = file.write_all_at(vec![1, 2, 3], 0).await;
            let error = written.unwrap_err();
            assert_eq!(raw_os_error(&error), Some(libc::EBADF));
            assert!(
                error.to_string().starts_with("write /proc/self/exe at 0: Bad file"),
                "{error}"
            );
            assert_eq!(buffer, [1, 2, 3]);
            // A device that is always full.
            let full = OpenOptions::new().write(true).open(&pool, "/dev/full").await.unwrap();
            let (written, _) = full.write_all_at("x", 0).await;
            let error = written.unwrap_err();
            assert_eq!(
                (error.kind(), raw_os_error(&error)),
                (ErrorKind::StorageFull, Some(libc::ENOSPC))
            );
            assert!(
                error.to_string().starts_with("write /dev/full at 0: No space left"),
                "{error}"
            );
            // The kernel's error as it was is the source.
            let source = error.get_ref().unwrap().source().unwrap();
            let source = source.downcast_ref::<std::io::Error>().unwrap();
            assert_eq!(source.raw_os_error(), Some(libc::ENOSPC));
            for (outcome, what) in [
                (full.append("x").await.0.map(drop), "write"),
                (full.write_vectored_at(vec!["x"], 7).await.0.map(drop), "write"),
                (full.sync_all().await.map(drop), "sync"),
                (full.set_len(3).await, "set the length of"),
                (full.allocate(0, 3).await, "allocate space in"),
                (full.read_at(vec![0; 1], 0).await.0.map(drop), "read"),
            ] {
                let text = outcome.unwrap_err().to_string();
                assert!(text.starts_with(&format!("{what} /dev/full")), "{text}");
            }
            // What is said of the whole is not said again of its parts.
            let error = fs::read(&pool, "/proc/self").await.unwrap_err().to_string();
            assert_eq!(error, "read /proc/self: Is a directory (os error 21)");
            // Nobody knows what a file is called that was open before, and the kernel's error is told.
            let exe = std::fs::File::open("/proc/self/exe").unwrap();
            let (written, _) = File::from_open(&pool, exe).write_at("x", 0).await;
            assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::EBADF));
        });
    }
}

#[test]
fn metadata_is_that_of_std() {
    let _turn = harness::turn();
    for pool in pools() {
        let scratch = Scratch::new("metadata", b"12345");
        block_on(async {
            let mine = File::open(&pool, &scratch.0).await.unwrap().metadata().await.unwrap();
            let theirs = std::fs::metadata(&scratch.0).unwrap();
            assert_eq!(mine.len(), theirs.len());
            assert_eq!(mine.modified(), theirs.modified().unwrap());
            assert!(mine.is_file() && !mine.is_dir());
            assert!(mine.modified() > SystemTime::UNIX_EPOCH);
            let directory = File::open(&pool, "/proc").await.unwrap().metadata().await.unwrap();
            assert!(directory.is_dir() && !directory.is_file());
        });
    }
}

#[test]
fn an_open_whose_future_is_gone_leaves_no_descriptor() {
    let _turn = harness::turn();
    let pool = Pool::builder().via(Via::Thread).build().unwrap();
    let scratch = Scratch::new("gone", b"x");
    block_on(async { drop(File::open(&pool, &scratch.0).await.unwrap()) });
    let before = descriptors();
    for _ in 0..500 {
        let mut opening = Box::pin(File::open(&pool, &scratch.0));
        let _ = poll_once(&mut opening);
        drop(opening);
    }
    eventually("all are closed", || pool.stats().pending() == 0 && descriptors() <= before + 1);
}

#[test]
fn direct_reads_go_into_leases() {
    let _turn = harness::turn();
    let pool = Pool::builder().build().unwrap();
    // A file system that has no direct I/O refuses it: this one is the machine's own.
    let directory = std::env::current_dir().unwrap();
    let scratch = Scratch(directory.join(format!("kapok-pool-direct-{}", std::process::id())));
    std::fs::write(&scratch.0, bytes(16 * 4096)).unwrap();
    let buffers = Buffers::new(4, 4096).unwrap();
    block_on(async {
        let opened = OpenOptions::new().read(true).direct(true).open(&pool, &scratch.0).await;
        let file = match opened {
            Err(error) if error.kind() == ErrorKind::InvalidInput => return,
            opened => opened.unwrap(),
        };
        for page in 0..16 {
            let lease = buffers.lease().await;
            let (count, lease) = file.read_at(lease, page * 4096).await;
            assert_eq!(count.unwrap(), 4096);
            let from = page as usize * 4096;
            assert_eq!(lease[..], bytes(16 * 4096)[from..from + 4096]);
        }
        assert_eq!(
            pool.stats().threads[0].submitted,
            17,
            "one was tried in the caller, and waited"
        );
    });
}

#[test]
fn leases_hold_back_who_wants_one_too_many_and_return_by_themselves() {
    let _turn = harness::turn();
    let buffers = Buffers::new(3, 100).unwrap();
    assert_eq!(buffers.bytes(), 4096);
    let mut leases: Vec<_> = (0..3).map(|_| buffers.try_lease().unwrap()).collect();
    for (number, lease) in leases.iter_mut().enumerate() {
        assert_eq!(lease.as_ptr() as usize % 4096, 0);
        assert!(lease.is_empty());
        lease.set_len(4096);
        lease.fill(number as u8);
    }
    // They do not overlap.
    assert!(
        leases.iter().enumerate().all(|(number, lease)| lease.iter().all(|&b| b == number as u8))
    );
    let (mut first, mut second) = (buffers.lease(), buffers.lease());
    assert!(poll_once(&mut first).is_pending());
    assert!(poll_once(&mut second).is_pending());
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| block_on(buffers.lease()).len());
        std::thread::sleep(std::time::Duration::from_millis(20));
        // For the first, which has lost interest by then; so it is for the others.
        leases.pop();
        drop(first);
        leases.pop();
        assert_eq!(waits.join().unwrap(), 0);
    });
    assert!(poll_once(&mut second).is_ready());
    leases.clear();
    drop(second);
    assert_eq!((0..4).filter_map(|_| buffers.try_lease()).collect::<Vec<_>>().len(), 3);
    assert_eq!(Buffers::new(0, 4096).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(Buffers::new(2, usize::MAX).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_lease_of_a_dropped_read_returns() {
    let _turn = harness::turn();
    let pool = Pool::builder().via(Via::Thread).build().unwrap();
    let buffers = Buffers::new(1, 4096).unwrap();
    let (near, _far) = std::os::unix::net::UnixStream::pair().unwrap();
    let near = Arc::new(near);
    for _ in 0..200 {
        let lease = block_on(buffers.lease());
        let mut receive = pool.recv(&near, lease, 0);
        assert!(poll_once(&mut receive).is_pending());
        assert!(buffers.try_lease().is_none());
    }
    drop(block_on(buffers.lease()));
}

#[test]
fn parts_are_parts() {
    let _turn = harness::turn();
    let mut content = Vec::with_capacity(16);
    content.write_all(b"0123").unwrap();
    let scratch = Scratch::new("parts", b"abcdef");
    let pool = Pool::builder().build().unwrap();
    let part = Part::of_room(content, 2..5);
    let (count, part) = pool.read_at(&scratch.open(), part, 0).block();
    assert_eq!((count.unwrap(), &part.into_inner()[..]), (3, &b"01abc"[..]));
    let part = Part::of_bytes(b"0123456".to_vec(), 1..3);
    let (count, part) = pool.write_at(&scratch.open(), part, 1).block();
    assert_eq!((count.unwrap(), part.into_inner().len()), (2, 7));
    assert_eq!(std::fs::read(&scratch.0).unwrap(), b"a12def");
    let gap = std::panic::catch_unwind(|| Part::of_room(Vec::<u8>::with_capacity(8), 1..2));
    assert!(gap.is_err());
    let beyond = std::panic::catch_unwind(|| Part::of_bytes(vec![0; 4], 2..5));
    assert!(beyond.is_err());
}

#[test]
fn what_has_no_offsets_says_so_by_every_way() {
    let _turn = harness::turn();
    let mut pools = pools();
    let readiness = Pool::builder().engine(kapok_engine::Kind::Poll).via(Via::Thread);
    pools.push(readiness.build().unwrap());
    for pool in pools {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"bytes").unwrap();
        let (reader, writer) = (Arc::new(reader), Arc::new(writer));
        let outcomes = [
            block_on(pool.read_at(&reader, vec![0; 4], 0)).0,
            pool.read_at(&reader, vec![0; 4], 0).block().0,
            block_on(pool.write_at(&writer, "more", 0)).0,
            pool.write_at(&writer, "more", 0).block().0,
        ];
        for outcome in outcomes {
            assert_eq!(outcome.unwrap_err().raw_os_error(), Some(libc::ESPIPE));
        }
        let file = File::from_open(&pool, std::os::fd::OwnedFd::from(reader.try_clone().unwrap()));
        let (count, _) = block_on(file.read_at(vec![0; 4], 0));
        assert_eq!(count.unwrap_err().raw_os_error(), Some(libc::ESPIPE));
        // Nothing was taken out, and nothing put in.
        let mut content = [0; 16];
        let count = std::io::Read::read(&mut &*reader, &mut content).unwrap();
        assert_eq!(&content[..count], b"bytes");
    }
}
