//! tokio-uring: tokio's current-thread runtime, which waits for a ring's descriptor.

use std::io;
use std::rc::Rc;

use kapok_lab::disk::Workload;
use tokio_uring::fs::File;

use crate::job::{Job, Meter};

pub(crate) fn run(job: &Job, meter: &Meter) -> io::Result<()> {
    let entries = (job.depth as u32 * 2).max(8).next_power_of_two();
    let file = match job.workload() {
        Workload::Nop => None,
        _ => Some(Rc::new(File::from_std(job.open()?))),
    };
    let mut builder = tokio_uring::builder();
    builder.entries(entries).start(async {
        let tasks: Vec<_> = (0..job.depth)
            .map(|worker| {
                tokio_uring::spawn(work(job.clone(), meter.clone(), worker, file.clone()))
            })
            .collect();
        for task in tasks {
            task.await.map_err(io::Error::other)??;
        }
        Ok(())
    })
}

async fn work(job: Job, meter: Meter, worker: usize, file: Option<Rc<File>>) -> io::Result<()> {
    let (mut course, mut buffer) = (job.course(worker), vec![0; job.block]);
    let workload = job.workload();
    loop {
        let offset = course.draw();
        match &file {
            None => tokio_uring::no_op().await?,
            Some(file) if workload.writes() => {
                let (moved, back) = file.write_at(buffer, offset).submit().await;
                buffer = back;
                course.check_len(moved?);
                if workload == Workload::Fsync {
                    file.sync_data().await?;
                }
            }
            Some(file) => {
                let (moved, back) = file.read_at(buffer, offset).await;
                buffer = back;
                course.check(&buffer, moved?, offset);
            }
        }
        if !meter.more(worker, 1) {
            return Ok(());
        }
    }
}
