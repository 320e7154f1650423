//! glommio: its files for direct I/O, with its own buffers, and its files through the page cache.

use std::io;
use std::rc::Rc;

use glommio::io::{BufferedFile, DmaFile, OpenOptions};
use glommio::{LocalExecutorBuilder, Placement};
use kapok_lab::disk::Workload;

use crate::job::{Job, Meter};

pub(crate) fn run(job: &Job, meter: &Meter) -> io::Result<()> {
    let executor = LocalExecutorBuilder::new(Placement::Unbound).make().map_err(failed)?;
    executor.run(async {
        if job.workload().is_direct() {
            let mut options = OpenOptions::new();
            options.read(true).write(job.workload().writes());
            options.custom_flags(job.workload().open_flags(true));
            let file = Rc::new(options.dma_open(&job.file).await.map_err(failed)?);
            each(job, |worker| direct(job.clone(), meter.clone(), worker, Rc::clone(&file))).await
        } else {
            let mut options = OpenOptions::new();
            options.read(true).write(job.workload().writes());
            let file = Rc::new(options.buffered_open(&job.file).await.map_err(failed)?);
            each(job, |worker| cached(job.clone(), meter.clone(), worker, Rc::clone(&file))).await
        }
    })
}

fn failed(error: glommio::GlommioError<()>) -> io::Error {
    io::Error::other(error.to_string())
}

async fn each<F>(job: &Job, work: impl Fn(usize) -> F) -> io::Result<()>
where
    F: Future<Output = io::Result<()>> + 'static,
{
    let tasks: Vec<_> =
        (0..job.depth).map(|worker| glommio::spawn_local(work(worker)).detach()).collect();
    for task in tasks {
        task.await.ok_or_else(|| io::Error::other("a task was cancelled"))??;
    }
    Ok(())
}

async fn direct(job: Job, meter: Meter, worker: usize, file: Rc<DmaFile>) -> io::Result<()> {
    let mut course = job.course(worker);
    loop {
        let offset = course.draw();
        if job.workload().writes() {
            let buffer = file.alloc_dma_buffer(job.block);
            course.check_len(file.write_at(buffer, offset).await.map_err(failed)?);
        } else {
            let bytes = file.read_at_aligned(offset, job.block).await.map_err(failed)?;
            course.check(&bytes, bytes.len(), offset);
        }
        if !meter.more(worker, 1) {
            return Ok(());
        }
    }
}

async fn cached(job: Job, meter: Meter, worker: usize, file: Rc<BufferedFile>) -> io::Result<()> {
    let mut course = job.course(worker);
    loop {
        let offset = course.draw();
        if job.workload() == Workload::Fsync {
            // It takes the buffer for good.
            let moved = file.write_at(vec![0; job.block], offset).await.map_err(failed)?;
            course.check_len(moved);
            file.fdatasync().await.map_err(failed)?;
        } else {
            let bytes = file.read_at(offset, job.block).await.map_err(failed)?;
            course.check(&bytes, bytes.len(), offset);
        }
        if !meter.more(worker, 1) {
            return Ok(());
        }
    }
}
