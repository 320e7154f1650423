//! The meters against strace, perf and ss, at the same time on the same server.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self as unix, UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kapok_lab::Model;
use kapok_lab::meters::{Census, Counts, Depth, RingCount, Socket, Sockets, call_name};
use serde_json::Value;

use crate::servers::{MESSAGE, Server, exchange, is_root, is_there, kapok, scratch, text, until};

/// Exchanges while everybody counts.
const TIMES: usize = 300;
/// Connections that come and go meanwhile, where accepting is counted too.
const CONNECTIONS: usize = 7;

/// What was counted of `server` while it answered and took in so many `connections`, by us at each depth and by
/// `counter`, which is to watch it by the time `ready` says so and prints when it is interrupted.
fn both(
    server: &Server,
    connections: usize,
    mut counter: Command,
    ready: impl Fn(&Child) -> bool,
) -> ([Counts; 2], String) {
    let mut stream = server.connect();
    exchange(&mut stream, MESSAGE, 64, 5);
    let mut other =
        counter.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    until("the other counter", || {
        assert!(other.try_wait().unwrap().is_none(), "{counter:?} has ended");
        ready(&other)
    });
    thread::sleep(Duration::from_millis(300));
    let mut both = [Depth::Everything, Depth::Counts]
        .map(|depth| Census::in_kernel(&[server.pid()], depth).unwrap());
    let before = both.each_mut().map(|census| census.read().unwrap());
    exchange(&mut stream, MESSAGE, 64, TIMES);
    let mut more: Vec<_> = (0..connections).map(|_| server.connect()).collect();
    for stream in &mut more {
        exchange(stream, MESSAGE, 64, 1);
    }
    // Who registers a connection only when it finds nothing on it does so now.
    thread::sleep(Duration::from_millis(50));
    drop(more);
    until("the end of all but one connection", || in_ours(server.pid(), "tcp").len() == 2);
    // What the server does after its last reply belongs to it.
    thread::sleep(Duration::from_millis(100));
    let mut before = before.iter();
    let counts = both
        .each_mut()
        .map(|census| census.read().unwrap().since(before.next().expect("one for each")));
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

/// The count in a line of `report` that ends with the name of a call (strace -c), and how many failed.
fn in_strace(report: &str, call: &str) -> (u64, u64) {
    let line = report.lines().find(|line| line.split_whitespace().last() == Some(call));
    // % time, seconds, usecs/call, calls, errors if there are any, syscall.
    let words: Vec<&str> = line.map_or_else(Vec::new, |line| line.split_whitespace().collect());
    let number = |place: usize| words.get(place).and_then(|word| word.parse().ok()).unwrap_or(0);
    (number(3), number(4))
}

/// What a model waits by for all its connections together, by each name that the C library may call it.
fn waits_by(model: Model) -> &'static [&'static str] {
    match model {
        Model::Threads | Model::ThreadPool | Model::BusyPoll => &[],
        Model::Select | Model::FiberSelect => &["select", "pselect6"],
        Model::Poll | Model::FiberPoll => &["poll", "ppoll"],
        Model::Epoll | Model::Mio | Model::Tokio | Model::FiberEpoll => &["epoll_wait"],
        Model::Uring | Model::FiberUring | Model::Fiber => &["io_uring_enter"],
    }
}

