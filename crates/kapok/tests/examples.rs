//! The examples, run as programs: what they print, what they answer, how they end.
//!
//! `KAPOK_ENGINE` reaches them, so the whole file is run once for each engine.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Beyond this something hangs; nothing here takes nearly as long.
const LIMIT: Duration = Duration::from_secs(120);

/// The example's program. `cargo test -p kapok` builds the examples beside the tests.
fn program(example: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let program = profile.join("examples").join(example);
    let missing = format!("{}: `cargo build -p kapok --examples` makes it", program.display());
    assert!(program.exists(), "{missing}");
    program
}

/// An example that serves.
struct Server {
    child: Child,
    stdout: Option<BufReader<ChildStdout>>,
    address: SocketAddr,
    /// What it printed before it listened.
    preamble: String,
}

impl Server {
    fn start(example: &str) -> Server {
        let mut command = Command::new(program(example));
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        // From here on its destructor ends the program, whatever the program prints.
        let mut server = Server {
            child,
            stdout: None,
            address: SocketAddr::from(([0; 4], 0)),
            preamble: String::new(),
        };
        server.stdout = server.child.stdout.take().map(BufReader::new);
        loop {
            let line = server.read_line();
            assert_ne!(line, "", "{example} ended: {}", server.preamble);
            if let Some(address) = line.strip_prefix("listening on ") {
                server.address = address.trim_end().parse().unwrap();
                return server;
            }
            server.preamble += &line;
        }
    }

