//! What a machine lacks.

use std::io::Write;

/// Says that something is skipped, and why. Where everything has to be there, with `CI` in the
/// environment, that is a failure.
#[track_caller]
pub(crate) fn skip(why: &str) {
    let everything = std::env::var("CI").is_ok_and(|ci| !["", "0", "false"].contains(&ci.as_str()));
    assert!(!everything, "{why}, and with CI in the environment nothing is skipped");
    // Past the harness, which keeps what the macros print to itself.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}
