//! Files as people use them.

mod metadata;
mod options;
mod space;
mod vectored;

pub use metadata::Metadata;
pub use options::OpenOptions;

use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use kapok_engine::offload;

use crate::blocking::Blocking;
use crate::buffer::{Buffer, Part, Source};
use crate::context::named;
use crate::descriptor::Descriptor;
use crate::hint::Hint;
use crate::operation::Operation;
use crate::pool::Pool;
use crate::requests::{Moved, Plain, ReadAt, Stat, WriteAt};
use crate::thread::is_io_thread;

/// An open file for the operations of any pool, with what is known of its place in the page cache. A
/// handle: clones are of the same open file, which closes with the last.
#[derive(Clone, Debug)]
pub struct OpenFile(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Taken by the destructor only.
    fd: ManuallyDrop<OwnedFd>,
    hint: Hint,
    /// Of a file that was opened by it.
    path: Option<Box<Path>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: taken once, as the value is dropped once.
        let fd = unsafe { ManuallyDrop::take(&mut self.fd) };
        // Closing may wait for a file system, which an I/O thread must not.
        if is_io_thread() {
            let _ = offload::spawn(move || drop(fd));
        }
    }
}

impl OpenFile {
    /// What `fd` has been opened as: errors name the path.
    fn opened(fd: OwnedFd, path: Option<Box<Path>>) -> OpenFile {
        let hint = Hint::of(fd.as_raw_fd());
        OpenFile(Arc::new(Inner { fd: ManuallyDrop::new(fd), hint, path }))
    }
}

impl From<OwnedFd> for OpenFile {
    fn from(fd: OwnedFd) -> OpenFile {
        OpenFile::opened(fd, None)
    }
}

impl From<std::fs::File> for OpenFile {
    fn from(file: std::fs::File) -> OpenFile {
        OwnedFd::from(file).into()
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

// SAFETY: the clones share the descriptor, which closes with the last.
unsafe impl Descriptor for OpenFile {
    #[inline]
    fn raw(&self) -> RawFd {
        self.0.fd.as_raw_fd()
    }

    fn leave(self) {
        // Its destructor sees to it.
    }

    #[inline]
    fn hint(&self) -> Option<&Hint> {
        Some(&self.0.hint)
    }

    fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }
}

/// An open file and the pool that its operations run on. Clones are of the same open file.
///
/// # Errors
///
/// Errors of a file that was opened by its path name it and the operation: "write /data/log at 8192: No space left
/// on device (os error 28)". Their kind is that of the kernel's error, which is the
/// [`source`](std::error::Error::source), and whose number [`raw_os_error`](crate::raw_os_error()) knows. Those of a
/// file that was [open before](File::from_open) are the kernel's as they are.
///
/// ```
/// use kapok_pool::{File, Pool, block_on};
///
/// # fn main() -> std::io::Result<()> {
/// # let path = std::env::temp_dir().join(format!("kapok-pool-file-{}", std::process::id()));
/// let pool = Pool::builder().build()?;
/// // In a task: without `block_on`.
/// let content = block_on(async {
///     let file = File::create(&pool, &path).await?;
///     let (written, _) = file.write_all_at("kapok floats", 0).await;
///     written?;
///     file.sync_all().await?;
///     let (read, content) = File::open(&pool, &path).await?.read_to_end(Vec::new()).await;
///     read.map(|_| content)
/// })?;
/// assert_eq!(content, b"kapok floats");
/// # std::fs::remove_file(&path)
/// # }
/// ```
#[derive(Clone)]
pub struct File {
    pool: Pool,
    open: OpenFile,
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").field("open", &self.open).finish_non_exhaustive()
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.open.as_fd()
    }
}

impl File {
    /// Opens a file for reading.
    ///
    /// # Errors
    ///
    /// See [`OpenOptions::open`].
    pub async fn open(pool: &Pool, path: impl AsRef<Path>) -> io::Result<File> {
        OpenOptions::new().read(true).open(pool, path).await
    }