    fn read_line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.as_mut().unwrap().read_line(&mut line).unwrap();
        line
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream
    }

    fn signal(&self, signal: i32) {
        // SAFETY: kill takes two numbers; the child has not been waited for, so the id is its own.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// Waits for the end, and gives the status and what it printed.
    fn wait(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            thread::sleep(Duration::from_millis(5));
        };
        let mut printed = String::new();
        self.stdout.as_mut().unwrap().read_to_string(&mut printed).unwrap();
        (status, printed)
    }

    fn stop(self, signal: i32) -> String {
        self.signal(signal);
        let (status, printed) = self.wait();
        assert_eq!(status.code(), Some(0), "{status}: {printed}");
        printed
    }

    /// Waits for a line of its output that contains `text`.
    fn wait_for_line(&mut self, text: &str) {
        loop {
            let line = self.read_line();
            assert_ne!(line, "", "it ended without {text:?}");
            if line.contains(text) {
                return;
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Only if a test failed is there anybody left.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(example: &str, arguments: &[&str]) -> Output {
    Command::new(program(example)).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// Sends half a megabyte from each of three clients at once, and wants it back.
fn assert_echoes(server: &Server) {
    thread::scope(|scope| {
        for client in 0..3u8 {
            scope.spawn(move || {
                let sent: Vec<u8> = (0..500_000u32).map(|at| (at % 251) as u8 ^ client).collect();
                let mut stream = server.connect();
                let mut writer = stream.try_clone().unwrap();
                let echoed = thread::scope(|scope| {
                    scope.spawn(|| {
                        writer.write_all(&sent).unwrap();
                        writer.shutdown(Shutdown::Write).unwrap();
                    });
                    let mut echoed = Vec::new();
                    stream.read_to_end(&mut echoed).unwrap();
                    echoed
                });
                assert!(echoed == sent, "client {client}: {} bytes came back", echoed.len());
            });
        }
    });
}

#[test]
fn tiny_server_echoes_and_ends_on_ctrl_c() {
    let server = Server::start("tiny_server");
    assert_echoes(&server);
    // A connection that is open and quiet does not keep it from ending.
    let mut idle = server.connect();
    idle.write_all(b"x").unwrap();
    idle.read_exact(&mut [0]).unwrap();
    server.stop(libc::SIGINT);
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
    Server::start("tiny_server").stop(libc::SIGTERM);
}

#[test]
fn servers_say_what_is_wrong_with_an_address() {
    for example in ["tiny_server", "lab_fibers", "event_free", "chat", "await_future"] {
        let output = run(example, &["127.0.0.1:seventy"]);
        assert_eq!(output.status.code(), Some(1), "{example}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("127.0.0.1:seventy"), "{example}: {said}");
        assert!(!said.contains("panicked"), "{example}: {said}");
    }
}

#[test]
fn lab_fibers_echoes_and_dies_of_the_signal_like_labs_4_and_5() {
    let server = Server::start("lab_fibers");
    assert_echoes(&server);
    // Not SIGINT: what a shell starts in the background ignores it, and so would this.
    server.signal(libc::SIGTERM);
    assert_eq!(server.wait().0.signal(), Some(libc::SIGTERM));
}

#[test]
fn event_free_naps_ticks_and_is_stopped_by_a_client() {
    let mut server = Server::start("event_free");
    let mut stream = server.connect();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut ask = |line: &str| {
        stream.write_all(line.as_bytes()).unwrap();
        let mut reply = String::new();
        reader.read_line(&mut reply).unwrap();
        reply
    };
    assert_eq!(ask("hello\n"), "hello\n");
    let began = Instant::now();
    assert_eq!(ask("nap\n"), "nap\n");
    assert!(began.elapsed() >= Duration::from_millis(100));
    server.wait_for_line("tick: 2 lines so far");
    // Another client is open and waits: it is let go.
    let mut other = server.connect();
    other.write_all(b"here\n").unwrap();
    other.read_exact(&mut [0; 5]).unwrap();
    assert_eq!(ask("quit\n"), "bye\n");
    assert_eq!(other.read(&mut [0]).unwrap(), 0);
    let (status, printed) = server.wait();
    assert!(status.success(), "{status}");
    assert!(printed.ends_with("served 2 connections\n"), "{printed}");
    assert!(printed.contains("the ticker ends\n"), "{printed}");
}

#[test]
fn event_free_ends_on_a_signal() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let printed = Server::start("event_free").stop(signal);
        assert!(printed.ends_with("served 0 connections\n"), "{printed}");
    }
}

#[test]
fn deadlines_uses_what_came_in_time() {
    // Longer than the default limit: the machine may be busy.
    let began = Instant::now();
    let output = run("deadlines", &["3000"]);
    let took = began.elapsed();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines[0], "memory: memory has thought about \"where is the kapok tree?\"");
    assert_eq!(lines[1], "disk: disk has thought about \"where is the kapok tree?\"");
    assert_eq!(lines[2], "archive: no answer: the deadline passed");
    // The third backend would take a minute, and is not waited for: neither its answer nor its end.
    assert!(took >= Duration::from_secs(3) && took < Duration::from_secs(30), "{took:?}");

    let none = run("deadlines", &["0"]);
    assert!(none.status.success());
    let printed = String::from_utf8_lossy(&none.stdout);
    assert_eq!(printed.matches("no answer").count(), 3, "{printed}");

    let wrong = run("deadlines", &["soon"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("soon"));
}

#[test]
fn await_future_awaits_serves_and_reports() {
    let mut server = Server::start("await_future");
    assert_eq!(server.preamble, "the bell has rung\n");
    assert_echoes(&server);
    for _ in 0..3 {
        server.wait_for_line("a connection has ended after 500000 bytes");
    }
    server.wait_for_line("report: 3 connections, 1500000 bytes");
    let printed = server.stop(libc::SIGTERM);
    assert!(printed.ends_with("told to stop by signal 15\n"), "{printed}");
}

// ---- Chat -----------------------------------------------------------------------------------

/// A client of the chat server that has its name.
fn join(server: &Server, nick: &str) -> BufReader<TcpStream> {
    let mut reader = BufReader::new(server.connect());
    assert_eq!(next_line(&mut reader), "* your nick?\n");
    writeln!(reader.get_mut(), "{nick}").unwrap();
    let welcome = next_line(&mut reader);
    assert!(welcome.starts_with("* with you:"), "{welcome}");
    reader
}

fn next_line(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    line
}

#[test]
fn chat_tells_who_comes_who_goes_and_what_is_said() {
    let server = Server::start("chat");
    let mut ann = join(&server, "ann");
    let mut bob = BufReader::new(server.connect());
    assert_eq!(next_line(&mut bob), "* your nick?\n");
    bob.get_mut().write_all(b"ann\n").unwrap();
    assert_eq!(next_line(&mut bob), "* that one is taken: your nick?\n");
    bob.get_mut().write_all(b"b b\n").unwrap();
    assert_eq!(next_line(&mut bob), "* up to 20 letters and digits, please: your nick?\n");
    bob.get_mut().write_all(b"bob\n").unwrap();
    assert_eq!(next_line(&mut bob), "* with you: ann\n");
    assert_eq!(next_line(&mut ann), "* bob joined\n");
    ann.get_mut().write_all(b"hello\r\n\xff\n").unwrap();
    assert_eq!(next_line(&mut bob), "ann: hello\n");
    let mut raw = Vec::new();
    bob.read_until(b'\n', &mut raw).unwrap();
    assert_eq!(raw, b"ann: \xff\n");

    // What was said last is heard, although its speaker has gone.
    bob.get_mut().write_all(b"bye\n").unwrap();
    drop(bob);
    assert_eq!(next_line(&mut ann), "bob: bye\n");
    assert_eq!(next_line(&mut ann), "* bob left\n");

    let mut cat = join(&server, "cat");
    assert_eq!(next_line(&mut ann), "* cat joined\n");
    cat.get_mut().write_all(&[b'x'; 10_000]).unwrap();
    assert_eq!(next_line(&mut ann), "* cat was dropped: too long a line\n");
    server.stop(libc::SIGINT);
    assert_eq!(next_line(&mut ann), "");
}

#[test]
fn chat_lets_a_crowd_in_that_comes_all_at_once() {
    // More than the queue of one who has just entered can hold of news about the others.
    const CROWD: usize = 150;
    let server = Server::start("chat");
    // Whoever was there first hears what all of them say.
    let mut first = join(&server, "first");
    first.get_ref().set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut crowd: Vec<_> = (0..CROWD).map(|_| server.connect()).collect();
    for (number, stream) in crowd.iter_mut().enumerate() {
        stream.write_all(format!("n{number}\nhere\n").as_bytes()).unwrap();
    }
    let mut heard = 0;
    while heard < CROWD {
        heard += usize::from(next_line(&mut first).ends_with(": here\n"));
    }
    server.stop(libc::SIGTERM);
}

/// The most memory that the process has ever used, in bytes.
#[cfg(target_os = "linux")]
fn peak_memory(server: &Server) -> usize {
    let path = format!("/proc/{}/status", server.child.id());
    let status = std::fs::read_to_string(path).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

#[test]
#[cfg(target_os = "linux")]
fn chat_drops_who_stops_reading_and_loses_nothing_of_the_others() {
    const SPEAKERS: usize = 49;
    const LINES: usize = 420;
    const LINE_BYTES: usize = 1024;
    /// What the server may need for 20 MB that come in and 1 GB that goes out.
    const MEMORY_BYTES: usize = 16 << 20;
    const { assert!(SPEAKERS * LINES * LINE_BYTES > 20 << 20) };

    let server = Server::start("chat");
    let mut deaf = join(&server, "deaf");
    let mut speakers = Vec::new();
    for number in 0..SPEAKERS {
        speakers.push(join(&server, &format!("n{number}")));
    }
    let before = peak_memory(&server);
    let began = Instant::now();

    let told: usize = thread::scope(|scope| {
        let mut listeners = Vec::new();
        for (number, mut reader) in speakers.drain(..).enumerate() {
            let mut writer = reader.get_ref().try_clone().unwrap();
            scope.spawn(move || {
                let padding = "x".repeat(LINE_BYTES - 8);
                for count in 0..LINES {
                    writer.write_all(format!("{count:06} {padding}\n").as_bytes()).unwrap();
                }
            });
            listeners.push(scope.spawn(move || {
                let mut heard: HashMap<String, usize> = HashMap::new();
                let mut total = 0;
                let mut told = false;
                while total < (SPEAKERS - 1) * LINES || !told {
                    let line = next_line(&mut reader);
                    assert_ne!(line, "", "n{number} was dropped after {total} lines");
                    if line == "* deaf was dropped: too slow\n" {
                        assert!(!told, "n{number} was told twice");
                        told = true;
                    } else if !line.starts_with('*') {
                        let (nick, said) = line.split_once(": ").unwrap();
                        let expected = heard.entry(nick.to_owned()).or_default();
                        let count: usize = said[..6].parse().unwrap();
                        assert_eq!(count, *expected, "n{number} hears {nick}");
                        assert_eq!(said.len(), LINE_BYTES);
                        *expected += 1;
                        total += 1;
                    }
                }
                assert_eq!(heard.len(), SPEAKERS - 1);
                drop(reader);
                usize::from(told)
            }));
        }
        listeners.into_iter().map(|listener| listener.join().unwrap()).sum()
    });
    assert_eq!(told, SPEAKERS);
    let grown = peak_memory(&server) - before;
    println!("{} ms, {before} bytes and {grown} more", began.elapsed().as_millis());
    assert!(grown < MEMORY_BYTES, "{before} bytes, then {grown} more");

    // Whoever was deaf finds what the sockets held, and then the end.
    let mut held = Vec::new();
    let end = deaf.read_to_end(&mut held);
    assert!(end.is_ok() || end.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset));
    assert!(held.len() < SPEAKERS * LINES * LINE_BYTES / 2, "{} bytes", held.len());

    // The server goes on.
    let mut ann = join(&server, "ann");
    let mut deaf = join(&server, "deaf");
    deaf.get_mut().write_all(b"I am back\n").unwrap();
    loop {
        match next_line(&mut ann).as_str() {
            "" => panic!("the server has gone"),
            "deaf: I am back\n" => break,
            _ => {}
        }
    }
    server.stop(libc::SIGTERM);
}
