//! What compare writes, and what is made of it later.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

const RESULT: &str = include_str!("results/grid.json");

fn kapok(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kapok"))
        .args(arguments)
        .env_remove("KAPOK_LOG")
        .env("TMPDIR", env!("CARGO_TARGET_TMPDIR"))
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Comparisons take turns: two at once would measure each other.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

#[test]
fn a_grid_has_a_table_for_each_combination_and_every_file_is_written() {
    let _turn = turn();
    let (json, csv, hdr) = (file("grid.json"), file("grid.csv"), file("grid.hlog"));
    let compared = kapok(&[
        "compare",
        "--protocol",
        "echo",
        "--models",
        "threads,epoll",
        "--baseline",
        "threads",
        "--connections",
        "2,4",
        "--active",
        "2",
        "--size",
        "16,256",
        "--cpu-us",
        "0.5",
        "--delay-ms",
        "1",
        "--churn",
        "3",
        "--rate",
        "100",
        "--rounds",
        "2",
        "--seconds",
        "0.4",
        "--json",
        json.to_str().unwrap(),
        "--csv",
        csv.to_str().unwrap(),
        "--hdr",
        hdr.to_str().unwrap(),
    ]);
    assert_eq!(compared.status.code(), Some(0), "{}", text(&compared.stderr));
    let said = text(&compared.stdout);
    let page = said.lines().find_map(|line| line.strip_prefix("The page with charts: ")).unwrap();
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("</html>") && page.contains("1 ms at a backend"), "{said}");

    let written: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!((&written["format"], &written["version"]), (&"kapok-compare".into(), &1.into()));
    let tables = written["tables"].as_array().unwrap();
    let points: Vec<(u64, u64)> = tables
        .iter()
        .map(|table| (table["connections"].as_u64().unwrap(), table["bytes"].as_u64().unwrap()))
        .collect();
    assert_eq!(points, [(2, 16), (2, 256), (4, 16), (4, 256)]);
    let mut measured = 0;
    for table in tables {
        assert_eq!((table["cpu_us"].as_f64(), table["delay_ms"].as_f64()), (Some(0.5), Some(1.0)));
        assert_eq!((table["active"].as_u64(), table["churn"].as_u64()), (Some(2), Some(3)));
        assert_eq!(table["rate"].as_f64(), Some(100.0));
        for row in table["rows"].as_array().unwrap() {
            assert_eq!(row["trouble"], Value::Null, "{row}");
            // On a machine that stood still meanwhile, a round is missing.
            let rounds = row["measured"].as_array().unwrap().len();
            let dropped = row["dropped_rounds"].as_u64().unwrap() as usize;
            assert!(rounds > 0 && rounds + dropped == 2, "{row}");
            measured += rounds;
            // It waited for the backend, and latencies count from when they were due.
            assert!(row["p50_us"]["median"].as_f64().unwrap() >= 1000.0, "{row}");
            assert!(row["measured"][0]["load"]["reopened"].as_u64().unwrap() > 0, "{row}");
            assert!(row["percentiles"].as_array().unwrap().len() > 5, "{row}");
        }
    }
    // Reading it back loses nothing.
    let read = kapok(&["report", json.to_str().unwrap(), "--json"]);
    assert_eq!(serde_json::from_slice::<Value>(&read.stdout).unwrap(), written);
    // And the table is the same as the first time.
    let printed = text(&kapok(&["report", json.to_str().unwrap()]).stdout);
    assert!(said.starts_with(&printed), "{printed}\nand first:\n{said}");

    // Of four tables, two models and two rounds: four slices of a tenth of a second each, and the head.
    let lines = fs::read_to_string(&csv).unwrap().lines().count();
    assert_eq!(lines, measured * 4 + 1);
    let log = fs::read_to_string(&hdr).unwrap();
    let tags: Vec<&str> = log.lines().filter_map(|line| line.split(',').next()).collect();
    assert_eq!(tags.iter().filter(|tag| **tag == "Tag=echo-4-epoll").count(), 2, "{tags:?}");
}

