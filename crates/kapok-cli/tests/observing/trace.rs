//! `kapok observe --trace`: one connection, step by step.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::servers::{KAPOK, MESSAGE, Server, exchange, until};

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
