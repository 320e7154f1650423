//! What looking into a process costs: the figures in `kapok::observe`, `kapok::metrics` and
//! docs/design/observing.md are this program's.
//!
//! ```text
//! cargo run --release -p kapok --example observe_costs
//! ```
//!
//! * `metrics`: the time of a snapshot.
//! * `dump`: CPU time of the loop that is looked at, for each of its fibers, and how long the asker
//!   waits. The first dump of a process reads its debug information.
//! * `watchdog, a look`: CPU time of the watchdog's thread, for each time that it wakes.
//! * `watchdog, on`: the time of a yield and of an echo of 64 bytes, in rounds with and without a
//!   watchdog that take turns, so that each ratio is of two neighbours.
//!
//! Times are medians, with the first and third quartile.

use std::fs;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use kapok::net::UnixStream;
use kapok::{Runtime, RuntimeBuilder};

fn main() -> io::Result<()> {
    for threads in [1, 2, 8] {
        let times = Runtime::builder().threads(threads).build()?.run(time_metrics);
        println!("metrics            {threads} loops: {}", quartiles(times, "ns"));
    }
    for (fibers, depth) in [(1_000, 0), (10_000, 0), (10_000, 30)] {
        Runtime::new()?.run(move || time_dumps(fibers, depth));
    }
    watchdog_looks()?;
    watchdog_on("a yield", yields)?;
    watchdog_on("an echo", echoes)
}

/// Nanoseconds of a snapshot.
fn time_metrics() -> Vec<f64> {
    let batch = || {
        let begun = Instant::now();
        for _ in 0..100 {
            black_box(kapok::metrics());
        }
        begun.elapsed().as_nanos() as f64 / 100.0
    };
    (0..200).map(|_| batch()).collect()
}

fn time_dumps(fibers: usize, depth: u32) {
    let sleepers: Vec<_> =
        (0..fibers).map(|_| kapok::spawn_local(move || sleep_below(depth))).collect();
    while kapok::metrics().total.scheduler.unstarted > 0 {
        kapok::yield_now();
    }
    let (mut loop_times, mut waits) = (Vec::new(), Vec::new());
    for _ in 0..11 {
        let (begun, cpu) = (Instant::now(), thread_cpu());
        let dump = kapok::dump();
        // This fiber waited meanwhile, and nothing else was to be done.
        loop_times.push((thread_cpu() - cpu).as_nanos() as f64 / fibers as f64);
        waits.push(begun.elapsed().as_secs_f64() * 1e3);
        assert_eq!(dump.loops[0].fibers.len(), fibers + 1, "every fiber, and this one");
    }
    println!(
        "dump               {fibers} fibers, {depth} calls deep: {} of the loop for each, the \
         first answer after {:.0} ms, then {}",
        quartiles(loop_times, "ns"),
        waits.remove(0),
        quartiles(waits, "ms"),
    );
    for sleeper in sleepers {
        sleeper.cancel();
    }
}

#[inline(never)]
fn sleep_below(depth: u32) -> u32 {
    if depth == 0 {
        let _ = kapok::sleep(Duration::from_secs(3600));
        return 0;
    }
    // Not a tail call: each has a frame.
    black_box(sleep_below(depth - 1)) + 1
}

/// A watchdog that looks a thousand times a second, at a loop that waits and at one that runs.
fn watchdog_looks() -> io::Result<()> {
    let limit = Duration::from_millis(4);
    for (what, busy) in [("a loop that waits", false), ("a loop that runs", true)] {
        let times = Runtime::builder().watchdog(limit).build()?.run(move || {
            let thread = task_of("kapok-watchdog")?;
            let round = || {
                let (cpu, looks) = (cpu_of(&thread)?, sleeps_of(&thread)?);
                let end = Instant::now() + Duration::from_millis(100);
                while Instant::now() < end {
                    if busy {
                        kapok::yield_now();
                    } else {
                        let _ = kapok::time::sleep_until(end);
                    }
                }
                let looks = sleeps_of(&thread)? - looks;
                Ok((cpu_of(&thread)? - cpu) / looks.max(1.0))
            };
            (0..20).map(|_| round()).collect::<io::Result<Vec<f64>>>()
        })?;
        println!("watchdog, a look   at {what}: {}", quartiles(times, "ns"));
    }
    Ok(())
}

