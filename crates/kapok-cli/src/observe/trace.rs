//! `kapok observe --trace`: one connection, call by call.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kapok_lab::Stop;
use kapok_lab::meters::with_descendants;
use kapok_lab::observe::trace::{Ending, Step, Trace};

use super::{begin, finish};
use crate::cli::ObserveOptions;

pub(super) fn run(options: &ObserveOptions, stop: &Stop) -> io::Result<ExitCode> {
    let (mut started, trace) = begin(options, |pid| {
        Trace::of(&with_descendants(pid)).map_err(|error| {
            io::Error::new(error.kind(), format!("process {pid} cannot be traced: {error}"))
        })
    })?;
    if !options.json {
        eprintln!("kapok: waiting for the next connection; the process is slower meanwhile");
    }
    let told = tell(options, stop, &trace);
    drop(trace);
    // Also when nobody reads any more.
    let finished = finish(options, started.take());
    let (ending, steps) = told?;
    finished?;
    match ending {
        Ending::OnlyRings => {
            eprintln!(
                "kapok: no connection was accepted by a system call, but the process enters io_uring, and \
                 this kernel does not tell what is on its rings. Without --trace its operations are \
                 counted."
            );
            Ok(ExitCode::FAILURE)
        }
        _ if steps == 0 => {
            eprintln!("kapok: no connection was accepted");
            Ok(ExitCode::FAILURE)
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Prints the steps until there are no more: why, and how many there were.
fn tell(options: &ObserveOptions, stop: &Stop, trace: &Trace) -> io::Result<(Ending, usize)> {
    let begun = Instant::now();
    let mut stdout = io::stdout().lock();
    let mut steps = 0_usize;
    let ending = loop {
        if stop.requested() || options.seconds.is_some_and(|limit| begun.elapsed() >= limit) {
            break trace.ending();
        }
        match trace.next(Duration::from_millis(50)) {
            Ok(Some(step)) => {
                if steps == 0 && !options.json {
                    writeln!(
                        stdout,
                        "{:>12}  {:>8}  {:<9} {:<44} {:>10}  what it is for",
                        "at µs", "thread", "step", "call", "took µs"
                    )?;
                }
                steps += 1;
                print(&mut stdout, &step, options.json)?;
            }
            Ok(None) => {}
            Err(ending) => break ending,
        }
    };
    // What came until it was over.
    while let Ok(Some(step)) = trace.next(Duration::ZERO) {
        steps += 1;
        print(&mut stdout, &step, options.json)?;
    }
    stdout.flush()?;
    Ok((ending, steps))
}

fn print(out: &mut impl Write, step: &Step, json: bool) -> io::Result<()> {
    if json {
        return writeln!(out, "{}", serde_json::to_string(step)?);
    }
    writeln!(
        out,
        "{:>12.0}  {:>8}  {:<9} {:<44} {:>10.0}  {}",
        step.at * 1e6,
        step.thread,
        step.kind,
        step.call,
        step.took * 1e6,
        step.note
    )
}
