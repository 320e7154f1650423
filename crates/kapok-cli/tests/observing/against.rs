//! The meters against strace, perf and ss, at the same time on the same server.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kapok_lab::meters::{Census, Counts, Depth, Sockets, call_name};

use crate::servers::{Server, exchange, is_root, is_there, text, until};

/// Exchanges while everybody counts.
const TIMES: usize = 300;
const MESSAGE: &[u8] = &[7; 64];

/// What was counted of `server` while it answered, by us and by `counter`, which is to watch it by the
/// time `ready` says so and prints when it is interrupted.
fn both(server: &Server, mut counter: Command, ready: impl Fn(&Child) -> bool) -> (Counts, String) {
    let mut stream = server.connect();
    exchange(&mut stream, MESSAGE, 64, 5);
    let mut other =
        counter.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    until("the other counter", || {
        assert!(other.try_wait().unwrap().is_none(), "{counter:?} has ended");
        ready(&other)
    });
    thread::sleep(Duration::from_millis(300));
    let mut census = Census::in_kernel(&[server.pid()], Depth::Everything).unwrap();
    let before = census.read().unwrap();
    exchange(&mut stream, MESSAGE, 64, TIMES);
    // What the server does after its last reply belongs to it.
    thread::sleep(Duration::from_millis(100));
    let counts = census.read().unwrap().since(&before);
    // SAFETY: only numbers are passed; the child is ours and not reaped.
    unsafe { libc::kill(other.id() as libc::pid_t, libc::SIGINT) };
    let mut said = String::new();
    other.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    other.wait().unwrap();
    (counts, said)
}

fn by_name(counts: &Counts) -> BTreeMap<String, u64> {
    let calls = counts.calls.as_ref().unwrap();
    calls.iter().map(|(&number, call)| (call_name(number), call.made)).collect()
}

/// The count in a line of `report` that ends with the name of a call (strace -c).
fn in_strace(report: &str, call: &str) -> u64 {
    let line = report.lines().find(|line| line.split_whitespace().last() == Some(call));
    // % time, seconds, usecs/call, calls, errors if there are any, syscall.
    line.and_then(|line| line.split_whitespace().nth(3)?.parse().ok()).unwrap_or(0)
}

#[test]
fn system_calls_are_those_that_strace_counts() {
    if !is_there("strace") || !is_root() {
        return;
    }
    for (model, waits) in [
        ("threads", None),
        ("poll", Some("poll")),
        ("epoll", Some("epoll_wait")),
        ("tokio", Some("epoll_wait")),
        ("uring", Some("io_uring_enter")),
        ("fiber-uring", Some("io_uring_enter")),
        ("fiber-epoll", Some("epoll_wait")),
    ] {
        let server = Server::kapok(model);
        let mut strace = Command::new("strace");
        strace.args(["-c", "-f", "-p", &server.pid().to_string()]);
        let (counts, report) = both(&server, strace, |_| {
            let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
            tasks.map_while(Result::ok).all(|task| {
                let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
                !status.contains("TracerPid:\t0\n")
            })
        });
        let ours = by_name(&counts);
        let of_us = |call: &str| ours.get(call).copied().unwrap_or(0);
        let io = ["read", "write", "recvfrom", "sendto", "readv", "writev"];
        for call in io {
            assert_eq!(of_us(call), in_strace(&report, call), "{model} {call}: {report}");
        }
        let all: u64 = io.iter().map(|call| of_us(call)).sum();
        assert!(all >= TIMES as u64, "{model} did its work by these: {ours:?}");
        if let Some(wait) = waits {
            let (ours, its) = (of_us(wait), in_strace(&report, wait));
            // strace sees a few more while it comes, and the idle server sweeps now and then.
            assert!(
                ours >= TIMES as u64 / 2 && ours.abs_diff(its) <= 12,
                "{model} {wait}: {ours}, {its}"
            );
        }
    }
}

/// A command on the kernel's tracepoints, in a mount of them that nobody else sees.
fn perf(arguments: &str) -> Command {
    let mut command = Command::new("unshare");
    let script = format!("mount -t tracefs none /sys/kernel/tracing; exec perf {arguments}");
    command.args(["-m", "sh", "-c", &script]);
    command
}

