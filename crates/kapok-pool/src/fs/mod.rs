//! Files and directories by their paths, like `std::fs`, on a [`Pool`].
//!
//! What io_uring has goes through a ring; the rest are calls on blocking threads. Either way nothing
//! blocks the caller. Paths are relative to the current directory of the process as each operation runs.
//!
//! # Cancellation
//!
//! Dropped, an operation may or may not have been carried out; none is half done, but for those that do
//! many steps ([`create_dir_all`], [`remove_dir_all`], [`copy`], [`write()`]), which end between two of
//! them or, on a blocking thread, go on to their end.
//!
//! # Errors
//!
//! What the system call of the same name says, with operation and path in the text; the error as the
//! kernel gave it is the [`source`](std::error::Error::source). `InvalidInput` for a path with a NUL,
//! `NotConnected` if the pool is shut down, `OutOfMemory` if there is no thread for what needs one.

mod tree;

pub use tree::{DirEntry, ReadDir, create_dir_all, read_dir, remove_dir_all};

use std::ffi::CString;
#[cfg(target_os = "linux")]
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::blocking::Blocking;
#[cfg(target_os = "linux")]
use crate::buffer::Buffer;
use crate::buffer::{Part, Source};
use crate::context::{named, named_both, raw_os_error};
use crate::file::{File, Metadata, OpenOptions};
use crate::pool::Pool;
use crate::requests::Moved;

/// How much room there is at least where nobody knows how much comes.
const READ_AT_ONCE: usize = 8 << 10;

/// Permission bits of a new directory, less the umask.
const DIRECTORY_MODE: u32 = 0o777;

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// A call on a blocking thread with a path of its own.
async fn by_thread<T: Send + 'static>(
    pool: &Pool,
    path: &Path,
    call: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let path = path.to_path_buf();
    Blocking::start(pool, move || call(&path)).await
}

/// An operation on one path: through the ring where that is Linux's, by std elsewhere.
macro_rules! on_path {
    ($pool:expr, $path:expr, $what:literal, |$name:ident| $request:expr, $elsewhere:expr) => {{
        let path: &Path = $path;
        #[cfg(target_os = "linux")]
        let outcome = match c_path(path) {
            Ok($name) => $pool.run($request).await,
            Err(error) => Err(error),
        };
        #[cfg(not(target_os = "linux"))]
        let outcome = by_thread($pool, path, $elsewhere).await;
        outcome.map_err(|error| named($what, path, error))
    }};
}

/// An operation from one path to another.
macro_rules! on_paths {
    ($pool:expr, $from:expr, $to:expr, $what:literal, $request:expr, $elsewhere:expr) => {{
        let (from, to): (&Path, &Path) = ($from, $to);
        #[cfg(target_os = "linux")]
        let outcome = match (c_path(from), c_path(to)) {
            (Ok(first), Ok(second)) => $pool.run($request(first, second)).await,
            (Err(error), _) | (_, Err(error)) => Err(error),
        };
        #[cfg(not(target_os = "linux"))]
        let outcome = {
            let to = to.to_path_buf();
            by_thread($pool, from, move |from| $elsewhere(from, to)).await
        };
        outcome.map_err(|error| named_both($what, from, to, error))
    }};
}

#[cfg(target_os = "linux")]
use crate::entries::{GetXattr, OnPaths, SetXattr, StatPath};

/// Makes a directory: mkdir(2).
///
/// # Errors
///
/// See the [module](self).
pub async fn create_dir(pool: &Pool, path: impl AsRef<Path>) -> io::Result<()> {
    on_path!(
        pool,
        path.as_ref(),
        "create directory",
        |name| OnPaths::make_directory(name, DIRECTORY_MODE),
        |path| std::fs::create_dir(path)
    )
}

/// Removes a name of a file: unlink(2).
///
/// # Errors
///
/// See the [module](self).
pub async fn remove_file(pool: &Pool, path: impl AsRef<Path>) -> io::Result<()> {
    on_path!(pool, path.as_ref(), "remove", |name| OnPaths::remove(name, 0), |path| {
        std::fs::remove_file(path)
    })
}

/// Removes an empty directory: rmdir(2).
///
/// # Errors
///
/// See the [module](self).
pub async fn remove_dir(pool: &Pool, path: impl AsRef<Path>) -> io::Result<()> {
    on_path!(
        pool,
        path.as_ref(),
        "remove directory",
        |name| OnPaths::remove(name, libc::AT_REMOVEDIR),
        |path| std::fs::remove_dir(path)
    )
}

/// Gives a file another name, and replaces what has it: rename(2).
///
/// # Errors
///
/// See the [module](self).
pub async fn rename(pool: &Pool, from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    on_paths!(
        pool,
        from.as_ref(),
        to.as_ref(),
        "rename",
        OnPaths::rename,
        |from: &Path, to: PathBuf| std::fs::rename(from, to)
    )
}

