//! Runs each test of the suite in a process of its own.
//!
//! Tests here count descriptors, lower limits, close numbers behind the engine's back and reuse
//! them, and select(2) only knows the first 1024 numbers. None of that can be done beside another
//! test, so a test starts this binary again for itself alone. That also turns a hang and a fatal
//! signal (`SIGPIPE` is put back to its default, which kills) into the failure of the one test
//! that had it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use kapok_engine::{AnyEngine, Config, Kind};

use crate::world::{self, NOT_SIMULATED};

/// Set in the child, to the name of its test.
const CHILD: &str = "KAPOK_CONFORMANCE_CHILD";
/// The line by which the child proves that it ran the test and not nothing at all.
const PROOF: &str = "conformance test ran to its end: ";

/// What the test is doing right now, for the watchdog's last words.
static DOING: Mutex<String> = Mutex::new(String::new());

/// Says what the test is doing, for the message that a hang ends with.
pub(crate) fn doing(what: std::fmt::Arguments<'_>) {
    let mut text = DOING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    text.clear();
    let _ = text.write_fmt(what);
}

/// How long the loops are: 1 as a rule, 10 with `KAPOK_SCALE=full`.
pub(crate) fn scale() -> usize {
    match std::env::var("KAPOK_SCALE").as_deref() {
        Err(_) | Ok("" | "ci") => 1,
        Ok("full") => 10,
        Ok(other) => panic!("KAPOK_SCALE is {other:?}; it is `ci` or `full`"),
    }
}

/// Runs `body` on an engine of this kind, in a process of its own.
pub(crate) fn run(kind: Kind, path: &str, body: fn(Kind)) {
    // The test harness knows tests by their path below the crate.
    let name = path.split_once("::").expect("a test has a module").1;
    if std::env::var_os(CHILD).is_some_and(|child| child == *name) {
        run_here(kind, name, body);
        return;
    }
    if kind == Kind::Sim {
        let test = name.strip_suffix("::sim").unwrap_or(name);
        if let Some((_, reason)) = NOT_SIMULATED.iter().find(|(listed, _)| *listed == test) {
            let line = format!("NOT SIMULATED {test}: {reason}\n");
            let _ = std::io::stderr().write_all(line.as_bytes());
            return;
        }
    }
    let mut config = Config::default();
    config.simulation = Some(world::simulation(0));
    if let Err(error) = AnyEngine::new(kind, &config) {
        assert!(matches!(kind, Kind::Uring), "the {kind} engine cannot be made: {error}");
        assert!(
            std::env::var_os("KAPOK_REQUIRE_URING").is_none_or(|value| value != "1"),
            "KAPOK_REQUIRE_URING=1, and the uring engine cannot be made: {error}"
        );
        // In one piece, and not by a macro: the harness would keep it from being seen.
        let line = format!(
            "SKIPPED {name}: no {kind} engine here: {error}
"
        );
        let _ = std::io::stderr().write_all(line.as_bytes());
        return;
    }
    let output = Command::new(std::env::current_exe().expect("this test has a path"))
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, name)
        .stdin(Stdio::null())
        .output()
        .expect("this test starts again");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {}\n{stdout}\n{stderr}", output.status);
    assert!(stdout.contains(PROOF), "{name} did not run\n{stdout}\n{stderr}");
}

fn run_here(kind: Kind, name: &str, body: fn(Kind)) {
    // SAFETY: the default disposition needs no handler. It makes a stray SIGPIPE fatal.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let patience = Duration::from_secs(60 * scale() as u64);
    let (over, is_over) = channel::<()>();
    let watched = name.to_owned();
    let watchdog = std::thread::spawn(move || {
        if is_over.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            let doing = DOING.lock().map_or_else(|p| p.into_inner().clone(), |d| d.clone());
            let _ = writeln!(
                std::io::stderr(),
                "{watched}: stuck for {patience:?}, last seen doing: {doing}"
            );
            // SAFETY: ends the process at once; nothing of it is needed any more.
            unsafe { libc::_exit(3) };
        }
    });
    if kind == Kind::Sim {
        world::simulate(1);
    }
    body(kind);
    drop(over);
    watchdog.join().expect("the watchdog does not panic");
    println!("{PROOF}{name}");
}