/// perf says nothing when it begins: it does once it has opened a counter for each thread.
fn has_counters(perf: &Child) -> bool {
    let links = fs::read_dir(format!("/proc/{}/fd", perf.id())).into_iter().flatten();
    let mut targets =
        links.map_while(Result::ok).filter_map(|link| fs::read_link(link.path()).ok());
    targets.any(|target| target.to_string_lossy().contains("perf_event"))
}

#[test]
fn operations_of_rings_are_those_that_the_tracepoints_count() {
    if !is_there("perf") || !is_there("unshare") || !is_root() {
        return;
    }
    for (model, kind) in [("fiber-uring", "recv"), ("uring", "recv")] {
        let server = Server::kapok(model);
        let events = "io_uring:io_uring_submit_req,io_uring:io_uring_complete";
        let perf = perf(&format!("stat -x, -e {events} -p {}", server.pid()));
        let (counts, report) = both(&server, perf, has_counters);
        let of_perf = |event: &str| -> u64 {
            let line = report.lines().find(|line| line.contains(event)).expect(&report);
            line.split(',').next().unwrap().parse().unwrap_or(0)
        };
        let ring = counts.ring.unwrap();
        let submitted: u64 = ring.values().map(|operation| operation.submitted).sum();
        let landed: u64 = ring.values().map(|operation| operation.landed).sum();
        assert_eq!(submitted, of_perf("submit_req"), "{model}: {ring:?} {report}");
        assert_eq!(landed, of_perf("complete"), "{model}: {ring:?} {report}");
        assert!(landed >= TIMES as u64, "{model} did its work by these: {ring:?}");
        let of_kind: u64 = ring
            .iter()
            .filter(|(number, _)| kapok_lab::meters::operation_name(**number).contains(kind))
            .map(|(_, operation)| operation.landed)
            .sum();
        // A receive that is armed once for all was so before anybody counted.
        let before = ring.get(&255).map_or(0, |operation| operation.landed);
        assert!(of_kind + before >= TIMES as u64, "{model}: {ring:?}");
    }
}

#[test]
fn perf_trace_counts_the_same_calls() {
    if !is_there("perf") || !is_there("unshare") || !is_root() {
        return;
    }
    let server = Server::kapok("epoll");
    // perf has its counters a moment before it enables them, and may miss the first call.
    let differences = || {
        let trace = perf(&format!("trace -s -p {}", server.pid()));
        let (counts, report) = both(&server, trace, has_counters);
        let ours = by_name(&counts);
        let differs = |call: &&str| {
            let line = report.lines().find(|line| line.trim_start().starts_with(call));
            let its = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
            Some(ours[*call]) != its
        };
        let calls: Vec<_> = ["recvfrom", "sendto"].into_iter().filter(differs).collect();
        (!calls.is_empty()).then(|| format!("{calls:?}: {ours:?}\n{report}"))
    };
    let tries: Vec<_> = (0..3).map_while(|_| differences()).collect();
    assert!(tries.len() < 3, "{}", tries.join("\n"));
}

/// A socket: its state, what is in its two queues, its addresses.
type Listed = (String, u32, u32, String, String);

fn in_ss(server: &Server) -> Vec<Listed> {
    let listed = Command::new("ss").args(["-Htnap"]).output().unwrap();
    let own = format!("pid={},", server.pid());
    let of_line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let queue = |place: usize| words[place].parse().unwrap_or_else(|_| panic!("{line}"));
        (words[0].to_owned(), queue(1), queue(2), words[3].to_owned(), words[4].to_owned())
    };
    let text = text(&listed.stdout);
    let mut listed: Vec<Listed> =
        text.lines().filter(|line| line.contains(&own)).map(of_line).collect();
    listed.sort();
    listed
}

