//! The report of a load as a person reads it.

use std::io::{self, Write};

use kapok_lab::load::LoadReport;

/// The report as a person reads it.
pub(super) fn print(out: &mut impl Write, report: &LoadReport) -> io::Result<()> {
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
    print_latency(out, report)?;
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
    if report.other_bodies > 0 {
        writeln!(
            out,
            "bodies      {} replies had another than the first one, of the same length",
            report.other_bodies
        )?;
    }
    if report.reopened > 0 {
        writeln!(out, "reopened    {} connections", report.reopened)?;
    }
    writeln!(
        out,
        "generator   {:.0} % of its core, {}{}",
        report.cpu_share * 100.0,
        match report.requests {
            0 => "no request".to_owned(),
            _ => format!("{:.2} µs per request", report.cpu_us_per_request),
        },
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

fn print_latency(out: &mut impl Write, report: &LoadReport) -> io::Result<()> {
    let latency = &report.latency;
    if latency.count == 0 {
        let why = if report.requests == 0 {
            "nothing was answered"
        } else {
            "what was answered had been due before the measured interval"
        };
        return writeln!(out, "latency     none: {why}");
    }
    writeln!(
        out,
        "latency µs  p50 {:.0}   p90 {:.0}   p99 {:.0}   p99.9 {:.0}   max {:.0}   mean {:.0}",
        latency.p50_us,
        latency.p90_us,
        latency.p99_us,
        latency.p999_us,
        latency.max_us,
        latency.mean_us
    )
}

/// What each generator found, for a load that several made.
pub(super) fn print_parts(out: &mut impl Write, parts: &[LoadReport]) -> io::Result<()> {
    for (number, part) in parts.iter().enumerate() {
        let p99 = match part.latency.count {
            0 => "no latency".to_owned(),
            _ => format!("p99 {:.0} µs", part.latency.p99_us),
        };
        writeln!(
            out,
            "{}{:<2} {} connections   {} requests in {:.2} s   {:.0}/s   {p99}   {} errors",
            if number == 0 { "of these   " } else { "           " },
            number + 1,
            part.connections,
            part.requests,
            part.seconds,
            part.requests_per_second,
            part.errors.total()
        )?;
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
