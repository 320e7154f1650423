//! What the tests of fibers run under: a limit in time, an engine that the environment may choose,
//! and a process of their own where they count what a process shares.

// Each test binary uses a part.
#![allow(dead_code)]

use std::io::Write;
use std::process::{Command, Output};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use kapok::{Kind, Runtime};

/// The environment variable that tells a process that it is a test's child.
const CHILD: &str = "KAPOK_TEST_CHILD";

/// How long a test may take before it counts as hung. Generous: those that run beside it end with it.
fn limit() -> Duration {
    Duration::from_secs(scale(120, 1200))
}

/// A size for everyday, and one for `KAPOK_SCALE=full`.
pub(crate) fn scale<T>(ci: T, full: T) -> T {
    match std::env::var("KAPOK_SCALE").as_deref() {
        Ok("full") => full,
        _ => ci,
    }
}

/// Ends the process with a message if it is not dropped in time: a fiber that hangs cannot be
/// unwound, so nothing milder would end the test.
pub(crate) struct Watchdog {
    _alive: mpsc::Sender<()>,
}

impl Watchdog {
    pub(crate) fn new() -> Watchdog {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        let (alive, watched) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            let limit = limit();
            if watched.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                // Not by a macro: what those print is kept for the end of the test.
                let _ = writeln!(std::io::stderr(), "{test} is not over after {limit:?}: it hangs");
                std::process::abort();
            }
        });
        Watchdog { _alive: alive }
    }
}

/// Runs `main` on the engine of the environment, on one loop.
pub(crate) fn run<T: 'static>(main: impl FnOnce() -> T + 'static) -> T {
    run_on(1, main)
}

/// Runs `main` on the engine of the environment, on this many loops.
pub(crate) fn run_on<T: 'static>(threads: usize, main: impl FnOnce() -> T + 'static) -> T {
    let _watchdog = Watchdog::new();
    Runtime::builder().threads(threads).build().expect("an engine").run(main)
}

/// The engine of the environment, as the runtime has it.
pub(crate) fn engine() -> Option<Kind> {
    std::env::var(kapok::ENGINE_VARIABLE).ok().and_then(|name| name.parse().ok())
}

/// Runs `body` in a process of its own, which runs the test `name` of this binary, with these
/// variables beside the others. In that process this call does not return.
pub(crate) fn in_child(name: &str, variables: &[(&str, &str)], body: impl FnOnce()) -> Output {
    let _watchdog = Watchdog::new();
    if std::env::var(CHILD).as_deref() == Ok(name) {
        body();
        // Without ceremony: what else runs in this process is not the test's.
        std::process::exit(0);
    }
    let program = std::env::current_exe().expect("the test's own path");
    let output = Command::new(program)
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, name)
        .envs(variables.iter().copied())
        .output()
        .expect("a child process");
    let ran = String::from_utf8_lossy(&output.stdout).contains("running 1 test");
    assert!(ran, "there is no test {name:?}");
    output
}

/// [`in_child`], where the child must succeed.
pub(crate) fn alone(name: &str, body: impl FnOnce()) {
    let output = in_child(name, &[], body);
    assert!(
        output.status.success(),
        "{name} in a process of its own: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
}

/// How many descriptors the process has open.
pub(crate) fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("a list of descriptors").count()
}

/// Waits on a fiber or a thread until `condition` holds. The watchdog ends what never does.
pub(crate) fn wait_until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        kapok::shield(|| kapok::sleep(Duration::from_millis(1)))
            .expect("nothing interrupts a shield");
    }
}

/// Keeps the processor busy, as code that never waits does.
pub(crate) fn compute(duration: Duration) {
    let end = Instant::now() + duration;
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

/// Numbers that look random and are the same in every run (splitmix64).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    /// One below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}
