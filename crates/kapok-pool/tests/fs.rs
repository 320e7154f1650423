//! Paths and directories, vectored transfers, space and copies, each against what std says afterwards.

mod harness;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use harness::{block_on, has_uring, poll_once};
use kapok_engine::Kind;
use kapok_pool::{Buffers, File, OpenFile, OpenOptions, Pool, Via, fs};

/// A directory of its own, gone with it.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("kapok-pool-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Directory(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The ways there are: through a ring where there is one, and on blocking threads.
fn pools() -> Vec<Pool> {
    let mut pools = vec![
        Pool::builder().build().unwrap(),
        Pool::builder().engine(Kind::Epoll).via(Via::Thread).build().unwrap(),
    ];
    if has_uring() {
        pools.push(Pool::builder().engine(Kind::Uring).via(Via::Thread).build().unwrap());
    }
    pools
}

#[test]
fn directories_are_made_read_and_removed() {
    for pool in pools() {
        let directory = Directory::new("tree");
        block_on(async {
            let deep = directory.path("a/b/c");
            fs::create_dir_all(&pool, &deep).await.unwrap();
            fs::create_dir_all(&pool, &deep).await.unwrap();
            assert!(deep.is_dir());
            let error = fs::create_dir(&pool, &deep).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AlreadyExists);
            assert!(error.to_string().contains("a/b/c"), "{error}");
            // More than are read at once.
            for number in 0..300 {
                let path = directory.path(&format!("a/{number}"));
                fs::write(&pool, path, vec![7; number]).await.unwrap();
            }
            fs::symlink(&pool, "b", directory.path("a/link")).await.unwrap();
            let mut names = BTreeSet::new();
            let mut entries = fs::read_dir(&pool, directory.path("a")).await.unwrap();
            while let Some(entry) = entries.next().await {
                let entry = entry.unwrap();
                let name = entry.file_name().to_str().unwrap().to_owned();
                assert_eq!(entry.path(), directory.path("a").join(&name));
                assert_eq!(entry.file_type().is_dir(), name == "b");
                assert_eq!(entry.file_type().is_symlink(), name == "link");
                assert!(names.insert(name), "told twice");
            }
            assert_eq!(names.len(), 302);
            assert!(entries.next().await.is_none());
            let error = fs::remove_dir(&pool, directory.path("a")).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DirectoryNotEmpty);
            fs::remove_file(&pool, directory.path("a/0")).await.unwrap();
            assert!(!fs::exists(&pool, directory.path("a/0")).await.unwrap());
            fs::remove_dir(&pool, &deep).await.unwrap();
            fs::remove_dir_all(&pool, directory.path("a")).await.unwrap();
            assert!(!directory.path("a").exists());
            // A file where a directory is to be.
            fs::write(&pool, directory.path("file"), "x").await.unwrap();
            let error = fs::create_dir_all(&pool, directory.path("file/below")).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotADirectory, "{error}");
            let error = fs::read_dir(&pool, directory.path("none")).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            assert!(error.to_string().contains("none"), "{error}");
        });
    }
}

/// What comes of a future on a thread of its own, if that is soon.
fn soon<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || tell.send(block_on(future)));
    told.recv_timeout(Duration::from_secs(20)).expect("not within 20 s")
}

#[test]
fn a_directory_that_cannot_be_made_is_an_error_although_the_one_above_is_there() {
    let gone = Directory::new("gone");
    let open = std::fs::File::open(&gone.0).unwrap();
    drop(gone);
    let in_gone = format!("/proc/self/fd/{}/below", open.as_raw_fd());
    for pool in pools() {
        for path in ["/proc/none", "/proc/none/below", &in_gone] {
            let (pool, made) = (pool.clone(), PathBuf::from(path));
            let outcome = soon(async move { fs::create_dir_all(&pool, made).await });
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::NotFound, "{path}");
        }
    }
}

#[test]
fn what_has_no_offsets_is_read_and_written_as_well() {
    // More than a pipe holds.
    let content: Vec<u8> = (0..300_000).map(|at| b'a' + (at % 23) as u8).collect();
    for pool in pools() {
        let directory = Directory::new("fifo");
        let fifo = directory.path("fifo");
        make_fifo(&fifo);
        // A name of a pipe, as /dev/stdin may be one.
        let (from, mut to) = std::io::pipe().unwrap();
        let pipe = PathBuf::from(format!("/proc/self/fd/{}", from.as_raw_fd()));
        for path in [fifo.clone(), pipe] {
            let (written, at) = (content.clone(), fifo.clone());
            let writer = if path == fifo {
                std::thread::spawn(move || {
                    // The other side waits for it.
                    std::thread::sleep(Duration::from_millis(50));
                    std::fs::write(at, written).unwrap();
                })
            } else {
                let mut to = std::mem::replace(&mut to, std::io::pipe().unwrap().1);
                std::thread::spawn(move || to.write_all(&written).unwrap())
            };
            let pool = pool.clone();
            let read = soon(async move { fs::read_to_string(&pool, path).await }).unwrap();
            assert!(read.as_bytes() == content, "{} bytes of {}", read.len(), content.len());
            writer.join().unwrap();
        }
        let at = fifo.clone();
        let reader = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            std::fs::read(at).unwrap()
        });
        let written = content.clone();
        soon(async move { fs::write(&pool, fifo, written).await }).unwrap();
        assert!(reader.join().unwrap() == content);
    }
}

