//! The page: one file, no script, nothing from a network.

use std::fmt::Write;

use super::chart::{About, Axis, Bar, Line, Mark, Part, bars, escaped, lines, spark};
use super::costs;
use super::scale::short;
use super::slopes::slopes;
use crate::compare::{Comparison, Ratio, Row, Spread, Table};

const STYLE: &str = include_str!("style.css");

/// A figure of a row that is drawn.
struct Figure {
    /// The field of the JSON.
    metric: &'static str,
    title: &'static str,
    unit: &'static str,
    pick: fn(&Row) -> Option<f64>,
}

const OVER_CONNECTIONS: [Figure; 4] = [
    Figure {
        metric: "requests_per_second",
        title: "Throughput",
        unit: "requests a second",
        pick: |row| Some(row.requests_per_second?.median),
    },
    Figure {
        metric: "p99_us",
        title: "Latency, 99th percentile",
        unit: "µs",
        pick: |row| Some(row.p99_us?.median),
    },
    Figure {
        metric: "cpu_us_per_request",
        title: "CPU time per request",
        unit: "µs",
        pick: |row| Some(row.cpu_us_per_request?.median),
    },
    Figure {
        metric: "memory_per_connection",
        title: "Memory per connection",
        unit: "bytes",
        pick: |row| row.untimed?.memory_per_connection,
    },
];

/// Tables of the JSON, by their places, that differ in their connections only.
pub(super) type Group<'a> = Vec<(usize, &'a Table)>;

fn groups(comparison: &Comparison) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for (place, table) in comparison.tables.iter().enumerate() {
        let fits = |group: &&mut Group<'_>| {
            let first = group[0].1;
            let all_active = |table: &Table| table.active == table.connections;
            let alike = Table {
                connections: first.connections,
                active: first.active,
                rows: Vec::new(),
                baseline: None,
                ..table.clone()
            };
            // All of them are active everywhere, or everywhere as many.
            let everywhere = all_active(table) && group.iter().all(|(_, other)| all_active(other));
            let as_many = group.iter().all(|(_, other)| other.active == table.active);
            (everywhere || as_many) && alike.is_like(first)
        };
        match groups.iter_mut().find(fits) {
            Some(group) => group.push((place, table)),
            None => groups.push(vec![(place, table)]),
        }
    }
    for group in &mut groups {
        group.sort_by_key(|(_, table)| table.connections);
    }
    groups
}

/// One scale for all charts of a kind, so that charts can be compared by eye.
struct Scales {
    /// The most of each of [`OVER_CONNECTIONS`].
    figures: Vec<f64>,
    /// The longest bar of what is asked of the kernel.
    asked: f64,
    /// The shortest and the longest latency of the percentiles that are drawn.
    latencies: (f64, f64),
    /// The most requests a second in any slice of time.
    slice: f64,
}

impl Scales {
    fn of(comparison: &Comparison) -> Scales {
        let rows = || comparison.tables.iter().flat_map(|table| &table.rows);
        let latencies = || {
            let drawn = rows().flat_map(|row| row.percentiles.iter().skip(FIRST_PERCENTILE));
            // A model without a reply has none, and they are drawn on logarithms.
            drawn.map(|point| point.us).filter(|us| *us > 0.0)
        };
        let most = |figure: &Figure| rows().filter_map(figure.pick).fold(0.0, f64::max);
        Scales {
            figures: OVER_CONNECTIONS.iter().map(most).collect(),
            asked: costs::most_asked(comparison),
            latencies: (latencies().fold(f64::INFINITY, f64::min), latencies().fold(0.0, f64::max)),
            slice: rows().flat_map(slice_rates).fold(0.0, f64::max),
        }
    }
}

