//! `kapok observe`, and `kapok compare --costs`.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::servers::{Busy, KAPOK, Server, exchange, is_root, kapok, scratch, text, until};

const MESSAGE: &[u8] = &[7; 64];

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
fn calls(report: &Value, name: &str) -> u64 {
    let kinds = report["calls_by_kind"].as_array().unwrap().iter();
    kinds.filter(|call| call["name"] == name).map(|call| call["count"].as_u64().unwrap()).sum()
}

fn sockets(report: &Value, state: &str) -> u64 {
    let states = report["sockets"].as_array().unwrap().iter();
    let them = states.filter(|line| line["protocol"] == "tcp" && line["state"] == state);
    them.map(|line| line["count"].as_u64().unwrap()).sum()
}

/// What holds for every server that is kept busy over `connections`.
fn looks_busy(report: &Value, server: &Server, connections: u64) {
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

#[test]
fn nginx_is_seen_with_its_worker() {
    let Some(server) = Server::nginx() else { return };
    let request = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n";
    let mut stream = server.connect();
    std::io::Write::write_all(&mut stream, request).unwrap();
    let mut reply = vec![0; 4096];
    let bytes = std::io::Read::read(&mut stream, &mut reply).unwrap();
    assert!(text(&reply[..bytes]).ends_with("hello"), "{}", text(&reply[..bytes]));
    let _busy = Busy::with(stream, request, bytes);
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

/// Kapok as a user who is nobody, from where anybody may read it.
fn as_nobody(home: &PathBuf) -> Command {
    let copy = home.join("kapok");
    if !copy.exists() {
        // By a process of its own: what this one has open for writing, a child that another test starts has
        // for a moment too, and until then nobody may execute it (ETXTBSY).
        assert!(
            Command::new("cp").args([KAPOK.as_ref(), copy.as_path()]).status().unwrap().success()
        );
    }
    let mut command = Command::new(copy);
    command.uid(65534).gid(65534).current_dir(home).env("NO_COLOR", "1");
    command
}

#[test]
fn an_ordinary_user_sees_less_and_is_told_why() {
    if !is_root() {
        return;
    }
    let home = scratch("nobody");
    let own = Server::by(as_nobody(&home).args(["serve", "--addr", "127.0.0.1:0"]));
    let foreign = Server::kapok("threads");
    let observe = |server: &Server| -> Value {
        let pid = server.pid().to_string();
        let output = as_nobody(&home)
            .args(["observe", &pid, "--seconds", "1.5", "--json"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let reasons = |report: &Value| -> String {
        let reasons = report["not_seen"].as_array().unwrap().iter();
        reasons.map(|reason| reason.as_str().unwrap()).collect::<Vec<_>>().join("\n")
    };
    let is_own = |server: &Server| {
        let report = observe(server);
        looks_busy(&report, server, 1);
        assert_eq!(report["calls"], Value::Null, "{report}");
        let why = reasons(&report);
        assert!(why.contains("system calls and operations of io_uring: "), "{why}");
        assert!(why.contains("not permitted") || why.contains("denied"), "{why}");
    };
    let is_foreign = |server: &Server, threads: usize| {
        let report = observe(server);
        let all = report["threads"].as_array().unwrap().len();
        assert!(all >= threads, "anybody may see these: {report}");
        assert!(report["memory"]["resident"].as_u64().unwrap() > 1 << 16, "{report}");
        assert_eq!(report["sockets"], Value::Null, "{report}");
        let why = reasons(&report);
        assert!(why.contains("sockets: ") && why.contains("enied"), "{why}");
    };
    let busy = (Busy::with(own.connect(), MESSAGE, 64), Busy::with(foreign.connect(), MESSAGE, 64));
    is_own(&own);
    is_foreign(&foreign, 2);
    drop(busy);
    drop(own);
    if let (Some(own), Some(foreign)) = (Server::redis_of(Some(65534)), Server::redis()) {
        let ping = b"PING\r\n";
        let _busy = (Busy::with(own.connect(), ping, 7), Busy::with(foreign.connect(), ping, 7));
        is_own(&own);
        is_foreign(&foreign, 1);
    }
    // Its master is root's, whatever its worker is.
    if let Some(foreign) = Server::nginx() {
        is_foreign(&foreign, 1);
    }
    fs::remove_dir_all(home).unwrap();
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

/// The steps of one connection that is opened, used twice and closed.
fn trace(model: &str) -> Vec<Value> {
    let server = Server::kapok(model);
    let pid = server.pid().to_string();
    let mut observe = Command::new(KAPOK)
        .args(["observe", "--trace", "--json", "--seconds", "100", &pid])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    until("the tracer", || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map_while(Result::ok);
        let traced = |status: String| !status.contains("TracerPid:\t0\n");
        tasks
            .map(|task| fs::read_to_string(task.path().join("status")).unwrap_or_default())
            .all(traced)
    });
    let mut stream = server.connect();
    for _ in 0..2 {
        thread::sleep(Duration::from_millis(50));
        exchange(&mut stream, MESSAGE, 64, 1);
    }
    drop(stream);
    let lines = BufReader::new(observe.stdout.take().unwrap()).lines().map_while(Result::ok);
    let steps = lines.map(|line| serde_json::from_str(&line).unwrap()).collect();
    assert!(observe.wait().unwrap().success());
    steps
}

#[test]
fn one_connection_is_told_in_its_order() {
    // What must come in this order; other steps may lie between.
    let blocking = ["accept", "read", "write", "read", "write", "read", "close"];
    // The first message may have come before anybody waits for it.
    let waiting =
        ["accept", "register", "read", "write", "wait", "read", "write", "wait", "read", "close"];
    for (model, order) in
        [("threads", &blocking[..]), ("epoll", &waiting[..]), ("tokio", &waiting[..])]
    {
        let steps = trace(model);
        let mut kinds = steps.iter().map(|step| step["kind"].as_str().unwrap());
        for expected in order {
            assert!(kinds.any(|kind| kind == *expected), "{model}: no {expected} in {steps:#?}");
        }
        let has = |kind: &str| steps.iter().any(|step| step["kind"] == kind);
        assert_eq!(has("register"), model != "threads", "{steps:#?}");
        // Calls of two threads overlap, and are told as they end: a new thread may be done with one before
        // the call that has made it returns.
        let mut last: HashMap<u64, f64> = HashMap::new();
        for step in &steps {
            let (thread, at) = (step["thread"].as_u64().unwrap(), step["at"].as_f64().unwrap());
            let before = last.insert(thread, at);
            assert!(before.is_none_or(|before| before <= at), "{model}: {steps:#?}");
        }
        let notes: String = steps.iter().map(|step| step["note"].as_str().unwrap()).collect();
        let blocks = notes.contains("blocks its thread");
        assert_eq!(blocks, model == "threads", "{model}: {notes}");
        assert!(notes.contains("the peer has closed"), "{model}: {notes}");
    }
}

#[test]
fn a_program_that_is_traced_ends_also_when_nobody_reads() {
    let mut observe = Command::new(KAPOK)
        .args(["observe", "--trace", "--end", "--json", "--", KAPOK, "serve"])
        .args(["--addr", "127.0.0.1:0", "--model", "threads"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // What the program prints goes there.
    let mut errors = BufReader::new(observe.stderr.take().unwrap());
    let mut line = String::new();
    errors.read_line(&mut line).unwrap();
    let addr = line.trim().strip_prefix("listening on ").expect(&line).to_owned();
    let mut stream = std::net::TcpStream::connect(&addr).unwrap();
    // As head(1) does: the first line, and no more.
    let mut steps = BufReader::new(observe.stdout.take().unwrap());
    steps.read_line(&mut line).unwrap();
    drop(steps);
    until("its end", || {
        // Each message is a step, as long as it serves.
        let _ = std::io::Write::write_all(&mut stream, MESSAGE);
        thread::sleep(Duration::from_millis(20));
        observe.try_wait().unwrap().is_some()
    });
    let refused = std::net::TcpStream::connect(&addr);
    assert!(refused.is_err(), "it serves on");
}

#[test]
fn a_server_on_a_ring_is_told_from_its_ring() {
    // Each message is received by the ring. Kapok's fibers ask for each, and send by a call; the loop by hand
    // asks once for all of a connection.
    let fibers =
        ["accept", "submit", "read", "write", "submit", "wait", "read", "write", "read", "close"];
    let by_hand = ["accept", "submit", "read", "write", "wait", "read", "write", "read", "close"];
    for (model, order) in [("fiber-uring", &fibers[..]), ("uring", &by_hand[..])] {
        let steps = trace(model);
        let mut kinds = steps.iter().map(|step| step["kind"].as_str().unwrap());
        for expected in order {
            assert!(kinds.any(|kind| kind == *expected), "{model}: no {expected} in {steps:#?}");
        }
        let of = |kind: &str| -> Vec<&Value> {
            steps.iter().filter(|step| step["kind"] == kind).collect()
        };
        let accept = of("accept")[0]["call"].as_str().unwrap();
        let descriptor = accept.rsplit(' ').next().unwrap();
        let reads = of("read");
        assert_eq!(reads.len(), 3, "two messages and the end: {model}: {steps:#?}");
        for (read, bytes) in reads.iter().zip(["64", "64", "0"]) {
            let call = read["call"].as_str().unwrap();
            assert_eq!(call, format!("ring: recv({descriptor}) = {bytes}"), "{model}");
        }
        assert_eq!(of("submit").len(), if model == "uring" { 1 } else { 3 }, "{steps:#?}");
        let note = of("accept")[0]["note"].as_str().unwrap();
        assert!(note.contains("the ring has taken the connection from 127.0.0.1:"), "{note}");
        let times: Vec<f64> = steps.iter().map(|step| step["at"].as_f64().unwrap()).collect();
        assert!(times.is_sorted(), "{model}: {times:?}");
    }
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

/// Bytes of own memory and of page tables that a process holds, by other files than the meters read.
fn held(pid: u32) -> (f64, f64) {
    let kib = |file: &str, field: &str| {
        let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
        let lines = text.lines().filter(|line| line.starts_with(field));
        lines
            .map(|line| line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap())
            .sum::<f64>()
    };
    (kib("smaps", "Anonymous:") * 1024.0, kib("status", "VmPTE:") * 1024.0)
}

/// What is said of a connection's memory, beside what a server of the same kind takes for seven more that
/// were served once.
fn takes_what_a_connection_takes(model: &str, costs: &Value) {
    let said = |what: &str| costs["connection"][what].as_f64().unwrap_or_else(|| panic!("{costs}"));
    let server = Server::kapok(model);
    let connect = || {
        let mut stream = server.connect();
        exchange(&mut stream, MESSAGE, 64, 1);
        stream
    };
    let mut streams = vec![connect()];
    let (private, tables) = held(server.pid());
    streams.extend((1..8).map(|_| connect()));
    let (more_private, more_tables) = held(server.pid());
    let each = |all: f64, first: f64| (all - first).max(0.0) / 7.0;
    for (what, here, slack) in [
        ("private", each(more_private, private), 8_192.0),
        ("page_tables", each(more_tables, tables), 4_096.0),
    ] {
        // Heaps grow by steps, and one of them may fall to the first connection.
        let differs = (said(what) - here).abs();
        assert!(differs <= slack + here / 2.0, "{model}: {here} of {what} here; {costs}");
    }
    // A connection that waits with nothing to send holds no data; what is held would be in the queues.
    assert!((0.0..65_536.0).contains(&said("socket_buffers")), "{model}: {costs}");
    if model == "threads" || model == "fiber" {
        assert!(said("private") >= 4_096.0, "a page of its stack at least; {model}: {costs}");
    }
    if model == "threads" {
        assert!(said("page_tables") > 0.0, "its stack and its arena lie apart: {costs}");
    }
}

#[test]
fn compare_tells_what_a_request_costs() {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("costs.json");
    let compared = kapok(&[
        "compare",
        "--models",
        "threads,epoll,fiber",
        "--protocol",
        "echo",
        "--connections",
        "8",
        "--rounds",
        "1",
        "--seconds",
        "0.2",
        "--costs",
        "--json",
        path.to_str().unwrap(),
    ]);
    assert_eq!(compared.status.code(), Some(0), "{}", text(&compared.stderr));
    let table = text(&compared.stdout);
    assert!(table.contains("What a request costs"), "{table}");
    let json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for row in json["tables"][0]["rows"].as_array().unwrap() {
        let costs = &row["costs"];
        let model = row["model"].as_str().unwrap();
        assert!(costs["requests"].as_u64().unwrap() > 0, "{row}");
        // By programs or by tracing: kinds there are. An echo is sent once, and received once.
        let per_request = |name: &str| -> f64 {
            let kinds = costs["calls_by_kind"].as_array().unwrap().iter();
            let mut kinds = kinds.filter(|call| call["name"] == name);
            kinds.next().map_or(0.0, |call| call["per_request"].as_f64().unwrap())
        };
        assert!((0.9..1.1).contains(&per_request("sendto")), "{model}: {costs}");
        if model == "threads" {
            assert!((0.9..1.1).contains(&per_request("recvfrom")), "{costs}");
            assert_eq!(costs["threads"], 9, "one for each connection, and the first");
            let stacks = costs["stacks"]["reserved"].as_u64().unwrap();
            assert!(stacks >= 8 * 64 * 1024, "{costs}");
            assert!(costs["stacks"]["resident"].as_u64().unwrap() < stacks, "{costs}");
        }
        takes_what_a_connection_takes(model, costs);
        let (received, sent) = (&costs["bytes_in"], &costs["bytes_out"]);
        assert!((55.0..75.0).contains(&received.as_f64().unwrap()), "{model}: {costs}");
        assert!((55.0..75.0).contains(&sent.as_f64().unwrap()), "{model}: {costs}");
    }
}

#[test]
fn bytes_of_connections_that_are_closed_meanwhile_are_not_made_up() {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("churn-costs.json");
    let json = path.to_str().unwrap();
    let load = ["--protocol", "echo", "--connections", "4", "--churn", "5"];
    let rest = ["--rounds", "1", "--seconds", "0.2", "--costs", "--json", json];
    let compared = kapok(&[&["compare", "--models", "epoll"], &load[..], &rest[..]].concat());
    assert_eq!(compared.status.code(), Some(0), "{}", text(&compared.stderr));
    let table = text(&compared.stdout);
    assert!(table.contains("not counted: bytes in and out: connections were closed"), "{table}");
    let json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let costs = &json["tables"][0]["rows"][0]["costs"];
    assert!(costs["requests"].as_u64().unwrap() > 0, "{costs}");
    assert_eq!((&costs["bytes_in"], &costs["bytes_out"]), (&Value::Null, &Value::Null), "{costs}");
}
