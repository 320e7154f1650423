//! tmp
use std::{io, process::ExitCode};
pub(crate) fn run(_o: &crate::cli::DoctorOptions) -> io::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
