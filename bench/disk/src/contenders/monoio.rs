//! monoio: tasks on a ring, with owned buffers.

use std::io;
use std::rc::Rc;

use kapok_lab::disk::Workload;
use monoio::fs::File;
use monoio::{IoUringDriver, RuntimeBuilder};

use crate::job::{Job, Meter};

pub(crate) fn run(job: &Job, meter: &Meter) -> io::Result<()> {
    let mut runtime = RuntimeBuilder::<IoUringDriver>::new().with_entries(1024).build()?;
    runtime.block_on(async {
        let file = Rc::new(File::from_std(job.open()?)?);
        let tasks: Vec<_> = (0..job.depth)
            .map(|worker| monoio::spawn(work(job.clone(), meter.clone(), worker, Rc::clone(&file))))
            .collect();
        for task in tasks {
            task.await?;
        }
        Ok(())
    })
}

async fn work(job: Job, meter: Meter, worker: usize, file: Rc<File>) -> io::Result<()> {
    let (mut course, mut buffer) = (job.course(worker), vec![0u8; job.block]);
    let workload = job.workload();
    loop {
        let offset = course.draw();
        if workload.writes() {
            let (moved, back) = file.write_at(buffer, offset).await;
            buffer = back;
            course.check_len(moved?);
            if workload == Workload::Fsync {
                file.sync_data().await?;
            }
        } else {
            let (moved, back) = file.read_at(buffer, offset).await;
            buffer = back;
            course.check(&buffer, moved?, offset);
        }
        if !meter.more(worker, 1) {
            return Ok(());
        }
    }
}
