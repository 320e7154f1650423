//! A million fibers in one process, all asleep at once, and what each of them costs.
//!
//! ```text
//! cargo run --release -p kapok --example million_fibers [COUNT] [overflow]
//! ```
//!
//! Every fiber sleeps until the same moment. When the last one sleeps, what the process has grown by
//! is counted: resident memory and page tables, which a stack takes as well. Then they all wake.
//!
//! ```text
//!   stack             4,096   the one page of 192 KiB that the fiber has touched
//!   page tables         512   eight slots of 256 KiB share a table of 4 KiB
//!   everything else           the control block, what the fiber runs, its timer, its slot
//! ```
//!
//! With `overflow`, one of them in the middle, `the deep one`, calls itself without end when it
//! wakes: the process ends by SIGABRT with a report that names it, as its guard is in place like that
//! of every other. On Linux 6.13 and newer guards take no mapping of their own, so the default of
//! `vm.max_map_count` is enough; before that, a million fibers end near the 31,000th with an error
//! that says so.

use std::cell::Cell;
use std::hint::black_box;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What is spawned between two looks at the loop.
const BATCH: usize = 1000;

fn main() -> io::Result<()> {
    let mut count = 1_000_000;
    let mut overflow = false;
    for argument in std::env::args().skip(1) {
        match argument.parse() {
            Ok(number) if number > 0 => count = number,
            _ if argument == "overflow" => overflow = true,
            _ => {
                eprintln!("usage: million_fibers [COUNT] [overflow]");
                std::process::exit(2);
            }
        }
    }
    kapok::Runtime::new()?.run(move || sleep_together(count, overflow))
}

/// Where the fibers are.
#[derive(Default)]
struct Progress {
    asleep: Cell<usize>,
    awake: Cell<usize>,
}

fn sleep_together(count: usize, overflow: bool) -> io::Result<()> {
    let progress = Rc::new(Progress::default());
    let before = memory_bytes()?;
    let began = Instant::now();
    // Late enough for the last to fall asleep before the first wakes, on a slow machine too.
    let wake_at = began + Duration::from_secs(2) + count as u32 * Duration::from_micros(50);
    for number in 0..count {
        let progress = Rc::clone(&progress);
        let fiber = move || {
            progress.asleep.set(progress.asleep.get() + 1);
            let _ = kapok::time::sleep_until(wake_at);
            progress.awake.set(progress.awake.get() + 1);
        };
        if overflow && number == count / 2 {
            let deep = kapok::Builder::new().name("the deep one").spawn_local(move || {
                fiber();
                descend(0)
            });
            deep.detach();
        } else {
            kapok::spawn_local(fiber).detach();
        }
        // Lets them start: what has not started has no stack yet.
        if number % BATCH == 0 {
            kapok::yield_now();
        }
    }
    while progress.asleep.get() < count {
        // Each that sleeps or is yet to start holds one.
        if Rc::strong_count(&progress) - 1 < count {
            return Err(no_stack(progress.asleep.get(), count));
        }
        kapok::yield_now();
    }
    let spawned = began.elapsed();
    let grown = memory_bytes()?.saturating_sub(before);
    if progress.awake.get() > 0 {
        return Err(io::Error::other("the first woke before the last was asleep"));
    }
    println!("{count} fibers asleep at once");
    println!("spawned in {spawned:.2?}, {:.0?} each", spawned / count as u32);
    println!("{:.0} bytes each, of memory and page tables", grown as f64 / count as f64);

    let _ = kapok::time::sleep_until(wake_at);
    while progress.awake.get() < count {
        kapok::yield_now();
    }
    let woken = Instant::now().saturating_duration_since(wake_at);
    println!("woken in {woken:.2?}, {:.0?} each", woken / count as u32);
    Ok(())
}

/// The loop has dropped what it found no stack for; its log says which limit was met.
fn no_stack(asleep: usize, count: usize) -> io::Error {
    io::Error::new(
        io::ErrorKind::OutOfMemory,
        format!(
            "no stack for all of {count} fibers after {asleep}. Look at the limit on address space \
             (ulimit -v, vm.overcommit_memory=2) and, on kernels before 6.13, where each guard \
             takes two mappings, at vm.max_map_count"
        ),
    )
}

/// Goes deeper until there is no more stack, which is long before the end that it has.
fn descend(depth: u64) -> u64 {
    let frame = black_box([depth; 32]);
    if depth == u64::MAX { 0 } else { descend(depth + 1) + frame[31] }
}

/// What the kernel holds for this process: resident memory and its page tables.
fn memory_bytes() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kib = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
            .ok_or_else(|| io::Error::other(format!("/proc/self/status has no {name}")))
    };
    Ok((kib("VmRSS:")? + kib("VmPTE:")?) * 1024)
}
