//! A file with a position, in tokio's shape.
//!
//! tokio's traits lend their buffers for one poll only, so bytes go through a buffer of the file's own,
//! which an operation owns while it is in flight:
//!
//! ```text
//!            poll_read               landed: copied out, or kept if nobody asks any more
//!      Idle ─────────────► Reading ───────────────────────────────────────────────────► Idle
//!       │ │   poll_write: copied in, and answered at once        landed, all of it
//!       │ └──────────────► Writing, by itself ────────────────────────────────────────► Idle
//!       └────────────────► Seeking ───────────────────────────────────────────────────► Idle
//!            start_seek
//! ```
//!
//! What a read has brought and nobody has taken counts as not read: whatever uses the position next
//! puts it back by so much. Pipes and terminals have none. There it stays for the next read, and what is
//! written meanwhile goes through another buffer.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use kapok_pool::{Blocking, Metadata, OpenFile, Operation, Part, Pool, ReadAt};
use tokio::io::{AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};

use crate::writing::Writing;

/// How much one operation moves at most by default, in bytes: as of `tokio::fs::File`.
const MOST_AT_ONCE: usize = 2 << 20;

/// The file's own buffer: bytes that were read, and how many of them have been taken. While there are
/// none its memory is lent to the operation that is under way.
#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    taken: usize,
}

impl Buffer {
    fn left(&self) -> usize {
        self.bytes.len() - self.taken
    }

    fn give(&mut self, target: &mut ReadBuf<'_>) {
        let count = self.left().min(target.remaining());
        target.put_slice(&self.bytes[self.taken..self.taken + count]);
        self.taken += count;
        if self.left() == 0 {
            self.clear();
        }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.taken = 0;
    }
}

type Read = Operation<'static, ReadAt<OpenFile, Part<Vec<u8>>>>;

/// A seek, over already or on a blocking thread.
enum Seek {
    Over(u64),
    Runs(Blocking<u64>),
}

enum State {
    Idle,
    Reading(Read),
    /// See `writing`, which has the buffer.
    Writing,
    Seeking(Seek),
}

/// An open file of a [`Pool`] with a position, that reads, writes and seeks like `tokio::fs::File`. It
/// needs no runtime.
///
/// Reads of what is in the page cache are over in the calling task; the rest are operations of the pool's
/// rings. Each is of up to 2 MiB ([`set_max_buf_size`](File::set_max_buf_size)), through a buffer of the
/// file's own.
///
/// # Writing
///
/// As with `tokio::fs::File` a write is over when its bytes are in that buffer. The next operation, or
/// [`flush`](tokio::io::AsyncWriteExt::flush), waits until they are written, and a write or a flush tells
/// of an error. Until then it goes on by itself, whether the file is used, held or dropped, and also where
/// the pool had no room for it at first. But flush before you drop it: nobody hears of the errors of a dropped
/// file, nobody waits for it as the process ends, and a shutdown of the pool cuts it off.
///
/// # Cancellation
///
/// All futures may be dropped at any time. A read that was dropped has taken nothing: what it brought is
/// for the next, and the position is where it was. A write that was dropped has either been accepted as a
/// whole and will be written, or not at all.
///
/// # The position
///
/// It is that of the open file, which clones and other processes with the same open file share.
pub struct File {
    file: kapok_pool::File,
    state: State,
    ahead: Buffer,
    /// From the first write on.
    writing: Option<Arc<Writing>>,
    /// Of a write that nobody waited for: for the next write or flush.
    write_error: Option<io::Error>,
    position: u64,
    most_at_once: usize,
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Idle => "idle",
            State::Reading(_) => "reading",
            State::Writing => "writing",
            State::Seeking(_) => "seeking",
        };
        f.debug_struct("File").field("file", &self.file).field("state", &state).finish()
    }
}

