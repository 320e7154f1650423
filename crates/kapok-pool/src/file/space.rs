//! The space of a file: its length, what is allocated to it, its holes, and copies of parts.

use std::fs::FileTimes;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};

use super::File;
use crate::descriptor::Descriptor;

/// How much one call copies, so that a copy whose future was dropped ends soon.
const COPIED_AT_ONCE: u64 = 32 << 20;

/// How much is copied at once where the kernel does not copy.
const BUFFER_BYTES: usize = 256 << 10;

/// What the kernel answers if it cannot copy between these two.
fn is_refusal(error: &io::Error) -> bool {
    let refusals = [libc::EXDEV, libc::EOPNOTSUPP, libc::EINVAL, libc::ENOSYS, libc::EPERM];
    error.raw_os_error().is_some_and(|errno| refusals.contains(&errno))
}

fn signed(offset: u64) -> io::Result<i64> {
    i64::try_from(offset).map_err(|_| {
        let message = format!("no file reaches to {offset} bytes");
        io::Error::new(io::ErrorKind::InvalidInput, message)
    })
}

impl File {
    /// Cuts the file to `len` bytes, or fills it up with zeros: ftruncate(2).
    ///
    /// # Errors
    ///
    /// What ftruncate(2) says.
    pub async fn set_len(&self, len: u64) -> io::Result<()> {
        let failed = |error| self.failed("set the length of", error);
        let len = signed(len).map_err(failed)? as u64;
        #[cfg(target_os = "linux")]
        match self.pool.run(crate::entries::OnFile::set_len(self.open.clone(), len)).await {
            // A ring of before 6.9 says the same of an operation that it does not know.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            outcome => return outcome.map_err(failed),
        }
        self.blocking(move |file| file.set_len(len)).await.map_err(failed)
    }

    /// Allocates space for `len` bytes from `offset` on, and makes the file so long if it is shorter:
    /// fallocate(2). Writes there find room on the device then.
    ///
    /// # Errors
    ///
    /// What fallocate(2) says: `Unsupported` (`EOPNOTSUPP`) where the file system has none,
    /// `StorageFull`.
    #[cfg(target_os = "linux")]
    pub async fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.allocate_with(0, offset, len).await
    }

    /// fallocate(2) with its mode, `FALLOC_FL_*`: to keep the length, to punch a hole, to zero a range.
    ///
    /// # Errors
    ///
    /// What fallocate(2) says.
    #[cfg(target_os = "linux")]
    pub async fn allocate_with(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        let run = async {
            let (offset, len) = (signed(offset)? as u64, signed(len)? as u64);
            let open = self.open.clone();
            self.pool.run(crate::entries::OnFile::allocate(open, mode, offset, len)).await
        };
        run.await.map_err(|error| self.failed("allocate space in", error))
    }

    /// Says how `len` bytes from `offset` on will be used, `POSIX_FADV_*`; 0 is to the end:
    /// posix_fadvise(2).
    ///
    /// # Errors
    ///
    /// What posix_fadvise(2) says.
    #[cfg(target_os = "linux")]
    pub async fn advise(&self, offset: u64, len: u64, advice: i32) -> io::Result<()> {
        let run = async {
            let (offset, len) = (signed(offset)? as u64, signed(len)? as u64);
            let open = self.open.clone();
            self.pool.run(crate::entries::OnFile::advise(open, offset, len, advice)).await
        };
        run.await.map_err(|error| self.failed("advise on", error))
    }

    /// Where the next data is from `offset` on, up to the next hole, or `None` if there is nothing but
    /// holes up to the end: lseek(2) with `SEEK_DATA`. File systems that know no holes have data only.
    /// The file's current position moves.
    ///
    /// # Errors
    ///
    /// What lseek(2) says.
    #[cfg(target_os = "linux")]
    pub async fn data_from(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let offset = signed(offset).map_err(|error| self.failed("find data in", error))?;
        let found = self.blocking(move |file| {
            data_of(offset, |offset, whence| {
                // SAFETY: lseek with integer arguments, on a file that is open.
                match unsafe { libc::lseek(file.as_raw_fd(), offset, whence) } {
                    at if at < 0 => Err(io::Error::last_os_error()),
                    at => Ok(at),
                }
            })
        });
        found.await.map_err(|error| self.failed("find data in", error))
    }

    /// Copies up to `len` bytes from `offset` on to `to_offset` of another file, inside the kernel where
    /// that can be done (copy_file_range(2)), and says how many: less only if the file ends before. If
    /// both are of one file the ranges must not overlap.
    ///
    /// Dropped, or after an error, some may have been copied.
    ///
    /// # Errors
    ///
    /// What copy_file_range(2), pread(2) and pwrite(2) say.
    pub async fn copy_range(
        &self,
        offset: u64,
        to: &File,
        to_offset: u64,
        len: u64,
    ) -> io::Result<u64> {
        let (mut done, mut by_kernel) = (0, cfg!(target_os = "linux"));
        while done < len {
            let (from_at, to_at) = (offset.saturating_add(done), to_offset.saturating_add(done));
            let most = (len - done).min(COPIED_AT_ONCE);
            let mut copied = 0;
            if by_kernel {
                let target = to.open.clone();
                let call = move |file: &std::fs::File| {
                    kernel_copy(file.as_raw_fd(), from_at, target.raw(), to_at, most)
                };
                match self.blocking(call).await {
                    Ok(count) => copied = count,
                    Err(error) if is_refusal(&error) => by_kernel = false,
                    Err(error) => return Err(self.failed("copy", error)),
                }
            }
            // Files that are made as they are read have no length, and the kernel copies nothing of them.
            if copied == 0 {
                copied = self.copy_part(from_at, to, to_at, most).await?;
                by_kernel = false;
            }
            if copied == 0 {
                break;
            }
            done += copied;
        }
        Ok(done)
    }

    /// Copies all of the file to an empty one, from the start, and says how long it is. Only data is
    /// copied: what is a hole here is one there, where the file system tells.
    ///
    /// Dropped, or after an error, some may have been copied.
    ///
    /// # Errors
    ///
    /// As for [`copy_range`](File::copy_range) and [`set_len`](File::set_len).
    pub async fn copy_all(&self, to: &File) -> io::Result<u64> {
        let len = self.metadata().await?.len();
        let mut at = 0;
        #[cfg_attr(
            not(target_os = "linux"),
            allow(unused_mut, reason = "only there it is found out")
        )]
        let mut is_short = false;
        #[cfg(target_os = "linux")]
        while at < len && !is_short {
            let Some(data) = self.data_from(at).await? else { break };
            let count = data.end - data.start;
            let copied = self.copy_range(data.start, to, data.start, count).await?;
            at = data.start + copied;
            is_short = copied < count;
        }
        // One that was cut meanwhile, or that the system makes as it is read, ends where its data ends.
        if at < len && !is_short {
            // A hole at the end.
            let end = self.metadata().await?.len();
            to.set_len(end.max(at)).await?;
            at = end.max(at);
        }
        Ok(at + self.copy_range(at, to, at, u64::MAX - at).await?)
    }

    /// Copies through a buffer.
    async fn copy_part(&self, from: u64, to: &File, at: u64, most: u64) -> io::Result<u64> {
        let bytes = usize::try_from(most).unwrap_or(usize::MAX).min(BUFFER_BYTES);
        let (count, mut buffer) = self.read_at(Vec::with_capacity(bytes), from).await;
        buffer.truncate(count?.min(bytes));
        let (written, buffer) = to.write_all_at(buffer, at).await;
        written.map(|()| buffer.len() as u64)
    }

    /// Sets the times that the file is said to have been read and changed.
    ///
    /// # Errors
    ///
    /// What futimens(3) says.
    pub async fn set_times(&self, times: FileTimes) -> io::Result<()> {
        let outcome = self.blocking(move |file| file.set_times(times)).await;
        outcome.map_err(|error| self.failed("set the times of", error))
    }

    /// Sets the permission bits: fchmod(2).
    ///
    /// # Errors
    ///
    /// What fchmod(2) says.
    pub async fn set_mode(&self, mode: u32) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let permissions = std::fs::Permissions::from_mode(mode);
        let outcome = self.blocking(move |file| file.set_permissions(permissions)).await;
        outcome.map_err(|error| self.failed("set the mode of", error))
    }

    /// Sets whose and whose group's it is, where given: fchown(2).
    ///
    /// # Errors
    ///
    /// What fchown(2) says.
    pub async fn set_owner(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let outcome = self.blocking(move |file| std::os::unix::fs::fchown(file, uid, gid)).await;
        outcome.map_err(|error| self.failed("set the owner of", error))
    }
}