/// The page of a comparison.
#[must_use]
pub fn page(comparison: &Comparison) -> String {
    let mut page = String::with_capacity(256 * 1024);
    let environment = &comparison.environment;
    let _ = write!(
        page,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <link rel=\"icon\" href=\"data:,\"><title>kapok compare</title><style>{STYLE}</style></head>\
         <body><a class=\"skip\" href=\"#figures\">To the figures</a><header><h1>I/O models compared</h1>\
         <p class=\"soft\">{} · {} · {}{} · {} core(s)</p>",
        escaped(&environment.build),
        escaped(&environment.kernel),
        escaped(&environment.cpu),
        if environment.virtual_machine { " (virtual machine)" } else { "" },
        environment.cores.len(),
    );
    if comparison.first_look {
        page.push_str(
            "<p class=\"look\">A first look, not a finding: kapok compare --full measures until the \
             intervals are narrow.</p>",
        );
    }
    if comparison.stopped_early {
        page.push_str("<p class=\"look\">Stopped early: what was measured until then.</p>");
    }
    page.push_str("</header><main id=\"figures\">");
    let scales = Scales::of(comparison);
    for (number, group) in groups(comparison).iter().enumerate() {
        section(&mut page, comparison, number, group, &scales);
    }
    page.push_str("</main>");
    about(&mut page, comparison);
    page.push_str("</body></html>\n");
    page
}

/// The colour of a model: its place among all that are compared, everywhere the same.
pub(super) fn series(comparison: &Comparison, model: &str) -> usize {
    let rows = comparison.tables.iter().flat_map(|table| &table.rows);
    let mut known: Vec<&str> = Vec::new();
    for row in rows {
        if !known.contains(&row.model.as_str()) {
            known.push(&row.model);
        }
    }
    known.iter().position(|one| *one == model).unwrap_or(0)
}

fn section(
    page: &mut String,
    comparison: &Comparison,
    number: usize,
    group: &Group<'_>,
    scales: &Scales,
) {
    let heading = if group.len() == 1 {
        group[0].1.describe()
    } else {
        let counts: Vec<String> =
            group.iter().map(|(_, table)| table.connections.to_string()).collect();
        // The last, because with as many active ones the first may have no others.
        let last = group[group.len() - 1].1;
        last.describe().replace(
            &format!("{} connections", last.connections),
            &format!("{} connections", counts.join(", ")),
        )
    };
    let _ = write!(page, "<section><h2>{}</h2>", escaped(&heading));
    for (place, table) in group {
        summary(page, *place, table, group.len() > 1);
    }
    slopes(page, comparison, group);
    page.push_str("<div class=\"charts\">");
    for (figure, scale) in OVER_CONNECTIONS.iter().zip(&scales.figures) {
        if group.len() > 1 {
            over_connections(page, comparison, number, group, figure, *scale);
        } else if figure.metric == "cpu_us_per_request" {
            costs::processor(page, comparison, group[0], *scale);
        } else {
            single(page, comparison, number, group[0], figure, *scale);
        }
    }
    if group.len() > 1 {
        let scale = scales.figures[2];
        for (place, table) in group {
            costs::processor(page, comparison, (*place, table), scale);
        }
    }
    for (place, table) in group {
        costs::asked(page, (*place, table), scales.asked);
    }
    for (place, table) in group {
        percentiles(page, comparison, (*place, table), scales.latencies);
    }
    page.push_str("</div>");
    for (place, table) in group {
        time_series(page, comparison, (*place, table), scales.slice);
    }
    page.push_str("</section>");
}

