//! The adaptor against `tokio::fs::File`: the same operations on a file of each, with futures that are
//! dropped in the middle, come to the same bytes, positions and errors.

use std::future::Future;
use std::io::{ErrorKind, IoSlice, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use kapok_engine::Kind;
use kapok_pool::{Pool, Via};
use kapok_tokio::File;
use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// A path of its own, gone with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(content: &[u8]) -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("kapok-tokio-{process}-{number}"));
        std::fs::write(&path, content).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The ways that operations go: tried in the caller, on an I/O thread, and without io_uring.
fn pools() -> Vec<Pool> {
    vec![
        Pool::builder().build().unwrap(),
        Pool::builder().via(Via::Thread).build().unwrap(),
        Pool::builder().engine(Kind::Epoll).via(Via::Thread).build().unwrap(),
    ]
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

#[derive(Clone, Debug)]
enum Step {
    Read(usize),
    Write(usize),
    WriteVectored(usize, usize),
    Seek(SeekFrom),
    Flush,
    SetLen(u64),
    Position,
    Metadata,
    /// Polled once and dropped.
    DroppedRead(usize),
    DroppedWrite(usize),
    DroppedSeek(SeekFrom),
    DroppedFlush,
    MaxBuffer(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = || 0..300usize;
    let near = prop_oneof![
        (0..600u64).prop_map(SeekFrom::Start),
        (-300..300i64).prop_map(SeekFrom::Current),
    ];
    let seek = prop_oneof![3 => near.clone(), 1 => (-600..100i64).prop_map(SeekFrom::End)];
    let step = prop_oneof![
        4 => len().prop_map(Step::Read),
        4 => len().prop_map(Step::Write),
        1 => (len(), len()).prop_map(|(first, second)| Step::WriteVectored(first, second)),
        3 => seek.prop_map(Step::Seek),
        1 => Just(Step::Flush),
        1 => (0..800u64).prop_map(Step::SetLen),
        1 => Just(Step::Position),
        1 => Just(Step::Metadata),
        3 => len().prop_map(Step::DroppedRead),
        2 => len().prop_map(Step::DroppedWrite),
        2 => near.prop_map(Step::DroppedSeek),
        1 => Just(Step::DroppedFlush),
        1 => (1..200usize).prop_map(Step::MaxBuffer),
    ];
    prop::collection::vec(step, 1..40)
}

/// Reads so many bytes, or up to the end: how many come at once is not promised.
async fn take(file: &mut (impl AsyncRead + Unpin), count: usize) -> Result<Vec<u8>, ErrorKind> {
    let mut bytes = Vec::new();
    let outcome = file.take(count as u64).read_to_end(&mut bytes).await;
    outcome.map(|_| bytes).map_err(|error| error.kind())
}

/// Other bytes each time.
struct Bytes(u8);

impl Bytes {
    fn next(&mut self, len: usize) -> Vec<u8> {
        (0..len)
            .map(|_| {
                self.0 = self.0.wrapping_mul(5).wrapping_add(3);
                self.0
            })
            .collect()
    }
}

async fn compare(pool: &Pool, steps: &[Step], append: bool) {
    let content: Vec<u8> = (0..500u32).map(|at| (at % 251) as u8).collect();
    let (mine, theirs) = (Scratch::new(&content), Scratch::new(&content));
    let mut options = kapok_pool::OpenOptions::new();
    let options = options.read(true).write(true).append(append);
    let mut mine_open = File::from(options.open(pool, &mine.0).await.unwrap());
    let mut options = tokio::fs::OpenOptions::new();
    let mut theirs_open =
        options.read(true).write(true).append(append).open(&theirs.0).await.unwrap();
    let mut bytes = Bytes(7);
    for (number, step) in steps.iter().enumerate() {
        let at = || format!("step {number}: {step:?} of {steps:?}");
        match *step {
            Step::Read(count) => {
                let expected = take(&mut theirs_open, count).await;
                assert_eq!(take(&mut mine_open, count).await, expected, "{}", at());
            }
            Step::Write(count) => {
                let bytes = bytes.next(count);
                mine_open.write_all(&bytes).await.unwrap();
                theirs_open.write_all(&bytes).await.unwrap();
            }
            Step::WriteVectored(first, second) => {
                let (first, second) = (bytes.next(first), bytes.next(second));
                let parts = [IoSlice::new(&first), IoSlice::new(&second)];
                let count = mine_open.write_vectored(&parts).await.unwrap();
                let both = [&first[..], &second].concat();
                assert!(count > 0 || both.is_empty(), "{}", at());
                theirs_open.write_all(&both[..count]).await.unwrap();
            }
            Step::Seek(to) => {
                let expected = theirs_open.seek(to).await.map_err(|error| error.kind());
                let found = mine_open.seek(to).await.map_err(|error| error.kind());
                assert_eq!(found, expected, "{}", at());
                if found.is_err() {
                    back_together(&mut mine_open, &mut theirs_open).await;
                }
            }
            Step::Flush => {
                mine_open.flush().await.unwrap();
                theirs_open.flush().await.unwrap();
                assert_eq!(std::fs::read(&mine.0).unwrap(), std::fs::read(&theirs.0).unwrap());
            }
            Step::SetLen(len) => {
                mine_open.set_len(len).await.unwrap();
                theirs_open.set_len(len).await.unwrap();
            }
            Step::Position => {
                let expected = theirs_open.stream_position().await.unwrap();
                assert_eq!(mine_open.stream_position().await.unwrap(), expected, "{}", at());
            }
            Step::Metadata => {
                // Theirs does not wait for the write.
                theirs_open.flush().await.unwrap();
                let expected = theirs_open.metadata().await.unwrap().len();
                assert_eq!(mine_open.metadata().await.unwrap().len(), expected, "{}", at());
            }
            // What was over at once counts, what was pending does not.
            Step::DroppedRead(count) => {
                let mut buffer = vec![0; count];
                // Theirs may be over at once as well: it is taken back.
                if let Poll::Ready(read) = poll_once(theirs_open.read(&mut vec![0; count])) {
                    let back = -(read.unwrap() as i64);
                    theirs_open.seek(SeekFrom::Current(back)).await.unwrap();
                }
                if let Poll::Ready(read) = poll_once(mine_open.read(&mut buffer)) {
                    let read = read.unwrap();
                    let expected = take(&mut theirs_open, read).await.unwrap();
                    assert_eq!(buffer[..read], expected, "{}", at());
                }
            }
            Step::DroppedWrite(count) => {
                let bytes = bytes.next(count);
                if let Poll::Ready(written) = poll_once(mine_open.write(&bytes)) {
                    theirs_open.write_all(&bytes[..written.unwrap()]).await.unwrap();
                }
            }
            Step::DroppedSeek(to) => {
                if let Poll::Ready(found) = poll_once(mine_open.seek(to)) {
                    let expected = theirs_open.seek(to).await.map_err(|error| error.kind());
                    assert_eq!(found.map_err(|error| error.kind()), expected, "{}", at());
                    if expected.is_err() {
                        back_together(&mut mine_open, &mut theirs_open).await;
                    }
                }
            }
            Step::DroppedFlush => drop(poll_once(mine_open.flush())),
            Step::MaxBuffer(bytes) => mine_open.set_max_buf_size(bytes),
        }
    }
    mine_open.flush().await.unwrap();
    theirs_open.flush().await.unwrap();
    assert_eq!(
        mine_open.stream_position().await.unwrap(),
        theirs_open.stream_position().await.unwrap(),
        "at the end of {steps:?}"
    );
    let (content, expected) = (std::fs::read(&mine.0).unwrap(), std::fs::read(&theirs.0).unwrap());
    assert_eq!(content, expected, "after {steps:?}");
    drop(mine_open.into_inner().await.unwrap());
}

/// After a seek that was refused theirs is behind what it had read and nobody has taken, and mine is where
/// it was.
async fn back_together(mine: &mut File, theirs: &mut tokio::fs::File) {
    let position = mine.stream_position().await.unwrap();
    theirs.seek(SeekFrom::Start(position)).await.unwrap();
}

fn cases() -> u32 {
    match std::env::var("KAPOK_SCALE").as_deref() {
        Ok("full") => 5000,
        _ => 150,
    }
}

#[test]
fn sequences_come_to_what_tokio_makes_of_them() {
    let (pools, runtime) = (pools(), runtime());
    let config =
        ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) };
    proptest!(config, |(steps in steps(), way in 0..3usize, append in prop::bool::weighted(0.2))| {
        runtime.block_on(compare(&pools[way], &steps, append));
    });
}

#[test]
fn a_read_that_was_dropped_has_taken_nothing() {
    let runtime = runtime();
    for pool in pools() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let pipe = kapok_pool::File::from_open(&pool, OwnedFd::from(reader));
        let mut file = File::from(pipe);
        runtime.block_on(async {
            for number in 0..50u8 {
                let mut lost = [0; 16];
                assert!(poll_once(file.read(&mut lost)).is_pending());
                std::io::Write::write_all(&mut writer, &[number; 5]).unwrap();
                if number % 2 == 0 {
                    // It lands meanwhile.
                    tokio::task::yield_now().await;
                    std::thread::sleep(Duration::from_millis(1));
                }
                let mut found = [0; 5];
                file.read_exact(&mut found).await.unwrap();
                assert_eq!(found, [number; 5]);
            }
        });
    }
}

