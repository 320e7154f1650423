//! Threads that block: a system call each time.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::thread;

use kapok::pool::{OpenFile, Via};
use kapok_lab::disk::Workload;

use crate::job::{Job, Meter};

/// One thread for each operation in flight, pread(2) and pwrite(2).
pub(crate) fn run(job: &Job, meter: &Meter) -> io::Result<()> {
    let file = job.open()?;
    each(job, |worker| {
        let (mut course, mut buffer) = (job.course(worker), vec![0; job.block]);
        loop {
            let offset = course.draw();
            match job.workload() {
                Workload::RandWrite | Workload::Dsync => {
                    course.check_len(file.write_at(&buffer, offset)?)
                }
                Workload::Fsync => {
                    course.check_len(file.write_at(&buffer, offset)?);
                    file.sync_data()?;
                }
                _ => {
                    let moved = file.read_at(&mut buffer, offset)?;
                    course.check(&buffer, moved, offset);
                }
            }
            if !meter.more(worker, 1) {
                return Ok(());
            }
        }
    })
}

/// The page cache without waiting, on one thread: preadv2(2) with `RWF_NOWAIT`.
pub(crate) fn nowait(job: &Job, meter: &Meter) -> io::Result<()> {
    let file = job.open()?;
    let (mut course, mut buffer) = (job.course(0), vec![0u8; job.block]);
    loop {
        let offset = course.draw();
        let part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: one part, of the buffer, which outlives the call.
        let moved = unsafe {
            libc::preadv2(file.as_raw_fd(), &part, 1, offset as libc::off_t, libc::RWF_NOWAIT)
        };
        // What others have pushed out of the cache.
        let is_miss = moved < 0 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock;
        let moved = match moved {
            0.. => moved as usize,
            _ if is_miss => file.read_at(&mut buffer, offset)?,
            _ => return Err(io::Error::last_os_error()),
        };
        course.check(&buffer, moved, offset);
        if !meter.more(0, 1) {
            return Ok(());
        }
    }
}

/// The pool, from threads that block for each operation.
pub(crate) fn pool(job: &Job, meter: &Meter, via: Via) -> io::Result<()> {
    let pool = super::pool(&job.tuning, via)?;
    let is_nop = job.workload() == Workload::Nop;
    let file = if is_nop { None } else { Some(OpenFile::from(job.open()?)) };
    each(job, |worker| super::kapok::work(job, meter, worker, &pool, file.as_ref()))
}

fn each(job: &Job, work: impl Fn(usize) -> io::Result<()> + Sync) -> io::Result<()> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> =
            (0..job.depth).map(|worker| scope.spawn(move || work(worker))).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().map_err(|_| io::Error::other("a worker panicked"))?
        })
    })
}
