//! What a disk takes, past the page cache and from it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::{Subject, seek, try_each, try_each_cpu};

pub(super) const BLOCK: usize = 4_096;
const MIB: usize = 1 << 20;
/// The file's size: more than a disk's own cache hides of a few hundred reads.
const BYTES: usize = 64 * MIB;

/// The file that is read and written, removed when the last line is done with it unless it was given.
struct Scratch {
    path: PathBuf,
    ours: bool,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Scratch {
    /// Written in full: a hole would be read without a disk.
    fn fill(&self) -> io::Result<()> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&self.path)
            .map_err(|error| at(&self.path, error))?;
        let written = file.metadata()?;
        if written.len() >= BYTES as u64
            && std::os::unix::fs::MetadataExt::blocks(&written) * 512 >= BYTES as u64
        {
            return Ok(());
        }
        let data: Vec<u8> = (0..MIB).map(|index| (index / 7) as u8).collect();
        for place in 0..BYTES / MIB {
            file.write_all_at(&data, (place * MIB) as u64)
                .map_err(|error| at(&self.path, error))?;
        }
        file.sync_all()
    }

    fn open(&self, flags: i32) -> io::Result<File> {
        self.fill()?;
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(&self.path)
            .map_err(|error| at(&self.path, error))
    }
}

fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

pub(super) fn subjects(file: Option<PathBuf>, virtual_machine: bool) -> Vec<Subject> {
    let ours = file.is_none();
    let path = file.unwrap_or_else(|| format!("kapok-latency-{}.tmp", std::process::id()).into());
    let scratch = Rc::new(Scratch { path, ours });
    let (random, sequential, cached, synced) =
        (Rc::clone(&scratch), Rc::clone(&scratch), Rc::clone(&scratch), scratch);
    let where_from = format!("of {}", random.path.display());
    let seek = seek::subject(&random.path, virtual_machine);
    vec![
        Subject::new(
            "cached file read, 4 KiB",
            None,
            "pread(2) of a page that is in the page cache",
            move || {
                let file = cached.open(0)?;
                // How fast a page is copied depends on where in a page it goes.
                let mut block = Aligned::new(BLOCK);
                Ok(Box::new(move || {
                    let _keep = &cached;
                    try_each_cpu(2_000, || file.read_exact_at(block.bytes(), 0))
                }))
            },
        ),
        Subject::new(
            "disk read, random 4 KiB",
            100_000.0,
            format!("pread(2) {where_from} past the page cache (O_DIRECT), at random places"),
            move || {
                let file = random.open(libc::O_DIRECT)?;
                let mut block = Aligned::new(BLOCK);
                let mut state = 1_u64;
                Ok(Box::new(move || {
                    let _keep = &random;
                    try_each(20, || {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let place = (state >> 33) % (BYTES / BLOCK) as u64;
                        file.read_exact_at(block.bytes(), place * BLOCK as u64)
                    })
                }))
            },
        ),
        Subject::new(
            "disk read, next 1 MiB",
            1_000_000.0,
            format!("pread(2) {where_from} past the page cache (O_DIRECT), one after the other"),
            move || {
                let file = sequential.open(libc::O_DIRECT)?;
                let mut block = Aligned::new(MIB);
                let mut place = 0;
                Ok(Box::new(move || {
                    let _keep = &sequential;
                    try_each(4, || {
                        place = (place + MIB) % BYTES;
                        file.read_exact_at(block.bytes(), place as u64)
                    })
                }))
            },
        ),
        seek,
        Subject::new(
            "fsync",
            None,
            format!("a write of 4 KiB {where_from}, and fdatasync(2)"),
            move || {
                let file = synced.open(0)?;
                let block = vec![7; BLOCK];
                Ok(Box::new(move || {
                    let _keep = &synced;
                    try_each(8, || {
                        file.write_all_at(&block, 0)?;
                        file.sync_data()
                    })
                }))
            },
        ),
    ]
}

/// Memory at the beginning of a page, as O_DIRECT wants it.
pub(super) struct Aligned {
    memory: Vec<u8>,
    from: usize,
    length: usize,
}

impl Aligned {
    pub(super) fn new(length: usize) -> Aligned {
        let memory = vec![0; length + BLOCK];
        let from = memory.as_ptr().align_offset(BLOCK);
        Aligned { memory, from, length }
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.from..self.from + self.length]
    }
}