fn in_ours(server: &Server) -> Vec<Listed> {
    let sockets = Sockets::of(&[server.pid()]).unwrap().all.into_iter();
    let tcp = sockets.filter(|socket| socket.protocol == "tcp").map(|socket| {
        let peer = socket.peer.unwrap_or_else(|| "0.0.0.0:*".to_owned());
        let queues = (socket.receive_queue, socket.send_queue);
        (socket.state.to_owned(), queues.0, queues.1, socket.local, peer)
    });
    let mut listed: Vec<Listed> = tcp.collect();
    listed.sort();
    listed
}

/// A server that does nothing until this is dropped: its queues stay as they are.
struct Stopped<'a>(&'a Server);

impl Stopped<'_> {
    fn stop(server: &Server) -> Stopped<'_> {
        // SAFETY: only numbers are passed; the child is ours and not reaped.
        unsafe { libc::kill(server.pid() as libc::pid_t, libc::SIGSTOP) };
        until("the stop", || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap();
            stat.rsplit_once(')').unwrap().1.trim_start().starts_with('T')
        });
        Stopped(server)
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        // SAFETY: only numbers are passed; the child is ours and not reaped.
        unsafe { libc::kill(self.0.pid() as libc::pid_t, libc::SIGCONT) };
    }
}

/// Sends until the echo server cannot get rid of its replies and takes nothing any more: nothing has gone for
/// a while, and what it has to send stayed as it is from one look to the next.
fn send_and_never_read(server: &Server, stream: &mut TcpStream) {
    let peer = stream.local_addr().unwrap().to_string();
    let queued = || in_ours(server).iter().find(|socket| socket.4 == peer).map_or(0, |it| it.2);
    stream.set_nonblocking(true).unwrap();
    let begun = Instant::now();
    let (mut last, mut before) = (Instant::now(), 0);
    loop {
        if last.elapsed() >= Duration::from_millis(300) {
            let now = queued();
            if now > 1 << 12 && now == before {
                return;
            }
            (last, before) = (Instant::now(), now);
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{} wait to be sent", queued());
        match stream.write(&[7; 16_384]) {
            Ok(_) => last = Instant::now(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn sockets_are_those_that_ss_lists() {
    if !is_there("ss") || !is_root() {
        return;
    }
    let server = Server::kapok("epoll");
    let mut streams: Vec<_> = (0..7).map(|_| server.connect()).collect();
    for stream in &mut streams {
        exchange(stream, MESSAGE, 64, 1);
    }
    let ours = in_ours(&server);
    assert_eq!(ours.len(), 8, "{ours:?}");
    assert_eq!(ours, in_ss(&server));

    // With something in every queue: what is not read, what the peer does not take, who is not accepted.
    send_and_never_read(&server, &mut streams[0]);
    let _stopped = Stopped::stop(&server);
    streams[1].write_all(&[7; 100]).unwrap();
    let _waiting = server.connect();
    // What was sent, and who has connected, is in the server's queues a moment later.
    let peer = |stream: &TcpStream| stream.local_addr().unwrap().to_string();
    until("what is in the queues", || {
        let ours = in_ours(&server);
        let queued = |is: &dyn Fn(&Listed) -> bool| ours.iter().find(|it| is(it)).map(|it| it.1);
        let sent = peer(&streams[1]);
        queued(&|it| it.0 == "LISTEN") == Some(1) && queued(&|it| it.4 == sent) == Some(100)
    });
    let ours = in_ours(&server);
    let of = |stream: &TcpStream| {
        let peer = peer(stream);
        ours.iter().find(|socket| socket.4 == peer).unwrap_or_else(|| panic!("{ours:?}"))
    };
    let listener = ours.iter().find(|socket| socket.0 == "LISTEN").unwrap();
    assert!(of(&streams[0]).2 > 1 << 12, "not acknowledged: {ours:?}");
    assert_eq!((of(&streams[1]).1, of(&streams[1]).2), (100, 0), "{ours:?}");
    assert_eq!((of(&streams[2]).1, of(&streams[2]).2), (0, 0), "{ours:?}");
    assert_eq!(listener.1, 1, "one waits to be accepted: {ours:?}");
    assert!(listener.2 > 0, "so many may: {ours:?}");
    assert_eq!(ours, in_ss(&server));
}
