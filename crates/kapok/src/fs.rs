//! Files: through the ring on io_uring, on the offload threads elsewhere.
//!
//! Reads and writes at an offset borrow plain slices, like everything on fibers. Operations on
//! regular files cannot be interrupted once a disk is at work on them: a cancelled fiber gets what
//! they come to.

use std::ffi::CString;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kapok_engine::{Op, RawMetadata};
pub use kapok_pool::Metadata;

use crate::blocking::blocking;
use crate::op;

/// How a file is opened, like [`std::fs::OpenOptions`]: those of the [pool](kapok_pool::OpenOptions), for
/// files of fibers.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions(kapok_pool::OpenOptions);

macro_rules! option {
    ($($name:ident: $type:ty,)*) => {$(
        #[doc = concat!("See [`", stringify!($name), "`](kapok_pool::OpenOptions::", stringify!($name), ").")]
        pub fn $name(&mut self, $name: $type) -> &mut OpenOptions {
            self.0.$name($name);
            self
        }
    )*};
}

impl OpenOptions {
    /// Nothing allowed yet.
    pub fn new() -> OpenOptions {
        OpenOptions::default()
    }

    option! {
        read: bool,
        write: bool,
        append: bool,
        truncate: bool,
        create: bool,
        create_new: bool,
        direct: bool,
        mode: u32,
        custom_flags: i32,
    }

    /// Opens the file at `path`.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for options that contradict each other or a path with a NUL; what open(2)
    /// says, with the path in its text.
    pub fn open(&self, path: impl AsRef<Path>) -> io::Result<File> {
        let path = path.as_ref();
        self.open_path(path).map_err(|error| {
            io::Error::new(error.kind(), format!("open {}: {error}", path.display()))
        })
    }

    fn open_path(&self, path: &Path) -> io::Result<File> {
        let (flags, mode) = self.0.flags_and_mode()?;
        let path = CString::new(path.as_os_str().as_bytes())?;
        let op = Op::Open {
            dir: libc::AT_FDCWD,
            path: path.as_ptr(),
            flags,
            mode: mode as libc::mode_t,
        };
        // SAFETY: the path lives until the call has returned.
        let fd = unsafe { op::run(op)? };
        // SAFETY: a descriptor that open has just made and that nobody else knows.
        Ok(File(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

/// An open file, like [`std::fs::File`].
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// # kapok::Runtime::new()?.run(|| -> std::io::Result<()> {
/// # let path = std::env::temp_dir().join(format!("kapok-doc-{}", std::process::id()));
/// let file = kapok::fs::OpenOptions::new().read(true).write(true).create(true).open(&path)?;
/// file.write_all_at(b"kapok floats", 0)?;
/// let mut word = [0; 6];
/// file.read_exact_at(&mut word, 6)?;
/// assert_eq!(&word, b"floats");
/// # std::fs::remove_file(&path)
/// # })
/// # }
/// ```
#[derive(Debug)]
pub struct File(OwnedFd);

impl File {
    /// Opens a file for reading.
    ///
    /// # Errors
    ///
    /// See [`OpenOptions::open`].
    pub fn open(path: impl AsRef<Path>) -> io::Result<File> {
        OpenOptions::new().read(true).open(path)
    }

    /// Makes a file, or empties the one that is there, for writing.
    ///
    /// # Errors
    ///
    /// See [`OpenOptions::open`].
    pub fn create(path: impl AsRef<Path>) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(true).open(path)
    }

    fn read_from(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let op = Op::Read { fd: self.0.as_raw_fd(), buf: buf.as_mut_ptr(), len: buf.len(), offset };
        // SAFETY: the buffer is borrowed, exclusively, for the whole call, as is the file.
        unsafe { op::run(op) }.map(|count| count as usize)
    }

    fn write_to(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let op = Op::Write { fd: self.0.as_raw_fd(), buf: buf.as_ptr(), len: buf.len(), offset };
        // SAFETY: the buffer is borrowed for the whole call, as is the file.
        unsafe { op::run(op) }.map(|count| count as usize)
    }

    /// Reads at `offset`, in bytes; the current position stays. 0 is the end of the file.
    ///
    /// # Errors
    ///
    /// What pread(2) says; `InvalidInput` for an offset of 2⁶³ or more.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_from(buf, checked(offset)?)
    }

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the file ends before; what pread(2) says.
    pub fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buf.is_empty() {
            match self.read_at(buf, offset)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => {
                    buf = &mut buf[count..];
                    offset += count as u64;
                }
            }
        }
        Ok(())
    }

