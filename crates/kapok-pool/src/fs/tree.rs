//! Directories: what is in them, and trees of them.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::FileType;
use std::future::poll_fn;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::{create_dir, metadata};
use crate::blocking::Blocking;
use crate::context::named;
use crate::pool::Pool;

/// How many entries a blocking thread reads at once.
const READ_AT_ONCE: usize = 128;

/// Makes a directory and those above it that are missing. One that is there already is no error.
///
/// # Errors
///
/// See the [module](super).
pub async fn create_dir_all(pool: &Pool, path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    // Up to where there is something, and down again, each once: a directory that is there may still be
    // one in which none can be made (/proc, one that has been removed), and that is `NotFound` too.
    let (mut at, mut missing) = (path, Vec::new());
    while let Err(error) = make_or_find(pool, at).await {
        match at.parent() {
            Some(parent)
                if error.kind() == io::ErrorKind::NotFound && !parent.as_os_str().is_empty() =>
            {
                missing.push(at);
                at = parent;
            }
            _ => return Err(error),
        }
    }
    for below in missing.into_iter().rev() {
        make_or_find(pool, below).await?;
    }
    Ok(())
}

/// Makes a directory. One that is there already, or that somebody else makes meanwhile, is as good.
async fn make_or_find(pool: &Pool, path: &Path) -> io::Result<()> {
    let Err(error) = create_dir(pool, path).await else { return Ok(()) };
    let is_there = error.kind() != io::ErrorKind::NotFound
        && metadata(pool, path).await.is_ok_and(|found| found.is_dir());
    if is_there { Ok(()) } else { Err(error) }
}

/// Removes a directory and all that is in it. Symbolic links are removed, not followed.
///
/// # Errors
///
/// See the [module](super).
pub async fn remove_dir_all(pool: &Pool, path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    let call = |path: &Path| std::fs::remove_dir_all(path);
    super::by_thread(pool, path, call).await.map_err(|error| named("remove the tree", path, error))
}

/// Opens a directory to read what is in it.
///
/// # Errors
///
/// See the [module](super).
pub async fn read_dir(pool: &Pool, path: impl AsRef<Path>) -> io::Result<ReadDir> {
    let path: Arc<Path> = path.as_ref().into();
    let opened = Arc::clone(&path);
    let more = Blocking::start(pool, move || Ok(fetch(std::fs::read_dir(&opened)?, opened)));
    let mut directory =
        ReadDir { pool: pool.clone(), path, ready: VecDeque::new(), more: Some(more), rest: None };
    poll_fn(|context| directory.poll_fetched(context))
        .await
        .map_err(|error| named("read directory", &directory.path, error))?;
    Ok(directory)
}

/// What one visit of a blocking thread brings.
struct Fetched {
    entries: VecDeque<io::Result<DirEntry>>,
    /// `None` at the end.
    rest: Option<std::fs::ReadDir>,
}

fn fetch(mut directory: std::fs::ReadDir, path: Arc<Path>) -> Fetched {
    let mut entries = VecDeque::with_capacity(READ_AT_ONCE);
    while entries.len() < READ_AT_ONCE {
        let Some(entry) = directory.next() else {
            return Fetched { entries, rest: None };
        };
        entries.push_back(entry.and_then(|entry| {
            Ok(DirEntry {
                directory: Arc::clone(&path),
                name: entry.file_name(),
                kind: entry.file_type()?,
            })
        }));
    }
    Fetched { entries, rest: Some(directory) }
}

/// What is in a directory: see [`read_dir`].
///
/// ```
/// use kapok_pool::{Pool, block_on, fs};
///
/// # fn main() -> std::io::Result<()> {
/// let pool = Pool::builder().build()?;
/// block_on(async {
///     let mut directory = fs::read_dir(&pool, "/proc/self").await?;
///     let mut names = Vec::new();
///     while let Some(entry) = directory.next().await {
///         names.push(entry?.file_name().to_owned());
///     }
///     assert!(names.iter().any(|name| name == "status"));
///     Ok(())
/// })
/// # }
/// ```
pub struct ReadDir {
    pool: Pool,
    path: Arc<Path>,
    ready: VecDeque<io::Result<DirEntry>>,
    more: Option<Blocking<Fetched>>,
    rest: Option<std::fs::ReadDir>,
}

impl fmt::Debug for ReadDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadDir").field("path", &self.path).finish_non_exhaustive()
    }
}

impl ReadDir {
    /// The next entry, or `None` at the end; never `.` and `..`. Dropped, it loses none.
    ///
    /// # Errors
    ///
    /// What readdir(3) says, and for each entry whose kind the directory does not tell what lstat(2)
    /// says.
    pub async fn next(&mut self) -> Option<io::Result<DirEntry>> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// [`next`](ReadDir::next), to be polled.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<DirEntry>>> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Poll::Ready(Some(
                    entry.map_err(|error| named("read directory", &self.path, error)),
                ));
            }
            if self.more.is_none() {
                let Some(rest) = self.rest.take() else { return Poll::Ready(None) };
                let path = Arc::clone(&self.path);
                self.more = Some(Blocking::start(&self.pool, move || Ok(fetch(rest, path))));
            }
            match self.poll_fetched(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Some(Err(named("read directory", &self.path, error))));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn poll_fetched(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(more) = &mut self.more else { return Poll::Ready(Ok(())) };
        let Poll::Ready(fetched) = Pin::new(more).poll(context) else { return Poll::Pending };
        self.more = None;
        Poll::Ready(fetched.map(|Fetched { entries, rest }| {
            (self.ready, self.rest) = (entries, rest);
        }))
    }
}

/// An entry of a directory.
#[derive(Clone, Debug)]
pub struct DirEntry {
    directory: Arc<Path>,
    name: OsString,
    kind: FileType,
}

impl DirEntry {
    /// Its name, without the directory's.
    pub fn file_name(&self) -> &OsStr {
        &self.name
    }

    /// The directory's path, as it was given, and the name.
    pub fn path(&self) -> PathBuf {
        self.directory.join(&self.name)
    }

    /// What kind of file it was as the directory was read, of a symbolic link itself.
    pub fn file_type(&self) -> FileType {
        self.kind
    }
}