/// What a watchdog of 100 ms makes of `work`, which answers nanoseconds.
fn watchdog_on(what: &str, work: fn() -> f64) -> io::Result<()> {
    let run = |builder: RuntimeBuilder| Ok::<f64, io::Error>(builder.build()?.run(work));
    let off = || run(Runtime::builder().watchdog(Duration::ZERO));
    let on = || run(Runtime::builder().watchdog(Duration::from_millis(100)));
    off()?;
    on()?;
    let (mut without, mut ratios) = (Vec::new(), Vec::new());
    for round in 0..60 {
        // Who is first takes turns as well.
        let (one, other) = if round % 2 == 0 {
            let one = off()?;
            (one, on()?)
        } else {
            let other = on()?;
            (off()?, other)
        };
        without.push(one);
        ratios.push(other / one);
    }
    println!(
        "watchdog, on       {what}: {} without, times {} with",
        quartiles(without, "ns"),
        quartiles(ratios, ""),
    );
    Ok(())
}

fn yields() -> f64 {
    const COUNT: u32 = 100_000;
    let other = kapok::spawn_local(|| (0..COUNT).for_each(|_| kapok::yield_now()));
    kapok::yield_now();
    let begun = Instant::now();
    (0..COUNT).for_each(|_| kapok::yield_now());
    let each = begun.elapsed().as_nanos() as f64 / f64::from(2 * COUNT);
    other.join().expect("it only yields");
    each
}

fn echoes() -> f64 {
    const COUNT: u32 = 5_000;
    let (mut near, mut far) = UnixStream::pair().expect("a pair of sockets");
    let server = kapok::spawn_local(move || {
        let mut buffer = [0; 64];
        while far.read_exact(&mut buffer).and_then(|()| far.write_all(&buffer)).is_ok() {}
    });
    let mut buffer = [0; 64];
    let mut echo = || near.write_all(&buffer).and_then(|()| near.read_exact(&mut buffer));
    echo().expect("the other end echoes");
    let begun = Instant::now();
    (0..COUNT).try_for_each(|_| echo()).expect("the other end echoes");
    let each = begun.elapsed().as_nanos() as f64 / f64::from(COUNT);
    drop(near);
    server.join().expect("it ends with the stream");
    each
}

/// CPU time of the calling thread.
fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to a local.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Where the kernel shows the thread of this name, which names itself when it first runs.
fn task_of(name: &str) -> io::Result<String> {
    let give_up = Instant::now() + Duration::from_secs(5);
    while Instant::now() < give_up {
        for task in fs::read_dir("/proc/self/task")? {
            let task = task?.path().display().to_string();
            if fs::read_to_string(format!("{task}/comm"))?.trim() == name {
                return Ok(task);
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(io::Error::other(format!("no thread {name}")))
}

/// CPU time of a thread, in nanoseconds.
fn cpu_of(task: &str) -> io::Result<f64> {
    let stat = fs::read_to_string(format!("{task}/schedstat"))?;
    let first = stat.split_whitespace().next().and_then(|time| time.parse().ok());
    first.ok_or_else(|| io::Error::other("schedstat has no time"))
}

/// How often a thread has gone to sleep.
fn sleeps_of(task: &str) -> io::Result<f64> {
    let status = fs::read_to_string(format!("{task}/status"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::other("status has no switches"))
}

/// The median and the quartiles around it.
fn quartiles(mut of: Vec<f64>, unit: &str) -> String {
    of.sort_by(f64::total_cmp);
    let at = |quarter: usize| of[(of.len() - 1) * quarter / 4];
    let digits = if at(2) < 10.0 { 3 } else { 0 };
    let [first, median, third] = [1, 2, 3].map(|quarter| format!("{:.digits$}", at(quarter)));
    format!("{median} {unit} [{first} {third}]").replace("  ", " ")
}
