//! `kapok latency`.

use std::collections::BTreeMap;
use std::io::Write;

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
        "rotating disk seek",
        "fsync",
        "loopback round trip",
        "network round trip",
    ] {
        let line = lines.get(name).unwrap_or_else(|| panic!("no line {name}"));
        // A file system without O_DIRECT says so.
        if name.starts_with("disk") && line["trouble"].is_string() {
            continue;
        }
        if name == "rotating disk seek" && line["absent"].is_string() {
            let why = line["absent"].as_str().unwrap();
            assert!(why.contains("no rotating disk here") || why.contains("takes root"), "{line}");
            assert_eq!((&line["median_ns"], &line["trouble"]), (&Value::Null, &Value::Null));
            continue;
        }
        assert_eq!(line["absent"], Value::Null, "{line}");
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
fn the_chapters_table_is_whole_on_a_machine_that_has_not_everything() {
    // The table of the chapter, with the values that it gives, in nanoseconds.
    let book = [
        ("instruction", 0.3),
        ("L1 cache", 1.0),
        ("memory", 100.0),
        ("disk read, random 4 KiB", 100_000.0),
        ("network round trip", 1e6),
        ("rotating disk seek", 1e7),
    ];
    let only = ["--only", "instruction,L1,memory,disk,network", "--repeats", "1"];
    let lines = table(&only);
    for (name, nanoseconds) in book {
        let line = lines.get(name).unwrap_or_else(|| panic!("no line {name}"));
        assert_eq!(line["book_ns"].as_f64(), Some(nanoseconds), "{line}");
    }
    let network = &lines["network round trip"];
    assert!(network["absent"].as_str().unwrap().contains("give --peer"), "{network}");
    assert_eq!((&network["median_ns"], &network["trouble"]), (&Value::Null, &Value::Null));
    // People see the same lines, and what is not here is no failure.
    let human = kapok(&[&["latency"], &only[..]].concat());
    let said = text(&human.stdout);
    let troubled = lines.values().any(|line| line["trouble"].is_string());
    assert_eq!(human.status.code(), Some(i32::from(troubled)), "{said}");
    for (name, _) in book {
        assert!(said.lines().any(|line| line.contains(name)), "{name} in:\n{said}");
    }
    assert!(said.contains("not measured: give --peer"), "{said}");
    // Where nothing else was asked for, there is nothing.
    let nothing = kapok(&["latency", "--only", "network"]);
    assert_eq!(nothing.status.code(), Some(1), "{}", text(&nothing.stdout));
}

/// The whole table twice, printed side by side: each median within a fifth of the other run's.
fn whole_runs_agree() {
    let server = Server::kapok("threads");
    let (one, other) = (table(&["--peer", &server.addr]), table(&["--peer", &server.addr]));
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
    println!("{:<28}{:>16}{:>16}{:>8}", "line", "first ns", "second ns", "ratio");
    let mut apart = Vec::new();
    for (name, line) in &one {
        let again = &other[name];
        // What this machine has not, it has neither time.
        if line["median_ns"].is_null() {
            assert_eq!(again["median_ns"], Value::Null, "{line} and {again}");
            let why = line["absent"].as_str().or(line["trouble"].as_str());
            println!("{name:<28}not measured: {}", why.unwrap_or("no reason was given"));
            continue;
        }
        let (first, second) = (median(line), median(again));
        let ratio = second / first;
        println!("{name:<28}{first:>16.1}{second:>16.1}{ratio:>8.3}");
        if !(0.8..=1.2).contains(&ratio) {
            apart.push(format!("{name}: {ratio:.3}"));
        }
    }
    assert!(apart.is_empty(), "further apart than a fifth: {apart:?}");
}

/// At full size, alone on the machine: `KAPOK_SCALE=full`, `--release`, `--nocapture`.
#[test]
fn two_runs_agree() {
    let full = std::env::var("KAPOK_SCALE").is_ok_and(|scale| scale == "full");
    if full && !cfg!(debug_assertions) {
        whole_runs_agree();
    } else {
        // Past the harness, which keeps what the macros print to itself.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: two whole runs, alone on the machine; KAPOK_SCALE=full and --release run them"
        );
    }
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
