//! The pool as a whole, with one of its numbers or choices changed.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use kapok::pool::{Balance, Buffers, OpenFile, Pool, Via};
use kapok_lab::disk::pattern::Seed;
use tokio::task::LocalSet;

use crate::{Case, Way};

const BLOCK: usize = 4096;
const BYTES: u64 = 64 << 20;

pub(crate) fn cases(directory: &Path) -> io::Result<Vec<Case>> {
    Ok(vec![channels()?, buffers(directory)?, placements(directory)?])
}

/// Runs `each` with its number in so many tasks of tokio's, and takes the time.
fn in_tasks<F>(tasks: usize, each: impl Fn(usize) -> F) -> io::Result<Duration>
where
    F: Future<Output = io::Result<()>> + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let set = LocalSet::new();
    let start = Instant::now();
    set.block_on(&runtime, async {
        let tasks: Vec<_> = (0..tasks).map(|at| tokio::task::spawn_local(each(at))).collect();
        for task in tasks {
            task.await.map_err(io::Error::other)??;
        }
        Ok(start.elapsed())
    })
}

fn channels() -> io::Result<Case> {
    const TASKS: u64 = 128;
    let of = |places: usize| -> io::Result<Way> {
        let pool = Pool::builder().channel(places).via(Via::Thread).build()?;
        Ok(Box::new(move |count| {
            in_tasks(TASKS as usize, |_| {
                let pool = pool.clone();
                async move {
                    for _ in 0..count / TASKS {
                        pool.nop().await?;
                    }
                    Ok(())
                }
            })
        }))
    };
    Ok(Case {
        name: "a channel of so many places: nothing, 128 in flight, through an I/O thread",
        count: 128_000,
        ways: vec![("1,024", of(1024)?), ("64", of(64)?), ("8", of(8)?)],
    })
}

/// A file of its own, open as it is asked for.
fn open(directory: &Path, name: &str, flags: i32) -> io::Result<File> {
    std::fs::create_dir_all(directory)?;
    let path = directory.join(name);
    if std::fs::metadata(&path).map_or(0, |metadata| metadata.len()) != BYTES {
        let _ = std::fs::remove_file(&path);
        kapok_lab::disk::make(&path, BYTES, Seed::new(0), |_| {})?;
    }
    File::options().read(true).custom_flags(flags).open(path)
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % (BYTES / BLOCK as u64) * BLOCK as u64
}

fn buffers(directory: &Path) -> io::Result<Case> {
    const TASKS: usize = 32;
    let of = |registered: bool, flags: i32| -> io::Result<Way> {
        let buffers = Buffers::new(TASKS as u32, BLOCK)?;
        let builder = Pool::builder().via(Via::Thread);
        let pool = if registered { builder.buffers(buffers.clone()) } else { builder }.build()?;
        if registered && !pool.has_registered(&buffers) {
            return Err(io::Error::other("the ring takes no buffers"));
        }
        let file = OpenFile::from(open(directory, "whole", flags)?);
        Ok(Box::new(move |count| {
            in_tasks(TASKS, |at| {
                let (pool, file, buffers) = (pool.clone(), file.clone(), buffers.clone());
                async move {
                    let mut state = 0x2545_f491_4f6c_dd1d ^ (at as u64) << 7;
                    let mut lease = buffers.lease().await;
                    for _ in 0..count / TASKS as u64 {
                        let (moved, back) = pool.read_at(&file, lease, random(&mut state)).await;
                        lease = back;
                        assert_eq!(moved?, BLOCK);
                    }
                    Ok(())
                }
            })
        }))
    };
    Ok(Case {
        name: "4 KiB into a buffer of a pool of them, 32 in flight, through an I/O thread",
        count: 6_400,
        ways: vec![
            ("direct, registered", of(true, libc::O_DIRECT)?),
            ("direct, plain", of(false, libc::O_DIRECT)?),
            ("cached, registered", of(true, 0)?),
            ("cached, plain", of(false, 0)?),
        ],
    })
}

fn placements(directory: &Path) -> io::Result<Case> {
    const TASKS: usize = 32;
    const FILES: usize = 8;
    let of = |balance: Balance| -> io::Result<Way> {
        let pool = Pool::builder().threads(2).balance(balance).via(Via::Thread).build()?;
        let files: Rc<[OpenFile]> = (0..FILES)
            .map(|_| open(directory, "whole", 0).map(OpenFile::from))
            .collect::<io::Result<_>>()?;
        Ok(Box::new(move |count| {
            in_tasks(TASKS, |at| {
                let (pool, files) = (pool.clone(), Rc::clone(&files));
                async move {
                    let mut state = 0x2545_f491_4f6c_dd1d ^ (at as u64) << 7;
                    let mut buffer = vec![0; BLOCK];
                    for _ in 0..count / TASKS as u64 {
                        let file = &files[at % FILES];
                        let (moved, back) = pool.read_at(file, buffer, random(&mut state)).await;
                        buffer = back;
                        assert_eq!(moved?, BLOCK);
                    }
                    Ok(())
                }
            })
        }))
    };
    Ok(Case {
        name: "placement: cached 4 KiB of 8 open files, 32 in flight, over two I/O threads",
        count: 32_000,
        ways: vec![
            ("least in flight", of(Balance::LeastInFlight)?),
            ("two choices", of(Balance::TwoChoices)?),
            ("round robin", of(Balance::RoundRobin)?),
            ("by file", of(Balance::ByFile)?),
        ],
    })
}
