//! Meters: what a process costs, read from outside while it runs.
//!
//! - [`Usage`]: CPU time, context switches and threads; differences over an interval count.
//!   [`JointUsage`] is that of several processes together.
//! - [`Memory`]: what is resident, and the page tables that map it.
//! - [`SyscallCounter`]: system calls of all its threads. Counting slows the process down, so it
//!   belongs in a run of its own.
//! - [`Census`]: what it asks of the kernel by kind, system calls and operations of io_uring, counted
//!   in the kernel where that is allowed.
//! - [`Sockets`]: its sockets with their states, queues and memory, as the kernel lists them.
//! - [`Threads`]: its threads with their CPU time, context switches and stacks.
//!
//! CPU time comes from the process's CPU clock, which counts nanoseconds and includes threads that
//! have ended; `/proc/PID/stat` counts the same in ticks of 10 ms and is used only for the share
//! that was spent in the kernel.
//!
//! Elsewhere than on Linux the meters say that they are not supported, or are not there.

#[cfg(target_os = "linux")]
mod census;
#[cfg(target_os = "linux")]
mod counts;
mod joint;
#[cfg(target_os = "linux")]
mod kernel;
#[cfg(target_os = "linux")]
mod names;
#[cfg(target_os = "linux")]
mod perf;
mod process;
#[cfg(target_os = "linux")]
pub(crate) mod ptrace;
#[cfg(target_os = "linux")]
mod sockets;
mod stolen;
mod syscalls;
#[cfg(target_os = "linux")]
mod threads;
#[cfg(target_os = "linux")]
mod tracefs;
#[cfg(target_os = "linux")]
mod tree;

#[cfg(target_os = "linux")]
pub use census::{Census, CensusSource, Depth};
#[cfg(target_os = "linux")]
pub use counts::{CallCount, Counts, RingCount};
pub use joint::JointUsage;
#[cfg(target_os = "linux")]
pub use names::{call_name, operation_name};
pub(crate) use process::thread_cpu_time;
pub use process::{Memory, Switches, Usage};
#[cfg(target_os = "linux")]
pub(crate) use process::{clock_time, cpu_time};
#[cfg(target_os = "linux")]
pub use sockets::{Socket, SocketMemory, Sockets};
pub(crate) use stolen::stolen_time;
pub use syscalls::{SyscallCounter, SyscallSource, tracepoint_access};
#[cfg(target_os = "linux")]
pub use threads::{Stacks, Thread, Threads};
#[cfg(target_os = "linux")]
pub(crate) use tree::is_group_alive;
#[cfg(target_os = "linux")]
pub use tree::{process_of, with_descendants};
