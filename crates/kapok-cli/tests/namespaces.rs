//! The same comparison on loopback and between two network namespaces.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

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

/// Two namespaces that a pair of devices joins, and what runs in them.
struct Pair {
    names: [String; 2],
    server: Option<Child>,
}

impl Pair {
    const HOSTS: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

    fn new() -> Pair {
        let names = ["a", "b"].map(|which| format!("kapok-load-{}-{which}", std::process::id()));
        let pair = Pair { names, server: None };
        for name in &pair.names {
            ip(&["netns", "add", name]);
        }
        let [a, b] = &pair.names;
        let ends = ["link", "add", "kapok0", "netns", a, "type", "veth", "peer", "kapok0"];
        ip(&[&ends[..], &["netns", b]].concat());
        for (name, host) in pair.names.iter().zip(Pair::HOSTS) {
            ip(&["-n", name, "address", "add", &format!("{host}/24"), "dev", "kapok0"]);
            for device in ["kapok0", "lo"] {
                ip(&["-n", name, "link", "set", device, "up"]);
            }
        }
        pair
    }

    /// What runs `kapok` in one of them.
    fn kapok(&self, which: usize, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[which], KAPOK]).args(arguments);
        command.env_remove("KAPOK_LOG");
        command
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
    }
}

fn ip(arguments: &[&str]) {
    let done = Command::new("ip").args(arguments).output().unwrap();
    assert!(done.status.success(), "ip {arguments:?}: {}", text(&done.stderr));
}

#[test]
fn a_load_from_another_namespace_reaches_a_server_and_several_are_one() {
    if let Err(why) = possible() {
        eprintln!("SKIPPED: {why}");
        return;
    }
    let mut pair = Pair::new();
    let addr = format!("{}:0", Pair::HOSTS[0]);
    let serve = ["serve", "--model", "fiber", "--protocol", "echo", "--addr", &addr];
    let mut server = pair.kapok(0, &serve).stdout(Stdio::piped()).spawn().unwrap();
    let output = server.stdout.take().unwrap();
    pair.server = Some(server);
    let mut lines = BufReader::new(output).lines();
    let addr = lines.find_map(|line| Some(line.ok()?.split_once("listening on ")?.1.to_owned()));
    let addr = addr.expect("the server says where it listens");
    let addr = addr.split_whitespace().next().unwrap();

    let load = ["load", addr, "--protocol", "echo", "--connections", "8", "--seconds", "0.5"];
    let loaded = pair.kapok(1, &[&load[..], &["--json"]].concat()).output().unwrap();
    assert_eq!(loaded.status.code(), Some(0), "{}", text(&loaded.stderr));
    let report: Value = serde_json::from_slice(&loaded.stdout).unwrap();
    assert!(report["addr"].as_str().unwrap().starts_with(Pair::HOSTS[0]), "{report}");
    assert!(report["requests"].as_u64().unwrap() > 0, "{report}");

    // One result of generators in both.
    let part = |which: usize| {
        let kapok = format!("ip netns exec {} {KAPOK} load {addr}", pair.names[which]);
        format!("{kapok} --protocol echo --connections 4 --warmup 0.1 --seconds 0.5 --part")
    };
    let mut join = Command::new(KAPOK);
    join.args(["load", "--json", "--join", &part(0), "--join", &part(1)]).env_remove("KAPOK_LOG");
    let joined = join.output().unwrap();
    assert_eq!(joined.status.code(), Some(0), "{}", text(&joined.stderr));
    let report: Value = serde_json::from_slice(&joined.stdout).unwrap();
    let parts = report["parts"].as_array().unwrap();
    let requests = |part: &Value| part["requests"].as_u64().unwrap();
    assert!(parts.len() == 2 && parts.iter().all(|part| requests(part) > 0), "{report}");
    assert_eq!(requests(&report), parts.iter().map(requests).sum::<u64>(), "{report}");
}
