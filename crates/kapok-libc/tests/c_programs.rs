//! Programs in C, built by `cc` against the header and the library as they are installed.
//!
//! `KAPOK_ENGINE` reaches them. A compiler, valgrind(1), pkg-config(1), libpq or PostgreSQL that is not
//! there is a skip that says so, or a failure where `CI` is set.

mod installed;
mod postgres;
mod skipped;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use installed::{Installed, here, is_there};

/// Beyond this something hangs.
const LIMIT: Duration = Duration::from_secs(120);

const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Werror", "-pedantic"];

#[test]
fn the_header_is_c99_and_cpp() {
    let installed = Installed::get();
    let source = here("tests/c/declarations.c");
    for (compiler, standard, language) in
        [("cc", "-std=c99", "c"), ("cc", "-std=c17", "c"), ("c++", "-std=c++11", "c++")]
    {
        if !is_there(compiler) {
            continue;
        }
        let flags = [standard, "-x", language];
        let program = installed.compile(compiler, &flags, &source, &[], "declarations");
        assert!(run(&program).status.success(), "{compiler} {standard}");
    }
}

fn run(program: &Path) -> Output {
    Command::new(program).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn calls_do_what_their_man_pages_say() {
    if !is_there("cc") {
        return;
    }
    is_fine(&Command::new(behaviour()).output().unwrap());
}

fn behaviour() -> std::path::PathBuf {
    let source = here("tests/c/behaviour.c");
    Installed::get().compile("cc", &["-std=c99"], &source, &["-lpthread"], "behaviour")
}

#[track_caller]
fn is_fine(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    assert_eq!(output.stdout, b"fine\n", "{said}");
}

#[test]
fn what_waits_is_interrupted_on_every_engine() {
    /// What the program ends with where there is no such engine.
    const NO_ENGINE: i32 = 77;
    if !is_there("cc") {
        return;
    }
    let program = behaviour();
    for engine in ["uring", "epoll", "poll"] {
        let output = Command::new(&program).args(["interrupted-on", engine]).output().unwrap();
        if output.status.code() == Some(NO_ENGINE) && engine == "uring" {
            skipped::skip(&String::from_utf8_lossy(&output.stderr));
            continue;
        }
        println!("{engine}");
        is_fine(&output);
    }
}

#[test]
fn a_main_that_is_a_fiber_runs_no_loop() {
    if !is_there("cc") {
        return;
    }
    let mut command = Command::new(behaviour());
    is_fine(&command.arg("main-is-a-fiber").env("KAPOK_MAIN_FIBER", "1").output().unwrap());
}

/// A server that says where it listens, and ends at the end of its standard input.
struct Served {
    child: Child,
    stdout: BufReader<ChildStdout>,
    address: String,
}

impl Served {
    fn start(command: &mut Command) -> Served {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").map(str::to_owned);
        let mut served = Served { child, stdout, address: String::new() };
        served.address = address.unwrap_or_else(|| panic!("{line}{}", served.errors()));
        served
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    fn errors(&mut self) -> String {
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        errors
    }

    /// Ends its input, and gives the rest of its output, and what it said to standard error.
    fn end(mut self) -> (String, String) {
        drop(self.child.stdin.take());
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        let errors = self.errors();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {errors}");
        (rest, errors)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // After a failed assertion; otherwise it has ended and is reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Several clients at once, each with more than one buffer's worth, taken byte by byte.
fn converse(served: &Served, clients: usize, bytes: usize) {
    thread::scope(|scope| {
        for client in 0..clients {
            let stream = served.connect();
            scope.spawn(move || {
                let sent: Vec<u8> = (0..bytes).map(|at| (at * 7 + client) as u8).collect();
                let mut back = vec![0; bytes];
                let mut writer = stream.try_clone().unwrap();
                thread::scope(|scope| {
                    scope.spawn(|| writer.write_all(&sent).unwrap());
                    (&stream).read_exact(&mut back).unwrap();
                });
                assert!(sent == back, "client {client} got other bytes than it sent");
            });
        }
    });
}

fn echo(linking: &[&str], name: &str) -> Option<std::path::PathBuf> {
    let source = here("examples/c/echo.c");
    let flags: Vec<&str> = ["-std=c99"].into_iter().chain(STRICT).collect();
    is_there("cc").then(|| Installed::get().compile("cc", &flags, &source, linking, name))
}

#[test]
fn the_echo_server_serves() {
    let Some(program) = echo(&[], "echo") else { return };
    let served = Served::start(&mut Command::new(program));
    converse(&served, 8, 300_000);
    // One that stays connected does not keep the loop from ending.
    let _idle = served.connect();
    let (rest, errors) = served.end();
    assert!(rest.starts_with("8 connections") || rest.starts_with("9 connections"), "{rest}");
    assert!(rest.ends_with(" 0 failed\n") || rest.ends_with(" 1 failed\n"), "{rest}");
    assert_eq!(errors, "");
}

#[test]
fn the_static_library_serves_too() {
    let linking = Installed::get().static_linking();
    let linking: Vec<&str> = linking.iter().map(String::as_str).collect();
    let Some(program) = echo(&linking, "echo-static") else { return };
    let needed = Command::new("ldd").arg(&program).output();
    if let Ok(needed) = needed {
        let needed = String::from_utf8_lossy(&needed.stdout).into_owned();
        assert!(!needed.contains("libkapok"), "{needed}");
    }
    let served = Served::start(&mut Command::new(program));
    converse(&served, 2, 50_000);
    served.end();
}

#[test]
fn valgrind_finds_nothing_in_a_server() {
    if !is_there("valgrind") {
        return;
    }
    let Some(program) = echo(&["-g"], "echo-valgrind") else { return };
    let served = Served::start(valgrind().arg(program));
    converse(&served, 4, 20_000);
    has_no_errors(served);
}

fn valgrind() -> Command {
    // It knows no rings.
    let mut command = Command::new("valgrind");
    command.env("KAPOK_ENGINE", "epoll").args(["--error-exitcode=99", "--max-stackframe=100000"]);
    command
}

#[track_caller]
fn has_no_errors(served: Served) {
    let (_, errors) = served.end();
    assert!(errors.contains("ERROR SUMMARY: 0 errors"), "{errors}");
    // What it says when it has to guess which stack is which.
    assert!(!errors.contains("switching stacks"), "{errors}");
}

fn queries(linking: &[&str], name: &str) -> Option<std::path::PathBuf> {
    let libpq = installed::package("libpq")?;
    let source = here("examples/c/queries.c");
    let linking: Vec<&str> =
        linking.iter().copied().chain(libpq.iter().map(String::as_str)).collect();
    let flags: Vec<&str> = ["-std=c99"].into_iter().chain(STRICT).collect();
    is_there("cc").then(|| Installed::get().compile("cc", &flags, &source, &linking, name))
}

/// Several clients at once, each with a query that takes so many seconds.
fn query(served: &Served, clients: usize, seconds: f64) {
    thread::scope(|scope| {
        for client in 0..clients {
            let mut stream = served.connect();
            scope.spawn(move || {
                let query = format!("select {client}, 'ünï' from pg_sleep({seconds})\n");
                stream.write_all(query.as_bytes()).unwrap();
                let mut lines = BufReader::new(stream).lines();
                assert_eq!(lines.next().unwrap().unwrap(), format!("{client}\tünï"));
                assert_eq!(lines.next().unwrap().unwrap(), ".");
            });
        }
    });
}

#[test]
fn valgrind_finds_nothing_in_a_server_of_queries() {
    if !is_there("valgrind") {
        return;
    }
    let Some(database) = postgres::Postgres::start() else { return };
    let Some(program) = queries(&["-g"], "queries-valgrind") else { return };
    let served = Served::start(valgrind().arg(program).arg(database.conninfo()));
    query(&served, 5, 0.1);
    has_no_errors(served);
}

#[test]
fn libpq_waits_as_fibers_do() {
    let Some(database) = postgres::Postgres::start() else { return };
    let Some(program) = queries(&[], "queries") else { return };
    let served = Served::start(Command::new(program).arg(database.conninfo()));
    const CLIENTS: usize = 20;
    let before = Instant::now();
    query(&served, CLIENTS, 1.0);
    // One after the other they would take a second each.
    let took = before.elapsed();
    assert!(took < Duration::from_secs(CLIENTS as u64 / 2), "{CLIENTS} queries took {took:?}");
    let mut stream = served.connect();
    stream.write_all(b"select nonsense\n").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    assert!(line.contains("nonsense"), "{line}");
    served.end();
}

/// For the modules: whether a program can be started at all.
fn starts(program: impl AsRef<OsStr>) -> bool {
    let quiet = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    quiet.is_ok()
}
