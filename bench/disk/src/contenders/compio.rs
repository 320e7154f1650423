//! compio: tasks on a ring, with owned buffers.

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};

use compio::BufResult;
use compio::fs::File;
use compio::io::{AsyncReadAt, AsyncWriteAt};
use compio::runtime::Runtime;
use kapok_lab::disk::Workload;

use crate::job::{Job, Meter};

pub(crate) fn run(job: &Job, meter: &Meter) -> io::Result<()> {
    Runtime::new()?.block_on(async {
        // SAFETY: the descriptor was another owner's until here, and is a file's.
        let file = unsafe { File::from_raw_fd(job.open()?.into_raw_fd()) };
        let tasks: Vec<_> = (0..job.depth)
            .map(|worker| {
                compio::runtime::spawn(work(job.clone(), meter.clone(), worker, file.clone()))
            })
            .collect();
        for task in tasks {
            task.await.map_err(|_| io::Error::other("a task panicked"))??;
        }
        Ok(())
    })
}

async fn work(job: Job, meter: Meter, worker: usize, mut file: File) -> io::Result<()> {
    let (mut course, mut buffer) = (job.course(worker), vec![0u8; job.block]);
    let workload = job.workload();
    loop {
        let offset = course.draw();
        if workload.writes() {
            let BufResult(moved, back) = file.write_at(buffer, offset).await;
            buffer = back;
            course.check_len(moved?);
            if workload == Workload::Fsync {
                file.sync_data().await?;
            }
        } else {
            let BufResult(moved, back) = file.read_at(buffer, offset).await;
            buffer = back;
            course.check(&buffer, moved?, offset);
        }
        if !meter.more(worker, 1) {
            return Ok(());
        }
    }
}
