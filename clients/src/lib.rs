//! Servers for the tests of clients, and for the example: Debian's, on ports of their own.
//!
//! What is proven of which client is in `docs/clients.md`, which the test `matrix` writes.

#![cfg(target_os = "linux")]

pub mod servers;

use std::io::Write;

/// Says that something is skipped, and why.
///
/// # Panics
///
/// Where everything has to be there, with `CI` in the environment.
#[track_caller]
pub fn skip(why: &str) {
    let everything = std::env::var("CI").is_ok_and(|ci| !["", "0", "false"].contains(&ci.as_str()));
    assert!(!everything, "{why}, and with CI in the environment nothing is skipped");
    // Past a test harness, which keeps what the macros print to itself.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}