#[test]
fn a_file_that_may_only_be_written_is_written() {
    let pool = Pool::builder().build().unwrap();
    let directory = Directory::new("write-only");
    let file = directory.path("file");
    block_on(fs::write(&pool, &file, "first, and longer")).unwrap();
    block_on(fs::write(&pool, &file, "second")).unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), b"second");
    // What can be opened for writing only: its reading end is another file.
    let (_from, to) = std::io::pipe().unwrap();
    block_on(fs::write(&pool, format!("/proc/self/fd/{}", to.as_raw_fd()), "x")).unwrap();
}

fn make_fifo(path: &std::path::Path) {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the path ends.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
}

#[test]
fn a_directory_that_is_read_loses_no_entry_to_a_future_that_is_dropped() {
    let pool = Pool::builder().build().unwrap();
    let directory = Directory::new("cancelled");
    for number in 0..1000 {
        std::fs::write(directory.path(&number.to_string()), "").unwrap();
    }
    block_on(async {
        let mut entries = fs::read_dir(&pool, &directory.0).await.unwrap();
        let mut seen = BTreeSet::new();
        loop {
            // Polled once and dropped, which finds something or not.
            let polled = poll_once(&mut Box::pin(entries.next()));
            let entry = match polled {
                std::task::Poll::Ready(entry) => entry,
                std::task::Poll::Pending => entries.next().await,
            };
            let Some(entry) = entry else { break };
            assert!(seen.insert(entry.unwrap().file_name().to_owned()), "told twice");
        }
        assert_eq!(seen.len(), 1000);
    });
}

#[test]
fn names_are_changed_and_links_made() {
    for pool in pools() {
        let directory = Directory::new("names");
        let [one, two, three, link] =
            ["one", "two", "three", "link"].map(|name| directory.path(name));
        block_on(async {
            fs::write(&pool, &one, "content").await.unwrap();
            fs::rename(&pool, &one, &two).await.unwrap();
            assert!(!one.exists());
            fs::hard_link(&pool, &two, &three).await.unwrap();
            assert_eq!(fs::metadata(&pool, &three).await.unwrap().nlink(), 2);
            fs::symlink(&pool, &two, &link).await.unwrap();
            assert_eq!(fs::read_link(&pool, &link).await.unwrap(), two);
            assert!(fs::symlink_metadata(&pool, &link).await.unwrap().is_symlink());
            assert_eq!(
                fs::canonicalize(&pool, &link).await.unwrap(),
                std::fs::canonicalize(&two).unwrap()
            );
            assert_eq!(fs::read_to_string(&pool, &link).await.unwrap(), "content");
            fs::write(&pool, &three, vec![0xff]).await.unwrap();
            let error = fs::read_to_string(&pool, &two).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData);
            let error = fs::rename(&pool, &one, &two).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            assert!(error.to_string().contains("one") && error.to_string().contains("two"));
            let cause = error.get_ref().unwrap().source().unwrap();
            let cause = cause.downcast_ref::<std::io::Error>().unwrap();
            assert_eq!(cause.raw_os_error(), Some(libc::ENOENT));
            let error = fs::remove_file(&pool, "a\0b").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        });
    }
}

#[test]
fn metadata_is_what_std_says() {
    for pool in pools() {
        let directory = Directory::new("metadata");
        let path = directory.path("file");
        std::fs::write(&path, vec![1; 5000]).unwrap();
        block_on(async {
            fs::set_mode(&pool, &path, 0o640).await.unwrap();
            let file = OpenOptions::new().write(true).open(&pool, &path).await.unwrap();
            let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_000);
            let times = std::fs::FileTimes::new().set_modified(then).set_accessed(then);
            file.set_times(times).await.unwrap();
            let expected = std::fs::metadata(&path).unwrap();
            for found in [file.metadata().await.unwrap(), fs::metadata(&pool, &path).await.unwrap()]
            {
                assert_eq!(found.modified(), then);
                assert_eq!(found.accessed(), then);
                assert_eq!(found.created(), expected.created().ok());
                assert_eq!((found.len(), found.is_file(), found.is_dir()), (5000, true, false));
                assert_eq!(found.mode(), expected.mode());
                assert_eq!((found.uid(), found.gid()), (expected.uid(), expected.gid()));
                assert_eq!((found.ino(), found.nlink()), (expected.ino(), expected.nlink()));
                assert_eq!((found.dev(), found.blocks()), (expected.dev(), expected.blocks()));
                assert_eq!(found.block_size(), expected.blksize());
            }
            file.set_mode(0o600).await.unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            file.set_owner(Some(expected.uid()), None).await.unwrap();
            assert!(fs::metadata(&pool, &directory.0).await.unwrap().is_dir());
        });
    }
}

