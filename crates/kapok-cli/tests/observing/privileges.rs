//! What `kapok observe` sees with fewer rights, and what it says of the rest.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::command::{busy_nginx, calls, looks_busy};
use crate::servers::{Busy, KAPOK, MESSAGE, Server, is_root, is_there, scratch, text};

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

/// What `kapok` says to root who has lost these capabilities, in a mount namespace that `mounts` has
/// prepared.
fn confined(mounts: &str, lost: &str, arguments: &[&str]) -> String {
    // Who is root gets all that the bounding set leaves, with the next program.
    let script = format!("{mounts}; exec setpriv --bounding-set={lost} --inh-caps={lost} \"$@\"");
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", &script, "sh", KAPOK])
        .args(arguments)
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn root_without_its_capabilities_sees_less_step_by_step() {
    if !is_root() || !is_there("unshare") || !is_there("setpriv") {
        return;
    }
    let mounted = "mount -t tracefs none /sys/kernel/tracing 2>/dev/null";
    let hidden = "mount -t tmpfs none /sys/kernel/tracing; \
                  mount -t tmpfs none /sys/kernel/debug 2>/dev/null";
    let server = Server::kapok("fiber");
    let _busy = Busy::with(server.connect(), MESSAGE, 64);
    let pid = server.pid().to_string();
    for (mounts, lost, counted_by, reason) in [
        // Programs take CAP_BPF, and the counter CAP_PERFMON alone. CAP_SYS_ADMIN would do for either.
        (
            mounted,
            "-bpf,-sys_admin",
            Some("a counter on the tracepoint raw_syscalls:sys_enter"),
            "system calls by kind, operations of io_uring and wake-ups: a program on tracepoints \
             was refused (Operation not permitted",
        ),
        // System calls have a tracepoint that is known by its name. The others are looked up in tracefs,
        // which takes CAP_SYS_ADMIN where it is not mounted.
        (
            hidden,
            "-sys_admin",
            Some("programs on the kernel's tracepoints"),
            "operations of io_uring, wake-ups and children that are made later: \
             /sys/kernel/tracing: ",
        ),
        (
            hidden,
            "-bpf,-sys_admin",
            None,
            "system calls and operations of io_uring: a program on tracepoints was refused \
             (Operation not permitted",
        ),
    ] {
        let json = ["observe", &pid, "--seconds", "1.5", "--detail", "--json"];
        let report: Value = serde_json::from_str(&confined(mounts, lost, &json)).unwrap();
        // What is not counted is seen all the same.
        looks_busy(&report, &server, 1);
        assert_eq!(report["counted_by"].as_str(), counted_by, "{lost}: {report}");
        assert_eq!(report["calls"].is_null(), counted_by.is_none(), "{lost}: {report}");
        assert!(report["calls"].as_u64().is_none_or(|calls| calls > 20), "{lost}: {report}");
        let by_kind = counted_by.is_some_and(|how| how.starts_with("programs"));
        assert_eq!(calls(&report, "sendto") > 20, by_kind, "{lost}: {report}");
        assert_eq!(report["calls_by_kind"] != serde_json::json!([]), by_kind, "{lost}: {report}");
        assert_eq!(report["ring"], serde_json::json!([]), "{lost}: {report}");
        assert_eq!(report["wakes_taken"], Value::Null, "{lost}: {report}");
        let not_seen = report["not_seen"].as_array().unwrap();
        assert_eq!(not_seen.len(), 1, "{lost}: {report}");
        assert!(not_seen[0].as_str().unwrap().starts_with(reason), "{lost}: {report}");

        let summary = confined(mounts, lost, &["observe", &pid, "--seconds", "0.3", "--detail"]);
        let how = summary.lines().find_map(|line| line.strip_prefix("counted by "));
        assert_eq!(how, counted_by, "{lost}: {summary}");
        assert!(summary.contains(&format!("not seen: {reason}")), "{lost}: {summary}");
        assert!(summary.contains("ESTAB") && summary.contains("thread"), "{lost}: {summary}");
    }
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
    let is_own = |server: &Server| -> Value {
        let report = observe(server);
        looks_busy(&report, server, 1);
        assert_eq!(report["calls"], Value::Null, "{report}");
        let why = reasons(&report);
        assert!(why.contains("system calls and operations of io_uring: "), "{why}");
        assert!(why.contains("not permitted") || why.contains("denied"), "{why}");
        report
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
    if let Some(own) = Server::nginx_of(Some(65534)) {
        let _busy = busy_nginx(&own);
        let report = is_own(&own);
        assert!(report["processes"].as_array().unwrap().len() >= 2, "{report}");
        // Its worker answers by writev(2).
        assert!(report["transfers"]["writes"].as_u64().unwrap() > 20, "{report}");
        assert!(report["memory"]["proportional"].as_u64().unwrap() > 1 << 16, "{report}");
    }
    // Its master is root's, whatever its worker is.
    if let Some(foreign) = Server::nginx() {
        let _busy = busy_nginx(&foreign);
        is_foreign(&foreign, 1);
    }
    fs::remove_dir_all(home).unwrap();
}
