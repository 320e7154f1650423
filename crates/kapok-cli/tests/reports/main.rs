//! What compare writes, and what is made of it later.

mod against;
mod files;
mod schema;
mod slopes;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

use against::result;
use files::{check_csv, check_log, number, own_share};
use serde_json::Value;

const RESULT: &str = include_str!("../results/grid.json");

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
            let load = &row["measured"][0]["load"];
            assert!(load["reopened"].as_u64().unwrap() > 0, "{row}");
            // The backend has the load's core, and what it took of it is in the share.
            assert!(number(&load["cpu_share"]) > own_share(load), "{row}");
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
    let lines = fs::read_to_string(&csv).unwrap();
    assert_eq!(lines.lines().count(), measured * 4 + 1);
    check_csv(&lines, tables);
    check_log(&fs::read(&hdr).unwrap(), tables);
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
