//! Programs as they are, by themselves and under `kapok run --main-fiber --stats`: they say the same and
//! end with the same status, and where they waited something was suspended.

mod cases;
mod terminal;
mod unanswered;

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Completion, Failed};

pub(crate) use cases::CASES;

use crate::place::{Place, Servers, Which};
use crate::proof::end_with_this_thread;

/// Beyond this something hangs.
const LIMIT: Duration = Duration::from_secs(180);

/// A program, or a program's library: a row of the document.
pub(crate) struct Case {
    /// As in the names of the tests.
    pub(crate) name: &'static str,
    /// As in the document.
    pub(crate) title: &'static str,
    pub(crate) server: Which,
    /// What has to be known beside the test.
    pub(crate) remark: &'static str,
    /// The executable, and the Debian package that has it, or what it needs.
    program: &'static str,
    package: &'static str,
    /// Arguments with which it succeeds if all that it needs is there.
    present: &'static [&'static str],
    how: How,
}

/// How it is shown that a program works.
enum How {
    /// It does the same by itself and hooked, run with these, one after the other.
    Alike(fn(&Place) -> Vec<Step>),
    /// In a way of its own.
    Specially(fn(&Case, &Place) -> Result<Completion, Failed>),
}

/// One run of a program.
struct Step {
    arguments: Vec<String>,
    input: String,
    /// Whether something has to be suspended.
    waits: bool,
    /// What is left of the output once what differs from run to run is away.
    same: fn(&str) -> String,
}

/// What a program did.
struct Run {
    status: Option<ExitStatus>,
    stdout: String,
    stderr: String,
}

impl Case {
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }
}

/// The command line, beside its library: other packages', so they are built here, once, unless there is
/// one already.
fn kapok() -> &'static Path {
    static KAPOK: OnceLock<PathBuf> = OnceLock::new();
    KAPOK.get_or_init(|| {
        if let Some(there) = env::var_os("KAPOK_COMMAND") {
            return there.into();
        }
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "kapok-cli", "--package", "kapok-preload"]);
        build.args(["--message-format", "json", "--manifest-path"]).arg(workspace);
        // Whoever lints this workspace as it is built has another say there.
        build.env_remove("RUSTC_WORKSPACE_WRAPPER").stderr(Stdio::inherit());
        let built = build.output().unwrap();
        assert!(built.status.success(), "{build:?}");
        let built = String::from_utf8_lossy(&built.stdout);
        built
            .lines()
            .map_while(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .find_map(|message| Some(message["executable"].as_str()?.into()))
            .expect("an executable")
    })
}

pub(crate) fn run(case: &'static Case, servers: &Servers) -> Result<Completion, Failed> {
    let present = Command::new(case.program).args(case.present).stdin(Stdio::null()).output();
    if !present.is_ok_and(|tried| tried.status.success()) {
        let why = format!("there is no {} (apt-get install {})", case.title, case.package);
        kapok_clients::skip(&why);
        return Ok(Completion::ignored_with(why));
    }
    let Some(place) = servers.place(case.server) else {
        return Ok(Completion::ignored_with("its server is not installed"));
    };
    match case.how {
        How::Specially(show) => return show(case, &place),
        How::Alike(steps) => {
            for step in steps(&place) {
                compare(case, &step)?;
            }
        }
    }
    Ok(Completion::Completed)
}

fn compare(case: &Case, step: &Step) -> Result<(), Failed> {
    let alone = finish(Command::new(case.program).args(&step.arguments), &step.input);
    let mut command = Command::new(kapok());
    command.args(["run", "--main-fiber", "--stats", "--", case.program]).args(&step.arguments);
    let hooked = finish(&mut command, &step.input);
    let said = own_words(&hooked.stderr);
    let why = if hooked.status.is_none() {
        "it hangs"
    } else if hooked.status != alone.status {
        "another status"
    } else if (step.same)(&hooked.stdout) != (step.same)(&alone.stdout) {
        "another output"
    } else if (step.same)(&said) != (step.same)(&own_words(&alone.stderr)) {
        "other words to standard error"
    } else if step.waits && suspensions(&hooked.stderr) == Some(0) {
        "nothing was suspended"
    } else if suspensions(&hooked.stderr).is_none() {
        "no statistics"
    } else {
        return Ok(());
    };
    Err(Failed::from(format!(
        "{why}: {} {:?}\nalone: {:?}\n{}{}\nhooked: {:?}\n{}{}",
        case.program,
        step.arguments,
        alone.status,
        alone.stdout,
        alone.stderr,
        hooked.status,
        hooked.stdout,
        hooked.stderr
    )))
}

/// Runs a program to its end. No status: it was killed, at its limit.
fn finish(command: &mut Command, input: &str) -> Run {
    end_with_this_thread(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env("NO_COLOR", "1")
        .env("LC_ALL", "C.UTF-8")
        .env_remove("LD_PRELOAD")
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    thread::scope(|scope| {
        // A program may end before it has read everything.
        scope.spawn(move || stdin.write_all(input.as_bytes()));
        let stdout = scope.spawn(|| std::io::read_to_string(stdout).unwrap());
        let stderr = scope.spawn(|| std::io::read_to_string(stderr).unwrap());
        let began = Instant::now();
        let mut status = child.try_wait().unwrap();
        while status.is_none() && began.elapsed() < LIMIT {
            thread::sleep(Duration::from_millis(2));
            status = child.try_wait().unwrap();
        }
        if status.is_none() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        Run { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
    })
}

/// Standard error without the statistics.
fn own_words(stderr: &str) -> String {
    stderr
        .lines()
        .filter(|line| !line.starts_with("kapok: "))
        .fold(String::new(), |all, line| all + line + "\n")
}

/// What the statistics say; those of children come first.
fn suspensions(stderr: &str) -> Option<u64> {
    let line = stderr.lines().rfind(|line| line.contains("suspensions "))?;
    let (_, rest) = line.split_once("suspensions ")?;
    rest.split(',').next()?.parse().ok()
}