#[test]
fn several_buffers_are_one_transfer() {
    for pool in pools() {
        let directory = Directory::new("vectored");
        block_on(async {
            let file = File::create(&pool, directory.path("file")).await.unwrap();
            let parts = vec![b"one ".to_vec(), Vec::new(), b"two ".to_vec(), b"three".to_vec()];
            let (count, parts) = file.write_vectored_at(parts, 3).await;
            assert_eq!(count.unwrap(), 13);
            assert_eq!(parts.len(), 4);
            let rooms = vec![Vec::with_capacity(5), Vec::with_capacity(100), vec![9; 4]];
            let (count, rooms) = file.read_vectored_at(rooms, 2).await;
            assert_eq!(count.unwrap(), 14);
            assert_eq!(rooms, [b"\0one ".to_vec(), b"two three".to_vec(), vec![9; 4]]);
            // More than one call takes, and none.
            let many: Vec<_> = (0..3000).map(|at| vec![at as u8; 1]).collect();
            let (count, many) = file.write_vectored_at(many, 0).await;
            assert_eq!((count.unwrap(), many.len()), (1024, 3000));
            let (count, _) = file.read_vectored_at(Vec::<Vec<u8>>::new(), 0).await;
            assert_eq!(count.unwrap(), 0);
            let (count, _) = file.read_vectored_at(vec![vec![0; 4]], u64::MAX).await;
            assert_eq!(count.unwrap_err().kind(), ErrorKind::InvalidInput);
            // As pread(2) has it, in what has no offsets.
            let (pipe, _other) = std::io::pipe().unwrap();
            let pipe = File::from_open(&pool, OwnedFd::from(pipe));
            let (count, _) = pipe.read_vectored_at(vec![vec![0; 4]], 0).await;
            assert_eq!(count.unwrap_err().raw_os_error(), Some(libc::ESPIPE));
        });
    }
}

#[test]
fn space_is_allocated_cut_and_found() {
    for pool in pools() {
        let directory = Directory::new("space");
        let path = directory.path("file");
        block_on(async {
            let file = File::create(&pool, &path).await.unwrap();
            file.allocate(0, 1 << 20).await.unwrap();
            let metadata = file.metadata().await.unwrap();
            assert_eq!(metadata.len(), 1 << 20);
            assert!(metadata.blocks() * 512 >= 1 << 20, "{} blocks", metadata.blocks());
            file.set_len(0).await.unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
            file.set_len(8 << 20).await.unwrap();
            let (written, _) = file.write_all_at(vec![1; 4096], 4 << 20).await;
            written.unwrap();
            file.sync_all().await.unwrap();
            let data = file.data_from(0).await.unwrap().unwrap();
            assert!(data.contains(&(4 << 20)) && data.end - data.start < 1 << 20, "{data:?}");
            assert_eq!(file.data_from(data.end).await.unwrap(), None);
            file.advise(0, 0, libc::POSIX_FADV_SEQUENTIAL).await.unwrap();
            let error = file.set_len(1 << 63).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            let read_only = File::open(&pool, &path).await.unwrap();
            assert!(read_only.set_len(1).await.is_err());
            assert_eq!(std::fs::metadata(&path).unwrap().len(), 8 << 20);
        });
    }
}

