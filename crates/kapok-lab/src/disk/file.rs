//! The file that is measured: opened with care, made if that is asked for.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use kapok::pool::{ALIGNMENT, Buffer, Source};

use super::pattern::{self, SECTOR, Seed};
use crate::stop::Stop;

/// How much is written or read at once while a file is made or brought into the page cache.
const CHUNK: usize = 1 << 20;

/// How many blocks are looked at to tell whether a file has the pattern.
const LOOKS: u64 = 16;

/// Memory that starts where direct I/O wants it to.
#[derive(Debug)]
pub struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// `len` zeros.
    #[must_use]
    pub fn new(len: usize) -> Aligned {
        let bytes = vec![0; len + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        Aligned { bytes, start, len }
    }
}

impl std::ops::Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..][..self.len]
    }
}

impl std::ops::DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.len]
    }
}

// SAFETY: the bytes are on the heap, at the same place for good: the vector is never grown.
unsafe impl Source for Aligned {
    const QUIET: bool = true;

    fn bytes(&self) -> &[u8] {
        self
    }
}

// SAFETY: as above, and they are this value's alone.
unsafe impl Buffer for Aligned {
    fn room(&mut self) -> NonNull<[u8]> {
        NonNull::from(&mut self[..])
    }

    unsafe fn filled(&mut self, _count: usize) {}
}

/// A file that can be measured.
#[derive(Debug)]
pub struct Subject {
    /// Open as the measurement wants it.
    pub file: File,
    /// Where it is.
    pub path: PathBuf,
    /// Its length, in bytes.
    pub bytes: u64,
    /// Whether its blocks say where they belong, so that what is read can be verified.
    pub is_patterned: bool,
    /// Whether it was opened with `O_DIRECT`.
    pub direct: bool,
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

/// Says with what something went wrong, and of which kind it is still.
fn named(path: &Path, what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}

fn unless_stopped(stop: Option<&Stop>) -> io::Result<()> {
    match stop.is_some_and(Stop::requested) {
        true => Err(io::Error::new(io::ErrorKind::Interrupted, "stopped before it was measured")),
        false => Ok(()),
    }
}

/// Writes a new file of `bytes` with the pattern, to the device.
///
/// # Errors
///
/// `AlreadyExists` if there is something at `path`; what open(2), write(2) and fsync(2) say. What was
/// begun is removed again.
pub fn make(path: &Path, bytes: u64, seed: Seed, progress: impl FnMut(u64)) -> io::Result<()> {
    make_unless(None, path, bytes, seed, progress)
}

/// The same, unless it is stopped.
pub(super) fn make_unless(
    stop: Option<&Stop>,
    path: &Path,
    bytes: u64,
    seed: Seed,
    mut progress: impl FnMut(u64),
) -> io::Result<()> {
    let file = File::options()
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(|error| named(path, "create", &error))?;
    let mut chunk = vec![0; CHUNK];
    let mut write = || {
        let mut offset = 0;
        while offset < bytes {
            unless_stopped(stop)?;
            let len = (bytes - offset).min(CHUNK as u64) as usize;
            pattern::fill(&mut chunk[..len], offset, seed);
            file.write_all_at(&chunk[..len], offset)?;
            offset += len as u64;
            progress(offset);
        }
        file.sync_all()
    };
    write().map_err(|error| {
        let _ = std::fs::remove_file(path);
        named(path, "write", &error)
    })
}

impl Subject {
    /// Opens the file at `path` for blocks of `block` bytes, with `flags` of open(2).
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the file does not suit: no regular file, smaller than a block, or of a file
    /// system that has no `O_DIRECT`; what open(2) says.
    pub fn open(path: &Path, block: usize, write: bool, flags: i32) -> io::Result<Subject> {
        let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::new(
                error.kind(),
                format!("open {}: {error}; --size makes it", path.display()),
            ),
            _ => named(path, "look at", &error),
        })?;
        if !metadata.is_file() {
            return Err(invalid(format!("{} is not a regular file", path.display())));
        }
        let direct = flags & libc::O_DIRECT != 0;
        let mut options = OpenOptions::new();
        options.read(true).write(write).custom_flags(flags);
        let file = options.open(path).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) if direct => invalid(format!(
                "{}: its file system refuses O_DIRECT; --buffered goes through the page cache",
                path.display()
            )),
            _ => named(path, "open", &error),
        })?;
        let bytes = file.metadata().map_err(|error| named(path, "look at", &error))?.len();
        if bytes < block as u64 {
            return Err(invalid(format!(
                "{} has {bytes} bytes, which is not one block of {block}",
                path.display()
            )));
        }
        let mut subject =
            Subject { file, path: path.to_owned(), bytes, is_patterned: false, direct };
        subject.is_patterned = subject.has_pattern(block)?;
        Ok(subject)
    }

    /// Looks at some blocks, the first and the last among them.
    fn has_pattern(&self, block: usize) -> io::Result<bool> {
        let mut memory = Aligned::new(block);
        let blocks = self.bytes / block as u64;
        for look in 0..LOOKS {
            let offset = look * (blocks - 1) / (LOOKS - 1) * block as u64;
            self.file.read_exact_at(&mut memory, offset).map_err(|error| {
                match error.raw_os_error() {
                    // The length, for the offset is a multiple of it and the memory is aligned.
                    Some(libc::EINVAL) if self.direct => invalid(format!(
                        "{}: its device refuses O_DIRECT with blocks of {block} bytes",
                        self.path.display()
                    )),
                    _ => named(&self.path, "read", &error),
                }
            })?;
            if !pattern::is_right(&memory, offset) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Brings the first `bytes` into the page cache.
    ///
    /// # Errors
    ///
    /// What read(2) says, and `Interrupted` if it was stopped.
    pub fn warm(&self, bytes: u64, stop: Option<&Stop>) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK];
        let mut offset = 0;
        while offset < bytes {
            unless_stopped(stop)?;
            match self.file.read_at(&mut chunk, offset)? {
                0 => break,
                read => offset += read as u64,
            }
        }
        Ok(())
    }
}

/// Whether blocks of this size can be measured.
///
/// # Errors
///
/// `InvalidInput`, with the reason.
pub(super) fn check_block(block: usize) -> io::Result<()> {
    const MOST: usize = 64 << 20;
    if block == 0 || !block.is_multiple_of(SECTOR) || block > MOST {
        return Err(invalid(format!(
            "--bs {block}: a multiple of {SECTOR} bytes is wanted, and at most {MOST}"
        )));
    }
    Ok(())
}
