//! The commands as a user runs them.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

fn kapok(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kapok"));
    command.args(arguments).env_remove("KAPOK_LOG").env("NO_COLOR", "1");
    command
}

fn output(arguments: &[&str]) -> Output {
    kapok(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `kapok serve` until it is told to stop.
struct Served {
    child: Child,
    stdout: BufReader<ChildStdout>,
    addr: String,
}

impl Served {
    fn start(arguments: &[&str]) -> Served {
        let mut child = kapok(&["serve", "--addr", "127.0.0.1:0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let addr = line.trim().strip_prefix("listening on ").expect(&line).to_owned();
        Served { child, stdout, addr }
    }

    /// What it prints to standard error, line by line. To be taken once.
    fn stderr(&mut self) -> Receiver<String> {
        let stderr = BufReader::new(self.child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        // To the end, whoever reads: a pipe that is full would stop the server.
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        lines
    }

    /// Sends a signal and returns the exit status, and what else was printed.
    fn stop(mut self, signal: libc::c_int) -> (Option<i32>, String) {
        // SAFETY: only numbers are passed; the child is ours and not reaped.
        unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // After a failed assertion; otherwise it has ended and is reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn serve_and_load_meet_in_both_protocols_and_serve_ends_cleanly() {
    for (protocol, signal) in [("echo", libc::SIGTERM), ("http", libc::SIGINT)] {
        let served = Served::start(&["--model", "threads", "--protocol", protocol]);
        let load = output(&[
            "load",
            &served.addr,
            "--protocol",
            protocol,
            "--connections",
            "4",
            "--seconds",
            "0.3",
            "--warmup",
            "0.1",
            "--json",
        ]);
        assert_eq!(load.status.code(), Some(0), "{}", text(&load.stderr));
        let report: Value = serde_json::from_slice(&load.stdout).unwrap();
        assert!(report["requests"].as_u64().unwrap() > 0, "{report}");
        assert_eq!(report["errors"]["verify"], 0);
        assert_eq!(report["served"], 4);
        assert_eq!(report["addr"], served.addr);
        assert!(report["latency"]["p50_us"].as_f64().unwrap() > 0.0, "{report}");
        assert_eq!(served.stop(signal), (Some(0), String::new()), "{protocol}");
    }
}

#[test]
fn the_human_report_names_what_matters() {
    let served = Served::start(&["--model", "threads"]);
    let load = output(&["load", &served.addr, "-c", "2", "--seconds", "0.2", "--rate", "500"]);
    let report = text(&load.stdout);
    for word in ["requests", "p99.9", "backlog", "errors      0", "of its core"] {
        assert!(report.contains(word), "{word} in:\n{report}");
    }
    assert!(!report.contains('\x1b'), "{report}");
    served.stop(libc::SIGTERM);
}

#[test]
fn a_reply_that_is_not_what_was_asked_for_fails_the_load() {
    let served = Served::start(&["--model", "threads", "--protocol", "http", "--body", "13"]);
    let load =
        output(&["load", &served.addr, "--protocol", "http", "--body", "14", "--seconds", "0.2"]);
    assert_eq!(load.status.code(), Some(1));
    let complaint = text(&load.stderr);
    assert!(complaint.contains("Content-Length 13 instead of 14"), "{complaint}");
    served.stop(libc::SIGTERM);
}

#[test]
fn serve_speaks_json_when_asked() {
    let mut child = kapok(&["serve", "--addr", "127.0.0.1:0", "--model", "threads", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert!(ready["listening"].as_str().unwrap().starts_with("127.0.0.1:"), "{ready}");
    // SAFETY: only numbers are passed; the child is ours and not reaped.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
    let account: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(account["accepted"], 0);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_wrong_use_exits_with_2_and_says_what_is_known() {
    let cases: [(&[&str], &str); 12] = [
        (&[], "Usage"),
        (&["sreve"], "serve"),
        (&["serve", "--model", "epol"], "known are threads"),
        (&["serve", "--threads", "0"], "at least 1"),
        (&["serve", "--addr", "nowhere"], "HOST:PORT"),
        (
            &["serve", "--addr", "127.0.0.1:0", "--model", "threads", "--watchdog-ms", "100"],
            "a watchdog is for fibers, and the model threads has none",
        ),
        (&["load"], "<ADDR>"),
        (&["load", "127.0.0.1:1", "--protocol", "smtp"], "known are echo, http"),
        (&["load", "127.0.0.1:1", "--active", "65"], "65 active connections of 64"),
        (&["compare", "--seconds=-1"], "--seconds"),
        (&["compare", "--server", "mine=./server"], "NAME=COMMAND"),
        (&["compare", "--baseline", "mine"], "no row is called `mine`, but threads"),
    ];
    for (arguments, help) in cases {
        let refused = output(arguments);
        let complaint = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {complaint}");
        assert!(complaint.contains(help), "{arguments:?}: {complaint}");
        assert!(refused.stdout.is_empty());
    }
}

#[test]
fn a_failure_exits_with_1_and_names_the_address() {
    // Bound and given back: nobody listens there.
    let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let load = output(&["load", &addr]);
    assert_eq!(load.status.code(), Some(1));
    let complaint = text(&load.stderr);
    assert!(complaint.contains(&addr) && complaint.contains("refused"), "{complaint}");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let serve = output(&["serve", "--addr", &addr, "--model", "threads"]);
    assert_eq!(serve.status.code(), Some(1));
    let complaint = text(&serve.stderr);
    assert!(complaint.contains(&addr) && complaint.contains("in use"), "{complaint}");
}

/// Whether a line with `words` comes, before the server ends or it takes a minute.
fn prints(lines: &Receiver<String>, words: &str) -> bool {
    prints_within(Duration::from_secs(60), lines, words)
}

fn prints_within(limit: Duration, lines: &Receiver<String>, words: &str) -> bool {
    let end = Instant::now() + limit;
    std::iter::from_fn(|| lines.recv_timeout(end.saturating_duration_since(Instant::now())).ok())
        .any(|line| line.contains(words))
}

/// Sends a byte to an echo server and waits until it comes back.
fn echo_a_byte(addr: &str) -> TcpStream {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    stream
}

#[test]
fn a_fiber_that_keeps_others_waiting_is_named_if_a_watchdog_was_asked_for() {
    let mut served = Served::start(&["--cpu-us", "400000", "--watchdog-ms", "50"]);
    let stderr = served.stderr();
    drop(echo_a_byte(&served.addr));
    assert!(prints(&stderr, "blocks loop"));
    assert!(prints(&stderr, "converse"), "the backtrace names the handler");
    served.stop(libc::SIGTERM);
    let mut served = Served::start(&["--cpu-us", "400000", "--watchdog-ms", "0"]);
    let stderr = served.stderr();
    drop(echo_a_byte(&served.addr));
    assert_eq!(served.stop(libc::SIGTERM), (Some(0), String::new()));
    assert!(!prints(&stderr, "blocks loop"));
}

#[test]
fn a_signal_shows_every_fiber_and_the_server_goes_on() {
    for model in ["fiber", "fiber-epoll", "fiber-poll", "fiber-select"] {
        let mut served = Served::start(&["--model", model]);
        let stderr = served.stderr();
        let connection = echo_a_byte(&served.addr);
        let peer = format!("(peer {})", connection.local_addr().unwrap());
        // After the reply it takes the fiber a moment until it waits for more.
        let is_shown = || {
            // SAFETY: only numbers are passed; the child is ours and not reaped.
            unsafe { libc::kill(served.child.id() as libc::pid_t, libc::SIGUSR2) };
            prints_within(Duration::from_secs(1), &stderr, &peer)
        };
        assert!((0..60).any(|_| is_shown()), "{model}: no fiber waits for {peer}");
        drop(echo_a_byte(&served.addr));
        assert_eq!(served.stop(libc::SIGTERM), (Some(0), String::new()), "{model}");
    }
}

/// The processes that have `parent` as their parent.
fn children(parent: u32) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().map_while(Result::ok) {
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let fields = stat.rsplit_once(')').unwrap().1.to_owned();
        if fields.split_whitespace().nth(1) == Some(&parent.to_string()) {
            found.push(stat);
        }
    }
    found
}

/// The length of a body that nobody else asks for, neither another of these tests nor another run of them:
/// it marks servers among all processes.
fn marker(test: u32) -> String {
    assert!(test < 4);
    (10_000 + 4 * (std::process::id() % 10_000) + test).to_string()
}

/// Whether a process that listens with this program's `serve` and this marker is left.
fn left_behind(marker: &str) -> bool {
    let marker = format!("--body {marker}");
    fs::read_dir("/proc").unwrap().map_while(Result::ok).any(|entry| {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        text(&command).replace('\0', " ").contains(&marker)
    })
}

/// That each of so many rounds was measured, but for those in which the machine stood still.
fn assert_rounds(row: &Value, rounds: u64) {
    let measured = row["measured"].as_array().unwrap().len() as u64;
    assert!(measured > 0, "{row}");
    assert_eq!(measured + row["dropped_rounds"].as_u64().unwrap(), rounds, "{row}");
}

#[test]
fn compare_measures_two_models_and_leaves_nobody_behind() {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("compare.json");
    let file = path.to_str().unwrap();
    let body = marker(0);
    let compared = output(&[
        "compare",
        "--models",
        "threads,tokio",
        "--protocol",
        "http",
        "--connections",
        "4",
        "--rounds",
        "2",
        "--seconds",
        "0.2",
        "--body",
        &body,
        "--json",
        file,
    ]);
    assert_eq!(compared.status.code(), Some(0), "{}", text(&compared.stderr));
    let table = text(&compared.stdout);
    assert!(table.contains("threads") && table.contains("first look"), "{table}");
    assert!(table.contains("comparisons: 1, each at 95 % for itself"), "{table}");

    let json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let rows = json["tables"][0]["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "{json}");
    for row in rows {
        assert_eq!(row["trouble"], Value::Null, "{row}");
        assert_rounds(row, 2);
        assert!(row["requests_per_second"]["median"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["cpu_us_per_request"]["median"].as_f64().unwrap() > 0.0, "{row}");
        let range = &row["cpu_us_per_request"];
        assert!(range["least"].as_f64() <= range["most"].as_f64(), "{row}");
    }
    assert_eq!(rows[0]["untimed"]["threads"], 5, "one for each connection, and the first");
    assert!(!left_behind(&body));
}

#[test]
fn who_never_waits_uses_a_core_while_nothing_is_asked_of_it() {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("idle.json");
    let shares = || -> (f64, f64) {
        let compared = output(&[
            "compare",
            "--models",
            "busy-poll,epoll",
            "--protocol",
            "echo",
            "--connections",
            "4",
            "--rounds",
            "1",
            "--seconds",
            "0.2",
            "--json",
            path.to_str().unwrap(),
        ]);
        assert_eq!(compared.status.code(), Some(0), "{}", text(&compared.stderr));
        let json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let rows = json["tables"][0]["rows"].as_array().unwrap();
        let share = |model: &str| {
            let row = rows.iter().find(|row| row["model"] == model).unwrap();
            row["idle_cpu_share"].as_f64().unwrap_or(f64::NAN)
        };
        (share("busy-poll"), share("epoll"))
    };
    // On a machine with other things to do, others have the core now and then.
    let mut seen = Vec::new();
    let is_so = (0..3).any(|_| {
        let (spins, waits) = shares();
        seen.push((spins, waits));
        spins > 0.2 && waits < 0.1
    });
    assert!(is_so, "busy polling and epoll, idle: {seen:?}");
}

#[test]
fn compare_takes_servers_of_others() {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("servers.json");
    let kapok = env!("CARGO_BIN_EXE_kapok");
    let serve = "serve --model poll --addr {addr} --protocol {protocol} --body {body}";
    let body = marker(1);
    let compared = output(&[
        "compare",
        "--models",
        "threads",
        "--server",
        &format!("mine={kapok} {serve}"),
        "--server",
        "absent=./no-such-server --port {port}",
        "--server",
        &format!("deaf={kapok} doctor {{addr}}"),
        "--baseline",
        "mine",
        "--protocol",
        "http",
        "--connections",
        "4",
        "--rounds",
        "2",
        "--seconds",
        "0.2",
        "--body",
        &body,
        "--json",
        path.to_str().unwrap(),
    ]);
    assert_eq!(compared.status.code(), Some(0), "{}", text(&compared.stderr));
    let table = text(&compared.stdout);
    assert!(table.contains("× mine") && table.contains("no-such-server"), "{table}");
    let json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let rows = json["tables"][0]["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["model"].as_str().unwrap()).collect();
    assert_eq!(names, ["threads", "mine", "absent", "deaf"]);
    for row in &rows[..2] {
        assert_eq!(row["trouble"], Value::Null, "{row}");
        assert_rounds(row, 2);
        assert!(row["slowest_share"]["median"].as_f64().unwrap() > 0.0, "{row}");
    }
    assert!(rows[3]["trouble"].as_str().unwrap().contains("unexpected argument"), "{}", rows[3]);
    assert!(!left_behind(&body));
}

#[test]
fn a_model_that_fails_says_why_and_the_others_go_on() {
    // With so few descriptors the server cannot hold them, and neither can the load: each says so.
    let body = marker(2);
    let script = format!(
        "ulimit -n 90; exec {} compare --models threads --protocol echo --connections 60 \
         --rounds 1 --seconds 0.1 --body {body}",
        env!("CARGO_BIN_EXE_kapok")
    );
    let compared = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(compared.status.code(), Some(1), "{}", text(&compared.stderr));
    let table = text(&compared.stdout);
    assert!(table.contains("threads: 60 connections need 124 descriptors"), "{table}");
    assert!(!left_behind(&body));
}

#[test]
fn an_interrupted_compare_stops_its_servers() {
    let body = marker(3);
    let mut compare = kapok(&[
        "compare",
        "--models",
        "threads,busy-poll",
        "--protocol",
        "echo",
        "--rounds",
        "50",
        "--seconds",
        "5",
        "--body",
        &body,
    ])
    .stdout(Stdio::null())
    .stderr(Stdio::null())
    .spawn()
    .unwrap();
    let begun = Instant::now();
    while children(compare.id()).is_empty() {
        assert!(begun.elapsed().as_secs() < 30, "no server was started");
        thread::sleep(Duration::from_millis(20));
    }
    // SAFETY: only numbers are passed; the child is ours and not reaped.
    unsafe { libc::kill(compare.id() as libc::pid_t, libc::SIGINT) };
    assert_eq!(compare.wait().unwrap().code(), Some(1));
    assert!(begun.elapsed().as_secs() < 60, "it went on to its end");
    assert!(!left_behind(&body));
}

#[test]
fn doctor_finds_an_engine_and_says_so_in_both_forms() {
    let human = output(&["doctor"]);
    assert_eq!(human.status.code(), Some(0));
    assert!(text(&human.stdout).contains("Kapok runs here"), "{}", text(&human.stdout));

    let json: Value = serde_json::from_slice(&output(&["doctor", "--json"]).stdout).unwrap();
    assert_eq!(json["usable"], true);
    let findings = json["findings"].as_array().unwrap();
    for name in ["kernel", "io_uring", "poll", "descriptors", "system calls"] {
        assert!(findings.iter().any(|finding| finding["name"] == name), "{name}: {json}");
    }
    for finding in findings {
        let warned = finding["verdict"] != "ok";
        assert_eq!(warned, finding["cure"].is_string(), "{finding}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let script = format!("{} doctor | true; exit ${{PIPESTATUS[0]}}", env!("CARGO_BIN_EXE_kapok"));
    let piped = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert_eq!(piped.status.code(), Some(0), "{}", text(&piped.stderr));
    assert!(piped.stderr.is_empty(), "{}", text(&piped.stderr));
}

/// An echo server that closes its second connection after a reply, if it is to, and opens others.
fn echoes(closes: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut buf = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buf) {
                    if stream.write_all(&buf[..count]).is_err() || (closes && number == 1) {
                        break;
                    }
                }
            });
        }
    });
    address
}

#[test]
fn a_failed_load_fails_even_if_nobody_reads_its_report() {
    for (fails, status) in [(true, 1), (false, 0)] {
        let address = echoes(fails);
        // The report is there, and says how the load went: it did not end before.
        let read = output(&["load", &address, "--connections", "4", "--seconds", "0.2"]);
        assert_eq!(read.status.code(), Some(status), "{}", text(&read.stderr));
        assert!(text(&read.stdout).contains("requests"), "{}", text(&read.stderr));
        let script = format!(
            "{} load {} --connections 4 --seconds 0.2 2>/dev/null | true; exit ${{PIPESTATUS[0]}}",
            env!("CARGO_BIN_EXE_kapok"),
            echoes(fails)
        );
        let piped = Command::new("bash").args(["-c", &script]).output().unwrap();
        assert_eq!(piped.status.code(), Some(status), "it was to fail: {fails}");
    }
}

#[test]
fn a_log_filter_that_is_wrong_is_named() {
    let run = |filter: &str| kapok(&["doctor"]).env("KAPOK_LOG", filter).output().unwrap();
    let complaint = text(&run("kapok=loud").stderr);
    assert!(complaint.contains("KAPOK_LOG=kapok=loud"), "{complaint}");
    for filter in ["", "kapok=error"] {
        assert_eq!(text(&run(filter).stderr), "");
    }
}

#[test]
fn every_command_explains_itself_with_examples() {
    for command in ["serve", "load", "compare", "doctor"] {
        let help = output(&[command, "--help"]);
        assert_eq!(help.status.code(), Some(0));
        assert!(text(&help.stdout).contains(&format!("  kapok {command}")), "{command}");
    }
}

#[test]
fn values_beyond_all_reason_are_wrong_uses_and_no_panics() {
    for arguments in [
        &["serve", "--addr", "127.0.0.1:0", "--protocol", "http", "--body", "18446744073709551615"]
            [..],
        &["serve", "--addr", "127.0.0.1:0", "--buffer", "18446744073709551615"],
        &["serve", "--addr", "127.0.0.1:0", "--threads", "100000", "--model", "tokio"],
        &["load", "127.0.0.1:9", "--rate", "1e13"],
        &["load", "127.0.0.1:9", "--seconds", "1e18"],
        &["compare", "--rounds", "18446744073709551615"],
        &["compare", "--seconds", "1e18"],
        &["compare", "--size", "0"],
        &["compare", "--pipeline", "0"],
        &["compare", "--churn", "0"],
    ] {
        let output = output(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
    }
}

#[test]
fn doctor_does_not_call_an_unknown_engine_fine() {
    let output = kapok(&["doctor", "--json"]).env("KAPOK_ENGINE", "foo").output().unwrap();
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = found["findings"].as_array().unwrap();
    let engine = findings.iter().find(|finding| finding["name"] == "KAPOK_ENGINE").unwrap();
    assert_eq!(engine["verdict"], "fail");
    assert!(engine["found"].as_str().unwrap().contains("foo"));
}

/// Answers the first message of the first connections, and nothing after that.
fn server_that_greets(connections: usize) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        let mut kept = Vec::new();
        for mut stream in listener.incoming().map_while(Result::ok) {
            if kept.len() < connections {
                let mut message = [0; 64];
                stream.read_exact(&mut message).unwrap();
                stream.write_all(&message).unwrap();
            }
            kept.push(stream);
        }
    });
    addr
}

#[test]
fn where_nothing_is_answered_there_is_no_latency_and_the_load_has_failed() {
    let addr = server_that_greets(2).to_string();
    let short = ["--seconds", "0.3", "--warmup", "0", "-c", "2", "--timeout", "0.2"];
    let silent = kapok(&["load", &addr]).args(short).output().unwrap();
    let said = text(&silent.stdout);
    assert_eq!(silent.status.code(), Some(1), "{said}");
    assert!(said.contains("latency     none: nothing was answered"), "{said}");
    assert!(!said.contains("p50"), "{said}");
    // Without an error as well: one that is stopped awaits nothing.
    let addr = server_that_greets(2).to_string();
    let mut stopped = kapok(&["load", &addr, "--warmup", "0", "-c", "2", "--seconds", "60"]);
    stopped.args(["--timeout", "60"]);
    let stopped = stopped.stdout(Stdio::piped()).spawn().unwrap();
    thread::sleep(Duration::from_millis(1500));
    // SAFETY: only numbers are passed; the child is ours and not reaped.
    unsafe { libc::kill(stopped.id() as libc::pid_t, libc::SIGINT) };
    let stopped = stopped.wait_with_output().unwrap();
    let said = text(&stopped.stdout);
    assert!(said.contains("errors      0") && said.contains("latency     none"), "{said}");
    assert_eq!(stopped.status.code(), Some(1), "{said}");
}