/// The next data from `offset` on, as `seek` (lseek(2)) tells.
#[cfg(target_os = "linux")]
fn data_of(
    offset: i64,
    mut seek: impl FnMut(i64, i32) -> io::Result<i64>,
) -> io::Result<Option<Range<u64>>> {
    let both = seek(offset, libc::SEEK_DATA)
        .and_then(|start| Ok(start as u64..seek(start, libc::SEEK_HOLE)? as u64));
    match both {
        Ok(data) => Ok(Some(data)),
        // The second says so as well, if the file has been cut since the first.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(target_os = "linux")]
fn kernel_copy(from: RawFd, from_at: u64, to: RawFd, to_at: u64, len: u64) -> io::Result<u64> {
    let (mut from_at, mut to_at) = (signed(from_at)?, signed(to_at)?);
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    loop {
        // SAFETY: the offsets are locals; the callers keep both files open.
        let count =
            unsafe { libc::copy_file_range(from, &raw mut from_at, to, &raw mut to_at, len, 0) };
        match count {
            0.. => return Ok(count as u64),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn kernel_copy(_: RawFd, _: u64, _: RawFd, _: u64, _: u64) -> io::Result<u64> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}

#[cfg(all(test, target_os = "linux", not(loom)))]
mod tests {
    use super::*;

    fn scratch(name: &str) -> std::fs::File {
        let path = std::env::temp_dir().join(format!("kapok-pool-{name}-{}", std::process::id()));
        let mut options = std::fs::File::options();
        let file = options.read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }

    #[test]
    fn a_file_that_is_cut_between_the_two_looks_has_no_data_there() {
        let file = scratch("cut-between");
        file.set_len(4096).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"data", 0).unwrap();
        let seek = |cuts: bool| {
            let file = &file;
            move |offset, whence| {
                if cuts && whence == libc::SEEK_HOLE {
                    file.set_len(0).unwrap();
                }
                // SAFETY: lseek with integer arguments.
                match unsafe { libc::lseek(file.as_raw_fd(), offset, whence) } {
                    at if at < 0 => Err(io::Error::last_os_error()),
                    at => Ok(at),
                }
            }
        };
        assert!(data_of(0, seek(false)).unwrap().is_some());
        assert_eq!(data_of(0, seek(true)).unwrap(), None);
        // What is no such thing is told.
        let error = data_of(0, |_, _| Err(io::Error::from_raw_os_error(libc::EIO))).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
}