    /// Makes a file, or empties the one that is there, for reading and writing.
    ///
    /// # Errors
    ///
    /// See [`OpenOptions::open`].
    pub async fn create(pool: &Pool, path: impl AsRef<Path>) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).open(pool, path).await
    }

    /// A file that is open already.
    pub fn from_open(pool: &Pool, open: impl Into<OpenFile>) -> File {
        File { pool: pool.clone(), open: open.into() }
    }

    /// Has an error say what failed and of which file, if that is known.
    #[cold]
    fn failed(&self, what: &str, why: io::Error) -> io::Error {
        match self.open.path() {
            Some(path) => named(what, path, why),
            None => why,
        }
    }

    /// The open file, for operations of a pool.
    pub fn handle(&self) -> &OpenFile {
        &self.open
    }

    /// The pool.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Reads from the file's current position on, which moves by what was read: read(2). For pipes and
    /// terminals too. The position is the open file's, so one of its users at a time can make sense of
    /// it.
    ///
    /// # Errors
    ///
    /// What read(2) says.
    pub fn read<B: Buffer>(&self, buffer: B) -> Operation<'_, ReadAt<OpenFile, B>> {
        self.pool.run(ReadAt::at_position(self.open.clone(), buffer))
    }

    /// Reads into the room of `buffer` at `offset`: see [`Pool::read_at`].
    ///
    /// # Errors
    ///
    /// What pread(2) says.
    pub fn read_at<B: Buffer>(&self, buffer: B, offset: u64) -> Operation<'_, ReadAt<OpenFile, B>> {
        self.pool.read_at(&self.open, buffer, offset)
    }

    /// Writes the bytes of `buffer` at `offset`: see [`Pool::write_at`].
    ///
    /// # Errors
    ///
    /// What pwrite(2) says.
    pub fn write_at<B: Source>(
        &self,
        buffer: B,
        offset: u64,
    ) -> Operation<'_, WriteAt<OpenFile, B>> {
        self.pool.write_at(&self.open, buffer, offset)
    }

    /// Writes the bytes of `buffer` at the end of a file that was opened to
    /// [append](OpenOptions::append); at the current position of another. It may come to less than all
    /// of them.
    ///
    /// # Errors
    ///
    /// What write(2) says.
    pub fn append<B: Source>(&self, buffer: B) -> Operation<'_, WriteAt<OpenFile, B>> {
        self.pool.run(WriteAt::at_position(self.open.clone(), buffer))
    }

    /// Reads until the room of `buffer` is full.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the file ends before; what pread(2) says. What was read by then is in the
    /// buffer. Dropped, the buffer is gone, and nothing else has changed.
    pub async fn read_exact_at<B: Buffer>(
        &self,
        mut buffer: B,
        offset: u64,
    ) -> (io::Result<()>, B) {
        let all = buffer.room().len();
        let mut done = 0;
        while done < all {
            let part = Part::of_room(buffer, done..all);
            let (count, part) = self.read_at(part, offset.saturating_add(done as u64)).await;
            buffer = part.into_inner();
            match count {
                Ok(0) => {
                    let end = io::ErrorKind::UnexpectedEof.into();
                    return (Err(self.failed("read to the end of", end)), buffer);
                }
                Ok(count) => done += count,
                Err(error) => return (Err(error), buffer),
            }
        }
        (Ok(()), buffer)
    }

    /// Writes all bytes of `buffer`.
    ///
    /// # Errors
    ///
    /// `WriteZero` if the file takes no more; what pwrite(2) says. Some of the bytes may have been
    /// written then, and also if it is dropped.
    pub async fn write_all_at<B: Source>(&self, mut buffer: B, offset: u64) -> (io::Result<()>, B) {
        let all = buffer.bytes().len();
        let mut done = 0;
        while done < all {
            let part = Part::of_bytes(buffer, done..all);
            let (count, part) = self.write_at(part, offset.saturating_add(done as u64)).await;
            buffer = part.into_inner();
            match count {
                Ok(0) => {
                    return (Err(self.failed("write", io::ErrorKind::WriteZero.into())), buffer);
                }
                Ok(count) => done += count,
                Err(error) => return (Err(error), buffer),
            }
        }
        (Ok(()), buffer)
    }

    /// Reads from the start of the file to its end, behind what `content` has, and says how much it was.
    ///
    /// # Errors
    ///
    /// What pread(2) says; `OutOfMemory` if there is no room for so much. What was read by then is in
    /// `content`.
    pub async fn read_to_end(&self, mut content: Vec<u8>) -> Moved<Vec<u8>> {
        let before = content.len();
        // One more than the file has, so that its end is seen without growing once more.
        let expected = self.metadata().await.map_or(0, |metadata| metadata.len());
        let mut wanted = usize::try_from(expected).unwrap_or(usize::MAX).saturating_add(1);
        loop {
            let done = content.len() - before;
            if content.capacity() - content.len() < wanted.max(1)
                && let Err(error) = content.try_reserve(wanted.max(32))
            {
                let error = io::Error::new(io::ErrorKind::OutOfMemory, error);
                return (Err(self.failed("read", error)), content);
            }
            // What has been read is not asked for again.
            let room = content.len()..content.capacity();
            let (count, part) = self.read_at(Part::of_room(content, room), done as u64).await;
            content = part.into_inner();
            match count {
                Ok(0) => return (Ok(done), content),
                Ok(count) => wanted = wanted.saturating_sub(count),
                Err(error) => return (Err(error), content),
            }
        }
    }

    /// fsync(2): data and metadata are on the device when it is over.
    ///
    /// # Errors
    ///
    /// See [`Pool::sync`].
    pub fn sync_all(&self) -> Operation<'_, Plain<OpenFile>> {
        self.pool.sync(&self.open, false)
    }

    /// fdatasync(2): data, and what metadata is needed to read it.
    ///
    /// A file opened with [`direct`](OpenOptions::direct) and with `O_DSYNC` as
    /// [`custom_flags`](OpenOptions::custom_flags), as a log may be, needs none: its writes return when they are
    /// on the device. That is one operation in place of two, and on io_uring one without a worker of the kernel
    /// where the bytes have their place in the file already.
    ///
    /// # Errors
    ///
    /// See [`Pool::sync`].
    pub fn sync_data(&self) -> Operation<'_, Plain<OpenFile>> {
        self.pool.sync(&self.open, true)
    }

    /// Asks for the file's metadata.
    ///
    /// # Errors
    ///
    /// What statx(2) says.
    pub async fn metadata(&self) -> io::Result<Metadata> {
        let outcome = self.pool.run(Stat::new(self.open.clone())).await;
        let outcome = outcome.map(|raw| Metadata::from(*raw));
        outcome.map_err(|error| self.failed("stat", error))
    }

    /// Makes a call on a blocking thread, with the file as std has it: for what io_uring has no operation
    /// for. It begins at once, and goes on if the future is dropped; a shutdown of the pool does not wait
    /// for it.
    ///
    /// ```
    /// # use kapok_pool::{File, Pool, block_on};
    /// # fn main() -> std::io::Result<()> {
    /// # let pool = Pool::builder().build()?;
    /// # let file = block_on(File::open(&pool, "/dev/null"))?;
    /// # block_on(async {
    /// let permissions = file.blocking(|file| Ok(file.metadata()?.permissions())).await?;
    /// # drop(permissions);
    /// # Ok(()) })
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// In its outcome: what `call` says; `OutOfMemory` if there is no thread, `NotConnected` if the pool is
    /// shut down.
    pub fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&std::fs::File) -> io::Result<T> + Send + 'static,
    ) -> Blocking<T> {
        let open = self.open.clone();
        Blocking::start(&self.pool, move || {
            // SAFETY: the number is open as long as the clone is there, and is not closed here.
            let file = unsafe { std::fs::File::from_raw_fd(open.raw()) };
            call(&ManuallyDrop::new(file))
        })
    }

    /// Closes the file, if this is its last handle and nothing is in flight on it, and says what
    /// close(2) said. Otherwise the last one closes it, as dropping does.
    ///
    /// It is done by a blocking thread: a file system may have much to write then. Dropped, the future
    /// leaves the file to be closed all the same.
    ///
    /// # Errors
    ///
    /// What close(2) says: of a network file system, that data was not written. Never to be repeated.
    pub async fn close(self) -> io::Result<()> {
        let Some(inner) = Arc::into_inner(self.open.0) else { return Ok(()) };
        let mut inner = ManuallyDrop::new(inner);
        // SAFETY: taken once, for `inner` is not dropped; what else needs a destructor is the path.
        let fd = unsafe { ManuallyDrop::take(&mut inner.fd) };
        let path = inner.path.take();
        let closed = Blocking::start(&self.pool, move || {
            // SAFETY: the number is this call's alone. Whatever is said, it is not ours afterwards.
            match unsafe { libc::close(fd.into_raw_fd()) } {
                0 => Ok(()),
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
                    error => Err(error),
                },
            }
        });
        match (closed.await, path) {
            (Err(error), Some(path)) => Err(named("close", &path, error)),
            (outcome, _) => outcome,
        }
    }
}
