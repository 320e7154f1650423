//! The command line of Kapok. Each subcommand is a module; this file only starts them and turns
//! what they return into an exit status: 0, 1 for a failure, 2 for a wrong use.

mod cli;
mod compare;
mod doctor;
mod load;
mod serve;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_env("KAPOK_LOG").unwrap_or_else(|_| EnvFilter::new("warn")),
        )
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .init();
    let outcome = match cli.command {
        Command::Serve(options) => serve::run(&options),
        Command::Load(options) => load::run(&options),
        Command::Compare(options) => compare::run(&options),
        Command::Doctor(options) => doctor::run(&options),
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
