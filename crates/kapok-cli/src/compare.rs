//! `kapok compare`: the comparison as tables a person can read, and as JSON.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use kapok_lab::compare::{self, CompareConfig, Comparison, Row, Spread, Table as Measured};
use kapok_lab::{Model, Protocol, Stop};

use crate::cli::CompareOptions;
use crate::serve::stop_on_signals;

/// The quick profile ends by then, on machines where its rounds do not fit as well.
const QUICK_LIMIT: Duration = Duration::from_secs(84);

/// Compares and prints; fails when no model could be measured.
pub(crate) fn run(options: &CompareOptions) -> io::Result<ExitCode> {
    let stop = Stop::new()?;
    stop_on_signals(&stop)?;
    let config = configure(options, stop)?;
    // Before minutes of measuring, not after them.
    let json = match &options.json {
        Some(path) if path.as_os_str() == "-" => Some(Box::new(io::stdout()) as Box<dyn Write>),
        Some(path) => {
            let file = File::create(path)
                .map_err(|error| io::Error::other(format!("--json {}: {error}", path.display())))?;
            Some(Box::new(file) as Box<dyn Write>)
        }
        None => None,
    };
    let bar = progress_bar();
    let compared = compare::run(&config, &mut |step| {
        bar.set_length(step.total as u64);
        bar.set_position(step.done as u64);
        bar.set_message(step.what.clone());
    });
    bar.finish_and_clear();
    let comparison = compared?;

    if let Some(json) = json {
        let mut json = BufWriter::new(json);
        serde_json::to_writer_pretty(&mut json, &comparison)?;
        writeln!(json)?;
        json.flush()?;
    }
    if options.json.as_ref().is_none_or(|path| path.as_os_str() != "-") {
        let mut stdout = io::stdout().lock();
        print(&mut stdout, &comparison)?;
        stdout.flush()?;
    }
    let something =
        comparison.tables.iter().any(|table| table.rows.iter().any(|row| !row.measured.is_empty()));
    Ok(ExitCode::from(if something && !comparison.stopped_early { 0 } else { 1 }))
}

fn configure(options: &CompareOptions, stop: Stop) -> io::Result<CompareConfig> {
    let quick = options.seconds.is_none() && options.rounds.is_none();
    let commit = env!("KAPOK_COMMIT");
    Ok(CompareConfig {
        program: std::env::current_exe()?,
        build: format!("kapok {} {commit}", env!("CARGO_PKG_VERSION")).trim().to_owned(),
        protocols: options.protocol.map_or_else(|| Protocol::ALL.to_vec(), |one| vec![one]),
        models: if options.models.is_empty() {
            Model::ALL.to_vec()
        } else {
            options.models.clone()
        },
        connections: options.connections.clone(),
        active: options.active,
        size_bytes: options.size,
        body_bytes: options.body,
        pipeline: options.pipeline,
        churn: options.churn,
        cpu_per_request: Duration::from_micros(options.cpu_us),
        threads: options.threads,
        rounds: options.rounds.unwrap_or(if quick { 3 } else { 5 }),
        warmup: Duration::from_millis(if quick { 100 } else { 300 }),
        duration: options.seconds.unwrap_or(if quick {
            Duration::from_millis(550)
        } else {
            Duration::from_secs(2)
        }),
        time_limit: (quick && options.connections.len() == 1).then_some(QUICK_LIMIT),
        stop: Some(stop),
    })
}

fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:24} {percent:>3} % · {elapsed} · {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

fn print(out: &mut impl Write, comparison: &Comparison) -> io::Result<()> {
    let environment = &comparison.environment;
    writeln!(
        out,
        "{} · {} · {}{} · {} core(s)",
        environment.build,
        environment.kernel,
        environment.cpu,
        if environment.virtual_machine { " (virtual machine)" } else { "" },
        environment.cores.len()
    )?;
    if comparison.first_look {
        writeln!(
            out,
            "A first look, not a finding: for one, at least --rounds 5 --seconds 2, and more where \
             the intervals are wide."
        )?;
    }
    if comparison.stopped_early {
        writeln!(out, "Stopped by a signal: what was measured until then.")?;
    }
    for table in &comparison.tables {
        writeln!(out)?;
        print_table(out, table, comparison.seconds)?;
    }
    writeln!(out)?;
    for condition in &comparison.conditions {
        writeln!(out, "· {condition}")?;
    }
    writeln!(
        out,
        "· system calls and memory from an untimed run before the rounds (calls {})",
        comparison.syscalls_counted
    )?;
    writeln!(
        out,
        "· descriptors {} · somaxconn {} · tcp {} · {}",
        environment.descriptors,
        environment.somaxconn.map_or_else(|| "?".to_owned(), |backlog| backlog.to_string()),
        environment.tcp_buffers.as_deref().unwrap_or("?"),
        if environment.mitigations.is_empty() {
            "no mitigations".to_owned()
        } else {
            format!("mitigations: {}", environment.mitigations.join("; "))
        }
    )
}

fn print_table(out: &mut impl Write, measured: &Measured, seconds: f64) -> io::Result<()> {
    let active = if measured.active == measured.connections {
        String::new()
    } else {
        format!(", {} active", measured.active)
    };
    writeln!(
        out,
        "{} · {} bytes · {} connections{active} · median [least most] of {} rounds of {seconds} s",
        measured.protocol, measured.bytes, measured.connections, measured.rounds
    )?;
    let relative = measured
        .baseline
        .as_ref()
        .map_or_else(|| "CPU ratio".to_owned(), |baseline| format!("× {baseline}\n[95 %]"));
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_BORDERS_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header([
            "model",
            "requests/s",
            "p50\nµs",
            "p99\nµs",
            "p99.9\nµs",
            "CPU µs\n/request",
            &relative,
            "core\nbusy",
            "memory\n/conn",
            "syscalls\n/request",
            "switches\n/request",
            "threads",
            "idle\nCPU",
        ]);
    let mut troubles = Vec::new();
    for row in &measured.rows {
        if let Some(trouble) = &row.trouble {
            troubles.push(format!("{}: {trouble}", row.model));
        }
        if row.measured.is_empty() {
            table.add_row([row.model.clone(), "– (below)".to_owned()]);
        } else {
            let cells = cells(row, measured.connections);
            table.add_row(cells.into_iter().enumerate().map(|(column, text)| {
                let side = if column == 0 { CellAlignment::Left } else { CellAlignment::Right };
                Cell::new(text).set_alignment(side)
            }));
        }
    }
    writeln!(out, "{table}")?;
    for trouble in troubles {
        writeln!(out, "  {trouble}")?;
    }
    if measured.rows.iter().any(|row| row.generator_limited) {
        writeln!(
            out,
            "  * the load generator is what limits (90 % of its core or more): compare CPU per \
             request, not requests per second"
        )?;
    }
    let waited = measured.rows.iter().filter_map(|row| Some(row.load_waited_share?.median));
    let waited = waited.fold(0.0, f64::max);
    if waited >= 0.05 {
        writeln!(
            out,
            "  ! this machine was busy with something else: the load waited for its core up to \
             {:.0} % of the time; close other programs and measure again",
            waited * 100.0
        )?;
    }
    if measured.rows.iter().any(|row| {
        row.cpu_ratio.is_some_and(|ratio| ratio.indistinguishable())
            && Some(&row.model) != measured.baseline.as_ref()
    }) {
        writeln!(out, "  ≈ these rounds do not tell it from the baseline")?;
    }
    let comparisons = measured.rows.iter().filter(|row| has_interval(row)).count();
    if comparisons > 0 {
        writeln!(
            out,
            "  comparisons: {comparisons}, each at 95 % for itself: about one such interval in twenty \
             misses by chance"
        )?;
    }
    Ok(())
}

/// Whether the row is compared with another: the baseline relative to itself has no spread, and
/// nothing to tell apart.
fn has_interval(row: &Row) -> bool {
    row.cpu_ratio.is_some_and(|ratio| {
        ratio.interval.is_some_and(|(low, high)| low != high || ratio.mean != 1.0)
    })
}

fn cells(row: &Row, connections: usize) -> [String; 13] {
    let plain = |spread: Option<Spread>| spread.map_or_else(dash, |spread| short(spread.median));
    let limited = if row.generator_limited { "*" } else { "" };
    let untimed = row.untimed.unwrap_or_default();
    [
        row.model.clone(),
        row.requests_per_second.map_or_else(dash, |spread| format!("{limited}{}", ranged(spread))),
        plain(row.p50_us),
        plain(row.p99_us),
        plain(row.p999_us),
        row.cpu_us_per_request.map_or_else(dash, ranged),
        row.cpu_ratio.map_or_else(dash, |ratio| {
            // The baseline relative to itself has no spread, and nothing to tell apart.
            let itself = ratio.interval.is_none_or(|(low, high)| low == high) && ratio.mean == 1.0;
            let unsure = if ratio.indistinguishable() && !itself { "≈" } else { "" };
            match ratio.interval {
                Some((low, high)) if !itself => {
                    format!("{unsure}{:.2}\n[{low:.2} {high:.2}]", ratio.mean)
                }
                _ => format!("{unsure}{:.2}", ratio.mean),
            }
        }),
        row.server_cores_used.map_or_else(dash, |spread| format!("{:.0} %", spread.median * 100.0)),
        untimed.memory_per_connection.map_or_else(dash, |each| memory(each, connections)),
        untimed.syscalls_per_request.map_or_else(dash, |calls| format!("{calls:.2}")),
        match (row.voluntary_switches, row.involuntary_switches) {
            (Some(waited), Some(taken)) => format!("{:.2}", waited.median + taken.median),
            _ => dash(),
        },
        untimed.threads.to_string(),
        row.idle_cpu_share.map_or_else(dash, |share| format!("{:.1} %", share * 100.0)),
    ]
}

fn dash() -> String {
    "–".to_owned()
}

fn ranged(spread: Spread) -> String {
    format!("{}\n[{} {}]", short(spread.median), short(spread.least), short(spread.most))
}

/// Three digits and a unit.
fn short(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        100.0..10_000.0 => format!("{value:.0}"),
        10_000.0..100_000.0 => format!("{:.1}k", value / 1e3),
        100_000.0..10_000_000.0 => format!("{:.0}k", value / 1e3),
        _ => format!("{:.1}M", value / 1e6),
    }
}

/// Memory comes in pages and heaps grow ahead of need, so a few connections do not show what one
/// takes: under this much in all, there is only a bound to tell.
fn memory(each: f64, connections: usize) -> String {
    const SLACK_BYTES: f64 = 65_536.0;
    let all = connections.saturating_sub(1).max(1) as f64;
    if each * all < SLACK_BYTES { format!("< {}", bytes(SLACK_BYTES / all)) } else { bytes(each) }
}

fn bytes(count: f64) -> String {
    match count {
        ..1024.0 => format!("{count:.0} B"),
        1024.0..1_048_576.0 => format!("{:.1} KiB", count / 1024.0),
        _ => format!("{:.1} MiB", count / 1_048_576.0),
    }
}
