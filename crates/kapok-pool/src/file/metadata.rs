//! What a file system knows of a file.

use std::fmt;
use std::time::{Duration, SystemTime};

use kapok_engine::RawMetadata;

/// What the file system knows of a file.
#[derive(Clone, Copy)]
pub struct Metadata(RawMetadata);

impl From<RawMetadata> for Metadata {
    /// As the kernel wrote it.
    fn from(raw: RawMetadata) -> Metadata {
        Metadata(raw)
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metadata")
            .field("len", &self.len())
            .field("mode", &format_args!("{:o}", self.mode()))
            .field("modified", &self.modified())
            .finish_non_exhaustive()
    }
}

/// The fields as they are called on each system.
macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident -> $type:ty = $linux:ident, $elsewhere:ident;)*) => {$(
        $(#[$doc])*
        pub fn $name(&self) -> $type {
            #[cfg(target_os = "linux")]
            return self.0.$linux as $type;
            #[cfg(not(target_os = "linux"))]
            return self.0.$elsewhere as $type;
        }
    )*};
}

#[expect(clippy::len_without_is_empty, reason = "the shape is std's")]
#[allow(clippy::unnecessary_cast, reason = "the types are other ones elsewhere")]
impl Metadata {
    fields! {
        /// Its size, in bytes.
        len -> u64 = stx_size, st_size;
        /// Type and permission bits (`st_mode`).
        mode -> u32 = stx_mode, st_mode;
        /// Whose it is.
        uid -> u32 = stx_uid, st_uid;
        /// Whose group's it is.
        gid -> u32 = stx_gid, st_gid;
        /// The number of its inode.
        ino -> u64 = stx_ino, st_ino;
        /// How many names it has.
        nlink -> u64 = stx_nlink, st_nlink;
        /// How much is allocated to it, in units of 512 bytes.
        blocks -> u64 = stx_blocks, st_blocks;
        /// How much is best moved at a time, in bytes.
        block_size -> u64 = stx_blksize, st_blksize;
    }

    /// The number of the device that it is on.
    pub fn dev(&self) -> u64 {
        #[cfg(target_os = "linux")]
        return libc::makedev(self.0.stx_dev_major, self.0.stx_dev_minor);
        #[cfg(not(target_os = "linux"))]
        return self.0.st_dev as u64;
    }

    fn is(&self, kind: libc::mode_t) -> bool {
        // `mode_t` is narrower on other systems; widening it is lossless on all.
        let (mask, kind) = (libc::S_IFMT as u32, kind as u32);
        self.mode() & mask == kind
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.is(libc::S_IFREG)
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.is(libc::S_IFDIR)
    }

    /// Whether it is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.is(libc::S_IFLNK)
    }

    /// When its contents were last changed.
    pub fn modified(&self) -> SystemTime {
        #[cfg(target_os = "linux")]
        return time(self.0.stx_mtime.tv_sec, self.0.stx_mtime.tv_nsec);
        #[cfg(not(target_os = "linux"))]
        return time(self.0.st_mtime as i64, self.0.st_mtime_nsec as u32);
    }

    /// When it was last read, as far as the file system keeps account of that.
    pub fn accessed(&self) -> SystemTime {
        #[cfg(target_os = "linux")]
        return time(self.0.stx_atime.tv_sec, self.0.stx_atime.tv_nsec);
        #[cfg(not(target_os = "linux"))]
        return time(self.0.st_atime as i64, self.0.st_atime_nsec as u32);
    }

    /// When it was made, where the file system knows.
    pub fn created(&self) -> Option<SystemTime> {
        #[cfg(target_os = "linux")]
        return (self.0.stx_mask & libc::STATX_BTIME != 0)
            .then(|| time(self.0.stx_btime.tv_sec, self.0.stx_btime.tv_nsec));
        #[cfg(not(target_os = "linux"))]
        return None;
    }
}

fn time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let second = match seconds {
        0.. => SystemTime::UNIX_EPOCH + whole,
        _ => SystemTime::UNIX_EPOCH - whole,
    };
    second + Duration::from_nanos(nanoseconds.into())
}