/// The table of a table, with what the rounds say.
fn summary(page: &mut String, place: usize, table: &Table, several: bool) {
    let baseline = table.baseline.as_deref().unwrap_or("nothing");
    let _ = write!(
        page,
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\"><table data-table=\"{place}\">\
         <caption class=\"soft\">{1}{2} round(s){3}. Medians, with 95 % intervals where there are enough rounds; \
         ratios to {4} within each round.</caption><thead><tr><th scope=\"col\">model</th>\
         <th scope=\"col\">requests/s</th><th scope=\"col\">p50 µs</th><th scope=\"col\">p99 µs</th>\
         <th scope=\"col\">CPU µs/request</th><th scope=\"col\">CPU ratio</th><th scope=\"col\">verdict</th>\
         <th scope=\"col\">rate ratio</th><th scope=\"col\">memory/connection</th>\
         <th scope=\"col\">system calls/request</th><th scope=\"col\">idle CPU</th></tr></thead><tbody>",
        escaped(&table.describe()),
        if several { format!("{} connections: ", table.connections) } else { String::new() },
        table.rounds,
        if table.capped { ", ended before every interval was narrow enough" } else { "" },
        escaped(baseline),
    );
    let dash = || "–".to_owned();
    let spread = |spread: Option<Spread>| {
        spread.map_or_else(dash, |spread| match spread.interval {
            Some((low, high)) => {
                format!("{} [{} {}]", short(spread.median), short(low), short(high))
            }
            None => short(spread.median),
        })
    };
    let ratio = |ratio: Option<Ratio>| {
        ratio.map_or_else(dash, |ratio| match ratio.interval {
            Some((low, high)) => format!("{:.3} [{low:.3} {high:.3}]", ratio.estimate),
            None => format!("{:.3}", ratio.estimate),
        })
    };
    for row in &table.rows {
        let is_baseline = Some(&row.model) == table.baseline.as_ref();
        let untimed = row.untimed.unwrap_or_default();
        let cells = [
            spread(row.requests_per_second),
            spread(row.p50_us),
            spread(row.p99_us),
            spread(row.cpu_us_per_request),
            if is_baseline { "1".to_owned() } else { ratio(row.cpu_ratio) },
            match row.cpu_ratio {
                Some(ratio) if !is_baseline => ratio.verdict.to_string(),
                _ => dash(),
            },
            if is_baseline { "1".to_owned() } else { ratio(row.rate_ratio) },
            untimed.memory_per_connection.map_or_else(dash, short),
            untimed.syscalls_per_request.map_or_else(dash, short),
            row.idle_cpu_share.map_or_else(dash, |share| format!("{:.1} %", share * 100.0)),
        ];
        let _ = write!(page, "<tr><th scope=\"row\">{}</th>", escaped(&row.model));
        for cell in cells {
            let _ = write!(page, "<td>{}</td>", escaped(&cell));
        }
        page.push_str("</tr>");
    }
    page.push_str("</tbody></table></div>");
    let troubles = table.rows.iter().filter_map(|row| Some((&row.model, row.trouble.as_ref()?)));
    for (model, trouble) in troubles {
        let _ = write!(page, "<p class=\"look\">{}: {}</p>", escaped(model), escaped(trouble));
    }
    if table.rows.iter().any(|row| row.generator_limited) {
        page.push_str(
            "<p class=\"look\">The load generator is what limits some of these: compare CPU time per \
             request, not throughput.</p>",
        );
    }
    if table.is_loopback_limited() {
        page.push_str(
            "<p class=\"look\">Most of these spend 90 % of their CPU time in the kernel, at loopback: models \
             can differ in the rest only.</p>",
        );
    }
}

/// Opens a figure, and closes it with the table behind the chart.
pub(super) fn framed(
    page: &mut String,
    title: &str,
    unit: &str,
    chart: &str,
    head: &[&str],
    rows: &[Vec<String>],
) {
    let _ = write!(
        page,
        "<figure><figcaption><h3>{}</h3>{}</figcaption>{chart}<details><summary>As a table</summary>\
         <div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{}\"><table><thead><tr>",
        escaped(title),
        escaped(unit),
        escaped(title)
    );
    for cell in head {
        let _ = write!(page, "<th scope=\"col\">{}</th>", escaped(cell));
    }
    page.push_str("</tr></thead><tbody>");
    for row in rows {
        page.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let _ = match column {
                0 => write!(page, "<th scope=\"row\">{}</th>", escaped(cell)),
                _ => write!(page, "<td>{}</td>", escaped(cell)),
            };
        }
        page.push_str("</tr>");
    }
    page.push_str("</tbody></table></div></details></figure>");
}

