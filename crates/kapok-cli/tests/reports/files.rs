//! The files beside the JSON: that they hold the same.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use serde_json::Value;

pub(crate) fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// What the load generator alone used of its core.
pub(crate) fn own_share(load: &Value) -> f64 {
    number(&load["cpu_us_per_request"]) * number(&load["requests"]) / 1e6 / number(&load["seconds"])
}

/// The lines are the JSON's series, one after the other, each under its point.
pub(crate) fn check_csv(text: &str, tables: &[Value]) {
    let mut lines = text.lines();
    let head: Vec<&str> = lines.next().unwrap().split(',').collect();
    let mut next = || -> Value {
        let line = lines.next().expect("a line for each slice");
        let fields = head.iter().zip(line.split(','));
        fields.map(|(name, field)| ((*name).to_owned(), Value::from(field))).collect()
    };
    for table in tables {
        for row in table["rows"].as_array().unwrap() {
            for round in row["measured"].as_array().unwrap() {
                for slice in round["load"]["series"].as_array().unwrap() {
                    let line = next();
                    for name in ["protocol", "network"] {
                        assert_eq!(line[name], table[name], "{line}");
                    }
                    assert_eq!(line["model"], row["model"], "{line}");
                    let same = |name: &str, value: &Value| {
                        let written: f64 = line[name].as_str().unwrap().parse().unwrap();
                        assert_eq!(written, number(value), "{name} of {line}");
                    };
                    for name in [
                        "connections",
                        "active",
                        "bytes",
                        "pipeline",
                        "churn",
                        "cpu_us",
                        "delay_ms",
                        "rate",
                    ] {
                        same(name, &table[name]);
                    }
                    same("round", &round["round"]);
                    for name in ["end_seconds", "requests_per_second", "p50_us", "p99_us", "max_us"]
                    {
                        same(name, &slice[name]);
                    }
                }
            }
        }
    }
}

/// Each row has an entry under a name of its own, whose percentiles are the JSON's.
pub(crate) fn check_log(log: &[u8], tables: &[Value]) {
    let mut entries = HashMap::new();
    for entry in IntervalLogIterator::new(log) {
        let LogEntry::Interval(entry) = entry.unwrap() else { continue };
        let bytes = STANDARD.decode(entry.encoded_histogram()).unwrap();
        let latencies: Histogram<u64> =
            Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
        let tag = entry.tag().unwrap().as_str().to_owned();
        assert!(entries.insert(tag.clone(), latencies).is_none(), "{tag} twice");
    }
    for table in tables {
        let (connections, bytes) = (&table["connections"], &table["bytes"]);
        // As many as there are is the default.
        let active = if *connections == 2 { "" } else { "-active2" };
        for row in table["rows"].as_array().unwrap() {
            let model = row["model"].as_str().unwrap();
            let tag = format!(
                "echo-{connections}{active}-{bytes}bytes-churn3-cpu0.5us-delay1ms-rate100-{model}"
            );
            let latencies = entries.remove(&tag);
            let latencies = latencies.unwrap_or_else(|| panic!("{tag}: {:?}", entries.keys()));
            for point in row["percentiles"].as_array().unwrap() {
                let found = latencies.value_at_percentile(number(&point["percentile"]));
                assert_eq!(found as f64 / 1e3, number(&point["us"]), "{tag}: {point}");
            }
        }
    }
    assert!(entries.is_empty(), "{:?}", entries.keys());
}
