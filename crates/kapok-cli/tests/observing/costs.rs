//! `kapok compare --costs`.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::servers::{MESSAGE, Server, exchange, kapok, text};

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