#[test]
fn the_full_profile_ends_with_a_verdict_or_at_its_cap() {
    let _turn = turn();
    let compared = kapok(&[
        "compare",
        "--full",
        "--protocol",
        "echo",
        "--models",
        "threads,epoll",
        "--baseline",
        "threads",
        "--connections",
        "4",
        "--rounds",
        "12",
        "--seconds",
        "0.3",
        "--json",
        "-",
    ]);
    assert_eq!(compared.status.code(), Some(0), "{}", text(&compared.stderr));
    let written: Value = serde_json::from_slice(&compared.stdout).unwrap();
    let table = &written["tables"][0];
    let rounds = table["rounds"].as_u64().unwrap();
    assert!((10..=12).contains(&rounds), "{rounds}");
    assert_eq!(written["first_look"], false);
    let ratio = &table["rows"][1]["cpu_ratio"];
    // On a machine that stood still meanwhile, some rounds are missing.
    let rows = table["rows"].as_array().unwrap();
    let dropped: u64 = rows.iter().map(|row| row["dropped_rounds"].as_u64().unwrap()).sum();
    let paired = ratio["rounds"].as_u64().unwrap();
    assert!(paired <= rounds && paired + dropped >= rounds, "{dropped}: {ratio}");
    let verdict = ratio["verdict"].as_str().unwrap();
    let interval = &ratio["interval"];
    let half_width = (interval[1].as_f64().unwrap() / interval[0].as_f64().unwrap()).sqrt() - 1.0;
    let enough = verdict != "unsettled" && half_width <= 0.025;
    assert!(enough || rounds == 12, "{ratio}");
    assert_eq!(table["capped"], rounds == 12, "{table}");
}

/// A result with so many rounds, of which the costs of one model are multiplied by `factor`.
fn result(name: &str, rounds: usize, factor: f64) -> PathBuf {
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

#[test]
fn what_limited_a_comparison_is_said_and_only_then() {
    let shown = |name: &str, change: &dyn Fn(&mut Vec<Value>)| {
        let path = result(name, 6, 1.0);
        let mut read: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let rows = read["tables"][0]["rows"].as_array_mut().unwrap();
        assert_eq!(rows.len(), 4);
        change(rows);
        fs::write(&path, read.to_string()).unwrap();
        let page = file("limits.html");
        let shown = kapok(&["report", path.to_str().unwrap(), "--html", page.to_str().unwrap()]);
        assert_eq!(shown.status.code(), Some(0), "{}", text(&shown.stderr));
        (text(&shown.stdout), fs::read_to_string(page).unwrap())
    };
    // In the terminal and in the page.
    let generator = ["  * the load generator is what limits", "The load generator is what limits"];
    let loopback =
        ["  ! most of these spend 90 % of their CPU", "Most of these spend 90 % of their CPU"];
    let says = |(printed, page): &(String, String), [first, second]: [&str; 2]| {
        assert_eq!(printed.contains(first), page.contains(second), "{printed}");
        printed.contains(first)
    };
    let starred = |(printed, _): &(String, String), model: &str| {
        let row = printed.lines().find(|line| line.contains(&format!("│ {model} "))).unwrap();
        row.contains('*')
    };
    let free = shown("limits-free.json", &|_| {});
    assert!(!says(&free, generator) && !says(&free, loopback), "{}", free.0);
    assert!(!starred(&free, "epoll"));

    // One row is enough, and it is marked.
    let limited = shown("limits-load.json", &|rows| {
        let row = rows.iter_mut().find(|row| row["model"] == "epoll").unwrap();
        row["generator_limited"] = true.into();
    });
    assert!(says(&limited, generator) && !says(&limited, loopback), "{}", limited.0);
    assert!(starred(&limited, "epoll") && !starred(&limited, "threads"), "{}", limited.0);

    // More than half of the rows at 90 % or more.
    for (rows_in_kernel, share, expected) in
        [(2, 0.95, false), (3, 0.95, true), (3, 0.9, true), (4, 0.89, false)]
    {
        let found = shown("limits-kernel.json", &|rows| {
            for row in &mut rows[..rows_in_kernel] {
                row["system_share"] = share.into();
            }
        });
        assert_eq!(says(&found, loopback), expected, "{rows_in_kernel} at {share}: {}", found.0);
        assert!(!says(&found, generator), "{}", found.0);
    }
}

/// Holds results against the schema in the documents, and says what is wrong with each.
const VALIDATOR: &str = r#"
import json, sys
from jsonschema import Draft202012Validator
with open(sys.argv[1]) as file:
    schema = json.load(file)
Draft202012Validator.check_schema(schema)
validator = Draft202012Validator(schema)
for path in sys.argv[2:]:
    with open(path) as file:
        for error in validator.iter_errors(json.load(file)):
            print(path, error.json_path, error.message[:200])
"#;

/// A Python that has jsonschema, if there is one: the machine's own, or the first in the path.
fn python() -> Option<&'static str> {
    let found = ["/usr/bin/python3", "python3"].into_iter().find(|python| {
        let tried = Command::new(python).args(["-c", "import jsonschema"]).output();
        tried.is_ok_and(|output| output.status.success())
    });
    assert!(
        found.is_some() || std::env::var_os("CI").is_none(),
        "no python3 has jsonschema: apt install python3-jsonschema"
    );
    if found.is_none() {
        eprintln!("SKIPPED: no python3 has jsonschema (apt install python3-jsonschema)");
    }
    found
}

