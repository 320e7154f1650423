//! The comparison as tables that a person can read.

use std::io::{self, Write};

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use kapok_lab::compare::{Comparison, MARGIN, Row, Slope, Spread, Table as Measured, Verdict};

pub(super) fn print(out: &mut impl Write, comparison: &Comparison) -> io::Result<()> {
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
            "A first look, not a finding: --full measures until the intervals are narrow."
        )?;
    }
    if comparison.stopped_early {
        writeln!(out, "Stopped by a signal: what was measured until then.")?;
    }
    for table in &comparison.tables {
        writeln!(out)?;
        print_table(out, table, comparison.seconds)?;
        #[cfg(target_os = "linux")]
        crate::costs::print(out, table)?;
    }
    print_slopes(out, &comparison.slopes)?;
    writeln!(out)?;
    for condition in &comparison.conditions {
        writeln!(out, "· {condition}")?;
    }
    writeln!(
        out,
        "· system calls and memory from an untimed run before the rounds (calls {})",
        comparison.syscalls_counted
    )?;
    if !environment.versions.is_empty() {
        writeln!(out, "· {}", environment.versions.join(" · "))?;
    }
    writeln!(
        out,
        "· governor {} · load before {}",
        environment.governor.as_deref().unwrap_or("none seen"),
        environment.load_averages.as_deref().unwrap_or("?")
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
    writeln!(
        out,
        "{} · median [95 %, or least and most of fewer than 5] of {} rounds of {seconds} s",
        measured.describe(),
        measured.rounds
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
            "load\ncore",
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
    if measured.is_loopback_limited() {
        writeln!(
            out,
            "  ! most of these spend 90 % of their CPU time in the kernel, at loopback: models can differ \
             in the rest only"
        )?;
    }
    if let Some(trouble) = measured.baseline_trouble() {
        writeln!(
            out,
            "  ! the baseline failed ({trouble}): ratios are of its rounds only, and nobody was measured \
             longer on their account"
        )?;
    } else if measured.baseline.is_none() {
        writeln!(
            out,
            "  ! there is no baseline: it could not be measured, and there are no ratios"
        )?;
    }
    let verdict = |verdict| {
        measured.rows.iter().any(|row| {
            row.cpu_ratio.is_some_and(|ratio| ratio.verdict == verdict)
                && Some(&row.model) != measured.baseline.as_ref()
        })
    };
    let dropped: usize = measured.rows.iter().map(|row| row.dropped_rounds).sum();
    if dropped > 0 {
        writeln!(out, "  ! {dropped} round(s) passed without any reply and are missing")?;
    }
    if verdict(Verdict::Indistinguishable) {
        writeln!(
            out,
            "  ≈ indistinguishable: not told from the baseline, and within ± {:.0} % of it",
            MARGIN * 100.0
        )?;
    }
    if verdict(Verdict::Unsettled) {
        writeln!(out, "  ? unsettled: these rounds are too few for an answer")?;
    }
    if measured.capped {
        writeln!(
            out,
            "  ! the rounds ended at their cap before every interval was ± 2.5 %: {}",
            widest(measured)
        )?;
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

/// What registered connections cost. The tables above have the same costs, one point each.
fn print_slopes(out: &mut impl Write, slopes: &[Slope]) -> io::Result<()> {
    let Some(first) = slopes.first() else { return Ok(()) };
    writeln!(
        out,
        "\nWhat one more registered connection adds to a request, {} active",
        first.active
    )?;
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_header([
        "model",
        "connections",
        "CPU µs/request",
        "ns/connection [95 %]",
        "cost",
    ]);
    for slope in slopes {
        let ends = |values: Vec<String>| match &values[..] {
            [first, .., last] => format!("{first} – {last}"),
            _ => dash(),
        };
        let (low, high) = slope.interval;
        table.add_row([
            Cell::new(&slope.model),
            Cell::new(ends(slope.connections.iter().map(usize::to_string).collect()))
                .set_alignment(CellAlignment::Right),
            Cell::new(ends(slope.cpu_us_per_request.iter().map(|cost| short(*cost)).collect()))
                .set_alignment(CellAlignment::Right),
            Cell::new(format!("{:.2} [{low:.2} {high:.2}]", slope.ns_per_connection))
                .set_alignment(CellAlignment::Right),
            Cell::new(slope.growth),
        ]);
    }
    writeln!(out, "{table}")?;
    writeln!(
        out,
        "  grows: by a fifth or more from the fewest connections to the most, along a line, or to twice as much \
         and more in an order that is not chance; flat: it less than doubles"
    )
}

/// Whether the row is compared with another: the baseline relative to itself has no spread, and
/// nothing to tell apart.
fn has_interval(row: &Row) -> bool {
    row.cpu_ratio.is_some_and(|ratio| {
        ratio.interval.is_some_and(|(low, high)| low != high || ratio.estimate != 1.0)
    })
}

/// The rows whose intervals are the widest, with how wide they are.
fn widest(measured: &Measured) -> String {
    let mut widths: Vec<(f64, &str)> = measured
        .rows
        .iter()
        .filter_map(|row| Some((row.cpu_ratio?.half_width()?, row.model.as_str())))
        .filter(|(width, _)| *width > 0.025)
        .collect();
    widths.sort_by(|a, b| b.0.total_cmp(&a.0));
    let named: Vec<String> = widths
        .iter()
        .take(3)
        .map(|(width, name)| format!("{name} ± {:.1} %", width * 100.0))
        .collect();
    if named.is_empty() { "some are unsettled".to_owned() } else { named.join(", ") }
}

fn cells(row: &Row, connections: usize) -> [String; 14] {
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
            let itself =
                ratio.interval.is_none_or(|(low, high)| low == high) && ratio.estimate == 1.0;
            if itself {
                return "1".to_owned();
            }
            let mark = match ratio.verdict {
                Verdict::Indistinguishable => "≈",
                Verdict::Unsettled => "?",
                Verdict::Lower | Verdict::Higher => "",
            };
            match ratio.interval {
                Some((low, high)) => format!("{mark}{:.2}\n[{low:.2} {high:.2}]", ratio.estimate),
                None => format!("{mark}{:.2}", ratio.estimate),
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
        row.generator_cpu_share.map_or_else(dash, |share| format!("{:.0} %", share.median * 100.0)),
    ]
}

fn dash() -> String {
    "–".to_owned()
}

fn ranged(spread: Spread) -> String {
    {
        let (low, high) = spread.interval.unwrap_or((spread.least, spread.most));
        format!("{}\n[{} {}]", short(spread.median), short(low), short(high))
    }
}

/// Three digits and a unit.
pub(super) fn short(value: f64) -> String {
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
