//! tokio: what it has for files, and the pool under its tasks.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use kapok::pool::{OpenFile, Via};
use kapok_lab::disk::Workload;
use tokio::runtime::Builder;
use tokio::task::{LocalSet, spawn_blocking, spawn_local};

use crate::job::{Job, Meter};

/// What `tokio::fs` does: each call on a thread that may block, one task for each in flight.
pub(crate) fn blocking(job: &Job, meter: &Meter) -> io::Result<()> {
    let is_nop = job.workload() == Workload::Nop;
    let file = if is_nop { None } else { Some(Arc::new(job.open()?)) };
    each(job, |worker| {
        let (job, meter, file) = (job.clone(), meter.clone(), file.clone());
        async move {
            let (mut course, mut buffer) = (job.course(worker), vec![0; job.block]);
            let workload = job.workload();
            loop {
                let (offset, file) = (course.draw(), file.clone());
                let call = spawn_blocking(move || -> io::Result<(usize, Vec<u8>)> {
                    let Some(file) = file else { return Ok((buffer.len(), buffer)) };
                    let moved = if workload.writes() {
                        file.write_at(&buffer, offset)?
                    } else {
                        file.read_at(&mut buffer, offset)?
                    };
                    if workload == Workload::Fsync {
                        file.sync_data()?;
                    }
                    Ok((moved, buffer))
                });
                let (moved, back) = call.await.map_err(io::Error::other)??;
                buffer = back;
                if workload == Workload::Nop {
                } else {
                    course.check(&buffer, moved, offset);
                }
                if !meter.more(worker, 1) {
                    return Ok(());
                }
            }
        }
    })
}

/// The pool, from one task for each in flight.
pub(crate) fn pool(job: &Job, meter: &Meter, via: Via) -> io::Result<()> {
    let pool = super::pool(&job.tuning, via)?;
    let is_nop = job.workload() == Workload::Nop;
    let file = if is_nop { None } else { Some(OpenFile::from(job.open()?)) };
    each(job, |worker| {
        super::kapok::go(job.clone(), meter.clone(), worker, pool.clone(), file.clone())
    })
}

/// The same pool with its ring driven by the runtime's own thread.
pub(crate) fn driven(job: &Job, meter: &Meter) -> io::Result<()> {
    let (pool, driver) = super::builder(&job.tuning, Via::Auto)?.build_driven()?;
    let is_nop = job.workload() == Workload::Nop;
    let file = if is_nop { None } else { Some(OpenFile::from(job.open()?)) };
    let driver = std::cell::Cell::new(Some(driver));
    each(job, |worker| {
        if let Some(driver) = driver.take() {
            drop(spawn_local(kapok_tokio::drive(driver)));
        }
        super::kapok::go(job.clone(), meter.clone(), worker, pool.clone(), file.clone())
    })
}

fn each<F>(job: &Job, work: impl Fn(usize) -> F) -> io::Result<()>
where
    F: Future<Output = io::Result<()>> + 'static,
{
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let set = LocalSet::new();
    set.block_on(&runtime, async {
        let tasks: Vec<_> = (0..job.depth).map(|worker| spawn_local(work(worker))).collect();
        for task in tasks {
            task.await.map_err(io::Error::other)??;
        }
        Ok(())
    })
}