pub(super) fn cell(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), short)
}

/// A sentence for who cannot see the chart: who has the most and who the least.
pub(super) fn describe(unit: &str, values: &[(&str, f64)]) -> String {
    let by = |a: &&(&str, f64), b: &&(&str, f64)| a.1.total_cmp(&b.1);
    match (values.iter().min_by(by), values.iter().max_by(by)) {
        (Some(least), Some(most)) => format!(
            "In {unit}: the least is {} with {}, the most {} with {}. The table below has all values.",
            least.0,
            short(least.1),
            most.0,
            short(most.1)
        ),
        _ => "There are no values.".to_owned(),
    }
}

fn over_connections(
    page: &mut String,
    comparison: &Comparison,
    number: usize,
    group: &Group<'_>,
    figure: &Figure,
    most: f64,
) {
    let mut models: Vec<&str> = Vec::new();
    for row in group.iter().flat_map(|(_, table)| &table.rows) {
        if !models.contains(&row.model.as_str()) {
            models.push(&row.model);
        }
    }
    let value = |table: &Table, model: &str| {
        (figure.pick)(table.rows.iter().find(|row| row.model == model)?)
    };
    let drawn: Vec<Line<'_>> = models
        .iter()
        .map(|model| Line {
            model,
            series: series(comparison, model),
            marks: group
                .iter()
                .map(|(place, table)| Some(Mark { table: *place, value: value(table, model)? }))
                .collect(),
        })
        .collect();
    let labels: Vec<String> =
        group.iter().map(|(_, table)| table.connections.to_string()).collect();
    let last: Vec<(&str, f64)> = models
        .iter()
        .filter_map(|model| Some((*model, value(group[group.len() - 1].1, model)?)))
        .collect();
    let title = format!("{} over connections", figure.title);
    let about = About {
        id: &format!("g{number}-{}", figure.metric),
        title: &title,
        description: &format!("With the most connections. {}", describe(figure.unit, &last)),
        metric: figure.metric,
    };
    let rows: Vec<Vec<String>> = models
        .iter()
        .map(|model| {
            let values = group.iter().map(|(_, table)| cell(value(table, model)));
            std::iter::once((*model).to_owned()).chain(values).collect()
        })
        .collect();
    let head: Vec<&str> =
        std::iter::once("connections").chain(labels.iter().map(String::as_str)).collect();
    let chart = lines(&about, &labels, Axis::Linear(most), &drawn);
    framed(page, &title, &format!("{}, over connections", figure.unit), &chart, &head, &rows);
}

fn single(
    page: &mut String,
    comparison: &Comparison,
    number: usize,
    (place, table): (usize, &Table),
    figure: &Figure,
    most: f64,
) {
    let values: Vec<(&str, f64)> = table
        .rows
        .iter()
        .filter_map(|row| Some((row.model.as_str(), (figure.pick)(row)?)))
        .collect();
    if values.is_empty() {
        return;
    }
    let drawn: Vec<Bar<'_>> = table
        .rows
        .iter()
        .map(|row| Bar {
            model: &row.model,
            series: series(comparison, &row.model),
            parts: (figure.pick)(row)
                .map(|value| Part::of_model(figure.metric, 0, Mark { table: place, value }))
                .into_iter()
                .collect(),
        })
        .collect();
    let about = About {
        id: &format!("b{number}-{}", figure.metric),
        title: figure.title,
        description: &describe(figure.unit, &values),
        metric: figure.metric,
    };
    let rows: Vec<Vec<String>> =
        table.rows.iter().map(|row| vec![row.model.clone(), cell((figure.pick)(row))]).collect();
    let chart = bars(&about, most, &drawn, &[]);
    framed(page, figure.title, figure.unit, &chart, &["model", figure.unit], &rows);
}

