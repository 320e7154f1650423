//! A soak test: the echo, HTTP and chat servers on fibers, for as long as wanted, among clients that
//! do everything wrong, watched for what is lost, what is late and what grows.
//!
//! ```text
//! cargo run --release -p kapok-lab --example soak -- --seconds 7200
//! cargo run --release -p kapok-lab --example soak -- --seconds 120 --engine epoll --csv soak.csv
//! ```
//!
//! Each server is a process of its own with few descriptors to have ([`server`]). Beside it run:
//!
//! - clients that behave ([`guests`]): every byte that they get is compared, and none may wait longer
//!   than `--patience` for the next. They run all the time.
//! - a process of clients that do not ([`nuisance`]): resets in mid-request and in mid-reply, clients
//!   that stop reading or send a byte now and then, half-closed streams, bursts, nonsense, and more
//!   connections than the server has descriptors for. It is killed every `--period`.
//!
//! After each kill the server has a lull, in which only the guests are there. Its descriptors must
//! come down to what they were before, and the memory of lulls is what [`verdict`] judges: as there
//! are the same few clients in each of them, what is more in a later one has leaked.
//!
//! Ends with 0 if nothing was found, with 1 and what was found otherwise, with 2 for arguments that
//! it does not know. SIGINT and SIGTERM end it early, with the verdict on what was seen until then.
//! The numbers are random from `--seed`, which is printed; how they interleave is the machine's.

// The chat room is the example that everybody reads, not a copy of it.
#[path = "../../../kapok/examples/chat.rs"]
mod chat;
mod guests;
mod nuisance;
mod options;
mod random;
mod server;
mod supervise;
mod verdict;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use kapok_lab::Stop;
use options::Options;
use supervise::Supervisor;

fn main() -> ExitCode {
    let outcome = match std::env::var(server::ROLE).as_deref() {
        Ok("chat") => chat::main().map(|()| true),
        Ok("echo" | "http") => server::serve().map(|()| true),
        Ok("nuisance") => nuisance::run().map(|()| true),
        _ => match Options::from_arguments(std::env::args().skip(1)) {
            Ok(options) => soak(&options),
            Err(complaint) => {
                eprintln!("soak: {complaint}\n\n{}", options::USAGE);
                return ExitCode::from(2);
            }
        },
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all of it, and says whether nothing was found.
fn soak(options: &Options) -> io::Result<bool> {
    let stop = Stop::new()?;
    server::stop_on_signals(&stop)?;
    let csv = match &options.csv {
        Some(path) => {
            let file = File::create(path)
                .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
            let mut csv = BufWriter::new(file);
            writeln!(csv, "{}", supervise::COLUMNS)?;
            Some(Mutex::new(csv))
        }
        None => None,
    };
    println!("seed {}, {} s", options.seed, options.duration.as_secs());
    let began = Instant::now();
    let supervisors: Vec<Supervisor> = options
        .subjects()
        .into_iter()
        .enumerate()
        .map(|(number, subject)| Supervisor::new(number as u64, subject, options, &stop, began))
        .collect();
    thread::scope(|scope| {
        let running: Vec<_> = supervisors
            .iter()
            .map(|supervisor| scope.spawn(|| supervisor.run(csv.as_ref())))
            .collect();
        let mut next = Duration::from_secs(60);
        while !running.iter().all(thread::ScopedJoinHandle::is_finished) {
            thread::sleep(Duration::from_millis(100));
            if began.elapsed() >= next {
                next += Duration::from_secs(60);
                for supervisor in &supervisors {
                    println!("{:>6} s  {}", began.elapsed().as_secs(), supervisor.progress());
                }
            }
        }
    });
    println!("after {} s:", began.elapsed().as_secs());
    let mut clean = true;
    for supervisor in supervisors {
        let (lines, good) = supervisor.report();
        clean &= good;
        print!("{lines}");
    }
    println!("{}", if clean { "nothing was found" } else { "FOUND: see above" });
    Ok(clean)
}
