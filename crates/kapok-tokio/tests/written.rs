//! What a file has accepted is written without anybody's doing, and no thread waits for it meanwhile.

use std::fs::OpenOptions;
use std::future::Future;
use std::io::{ErrorKind, PipeReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use kapok_engine::{Kind, offload};
use kapok_pool::{OpenFile, Pool, block_on};
use kapok_tokio::File;
use tokio::io::AsyncWriteExt;

/// What never comes is given up after so long.
const LONG: Duration = Duration::from_secs(30);

/// The offload threads are the process's, and one of the tests takes all but one away.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A path of its own, gone with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("kapok-tokio-written-{process}-{number}"));
        std::fs::write(&path, b"").unwrap();
        Scratch(path)
    }

    /// For appending, without any operation of the pool.
    fn open(&self, pool: &Pool) -> File {
        let file = OpenOptions::new().append(true).open(&self.0).unwrap();
        kapok_pool::File::from_open(pool, file).into()
    }

    fn len(&self) -> u64 {
        std::fs::metadata(&self.0).unwrap().len()
    }

    /// Waits until the file is so long.
    fn grows_to(&self, len: u64, what: &str) {
        let deadline = Instant::now() + LONG;
        while self.len() < len {
            assert!(Instant::now() < deadline, "{what}: {} bytes of {len}", self.len());
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(self.len(), len, "{what}");
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn engines() -> Vec<Kind> {
    #[cfg(target_os = "linux")]
    return vec![kapok_engine::AnyEngine::best(&Default::default()).unwrap().kind(), Kind::Epoll];
    #[cfg(not(target_os = "linux"))]
    return vec![Kind::Poll];
}

fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Has the file accept bytes by one poll, and nothing else of it is polled.
fn accept(file: &mut File, bytes: &[u8]) {
    match poll_once(file.write(bytes)) {
        Poll::Ready(Ok(count)) => assert_eq!(count, bytes.len()),
        other => panic!("it is to be accepted at once: {other:?}"),
    }
}

/// Reads so many bytes on a thread of its own, for what may never come.
fn read_aside(mut pipe: PipeReader, count: usize) -> mpsc::Receiver<(Vec<u8>, PipeReader)> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = vec![0; count];
        pipe.read_exact(&mut bytes).unwrap();
        let _ = send.send((bytes, pipe));
    });
    receive
}

/// More than a pipe takes at once.
fn pattern() -> Vec<u8> {
    (0..300_000u32).map(|at| (at % 251) as u8).collect()
}

#[test]
fn more_dropped_files_than_there_are_threads_are_all_written() {
    let _alone = alone();
    let before = offload::max_threads();
    offload::set_max_threads(16);
    // Every write takes a thread, of which there are fewer than files.
    let pool = Pool::builder().engine(Kind::Epoll).in_flight(4).channel(2).build().unwrap();
    let scratch = Scratch::new();
    for number in 0..600u32 {
        accept(&mut scratch.open(&pool), &number.to_le_bytes());
    }
    scratch.grows_to(4 * 600, "files that were dropped in mid-write");
    let content = std::fs::read(&scratch.0).unwrap();
    let mut numbers: Vec<u32> =
        content.chunks(4).map(|number| u32::from_le_bytes(number.try_into().unwrap())).collect();
    numbers.sort_unstable();
    assert!(numbers.iter().copied().eq(0..600));
    offload::set_max_threads(before);
}

#[test]
fn a_dropped_file_whose_reader_is_stuck_takes_no_thread() {
    let _alone = alone();
    let before = offload::max_threads();
    for kind in engines() {
        let pool = Pool::builder().engine(kind).build().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let pipe = kapok_pool::File::from_open(&pool, OwnedFd::from(writer));
        let mut file = File::from(pipe);
        accept(&mut file, &pattern());
        // The one thread that is left must be free, and more are not started.
        offload::set_max_threads(1);
        drop(file);
        let (send, receive) = mpsc::channel();
        offload::spawn(move || send.send(()).unwrap()).unwrap();
        let ran = receive.recv_timeout(LONG);
        // Short writes go on, and the pipe closes behind the last.
        let mut found = Vec::new();
        reader.read_to_end(&mut found).unwrap();
        offload::set_max_threads(before);
        assert!(found == pattern(), "{kind:?}: {} bytes came", found.len());
        ran.unwrap_or_else(|_| panic!("{kind:?}: a thread waits for the reader"));
    }
}

