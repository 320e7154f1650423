//! Clients that take their time, on purpose or not: they hold up nobody and cost nothing.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use kapok_lab::{Model, Protocol, ServeConfig};

use crate::child::cpu_time;
use crate::server::{PATIENCE, Server, config};

mod models {
    in_child_over_models! {
        a_client_of_one_byte_a_second_neither_stops_nor_spins:
            threads Threads, thread_pool ThreadPool, busy_poll BusyPoll, select Select, poll Poll,
            epoll Epoll, mio Mio, uring Uring, tokio Tokio, fiber_uring FiberUring, fiber_epoll FiberEpoll,
            fiber_poll FiberPoll, fiber_select FiberSelect;
        a_head_without_end_that_trickles_in_is_refused:
            threads Threads, thread_pool ThreadPool, busy_poll BusyPoll, select Select, poll Poll,
            epoll Epoll, mio Mio, uring Uring, tokio Tokio, fiber_uring FiberUring, fiber_epoll FiberEpoll,
            fiber_poll FiberPoll, fiber_select FiberSelect;
    }
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n";

/// The pause between two bytes: a second in the long run, and a tenth of that every day.
fn pause() -> Duration {
    match std::env::var("KAPOK_SCALE").as_deref() {
        Ok("full") => Duration::from_secs(1),
        _ => Duration::from_millis(100),
    }
}

/// Asks once and takes the reply, whatever its length.
fn ask(stream: &mut TcpStream) {
    stream.write_all(GET).expect("sent");
    expect_reply(stream);
}

fn expect_reply(stream: &mut TcpStream) {
    let mut reply = Vec::new();
    while !reply.ends_with(b"Hello, World!") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a reply");
        reply.push(byte[0]);
        assert!(reply.len() < 1000, "{}", String::from_utf8_lossy(&reply));
    }
    assert!(reply.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&reply));
}

fn a_client_of_one_byte_a_second_neither_stops_nor_spins(model: Model) {
    const SLOW: usize = 10;
    let threads = if model == Model::ThreadPool { SLOW + 2 } else { 0 };
    let configured = config(model, Protocol::Http);
    let threads = threads.max(configured.threads);
    let server = Server::start(ServeConfig { threads, ..configured });
    let mut slow: Vec<_> = (0..SLOW).map(|_| server.connect()).collect();
    let mut quick = server.connect();
    ask(&mut quick);
    let (began, spent) = (Instant::now(), cpu_time());
    for byte in &GET[..10] {
        for stream in &mut slow {
            stream.write_all(std::slice::from_ref(byte)).expect("sent");
        }
        // Others are answered meanwhile, at once and not at the next byte.
        for _ in 0..5 {
            ask(&mut quick);
        }
        thread::sleep(pause());
    }
    let (spent, window) = (cpu_time() - spent, began.elapsed());
    // Busy polling burns all it gets: that is the model.
    if model != Model::BusyPoll {
        assert!(spent < window / 3, "{spent:?} of CPU in {window:?} for 100 bytes");
    }
    for stream in &mut slow {
        stream.write_all(&GET[10..]).expect("sent");
        expect_reply(stream);
    }
    drop((slow, quick));
    let served = server.finish();
    assert_eq!((served.accepted, served.requests, served.unserved), (11, 61, 0));
}

/// Memory for it is bounded, and the end comes from the server.
fn a_head_without_end_that_trickles_in_is_refused(model: Model) {
    let server = Server::start(config(model, Protocol::Http));
    let mut endless = server.connect();
    let mut quick = server.connect();
    endless.write_all(b"GET / HTTP/1.1\r\n").expect("sent");
    let mut sent = 0;
    let refused = loop {
        // The server may have refused and closed: then a write fails sooner or later.
        let line = format!("X-{sent}: {}\r\n", "x".repeat(200));
        if endless.write_all(line.as_bytes()).is_err() {
            break true;
        }
        sent += line.len();
        assert!(sent < 1 << 20, "the server takes a head of {sent} bytes");
        ask(&mut quick);
        endless.set_nonblocking(true).expect("set");
        match endless.read(&mut [0; 4096]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // The refusal, or a connection that is over.
            _ => break true,
        }
        endless.set_nonblocking(false).expect("set");
    };
    assert!(refused && sent >= 4096, "refused after {sent} bytes");
    endless.set_nonblocking(false).expect("set");
    endless.set_read_timeout(Some(PATIENCE)).expect("set");
    // To its end, in order or by a reset.
    let _ = endless.read_to_end(&mut Vec::new());
    ask(&mut quick);
}
