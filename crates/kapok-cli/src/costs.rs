//! What requests cost, as tables: below a comparison that was asked for it.

use std::io::{self, Write};

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use kapok_lab::compare::Table as Measured;
use kapok_lab::costs::Costs;

/// Kinds of calls that come less often than once in so many requests are left out of the lines; the
/// JSON has them.
const RARE: f64 = 0.005;

/// Prints what was counted, if anything was.
pub(crate) fn print(out: &mut impl Write, measured: &Measured) -> io::Result<()> {
    let rows: Vec<(&str, &Costs)> = measured
        .rows
        .iter()
        .filter_map(|row| Some((row.model.as_str(), row.costs.as_ref()?)))
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nWhat a request costs, counted in a run of its own:")?;
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_BORDERS_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header([
            "model",
            "CPU\nµs",
            "of it\nuser",
            "system\ncalls",
            "ring: in\n/ landed",
            "switches\nwaited/taken",
            "woken\n/ wakes",
            "bytes\nin / out",
            "private\n/conn",
            "tables\n/conn",
            "kernel\nbuffers/conn",
            "threads",
            "stacks\nreserved/resident",
        ]);
    for (model, costs) in &rows {
        let cells = cells(model, costs);
        table.add_row(cells.into_iter().enumerate().map(|(column, text)| {
            let side = if column == 0 { CellAlignment::Left } else { CellAlignment::Right };
            Cell::new(text).set_alignment(side)
        }));
    }
    writeln!(out, "{table}")?;
    for (model, costs) in &rows {
        writeln!(out, "  {model:<12} {}", kinds(costs))?;
    }
    let counted = rows.iter().find_map(|(_, costs)| costs.counted_by.as_deref());
    writeln!(out, "  counted by {}", counted.unwrap_or("nothing"))?;
    let mut missing: Vec<&String> = rows.iter().flat_map(|(_, costs)| &costs.missing).collect();
    missing.sort();
    missing.dedup();
    for missing in missing {
        writeln!(out, "  not counted: {missing}")?;
    }
    Ok(())
}

fn cells(model: &str, costs: &Costs) -> [String; 13] {
    let maybe = |value: Option<f64>| value.map_or_else(dash, |value| format!("{value:.2}"));
    let pair = |first: Option<f64>, second: Option<f64>| match (first, second) {
        (None, None) => dash(),
        (first, second) => format!("{} / {}", maybe(first), maybe(second)),
    };
    let size = |value: Option<f64>| value.map_or_else(dash, bytes);
    let submitted: f64 = costs.ring.iter().map(|ring| ring.submitted_per_request).sum();
    let landed: f64 = costs.ring.iter().map(|ring| ring.landed_per_request).sum();
    [
        model.to_owned(),
        maybe(Some(costs.cpu_us)),
        maybe(costs.user_us),
        maybe(costs.calls),
        if costs.ring.is_empty() { dash() } else { format!("{submitted:.2} / {landed:.2}") },
        format!("{:.2} / {:.2}", costs.voluntary_switches, costs.involuntary_switches),
        pair(costs.wakes_taken, costs.wakes_given),
        match (costs.bytes_in, costs.bytes_out) {
            (Some(from), Some(to)) => format!("{from:.0} / {to:.0}"),
            _ => dash(),
        },
        size(costs.connection.private),
        size(costs.connection.page_tables),
        size(costs.connection.socket_buffers),
        costs.threads.to_string(),
        costs.stacks.map_or_else(dash, |stacks| {
            format!("{} / {}", bytes(stacks.reserved as f64), bytes(stacks.resident as f64))
        }),
    ]
}

/// Calls and operations by kind, in one line.
fn kinds(costs: &Costs) -> String {
    let calls = costs
        .calls_by_kind
        .iter()
        .filter(|call| call.per_request >= RARE)
        .map(|call| format!("{} {:.2}", call.name, call.per_request));
    let ring = costs
        .ring
        .iter()
        .filter(|ring| ring.submitted_per_request.max(ring.landed_per_request) >= RARE)
        .map(|ring| {
            format!(
                "{} {:.2}→{:.2}",
                ring.name, ring.submitted_per_request, ring.landed_per_request
            )
        });
    let (calls, ring): (Vec<_>, Vec<_>) = (calls.collect(), ring.collect());
    match (calls.is_empty(), ring.is_empty()) {
        (true, true) => dash(),
        (_, true) => calls.join(" · "),
        _ => format!("{} │ ring: {}", calls.join(" · "), ring.join(" · ")),
    }
}

fn dash() -> String {
    "–".to_owned()
}

fn bytes(count: f64) -> String {
    match count {
        ..1024.0 => format!("{count:.0} B"),
        1024.0..1_048_576.0 => format!("{:.1} KiB", count / 1024.0),
        1_048_576.0..1_073_741_824.0 => format!("{:.1} MiB", count / 1_048_576.0),
        _ => format!("{:.1} GiB", count / 1_073_741_824.0),
    }
}
