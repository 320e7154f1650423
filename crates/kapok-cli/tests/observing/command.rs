//! `kapok observe` at servers and programs that it may see whole.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::servers::{Busy, KAPOK, MESSAGE, Server, exchange, is_root, kapok, text, until};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n";

fn observed(server: &Server) -> Value {
    observed_with(server, &[])
}

fn observed_with(server: &Server, options: &[&str]) -> Value {
    let pid = server.pid().to_string();
    let output = kapok(&[&["observe", &pid, "--seconds", "1.5", "--json"], options].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The count of a kind of call.
pub(crate) fn calls(report: &Value, name: &str) -> u64 {
    let kinds = report["calls_by_kind"].as_array().unwrap().iter();
    kinds.filter(|call| call["name"] == name).map(|call| call["count"].as_u64().unwrap()).sum()
}

fn sockets(report: &Value, state: &str) -> u64 {
    let states = report["sockets"].as_array().unwrap().iter();
    let them = states.filter(|line| line["protocol"] == "tcp" && line["state"] == state);
    them.map(|line| line["count"].as_u64().unwrap()).sum()
}

/// What holds for every server that is kept busy over `connections`.
pub(crate) fn looks_busy(report: &Value, server: &Server, connections: u64) {
    assert_eq!(report["process"], server.pid(), "{report}");
    assert!(report["seconds"].as_f64().unwrap() >= 1.4, "{report}");
    assert!(report["cores_used"].as_f64().unwrap() > 0.0, "{report}");
    assert!(report["voluntary_switches"].as_u64().unwrap() > 10, "{report}");
    assert!(report["memory"]["resident"].as_u64().unwrap() > 1 << 16, "{report}");
    assert!(sockets(report, "LISTEN") >= 1, "{report}");
    assert_eq!(sockets(report, "ESTAB"), connections, "{report}");
    let notable = report["notable_sockets"].as_array().unwrap();
    assert!(notable.iter().any(|socket| socket["local"] == server.addr.as_str()), "{report}");
}

#[test]
fn a_redis_server_is_seen_at_work() {
    let Some(server) = Server::redis() else { return };
    let _busy = Busy::with(server.connect(), b"PING\r\n", 7);
    let report = observed(&server);
    looks_busy(&report, &server, 1);
    assert_eq!(report["name"], "redis-server", "{report}");
    if is_root() {
        let (reads, waits) = (calls(&report, "read"), calls(&report, "epoll_wait"));
        assert!(reads > 20 && waits > 20, "{report}");
        assert!(reads.abs_diff(calls(&report, "write")) <= reads / 4, "{report}");
    }
}

/// A connection that keeps nginx busy.
pub(crate) fn busy_nginx(server: &Server) -> Busy {
    let mut stream = server.connect();
    std::io::Write::write_all(&mut stream, GET).unwrap();
    let mut reply = vec![0; 4096];
    let bytes = std::io::Read::read(&mut stream, &mut reply).unwrap();
    assert!(text(&reply[..bytes]).ends_with("hello"), "{}", text(&reply[..bytes]));
    Busy::with(stream, GET, bytes)
}

#[test]
fn nginx_is_seen_with_its_worker() {
    let Some(server) = Server::nginx() else { return };
    let _busy = busy_nginx(&server);
    let report = observed(&server);
    looks_busy(&report, &server, 1);
    assert!(report["processes"].as_array().unwrap().len() >= 2, "{report}");
    if is_root() {
        assert!(calls(&report, "recvfrom") > 20, "the worker's calls: {report}");
    }
}

#[test]
fn a_server_of_ours_is_seen_with_its_ring() {
    let server = Server::kapok("fiber");
    let _busy = Busy::with(server.connect(), MESSAGE, 64);
    let report = observed(&server);
    looks_busy(&report, &server, 1);
    if !is_root() || calls(&report, "io_uring_enter") == 0 {
        // Another engine, where io_uring is denied.
        return;
    }
    let ring = report["ring"].as_array().unwrap();
    let recv = ring.iter().find(|operation| operation["name"] == "recv").expect("a kind");
    assert!(recv["submitted"].as_u64().unwrap() > 20, "{report}");
    assert_eq!(recv["landed"], Value::Null, "{report}");
    assert_eq!(report["not_seen"].as_array().unwrap().len(), 0, "{report}");
    let report = observed_with(&server, &["--detail"]);
    let ring = report["ring"].as_array().unwrap();
    let recv = ring.iter().find(|operation| operation["name"] == "recv").expect("a kind");
    assert!(recv["landed"].as_u64().unwrap() > 20, "{report}");
    assert!(report["wakes_taken"].as_u64().unwrap() > 20, "{report}");
    let calls = report["calls_by_kind"].as_array().unwrap();
    let enters = calls.iter().find(|call| call["name"] == "io_uring_enter").unwrap();
    assert!(enters["seconds"].as_f64().unwrap() > 0.01, "most of the time it waits: {report}");
}

#[test]
fn the_summary_is_for_people_and_leaves_the_process_alone() {
    let mut server = Server::kapok("epoll");
    let busy = Busy::with(server.connect(), MESSAGE, 64);
    let pid = server.pid().to_string();
    let mut observe =
        Command::new(KAPOK).args(["observe", &pid]).stdout(Stdio::piped()).spawn().unwrap();
    thread::sleep(Duration::from_millis(1500));
    // SAFETY: only numbers are passed; the child is ours and not reaped.
    unsafe { libc::kill(observe.id() as libc::pid_t, libc::SIGINT) };
    let output = observe.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "a signal ends it with the summary");
    let summary = text(&output.stdout);
    for word in ["memory", "sockets", "ESTAB", "LISTEN", "thread", "waited"] {
        assert!(summary.contains(word), "{word} in:\n{summary}");
    }
    assert!(!summary.contains('\x1b'), "{summary}");
    assert!(server.child.try_wait().unwrap().is_none(), "it serves on");
    drop(busy);
    exchange(&mut server.connect(), MESSAGE, 64, 1);
    observe =
        Command::new(KAPOK).args(["observe", "4194305"]).stderr(Stdio::null()).spawn().unwrap();
    assert_eq!(observe.wait().unwrap().code(), Some(1), "there is no such process");
}

fn is_alive(pid: u64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[test]
fn a_program_that_was_started_is_ended_only_when_asked() {
    for end in [false, true] {
        let mut arguments = vec!["observe", "--seconds", "0.3", "--json"];
        arguments.extend(end.then_some("--end"));
        arguments.extend(["--", "sleep", "600"]);
        // It keeps our standard error for as long as it runs: a pipe would not end.
        let output = Command::new(KAPOK).args(&arguments).stderr(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let pid = report["process"].as_u64().unwrap();
        assert_eq!(is_alive(pid), !end, "asked to end: {end}");
        if !end {
            // SAFETY: only numbers are passed. It was started for this test, and nobody has reaped it
            // who could have given its number away: whoever inherits it does so when it ends.
            unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
        }
    }
    // One that ends by itself is observed to its end, from its first call on, and what it prints is
    // not in the report.
    let output = kapok(&["observe", "--json", "--", "sh", "-c", "echo mine; umask; sleep 0.4"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("mine"));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!((0.4..60.0).contains(&report["seconds"].as_f64().unwrap()), "{report}");
    if is_root() {
        assert!(calls(&report, "umask") >= 1, "the first thing that it did: {report}");
    }
    // Also one that is over before it is looked at again. What it used is known: it is not reaped yet.
    let script = "i=0; while [ $i -lt 60000 ]; do i=$((i + 1)); done; umask";
    let report: Value =
        serde_json::from_slice(&kapok(&["observe", "--json", "--", "sh", "-c", script]).stdout)
            .unwrap();
    let seconds = report["seconds"].as_f64().unwrap();
    assert!(seconds > 0.0 && report["cores_used"].as_f64().unwrap() * seconds > 0.005, "{report}");
    if is_root() {
        assert!(report["calls"].as_u64().unwrap() > 10, "from the exec to the exit: {report}");
        assert!(calls(&report, "execve") >= 1 && calls(&report, "exit_group") == 1, "{report}");
    }
}

#[test]
fn what_a_program_read_and_wrote_is_known_to_its_end() {
    let copy = ["dd", "if=/dev/zero", "of=/dev/null", "bs=1M", "count=5"];
    let output = kapok(&[&["observe", "--json", "--"], &copy[..]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let transfers = &report["transfers"];
    for (bytes, calls) in [("bytes_read", "reads"), ("bytes_written", "writes")] {
        assert!(transfers[bytes].as_u64().unwrap() >= 5 << 20, "{report}");
        assert!(transfers[calls].as_u64().unwrap() >= 5, "{report}");
    }
}

/// CPU time of a process, in seconds.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) as f64 / 100.0
}

#[test]
fn the_number_of_a_thread_stands_for_its_process() {
    let server = Server::kapok("threads");
    let _busy = Busy::with(server.connect(), MESSAGE, 64);
    let tasks = format!("/proc/{}/task", server.pid());
    let mut thread = String::new();
    until("the connection's own thread", || {
        let tasks = fs::read_dir(&tasks).unwrap().map(|task| task.unwrap().file_name());
        let threads = tasks.map(|task| task.into_string().unwrap());
        thread = threads.max_by_key(|number| number.parse::<u32>().unwrap()).unwrap();
        thread != server.pid().to_string()
    });
    let output = kapok(&["observe", &thread, "--seconds", "0.5", "--json"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains(&format!("a thread of process {}", server.pid())), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["process"], server.pid(), "{report}");
    if is_root() {
        assert!(report["calls"].as_u64().unwrap() > 10, "{report}");
    }
}

#[test]
fn what_threads_have_used_that_ended_is_counted() {
    let server = Server::kapok("threads");
    // Each connection has a thread, which ends with it.
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                exchange(&mut server.connect(), MESSAGE, 64, 200);
            }
        });
        let (begun, before) = (Instant::now(), cpu_seconds(server.pid()));
        let report = std::panic::catch_unwind(|| observed(&server));
        let used = (cpu_seconds(server.pid()) - before) / begun.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        let report = report.unwrap();
        let of_threads = report["threads"].as_array().unwrap().iter();
        let of_threads: f64 = of_threads.map(|thread| thread["cpu_share"].as_f64().unwrap()).sum();
        let cores = report["cores_used"].as_f64().unwrap();
        assert!(cores > used / 2.0, "{cores} of {used} cores, its last threads {of_threads}");
        assert!(of_threads < cores / 2.0, "{of_threads} of {cores}: the threads have ended");
        let missing = report["not_seen"].as_array().unwrap().iter();
        let mut missing = missing.map(|reason| reason.as_str().unwrap());
        assert!(missing.any(|reason| reason.contains("threads that have ended")), "{report}");
    });
    // The others stay.
    let _busy = Busy::with(server.connect(), MESSAGE, 64);
    thread::sleep(Duration::from_millis(300));
    let report = observed(&server);
    assert!(!report["not_seen"].to_string().contains("have ended"), "{report}");
}

#[test]
fn the_live_view_is_a_line_each_time_without_a_terminal() {
    let server = Server::kapok("epoll");
    let _busy = Busy::with(server.connect(), MESSAGE, 64);
    let pid = server.pid().to_string();
    let output = kapok(&["observe", &pid, "--seconds", "2", "--every", "0.4"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let said = text(&output.stderr);
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("% of a core")).collect();
    assert!((2..=5).contains(&lines.len()), "one each 0.4 s of 2 s:\n{said}");
    assert!(lines.iter().all(|line| line.contains(" 2 sockets")), "{said}");
    assert!(!said.contains('\x1b'), "{said}");
    let output = kapok(&["observe", &pid, "--seconds", "1", "--every", "0.2", "--json"]);
    assert_eq!(text(&output.stderr), "", "JSON is alone");
}
