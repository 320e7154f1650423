//! The command line of Kapok. Each subcommand is a module; this file only starts them and turns
//! what they return into an exit status: 0, 1 for a failure, 2 for a wrong use.

#[cfg(target_os = "linux")]
mod advise;
mod cli;
mod compare;
#[cfg(target_os = "linux")]
mod costs;
mod disk;
mod doctor;
mod image;
#[cfg(target_os = "linux")]
mod latency;
mod library;
mod load;
#[cfg(target_os = "linux")]
mod observe;
mod program;
mod run;
mod serve;
mod steps;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use cli::{Cli, Command};
use steps::Steps;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let steps = matches!(&cli.command, Command::Disk(options) if options.trace).then(Steps::new);
    let log = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && cli::colours_allowed())
        .with_filter(log_filter());
    tracing_subscriber::registry().with(log).with(steps.clone()).init();
    let outcome = match cli.command {
        Command::Serve(options) => serve::run(&options),
        Command::Load(options) => load::run(&options),
        Command::Compare(options) => compare::run(&options),
        #[cfg(target_os = "linux")]
        Command::Advise(options) => advise::run(&options),
        Command::Disk(options) => disk::run(&options, steps),
        Command::Report(options) => compare::report(&options),
        #[cfg(target_os = "linux")]
        Command::Observe(options) => observe::run(&options),
        #[cfg(target_os = "linux")]
        Command::Latency(options) => latency::run(&options),
        Command::Doctor(options) => doctor::run(&options),
        Command::Run(options) => run::run(&options),
    };
    match outcome {
        Ok(code) => code,
        // The reader of our output has seen enough, as in `kapok load … | head -1`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kapok: {error}");
            // Ours, about a value that was given; the system's EINVAL is a failure like others.
            let misuse =
                error.kind() == io::ErrorKind::InvalidInput && error.raw_os_error().is_none();
            ExitCode::from(if misuse { 2 } else { 1 })
        }
    }
}

/// What `KAPOK_LOG` asks to be logged: warnings if it is unset, empty or wrong.
fn log_filter() -> EnvFilter {
    let warnings = || EnvFilter::new("warn");
    let Some(filter) = std::env::var_os("KAPOK_LOG").filter(|filter| !filter.is_empty()) else {
        return warnings();
    };
    let filter = filter.to_string_lossy();
    EnvFilter::try_new(&filter).unwrap_or_else(|error| {
        eprintln!("kapok: KAPOK_LOG={filter}: {error}; only warnings are logged");
        warnings()
    })
}
