//! What it costs a server to be counted.

use std::env;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use kapok_lab::meters::{Census, Depth, Usage, with_descendants};

use crate::servers::{Server, is_root};

const CONNECTIONS: usize = 16;

/// CPU time of a server and its children for each exchange, in microseconds, over a while.
fn cpu_per_exchange(
    family: &[u32],
    streams: &mut [TcpStream],
    request: &[u8],
    bytes: usize,
    time: Duration,
) -> f64 {
    use std::io::{Read, Write};
    let cpu =
        || -> Duration { family.iter().map(|&process| Usage::at_end(process).unwrap().cpu).sum() };
    let mut reply = vec![0; bytes];
    let mut turn = || {
        for stream in streams.iter_mut() {
            stream.write_all(request).unwrap();
        }
        for stream in streams.iter_mut() {
            stream.read_exact(&mut reply).unwrap();
        }
    };
    turn();
    let (before, begun) = (cpu(), Instant::now());
    let mut turns = 0_u32;
    while begun.elapsed() < time {
        turn();
        turns += 1;
    }
    (cpu() - before).as_secs_f64() * 1e6 / f64::from(turns) / CONNECTIONS as f64
}

/// Rounds with counting and without, in turns; the median of what one takes over the other.
fn ratio(server: &Server, request: &[u8], bytes: usize, rounds: usize, time: Duration) -> f64 {
    let mut streams: Vec<TcpStream> = (0..CONNECTIONS).map(|_| server.connect()).collect();
    let family = with_descendants(server.pid());
    let mut round = |counted: bool| {
        let census = counted.then(|| Census::in_kernel(&family, Depth::Counts).unwrap());
        let cpu = cpu_per_exchange(&family, &mut streams, request, bytes, time);
        drop(census);
        cpu
    };
    round(true);
    let mut ratios: Vec<f64> = (0..rounds)
        .map(|number| {
            // Who is first changes: drift falls on both.
            let first = round(number % 2 == 0);
            let second = round(number % 2 != 0);
            if number % 2 == 0 { first / second } else { second / first }
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    ratios[rounds / 2]
}

/// Within 10 % on a quiet machine, which `KAPOK_SCALE=full` asks for, for servers that do hardly
/// anything but system calls (docs/design/costs.md has the figures); CI's machine is not quiet.
#[test]
fn to_be_counted_costs_a_server_little() {
    if !is_root() {
        return;
    }
    let full = env::var("KAPOK_SCALE").is_ok_and(|scale| scale == "full");
    let (rounds, time, most) = if full {
        (31, Duration::from_millis(150), 1.10)
    } else {
        (7, Duration::from_millis(60), 1.6)
    };
    let http = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n";
    let nginx = Server::nginx().map(|server| {
        use std::io::{Read, Write};
        let mut stream = server.connect();
        stream.write_all(http).unwrap();
        let bytes = stream.read(&mut [0; 4096]).unwrap();
        ("nginx", server, &http[..], bytes)
    });
    let servers = [
        Some(("epoll", Server::kapok("epoll"), &[7; 64][..], 64)),
        Some(("fiber", Server::kapok("fiber"), &[7; 64][..], 64)),
        Server::redis().map(|server| ("redis-server", server, &b"PING\r\n"[..], 7)),
        nginx,
    ];
    let mut too_much = Vec::new();
    for (name, server, request, bytes) in servers.into_iter().flatten() {
        let ratio = ratio(&server, request, bytes, rounds, time);
        println!("{name}: CPU per request {:+.1} % while it is counted", (ratio - 1.0) * 100.0);
        if ratio >= most {
            too_much.push((name, ratio));
        }
    }
    assert!(too_much.is_empty(), "{too_much:?}");
}
