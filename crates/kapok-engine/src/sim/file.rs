//! Files: names and faults are the world's, the bytes are in anonymous memory files.
//!
//! Each file is a real one that has no name in the system (memfd_create(2)), and each open makes a
//! description of its own of it. So positions, `O_APPEND`, lseek(2) and ftruncate(2) are the
//! kernel's own, and what the world adds is which names there are, what fails, and a time that is
//! the world's.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::op::{Op, RawMetadata};
use crate::sim::numbers;
use crate::sim::world::{Id, Thing, Try, World};
use crate::sys::{landed, perform};

/// An open file.
pub(super) struct File {
    /// The number of its name's file; directories have none.
    inode: Option<u64>,
    /// The directory's path.
    path: Vec<u8>,
}

struct Inode {
    memory: OwnedFd,
    number: u64,
    mode: libc::mode_t,
}

/// All files, by their path. A directory is there if a file in it is, or if it was opened as one.
#[derive(Default)]
pub(super) struct Files {
    by_path: BTreeMap<Vec<u8>, Inode>,
    last_number: u64,
}

/// The longest path and the longest name, in bytes, as Linux has them.
const LONGEST_PATH: usize = 4095;
const LONGEST_NAME: usize = 255;

impl Files {
    /// The file of this number.
    fn inode(&self, number: u64) -> Option<&Inode> {
        self.by_path.values().find(|inode| inode.number == number)
    }

    fn is_directory(&self, path: &[u8]) -> bool {
        let mut inside = path.to_vec();
        inside.push(b'/');
        path.is_empty()
            || self
                .by_path
                .range(inside.clone()..)
                .next()
                .is_some_and(|(name, _)| name.starts_with(&inside))
    }

    /// How many bytes all files have together.
    fn bytes(&self) -> u64 {
        self.by_path.values().map(|inode| size(inode.memory.as_raw_fd())).sum()
    }
}

fn size(fd: RawFd) -> u64 {
    numbers::stat(fd).map_or(0, |stat| stat.st_size as u64)
}

impl World {
    /// # Safety
    ///
    /// That of [`Engine::submit`](crate::Engine::submit), for an open.
    pub(super) unsafe fn open_file(&mut self, op: &Op) -> i32 {
        let Op::Open { dir, path, flags, mode } = *op else { return -libc::EINVAL };
        // SAFETY: the path is lent and ends with a NUL.
        let path = unsafe { CStr::from_ptr(path) }.to_bytes();
        self.open_path(dir, path, flags, mode).unwrap_or_else(|error| error)
    }

    fn open_path(
        &mut self,
        dir: RawFd,
        path: &[u8],
        flags: i32,
        mode: libc::mode_t,
    ) -> Result<i32, i32> {
        if self.random.happens(self.config.faults.io_error) {
            return Err(-libc::EIO);
        }
        let (full, names_directory) = self.resolve(dir, path)?;
        self.has_descriptor()?;
        let wants_directory = flags & libc::O_DIRECTORY != 0;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        if let Some(inode) = self.files.by_path.get(&full) {
            if flags & libc::O_CREAT != 0 && flags & libc::O_EXCL != 0 {
                return Err(-libc::EEXIST);
            }
            if wants_directory || names_directory {
                return Err(-libc::ENOTDIR);
            }
            let (fd, number) = (reopen(inode.memory.as_raw_fd(), flags)?, inode.number);
            return Ok(self.open_as(fd, File { inode: Some(number), path: full }));
        }
        if wants_directory || self.files.is_directory(&full) {
            if writes || flags & libc::O_CREAT != 0 {
                return Err(-libc::EISDIR);
            }
            let fd = open_real(c"/", libc::O_RDONLY | libc::O_DIRECTORY)?;
            return Ok(self.open_as(fd, File { inode: None, path: full }));
        }
        if flags & libc::O_CREAT == 0 {
            return Err(-libc::ENOENT);
        }
        if names_directory {
            return Err(-libc::EISDIR);
        }
        let memory = memory_file()?;
        let fd = reopen(memory.as_raw_fd(), flags)?;
        self.files.last_number += 1;
        let number = self.files.last_number;
        let mode = mode & 0o7777;
        self.files.by_path.insert(full.clone(), Inode { memory, number, mode });
        Ok(self.open_as(fd, File { inode: Some(number), path: full }))
    }

    fn open_as(&mut self, fd: RawFd, file: File) -> i32 {
        let id = self.insert(Thing::File(file));
        self.open(fd, id);
        fd
    }

    /// The full path, without `.`, `..` and a final slash, and whether there was a final slash.
    /// Every directory exists, but nothing is below a file.
    fn resolve(&self, dir: RawFd, path: &[u8]) -> Result<(Vec<u8>, bool), i32> {
        if path.is_empty() {
            return Err(-libc::ENOENT);
        }
        if path.len() > LONGEST_PATH {
            return Err(-libc::ENAMETOOLONG);
        }
        let mut full = Vec::new();
        if path[0] != b'/' && dir != libc::AT_FDCWD {
            let id = self.object_of(dir).ok_or(-libc::EBADF)?;
            match self.peek_file(id) {
                Some(File { inode: None, path }) => full.clone_from(path),
                _ => return Err(-libc::ENOTDIR),
            }
        }
        for name in path.split(|&byte| byte == b'/') {
            if name.len() > LONGEST_NAME {
                return Err(-libc::ENAMETOOLONG);
            }
            if name.is_empty() || name == b"." {
                continue;
            }
            if self.files.by_path.contains_key(&full) {
                return Err(-libc::ENOTDIR);
            }
            if name == b".." {
                let parent = full.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
                full.truncate(parent);
            } else {
                full.push(b'/');
                full.extend_from_slice(name);
            }
        }
        Ok((full, path.ends_with(b"/")))
    }

