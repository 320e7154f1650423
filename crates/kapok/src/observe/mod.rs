//! Looking into a process: what every fiber does, and which one blocks its loop.
//!
//! * [`dump`] shows every fiber of every loop: its name, its state, what it waits for, on which
//!   descriptor and with which peer, since when, and its backtrace.
//!   [`RuntimeBuilder::dump_on_signal`](crate::RuntimeBuilder::dump_on_signal) prints it to standard
//!   error whenever the process gets `SIGUSR2`.
//! * The watchdog, [`RuntimeBuilder::watchdog`](crate::RuntimeBuilder::watchdog), reports a fiber
//!   that runs for long without waiting, which keeps all others of its loop from running: which one
//!   it is, where it is, and in which system call.
//! * [`metrics`](crate::metrics()) counts.
//!
//! # What it costs
//!
//! A loop publishes when it resumes a fiber and when that is back: two stores. That is all the
//! watchdog and the dump cost while nobody asks; with the counters it is some 30 instructions for a
//! turn with two switches, and one reading of the clock for a turn that may wait. A thread of the
//! process, `kapok-monitor`, is started when it is first needed and sleeps until it is asked. For the
//! watchdog there is a second one, which looks at each loop four times in its limit: 18 µs of its CPU
//! time, most of it to wake and to sleep again, and 26 µs if a fiber runs, so a thousandth of a core
//! at a limit of 100 ms. A yield and an echo take the same time with a watchdog as without.
//!
//! A dump takes 2 µs of a loop's time for each of its fibers, and another for every ten calls that the
//! fiber is deep, 64 fibers at a time. Names of functions are looked up by the monitor, which reads the
//! debug information of the program for that, once: it may take a second and tens of megabytes in a
//! large program. Without symbols, addresses are shown.
//!
//! These are times of one machine, by `cargo run --release -p kapok --example observe_costs`; more in
//! docs/design/observing.md.
//!
//! # Signals
//!
//! A fiber that waits takes its own backtrace. One that blocks its thread cannot: the thread is sent
//! `SIGURG`, which other programs take for this too, because it is ignored by default and harmless.
//! The handler runs on the alternate signal stack, takes the registers and the fiber's name, has the
//! kernel copy the stack, and returns; it allocates nothing and takes no lock. The monitor walks the
//! frames of the copy. Whatever handled `SIGURG` before is called for signals that are not the
//! monitor's. Two limits: a system call that the thread is in is restarted if it is one that
//! signal(7) lists as restarted, and returns `EINTR` if it is not, as with any signal; and a thread
//! that has blocked `SIGURG`, or is in an uninterruptible wait of the kernel, shows no backtrace.
//! Backtraces by signal exist on Linux on x86-64 and AArch64; elsewhere the report does without.

mod backtrace;
mod collect;
mod dump;
mod library;
mod monitor;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod sample;
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
#[path = "sample_elsewhere.rs"]
mod sample;
mod thread;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod unwind;
mod watchdog;

pub(crate) use backtrace::walk;
pub use backtrace::{Backtrace, Frame};
pub use dump::{
    Descriptor, Dump, FiberReport, FiberState, LoopReport, RunningReport, WaitsFor, dump,
};
pub(crate) use monitor::{dump_on_signal, ensure_watching, look_again};
pub use watchdog::{Stall, StallPhase, WATCHDOG_VARIABLE};
pub(crate) use watchdog::{StallCallback, Watch};