#[test]
fn copies_have_content_holes_and_mode() {
    for pool in pools() {
        let directory = Directory::new("copy");
        let [from, to] = ["from", "to"].map(|name| directory.path(name));
        block_on(async {
            let file = File::create(&pool, &from).await.unwrap();
            for at in [0u64, 5 << 20, 9 << 20] {
                let content: Vec<u8> = (0..70_000).map(|byte| (byte as u64 + at) as u8).collect();
                file.write_all_at(content, at).await.0.unwrap();
            }
            file.set_len(16 << 20).await.unwrap();
            file.set_mode(0o751).await.unwrap();
            std::fs::write(&to, vec![3; 100_000]).unwrap();
            assert_eq!(fs::copy(&pool, &from, &to).await.unwrap(), 16 << 20);
            let (content, metadata) =
                (std::fs::read(&to).unwrap(), std::fs::metadata(&to).unwrap());
            assert!(content == std::fs::read(&from).unwrap());
            assert_eq!(metadata.permissions().mode() & 0o7777, 0o751);
            let source = std::fs::metadata(&from).unwrap();
            assert!(source.blocks() * 512 < 8 << 20, "this file system has no holes");
            assert!(metadata.blocks() <= source.blocks() + 64, "the holes are gone");
            // What has no length before it is read.
            let count = fs::copy(&pool, "/proc/self/status", &to).await.unwrap();
            assert_eq!(std::fs::metadata(&to).unwrap().len(), count);
            assert!(std::fs::read_to_string(&to).unwrap().starts_with("Name:"));
            // What is said to be a page long, and is a line.
            let (online, copied) = ("/sys/devices/system/cpu/online", directory.path("online"));
            let line = std::fs::read(online).unwrap();
            assert_eq!(fs::copy(&pool, online, &copied).await.unwrap(), line.len() as u64);
            assert_eq!(std::fs::read(&copied).unwrap(), line);
            let error = fs::copy(&pool, &from, &from).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert_eq!(std::fs::metadata(&from).unwrap().len(), 16 << 20);
            assert!(fs::copy(&pool, &directory.0, &to).await.is_err());
            // A part, and one beyond the end.
            let target = File::create(&pool, &to).await.unwrap();
            assert_eq!(file.copy_range(5 << 20, &target, 10, 1000).await.unwrap(), 1000);
            assert_eq!(std::fs::read(&to).unwrap()[10..], content[5 << 20..][..1000]);
            assert_eq!(file.copy_range((16 << 20) - 5, &target, 0, 1000).await.unwrap(), 5);
        });
    }
}

#[test]
fn direct_transfers_want_what_a_lease_has() {
    for pool in pools() {
        let directory = Directory::new("direct");
        block_on(async {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).direct(true);
            let file = match options.open(&pool, directory.path("file")).await {
                Ok(file) => file,
                Err(error) => {
                    eprintln!("SKIPPED: this file system has no direct transfers: {error}");
                    return;
                }
            };
            let buffers = Buffers::new(2, 16384).unwrap();
            let mut lease = buffers.lease().await;
            lease.set_len(16384);
            lease.fill(0x5a);
            let (written, lease) = file.write_all_at(lease, 4096).await;
            written.unwrap();
            drop(lease);
            let (read, lease) = file.read_exact_at(buffers.lease().await, 4096).await;
            read.unwrap();
            assert!(lease.len() == 16384 && lease.iter().all(|&byte| byte == 0x5a));
            assert_eq!(std::fs::metadata(directory.path("file")).unwrap().len(), 4096 + 16384);
        });
    }
}

/// Closing a socket with SO_LINGER and unsent bytes takes as long as it says: a device as slow as that.
#[test]
fn a_close_that_takes_long_keeps_nobody_waiting() {
    for pool in pools() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        let linger = libc::linger { l_onoff: 1, l_linger: 60 };
        let size = size_of::<libc::linger>() as libc::socklen_t;
        // SAFETY: the option is a local of its size.
        let set = unsafe {
            let (level, name) = (libc::SOL_SOCKET, libc::SO_LINGER);
            libc::setsockopt(near.as_raw_fd(), level, name, (&raw const linger).cast(), size)
        };
        assert_eq!(set, 0);
        near.set_nonblocking(true).unwrap();
        // Until nothing has gone out for a while: the peer's window may grow, and on a busy machine late.
        let mut tries_in_vain = 0;
        while tries_in_vain < 5 {
            let gone = (&near).write(&[0; 65536]).is_ok();
            tries_in_vain = if gone { 0 } else { tries_in_vain + 1 };
            if !gone {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        near.set_nonblocking(false).unwrap();
        let file = File::from_open(&pool, OpenFile::from(OwnedFd::from(near)));
        let mut close = Box::pin(file.close());
        assert!(poll_once(&mut close).is_pending());
        // Before it, on the one thread that the pool has.
        for _ in 0..10 {
            pool.nop().via(Via::Thread).block().unwrap();
        }
        assert!(poll_once(&mut close).is_pending(), "the close was no slow one");
        // Ends it.
        drop(far);
        block_on(close).unwrap();
    }
}

#[test]
fn a_call_that_panics_does_so_where_it_is_awaited() {
    let pool = Pool::builder().build().unwrap();
    let file = block_on(File::open(&pool, "/dev/null")).unwrap();
    let call = file.blocking(|_| -> std::io::Result<()> { std::panic::resume_unwind(Box::new(7)) });
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| block_on(call)));
    assert_eq!(*panic.unwrap_err().downcast::<i32>().unwrap(), 7);
    pool.shutdown(Duration::ZERO);
    let late = block_on(file.blocking(|_| Ok(()))).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::NotConnected);
    let late = block_on(fs::canonicalize(&pool, "/")).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::NotConnected);
}
