//! What a request costs, part by part: time of the processor, and what is asked of the kernel.

use super::chart::{About, Bar, Mark, Part, bars};
use super::page::{cell, describe, framed, series};
use crate::compare::{Comparison, Row, Table};

/// Kinds that come less often than once in so many requests are left to the JSON.
#[cfg(target_os = "linux")]
const RARE: f64 = 0.005;

/// CPU time per request, the part in user space and the part in the kernel.
pub(super) fn processor(
    page: &mut String,
    comparison: &Comparison,
    (place, table): (usize, &Table),
    most: f64,
) {
    let parts = |row: &Row| {
        let all = row.cpu_us_per_request?.median;
        let system = row.system_share? * all;
        Some((all - system, system))
    };
    let drawn: Vec<Bar<'_>> = table
        .rows
        .iter()
        .map(|row| {
            let mark = |value| Mark { table: place, value };
            let parts = match (parts(row), row.cpu_us_per_request) {
                (Some((user, system)), _) => {
                    vec![
                        Part::of_model("cpu_user_us", 0, mark(user)),
                        Part::of_model("cpu_system_us", 1, mark(system)),
                    ]
                }
                (None, Some(all)) => {
                    vec![Part::of_model("cpu_us_per_request", 0, mark(all.median))]
                }
                (None, None) => Vec::new(),
            };
            Bar { model: &row.model, series: series(comparison, &row.model), parts }
        })
        .collect();
    let values: Vec<(&str, f64)> = table
        .rows
        .iter()
        .filter_map(|row| Some((row.model.as_str(), row.cpu_us_per_request?.median)))
        .collect();
    let title = format!("Cost per request, {} connections", table.connections);
    let unit = "µs of CPU: user space (full colour), then the kernel (pale)";
    let about = About {
        id: &format!("c{place}"),
        title: &title,
        description: &describe("µs of CPU", &values),
        metric: "cpu_us_per_request",
    };
    let rows: Vec<Vec<String>> = table
        .rows
        .iter()
        .map(|row| {
            let (user, system) = parts(row).unzip();
            let all = row.cpu_us_per_request.map(|spread| spread.median);
            vec![row.model.clone(), cell(user), cell(system), cell(all)]
        })
        .collect();
    let head = ["model", "user µs", "kernel µs", "together"];
    framed(page, &title, unit, &bars(&about, most, &drawn, &[]), &head, &rows);
}

/// A kind of call or of operation on a ring: the metric of its marks, its name, how often a request has it.
struct Kind {
    metric: String,
    name: String,
    per_request: f64,
}

/// What was counted for a row, if anything was.
#[cfg(target_os = "linux")]
fn kinds(row: &Row) -> Option<Vec<Kind>> {
    let costs = row.costs.as_ref()?;
    let calls = costs.calls_by_kind.iter().map(|call| Kind {
        metric: format!("call:{}", call.name),
        name: call.name.clone(),
        per_request: call.per_request,
    });
    let operations = costs.ring.iter().map(|operation| Kind {
        metric: format!("ring:{}", operation.name),
        name: format!("ring: {}", operation.name),
        per_request: operation.submitted_per_request,
    });
    Some(calls.chain(operations).filter(|kind| kind.per_request >= RARE).collect())
}

/// Elsewhere nothing is counted.
#[cfg(not(target_os = "linux"))]
fn kinds(_: &Row) -> Option<Vec<Kind>> {
    None
}

fn sum(kinds: &[Kind]) -> f64 {
    kinds.iter().map(|kind| kind.per_request).sum()
}

/// The longest bar of all tables, so that their bars are of one scale.
pub(super) fn most_asked(comparison: &Comparison) -> f64 {
    let rows = comparison.tables.iter().flat_map(|table| &table.rows);
    rows.filter_map(kinds).map(|kinds| sum(&kinds)).fold(0.0, f64::max)
}

/// System calls and operations on rings per request by kind, where they were counted.
pub(super) fn asked(page: &mut String, (place, table): (usize, &Table), most: f64) {
    let counted: Vec<(&Row, Vec<Kind>)> =
        table.rows.iter().filter_map(|row| Some((row, kinds(row)?))).collect();
    // A kind has its colour in all bars, in the order in which they come up.
    let mut legend: Vec<(&str, &str)> = Vec::new();
    for kind in counted.iter().flat_map(|(_, kinds)| kinds) {
        if !legend.iter().any(|(metric, _)| *metric == kind.metric) {
            legend.push((&kind.metric, &kind.name));
        }
    }
    if legend.is_empty() {
        return;
    }
    let colour = |kind: &Kind| legend.iter().position(|(metric, _)| *metric == kind.metric);
    let drawn: Vec<Bar<'_>> = counted
        .iter()
        .map(|(row, kinds)| Bar {
            model: &row.model,
            series: 0,
            parts: kinds
                .iter()
                .map(|kind| Part {
                    metric: &kind.metric,
                    name: Some(&kind.name),
                    colour: colour(kind),
                    shade: 0,
                    mark: Mark { table: place, value: kind.per_request },
                })
                .collect(),
        })
        .collect();
    let sums: Vec<(&str, f64)> =
        counted.iter().map(|(row, kinds)| (row.model.as_str(), sum(kinds))).collect();
    let title = format!("Asked of the kernel per request, {} connections", table.connections);
    let about = About {
        id: &format!("k{place}"),
        title: &title,
        description: &describe("system calls and operations on rings", &sums),
        metric: "asked",
    };
    let names: Vec<&str> = legend.iter().map(|(_, name)| *name).collect();
    let rows: Vec<Vec<String>> = counted
        .iter()
        .map(|(row, kinds)| {
            let of = |metric: &str| kinds.iter().find(|kind| kind.metric == metric);
            let cells = legend.iter().map(|(metric, _)| cell(of(metric).map(|it| it.per_request)));
            std::iter::once(row.model.clone()).chain(cells).collect()
        })
        .collect();
    let head: Vec<&str> = std::iter::once("model").chain(names.iter().copied()).collect();
    let chart = bars(&about, most, &drawn, &names);
    let unit = "system calls, and operations submitted to rings";
    framed(page, &title, unit, &chart, &head, &rows);
}
