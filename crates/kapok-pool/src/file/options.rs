//! How a file is opened.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{File, OpenFile};
use crate::context::named;
use crate::pool::Pool;
use crate::requests::OpenAt;

/// How a file is opened, like [`std::fs::OpenOptions`].
#[derive(Clone, Debug)]
pub struct OpenOptions {
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

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions::new()
    }
}

macro_rules! option {
    ($(#[$doc:meta] $name:ident: $type:ty,)*) => {$(
        #[$doc]
        pub fn $name(&mut self, $name: $type) -> &mut OpenOptions {
            self.$name = $name;
            self
        }
    )*};
}

impl OpenOptions {
    /// Nothing allowed yet.
    pub fn new() -> OpenOptions {
        OpenOptions {
            read: false,
            write: false,
            append: false,
            truncate: false,
            create: false,
            create_new: false,
            direct: false,
            mode: 0o666,
            custom_flags: 0,
        }
    }

    option! {
        /// Allows reading.
        read: bool,
        /// Allows writing.
        write: bool,
        /// Lets every write go to the end of the file.
        append: bool,
        /// Empties the file.
        truncate: bool,
        /// Makes the file if there is none.
        create: bool,
        /// Makes the file, and fails if there is one.
        create_new: bool,
        /// Past the page cache, where the system has that (`O_DIRECT`): buffers, offsets and lengths must be aligned, as a [`Lease`](crate::Lease) is.
        direct: bool,
        /// The permission bits of a file that is made, less the umask. Default 0o666.
        mode: u32,
        /// Further `O_*` flags, as `O_DSYNC`.
        custom_flags: i32,
    }

    /// The flags and the mode that open(2) is to be called with: for who opens the file by other means.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for options that contradict each other.
    pub fn flags_and_mode(&self) -> io::Result<(i32, u32)> {
        let invalid = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        let access = match (self.read, self.write || self.append) {
            (true, true) => libc::O_RDWR,
            (false, true) => libc::O_WRONLY,
            (true, false) => libc::O_RDONLY,
            (false, false) => return invalid("neither reading nor writing was asked for"),
        };
        let makes = self.create || self.create_new || self.truncate;
        if makes && !self.write && !self.append || self.truncate && self.append {
            return invalid("creating and truncating want writing, and truncating no appending");
        }
        let mut flags = access | self.custom_flags & !libc::O_ACCMODE;
        for (wanted, flag) in [
            (self.append, libc::O_APPEND),
            (self.truncate && !self.create_new, libc::O_TRUNC),
            (self.create, libc::O_CREAT),
            (self.create_new, libc::O_CREAT | libc::O_EXCL),
            (self.direct, O_DIRECT),
        ] {
            if wanted {
                flags |= flag;
            }
        }
        Ok((flags, self.mode))
    }

    /// Opens the file at `path`. Dropped, it opens nothing that stays open; a file that it makes may
    /// have been made.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for options that contradict each other or a path with a NUL; what open(2)
    /// says, with the path in its text.
    pub async fn open(&self, pool: &Pool, path: impl AsRef<Path>) -> io::Result<File> {
        let path = path.as_ref();
        let opened = async {
            let (flags, mode) = self.flags_and_mode()?;
            let path = CString::new(path.as_os_str().as_bytes())?;
            pool.run(OpenAt { path, flags, mode }).await
        };
        let fd = opened.await.map_err(|error| named("open", path, error))?;
        Ok(File::from_open(pool, OpenFile::opened(fd, Some(path.into()))))
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
const O_DIRECT: i32 = libc::O_DIRECT;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const O_DIRECT: i32 = 0;