impl From<kapok_pool::File> for File {
    fn from(file: kapok_pool::File) -> File {
        File {
            file,
            state: State::Idle,
            ahead: Buffer::default(),
            writing: None,
            write_error: None,
            position: 0,
            most_at_once: MOST_AT_ONCE,
        }
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl File {
    /// Opens a file for reading.
    ///
    /// # Errors
    ///
    /// See [`kapok_pool::OpenOptions::open`].
    pub async fn open(pool: &Pool, path: impl AsRef<Path>) -> io::Result<File> {
        kapok_pool::File::open(pool, path).await.map(File::from)
    }

    /// Makes a file, or empties the one that is there, for reading and writing.
    ///
    /// # Errors
    ///
    /// See [`kapok_pool::OpenOptions::open`].
    pub async fn create(pool: &Pool, path: impl AsRef<Path>) -> io::Result<File> {
        kapok_pool::File::create(pool, path).await.map(File::from)
    }

    /// How many bytes one operation moves at most: the size of the buffer.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn set_max_buf_size(&mut self, bytes: usize) {
        assert!(bytes > 0, "a buffer of no size moves nothing");
        self.most_at_once = bytes;
    }

    /// The file for operations at an offset, which have nothing to do with the position. What is in the
    /// buffer of this one is not in the file yet: flush before.
    pub fn get_ref(&self) -> &kapok_pool::File {
        &self.file
    }

    /// The file without buffer, after all that was accepted has been written; the position is behind what
    /// was taken.
    ///
    /// # Errors
    ///
    /// Those of the last write, and of a seek back: `ESPIPE` if a pipe or a terminal has brought what
    /// nobody has taken. The file is gone then.
    pub async fn into_inner(mut self) -> io::Result<kapok_pool::File> {
        poll_fn(|context| self.poll_written(context)).await?;
        self.put_back()?;
        Ok(self.file.clone())
    }

    /// Waits until all that was accepted is written, and on the device: fsync(2).
    ///
    /// # Errors
    ///
    /// Those of the last write; what fsync(2) says.
    pub async fn sync_all(&mut self) -> io::Result<()> {
        poll_fn(|context| self.poll_written(context)).await?;
        self.file.sync_all().await.map(drop)
    }

    /// Waits until all that was accepted is written, and with what metadata is needed to read it on the
    /// device: fdatasync(2).
    ///
    /// # Errors
    ///
    /// As for [`sync_all`](File::sync_all).
    pub async fn sync_data(&mut self) -> io::Result<()> {
        poll_fn(|context| self.poll_written(context)).await?;
        self.file.sync_data().await.map(drop)
    }

    /// Cuts the file to `len` bytes, or fills it up with zeros, after what was accepted is written. The
    /// position stays.
    ///
    /// # Errors
    ///
    /// What ftruncate(2) says. That of a write before is left to the next write or flush.
    pub async fn set_len(&mut self, len: u64) -> io::Result<()> {
        if let Err(error) = poll_fn(|context| self.poll_written(context)).await {
            self.keep(error);
        }
        // What was read may be cut off.
        self.put_back_if_it_can_be()?;
        self.file.set_len(len).await
    }

    /// What the file system knows of the file, after what was accepted is written.
    ///
    /// # Errors
    ///
    /// What statx(2) says. That of a write before is left to the next write or flush.
    pub async fn metadata(&mut self) -> io::Result<Metadata> {
        if let Err(error) = poll_fn(|context| self.poll_written(context)).await {
            self.keep(error);
        }
        self.file.metadata().await
    }

    /// Puts the position back by what was read and not taken. That never waits. After an error all is as
    /// it was.
    fn put_back(&mut self) -> io::Result<()> {
        match self.ahead.left() {
            0 => Ok(()),
            left => {
                seek(&self.file, SeekFrom::Current(-(left as i64)))?;
                self.ahead.clear();
                Ok(())
            }
        }
    }

    /// The same, and where there is no position what was read stays.
    fn put_back_if_it_can_be(&mut self) -> io::Result<()> {
        match self.put_back() {
            Err(error) if error.raw_os_error() == Some(libc::ESPIPE) => Ok(()),
            outcome => outcome,
        }
    }

    fn keep(&mut self, error: io::Error) {
        self.write_error.get_or_insert(error);
    }

    /// Waits until nothing is under way. The errors of a write are in `write_error`; those of a read
    /// that nobody waits for are met again by the next.
    fn poll_idle(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut self.state {
                State::Idle => return Poll::Ready(()),
                State::Reading(read) => {
                    let (_, part) = ready!(Pin::new(read).poll(context));
                    self.ahead = Buffer { bytes: part.into_inner(), taken: 0 };
                    self.state = State::Idle;
                }
                State::Writing => {
                    let Some(writing) = &self.writing else { return Poll::Ready(()) };
                    let (outcome, bytes) = ready!(writing.poll_over(context));
                    if self.ahead.left() == 0 {
                        self.ahead.bytes = bytes;
                    }
                    self.state = State::Idle;
                    if let Err(error) = outcome {
                        self.keep(error);
                    }
                }
                State::Seeking(_) => {
                    let _ = ready!(self.poll_sought(context));
                }
            }
        }
    }