#[test]
fn system_calls_are_those_that_strace_counts() {
    if !is_there("strace") || !is_root() {
        return;
    }
    for model in Model::ALL {
        let server = Server::kapok(&model.to_string());
        let mut strace = Command::new("strace");
        strace.args(["-c", "-f", "-p", &server.pid().to_string()]);
        let ([counts, alone], report) = both(&server, CONNECTIONS, strace, |_| {
            let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
            tasks.map_while(Result::ok).all(|task| {
                let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
                !status.contains("TracerPid:\t0\n")
            })
        });
        let ours = by_name(&counts);
        let of_us = |call: &str| ours.get(call).copied().unwrap_or(0);
        // Who never waits asks again and again, and strace counts before us and after us: of these two, only
        // what they found is a certain number.
        let asks_on: &[&str] =
            if model == Model::BusyPoll { &["recvfrom", "accept4"] } else { &[] };
        let io = ["read", "write", "recvfrom", "sendto", "readv", "writev"];
        for call in io.into_iter().chain(["accept4", "epoll_ctl"]) {
            if !asks_on.contains(&call) {
                assert_eq!(of_us(call), in_strace(&report, call).0, "{model} {call}: {report}");
                let alone = by_name(&alone).get(call).copied();
                assert_eq!(alone.unwrap_or(0), of_us(call), "{model} {call}, counts alone");
            }
        }
        let all: u64 = io.iter().map(|call| of_us(call)).sum();
        assert!(all >= TIMES as u64, "{model} did its work by these: {ours:?}");
        let connections = CONNECTIONS as u64;
        for call in asks_on {
            let (its, failed) = in_strace(&report, call);
            // Each message that it finds is answered, and of each connection it finds the end.
            let found =
                if *call == "accept4" { connections } else { of_us("sendto") + connections };
            assert_eq!(its - failed, found, "{model} {call}: {report}");
            assert!((found..=its).contains(&of_us(call)), "{model} {call}: {ours:?} {report}");
        }
        // A ring may take them in by itself.
        if !matches!(model, Model::Uring | Model::FiberUring) {
            assert!(of_us("accept4") >= connections, "{model} has accepted: {ours:?}");
        }
        let waits = waits_by(model);
        let has_epoll = waits.contains(&"epoll_wait");
        assert_eq!(of_us("epoll_ctl") > 0, has_epoll, "{model} registers: {ours:?}");
        if !waits.is_empty() {
            let ours: u64 = waits.iter().map(|call| of_us(call)).sum();
            let its: u64 = waits.iter().map(|call| in_strace(&report, call).0).sum();
            // strace sees a few more while it comes, and the idle server sweeps now and then.
            assert!(
                ours >= TIMES as u64 / 2 && ours.abs_diff(its) <= 12,
                "{model} {waits:?}: {ours}, {its}"
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
        let ([counts, alone], report) = both(&server, 0, perf, has_counters);
        let of_perf = |event: &str| -> u64 {
            let line = report.lines().find(|line| line.contains(event)).expect(&report);
            line.split(',').next().unwrap().parse().unwrap_or(0)
        };
        let ring = counts.ring.unwrap();
        let submissions = |ring: &BTreeMap<u8, RingCount>| -> BTreeMap<u8, u64> {
            let them = ring.iter().map(|(&number, operation)| (number, operation.submitted));
            them.filter(|&(_, submitted)| submitted > 0).collect()
        };
        // Another program counts where nothing but counts is asked for.
        let alone = alone.ring.unwrap();
        assert_eq!(submissions(&alone), submissions(&ring), "{model}, counts alone");
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
        let ([counts, _], report) = both(&server, 0, trace, has_counters);
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

/// What ss(8) lists of a process, of one protocol.
fn in_ss(process: u32, protocol: &str) -> Vec<Listed> {
    let options = match protocol {
        "tcp" => "-Htnap",
        "udp" => "-Hunap",
        _ => "-Hxnap",
    };
    let listed = Command::new("ss").arg(options).output().unwrap();
    let own = format!("pid={process},");
    let of_line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // Of Unix there are several kinds, which come first, and to each name belongs a number.
        let is_unix = protocol == "unix";
        let first = usize::from(is_unix);
        let queue = |place: usize| words[place].parse().unwrap_or_else(|_| panic!("{line}"));
        let (local, peer) = if is_unix {
            (format!("{} {}", words[4], words[5]), words[7].to_owned())
        } else {
            (words[3].to_owned(), words[4].to_owned())
        };
        (words[first].to_owned(), queue(first + 1), queue(first + 2), local, peer)
    };
    let text = text(&listed.stdout);
    let mut listed: Vec<Listed> =
        text.lines().filter(|line| line.contains(&own)).map(of_line).collect();
    listed.sort();
    listed
}

fn in_ours(process: u32, protocol: &str) -> Vec<Listed> {
    let as_ss_has_it = |socket: Socket| {
        let (local, peer) = if protocol == "unix" {
            let name = if socket.local.is_empty() { "*" } else { socket.local.as_str() };
            // As /proc has it.
            let number = socket.peer.as_ref().map_or("0", |peer| {
                peer.strip_prefix("socket:[").and_then(|peer| peer.strip_suffix(']')).expect(peer)
            });
            (format!("{name} {}", socket.inode), number.to_owned())
        } else {
            (socket.local, socket.peer.unwrap_or_else(|| "0.0.0.0:*".to_owned()))
        };
        (socket.state.to_owned(), socket.receive_queue, socket.send_queue, local, peer)
    };
    let sockets = Sockets::of(&[process]).unwrap().all.into_iter();
    let them = sockets.filter(|socket| socket.protocol == protocol);
    let mut listed: Vec<Listed> = them.map(as_ss_has_it).collect();
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
    let queued = || {
        let ours = in_ours(server.pid(), "tcp");
        ours.iter().find(|socket| socket.4 == peer).map_or(0, |it| it.2)
    };
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
    let ours = in_ours(server.pid(), "tcp");
    assert_eq!(ours.len(), 8, "{ours:?}");
    assert_eq!(ours, in_ss(server.pid(), "tcp"));

    // With something in every queue: what is not read, what the peer does not take, who is not accepted.
    send_and_never_read(&server, &mut streams[0]);
    let _stopped = Stopped::stop(&server);
    streams[1].write_all(&[7; 100]).unwrap();
    let _waiting = server.connect();
    // What was sent, and who has connected, is in the server's queues a moment later.
    let peer = |stream: &TcpStream| stream.local_addr().unwrap().to_string();
    until("what is in the queues", || {
        let ours = in_ours(server.pid(), "tcp");
        let queued = |is: &dyn Fn(&Listed) -> bool| ours.iter().find(|it| is(it)).map(|it| it.1);
        let sent = peer(&streams[1]);
        queued(&|it| it.0 == "LISTEN") == Some(1) && queued(&|it| it.4 == sent) == Some(100)
    });
    let ours = in_ours(server.pid(), "tcp");
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
    assert_eq!(ours, in_ss(server.pid(), "tcp"));
}

#[test]
fn sockets_of_udp_and_unix_are_those_that_ss_lists() {
    if !is_there("ss") {
        return;
    }
    let directory = scratch("sockets");
    let [client, udp, connected] = [(); 3].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    connected.connect(client.local_addr().unwrap()).unwrap();
    client.send_to(&[7; 100], udp.local_addr().unwrap()).unwrap();
    client.send_to(&[7; 200], connected.local_addr().unwrap()).unwrap();
    let path = directory.join("listener");
    let listener = UnixListener::bind(&path).unwrap();
    let _waiting = UnixStream::connect(&path).unwrap();
    let (mut near, mut far) = UnixStream::pair().unwrap();
    near.write_all(&[7; 300]).unwrap();
    far.write_all(&[7; 500]).unwrap();
    let name = format!("kapok-{}", std::process::id());
    let name = unix::SocketAddr::from_abstract_name(name).unwrap();
    let datagrams = UnixDatagram::bind_addr(&name).unwrap();
    UnixDatagram::unbound().unwrap().send_to_addr(&[7; 700], &name).unwrap();

    // A process of its own has them, and reads nothing.
    let its: [OwnedFd; 5] =
        [udp.into(), connected.into(), listener.into(), far.into(), datagrams.into()];
    let numbers: [RawFd; 5] = its.each_ref().map(AsRawFd::as_raw_fd);
    let mut command = Command::new("sh");
    command.args(["-c", "echo listening on nothing; exec sleep 600"]);
    command.stdin(Stdio::null()).stderr(Stdio::null());
    // SAFETY: between fork and exec this makes system calls with numbers, on descriptors that are open then.
    unsafe {
        command.pre_exec(move || {
            for number in numbers {
                if libc::fcntl(number, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    let server = Server::by(&mut command);
    drop(its);

    until("what was sent by UDP", || {
        in_ours(server.pid(), "udp").iter().filter(|socket| socket.1 >= 100).count() == 2
    });
    let udp = in_ours(server.pid(), "udp");
    let states: Vec<&str> = udp.iter().map(|socket| socket.0.as_str()).collect();
    assert_eq!(states, ["ESTAB", "UNCONN"], "{udp:?}");
    assert_eq!(udp[0].4, client.local_addr().unwrap().to_string(), "{udp:?}");
    assert_eq!(udp, in_ss(server.pid(), "udp"));

    let local = in_ours(server.pid(), "unix");
    let [pair, listener, datagrams] = &local[..] else { panic!("{local:?}") };
    assert_eq!((pair.0.as_str(), pair.1), ("ESTAB", 300), "{local:?}");
    assert!(pair.2 >= 500, "what the other end has not read: {local:?}");
    assert_eq!((listener.0.as_str(), listener.1), ("LISTEN", 1), "{local:?}");
    assert!(listener.2 > 1, "so many may wait: {local:?}");
    assert!(listener.3.starts_with(path.to_str().unwrap()), "{local:?}");
    assert_eq!((datagrams.0.as_str(), datagrams.1), ("UNCONN", 700), "{local:?}");
    assert!(datagrams.3.starts_with("@kapok-"), "{local:?}");
    assert_eq!(local, in_ss(server.pid(), "unix"));
    drop(near);
    fs::remove_dir_all(directory).unwrap();
}

/// A socket for which the kernel drops all that comes, unseen and unanswered, as where a network has failed;
/// until this is dropped.
struct Deaf<'a>(&'a TcpStream);

impl Deaf<'_> {
    fn turn(stream: &TcpStream) -> Deaf<'_> {
        let code = (libc::BPF_RET | libc::BPF_K) as u16;
        let mut nothing = [libc::sock_filter { code, jt: 0, jf: 0, k: 0 }];
        let filter = libc::sock_fprog { len: 1, filter: nothing.as_mut_ptr() };
        // SAFETY: the filter is as long as it says, and outlives the call, which copies it.
        let attached = unsafe {
            libc::setsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const filter).cast(),
                size_of_val(&filter) as libc::socklen_t,
            )
        };
        assert_eq!(attached, 0, "{}", io::Error::last_os_error());
        Deaf(stream)
    }
}

impl Drop for Deaf<'_> {
    fn drop(&mut self) {
        let nothing = 0_i32;
        // SAFETY: the value is a local of the size that is passed; this option takes none.
        unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_DETACH_FILTER,
                (&raw const nothing).cast(),
                size_of_val(&nothing) as libc::socklen_t,
            );
        }
    }
}

