//! A ring by hand, with the file and the buffers registered: nothing between it and the kernel. As
//! `bare ring/plain` with neither registered.

use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, squeue, types};
use kapok_lab::disk::Workload;

use crate::job::{Course, Job, Meter};

pub(crate) fn run(job: &Job, meter: &Meter) -> io::Result<()> {
    let workload = job.workload();
    let registers = job.tuning != "plain";
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .build((job.depth as u32 * 2).max(8).next_power_of_two())?;
    let mut buffers: Vec<Vec<u8>> = (0..job.depth).map(|_| vec![0; job.block]).collect();
    let mut courses: Vec<Course> = (0..job.depth).map(|at| job.course(at)).collect();
    let mut offsets = vec![0; job.depth];
    let file = if workload == Workload::Nop { None } else { Some(job.open()?) };
    if let Some(file) = file.as_ref().filter(|_| registers) {
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        let parts: Vec<libc::iovec> = buffers
            .iter_mut()
            .map(|buffer| libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: buffer.len(),
            })
            .collect();
        // SAFETY: the buffers outlive the ring's operations: all are awaited below.
        unsafe { ring.submitter().register_buffers(&parts)? };
    }
    let raw = file.as_ref().map_or(-1, AsRawFd::as_raw_fd);
    let starts: Vec<*mut u8> = buffers.iter_mut().map(Vec::as_mut_ptr).collect();
    let queue = |ring: &mut IoUring, at: usize, courses: &mut [Course], offsets: &mut [u64]| {
        let (start, len) = (starts[at], job.block as u32);
        let offset = courses[at].draw();
        offsets[at] = offset;
        let data = at as u64;
        let (file, index) = (types::Fixed(0), at as u16);
        let mut push = |entry: &squeue::Entry| {
            // SAFETY: the buffer is the operation's until it has landed, and the queue has room for
            // two of each.
            unsafe { ring.submission().push(entry) }.expect("room in the queue");
        };
        let raw = types::Fd(raw);
        match workload {
            Workload::RandRead | Workload::SeqRead | Workload::CachedRead if !registers => {
                push(&opcode::Read::new(raw, start, len).offset(offset).build().user_data(data))
            }
            Workload::RandWrite | Workload::Dsync if !registers => {
                push(&opcode::Write::new(raw, start, len).offset(offset).build().user_data(data))
            }
            Workload::Nop => push(&opcode::Nop::new().build().user_data(data)),
            Workload::RandRead | Workload::SeqRead | Workload::CachedRead => push(
                &opcode::ReadFixed::new(file, start, len, index)
                    .offset(offset)
                    .build()
                    .user_data(data),
            ),
            Workload::RandWrite | Workload::Dsync => push(
                &opcode::WriteFixed::new(file, start, len, index)
                    .offset(offset)
                    .build()
                    .user_data(data),
            ),
            Workload::Fsync => {
                push(
                    &opcode::WriteFixed::new(file, start, len, index)
                        .offset(offset)
                        .build()
                        .flags(squeue::Flags::IO_LINK)
                        .user_data(u64::MAX),
                );
                push(
                    &opcode::Fsync::new(file)
                        .flags(types::FsyncFlags::DATASYNC)
                        .build()
                        .user_data(data),
                );
            }
        }
    };
    for at in 0..job.depth {
        queue(&mut ring, at, &mut courses, &mut offsets);
    }
    let mut in_flight = job.depth;
    let mut goes_on = true;
    let mut landed = Vec::with_capacity(job.depth * 2);
    while in_flight > 0 {
        ring.submit_and_wait(1)?;
        landed.extend(ring.completion().map(|entry| (entry.user_data(), entry.result())));
        for (data, res) in landed.drain(..) {
            if res < 0 {
                return Err(io::Error::from_raw_os_error(-res));
            }
            if data == u64::MAX {
                assert_eq!(res as usize, job.block);
                continue;
            }
            let at = data as usize;
            if matches!(workload, Workload::RandRead | Workload::SeqRead | Workload::CachedRead) {
                // SAFETY: it has landed, so the buffer is ours; the vector of it is not touched.
                let bytes = unsafe { std::slice::from_raw_parts(starts[at], job.block) };
                courses[at].check(bytes, res as usize, offsets[at]);
            }
            goes_on = meter.more(at, 1) && goes_on;
            if goes_on {
                queue(&mut ring, at, &mut courses, &mut offsets);
            } else {
                in_flight -= 1;
            }
        }
    }
    drop(buffers);
    Ok(())
}
