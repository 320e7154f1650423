//! What becomes of a comparison: files for programs and a page for people.
//!
//! - JSON, all of it, by a schema with a version: `docs/report-schema.md`. [`read`] takes it back.
//! - CSV, a line for each slice of time of each round.
//! - HDR histogram logs, an entry for each row.
//! - One HTML page that needs no network: charts with the tables behind them.

mod chart;
mod costs;
mod page;
mod scale;
mod slopes;

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

pub use page::page;

use crate::compare::{Comparison, Network, Point, Table};
use crate::serve::ServeConfig;

/// Reads what was written as JSON.
///
/// # Errors
///
/// The file cannot be read; [`io::ErrorKind::InvalidData`], with the file and the place, if it is no
/// comparison or one of a version that is not known.
pub fn read(path: &Path) -> io::Result<Comparison> {
    let named = |kind, error: &dyn std::fmt::Display| {
        io::Error::new(kind, format!("{}: {error}", path.display()))
    };
    let text = fs::read(path).map_err(|error| named(error.kind(), &error))?;
    let comparison: Comparison = serde_json::from_slice(&text).map_err(|error| {
        named(io::ErrorKind::InvalidData, &format!("not a comparison that is known: {error}"))
    })?;
    if !comparison.is_known() {
        return Err(named(
            io::ErrorKind::InvalidData,
            &format!("{} of version {} is not known", comparison.format, comparison.version),
        ));
    }
    Ok(comparison)
}

/// Writes the time series: a line for each slice of each round.
///
/// # Errors
///
/// What writing gave.
pub fn write_csv(to: &mut dyn Write, comparison: &Comparison) -> io::Result<()> {
    writeln!(
        to,
        "protocol,connections,active,bytes,pipeline,churn,cpu_us,delay_ms,rate,network,model,round,end_seconds,\
         requests_per_second,p50_us,p99_us,max_us"
    )?;
    for table in &comparison.tables {
        let optional = |value: Option<f64>| value.map_or_else(String::new, |it| it.to_string());
        let point = format!(
            "{},{},{},{},{},{},{},{},{},{}",
            table.protocol,
            table.connections,
            table.active,
            table.bytes,
            table.pipeline,
            optional(table.churn.map(|churn| churn as f64)),
            table.cpu_us,
            table.delay_ms,
            optional(table.rate),
            table.network,
        );
        for row in &table.rows {
            for measured in &row.measured {
                for slice in &measured.load.series {
                    writeln!(
                        to,
                        "{point},{},{},{},{},{},{},{}",
                        quoted(&row.model),
                        measured.round,
                        slice.end_seconds,
                        slice.requests_per_second,
                        slice.p50_us,
                        slice.p99_us,
                        slice.max_us
                    )?;
                }
            }
        }
    }
    Ok(())
}

