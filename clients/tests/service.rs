//! The example's comparison, at its smallest: every model answers, and nothing goes wrong.

#![cfg(target_os = "linux")]

use std::path::PathBuf;
use std::process::Command;

/// Beside this test, where cargo puts it.
fn example() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    this.ancestors().nth(2).unwrap().join("examples/diesel_service")
}

#[test]
fn every_model_answers() {
    if Command::new("wrk").arg("--version").output().is_err() {
        kapok_clients::skip("there is no wrk (apt-get install wrk)");
        return;
    }
    let mut command = Command::new(example());
    command.args(["compare", "--connections", "30", "--kinds", "none,author,buy", "--pool", "5"]);
    let output = command.args(["--seconds", "1", "--rounds", "1"]).output().unwrap();
    let (table, said) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if said.contains("SKIPPED") {
        kapok_clients::skip("there is no PostgreSQL (apt-get install postgresql)");
        return;
    }
    assert!(output.status.success(), "{table}{said}");
    for kind in ["none", "author", "buy"] {
        for model in ["threads", "fibers-1", "fibers-2", "tokio-1", "tokio-2"] {
            let row = table
                .lines()
                .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>())
                .find(|row| row.len() > 11 && row[1] == kind && row[3] == model)
                .unwrap_or_else(|| panic!("no {kind} on {model}: {table}{said}"));
            assert!(row[4].parse::<u64>().unwrap() > 0, "no replies: {row:?}");
            // Neither a status other than 200 nor a connection that broke.
            assert_eq!(row[11], "0", "errors: {row:?}");
        }
    }
}

#[test]
fn what_cannot_be_is_said() {
    let compare = |arguments: &[&str]| {
        let output = Command::new(example()).arg("compare").args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (status, said) = compare(&["--kinds", "books"]);
    assert!(status == Some(1) && said.contains("\"books\""), "{status:?} {said}");
    assert_eq!(compare(&["--models", "goroutines"]).0, Some(2));
}
