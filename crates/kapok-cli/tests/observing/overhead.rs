//! What it costs a server to be counted.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kapok_lab::compare::Ratio;
use kapok_lab::meters::{Usage, with_descendants};

use crate::servers::{KAPOK, MESSAGE, Server, is_root};

const CONNECTIONS: usize = 16;

/// An observer has begun by then.
const BEGINNING: Duration = Duration::from_millis(200);

/// What a client asks, and how long the answer is.
#[derive(Clone, Copy)]
struct Request {
    text: &'static [u8],
    reply: usize,
}

/// CPU time of a server and its children for each exchange, in microseconds, over a while.
fn cpu_per_exchange(
    family: &[u32],
    streams: &mut [TcpStream],
    request: Request,
    time: Duration,
) -> f64 {
    let cpu =
        || -> Duration { family.iter().map(|&process| Usage::at_end(process).unwrap().cpu).sum() };
    let mut reply = vec![0; request.reply];
    let mut turn = || {
        for stream in streams.iter_mut() {
            stream.write_all(request.text).unwrap();
        }
        for stream in streams.iter_mut() {
            stream.read_exact(&mut reply).unwrap();
        }
    };
    // What it did before, or that it did nothing, is over by then.
    let begun = Instant::now();
    while begun.elapsed() < time / 4 {
        turn();
    }
    let (before, begun) = (cpu(), Instant::now());
    let mut turns = 0_u32;
    while begun.elapsed() < time {
        turn();
        turns += 1;
    }
    (cpu() - before).as_secs_f64() * 1e6 / f64::from(turns) / CONNECTIONS as f64
}

/// `kapok observe` at a server.
struct Observing {
    command: Child,
    /// It is written to as long as that goes on.
    lines: BufReader<ChildStderr>,
}

impl Observing {
    fn of(process: u32) -> Observing {
        let mut command = Command::new(KAPOK)
            // It looks ten times as often as it does by itself, for the sake of the first line.
            .args(["observe", &process.to_string(), "--every", "0.1"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(command.stderr.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert!(line.contains("system calls/s"), "it does not count: {line}");
        Observing { command, lines }
    }

    /// Its summary.
    fn end(mut self) -> String {
        // SAFETY: only numbers are passed; the child is ours and not reaped.
        assert_eq!(unsafe { libc::kill(self.command.id() as libc::pid_t, libc::SIGINT) }, 0);
        std::io::copy(&mut self.lines, &mut std::io::sink()).unwrap();
        let output = self.command.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }
}

/// How many system calls a summary speaks of.
fn calls(summary: &str) -> u64 {
    let count = summary.lines().find_map(|line| line.strip_prefix("system calls "));
    count.and_then(|line| line.split(',').next()?.parse().ok()).expect(summary)
}

/// Rounds with an observer and without, in turns: what one takes over the other.
fn ratio(server: &Server, request: Request, rounds: usize, time: Duration) -> Ratio {
    let mut streams: Vec<TcpStream> = (0..CONNECTIONS).map(|_| server.connect()).collect();
    let family = with_descendants(server.pid());
    let mut round = |observed: bool| {
        let begun = Instant::now();
        let observing = observed.then(|| Observing::of(server.pid()));
        // So long the server has nothing to do either way.
        thread::sleep(BEGINNING.saturating_sub(begun.elapsed()));
        let cpu = cpu_per_exchange(&family, &mut streams, request, time);
        if let Some(observing) = observing {
            let summary = observing.end();
            assert!(
                summary.contains("counted by programs on the kernel's tracepoints"),
                "{summary}"
            );
            assert!(calls(&summary) > 10, "{summary}");
        }
        cpu
    };
    round(true);
    let ratios: Vec<f64> = (0..rounds)
        .map(|number| {
            // Who is first changes: drift falls on both.
            let first = round(number % 2 == 0);
            let second = round(number % 2 != 0);
            if number % 2 == 0 { first / second } else { second / first }
        })
        .collect();
    Ratio::of(&ratios).unwrap()
}

/// Less than 5 % on a quiet machine, which `KAPOK_SCALE=full` asks for; less than 10 % for a loop by hand
/// that does hardly anything but system calls, of which some machines make dearer ones (docs/design/costs.md
/// has figures). CI's machine is not quiet.
#[test]
fn to_be_counted_costs_a_server_little() {
    if !is_root() {
        return;
    }
    let full = env::var("KAPOK_SCALE").is_ok_and(|scale| scale == "full");
    let (rounds, time) =
        if full { (101, Duration::from_millis(150)) } else { (7, Duration::from_millis(60)) };
    let http = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n";
    let nginx = Server::nginx().map(|server| {
        let mut stream = server.connect();
        stream.write_all(http).unwrap();
        let reply = stream.read(&mut [0; 4096]).unwrap();
        ("nginx", server, Request { text: http, reply })
    });
    let echo = Request { text: MESSAGE, reply: MESSAGE.len() };
    let ping = Request { text: b"PING\r\n", reply: 7 };
    let servers = [
        Some(("epoll", Server::kapok("epoll"), echo)),
        Some(("fiber", Server::kapok("fiber"), echo)),
        Server::redis().map(|server| ("redis-server", server, ping)),
        nginx,
    ];
    let mut too_much = Vec::new();
    for (name, server, request) in servers.into_iter().flatten() {
        let ratio = ratio(&server, request, rounds, time);
        let more = |ratio: f64| format!("{:+.1}", (ratio - 1.0) * 100.0);
        let (low, high) = ratio.interval.unwrap();
        println!(
            "{name}: CPU per request {} % [{} {}] while it is counted, {} rounds",
            more(ratio.estimate),
            more(low),
            more(high),
            ratio.rounds
        );
        let most = match name {
            _ if !full => 1.6,
            "epoll" => 1.1,
            _ => 1.05,
        };
        if ratio.estimate >= most {
            too_much.push((name, ratio.estimate));
        }
    }
    assert!(too_much.is_empty(), "{too_much:?}");
}