/// A field of a CSV file (RFC 4180).
fn quoted(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

/// Writes an HDR histogram log with an entry for each row, tagged with the protocol, the connections, whatever
/// else of the point is not the default, and the model: `echo-64-tokio`, `http-64-active8-delay5ms-veth-tokio`.
/// Only a comparison that was just made has the latencies: they are not in the JSON.
///
/// # Errors
///
/// What writing gave.
pub fn write_hdr_log(to: &mut dyn Write, comparison: &Comparison) -> io::Result<()> {
    let mut to = to;
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .with_max_value_divisor(1e6)
        .begin_log_with(&mut to, &mut serializer)?;
    let mut start = std::time::Duration::ZERO;
    for table in &comparison.tables {
        for row in &table.rows {
            let Some(latencies) = &row.latencies else { continue };
            let seconds: f64 = row.measured.iter().map(|measured| measured.load.seconds).sum();
            let lasted = std::time::Duration::from_secs_f64(seconds);
            let tag = tag(table, &row.model);
            log.write_histogram(latencies, start, lasted, Tag::new(&tag))
                .map_err(|error| io::Error::other(format!("an HDR log: {error:?}")))?;
            start += lasted;
        }
    }
    Ok(())
}

/// What an entry of the log is called: no two rows of a grid alike.
fn tag(table: &Table, model: &str) -> String {
    let mut parts = vec![table.protocol.clone(), table.connections.to_string()];
    let mut unless = |usual: bool, part: String| {
        if !usual {
            parts.push(part);
        }
    };
    let usual_bytes = match table.protocol.as_str() {
        "echo" => Some(Point::new(table.connections).size_bytes),
        "http" => Some(ServeConfig::default().body_bytes),
        // A file has the size that it has.
        _ => None,
    };
    unless(table.active == table.connections, format!("active{}", table.active));
    unless(usual_bytes == Some(table.bytes), format!("{}bytes", table.bytes));
    unless(table.pipeline == 1, format!("pipeline{}", table.pipeline));
    unless(table.churn.is_none(), format!("churn{}", table.churn.unwrap_or_default()));
    unless(table.cpu_us == 0.0, format!("cpu{}us", table.cpu_us));
    unless(table.delay_ms == 0.0, format!("delay{}ms", table.delay_ms));
    unless(table.rate.is_none(), format!("rate{}", table.rate.unwrap_or_default()));
    unless(table.network == Network::Loopback, table.network.to_string());
    parts.push(model.to_owned());
    // Blanks and commas separate the fields of a line.
    parts.join("-").replace(|letter: char| letter.is_whitespace() || letter == ',', "-")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::compare::fixture::{row, table};

    #[test]
    fn a_tag_names_whatever_of_the_point_is_not_the_default() {
        let usual = table(64, vec![row("tokio", 6.0, 1)]);
        assert_eq!(tag(&usual, "tokio"), "echo-64-tokio");
        assert_eq!(tag(&usual, "one, two"), "echo-64-one--two");
        let http = Table { protocol: "http".to_owned(), bytes: 13, ..usual.clone() };
        assert_eq!(tag(&http, "tokio"), "http-64-tokio");
        let files = Table { protocol: "files".to_owned(), ..http.clone() };
        assert_eq!(tag(&files, "tokio"), "files-64-13bytes-tokio");
        let all = Table {
            active: 8,
            bytes: 16,
            pipeline: 4,
            churn: Some(3),
            cpu_us: 0.5,
            delay_ms: 2.0,
            rate: Some(100.0),
            network: Network::Veth,
            ..usual.clone()
        };
        let expected =
            "echo-64-active8-16bytes-pipeline4-churn3-cpu0.5us-delay2ms-rate100-veth-tokio";
        assert_eq!(tag(&all, "tokio"), expected);
        let points = [
            Table { connections: 8, active: 8, ..usual.clone() },
            Table { active: all.active, ..usual.clone() },
            Table { bytes: all.bytes, ..usual.clone() },
            Table { pipeline: all.pipeline, ..usual.clone() },
            Table { churn: all.churn, ..usual.clone() },
            Table { cpu_us: all.cpu_us, ..usual.clone() },
            Table { delay_ms: all.delay_ms, ..usual.clone() },
            Table { rate: all.rate, ..usual.clone() },
            Table { network: all.network, ..usual.clone() },
            usual,
            http,
            files,
            all,
        ];
        let tags: HashSet<String> = points.iter().map(|point| tag(point, "tokio")).collect();
        assert_eq!(tags.len(), points.len(), "{tags:?}");
        assert!(tags.iter().all(|tag| Tag::new(tag).is_some()), "{tags:?}");
    }

    #[test]
    fn every_number_is_read_as_it_was_written() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..100_000 {
            let number = random.f64() * 10_f64.powi(random.i32(-9..12));
            let written = serde_json::to_string(&number).unwrap();
            let read: f64 = serde_json::from_str(&written).unwrap();
            assert_eq!(read.to_bits(), number.to_bits(), "{written}");
        }
    }
}
