//! The steady state of the load generator allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
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

#[test]
fn the_measured_interval_allocates_nothing() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    stream.write_all(&buffer[..length]).unwrap();
                }
            });
        }
    });
    for rate in [None, Some(2000.0)] {
        let config = LoadConfig {
            connections: 4,
            pipeline: 2,
            rate,
            warmup: Duration::from_millis(50),
            duration: Duration::from_millis(300),
            ..LoadConfig::new(addr, Protocol::Echo)
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
        assert_eq!(after.unwrap() - before.unwrap(), 0, "allocations at rate {rate:?}");
    }
}
