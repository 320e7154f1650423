//! `kapok latency`: the table of how long things take here.

use std::io::{self, Write};
use std::process::ExitCode;

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use kapok_lab::Stop;
use kapok_lab::latency::{self, Latencies, LatencyConfig, Line};

use crate::cli::LatencyOptions;
use crate::serve::stop_on_signals;

/// Measures and prints; fails when a line went wrong, or there was nothing to measure for any.
pub(crate) fn run(options: &LatencyOptions) -> io::Result<ExitCode> {
    let stop = Stop::new()?;
    stop_on_signals(&stop)?;
    let build = format!("kapok {} {}", env!("CARGO_PKG_VERSION"), env!("KAPOK_COMMIT"));
    let config = LatencyConfig {
        build: build.trim().to_owned(),
        file: options.file.clone(),
        peer: options.peer,
        only: options.only.clone(),
        repeats: options.repeats,
        stop: Some(stop),
    };
    let style = ProgressStyle::with_template("{bar:24} {percent:>3} % · {elapsed} · {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(0).with_style(style);
    let measured = latency::run(&config, &mut |what, done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        bar.set_message(what.to_owned());
    });
    bar.finish_and_clear();
    let measured = measured?;
    let mut stdout = io::stdout().lock();
    if options.json {
        writeln!(stdout, "{}", serde_json::to_string(&measured)?)?;
    } else {
        print(&mut stdout, &measured, options.repeats)?;
    }
    stdout.flush()?;
    let whole = measured.lines.iter().all(|line| line.trouble.is_none());
    let something = measured.lines.iter().any(|line| line.median_ns.is_some());
    Ok(ExitCode::from(if whole && something && !measured.stopped_early { 0 } else { 1 }))
}

fn print(out: &mut impl Write, measured: &Latencies, repeats: usize) -> io::Result<()> {
    let environment = &measured.environment;
    writeln!(
        out,
        "{} · {} · {}{}",
        environment.build,
        environment.kernel,
        environment.cpu,
        if environment.virtual_machine { " (virtual machine)" } else { "" },
    )?;
    if measured.stopped_early {
        writeln!(out, "Stopped by a signal: what was measured until then.")?;
    }
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_BORDERS_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(["", "median", "middle half of rounds", "books", "here / book", "how"]);
    for line in &measured.lines {
        let cells = cells(line);
        table.add_row(cells.into_iter().enumerate().map(|(column, text)| {
            let left = column == 0 || column == 5;
            let side = if left { CellAlignment::Left } else { CellAlignment::Right };
            Cell::new(text).set_alignment(side)
        }));
    }
    writeln!(out, "{table}")?;
    let sat_out = !measured.stopped_early
        && measured
            .lines
            .iter()
            .any(|line| line.trouble.is_none() && (1..repeats).contains(&line.rounds));
    writeln!(
        out,
        "· {repeats} rounds, in each of them every line once{}; the median and the middle half",
        if sat_out { ", or in fewer where it is slow" } else { "" }
    )?;
    writeln!(
        out,
        "· books' values are the orders of magnitude everybody quotes, of no machine in particular"
    )
}

fn cells(line: &Line) -> [String; 6] {
    let dash = || "–".to_owned();
    [
        line.name.to_owned(),
        line.median_ns.map_or_else(dash, time),
        match (line.quarter_ns, line.three_quarters_ns) {
            (Some(from), Some(to)) => format!("{} … {}", time(from), time(to)),
            _ => dash(),
        },
        line.book_ns.map_or_else(dash, time),
        match (line.median_ns, line.book_ns) {
            (Some(here), Some(book)) => format!("{:.2}", here / book),
            _ => dash(),
        },
        match line.trouble.as_ref().or(line.absent.as_ref()) {
            Some(why) => format!("not measured: {why}"),
            None => line.method.clone(),
        },
    ]
}

fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        ..10.0 => format!("{nanoseconds:.2} ns"),
        10.0..1_000.0 => format!("{nanoseconds:.0} ns"),
        1_000.0..1_000_000.0 => format!("{:.1} µs", nanoseconds / 1e3),
        _ => format!("{:.2} ms", nanoseconds / 1e6),
    }
}
