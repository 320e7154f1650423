//! One result against an older one.

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use serde_json::Value;

use crate::{RESULT, file, kapok, text, turn};

/// A result with so many rounds, of which the costs of one model are multiplied by `factor`.
pub(crate) fn result(name: &str, rounds: usize, factor: f64) -> PathBuf {
    let mut result: Value = serde_json::from_str(RESULT).unwrap();
    let table = result["tables"][1].take();
    result["tables"] = Value::Array(vec![table]);
    for (place, row) in result["tables"][0]["rows"].as_array_mut().unwrap().iter_mut().enumerate() {
        let slower = if row["model"] == "fiber-uring" { factor } else { 1.0 };
        let template = row["measured"][0].take();
        let rounds = (0..rounds).map(|round| {
            let mut measured = template.clone();
            // Some per cent of noise, the same in every result.
            let noise = 1.0 + ((round * 7 + place * 5) % 11) as f64 * 0.004;
            measured["round"] = round.into();
            measured["cpu_us_per_request"] = (6.0 * noise * slower).into();
            measured["load"]["requests_per_second"] = (50_000.0 / noise / slower).into();
            measured
        });
        row["measured"] = rounds.collect();
    }
    let path = file(name);
    fs::write(&path, result.to_string()).unwrap();
    path
}

/// What is said where something has become worse, or nobody could tell.
const FINDINGS: [&str; 4] = ["WORSE", "LOST", "NOT COMPARABLE", "CANNOT BE TOLD"];

/// The status and what was said, once they are seen to agree: 1 with a finding, and 0 with none.
fn judged(output: &Output) -> (i32, String) {
    let said = text(&output.stdout);
    let found = FINDINGS.iter().any(|finding| said.contains(finding));
    let complaint = text(&output.stderr);
    assert!(said.contains("Against the older one"), "{said} {complaint}");
    assert_eq!(output.status.code(), Some(i32::from(found)), "{said} {complaint}");
    (i32::from(found), said)
}

#[test]
fn a_regression_fails_and_noise_or_an_improvement_does_not() {
    let old = result("old.json", 20, 1.0);
    let report = |new: &PathBuf| {
        let reported = kapok(&["report", old.to_str().unwrap(), new.to_str().unwrap()]);
        let (code, said) = judged(&reported);
        (Some(code), said)
    };
    let (code, said) = report(&result("same.json", 20, 1.0));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("not told apart") && !said.contains("WORSE"), "{said}");

    let (code, said) = report(&result("worse.json", 20, 1.05));
    assert_eq!(code, Some(1), "{said}");
    let worse: Vec<&str> = said.lines().filter(|line| line.contains("WORSE")).collect();
    assert!(worse.len() == 2 && worse.iter().all(|line| line.contains("fiber-uring")), "{said}");
    assert!(said.contains("+5.0 %"), "{said}");

    let (code, said) = report(&result("better.json", 20, 0.9));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("better"), "{said}");

    // Three rounds prove nothing, whatever they say, and that is no reason to pass.
    let few = result("few.json", 3, 1.5);
    let few_old = result("few-old.json", 3, 1.0);
    let reported = kapok(&["report", few_old.to_str().unwrap(), few.to_str().unwrap()]);
    let said = text(&reported.stdout);
    assert_eq!(reported.status.code(), Some(1), "{said}");
    assert!(
        said.contains("too few rounds to find any change") && !said.contains("WORSE"),
        "{said}"
    );
    // Nor is it to be begun.
    let against = ["compare", "--rounds", "3", "--against", few_old.to_str().unwrap()];
    let refused = kapok(&against);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stdout));
    assert!(text(&refused.stderr).contains("would do"), "{}", text(&refused.stderr));
}

#[test]
fn a_comparison_that_fails_leaves_older_results() {
    let path = result("kept.json", 20, 1.0);
    let kept = fs::read(&path).unwrap();
    let file = path.to_str().unwrap();
    let to_it = ["--json", file, "--csv", file, "--hdr", file, "--html", file];
    let wrong = ["compare", "--models", "epoll,poll", "--baseline", "tokoi", "--against", file];
    let failed = kapok(&[&wrong[..], &to_it[..]].concat());
    assert_eq!(failed.status.code(), Some(2), "{}", text(&failed.stderr));
    assert!(fs::read(&path).unwrap() == kept, "a configuration that is refused");

    // Nothing can be measured of a server that is not there.
    let absent = ["compare", "--protocol", "echo", "--server", "absent=./no-such-server {addr}"];
    let short = ["--connections", "1", "--rounds", "1", "--seconds", "0.1"];
    let failed = kapok(&[&absent[..], &short[..], &to_it[..]].concat());
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed.stderr));
    assert!(fs::read(&path).unwrap() == kept, "{}", text(&failed.stdout));
}

#[test]
fn a_comparison_against_an_older_one_fails_if_something_became_worse_and_only_then() {
    let _turn = turn();
    // A hundredth of what fibers take, so that they have become worse whatever is measured now; a hundred
    // times that, so that they have become better; and about as much.
    for (name, factor, code) in [
        ("against-worse.json", 0.01, Some(1)),
        ("against-better.json", 100.0, Some(0)),
        ("against-alike.json", 1.0, None),
    ] {
        let old = result(name, 20, factor);
        let compared = kapok(&[
            "compare",
            "--protocol",
            "echo",
            "--models",
            "tokio,fiber-uring",
            "--connections",
            "16",
            "--rounds",
            "3",
            "--seconds",
            "0.3",
            "--against",
            old.to_str().unwrap(),
        ]);
        let (found, said) = judged(&compared);
        // Where all share one core there is nothing to compare with.
        if said.contains("NOT COMPARABLE") {
            continue;
        }
        assert!(said.contains("fiber-uring    CPU per request"), "{said}");
        let (worse, better) = (said.contains("WORSE"), said.contains(" better"));
        match code {
            Some(1) => assert!(worse && !better && found == 1, "{said}"),
            // A machine that stood still has lost rounds, and then it may be too few of them.
            Some(_) => assert!(better && !worse && (found == 0 || said.contains("!")), "{said}"),
            None => {}
        }
    }
}

#[test]
fn nothing_in_common_cannot_be_told_and_says_so() {
    let only_baseline = |name: &str| {
        let path = result(name, 20, 1.0);
        let mut read: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let rows = read["tables"][0]["rows"].as_array_mut().unwrap();
        rows.retain(|row| row["model"] == "tokio");
        fs::write(&path, read.to_string()).unwrap();
        path
    };
    let (old, new) = (only_baseline("alone-old.json"), only_baseline("alone-new.json"));
    let (code, said) = judged(&kapok(&["report", old.to_str().unwrap(), new.to_str().unwrap()]));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("CANNOT BE TOLD nothing was compared"), "{said}");
}
