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

use crate::compare::Comparison;

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

/// Writes an HDR histogram log with an entry for each row, tagged `protocol-connections-model`. Only a
/// comparison that was just made has the latencies: they are not in the JSON.
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
            let tag = format!("{}-{}-{}", table.protocol, table.connections, row.model);
            let tag = tag.replace(|letter: char| letter.is_whitespace() || letter == ',', "-");
            log.write_histogram(latencies, start, lasted, Tag::new(&tag))
                .map_err(|error| io::Error::other(format!("an HDR log: {error:?}")))?;
            start += lasted;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
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
