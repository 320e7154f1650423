//! `kapok advise` from end to end, with measurements as short as they can be. What it advises is not
//! looked at here (the machine may do anything meanwhile), but that it is one of those who could serve.

#![cfg(target_os = "linux")]

#[path = "../../kapok-engine/examples/deny_uring/filter.rs"]
#[allow(dead_code, reason = "the example uses the rest")]
mod filter;

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kapok_lab::advise::Preset;
use serde_json::Value;

fn kapok(arguments: &[&str], typed: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kapok"))
        .args(arguments)
        .env_remove("KAPOK_LOG")
        .env_remove("KAPOK_ENGINE")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Who does not ask does not read; then there may be nobody at the other end.
    let _ = child.stdin.take().unwrap().write_all(typed.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Measurements take turns.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn names(all: &Value) -> Vec<&str> {
    all.as_array().unwrap().iter().map(|one| one["model"].as_str().unwrap()).collect()
}

#[test]
fn the_json_has_the_model_its_margin_the_crossings_and_the_tree() {
    let _turn = turn();
    let advised = kapok(
        &["advise", "--connections", "8", "--objective", "cpu", "--seconds", "8", "--json"],
        "",
    );
    assert_eq!(advised.status.code(), Some(0), "{}", text(&advised.stderr));
    let said = text(&advised.stderr);
    assert!(said.contains("taken by default: active-share 1, request 64"), "{said}");
    let advice: Value = serde_json::from_slice(&advised.stdout).unwrap();
    assert_eq!((&advice["format"], &advice["version"]), (&"kapok-advise".into(), &1.into()));
    assert_eq!(advice["question"]["connections"], 8);

    let measured = names(&advice["figures"]);
    let decision = &advice["decision"];
    let model = decision["model"].as_str().unwrap();
    assert!(measured.contains(&model), "{model}: {measured:?}");
    for other in decision["others"].as_array().unwrap() {
        assert!(other["ratio"]["estimate"].as_f64().unwrap() > 0.0, "{other}");
        assert_ne!(other["model"], model);
    }
    // Everybody was measured or excluded, and nobody both.
    let excluded = names(&advice["excluded"]);
    assert_eq!(measured.len() + excluded.len(), 13, "{measured:?} {excluded:?}");
    assert!(excluded.contains(&"busy-poll"));
    assert_eq!(advice["tree"]["branch"], "few");
    let crossings = advice["crossings"].as_array().unwrap();
    assert!(crossings.iter().any(|one| one["axis"] == "connections" && one["to"] == 64.0));
}

#[test]
fn the_text_says_who_cannot_and_why_and_marks_the_branch() {
    let _turn = turn();
    let advised = kapok(
        &[
            "advise",
            "--connections",
            "1100",
            "--active-share",
            "0.05",
            "--response",
            "200",
            "--file-share",
            "0.5",
            "--memory",
            "16M",
            "--no-io-uring",
            "--seconds",
            "6",
            "--no-cross-over",
        ],
        "",
    );
    let said = text(&advised.stdout);
    assert_eq!(advised.status.code(), Some(0), "{said}{}", text(&advised.stderr));
    let reason = |model: &str| {
        let line = said.lines().find(|line| line.starts_with(&format!("  {model:<13} ")));
        line.unwrap_or_else(|| panic!("{model}: {said}")).to_owned()
    };
    assert!(reason("select").contains("below 1024"), "{said}");
    assert!(reason("threads").contains("limit is 16.0 MiB"), "{said}");
    assert!(reason("thread-pool").contains("64 workers"), "{said}");
    assert!(reason("fiber-uring").contains("must run without"), "{said}");
    assert_eq!(said.matches("◄ the book's branch").count(), 1, "{said}");
    assert!(said.contains("--engine auto takes fiber-epoll"), "{said}");
    assert!(said.contains("1100 connections, 55 active") && said.contains("50 % read a file"));
}

#[test]
fn what_is_typed_is_what_is_measured() {
    let _turn = turn();
    // Connections, share (refused, then said), request, response; the rest is the default's.
    let typed = "5\n2\n0.4\n32\n\n";
    let advised = kapok(
        &[
            "advise",
            "--ask",
            "--objective",
            "memory",
            "--seconds",
            "3",
            "--no-cross-over",
            "--json",
        ],
        typed,
    );
    assert_eq!(advised.status.code(), Some(0), "{}", text(&advised.stderr));
    let asked = text(&advised.stderr);
    assert!(asked.contains("Connections that are open at once [64]:"), "{asked}");
    assert!(asked.contains("2: a share is from 0 to 1"), "{asked}");
    let advice: Value = serde_json::from_slice(&advised.stdout).unwrap();
    let question = &advice["question"];
    assert_eq!((&question["connections"], &question["active_share"]), (&5.into(), &0.4.into()));
    assert_eq!((&question["request_bytes"], &question["response_bytes"]), (&32.into(), &32.into()));
    let bytes = advice["figures"][0]["memory_bytes"].as_f64().unwrap();
    assert!(bytes > 1e6, "a process of {bytes} bytes");
}

#[test]
fn slow_workloads_find_their_model_or_hear_how_long_it_takes() {
    let _turn = turn();
    let ask = |more: &[&str]| {
        let all = ["advise", "--connections", "4", "--no-cross-over", "--json"];
        kapok(&[&all[..], more].concat(), "")
    };
    // No reply comes within the shortest interval.
    let slow = ask(&["--delay-ms", "100", "--objective", "memory", "--seconds", "4"]);
    assert_eq!(slow.status.code(), Some(0), "{}", text(&slow.stderr));
    let advice: Value = serde_json::from_slice(&slow.stdout).unwrap();
    assert!(names(&advice["figures"]).len() > 4, "{advice}");
    let bytes = advice["figures"][0]["memory_bytes"].as_f64().unwrap();
    assert!(bytes > 1e6, "a process of {bytes} bytes");

    let seldom = ask(&["--rate", "2", "--objective", "p99", "--seconds", "10"]);
    let said = text(&seldom.stderr);
    assert_eq!(seldom.status.code(), Some(2), "{said}");
    assert!(said.contains("--seconds 10 is too short") && said.contains("it takes"), "{said}");
}

#[test]
fn every_preset_ends_with_an_advice() {
    let _turn = turn();
    for preset in Preset::ALL {
        let name = preset.to_string();
        let all = ["advise", "--preset", &name, "--seconds", "4", "--no-cross-over", "--json"];
        let advised = kapok(&all, "");
        let said = text(&advised.stderr);
        assert_eq!(advised.status.code(), Some(0), "{name}: {said}");
        assert!(said.contains(&format!("taken by default of the preset {name}: ")), "{said}");
        let advice: Value = serde_json::from_slice(&advised.stdout).unwrap();
        assert_eq!(advice["question"], serde_json::to_value(preset.question()).unwrap(), "{name}");
        let model = advice["decision"]["model"].as_str().unwrap_or_else(|| panic!("{advice}"));
        assert!(names(&advice["figures"]).contains(&model), "{name}: {model}: {advice}");
        assert!(!names(&advice["excluded"]).contains(&model), "{name}: {model}: {advice}");
    }
}

/// The fibers that a server on the engine of `auto` turns out to be, by what it has open.
#[cfg(target_os = "linux")]
fn served_on_auto() -> &'static str {
    use std::io::{BufRead, BufReader, Read};

    let mut child = Command::new(env!("CARGO_BIN_EXE_kapok"))
        .args(["serve", "--addr", "127.0.0.1:0", "--model", "fiber", "--engine", "auto"])
        .env_remove("KAPOK_LOG")
        .env_remove("KAPOK_ENGINE")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let addr = line.trim().strip_prefix("listening on ").expect(&line);
    // Its loop is there when it has answered.
    let mut stream = std::net::TcpStream::connect(addr).unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    let links = std::fs::read_dir(format!("/proc/{}/fd", child.id())).unwrap();
    let open: Vec<String> = links
        .map_while(Result::ok)
        .filter_map(|link| std::fs::read_link(link.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect();
    child.kill().unwrap();
    child.wait().unwrap();
    let has = |what: &str| open.iter().any(|target| target == what);
    match (has("anon_inode:[io_uring]"), has("anon_inode:[eventpoll]")) {
        (true, _) => "fiber-uring",
        (false, true) => "fiber-epoll",
        (false, false) => panic!("neither a ring nor an epoll: {open:?}"),
    }
}

#[test]
#[cfg(target_os = "linux")]
fn auto_serves_on_the_engine_that_an_advice_names() {
    let _turn = turn();
    let advised = || {
        let objective = ["--objective", "cpu", "--seconds", "3", "--no-cross-over", "--json"];
        let advised = kapok(&[&["advise", "--connections", "2"], &objective[..]].concat(), "");
        assert_eq!(advised.status.code(), Some(0), "{}", text(&advised.stderr));
        let advice: Value = serde_json::from_slice(&advised.stdout).unwrap();
        advice["auto"]["model"].as_str().unwrap().to_owned()
    };
    assert_eq!(advised(), served_on_auto());
    // A refusal is for the thread that asks for it, and for the programs that it starts.
    let refused = std::thread::spawn(move || {
        let setup = [libc::SYS_io_uring_setup];
        filter::deny(&setup, libc::EPERM, filter::Threads::Calling).unwrap();
        (advised(), served_on_auto())
    });
    let (advised, served) = refused.join().unwrap();
    assert_eq!((advised.as_str(), served), ("fiber-epoll", "fiber-epoll"));
}

#[test]
fn what_makes_no_sense_is_a_wrong_use() {
    for (arguments, reason) in [
        (&["--active-share", "0"][..], "active share of 0"),
        (&["--rate", "100", "--objective", "throughput"], "leave the rate out"),
        (&["--objective", "speed"], "throughput, p99, memory, cpu"),
        (&["--preset", "game"], "web-server"),
    ] {
        let mut all = vec!["advise"];
        all.extend(arguments);
        let refused = kapok(&all, "");
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}");
        assert!(text(&refused.stderr).contains(reason), "{}", text(&refused.stderr));
    }
}

#[test]
fn an_engine_is_for_the_model_fiber() {
    for (arguments, reason) in [
        (&["--engine", "epoll", "--model", "tokio"][..], "for --model fiber"),
        (&["--engine", "busy"], "served on uring, epoll, poll or select"),
        (&["--engine", "warp"], "no engine is called"),
    ] {
        let mut all = vec!["serve", "--addr", "127.0.0.1:0"];
        all.extend(arguments);
        let refused = kapok(&all, "");
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}");
        assert!(text(&refused.stderr).contains(reason), "{}", text(&refused.stderr));
    }
}
