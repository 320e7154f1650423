//! Meters: what a process costs, read from outside while it runs.
//!
//! - [`Usage`]: CPU time, context switches and threads; differences over an interval count.
//! - [`Memory`]: what is resident, and the page tables that map it.
//! - [`SyscallCounter`]: system calls of all its threads. Counting slows the process down, so it
//!   belongs in a run of its own.
//!
//! CPU time comes from the process's CPU clock, which counts nanoseconds and includes threads that
//! have ended; `/proc/PID/stat` counts the same in ticks of 10 ms and is used only for the share
//! that was spent in the kernel.
//!
//! Elsewhere than on Linux the meters say that they are not supported.

#[cfg(target_os = "linux")]
mod perf;
mod process;
#[cfg(target_os = "linux")]
mod ptrace;
mod syscalls;

pub use process::{Memory, Switches, Usage};
pub use syscalls::{SyscallCounter, SyscallSource, tracepoint_access};
