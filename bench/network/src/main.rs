//! Kapok's servers beside those of other runtimes and two loops by hand, under the same loads.
//!
//! ```text
//! cargo build --release --manifest-path bench/Cargo.toml
//! bench/target/release/network > figures.md
//! ```
//!
//! Prints Markdown: the server's CPU per request relative to tokio's in the same round, with the
//! geometric means over the cases of a protocol, and below it a table for each case with throughput
//! and latencies. How rounds are paired and what is verified is the lab's
//! [`compare`](kapok_lab::compare).

mod cases;
mod markdown;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use kapok_lab::compare;

use cases::{BASELINE, CASES, Case, Effort, SERVERS, VARIANTS};

/// Compares Kapok's servers with others, and prints the tables as Markdown.
#[derive(Parser)]
#[command(after_help = "Examples:
  network                                        everything, 5 rounds of 2 s: an hour
  network --rounds 15 --seconds 0.5              more and shorter rounds: narrower intervals
  network --only 'echo 64' --servers tokio,fiber-uring,uring --rounds 21 --seconds 0.5")]
struct Arguments {
    /// Only the cases with this in their name; may be given several times.
    #[arg(long)]
    only: Vec<String>,
    /// The servers, separated by commas; without it all.
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    servers: Vec<String>,
    /// Rounds: each server is measured once in each.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of one measured interval.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Workers of the servers that can have several.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Size of the buffer that each connection reads into.
    #[arg(long, default_value_t = 16 * 1024, value_name = "BYTES")]
    buffer: usize,
    /// The program that serves; without it the one beside this.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Write everything that was measured to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Lists the cases and the servers.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("network: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<()> {
    let chosen: Vec<&Case> = CASES
        .iter()
        .filter(|case| {
            arguments.only.is_empty()
                || arguments.only.iter().any(|part| case.name.contains(part.as_str()))
        })
        .collect();
    if arguments.list || chosen.is_empty() {
        let names: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        println!("cases: {}\nservers: {}", names.join(", "), SERVERS.join(", "));
        println!("by name: {}", VARIANTS.join(", "));
        return if chosen.is_empty() { Err(io::Error::other("no such case")) } else { Ok(()) };
    }
    let mut servers = arguments.servers.clone();
    if servers.is_empty() {
        servers = SERVERS.iter().map(|&name| name.to_owned()).collect();
    }
    let known = [SERVERS, VARIANTS].concat();
    if let Some(unknown) = servers.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(io::Error::other(format!("no server {unknown}: {}", known.join(", "))));
    }
    if !servers.iter().any(|name| name == BASELINE) {
        servers.push(BASELINE.to_owned());
    }
    let program = match &arguments.program {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("servers"),
    };
    let effort = Effort {
        rounds: arguments.rounds,
        duration: Duration::try_from_secs_f64(arguments.seconds)
            .map_err(|error| io::Error::other(format!("--seconds: {error}")))?,
        threads: arguments.threads,
        buffer_bytes: arguments.buffer,
    };
    let style = ProgressStyle::with_template("{bar:24} {percent:>3} % · {elapsed} · {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let mut measured = Vec::new();
    for (place, case) in chosen.iter().enumerate() {
        let bar = ProgressBar::new(0);
        bar.set_style(style.clone());
        let mut comparison =
            compare::run(&case.config(&program, &servers, &effort), &mut |step| {
                bar.set_length(step.total as u64);
                bar.set_position(step.done as u64);
                bar.set_message(format!("{} of {}: {}", place + 1, chosen.len(), step.what));
            })?;
        bar.finish_and_clear();
        let table = comparison.tables.remove(0);
        // A case that took minutes is not lost if a later one fails.
        println!("{}", markdown::case(case, &table));
        measured.push((**case, table, comparison));
    }
    if let Some((_, _, comparison)) = measured.first() {
        println!("{}", markdown::conditions(comparison));
    }
    println!("{}", markdown::summary(&servers, &measured));
    if let Some(path) = &arguments.json {
        let tables: Vec<_> = measured.iter().map(|(case, table, _)| (case.name, table)).collect();
        serde_json::to_writer(std::fs::File::create(path)?, &tables)?;
    }
    Ok(())
}