#[test]
fn what_is_written_is_as_the_schema_says() {
    let Some(python) = python() else { return };
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/report.schema.json");
    let complaints = |paths: &[&PathBuf]| {
        let checked =
            Command::new(python).args(["-c", VALIDATOR, schema]).args(paths).output().unwrap();
        assert!(checked.status.success(), "{}", text(&checked.stderr));
        text(&checked.stdout)
    };
    let _turn = turn();
    // Everything that there may be: several points, slopes, costs, a rate, one that fails.
    let (written, grown) = (file("schema.json"), file("schema-slopes.json"));
    let short = ["--protocol", "echo", "--rounds", "2", "--seconds", "0.2"];
    for (path, options) in [
        (&written, &["--connections", "4", "--rate", "100", "--delay-ms", "1", "--churn", "9"][..]),
        (&grown, &["--connections", "2,4,8", "--active", "2", "--costs"][..]),
    ] {
        let to = ["--json", path.to_str().unwrap()];
        let who =
            ["compare", "--models", "epoll,fiber", "--server", "absent=./no-such-server {addr}"];
        let compared = kapok(&[&who[..], &short[..], options, &to[..]].concat());
        assert_eq!(compared.status.code(), Some(0), "{}", text(&compared.stderr));
    }
    let read: Value = serde_json::from_slice(&fs::read(&grown).unwrap()).unwrap();
    assert!(!read["slopes"].as_array().unwrap().is_empty(), "{read}");
    assert_eq!(complaints(&[&written, &grown]), "");

    // One that is wrong is found.
    let mut wrong = read;
    wrong["tables"][0]["rows"][0]["measured"][0]["load"]["requests"] = "many".into();
    wrong.as_object_mut().unwrap().remove("environment");
    let path = file("schema-wrong.json");
    fs::write(&path, wrong.to_string()).unwrap();
    let said = complaints(&[&path]);
    assert!(said.contains("'environment' is a required property"), "{said}");
    assert!(said.contains("load.requests") && said.contains("'many' is not of type"), "{said}");
}

