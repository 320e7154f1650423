//! What a try in the caller costs when the page is not there.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use kapok_lab::disk::pattern::Seed;

use crate::Case;

const BLOCK: usize = 4096;
const BYTES: u64 = 256 << 20;

pub(crate) fn case(directory: &Path) -> io::Result<Case> {
    std::fs::create_dir_all(directory)?;
    let path = directory.join("misses");
    if std::fs::metadata(&path).map_or(0, |metadata| metadata.len()) != BYTES {
        let _ = std::fs::remove_file(&path);
        kapok_lab::disk::make(&path, BYTES, Seed::new(0), |_| {})?;
    }
    let open = || File::open(&path);
    let (one, two, three, four) = (open()?, open()?, open()?, open()?);
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % (BYTES / BLOCK as u64) * BLOCK as u64
    };
    let mut draw = random;
    Ok(Case {
        name: "4 KiB of a file that is not in the page cache",
        count: 300,
        ways: vec![
            ("pread(2)", Box::new(move |count| each(&one, count, &mut random, read))),
            (
                "a try (RWF_NOWAIT), then pread(2)",
                Box::new(move |count| {
                    each(&two, count, &mut draw, |file, offset, buffer| {
                        if !attempt(file, offset, buffer)? {
                            read(file, offset, buffer)?;
                        }
                        Ok(())
                    })
                }),
            ),
            (
                "the try alone: a miss",
                Box::new(move |count| {
                    each(&three, count, &mut draw, |file, offset, buffer| {
                        attempt(file, offset, buffer).map(drop)
                    })
                }),
            ),
            (
                "the try alone, of a page that is there",
                Box::new(move |count| {
                    let mut buffer = vec![0; BLOCK];
                    read(&four, 0, &mut buffer)?;
                    let start = Instant::now();
                    for _ in 0..count {
                        attempt(&four, 0, &mut buffer)?;
                    }
                    Ok(start.elapsed())
                }),
            ),
        ],
    })
}

fn read(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    file.read_exact_at(buffer, offset)
}

/// Whether it was there.
fn attempt(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
    let part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: one part, of the buffer, which outlives the call.
    let res = unsafe {
        libc::preadv2(file.as_raw_fd(), &part, 1, offset as libc::off_t, libc::RWF_NOWAIT)
    };
    if res >= 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        error => Err(error),
    }
}

/// Of pages that were thrown out before; the time of throwing out is not counted.
fn each(
    file: &File,
    count: u64,
    random: &mut impl FnMut() -> u64,
    mut one: impl FnMut(&File, u64, &mut [u8]) -> io::Result<()>,
) -> io::Result<Duration> {
    // SAFETY: advice on a descriptor that is open. Random, so that one read does not bring others.
    unsafe {
        libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED);
        libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM);
    }
    let mut buffer = vec![0; BLOCK];
    let start = Instant::now();
    for _ in 0..count {
        one(file, random(), &mut buffer)?;
    }
    Ok(start.elapsed())
}