#[test]
fn the_rest_of_a_short_write_follows_in_a_file_that_is_held_and_not_used() {
    let _alone = alone();
    for kind in engines() {
        let pool = Pool::builder().engine(kind).build().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let mut file = File::from(kapok_pool::File::from_open(&pool, OwnedFd::from(writer)));
        accept(&mut file, &pattern());
        let (found, _reader) = read_aside(reader, pattern().len())
            .recv_timeout(LONG)
            .unwrap_or_else(|_| panic!("{kind:?}: only the first part was written"));
        assert!(found == pattern(), "{kind:?}");
        block_on(file.flush()).unwrap();
    }
}

#[test]
fn what_waits_for_room_is_written_in_a_file_that_is_held_and_not_used() {
    let _alone = alone();
    for kind in engines() {
        let pool = Pool::builder().engine(kind).in_flight(1).channel(2).build().unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        let reader = kapok_pool::File::from_open(&pool, OwnedFd::from(reader));
        // They take all the room there is.
        let mut reads: Vec<_> =
            (0..64).map(|_| Box::pin(reader.read(Vec::with_capacity(1)))).collect();
        for read in &mut reads {
            assert!(poll_once(read).is_pending());
        }
        assert!(pool.stats().waiting > 0);
        let scratches: Vec<Scratch> = (0..20).map(|_| Scratch::new()).collect();
        let mut files: Vec<File> = scratches.iter().map(|scratch| scratch.open(&pool)).collect();
        for file in &mut files {
            accept(file, b"accepted");
        }
        assert!(scratches.iter().all(|scratch| scratch.len() == 0));
        writer.write_all(&[0; 64]).unwrap();
        for mut read in reads {
            assert_eq!(block_on(&mut read).0.unwrap(), 1);
        }
        for scratch in &scratches {
            scratch.grows_to(8, "a write that waited for room");
        }
        assert_eq!(pool.stats().waiting, 0, "{kind:?}: places at the gate are left");
        for file in &mut files {
            block_on(file.flush()).unwrap();
        }
    }
}

#[test]
fn a_long_line_for_room_is_no_deep_stack() {
    let _alone = alone();
    let count = 20_000u32;
    for kind in engines() {
        let pool = Pool::builder().engine(kind).in_flight(1).channel(2).slots(8).build().unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        let reader = kapok_pool::File::from_open(&pool, OwnedFd::from(reader));
        // All slots: five by operations that have landed, and three by such as do not. The channel is full.
        let mut landed = Vec::new();
        for number in 1..=5 {
            let soon = Instant::now() + Duration::from_millis(5);
            let mut sleep = Box::pin(pool.sleep_until(soon));
            assert!(poll_once(&mut sleep).is_pending());
            landed.push(sleep);
            let deadline = Instant::now() + LONG;
            while pool.stats().threads[0].completed < number {
                assert!(Instant::now() < deadline, "{kind:?}: nothing landed");
                std::thread::yield_now();
            }
        }
        let mut reads = Vec::new();
        for _ in 0..3 {
            let mut read = Box::pin(reader.read(Vec::with_capacity(1)));
            assert!(poll_once(&mut read).is_pending());
            reads.push(read);
            let deadline = Instant::now() + LONG;
            while pool.stats().threads[0].in_flight == 0 {
                assert!(Instant::now() < deadline, "{kind:?}: nothing is taken");
                std::thread::yield_now();
            }
        }
        let scratch = Scratch::new();
        let open = OpenFile::from(OpenOptions::new().append(true).open(&scratch.0).unwrap());
        for _ in 0..count {
            let mut file = File::from(kapok_pool::File::from_open(&pool, open.clone()));
            accept(&mut file, b"line");
        }
        assert_eq!(pool.stats().waiting, u64::from(count));
        // Who gets a slot finds no room in the channel and gives it back, which is the next one's turn.
        for sleep in landed {
            block_on(sleep).unwrap();
        }
        writer.write_all(&[0; 3]).unwrap();
        for read in reads {
            assert_eq!(block_on(read).0.unwrap(), 1);
        }
        scratch.grows_to(4 * u64::from(count), "a long line");
    }
}