#[test]
fn files_that_are_no_results_are_refused_by_name() {
    let path = file("nonsense.json");
    fs::write(&path, "{\"format\":\"kapok-compare\"}").unwrap();
    let refused = kapok(&["report", path.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    let complaint = text(&refused.stderr);
    assert!(
        complaint.contains("nonsense.json") && complaint.contains("missing field"),
        "{complaint}"
    );

    let newer = RESULT.replacen("\"version\":1", "\"version\":99", 1);
    fs::write(&path, newer).unwrap();
    let complaint = text(&kapok(&["report", path.to_str().unwrap()]).stderr);
    assert!(complaint.contains("version 99 is not known"), "{complaint}");
    // Before anything is measured.
    let refused = kapok(&["compare", "--against", path.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused.stdout));
}

#[test]
fn serve_waits_for_a_server_of_its_own() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;

    let _turn = turn();
    let mut served = Command::new(env!("CARGO_BIN_EXE_kapok"))
        .args(["serve", "--addr", "127.0.0.1:0", "--model", "poll", "--delay-ms", "20"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(served.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let addr = line.trim().strip_prefix("listening on ").expect(&line).to_owned();
    let load = kapok(&["load", &addr, "-c", "8", "--seconds", "0.5", "--json"]);
    // SAFETY: only numbers are passed; the child is ours and not reaped.
    unsafe { libc::kill(served.id() as libc::pid_t, libc::SIGTERM) };
    assert!(served.wait().unwrap().success());
    let report: Value = serde_json::from_slice(&load.stdout).unwrap();
    assert!(report["latency"]["p50_us"].as_f64().unwrap() >= 20_000.0, "{report}");
    assert!(report["requests"].as_u64().unwrap() > 8, "{report}");
    let both = kapok(&["serve", "--backend", "127.0.0.1:1", "--delay-ms", "1"]);
    assert_eq!(both.status.code(), Some(2), "{}", text(&both.stderr));
}

/// What one more registered connection costs, in a sweep: the terminal's text, the page and the JSON.
fn sweep(arguments: &[&str]) -> (String, String, Value) {
    let json = file("slopes.json");
    let compared = Command::new(env!("CARGO_BIN_EXE_kapok"))
        .arg("compare")
        .args(arguments)
        .args(["--json", json.to_str().unwrap()])
        .env_remove("KAPOK_LOG")
        .env("TMPDIR", env!("CARGO_TARGET_TMPDIR"))
        .output()
        .unwrap();
    assert_eq!(compared.status.code(), Some(0), "{}", text(&compared.stderr));
    let said = text(&compared.stdout);
    let page = said.lines().find_map(|line| line.strip_prefix("The page with charts: ")).unwrap();
    let page = fs::read_to_string(page).unwrap();
    println!("{said}");
    (said, page, serde_json::from_slice(&fs::read(&json).unwrap()).unwrap())
}

fn slope<'a>(result: &'a Value, model: &str) -> &'a Value {
    let slopes = result["slopes"].as_array().unwrap();
    slopes.iter().find(|slope| slope["model"] == model).unwrap_or_else(|| panic!("{model}"))
}

/// The cost with the most connections, relative to that with the fewest.
fn rise(slope: &Value) -> f64 {
    let costs = slope["cpu_us_per_request"].as_array().unwrap();
    costs[costs.len() - 1].as_f64().unwrap() / costs[0].as_f64().unwrap()
}

#[test]
fn registered_connections_cost_poll_and_not_epoll() {
    const SWEEP: [&str; 12] = [
        "--protocol",
        "echo",
        "--models",
        "poll,epoll",
        "--connections",
        "10,100,1000,3000",
        "--active",
        "10",
        "--rounds",
        "3",
        "--seconds",
        "0.3",
    ];
    let _turn = turn();
    let (said, page, result) = sweep(&SWEEP);
    for model in ["poll", "epoll"] {
        let slope = slope(&result, model);
        assert_eq!(slope["connections"], serde_json::json!([10, 100, 1000, 3000]), "{slope}");
        assert_eq!(
            (&slope["active"], &slope["tables"]),
            (&10.into(), &serde_json::json!([0, 1, 2, 3]))
        );
    }
    let (poll, epoll) = (slope(&result, "poll"), slope(&result, "epoll"));
    // Three thousand pollfds at ten nanoseconds and more each, beside a request of some microseconds.
    assert!(rise(poll) > 3.0 && rise(poll) > 2.0 * rise(epoll), "{poll}{epoll}");
    let each = |slope: &Value| slope["ns_per_connection"].as_f64().unwrap();
    assert!(each(poll) > 5.0 && each(poll) > 5.0 * each(epoll), "{poll}{epoll}");
    // Noise in four points may look like it, now and then: not twice in a row.
    if epoll["growth"] == "grows" {
        let (_, _, again) = sweep(&SWEEP);
        let again = slope(&again, "epoll");
        assert_ne!(again["growth"], "grows", "{epoll}{again}");
    }

    assert!(
        said.contains("What one more registered connection adds to a request, 10 active"),
        "{said}"
    );
    assert!(
        page.contains("<h2>echo · 64 bytes · 10, 100, 1000, 3000 connections, 10 active"),
        "{page}"
    );
    assert!(page.contains("<table data-slopes>") && page.contains("<td>10 to 3000</td>"), "{page}");
    assert!(page.contains(&format!("<td>{:.2} [", each(poll))), "{page}");
}

/// At full size, alone on the machine: `KAPOK_SCALE=full`, `--release`, `--nocapture`.
#[test]
fn ten_thousand_connections_for_every_model_that_can_and_a_reason_for_each_that_cannot() {
    if std::env::var("KAPOK_SCALE").is_ok_and(|scale| scale == "full") {
        let _turn = turn();
        let (_, _, result) = sweep(&["--c10k"]);
        let tables = result["tables"].as_array().unwrap();
        let most = &tables[tables.len() - 1];
        assert_eq!((&most["connections"], &most["active"]), (&10_000.into(), &10.into()));
        for row in most["rows"].as_array().unwrap() {
            let model = row["model"].as_str().unwrap();
            let measured = row["measured"].as_array().unwrap().len();
            let why = row["trouble"].as_str();
            match model {
                "select" | "fiber-select" => {
                    assert!(why.is_some_and(|why| why.contains("FD_SETSIZE")), "{model}: {why:?}");
                }
                "thread-pool" => {
                    assert!(why.is_some_and(|why| why.contains("worker")), "{model}: {why:?}");
                }
                _ => assert!(measured >= 5 && why.is_none(), "{model}: {measured}, {why:?}"),
            }
            if model == "busy-poll" {
                let idle = row["idle_cpu_share"].as_f64().unwrap();
                assert!(idle > 0.9, "busy polling, idle: {idle}");
            }
        }
        for model in ["select", "poll", "busy-poll"] {
            assert_eq!(slope(&result, model)["growth"], "grows", "{}", slope(&result, model));
        }
        for model in ["epoll", "mio", "uring", "tokio", "fiber-epoll", "fiber-uring"] {
            assert_eq!(slope(&result, model)["growth"], "flat", "{}", slope(&result, model));
        }
    } else {
        eprintln!("SKIPPED: a quarter of an hour alone on the machine; KAPOK_SCALE=full runs it");
    }
}