#[test]
fn errors_of_writes_are_told_once_and_by_the_next_that_writes() {
    let runtime = runtime();
    for pool in pools() {
        runtime.block_on(async {
            for flushed in [true, false] {
                let full =
                    kapok_pool::OpenOptions::new().write(true).open(&pool, "/dev/full").await;
                let mut file = File::from(full.unwrap());
                assert_eq!(file.write(b"lost").await.unwrap(), 4);
                let error = match flushed {
                    true => file.flush().await.unwrap_err(),
                    false => file.write(b"more").await.unwrap_err(),
                };
                assert_eq!(kapok_pool::raw_os_error(&error), Some(libc::ENOSPC), "{error}");
                file.flush().await.unwrap();
                // Through what does not write it is kept.
                file.write_all(b"lost").await.unwrap();
                let mut nothing = [0; 1];
                let _ = file.read(&mut nothing).await;
                let _ = file.metadata().await;
                assert!(file.flush().await.is_err());
                file.write_all(b"lost").await.unwrap();
                assert!(file.sync_all().await.is_err());
                file.write_all(b"lost").await.unwrap();
                assert!(file.into_inner().await.is_err());
            }
            let scratch = Scratch::new(b"read only");
            let mut file = File::open(&pool, &scratch.0).await.unwrap();
            file.write_all(b"x").await.unwrap();
            let error = file.shutdown().await.unwrap_err();
            assert_eq!(kapok_pool::raw_os_error(&error), Some(libc::EBADF), "{error}");
            let mut content = String::new();
            file.read_to_string(&mut content).await.unwrap();
            assert_eq!(content, "read only");
        });
    }
}