#[test]
fn writes_that_follow_at_once_are_all_begun() {
    let _alone = alone();
    for kind in engines() {
        let pool = Pool::builder().engine(kind).build().unwrap();
        let scratch = Scratch::new();
        let mut file = scratch.open(&pool);
        let deadline = Instant::now() + LONG;
        let count = 5_000;
        for number in 0..count {
            // The next is there before the thread that ended the last has turned away from it.
            while poll_once(file.write(b"x")).is_pending() {
                assert!(Instant::now() < deadline, "{kind:?}: write {number} was not begun");
                std::hint::spin_loop();
            }
        }
        scratch.grows_to(count, "one write after the other");
    }
}

/// Counts how often it was woken.
#[derive(Default)]
struct Woken(AtomicU32);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_flush_hears_of_the_end_and_not_of_the_parts_and_a_dropped_file_keeps_no_task() {
    let _alone = alone();
    for kind in engines() {
        let pool = Pool::builder().engine(kind).build().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut file = File::from(kapok_pool::File::from_open(&pool, OwnedFd::from(writer)));
        accept(&mut file, &pattern());
        let (first, woken) = (Arc::new(Woken::default()), Arc::new(Woken::default()));
        let poll = |file: &mut File, woken: &Arc<Woken>| {
            let waker = Waker::from(Arc::clone(woken));
            pin!(file.flush()).poll(&mut Context::from_waker(&waker))
        };
        assert!(poll(&mut file, &first).is_pending());
        // The last who asks is told.
        assert!(poll(&mut file, &woken).is_pending());
        let mut found = vec![0; pattern().len()];
        reader.read_exact(&mut found).unwrap();
        assert!(found == pattern(), "{kind:?}");
        let deadline = Instant::now() + LONG;
        while woken.0.load(Ordering::SeqCst) == 0 {
            assert!(Instant::now() < deadline, "{kind:?}: the flush was not woken");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(matches!(poll(&mut file, &woken), Poll::Ready(Ok(()))));
        assert_eq!((first.0.load(Ordering::SeqCst), woken.0.load(Ordering::SeqCst)), (0, 1));
        // Nobody reads, and the file goes.
        accept(&mut file, &pattern());
        assert!(poll(&mut file, &woken).is_pending());
        assert_eq!(Arc::strong_count(&woken), 2);
        drop(file);
        assert_eq!(Arc::strong_count(&woken), 1, "{kind:?}: the task is kept");
    }
}

#[test]
fn errors_of_what_went_on_by_itself_are_told_once() {
    let _alone = alone();
    for kind in engines() {
        let pool = Pool::builder().engine(kind).build().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let mut file = File::from(kapok_pool::File::from_open(&pool, OwnedFd::from(writer)));
        accept(&mut file, &pattern());
        drop(reader);
        let error = block_on(file.write(b"more")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{kind:?}");
        block_on(file.flush()).unwrap();
        // Also those of a pool that is gone while a part waits in the file.
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut file = File::from(kapok_pool::File::from_open(&pool, OwnedFd::from(writer)));
        accept(&mut file, &pattern());
        pool.shutdown(Duration::ZERO);
        assert!(block_on(file.flush()).is_err(), "{kind:?}");
        block_on(file.flush()).unwrap();
        drop(file);
        let mut found = Vec::new();
        reader.read_to_end(&mut found).unwrap();
        assert!(pattern().starts_with(&found), "{kind:?}");
    }
}

#[test]
fn after_a_flush_nobody_else_has_the_file_open() {
    let _alone = alone();
    for kind in engines() {
        let pool = Pool::builder().engine(kind).build().unwrap();
        let scratch = Scratch::new();
        for _ in 0..300 {
            let mut file = scratch.open(&pool);
            // SAFETY: flock on a descriptor that is open, here and below.
            assert_eq!(unsafe { libc::flock(file.as_fd().as_raw_fd(), libc::LOCK_EX) }, 0);
            accept(&mut file, b"locked");
            block_on(file.flush()).unwrap();
            drop(file);
            let other = std::fs::File::open(&scratch.0).unwrap();
            // SAFETY: as above.
            let res = unsafe { libc::flock(other.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
            assert_eq!(res, 0, "{kind:?}: {}", std::io::Error::last_os_error());
        }
    }
}
