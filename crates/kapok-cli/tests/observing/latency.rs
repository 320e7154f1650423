//! `kapok latency`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::servers::{Server, kapok, text};

fn table(arguments: &[&str]) -> BTreeMap<String, Value> {
    let output = kapok(&[&["latency", "--json"], arguments].concat());
    let table: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
    let lines = table["lines"].as_array().unwrap().iter();
    lines.map(|line| (line["name"].as_str().unwrap().to_owned(), line.clone())).collect()
}

fn median(line: &Value) -> f64 {
    line["median_ns"].as_f64().unwrap_or_else(|| panic!("{line}"))
}

#[test]
fn every_line_has_a_figure_a_spread_and_a_method() {
    let server = Server::kapok("threads");
    let lines = table(&["--repeats", "5", "--peer", &server.addr]);
    for name in [
        "instruction",
        "branch mispredicted",
        "L1 cache",
        "L2 cache",
        "memory",
        "mutex, free",
        "copy of 1 MiB",
        "system call",
        "page fault",
        "thread switch",
        "thread spawn",
        "task switch, tokio",
        "task spawn, tokio",
        "fiber switch",
        "fiber spawn",
        "cached file read, 4 KiB",
        "disk read, random 4 KiB",
        "disk read, next 1 MiB",
        "fsync",
        "loopback round trip",
        "network round trip",
    ] {
        let line = lines.get(name).unwrap_or_else(|| panic!("no line {name}"));
        // A file system without O_DIRECT says so.
        if name.starts_with("disk") && line["trouble"].is_string() {
            continue;
        }
        assert_eq!(line["trouble"], Value::Null, "{line}");
        assert!(median(line) > 0.0, "{line}");
        assert!(line["least_ns"].as_f64() <= line["median_ns"].as_f64(), "{line}");
        assert!(line["median_ns"].as_f64() <= line["most_ns"].as_f64(), "{line}");
        assert!(line["method"].as_str().unwrap().len() > 10, "{line}");
    }
    // What is so on every machine that this could run on.
    let is_faster = |fast: &str, slow: &str| {
        let (fast, slow) = (&lines[fast], &lines[slow]);
        let fastest = fast["least_ns"].as_f64().unwrap();
        assert!(fastest < median(slow), "{fast} and {slow}");
    };
    is_faster("instruction", "L1 cache");
    is_faster("L1 cache", "memory");
    is_faster("L2 cache", "memory");
    is_faster("L1 cache", "system call");
    is_faster("system call", "thread switch");
    is_faster("fiber switch", "thread switch");
    is_faster("fiber spawn", "thread spawn");
    is_faster("system call", "loopback round trip");
    let instruction = lines["instruction"]["least_ns"].as_f64().unwrap();
    assert!((0.05..20.0).contains(&instruction), "{instruction} ns");
    assert!((5.0..100_000.0).contains(&lines["system call"]["least_ns"].as_f64().unwrap()));
}

#[test]
fn two_runs_agree() {
    // On a quiet machine medians agree within 20 % (see docs/design/costs.md for the command); the
    // fastest rounds of what no other process gets in the way of agree on any.
    let only = ["--only", "instruction,L1,system call,fiber switch", "--repeats", "25"];
    let (one, other) = (table(&only), table(&only));
    assert_eq!(one.len(), 4);
    for (name, line) in &one {
        let fastest = |line: &Value| line["least_ns"].as_f64().unwrap();
        let ratio = fastest(line) / fastest(&other[name]);
        assert!((0.4..2.5).contains(&ratio), "{name}: {line} and {}", other[name]);
    }
}

#[test]
fn lines_are_chosen_by_words_and_a_wrong_one_is_named() {
    let lines = table(&["--only", "fiber", "--repeats", "1"]);
    assert_eq!(lines.keys().collect::<Vec<_>>(), ["fiber spawn", "fiber switch"]);
    let refused = kapok(&["latency", "--only", "tape"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("no line is about `tape`"), "{}", text(&refused.stderr));
    let human = kapok(&["latency", "--only", "system call", "--repeats", "2"]);
    assert_eq!(human.status.code(), Some(0));
    assert!(text(&human.stdout).contains("getppid"), "{}", text(&human.stdout));
    // Nobody listens there.
    let unreached = kapok(&["latency", "--only", "network", "--peer", "127.0.0.1:1"]);
    assert_eq!(unreached.status.code(), Some(1));
    assert!(text(&unreached.stdout).contains("not measured: "), "{}", text(&unreached.stdout));
}