#[test]
fn what_a_dropped_file_has_accepted_is_written() {
    let runtime = runtime();
    for pool in pools() {
        let scratch = Scratch::new(b"");
        for round in 0..30usize {
            runtime.block_on(async {
                let mut file = File::create(&pool, &scratch.0).await.unwrap();
                file.write_all(&vec![round as u8; 100_000 + round]).await.unwrap();
            });
            let deadline = std::time::Instant::now() + Duration::from_secs(30);
            while std::fs::metadata(&scratch.0).unwrap().len() < 100_000 + round as u64 {
                assert!(std::time::Instant::now() < deadline, "it was cancelled with the file");
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(std::fs::read(&scratch.0).unwrap().iter().all(|&byte| byte == round as u8));
        }
    }
}

#[test]
fn what_was_read_and_not_taken_goes_back_with_the_file() {
    let runtime = runtime();
    for pool in pools() {
        let scratch = Scratch::new(b"0123456789");
        runtime.block_on(async {
            let mut file = File::open(&pool, &scratch.0).await.unwrap();
            let mut one = [0; 1];
            // It lands in the buffer of the file, whoever asks then.
            let mut room = [0; 8];
            let taken = match poll_once(file.read(&mut room)) {
                Poll::Ready(count) => count.unwrap(),
                Poll::Pending => 0,
            };
            let inner = file.into_inner().await.unwrap();
            let (count, buffer) = inner.read(Vec::with_capacity(16)).await;
            assert_eq!(count.unwrap(), 10 - taken);
            assert_eq!(buffer, b"0123456789"[taken..]);
            let mut file = File::from(inner);
            file.rewind().await.unwrap();
            file.read_exact(&mut one).await.unwrap();
            assert_eq!(one, *b"0");
        });
    }
}

#[test]
fn a_seek_beside_another_operation_is_refused_and_beyond_the_range_too() {
    use tokio::io::AsyncSeek;
    let pool = Pool::builder().via(Via::Thread).build().unwrap();
    let (reader, _writer) = std::io::pipe().unwrap();
    let mut file = File::from(kapok_pool::File::from_open(&pool, OwnedFd::from(reader)));
    let mut room = [0; 4];
    let mut context = Context::from_waker(Waker::noop());
    let mut target = ReadBuf::new(&mut room);
    assert!(Pin::new(&mut file).poll_read(&mut context, &mut target).is_pending());
    let refused = Pin::new(&mut file).start_seek(SeekFrom::Start(0)).unwrap_err();
    assert!(refused.to_string().contains("poll_complete"), "{refused}");
    runtime().block_on(async {
        let scratch = Scratch::new(b"0123456789");
        let mut file = File::open(&pool, &scratch.0).await.unwrap();
        for beyond in [SeekFrom::Start(u64::MAX), SeekFrom::Current(-1), SeekFrom::End(-11)] {
            let error = file.seek(beyond).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
        assert_eq!(file.stream_position().await.unwrap(), 0);
    });
    assert!(Pin::new(&mut file).is_write_vectored());
}

#[test]
fn buffers_of_the_crate_bytes_are_read_into_and_written() {
    let scratch = Scratch::new(b"0123456789");
    for pool in pools() {
        runtime().block_on(async {
            let options = kapok_pool::OpenOptions::new().read(true).write(true).clone();
            let file = options.open(&pool, &scratch.0).await.unwrap();
            let (count, mut buffer) = file.read_at(bytes::BytesMut::with_capacity(6), 0).await;
            assert_eq!((count.unwrap(), &buffer[..]), (6, &b"012345"[..]));
            // Of shared memory only its own part.
            let mut rest = buffer.split_off(2);
            rest.truncate(1);
            let (count, rest) = file.read_at(rest, 4).await;
            assert_eq!((count.unwrap(), &rest[..]), (4, &b"4567"[..]));
            assert_eq!(buffer, b"01"[..]);
            let (written, _) = file.write_all_at(bytes::Bytes::from_static(b"89"), 8).await;
            written.unwrap();
            let (written, _) = file.write_all_at(buffer, 0).await;
            written.unwrap();
            assert_eq!(std::fs::read(&scratch.0).unwrap(), b"0123456789");
        });
    }
}

const _: () = {
    const fn is_shared<T: Send + Sync + Unpin>() {}
    is_shared::<File>();
};

/// Has the file read what is sent, for nobody.
async fn has_read_ahead(file: &mut File, send: impl FnOnce()) {
    let mut lost = [0; 16];
    assert!(poll_once(file.read(&mut lost)).is_pending());
    send();
    // It lands in the buffer of the file, for which metadata waits.
    file.metadata().await.unwrap();
}

#[test]
fn where_nothing_can_be_put_back_what_was_read_stays_for_the_next_read() {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    let runtime = runtime();
    for pool in pools() {
        runtime.block_on(async {
            let (mine, mut theirs) = UnixStream::pair().unwrap();
            let mine = kapok_pool::File::from_open(&pool, OwnedFd::from(mine));
            let mut file = File::from(mine);
            has_read_ahead(&mut file, || theirs.write_all(b"abcdef").unwrap()).await;
            // A seek is refused, as on any stream.
            for to in [SeekFrom::Current(0), SeekFrom::Current(-2), SeekFrom::Start(0)] {
                let error = file.seek(to).await.unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::ESPIPE));
            }
            assert!(file.seek(SeekFrom::End(0)).await.is_err());
            let mut found = [0; 2];
            assert!(matches!(poll_once(file.read(&mut found)), Poll::Ready(Ok(2))));
            assert_eq!(found, *b"ab");
            // Its length cannot be set, and that is the one error of it.
            assert!(file.set_len(0).await.is_err());
            file.flush().await.unwrap();
            // A write goes the other way.
            file.write_all(b"question").await.unwrap();
            file.write_all(b" and another").await.unwrap();
            file.flush().await.unwrap();
            let mut heard = [0; 20];
            theirs.read_exact(&mut heard).unwrap();
            assert_eq!(heard, *b"question and another");
            let mut found = [0; 4];
            assert!(matches!(poll_once(file.read(&mut found)), Poll::Ready(Ok(4))));
            assert_eq!(found, *b"cdef");
            // What nobody will read any more is told.
            has_read_ahead(&mut file, || theirs.write_all(b"rest").unwrap()).await;
            let error = file.into_inner().await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ESPIPE));
        });
    }
}

#[test]
fn what_was_read_can_be_read_while_a_write_waits() {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    let runtime = runtime();
    for pool in pools() {
        runtime.block_on(async {
            let (mine, mut theirs) = UnixStream::pair().unwrap();
            let mine = kapok_pool::File::from_open(&pool, OwnedFd::from(mine));
            let mut file = File::from(mine);
            has_read_ahead(&mut file, || theirs.write_all(b"here").unwrap()).await;
            // More than the socket takes.
            assert!(matches!(poll_once(file.write(&vec![0; 2 << 20])), Poll::Ready(Ok(_))));
            assert!(poll_once(file.flush()).is_pending());
            let mut found = [0; 4];
            assert!(matches!(poll_once(file.read(&mut found)), Poll::Ready(Ok(4))));
            assert_eq!(found, *b"here");
        });
    }
}
