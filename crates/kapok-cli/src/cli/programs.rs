//! Programs of others: watching them, and running them with their calls hooked.

use std::ffi::OsString;
#[cfg(target_os = "linux")]
use std::time::Duration;

use clap::Args;

#[cfg(target_os = "linux")]
use super::values::seconds;

/// Watch what a server asks of the kernel while it works.
///
/// System calls and operations of io_uring by kind, sockets with their queues, threads, memory: live
/// once a second (on a terminal, redrawn in place; elsewhere a line each time, to standard error), and as
/// a summary at the end. Counting is done in the kernel, which takes
/// root; without it, what /proc and the kernel's list of sockets tell is shown, and the reason for the
/// rest. The process is never stopped and goes on when this ends; only --trace slows it down.
#[cfg(target_os = "linux")]
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kapok observe 4711                                 until Ctrl-C, then the summary
  kapok observe 4711 --detail                        with times, errors and wake-ups
  kapok observe 4711 --seconds 10 --json
  kapok observe --seconds 5 --end -- redis-server --port 7777
  kapok observe --trace 4711                         one connection, call by call
  kapok observe --trace -- kapok serve --model epoll")]
pub(crate) struct ObserveOptions {
    /// The process; its children are watched with it
    #[arg(value_name = "PID", required_unless_present = "program")]
    pub(crate) pid: Option<u32>,
    /// For how long; without it until Ctrl-C or the end of the process
    #[arg(long, value_parser = seconds, value_name = "S")]
    pub(crate) seconds: Option<Duration>,
    /// How often the live view is drawn
    #[arg(long, default_value = "1", value_parser = seconds, value_name = "S")]
    pub(crate) every: Duration,
    /// Beside counts, how long calls take and how they end, completions of io_uring, and wake-ups:
    /// costs the process two to three times as much
    #[arg(long)]
    pub(crate) detail: bool,
    /// Follow the next connection that is accepted: accept, register, wait, read, write
    #[arg(long)]
    pub(crate) trace: bool,
    /// At the end, ask the program that was started to end too (SIGTERM); one that has not ended five
    /// seconds later is killed
    #[arg(long, requires = "program")]
    pub(crate) end: bool,
    /// Print the summary as one JSON object; with --trace, each call as one
    #[arg(long)]
    pub(crate) json: bool,
    /// A program to start and watch from its beginning, with its arguments; what it prints goes to
    /// standard error
    #[arg(last = true, value_name = "PROGRAM", conflicts_with = "pid")]
    pub(crate) program: Vec<OsString>,
}

/// Run an unmodified program with the C library's blocking calls hooked.
///
/// Puts libkapok.so before the program (LD_PRELOAD), and becomes it: standard streams, signals and the
/// exit status are the program's, and its children are run the same way. What waits on a fiber suspends
/// the fiber and not the thread. The library is where KAPOK_LIBRARY says, or else beside this
/// program, in ../lib/kapok or in ../lib.
///
/// Exits with 127 if there is no such program and 126 if it cannot be run so: it is linked statically,
/// has other privileges (setuid), or is made by Go.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kapok run -- ./server                            what it runs on fibers of its own waits as fibers do
  kapok run --main-fiber --stats -- curl -s URL    main on a fiber; how often it was suspended
  kapok run --main-fiber --json -- curl -s URL     the same, as a line of JSON
  KAPOK_ENGINE=epoll kapok run --main-fiber -- psql -c 'select pg_sleep(1)'")]
pub(crate) struct RunOptions {
    /// Run main on a fiber, with as much stack as the limit on stacks allows (ulimit -s)
    #[arg(long)]
    pub(crate) main_fiber: bool,
    /// Experimental: run main on a fiber, and make the threads that it and its threads create fibers of
    /// the same thread. Thread-local variables are then shared between them, errno aside, and who only
    /// computes keeps the others from running
    #[arg(long)]
    pub(crate) threads_as_fibers: bool,
    /// Print, at exit and to standard error, how many calls suspended a fiber, were answered at once, or
    /// went past the fibers, by function
    #[arg(long)]
    pub(crate) stats: bool,
    /// Print the same as one line of JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    pub(crate) command: Vec<OsString>,
}
