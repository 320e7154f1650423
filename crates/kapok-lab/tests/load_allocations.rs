//! The steady state of the load generator allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

use kapok_lab::Protocol;
use kapok_lab::load::{self, LoadConfig, Phase};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Counts what each thread allocates.
struct Counting;

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // During a thread's end its counter is gone, and nobody asks for it.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Answers what was read, with as many replies as there are requests in it.
fn serve(reply: fn(&[u8]) -> Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    stream.write_all(&reply(&buffer[..length])).unwrap();
                }
            });
        }
    });
    addr
}

fn http(requests: &[u8]) -> Vec<u8> {
    let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nHello, world!";
    // Requests are written in one piece.
    reply.repeat(requests.windows(4).filter(|end| *end == b"\r\n\r\n").count())
}

#[test]
fn the_measured_interval_allocates_nothing() {
    let echo = serve(<[u8]>::to_vec);
    let http = serve(http);
    for (addr, protocol, rate) in [
        (echo, Protocol::Echo, None),
        (echo, Protocol::Echo, Some(2000.0)),
        (http, Protocol::Http, None),
    ] {
        let config = LoadConfig {
            connections: 4,
            pipeline: 2,
            rate,
            warmup: Duration::from_millis(50),
            duration: Duration::from_millis(300),
            ..LoadConfig::new(addr, protocol)
        };
        let (mut before, mut after) = (None, None);
        let report = load::run(&config, &mut |progress| {
            let now = ALLOCATIONS.with(Cell::get);
            match progress.phase {
                Phase::Measuring => before = before.or(Some(now)),
                Phase::Draining => after = after.or(Some(now)),
                Phase::Connecting | Phase::WarmUp | Phase::Settling => {}
            }
        })
        .unwrap();
        assert!(report.requests > 100, "{}", report.requests);
        let allocations = after.unwrap() - before.unwrap();
        assert_eq!(allocations, 0, "allocations, {protocol} at rate {rate:?}");
    }
}
