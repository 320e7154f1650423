//! Several generators, one result: and none that lacks a part.

mod kubernetes;
mod ssh;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const KAPOK: &str = env!("CARGO_BIN_EXE_kapok");

struct Server {
    child: Child,
    addr: String,
}

impl Server {
    fn start(arguments: &[&str]) -> Server {
        let mut child = Command::new(KAPOK)
            .args(["serve", "--addr", "127.0.0.1:0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let addr = line.trim().strip_prefix("listening on ").expect(&line).to_owned();
        Server { child, addr }
    }

    /// A command line that runs a generator against this server.
    fn part(&self, more: &str) -> String {
        format!("{KAPOK} load {} --warmup 0.1 --part {more}", self.addr)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn join(commands: &[String], more: &[&str]) -> Output {
    let mut join = Command::new(KAPOK);
    join.arg("load").env_remove("KAPOK_LOG").args(more);
    for command in commands {
        join.args(["--join", command]);
    }
    join.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// It failed, printed no result, and this is what it said.
fn refused(output: &Output) -> String {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}{}", text(&output.stdout));
    assert_eq!(text(&output.stdout), "", "{said}");
    said
}

fn add_up(joined: &Value, field: &str) -> u64 {
    let parts = joined["parts"].as_array().unwrap();
    parts.iter().map(|part| part[field].as_u64().unwrap()).sum()
}

fn assert_sum(joined: &Value) {
    for field in ["requests", "connections", "active", "served", "bytes_received", "bytes_sent"] {
        assert_eq!(joined[field].as_u64(), Some(add_up(joined, field)), "{field}: {joined}");
        assert!(add_up(joined, field) > 0, "{field}: {joined}");
    }
    let parts = joined["parts"].as_array().unwrap();
    let sum = |pick: &dyn Fn(&Value) -> f64| parts.iter().map(pick).sum::<f64>();
    let latencies = sum(&|part| part["latency"]["count"].as_f64().unwrap());
    assert_eq!(joined["latency"]["count"].as_f64(), Some(latencies));
    let longest = parts.iter().map(|part| part["latency"]["max_us"].as_f64().unwrap());
    assert_eq!(joined["latency"]["max_us"].as_f64(), Some(longest.fold(0.0, f64::max)));
    // Each over its own interval.
    let rate = sum(&|part| part["requests"].as_f64().unwrap() / part["seconds"].as_f64().unwrap());
    let said = joined["requests_per_second"].as_f64().unwrap();
    assert!((said / rate - 1.0).abs() < 1e-9, "{said} {rate}");
    assert_eq!(joined["errors"]["verify"], 0, "{joined}");
}

#[test]
fn three_generators_make_the_sum_of_their_loads() {
    let server = Server::start(&["--protocol", "http"]);
    let http = |more: &str| server.part(&format!("--protocol http --seconds 0.6 {more}"));
    // The second is ready long after the others, which wait for it.
    let commands = [http("-c 3"), format!("sleep 0.7; {}", http("-c 5 --threads 2")), http("-c 8")];
    let joined = join(&commands, &["--json"]);
    assert_eq!(joined.status.code(), Some(0), "{}", text(&joined.stderr));
    let joined: Value = serde_json::from_slice(&joined.stdout).unwrap();
    assert_eq!(joined["parts"].as_array().unwrap().len(), 3);
    assert_eq!(joined["connections"], 16);
    assert_sum(&joined);
    for part in joined["parts"].as_array().unwrap() {
        // None began to measure before the last was ready, or stopped because another had ended.
        let seconds = part["seconds"].as_f64().unwrap();
        assert!(seconds >= 0.6 && part["stopped_early"] == false, "{part}");
    }

    let said = join(&[server.part("--protocol http --seconds 0.2"), http("")][..1], &[]);
    let said = text(&said.stdout);
    assert!(said.contains("of these   1  64 connections"), "{said}");
}

#[test]
fn fixed_rates_are_added_and_so_are_backlogs() {
    let server = Server::start(&[]);
    let part = server.part("-c 2 --rate 200 --seconds 1");
    let joined = join(&[part.clone(), part], &["--json"]);
    let joined: Value = serde_json::from_slice(&joined.stdout).unwrap();
    assert_eq!(joined["rate"], 400.0);
    assert!(joined["backlog"]["unsent"].is_u64(), "{joined}");
    let requests = joined["requests"].as_u64().unwrap();
    assert_eq!(requests, add_up(&joined, "requests"), "{joined}");
    // 400, but for what a machine that stands still answers before or after: one part alone is 200, and
    // both of them twice 800.
    assert!((300..=600).contains(&requests), "{requests}");
}

#[test]
fn a_generator_that_fails_is_named_and_there_is_no_result() {
    let server = Server::start(&[]);
    let good = server.part("--seconds 0.3");
    let cases = [
        (format!("{KAPOK} load 127.0.0.1:1 --part"), "refused"),
        ("exit 3".to_owned(), "before it was ready: exit status: 3"),
        ("no-such-program-at-all".to_owned(), "not found"),
        ("echo Welcome to host b".to_owned(), "`Welcome to host b`, which is no line"),
        (format!("{KAPOK} load {} --seconds 0.1 --json", server.addr), "which is no line"),
        // Whichever of the two is ready last is held against the other.
        (server.part("--seconds 0.4"), "they cannot be added up"),
        (server.part("--seconds 0.3 --rate 100"), "they cannot be added up"),
        (format!("{good} </dev/null"), "went away before saying `go`"),
    ];
    for (bad, why) in cases {
        let said = refused(&join(&[good.clone(), bad.clone()], &[]));
        assert!(said.contains("generator 2") && said.contains(why), "{bad}: {said}");
    }
}

#[test]
fn a_generator_that_ends_before_its_time_is_named_and_there_is_no_result() {
    let server = Server::start(&[]);
    let good = server.part("--seconds 30");
    for (signal, why) in
        [("INT", "ended early"), ("KILL", "before it said what it found: signal: 9")]
    {
        // Of the same process that then becomes the generator.
        let bad = format!("(sleep 3; kill -{signal} $$) >/dev/null 2>&1 & exec {good}");
        let begun = Instant::now();
        let said = refused(&join(&[good.clone(), format!("exec 3<&0; {bad} <&3")], &[]));
        assert!(said.contains("generator 2") && said.contains(why), "{signal}: {said}");
        // The first is not waited for to its end, nor left behind.
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }
}

#[test]
fn another_version_is_told_apart_from_another_program() {
    let server = Server::start(&[]);
    let good = server.part("--seconds 0.3");
    let newer = format!("{good} | sed -u 's/\"kapok_load_part\":1/\"kapok_load_part\":7/'");
    let said = refused(&join(&[good, newer], &[]));
    assert!(said.contains("generator 2") && said.contains("speaks version 7"), "{said}");
    assert!(said.contains("this is version 1"), "{said}");
}

#[test]
fn latencies_that_were_lost_on_the_way_are_missed() {
    let server = Server::start(&[]);
    let good = server.part("--seconds 0.3");
    // One reply more in the report than in the histograms.
    let wrong = format!("{good} | sed -u 's/\"latency\":{{\"count\":/&1/'");
    let said = refused(&join(&[good, wrong], &[]));
    assert!(said.contains("generator 2") && said.contains("latencies in its histograms"), "{said}");
}

#[test]
fn who_is_not_ready_in_time_is_named() {
    let server = Server::start(&[]);
    let begun = Instant::now();
    let joined = join(&[server.part("--seconds 0.3"), "sleep 60".into()], &["--wait", "5"]);
    let said = refused(&joined);
    assert!(said.contains("1 of 2") && said.contains("generator 2 (`sleep 60`)"), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn options_of_a_generator_beside_join_are_refused() {
    for arguments in [
        &["load", "--join", "true", "--connections", "5"][..],
        &["load", "127.0.0.1:9", "--join", "true"],
        &["load", "--listen", "127.0.0.1:0"],
        &["load", "--listen", "127.0.0.1:0", "--generators", "0"],
        &["load", "127.0.0.1:9", "--part", "--json"],
        &["load"],
    ] {
        let refused = Command::new(KAPOK).args(arguments).output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {}", text(&refused.stderr));
    }
}

/// Who listens, and where.
fn listen(arguments: &[&str]) -> (Child, String, BufReader<std::process::ChildStderr>) {
    let mut child = Command::new(KAPOK)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    errors.read_line(&mut line).unwrap();
    let addr = line.trim().strip_prefix("generators may connect to ").expect(&line).to_owned();
    (child, addr, errors)
}

/// The chapter that says how generators are joined.
fn chapter() -> String {
    fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/joining.md")).unwrap()
}

/// With these in place of the words before them.
fn with(arguments: &[String], changes: &[(&str, &str)]) -> Vec<String> {
    let changed = arguments.iter().map(|word| {
        let change = changes.iter().find(|(from, _)| from == word);
        change.map_or_else(|| word.clone(), |(_, to)| (*to).to_owned())
    });
    changed.collect()
}

/// Ends a connection by a reset.
fn reset(stream: TcpStream) {
    use std::os::fd::AsRawFd;
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let bytes = size_of_val(&linger) as libc::socklen_t;
    // SAFETY: the value is read within the call, and is of this size.
    let set = unsafe {
        let value = (&raw const linger).cast();
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, value, bytes)
    };
    assert_eq!(set, 0);
    drop(stream);
}

#[test]
fn who_knocks_and_resets_the_connection_ends_nothing() {
    let server = Server::start(&[]);
    let arguments = ["load", "--listen", "127.0.0.1:0", "--generators", "1", "--json"];
    let (joining, addr, mut errors) = listen(&arguments);
    reset(TcpStream::connect(&addr).unwrap());
    let mut said = String::new();
    errors.read_line(&mut said).unwrap();
    assert!(said.contains("went away before it was ready"), "{said}");
    let generator = Command::new(KAPOK)
        .args(["load", &server.addr, "--part-of", &addr, "-c", "2", "--seconds", "0.2"])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(generator.success());
    errors.read_to_string(&mut said).unwrap();
    let joined = joining.wait_with_output().unwrap();
    assert_eq!(joined.status.code(), Some(0), "{said}");
    assert_sum(&serde_json::from_slice(&joined.stdout).unwrap());
}

#[test]
fn a_generator_that_was_ready_and_went_away_is_missed() {
    let server = Server::start(&[]);
    let arguments = ["load", "--listen", "127.0.0.1:0", "--generators", "2", "--wait", "20"];
    let (joining, addr, mut errors) = listen(&arguments);
    // By way of us, who know thereby when it has said that it is ready.
    let way = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut generator = Command::new(KAPOK)
        .args(["load", &server.addr, "--part-of", &way.local_addr().unwrap().to_string()])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut from = BufReader::new(way.accept().unwrap().0);
    let mut to = TcpStream::connect(&addr).unwrap();
    let mut ready = String::new();
    from.read_line(&mut ready).unwrap();
    assert!(ready.contains("\"ready\""), "{ready}");
    to.write_all(ready.as_bytes()).unwrap();
    generator.kill().unwrap();
    generator.wait().unwrap();
    let mut more = Vec::new();
    // Its end, if need be by a reset.
    let _ = from.read_to_end(&mut more);
    assert!(more.is_empty(), "{}", text(&more));
    drop(to);
    let mut said = String::new();
    errors.read_to_string(&mut said).unwrap();
    let joined = joining.wait_with_output().unwrap();
    assert_eq!((joined.status.code(), joined.stdout.len()), (Some(1), 0), "{said}");
    assert!(said.contains("generator 1") && said.contains("before all were ready"), "{said}");
}
