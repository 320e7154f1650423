//! What Kapok says of a running server, held against what others say of it: strace, perf, ss; and the
//! commands `observe` and `latency` as a user runs them, on servers that are not ours too.
//!
//! Tests of tools or servers that are missing say so and pass; where `CI` is set they fail.

#![cfg(target_os = "linux")]

mod against;
mod command;
mod costs;
mod latency;
mod overhead;
mod privileges;
mod servers;
mod terminal;
mod trace;