    /// # Safety
    ///
    /// That of [`Engine::submit`](crate::Engine::submit).
    pub(super) unsafe fn transfer_file(&mut self, id: Id, attempt: &Try<'_>) -> i32 {
        if self.random.happens(self.config.faults.io_error) {
            return -libc::EIO;
        }
        let mut op = *attempt.op;
        if let Op::Read { len, .. } | Op::Write { len, .. } = &mut op {
            *len = (*len).min(attempt.most);
        }
        if let (Op::Write { fd, len, offset, .. }, Some(limit)) = (op, self.config.disk_bytes)
            && let Some(number) = self.peek_file(id).and_then(|file| file.inode)
        {
            let free = limit.saturating_sub(self.files.bytes());
            let there = self.files.inode(number).map_or(0, |inode| size(inode.memory.as_raw_fd()));
            let from = if offset == Op::CURRENT_POSITION { position(fd) } else { offset };
            // What overwrites costs nothing; a hole costs as much as bytes.
            let end = there.max(from.saturating_add(len as u64));
            if end - there > free {
                let fits = (there + free).saturating_sub(from);
                if fits == 0 {
                    return -libc::ENOSPC;
                }
                if let Op::Write { len, .. } = &mut op {
                    *len = (*len).min(fits as usize);
                }
            }
        }
        // SAFETY: the caller's promise; the length has only become less. Memory never blocks.
        unsafe { perform(&op, true) }
    }

    /// # Safety
    ///
    /// `out` is lent for writing.
    pub(super) unsafe fn metadata(&mut self, fd: RawFd, out: *mut RawMetadata) -> i32 {
        let Some(id) = self.object_of(fd) else { return -libc::EBADF };
        // SAFETY: the caller's promise.
        let res = unsafe { perform(&Op::Metadata { fd, out }, true) };
        if res == 0 {
            let inode = self.peek_file(id).and_then(|file| self.files.inode(file.inode?));
            // SAFETY: as above, and the kernel has filled it in.
            unsafe { make_reproducible(&mut *out, id, inode) };
        }
        res
    }
}

/// Replaces what differs from run to run: times are the beginning of 1970, numbers the world's.
#[cfg(target_os = "linux")]
fn make_reproducible(metadata: &mut RawMetadata, id: Id, inode: Option<&Inode>) {
    // SAFETY: zero is a value of this structure of integers.
    let never: libc::statx_timestamp = unsafe { std::mem::zeroed() };
    metadata.stx_atime = never;
    metadata.stx_btime = never;
    metadata.stx_ctime = never;
    metadata.stx_mtime = never;
    metadata.stx_ino = inode.map_or(id, |inode| inode.number);
    metadata.stx_dev_major = 0;
    metadata.stx_dev_minor = 0;
    if let Some(inode) = inode {
        metadata.stx_nlink = 1;
        metadata.stx_mode = (libc::S_IFREG | inode.mode) as u16;
    }
}

/// Replaces what differs from run to run: times are the beginning of 1970, numbers the world's.
#[cfg(not(target_os = "linux"))]
fn make_reproducible(metadata: &mut RawMetadata, id: Id, inode: Option<&Inode>) {
    metadata.st_atime = 0;
    metadata.st_mtime = 0;
    metadata.st_ctime = 0;
    metadata.st_ino = inode.map_or(id, |inode| inode.number) as _;
    metadata.st_dev = 0;
    if let Some(inode) = inode {
        metadata.st_nlink = 1;
        metadata.st_mode = libc::S_IFREG | inode.mode;
    }
}

fn position(fd: RawFd) -> u64 {
    // SAFETY: lseek takes integers.
    unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) }.max(0) as u64
}

fn open_real(path: &CStr, flags: i32) -> Result<RawFd, i32> {
    // SAFETY: the path ends with a NUL and is borrowed for the call.
    match unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) } {
        fd @ 0.. => Ok(fd),
        res => Err(landed(res as isize)),
    }
}

/// A file without a name.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
fn memory_file() -> Result<OwnedFd, i32> {
    // SAFETY: the name ends with a NUL.
    match unsafe { libc::memfd_create(c"kapok-sim".as_ptr(), libc::MFD_CLOEXEC) } {
        // SAFETY: a descriptor that was just made and is nobody else's.
        fd @ 0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        res => Err(landed(res as isize)),
    }
}

/// A file that has lost its name.
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
fn memory_file() -> Result<OwnedFd, i32> {
    let mut name = *b"/tmp/kapok-sim-XXXXXX\0";
    // SAFETY: a NUL-terminated template that mkstemp writes to, then its name is unlinked; the
    // descriptor was just made and is nobody else's.
    unsafe {
        match libc::mkstemp(name.as_mut_ptr().cast()) {
            fd @ 0.. => {
                libc::unlink(name.as_ptr().cast());
                Ok(OwnedFd::from_raw_fd(fd))
            }
            res => Err(landed(res as isize)),
        }
    }
}

/// Another description of a memory file.
fn reopen(memory: RawFd, flags: i32) -> Result<RawFd, i32> {
    let flags = flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW);
    let path = if cfg!(target_os = "linux") { "/proc/self/fd" } else { "/dev/fd" };
    let path = CString::new(format!("{path}/{memory}")).map_err(|_| -libc::EINVAL)?;
    open_real(&path, flags)
}
