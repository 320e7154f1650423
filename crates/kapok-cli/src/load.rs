//! `kapok load`: one run of the generator, and its report.

use std::io::{self, Write};
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use kapok_lab::Stop;
use kapok_lab::load::{self, LoadConfig, LoadReport, Phase, Progress};

use crate::cli::LoadOptions;
use crate::serve::stop_on_signals;

/// Runs the load, prints the report, and fails if anything that came back was wrong.
pub(crate) fn run(options: &LoadOptions) -> io::Result<ExitCode> {
    let stop = Stop::new()?;
    stop_on_signals(&stop)?;
    let config = LoadConfig {
        connections: options.connections,
        active: options.active,
        size_bytes: options.size,
        body_bytes: options.body,
        pipeline: options.pipeline,
        rate: options.rate,
        churn: options.churn,
        warmup: options.warmup,
        duration: options.seconds,
        timeout: options.timeout,
        threads: options.threads,
        stop: Some(stop),
        ..LoadConfig::new(options.addr, options.protocol)
    };
    let bar = progress_bar(options.json);
    let report = load::run(&config, &mut |progress| bar.set_message(describe(&config, progress)));
    bar.finish_and_clear();
    let report = report?;

    let sound = report.errors.total() == 0 && report.served == report.connections;
    match write(options.json, &report) {
        // The reader has seen enough. What became of the load is still told by the exit status.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        outcome => outcome?,
    }
    Ok(ExitCode::from(if sound { 0 } else { 1 }))
}

fn write(json: bool, report: &LoadReport) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    if json {
        writeln!(stdout, "{}", serde_json::to_string(report)?)?;
    } else {
        print(&mut stdout, report)?;
    }
    stdout.flush()
}

/// A line that says what is going on; invisible where standard error is no terminal.
fn progress_bar(quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner());
    ProgressBar::new_spinner().with_style(style)
}

fn describe(config: &LoadConfig, progress: Progress) -> String {
    let what = match progress.phase {
        Phase::Connecting => format!("connecting: {} of {}", progress.served, config.connections),
        Phase::WarmUp => "warming up".to_owned(),
        Phase::Measuring => format!("measuring: {} replies", progress.requests),
        Phase::Draining => "awaiting the last replies".to_owned(),
    };
    format!("{:.1} s · {what} · {} errors", progress.elapsed.as_secs_f64(), progress.errors)
}

fn print(out: &mut impl Write, report: &LoadReport) -> io::Result<()> {
    let served = if report.served == report.connections {
        String::new()
    } else {
        format!(", of which only {} were served", report.served)
    };
    let active = if report.active == report.connections {
        String::new()
    } else {
        format!(", {} of them active", report.active)
    };
    let pace = report.rate.map_or_else(
        || "closed loop".to_owned(),
        |rate| format!("{rate} requests/s, intended times"),
    );
    writeln!(
        out,
        "{} {} · {} connections{active}{served} · {} outstanding each · {pace} · {:.1} s",
        report.protocol, report.addr, report.connections, report.pipeline, report.seconds
    )?;
    writeln!(
        out,
        "requests    {}   {:.0}/s   received {}   sent {}",
        report.requests,
        report.requests_per_second,
        bytes(report.bytes_received),
        bytes(report.bytes_sent)
    )?;
    let latency = &report.latency;
    writeln!(
        out,
        "latency µs  p50 {:.0}   p90 {:.0}   p99 {:.0}   p99.9 {:.0}   max {:.0}   mean {:.0}",
        latency.p50_us,
        latency.p90_us,
        latency.p99_us,
        latency.p999_us,
        latency.max_us,
        latency.mean_us
    )?;
    if let Some(backlog) = report.backlog {
        writeln!(
            out,
            "backlog     at most {} requests due and not sent, {} never sent",
            backlog.most, backlog.unsent
        )?;
    }
    let errors = &report.errors;
    writeln!(
        out,
        "errors      {}   connect {}   read {}   write {}   timeout {}   verify {}",
        errors.total(),
        errors.connect,
        errors.read,
        errors.write,
        errors.timeout,
        errors.verify
    )?;
    for example in &errors.examples {
        writeln!(out, "            {example}")?;
    }
    if report.reopened > 0 {
        writeln!(out, "reopened    {} connections", report.reopened)?;
    }
    writeln!(
        out,
        "generator   {:.0} % of its core, {:.2} µs per request{}",
        report.cpu_share * 100.0,
        report.cpu_us_per_request,
        if report.generator_limited { ": the load generator is what limits" } else { "" }
    )?;
    if report.waited_share >= 0.05 {
        writeln!(
            out,
            "            other work on this machine kept it waiting for its core {:.0} % of the time",
            report.waited_share * 100.0
        )?;
    }
    if report.stopped_early {
        writeln!(out, "stopped     before its time, by a signal")?;
    }
    Ok(())
}

fn bytes(count: u64) -> String {
    match count {
        0..10_000 => format!("{count} B"),
        10_000..10_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} MB", count as f64 / 1e6),
        _ => format!("{:.1} GB", count as f64 / 1e9),
    }
}