#[test]
fn segments_that_are_sent_again_are_those_that_ss_counts() {
    if !is_there("ss") {
        return;
    }
    let server = Server::kapok("epoll");
    let mut stream = server.connect();
    exchange(&mut stream, MESSAGE, 64, 1);
    let peer = stream.local_addr().unwrap().to_string();
    let ours = || {
        let sockets = Sockets::of(&[server.pid()]).unwrap().all;
        let is_it = |socket: &&Socket| socket.peer.as_ref() == Some(&peer);
        sockets.iter().find(is_it).unwrap_or_else(|| panic!("{sockets:?}")).retransmits
    };
    // Of the segments that are under way, how many were sent again, and of all that there were.
    let own = format!("pid={},", server.pid());
    let by_ss = || -> Option<(u32, u32)> {
        let listed = text(&Command::new("ss").arg("-HtinpO").output().unwrap().stdout);
        let mut lines = listed.lines().filter(|line| line.contains(&own));
        let line = lines.find(|line| line.split_whitespace().any(|word| word == peer))?;
        let counts = line.split_whitespace().find_map(|word| word.strip_prefix("retrans:"))?;
        let (under_way, all) = counts.split_once('/')?;
        Some((under_way.parse().ok()?, all.parse().ok()?))
    };
    let deaf = Deaf::turn(&stream);
    (&stream).write_all(MESSAGE).unwrap();
    let mut sent_again = 0;
    until("a reply that is sent again, and again", || {
        let before = ours();
        let Some((under_way, all)) = by_ss() else { return false };
        // One that was sent again between the looks is not there in each; the next comes later and later.
        if all <= under_way.max(1) || ours() != before {
            return false;
        }
        assert_eq!(before, all, "{under_way} under way");
        sent_again = all;
        true
    });
    let pid = server.pid().to_string();
    let observed = kapok(&["observe", &pid, "--seconds", "0.3", "--json"]);
    assert_eq!(observed.status.code(), Some(0), "{}", text(&observed.stderr));
    let report: Value = serde_json::from_slice(&observed.stdout).unwrap();
    let counted = |lines: &str, what: &str, is: &str| {
        let line = report[lines].as_array().unwrap().iter().find(|line| line[what] == is);
        line.unwrap_or_else(|| panic!("{report}"))["retransmits"].as_u64().unwrap()
    };
    assert!(counted("notable_sockets", "peer", &peer) >= u64::from(sent_again), "{report}");
    assert!(counted("sockets", "state", "ESTAB") >= u64::from(sent_again), "{report}");
    drop(deaf);
}
