//! The same comparison on loopback and between two network namespaces.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

const KAPOK: &str = env!("CARGO_BIN_EXE_kapok");

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(program: &str, before: &[&str], more: &[&str]) -> Output {
    Command::new(program)
        .args(before)
        .args(["compare", "--protocol", "echo", "--connections", "4", "--rounds", "2"])
        .args(["--seconds", "0.5"])
        .args(more)
        .env_remove("KAPOK_LOG")
        .env("TMPDIR", env!("CARGO_TARGET_TMPDIR"))
        .output()
        .unwrap()
}

/// Whether namespaces can be made here, and why not.
fn possible() -> Result<(), &'static str> {
    // SAFETY: it has no arguments and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return Err("not root");
    }
    let ip = Command::new("ip").arg("-V").output();
    ip.map(drop).map_err(|_| "no ip(8) (apt install iproute2)")
}

/// The network devices of this namespace.
fn devices() -> Vec<String> {
    let table = fs::read_to_string("/proc/net/dev").unwrap();
    let names = table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
    names.collect()
}

#[test]
fn a_table_between_namespaces_stands_beside_that_of_loopback() {
    if let Err(why) = possible() {
        eprintln!("SKIPPED: {why}");
        return;
    }
    let before = devices();
    let json = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("namespaces.json");
    // With a server that each request waits for, of our own, and a server of somebody else's.
    let mine = format!("mine={KAPOK} serve --addr {{addr}} --backend {{backend}}");
    let more = ["--models", "epoll,fiber", "--server", &mine, "--delay-ms", "1", "--costs"];
    let networks = ["--network", "loopback,veth", "--json", json.to_str().unwrap()];
    let compared = run(KAPOK, &[], &[&more[..], &networks].concat());
    assert_eq!(compared.status.code(), Some(0), "{}", text(&compared.stderr));
    let said = text(&compared.stdout);
    assert!(said.contains("between two namespaces"), "{said}");
    assert!(said.contains("are no network either"), "{said}");

    let written: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    let tables = written["tables"].as_array().unwrap();
    let networks: Vec<&Value> = tables.iter().map(|table| &table["network"]).collect();
    assert_eq!(networks, ["loopback", "veth"]);
    for (table, host) in tables.iter().zip(["127.0.0.1:", "10.0.0.2:"]) {
        assert_eq!(table["rows"].as_array().unwrap().len(), 3);
        for row in table["rows"].as_array().unwrap() {
            assert_eq!(row["trouble"], Value::Null, "{row}");
            let load = &row["measured"][0]["load"];
            assert!(load["addr"].as_str().unwrap().starts_with(host), "{load}");
            assert!(load["requests"].as_u64().unwrap() > 0, "{load}");
            assert!(load["latency"]["p50_us"].as_f64().unwrap() >= 1000.0, "{load}");
            // The server's sockets are found in its own namespace.
            let bytes = row["costs"]["bytes_in"].as_f64().unwrap();
            assert!((60.0..70.0).contains(&bytes), "{}", row["costs"]);
        }
    }
    // Nothing of it is left, and this namespace had no part in it.
    assert_eq!(devices(), before);
}

#[test]
fn without_the_right_to_make_namespaces_it_says_what_it_needs() {
    if possible().is_err() || Command::new("setpriv").arg("--version").output().is_err() {
        eprintln!("SKIPPED: not root, or no ip(8) or setpriv(1)");
        return;
    }
    let without = ["--bounding-set=-sys_admin", KAPOK];
    let refused = run("setpriv", &without, &["--models", "epoll", "--network", "veth"]);
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("that needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN)"), "{said}");
}

#[test]
fn an_unknown_network_is_a_wrong_use() {
    let refused = run(KAPOK, &[], &["--network", "ethernet"]);
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("known are loopback, veth"), "{said}");
}