fn percentiles(
    page: &mut String,
    comparison: &Comparison,
    (place, table): (usize, &Table),
    (least, most): (f64, f64),
) {
    let Some(labels) = table
        .rows
        .iter()
        .find(|row| !row.percentiles.is_empty())
        .map(|row| row.percentiles.iter().map(|point| point.percentile.to_string()))
    else {
        return;
    };
    // From the median on: what is below it is of little concern.
    let labels: Vec<String> = labels.skip(FIRST_PERCENTILE).collect();
    let drawn: Vec<Line<'_>> = table
        .rows
        .iter()
        .filter(|row| !row.percentiles.is_empty())
        .map(|row| Line {
            model: &row.model,
            series: series(comparison, &row.model),
            marks: row
                .percentiles
                .iter()
                .skip(FIRST_PERCENTILE)
                .map(|point| (point.us > 0.0).then_some(Mark { table: place, value: point.us }))
                .collect(),
        })
        .collect();
    let title = format!("Latency percentiles, {} connections", table.connections);
    let medians: Vec<(&str, f64)> = table
        .rows
        .iter()
        .filter_map(|row| Some((row.model.as_str(), row.p99_us?.median)))
        .collect();
    let about = About {
        id: &format!("p{place}"),
        title: &title,
        description: &format!("At the 99th percentile. {}", describe("µs", &medians)),
        metric: "percentiles",
    };
    let rows: Vec<Vec<String>> = table
        .rows
        .iter()
        .map(|row| {
            let points = row.percentiles.iter().skip(FIRST_PERCENTILE);
            std::iter::once(row.model.clone()).chain(points.map(|point| short(point.us))).collect()
        })
        .collect();
    let head: Vec<&str> =
        std::iter::once("percentile").chain(labels.iter().map(String::as_str)).collect();
    let chart = lines(&about, &labels, Axis::Logarithmic(least, most), &drawn);
    framed(
        page,
        &title,
        "µs (each line ten times the last), over percentiles",
        &chart,
        &head,
        &rows,
    );
}

/// The median's place among the percentiles of a row.
const FIRST_PERCENTILE: usize = 2;

/// Requests a second in the slices of a row's rounds, one after the other.
fn slice_rates(row: &Row) -> impl Iterator<Item = f64> {
    let slices = row.measured.iter().flat_map(|measured| &measured.load.series);
    slices.map(|slice| slice.requests_per_second)
}

fn time_series(
    page: &mut String,
    comparison: &Comparison,
    (place, table): (usize, &Table),
    most: f64,
) {
    let all: Vec<(&Row, Vec<f64>)> = table
        .rows
        .iter()
        .map(|row| (row, slice_rates(row).collect::<Vec<f64>>()))
        .filter(|(_, rates)| !rates.is_empty())
        .collect();
    if all.is_empty() {
        return;
    }
    let _ = write!(
        page,
        "<figure><figcaption><h3>Throughput over time, {} connections</h3>Round after round, from 0 to {} \
         requests a second in each. The CSV file has the values.</figcaption><div class=\"sparks\">",
        table.connections,
        short(most)
    );
    for (row, rates) in all {
        let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
        let largest = rates.iter().copied().fold(0.0, f64::max);
        let about = About {
            id: &format!("t{place}-{}", series(comparison, &row.model)),
            title: &format!("{} over time", row.model),
            description: &format!(
                "From {} to {} requests a second in {} slices of time.",
                short(least),
                short(largest),
                rates.len()
            ),
            metric: "series",
        };
        let colour = series(comparison, &row.model);
        let chart = spark(&about, (place, &row.model), colour, most, &rates);
        let _ = write!(page, "<div>{}{chart}</div>", escaped(&row.model));
    }
    page.push_str("</div></figure>");
}

