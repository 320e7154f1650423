//! The limits of each model: met with a count and a reason, and everybody else is served.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use kapok_lab::{Model, Protocol, ServeConfig};
use socket2::{Domain, Socket, Type};

use crate::child::{cpu_time, limit};
use crate::server::{PATIENCE, Server, config, exchange, expect_end};

mod models {
    in_child_over_models! {
        out_of_descriptors_it_waits_and_serves_on:
            threads Threads, thread_pool ThreadPool, busy_poll BusyPoll, select Select, poll Poll,
            epoll Epoll, mio Mio, uring Uring, tokio Tokio, fiber_uring FiberUring, fiber_epoll FiberEpoll,
            fiber_poll FiberPoll, fiber_select FiberSelect;
        refuses_descriptors_that_do_not_fit_and_serves_on:
            select Select, fiber_select FiberSelect;
        refuses_connections_without_a_thread_and_serves_on: threads Threads;
    }
}

/// Whether the server answers on this connection, rather than having closed it.
fn answered(stream: &mut TcpStream) -> bool {
    // The server may have closed it already: then one of the two fails, or the end is read.
    stream.write_all(b"?").is_ok() && matches!(stream.read(&mut [0]), Ok(1))
}

/// Waits until `condition` holds.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn out_of_descriptors_it_waits_and_serves_on(model: Model) {
    // The test's sockets exist before the limit is set: what comes later is the server's. (A ring
    // keeps the limit that it saw when its accept was armed, so the limit comes first.)
    let mut sockets: Vec<_> = (0..50)
        .map(|_| Some(Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket")))
        .collect();
    limit(libc::RLIMIT_NOFILE, limit_that_leaves(25));
    let server = Server::start(config(model, Protocol::Echo));
    let connect = |socket: &mut Option<Socket>| {
        let socket = socket.take().expect("connected once");
        socket.connect(&server.addr.into()).expect("connected, to the backlog at least");
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream
    };
    let mut streams: Vec<_> = sockets.iter_mut().map(connect).collect();

    // Some fit, in the order of their connecting; the others wait, and nobody spins.
    streams[..5].iter_mut().for_each(|stream| exchange(stream, b"at the limit"));
    let window = Duration::from_millis(400);
    let least = (0..5)
        .map(|_| {
            let before = cpu_time();
            thread::sleep(window);
            cpu_time() - before
        })
        .min()
        .expect("five");
    // Busy polling burns all it gets: that is the model.
    if model != Model::BusyPoll {
        assert!(least <= window / 8, "{least:?} of CPU in {window:?} at the limit");
    }
    let last = streams.last_mut().expect("fifty");
    last.write_all(b"waiting").expect("sent");
    last.set_nonblocking(true).expect("set");
    assert!(last.read(&mut [0]).is_err(), "answered beyond the limit");
    last.set_nonblocking(false).expect("set");

    // Connections that end make room for those that wait.
    streams.drain(..10);
    streams[..5].iter_mut().for_each(|stream| exchange(stream, b"room again"));
    // And when the limit is raised all of them are served.
    limit(libc::RLIMIT_NOFILE, 1024);
    let last = streams.last_mut().expect("forty");
    last.read_exact(&mut [0; 7]).expect("answered at last");
    streams.iter_mut().for_each(|stream| exchange(stream, b"after"));
    let served = server.finish();
    assert_eq!((served.accepted, served.unserved, served.refused.count), (50, 0, 0));
    assert!(served.accept_pauses > 0, "{served:?}");
    let reason = served.refused.reason.expect("a reason");
    assert!(reason.contains("ulimit -n"), "{reason}");
}

/// The limit of open files below which so many numbers are free.
fn limit_that_leaves(free: usize) -> u64 {
    let open: Vec<u64> = fs::read_dir("/proc/self/fd")
        .expect("procfs")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    (0..).filter(|fd| !open.contains(fd)).nth(free).expect("there are more numbers")
}

fn refuses_descriptors_that_do_not_fit_and_serves_on(model: Model) {
    limit(libc::RLIMIT_NOFILE, 4096);
    let server = Server::start(config(model, Protocol::Echo));
    // Two descriptors for each connection, one after the other: about half of these lie beyond the
    // limit.
    let (mut streams, mut refused) = (Vec::new(), Vec::new());
    for _ in 0..1000 {
        let mut stream = server.connect();
        if answered(&mut stream) { streams.push(stream) } else { refused.push(stream) }
    }
    let refused = refused.len() as u64;
    assert!(streams.len() > 400 && refused > 400, "{} served, {refused} refused", streams.len());
    streams.iter_mut().for_each(|stream| exchange(stream, b"still here"));
    drop(streams);
    eventually("served again", || answered(&mut server.connect()));
    let served = server.finish();
    assert!(served.refused.count >= refused, "{served:?}");
    let reason = served.refused.reason.expect("a reason");
    assert!(reason.contains("FD_SETSIZE is 1024"), "{reason}");
}

fn refuses_connections_without_a_thread_and_serves_on(model: Model) {
    // The limit of threads does not bind root: become somebody else, whom nobody else is.
    // SAFETY: calls without pointers.
    unsafe {
        if libc::geteuid() == 0 {
            let uid = 100_000 + libc::getpid() as libc::uid_t;
            assert_eq!(libc::setuid(uid), 0);
        }
    }
    let server = Server::start(config(model, Protocol::Echo));
    let mut streams: Vec<_> = (0..10).map(|_| server.connect()).collect();
    streams.iter_mut().for_each(|stream| exchange(stream, b"before"));
    limit(libc::RLIMIT_NPROC, threads_of_this_user() + 5);
    streams.extend((0..40).map(|_| server.connect()));
    let mut refused = 0;
    streams.retain_mut(|stream| {
        let kept = answered(stream);
        refused += u64::from(!kept);
        kept
    });
    assert!(streams.len() >= 10 && refused >= 20, "{} served, {refused} refused", streams.len());
    streams.iter_mut().for_each(|stream| exchange(stream, b"still here"));
    drop(streams);
    eventually("served again", || answered(&mut server.connect()));
    let served = server.finish();
    assert!(served.refused.count >= refused, "{served:?}");
    let reason = served.refused.reason.expect("a reason");
    assert!(reason.contains("no thread for it"), "{reason}");
}

/// Threads of all processes of this process's user: what RLIMIT_NPROC counts.
fn threads_of_this_user() -> u64 {
    let field = |status: &str, name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
    };
    // SAFETY: a call without pointers.
    let uid = u64::from(unsafe { libc::getuid() });
    fs::read_dir("/proc")
        .expect("procfs")
        .filter_map(|entry| {
            let entry = entry.ok()?;
            // Numbers only: /proc/self is one of them again.
            entry.file_name().to_str()?.parse::<u32>().ok()?;
            fs::read_to_string(entry.path().join("status")).ok()
        })
        .filter(|status| field(status, "Uid:") == Some(uid))
        .filter_map(|status| field(&status, "Threads:"))
        .sum()
}

/// A connection that no worker became free for waits; at the stop it is closed and reported.
#[test]
fn thread_pool_reports_whom_it_never_served() {
    let server =
        Server::start(ServeConfig { threads: 64, ..config(Model::ThreadPool, Protocol::Echo) });
    let mut served: Vec<_> = (0..64).map(|_| server.connect()).collect();
    served.iter_mut().for_each(|stream| exchange(stream, b"served"));
    let mut waiting: Vec<_> = (0..10).map(|_| server.connect()).collect();
    waiting.iter_mut().for_each(|stream| stream.write_all(b"waiting").expect("sent"));
    // Four workers become free, for the four that have waited longest.
    served.truncate(60);
    for stream in &mut waiting[..4] {
        stream.read_exact(&mut [0; 7]).expect("served in its turn");
    }
    served.iter_mut().for_each(|stream| exchange(stream, b"undisturbed"));
    let report = server.finish();
    assert_eq!((report.accepted, report.unserved), (74, 6));
    served.iter_mut().for_each(expect_end);
}