/// Gives a file a further name: link(2). A symbolic link is not followed.
///
/// # Errors
///
/// See the [module](self).
pub async fn hard_link(
    pool: &Pool,
    original: impl AsRef<Path>,
    link: impl AsRef<Path>,
) -> io::Result<()> {
    on_paths!(
        pool,
        original.as_ref(),
        link.as_ref(),
        "link",
        OnPaths::link,
        |from: &Path, to: PathBuf| std::fs::hard_link(from, to)
    )
}

/// Makes a symbolic link at `link` that says `target`: symlink(2).
///
/// # Errors
///
/// See the [module](self).
pub async fn symlink(
    pool: &Pool,
    target: impl AsRef<Path>,
    link: impl AsRef<Path>,
) -> io::Result<()> {
    on_paths!(
        pool,
        target.as_ref(),
        link.as_ref(),
        "symlink",
        OnPaths::symlink,
        |from: &Path, to: PathBuf| std::os::unix::fs::symlink(from, to)
    )
}

/// What the file system knows of the file at `path`, symbolic links followed: statx(2).
///
/// # Errors
///
/// See the [module](self).
pub async fn metadata(pool: &Pool, path: impl AsRef<Path>) -> io::Result<Metadata> {
    stat(pool, path.as_ref(), 0).await
}

/// What the file system knows of the file at `path`, of a symbolic link itself: statx(2).
///
/// # Errors
///
/// See the [module](self).
pub async fn symlink_metadata(pool: &Pool, path: impl AsRef<Path>) -> io::Result<Metadata> {
    stat(pool, path.as_ref(), libc::AT_SYMLINK_NOFOLLOW).await
}

#[cfg(target_os = "linux")]
async fn stat(pool: &Pool, path: &Path, flags: i32) -> io::Result<Metadata> {
    let stat = async { pool.run(StatPath::new(c_path(path)?, flags)).await };
    match stat.await {
        Ok(raw) => Ok(Metadata::from(*raw)),
        Err(error) => Err(named("stat", path, error)),
    }
}

#[cfg(not(target_os = "linux"))]
async fn stat(pool: &Pool, path: &Path, flags: i32) -> io::Result<Metadata> {
    let stat = move |path: &Path| {
        let path = c_path(path)?;
        // SAFETY: plain numbers, for which zero is a value.
        let mut raw: kapok_engine::RawMetadata = unsafe { std::mem::zeroed() };
        // SAFETY: the path and the place are locals.
        match unsafe { libc::fstatat(libc::AT_FDCWD, path.as_ptr(), &raw mut raw, flags) } {
            0 => Ok(Metadata::from(raw)),
            _ => Err(io::Error::last_os_error()),
        }
    };
    by_thread(pool, path, stat).await.map_err(|error| named("stat", path, error))
}

/// What a symbolic link says: readlink(2).
///
/// # Errors
///
/// See the [module](self).
pub async fn read_link(pool: &Pool, path: impl AsRef<Path>) -> io::Result<PathBuf> {
    let path = path.as_ref();
    let call = |path: &Path| std::fs::read_link(path);
    by_thread(pool, path, call).await.map_err(|error| named("read link", path, error))
}

/// The path without symbolic links, `.` and `..`, from the root: realpath(3).
///
/// # Errors
///
/// See the [module](self).
pub async fn canonicalize(pool: &Pool, path: impl AsRef<Path>) -> io::Result<PathBuf> {
    let path = path.as_ref();
    let call = |path: &Path| std::fs::canonicalize(path);
    by_thread(pool, path, call).await.map_err(|error| named("canonicalize", path, error))
}

/// Sets the permission bits, of what a symbolic link refers to: chmod(2).
///
/// # Errors
///
/// See the [module](self).
pub async fn set_mode(pool: &Pool, path: impl AsRef<Path>, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let path = path.as_ref();
    let call =
        move |path: &Path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    by_thread(pool, path, call).await.map_err(|error| named("set the mode of", path, error))
}

/// The value of the extended attribute `name` of a path (xattr(7)), symbolic links followed, in the room of
/// `buffer`: getxattr(2). Without room it is the length that the value has, and nothing is written.
///
/// # Errors
///
/// See the [module](self): `ENODATA` where there is none of the name, `ERANGE` if the room is too small.
#[cfg(target_os = "linux")]
pub async fn get_xattr<B: Buffer>(
    pool: &Pool,
    path: impl AsRef<Path>,
    name: impl AsRef<OsStr>,
    buffer: B,
) -> Moved<B> {
    let (path, name) = (path.as_ref(), name.as_ref());
    let (outcome, buffer) = match (c_path(path), c_path(Path::new(name))) {
        (Ok(path), Ok(name)) => pool.run(GetXattr::new(path, name, buffer)).await,
        (Err(error), _) | (_, Err(error)) => (Err(error), buffer),
    };
    (outcome.map_err(|error| named(&attribute("get", name), path, error)), buffer)
}

