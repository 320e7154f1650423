//! `kapok compare --server` with servers that are more than the process that was started.

#![cfg(target_os = "linux")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const KAPOK: &str = env!("CARGO_BIN_EXE_kapok");

/// A script of its own, and the file beside it in which the server's number is left.
fn script(name: &str, lines: &str) -> (PathBuf, PathBuf) {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.sh"));
    let number = path.with_extension("pid");
    let _ = fs::remove_file(&number);
    let text = format!("KAPOK={KAPOK}\nNUMBER={}\n{lines}\n", number.display());
    fs::write(&path, text).unwrap();
    (path, number)
}

fn compare(name: &str, script: &Path, more: &[&str]) -> Value {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.json"));
    // Not executed itself: a child that another test starts may still have it open for writing (ETXTBSY).
    let server = format!("{name}=sh {} {{addr}}", script.display());
    let fixed = ["compare", "--models", "epoll", "--server", &server, "--protocol", "echo"];
    let rounds = ["--connections", "4", "--rounds", "2", "--seconds", "0.3", "--json"];
    let all = [&fixed[..], &rounds[..], &[path.to_str().unwrap()], more].concat();
    let output = Command::new(KAPOK).args(&all).env("NO_COLOR", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    json["tables"][0]["rows"].clone()
}

fn number_in(path: &Path) -> i32 {
    fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

fn is_alive(process: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[test]
fn a_server_that_a_script_starts_is_measured_and_ended_as_if_it_were_started_itself() {
    // Without exec: the shell waits for its child, which does the work.
    let serve = "sh -c 'echo $$ > \"$0\"; exec \"$1\" serve --addr \"$2\" --model epoll' \
                 \"$NUMBER\" \"$KAPOK\" \"$1\"\necho it has ended >&2";
    let (script, number) = script("script", serve);
    let rows = compare("script", &script, &["--costs"]);
    let (alone, scripted) = (&rows[0], &rows[1]);
    assert_eq!(scripted["trouble"], Value::Null, "{scripted}");
    let measured = scripted["measured"].as_array().unwrap().len() as u64;
    // A machine that stood still for the whole of a round has dropped it.
    let dropped = scripted["dropped_rounds"].as_u64().unwrap();
    assert!(measured > 0 && measured + dropped == 2, "{scripted}");
    // The same server: a figure of the shell alone would be none at all.
    let like = |what: &str| {
        let of = |row: &Value| row.pointer(what).unwrap().as_f64().unwrap_or(0.0);
        let ratio = of(scripted) / of(alone);
        assert!((0.2..5.0).contains(&ratio), "{what}: {ratio}: {scripted}");
    };
    like("/cpu_us_per_request/median");
    like("/voluntary_switches/median");
    like("/costs/cpu_us");
    like("/untimed/resident_bytes");
    if !alone["untimed"]["syscalls_per_request"].is_null() {
        let by_perf = !scripted["untimed"]["syscalls_per_request"].is_null();
        // A tracer has one process only.
        if by_perf {
            like("/untimed/syscalls_per_request");
        }
    }
    assert_eq!(scripted["untimed"]["threads"], 2, "the shell's and the server's: {scripted}");
    let serves = number_in(&number);
    assert!(!is_alive(serves), "it was left behind");
}

#[test]
fn a_server_whose_work_is_done_by_another_process_is_said_to_be() {
    // It leaves the script's family and process group; the script does nothing any more.
    let serve = "( setsid sh -c 'echo $$ > \"$0\"; exec \"$1\" serve --addr \"$2\" --model epoll' \
                 \"$NUMBER\" \"$KAPOK\" \"$1\" >/dev/null 2>&1 & )\nexec sleep 600";
    let (script, number) = script("elsewhere", serve);
    let rows = compare("elsewhere", &script, &[]);
    let serves = number_in(&number);
    let was_alive = is_alive(serves);
    // SAFETY: only numbers are passed; the process was started for this test and serves until it is ended.
    unsafe { libc::kill(serves, libc::SIGKILL) };
    assert!(was_alive, "it is what has served");
    assert_eq!(rows[0]["trouble"], Value::Null, "{}", rows[0]);
    let trouble = rows[1]["trouble"].as_str().expect("there is nothing to measure");
    assert!(trouble.contains("the work is done by another process"), "{trouble}");
    assert_eq!(rows[1]["measured"].as_array().unwrap().len(), 0, "{}", rows[1]);
}

/// An echo server that pauses before its second reply to each of the first connections, as if the machine
/// had stood still: `ADDRESS CONNECTIONS SECONDS`.
const PAUSES: &str = r#"
import socket, sys, threading, time
host, port = sys.argv[1].rsplit(":", 1)
connections, seconds = int(sys.argv[2]), float(sys.argv[3])

def serve(stream, pauses):
    answered = 0
    while message := stream.recv(65536):
        if pauses and answered == 1:
            time.sleep(seconds)
        stream.sendall(message)
        answered += 1

listener = socket.create_server((host, int(port)), backlog=100)
number = 0
while True:
    stream, _ = listener.accept()
    # The very first only looks whether anybody listens.
    threading.Thread(target=serve, args=(stream, number <= connections), daemon=True).start()
    number += 1
"#;

#[test]
fn a_machine_that_stands_still_before_the_rounds_costs_no_server_its_row() {
    let known = |python: &&str| Command::new(python).arg("--version").output().is_ok();
    let Some(python) = ["/usr/bin/python3", "python3"].into_iter().find(known) else {
        eprintln!("SKIPPED: there is no python3");
        return;
    };
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pauses.py");
    fs::write(&program, PAUSES).unwrap();
    let serve =
        |connections: u32| format!("exec {python} {} \"$1\" {connections} 2", program.display());
    // All of the untimed run, which comes first, and no more; and all of every run.
    let (once, _) = script("once", &serve(4));
    let (ever, _) = script("ever", &serve(1_000_000));
    let ever = format!("ever=sh {} {{addr}}", ever.display());
    let rows = compare("once", &once, &["--server", &ever]);
    let (once, ever) = (&rows[1], &rows[2]);
    assert_eq!((&once["model"], &once["trouble"]), (&"once".into(), &Value::Null), "{once}");
    assert!(!once["measured"].as_array().unwrap().is_empty(), "{once}");
    assert!(once["untimed"]["threads"].as_u64().unwrap() > 4, "known all the same: {once}");
    // Who never replies in time is said to.
    assert_eq!(ever["trouble"], "no reply in any of its rounds", "{ever}");
    assert_eq!(ever["dropped_rounds"], 2, "{ever}");
}
