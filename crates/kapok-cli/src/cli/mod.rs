//! What can be asked for on the command line, and with which words.

mod comparing;
mod machine;
mod programs;
mod serving;
mod values;

use clap::{Parser, Subcommand};

#[cfg(target_os = "linux")]
pub(crate) use comparing::AdviseOptions;
pub(crate) use comparing::{CompareOptions, ReportOptions};
#[cfg(target_os = "linux")]
pub(crate) use machine::LatencyOptions;
pub(crate) use machine::{DiskOptions, DoctorOptions};
#[cfg(target_os = "linux")]
pub(crate) use programs::ObserveOptions;
pub(crate) use programs::RunOptions;
pub(crate) use serving::{LoadOptions, ServeOptions};
pub(crate) use values::{Engine, address, colours_allowed};
#[cfg(target_os = "linux")]
pub(crate) use values::{bytes, microseconds, milliseconds};

/// Fibers, I/O models and honest measurements of both.
#[derive(Debug, Parser)]
#[command(name = "kapok", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Serve(ServeOptions),
    Load(LoadOptions),
    Compare(Box<CompareOptions>),
    Report(ReportOptions),
    #[cfg(target_os = "linux")]
    Advise(Box<AdviseOptions>),
    Disk(DiskOptions),
    #[cfg(target_os = "linux")]
    Observe(ObserveOptions),
    #[cfg(target_os = "linux")]
    Latency(LatencyOptions),
    Doctor(DoctorOptions),
    Run(RunOptions),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }
}
