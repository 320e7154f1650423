//! fio, with its io_uring engine and the file and the buffers registered.

use std::io;
use std::process::Command;

use kapok_lab::disk::Workload;
use serde_json::Value;

use crate::job::{Figures, Job};

pub(crate) fn run(job: &Job) -> io::Result<Figures> {
    let workload = job.workload();
    let mode = match workload {
        Workload::RandRead | Workload::CachedRead => "randread",
        Workload::SeqRead => "read",
        Workload::RandWrite | Workload::Fsync | Workload::Dsync => "randwrite",
        Workload::Nop => return Err(io::Error::other("fio has no operation that does nothing")),
    };
    let output = Command::new("fio")
        .args(["--name=fio", "--ioengine=io_uring", "--registerfiles=1", "--fixedbufs=1"])
        .args(["--time_based", "--norandommap", "--randrepeat=0", "--gtod_reduce=1"])
        .args(["--invalidate=0", "--allow_file_create=0", "--output-format=json", "--thread=1"])
        .arg(format!("--rw={mode}"))
        .arg(format!("--direct={}", u8::from(workload.is_direct())))
        .args((workload == Workload::Fsync).then_some("--fdatasync=1"))
        .args((workload == Workload::Dsync).then_some("--sync=dsync"))
        .arg(format!("--filename={}", job.file.display()))
        .arg(format!("--size={}", job.file_bytes))
        .arg(format!("--bs={}", job.block))
        .arg(format!("--iodepth={}", job.depth))
        .arg(format!("--ramp_time={}ms", (job.warmup * 1e3) as u64))
        .arg(format!("--runtime={}ms", (job.seconds * 1e3) as u64))
        .output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let fio = &report["jobs"][0];
    let side = &fio[if workload.writes() { "write" } else { "read" }];
    let number =
        |value: &Value| value.as_f64().ok_or_else(|| io::Error::other("fio's report has changed"));
    let seconds = number(&side["runtime"])? / 1e3;
    let share = (number(&fio["usr_cpu"])? + number(&fio["sys_cpu"])?) / 100.0;
    Ok(Figures {
        operations: (number(&side["iops"])? * seconds) as u64,
        seconds,
        cpu_seconds: share * seconds,
    })
}