    /// Waits until nothing is under way, and takes the error of a write.
    fn poll_written(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_idle(context));
        Poll::Ready(self.write_error.take().map_or(Ok(()), Err))
    }

    fn poll_sought(&mut self, context: &mut Context<'_>) -> Poll<io::Result<u64>> {
        let State::Seeking(seek) = &mut self.state else {
            return Poll::Ready(Ok(self.position));
        };
        let outcome = match seek {
            Seek::Runs(runs) => ready!(Pin::new(runs).poll(context)),
            Seek::Over(position) => Ok(*position),
        };
        self.state = State::Idle;
        if let Ok(position) = outcome {
            self.position = position;
            self.ahead.clear();
        }
        Poll::Ready(outcome)
    }

    /// Accepts bytes into the buffer, once it is free.
    fn poll_accept(
        &mut self,
        context: &mut Context<'_>,
        fill: impl FnOnce(&mut Vec<u8>, usize) -> usize,
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_written(context))?;
        self.put_back_if_it_can_be()?;
        let mut bytes = match self.ahead.left() {
            0 => std::mem::take(&mut self.ahead.bytes),
            _ => Vec::new(),
        };
        let count = fill(&mut bytes, self.most_at_once);
        if count == 0 {
            if self.ahead.left() == 0 {
                self.ahead.bytes = bytes;
            }
            return Poll::Ready(Ok(0));
        }
        // It begins now, and goes on whoever polls next and when. What it comes to is told then.
        self.writing.get_or_insert_with(Writing::new).begin(self.file.clone(), bytes);
        self.state = State::Writing;
        Poll::Ready(Ok(count))
    }
}

fn seek(file: impl AsFd, to: SeekFrom) -> io::Result<u64> {
    let (whence, offset) = match to {
        // Beyond the range it is negative, and refused.
        SeekFrom::Start(offset) => (libc::SEEK_SET, offset as i64),
        SeekFrom::End(offset) => (libc::SEEK_END, offset),
        SeekFrom::Current(offset) => (libc::SEEK_CUR, offset),
    };
    // SAFETY: lseek with integer arguments, on a file that is open.
    match unsafe { libc::lseek(file.as_fd().as_raw_fd(), offset, whence) } {
        at if at < 0 => Err(io::Error::last_os_error()),
        at => Ok(at as u64),
    }
}

impl AsyncRead for File {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match &mut this.state {
                State::Idle | State::Writing
                    if this.ahead.left() > 0 || target.remaining() == 0 =>
                {
                    this.ahead.give(target);
                    return Poll::Ready(Ok(()));
                }
                State::Idle => {
                    let most = target.remaining().min(this.most_at_once);
                    let mut bytes = std::mem::take(&mut this.ahead.bytes);
                    bytes.reserve(most);
                    let read = this.file.read(Part::of_room(bytes, 0..most)).owned();
                    this.state = State::Reading(read);
                }
                State::Reading(read) => {
                    let (count, part) = ready!(Pin::new(read).poll(context));
                    this.ahead = Buffer { bytes: part.into_inner(), taken: 0 };
                    this.state = State::Idle;
                    if count.is_ok() {
                        this.ahead.give(target);
                    }
                    return Poll::Ready(count.map(drop));
                }
                State::Writing | State::Seeking(_) => ready!(this.poll_idle(context)),
            }
        }
    }
}

impl AsyncWrite for File {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        source: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_accept(context, |bytes, most| {
            let count = source.len().min(most);
            bytes.extend_from_slice(&source[..count]);
            count
        })
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        sources: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_accept(context, |bytes, most| {
            for source in sources {
                let count = source.len().min(most - bytes.len());
                bytes.extend_from_slice(&source[..count]);
            }
            bytes.len()
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_written(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}

impl AsyncSeek for File {
    fn start_seek(self: Pin<&mut Self>, to: SeekFrom) -> io::Result<()> {
        let this = self.get_mut();
        let State::Idle = this.state else {
            return Err(io::Error::other(
                "another operation of this file is under way: poll_complete comes before start_seek",
            ));
        };
        // What was read and not taken is gone when the seek has succeeded, and only then.
        let seek = match to {
            // The file system may have to ask where the end is.
            SeekFrom::End(_) => Seek::Runs(this.file.blocking(move |file| seek(file, to))),
            SeekFrom::Start(_) => Seek::Over(seek(&this.file, to)?),
            SeekFrom::Current(offset) => {
                let offset = offset.saturating_sub(this.ahead.left() as i64);
                Seek::Over(seek(&this.file, SeekFrom::Current(offset))?)
            }
        };
        this.state = State::Seeking(seek);
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<u64>> {
        let this = self.get_mut();
        if !matches!(this.state, State::Seeking(_)) {
            ready!(this.poll_idle(context));
        }
        this.poll_sought(context)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // The write goes on; nobody is to be told.
        if let (State::Writing, Some(writing)) = (&self.state, &self.writing) {
            writing.leave();
        }
    }
}
