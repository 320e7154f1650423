//! `kapok disk`: one measurement of a file, and its report.

use std::io::{self, Write};
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use kapok_lab::Stop;
use kapok_lab::disk::{self, DiskConfig, DiskReport, Progress, Verified, Workload};
use serde::Serialize;

use crate::cli::DiskOptions;
use crate::serve::stop_on_signals;
use crate::steps::Steps;

/// What `--json` prints, in this order.
#[derive(Serialize)]
struct Line {
    iops: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us_per_op: f64,
}

/// Measures, prints the report, and fails if an operation failed or a block was not what it must be.
pub(crate) fn run(options: &DiskOptions, steps: Option<Steps>) -> io::Result<ExitCode> {
    let stop = Stop::new()?;
    stop_on_signals(&stop)?;
    let block_bytes = usize::try_from(options.bs)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "--bs is too large"))?;
    let config = DiskConfig {
        file: options.file.clone(),
        size_bytes: options.size,
        overwrite: options.overwrite,
        buffered: options.buffered,
        block_bytes,
        depth: options.depth,
        duration: options.seconds,
        via: options.via,
        threads: options.threads,
        take: options.take,
        spin: options.spin,
        completion_batch: options.completion_batch,
        trace: options.trace,
        stop: Some(stop),
        ..DiskConfig::new(options.op)
    };
    let bar = progress_bar(options.json || options.trace);
    let report = disk::run(&config, &mut |progress| show(&bar, progress));
    bar.finish_and_clear();
    let report = report?;
    if let Some(steps) = steps {
        writeln!(io::stderr(), "{}", steps.summary())?;
    }
    let mut stdout = io::stdout().lock();
    if options.json {
        let line = Line {
            iops: report.iops,
            p50_us: report.latency.p50_us,
            p99_us: report.latency.p99_us,
            cpu_us_per_op: report.cpu_us_per_op,
        };
        writeln!(stdout, "{}", serde_json::to_string(&line)?)?;
    } else {
        print(&mut stdout, &config, &report)?;
    }
    stdout.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// A bar that says how far it is; invisible where standard error is no terminal.
fn progress_bar(quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:24} {percent:>3} % · {elapsed} · {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(1000).with_style(style)
}

fn show(bar: &ProgressBar, progress: Progress) {
    let (message, part) = match progress {
        Progress::Making(done, all) => {
            (format!("making the file: {} MiB", done >> 20), done as f64 / all as f64)
        }
        Progress::Warming => ("bringing the file into the page cache".to_owned(), 0.0),
        Progress::Measuring(operations, part) => (format!("{operations} operations"), part),
        Progress::Verifying => ("reading back what was written".to_owned(), 1.0),
    };
    bar.set_message(message);
    bar.set_position((part * 1000.0) as u64);
}

fn print(out: &mut impl Write, config: &DiskConfig, report: &DiskReport) -> io::Result<()> {
    let file = match &config.file {
        Some(file) if report.workload != Workload::Nop => {
            let how = if report.direct { "O_DIRECT" } else { "through the page cache" };
            format!("{} · {} bytes · {how} · ", file.display(), config.block_bytes)
        }
        _ => String::new(),
    };
    writeln!(
        out,
        "{} · {file}{} in flight · via {} · fibers on {} · {:.1} s",
        report.workload, config.depth, report.via, report.engine, report.seconds
    )?;
    let moved = match report.workload {
        Workload::Nop => String::new(),
        _ => format!("   {:.1} MB/s", report.iops * config.block_bytes as f64 / 1e6),
    };
    writeln!(out, "operations  {}   {:.0}/s{moved}", report.operations, report.iops)?;
    let latency = &report.latency;
    writeln!(
        out,
        "latency µs  p50 {:.1}   p90 {:.1}   p99 {:.1}   p99.9 {:.1}   max {:.1}   mean {:.1}",
        latency.p50_us,
        latency.p90_us,
        latency.p99_us,
        latency.p999_us,
        latency.max_us,
        latency.mean_us
    )?;
    writeln!(
        out,
        "CPU         {:.2} µs an operation, {:.0} % of a core",
        report.cpu_us_per_op,
        report.cores * 100.0
    )?;
    writeln!(
        out,
        "ran         {:.1} % on {} I/O thread(s), the rest on the loop",
        (report.on_threads * 100.0).min(100.0),
        config.threads
    )?;
    match report.verified {
        Verified::Nothing => {}
        Verified::Unknown => {
            writeln!(out, "verified    nothing: the file was not made by `kapok disk --size`")?
        }
        Verified::Reads { blocks, whole } => writeln!(
            out,
            "verified    {blocks} blocks read, by words of each sector; {whole} of them every byte"
        )?,
        Verified::Writes { written, read_back } => writeln!(
            out,
            "verified    {read_back} of {written} different blocks written, read back, every byte"
        )?,
    }
    if report.stopped_early {
        writeln!(out, "stopped     before its time, by a signal")?;
    }
    Ok(())
}
