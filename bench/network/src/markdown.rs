//! The tables.

use std::fmt::Write;

use kapok_lab::Protocol;
use kapok_lab::compare::{Comparison, Ratio, Row, Spread, Table};

use crate::cases::Case;

/// One case with everything that was measured.
pub(crate) fn case(case: &Case, table: &Table) -> String {
    let mut text = format!(
        "### {}: {}, {} connections, {} bytes, {} outstanding{}\n\n",
        case.name,
        table.protocol,
        table.connections,
        table.bytes,
        case.pipeline,
        case.churn.map_or_else(String::new, |each| format!(", closed after {each} requests")),
    );
    text += "| | CPU per request | × tokio [95 %] | requests/s | × tokio | p50 µs | p99 µs | p99.9 µs | slowest | memory | calls | trouble |\n";
    text += "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|\n";
    let of = |spread: Option<Spread>, digits: usize| {
        spread.map_or_else(|| "–".to_owned(), |spread| format!("{:.digits$}", spread.median))
    };
    let baseline = table.rows.iter().find(|row| Some(&row.model) == table.baseline.as_ref());
    for row in &table.rows {
        let untimed = row.untimed.unwrap_or_default();
        let _ = writeln!(
            text,
            "| {} | {} µs | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            row.model,
            of(row.cpu_us_per_request, 2),
            row.cpu_ratio.map_or_else(|| "–".to_owned(), interval),
            of(row.requests_per_second, 0),
            rate_ratio(row, baseline),
            of(row.p50_us, 0),
            of(row.p99_us, 0),
            of(row.p999_us, 0),
            of(row.slowest_share, 2),
            untimed
                .memory_per_connection
                .map_or_else(|| "–".to_owned(), |each| format!("{each:.0}")),
            untimed
                .syscalls_per_request
                .map_or_else(|| "–".to_owned(), |calls| format!("{calls:.2}")),
            row.trouble.as_deref().unwrap_or(""),
        );
    }
    text
}

/// Requests per second relative to the baseline's, round by round.
fn rate_ratio(row: &Row, baseline: Option<&Row>) -> String {
    let Some(baseline) = baseline else { return "–".to_owned() };
    let ratios: Vec<f64> = row
        .measured
        .iter()
        .filter_map(|ours| {
            let theirs = baseline.measured.iter().find(|theirs| theirs.round == ours.round)?;
            Some(ours.load.requests_per_second / theirs.load.requests_per_second)
        })
        .collect();
    Ratio::of(&ratios).map_or_else(|| "–".to_owned(), interval)
}

fn interval(ratio: Ratio) -> String {
    with_interval(ratio.estimate, ratio.interval)
}

fn with_interval(ratio: f64, interval: Option<(f64, f64)>) -> String {
    match interval {
        Some((low, high)) => format!("{ratio:.2} [{low:.2} {high:.2}]"),
        None => format!("{ratio:.2}"),
    }
}

/// Where and how.
pub(crate) fn conditions(comparison: &Comparison) -> String {
    let environment = &comparison.environment;
    let mut text = format!(
        "{} · {}{} · {} cores\n\n",
        environment.kernel,
        environment.cpu,
        if environment.virtual_machine { " (virtual machine)" } else { "" },
        environment.cores.len()
    );
    for condition in &comparison.conditions {
        let _ = writeln!(text, "- {condition}");
    }
    text
}

/// CPU per request relative to the baseline's: a column for each case, and the means.
pub(crate) fn summary(servers: &[String], measured: &[(Case, Table, Comparison)]) -> String {
    let mut text = "| |".to_owned();
    for (case, _, _) in measured {
        let _ = write!(text, " {} |", case.name);
    }
    text += " all echo | all http |\n|---|";
    text += &"--:|".repeat(measured.len() + 2);
    text.push('\n');
    for name in servers {
        let _ = write!(text, "| {name} |");
        let ratio = |table: &Table| {
            let row = table.rows.iter().find(|row| row.model == *name)?;
            row.cpu_ratio.filter(|_| row.trouble.is_none())
        };
        for (_, table, _) in measured {
            let _ = write!(text, " {} |", ratio(table).map_or_else(|| "–".to_owned(), interval));
        }
        for protocol in Protocol::ALL {
            let ratios: Option<Vec<Ratio>> = measured
                .iter()
                .filter(|(case, _, _)| case.protocol == protocol && !case.apart)
                .map(|(_, table, _)| ratio(table))
                .collect();
            let mean = ratios.and_then(|ratios| mean(&ratios));
            let _ = write!(
                text,
                " {} |",
                mean.map_or_else(
                    || "–".to_owned(),
                    |(mean, interval)| format!("**{}**", with_interval(mean, interval))
                )
            );
        }
        text.push('\n');
    }
    text
}

/// The geometric mean over cases. Their errors are independent, so their squares add up.
fn mean(ratios: &[Ratio]) -> Option<(f64, Option<(f64, f64)>)> {
    let count = ratios.len() as f64;
    let mean = ratios.iter().map(|ratio| ratio.estimate.ln()).sum::<f64>() / count;
    let squares: Option<f64> = ratios
        .iter()
        .map(|ratio| ratio.interval.map(|(low, high)| ((high / low).ln() / 2.0).powi(2)))
        .sum();
    let interval = squares.map(|squares| {
        let half_width = squares.sqrt() / count;
        ((mean - half_width).exp(), (mean + half_width).exp())
    });
    (count > 0.0).then(|| (mean.exp(), interval))
}