    /// Writes at `offset`, in bytes; the current position stays. May write less than all.
    ///
    /// # Errors
    ///
    /// What pwrite(2) says; `InvalidInput` for an offset of 2⁶³ or more.
    pub fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.write_to(buf, checked(offset)?)
    }

    /// Writes all of `buf` from `offset` on.
    ///
    /// # Errors
    ///
    /// What pwrite(2) says; how much was written by then is not told.
    pub fn write_all_at(&self, mut buf: &[u8], mut offset: u64) -> io::Result<()> {
        while !buf.is_empty() {
            match self.write_at(buf, offset)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => {
                    buf = &buf[count..];
                    offset += count as u64;
                }
            }
        }
        Ok(())
    }

    fn sync(&self, data_only: bool) -> io::Result<()> {
        let op = Op::Sync { fd: self.0.as_raw_fd(), data_only };
        // SAFETY: names no memory; the file is borrowed for the whole call.
        unsafe { op::run(op) }.map(drop)
    }

    /// Waits until data and metadata are on the disk (fsync(2)).
    ///
    /// # Errors
    ///
    /// What fsync(2) says. After an error nothing is known of what was written before.
    pub fn sync_all(&self) -> io::Result<()> {
        self.sync(false)
    }

    /// Waits until data, and the metadata it is found by, are on the disk (fdatasync(2)).
    ///
    /// A file opened with [`direct`](OpenOptions::direct) and with `O_DSYNC` as
    /// [`custom_flags`](OpenOptions::custom_flags), as a log may be, needs none: its writes return when they are
    /// on the disk. That is one operation in place of two, and on io_uring one without a worker of the kernel
    /// where the bytes have their place in the file already.
    ///
    /// # Errors
    ///
    /// As for [`sync_all`](File::sync_all).
    pub fn sync_data(&self) -> io::Result<()> {
        self.sync(true)
    }

    /// What the file system knows of the file.
    ///
    /// # Errors
    ///
    /// What statx(2) says.
    pub fn metadata(&self) -> io::Result<Metadata> {
        // SAFETY: integers, for which zero is a value.
        let mut raw: RawMetadata = unsafe { std::mem::zeroed() };
        let op = Op::Metadata { fd: self.0.as_raw_fd(), out: &raw mut raw };
        // SAFETY: `raw` lives until the call has returned, as does the file.
        unsafe { op::run(op) }?;
        Ok(Metadata::from(raw))
    }

    /// Cuts the file to `len` bytes, or fills it up with zeros.
    ///
    /// # Errors
    ///
    /// What ftruncate(2) says.
    pub fn set_len(&self, len: u64) -> io::Result<()> {
        let len = checked(len)? as libc::off_t;
        let fd = self.0.as_raw_fd();
        blocking(|| {
            // SAFETY: names no memory; the file is borrowed for the whole call.
            match unsafe { libc::ftruncate(fd, len) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        })?
    }

    /// A second object for the same open file, with a descriptor of its own (dup(2)). They share
    /// the current position.
    ///
    /// # Errors
    ///
    /// If there is no descriptor left.
    pub fn try_clone(&self) -> io::Result<File> {
        self.0.try_clone().map(File)
    }
}

/// The kernel's offsets are signed; `Op::CURRENT_POSITION` is none of them.
fn checked(offset: u64) -> io::Result<u64> {
    match i64::try_from(offset) {
        Ok(_) => Ok(offset),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("no file reaches to {offset} bytes"),
        )),
    }
}

impl Read for File {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_from(buf, Op::CURRENT_POSITION)
    }
}

impl Write for File {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_to(buf, Op::CURRENT_POSITION)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (whence, offset) = match to {
            SeekFrom::Start(offset) => (libc::SEEK_SET, checked(offset)? as libc::off_t),
            SeekFrom::End(offset) => (libc::SEEK_END, offset),
            SeekFrom::Current(offset) => (libc::SEEK_CUR, offset),
        };
        // SAFETY: names no memory; the file is borrowed for the whole call.
        match unsafe { libc::lseek(self.0.as_raw_fd(), offset, whence) } {
            at if at < 0 => Err(io::Error::last_os_error()),
            at => Ok(at as u64),
        }
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for File {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl From<std::fs::File> for File {
    fn from(file: std::fs::File) -> File {
        File(file.into())
    }
}

impl From<File> for std::fs::File {
    fn from(file: File) -> std::fs::File {
        file.0.into()
    }
}

impl From<File> for OwnedFd {
    fn from(file: File) -> OwnedFd {
        file.0
    }
}

/// All of a file.
///
/// # Errors
///
/// See [`OpenOptions::open`] and [`File::read_at`].
pub fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(usize::try_from(size).unwrap_or(usize::MAX))?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Makes a file, or replaces what is in it, with `bytes`. Does not wait for the disk.
///
/// # Errors
///
/// See [`OpenOptions::open`] and [`File::write_at`].
pub fn write(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    File::create(path)?.write_all(bytes.as_ref())
}