/// Sets the extended attribute `name` of a path, symbolic links followed: setxattr(2), with `flags`
/// `XATTR_CREATE`, `XATTR_REPLACE` or 0.
///
/// # Errors
///
/// See the [module](self).
#[cfg(target_os = "linux")]
pub async fn set_xattr(
    pool: &Pool,
    path: impl AsRef<Path>,
    name: impl AsRef<OsStr>,
    value: impl Source,
    flags: i32,
) -> io::Result<()> {
    let (path, name) = (path.as_ref(), name.as_ref());
    let outcome = match (c_path(path), c_path(Path::new(name))) {
        (Ok(path), Ok(name)) => pool.run(SetXattr::new(path, name, value, flags)).await,
        (Err(error), _) | (_, Err(error)) => Err(error),
    };
    outcome.map_err(|error| named(&attribute("set", name), path, error))
}

#[cfg(target_os = "linux")]
fn attribute(what: &str, name: &OsStr) -> String {
    format!("{what} the attribute {} of", name.display())
}

/// Whether there is something at `path`, symbolic links followed.
///
/// # Errors
///
/// See the [module](self), but for what says that there is nothing.
pub async fn exists(pool: &Pool, path: impl AsRef<Path>) -> io::Result<bool> {
    match metadata(pool, path).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// All of a file; of a pipe, a FIFO or a terminal what comes until its end.
///
/// # Errors
///
/// See the [module](self).
pub async fn read(pool: &Pool, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let path = path.as_ref();
    let file = File::open(pool, path).await?;
    let (mut count, mut content) = file.read_to_end(Vec::new()).await;
    if count.as_ref().is_err_and(has_no_offsets) {
        (count, content) = read_stream(&file, content).await;
    }
    count.map_err(|error| named("read", path, error))?;
    Ok(content)
}

/// Whether it is said of a file that it cannot be read or written at an offset. Then nothing was.
fn has_no_offsets(error: &io::Error) -> bool {
    raw_os_error(error) == Some(libc::ESPIPE)
}

/// What comes until the end of a file without offsets.
async fn read_stream(file: &File, mut content: Vec<u8>) -> Moved<Vec<u8>> {
    loop {
        let len = content.len();
        if content.capacity() == len
            && let Err(error) = content.try_reserve(READ_AT_ONCE)
        {
            return (Err(io::Error::new(io::ErrorKind::OutOfMemory, error)), content);
        }
        let room = len..content.capacity();
        let (count, part) = file.read(Part::of_room(content, room)).await;
        content = part.into_inner();
        match count {
            Ok(0) => return (Ok(len), content),
            Ok(_) => {}
            Err(error) => return (Err(error), content),
        }
    }
}

/// Writes all to a file without offsets.
async fn write_stream(file: &File, mut content: impl Source) -> io::Result<()> {
    let (mut done, all) = (0, content.bytes().len());
    while done < all {
        let (count, part) = file.append(Part::of_bytes(content, done..all)).await;
        content = part.into_inner();
        match count? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => done += count,
        }
    }
    Ok(())
}

/// All of a file, which is UTF-8.
///
/// # Errors
///
/// See the [module](self); `InvalidData` if it is not UTF-8.
pub async fn read_to_string(pool: &Pool, path: impl AsRef<Path>) -> io::Result<String> {
    let path = path.as_ref();
    String::from_utf8(read(pool, path).await?)
        .map_err(|error| named("read", path, io::Error::new(io::ErrorKind::InvalidData, error)))
}

/// Makes a file, or replaces what is in it, with `content`. Does not wait for the device. To a pipe, a FIFO
/// or a terminal it is written.
///
/// # Errors
///
/// See the [module](self).
pub async fn write(pool: &Pool, path: impl AsRef<Path>, content: impl Source) -> io::Result<()> {
    let path = path.as_ref();
    // For writing only: what is open for both waits for no reader of a FIFO, and may not be allowed.
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).open(pool, path).await?;
    let (mut written, content) = file.write_all_at(content, 0).await;
    if written.as_ref().is_err_and(has_no_offsets) {
        written = write_stream(&file, content).await;
    }
    written.map_err(|error| named("write", path, error))
}

/// Copies content and permission bits of a file to one that is made, or whose content is replaced, and
/// says how many bytes it was. What is a hole in the file is one in the copy where the file system tells.
///
/// # Errors
///
/// See the [module](self).
pub async fn copy(pool: &Pool, from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<u64> {
    let (from, to) = (from.as_ref(), to.as_ref());
    let source = File::open(pool, from).await?;
    let copied = async {
        let metadata = source.metadata().await?;
        if !metadata.is_file() {
            let message = "neither a regular file nor a link to one";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        if let Ok(there) = self::metadata(pool, to).await
            && (there.dev(), there.ino()) == (metadata.dev(), metadata.ino())
        {
            // Opening it would empty it.
            let message = "they are the same file";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(metadata.mode() & 0o7777);
        let target = options.open(pool, to).await?;
        let count = source.copy_all(&target).await?;
        target.set_mode(metadata.mode() & 0o7777).await?;
        Ok(count)
    };
    copied.await.map_err(|error| named_both("copy", from, to, error))
}