/// How it was measured, and where.
fn about(page: &mut String, comparison: &Comparison) {
    let environment = &comparison.environment;
    page.push_str("<footer><h2>How, and where</h2><ul>");
    let mut items = comparison.conditions.clone();
    items.push(format!("measured intervals of {} s", comparison.seconds));
    items.push(format!("system calls {}", comparison.syscalls_counted));
    items.push(format!(
        "descriptors {} · somaxconn {} · ports {} · TCP buffers {} · governor {} · load before {}",
        environment.descriptors,
        environment.somaxconn.map_or_else(|| "?".to_owned(), |backlog| backlog.to_string()),
        environment.port_range.as_deref().unwrap_or("?"),
        environment.tcp_buffers.as_deref().unwrap_or("?"),
        environment.governor.as_deref().unwrap_or("none seen"),
        environment.load_averages.as_deref().unwrap_or("?"),
    ));
    if !environment.versions.is_empty() {
        items.push(environment.versions.join(" · "));
    }
    items.push(if environment.mitigations.is_empty() {
        "no mitigations".to_owned()
    } else {
        format!("mitigations: {}", environment.mitigations.join("; "))
    });
    for item in items {
        let _ = write!(page, "<li>{}</li>", escaped(&item));
    }
    page.push_str("</ul></footer>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Percentile;
    use crate::compare::fixture::{comparison, row, table};
    use crate::load::Slice;

    /// A row with latencies of so many microseconds and more, and so many requests a second.
    fn drawn(model: &str, us: f64, rate: f64) -> Row {
        let mut row = row(model, 6.0, 2);
        let points = [0.0, 25.0, 50.0, 75.0, 90.0, 99.0, 99.9, 99.99, 100.0];
        let point =
            |(at, percentile): (usize, f64)| Percentile { percentile, us: us * (1 + at) as f64 };
        row.percentiles = points.into_iter().enumerate().map(point).collect();
        for measured in &mut row.measured {
            measured.load.series = vec![Slice {
                end_seconds: 0.1,
                requests_per_second: rate,
                p50_us: us,
                p99_us: us,
                max_us: us,
            }];
        }
        row
    }

    /// What stands between two pieces of text, wherever it does.
    fn between<'a>(text: &'a str, from: &str, to: &str) -> Vec<&'a str> {
        text.split(from).skip(1).filter_map(|rest| rest.split(to).next()).collect()
    }

    #[test]
    fn charts_of_all_tables_have_the_same_axes() {
        let slow = table(1, vec![drawn("tokio", 4_000.0, 500.0)]);
        // One that gave no reply has no place on a logarithm's axis, and does not move it.
        let mut quick = table(64, vec![drawn("tokio", 20.0, 2_000.0), drawn("epoll", 0.0, 0.0)]);
        quick.protocol = "http".to_owned();
        let page = page(&comparison(vec![slow, quick]));

        let charts = between(&page, "<h3>Latency percentiles, ", "</svg>");
        let ticks = |chart: &&str| -> Vec<String> {
            let ticks = between(chart, "<text class=\"tick end\"", "</text>");
            ticks.iter().map(|tick| tick.split('>').next_back().unwrap().to_owned()).collect()
        };
        let axes: Vec<Vec<String>> = charts.iter().map(ticks).collect();
        // From three times 20 µs to nine times 4 ms.
        let expected = ["10", "100", "1000", "10k", "100k"];
        assert_eq!(axes, [expected, expected]);

        let captions = between(&page, "Round after round, from 0 to ", " requests");
        assert_eq!(captions, ["2000", "2000"]);
        let paths: Vec<&str> = page
            .split("<path class=\"line ")
            .filter(|path| path.contains("data-metric=\"series\""))
            .filter_map(|path| between(path, " d=\"", "\"").first().copied())
            .collect();
        // A quarter of the way up, and all of it.
        assert_eq!(paths[..2], ["M0.0 43.0L200.0 43.0", "M0.0 4.0L200.0 4.0"]);
    }
}
