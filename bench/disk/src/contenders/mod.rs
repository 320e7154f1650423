//! Who is measured, each as its own project would write it.

mod bare;
mod compio;
mod fio;
mod glommio;
mod kapok;
mod monoio;
mod threads;
mod tokio;
mod tokio_uring;

use std::io;

use ::kapok::pool::{Balance, Builder, Pool, Via};
use kapok_lab::disk::Workload;

use crate::job::{Figures, Job, measure};

/// What the others are relative to.
pub(crate) const BASELINE: &str = "bare ring";

/// All of them, in the order of the table.
pub(crate) const ALL: [&str; 21] = [
    BASELINE,
    "fio",
    "threads",
    "nowait",
    "tokio::fs",
    "tokio-uring",
    "compio",
    "monoio",
    "glommio",
    "fibers auto",
    "fibers caller",
    "fibers ring",
    "fibers thread",
    "tasks auto",
    "tasks caller",
    "tasks thread",
    "tasks driven",
    "threads auto",
    "threads caller",
    "threads thread",
    "futures thread",
];

/// The contender without the numbers of its pool: `fibers thread/spin=0,take=1` is a `fibers thread`.
pub(crate) fn base(name: &str) -> &str {
    name.split_once('/').map_or(name, |(base, _)| base)
}

/// A pool with other numbers than it has by itself.
fn pool(tuning: &str, via: Via) -> io::Result<Pool> {
    builder(tuning, via)?.build()
}

/// Its options.
fn builder(tuning: &str, via: Via) -> io::Result<Builder> {
    let mut builder = Pool::builder().via(via);
    for (name, value) in tuning.split(',').filter_map(|part| part.split_once('=')) {
        let number: usize = value.parse().unwrap_or(0);
        builder = match name {
            "threads" => builder.threads(number),
            "take" => builder.take(number),
            "spin" => builder.spin(number as u32),
            "adaptive" => builder.spin_adaptively(number as u32),
            "completions" => builder.completion_batch(number),
            "device" => builder.device_batch(number),
            "channel" => builder.channel(number),
            "balance" => builder.balance(match value {
                "two" => Balance::TwoChoices,
                "round" => Balance::RoundRobin,
                "file" => Balance::ByFile,
                _ => Balance::LeastInFlight,
            }),
            _ => return Err(io::Error::other(format!("a pool has no {name}"))),
        };
    }
    Ok(builder)
}

/// Tells what the pool has counted, if that is asked for.
fn tell(pool: &Pool) {
    if std::env::var_os("KAPOK_BENCH_STATS").is_some() {
        eprintln!("{:#?}", pool.stats());
    }
}

/// Whether a contender has this workload.
pub(crate) fn has(whole: &str, workload: Workload) -> bool {
    let name = base(whole);
    if whole == "bare ring/plain" && workload == Workload::Fsync {
        return false;
    }
    match workload {
        // What never waits has no misses in it.
        Workload::CachedRead => true,
        _ if name == "nowait" => false,
        // The others have nothing that does nothing.
        Workload::Nop => !matches!(name, "fio" | "threads" | "compio" | "monoio" | "glommio"),
        _ => true,
    }
}

/// Measures one, in this process.
pub(crate) fn run(name: &str, job: &Job) -> io::Result<Figures> {
    match base(name) {
        "bare ring" => measure(job, bare::run),
        "fio" => fio::run(job),
        "threads" => measure(job, threads::run),
        "nowait" => measure(job, threads::nowait),
        "tokio::fs" => measure(job, tokio::blocking),
        "tokio-uring" => measure(job, tokio_uring::run),
        "compio" => measure(job, compio::run),
        "monoio" => measure(job, monoio::run),
        "glommio" => measure(job, glommio::run),
        "fibers auto" => measure(job, |job, meter| kapok::fibers(job, meter, Via::Auto)),
        "fibers caller" => measure(job, |job, meter| kapok::fibers(job, meter, Via::Caller)),
        "fibers ring" => measure(job, |job, meter| kapok::fibers(job, meter, Via::Ring)),
        "fibers thread" => measure(job, |job, meter| kapok::fibers(job, meter, Via::Thread)),
        "tasks auto" => measure(job, |job, meter| tokio::pool(job, meter, Via::Auto)),
        "tasks caller" => measure(job, |job, meter| tokio::pool(job, meter, Via::Caller)),
        "tasks thread" => measure(job, |job, meter| tokio::pool(job, meter, Via::Thread)),
        "tasks driven" => measure(job, tokio::driven),
        "threads auto" => measure(job, |job, meter| threads::pool(job, meter, Via::Auto)),
        "threads caller" => measure(job, |job, meter| threads::pool(job, meter, Via::Caller)),
        "threads thread" => measure(job, |job, meter| threads::pool(job, meter, Via::Thread)),
        "futures thread" => measure(job, |job, meter| kapok::futures(job, meter, Via::Thread)),
        _ => Err(io::Error::other(format!("no contender {name}"))),
    }
}
