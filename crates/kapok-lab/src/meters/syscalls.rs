//! One counter of system calls, whichever way this machine allows.

use std::fmt;
use std::io;

#[cfg(target_os = "linux")]
use super::perf::TracepointCounter;
#[cfg(target_os = "linux")]
use super::ptrace::TraceCounter;

/// How system calls were counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyscallSource {
    /// By a perf counter in the kernel: exact, and the process runs nearly at its speed.
    Tracepoint,
    /// By stopping the process at each: the process was slower, so the figure per request is an
    /// estimate.
    Ptrace,
}

impl fmt::Display for SyscallSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SyscallSource::Tracepoint => "tracepoint raw_syscalls:sys_enter",
            SyscallSource::Ptrace => "ptrace",
        })
    }
}

/// Counts the system calls of a process from its making until it is dropped.
#[derive(Debug)]
pub struct SyscallCounter(Way);

#[derive(Debug)]
enum Way {
    #[cfg(target_os = "linux")]
    Tracepoint(Vec<TracepointCounter>),
    #[cfg(target_os = "linux")]
    Ptrace(TraceCounter),
}

/// Whether system calls can be counted with a tracepoint here.
///
/// # Errors
///
/// They cannot: the step that failed, in words, and what the system said to it.
pub fn tracepoint_access() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    return TracepointCounter::of(std::process::id()).map(|_| ());
    #[cfg(not(target_os = "linux"))]
    Err(io::ErrorKind::Unsupported.into())
}

impl SyscallCounter {
    /// Begins to count the calls of process `pid`, of all its threads and of those it will make.
    ///
    /// # Errors
    ///
    /// Neither perf counters nor tracing are allowed: both reasons.
    #[cfg(target_os = "linux")]
    pub fn of(pid: u32) -> io::Result<SyscallCounter> {
        let by_perf = match TracepointCounter::of(pid) {
            Ok(counter) => return Ok(SyscallCounter(Way::Tracepoint(vec![counter]))),
            Err(error) => error,
        };
        match TraceCounter::of(pid) {
            Ok(counter) => Ok(SyscallCounter(Way::Ptrace(counter))),
            Err(error) => {
                Err(io::Error::other(format!("by a tracepoint: {by_perf}; by tracing: {error}")))
            }
        }
    }

    /// Begins to count the calls of all of `processes`, as [`of`](SyscallCounter::of) one of them; those
    /// of children that they make later are counted too. Several at once cannot be traced.
    ///
    /// # Errors
    ///
    /// As for [`of`](SyscallCounter::of).
    #[cfg(target_os = "linux")]
    pub fn of_all(processes: &[u32]) -> io::Result<SyscallCounter> {
        if let [one] = processes {
            return SyscallCounter::of(*one);
        }
        let counters: io::Result<Vec<_>> =
            processes.iter().map(|&process| TracepointCounter::of(process)).collect();
        counters.map(|counters| SyscallCounter(Way::Tracepoint(counters))).map_err(|by_perf| {
            let why = format!(
                "by a tracepoint: {by_perf}; by tracing: there are {} processes",
                processes.len()
            );
            io::Error::new(by_perf.kind(), why)
        })
    }

    /// Counting system calls is not supported on this system.
    ///
    /// # Errors
    ///
    /// Always.
    #[cfg(not(target_os = "linux"))]
    pub fn of_all(_processes: &[u32]) -> io::Result<SyscallCounter> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Counting system calls is not supported on this system.
    ///
    /// # Errors
    ///
    /// Always.
    #[cfg(not(target_os = "linux"))]
    pub fn of(_pid: u32) -> io::Result<SyscallCounter> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Calls so far.
    ///
    /// # Errors
    ///
    /// The counter cannot be read any more.
    pub fn read(&mut self) -> io::Result<u64> {
        match &mut self.0 {
            #[cfg(target_os = "linux")]
            Way::Tracepoint(counters) => {
                counters.iter_mut().try_fold(0, |calls, counter| Ok(calls + counter.read()?))
            }
            #[cfg(target_os = "linux")]
            Way::Ptrace(counter) => Ok(counter.read()),
        }
    }

    /// How they are counted.
    #[must_use]
    pub fn source(&self) -> SyscallSource {
        match self.0 {
            #[cfg(target_os = "linux")]
            Way::Tracepoint(_) => SyscallSource::Tracepoint,
            #[cfg(target_os = "linux")]
            Way::Ptrace(_) => SyscallSource::Ptrace,
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};

    /// A shell that makes system calls when told to.
    fn count_with(count: impl Fn(u32) -> io::Result<Box<dyn FnMut() -> io::Result<u64>>>) {
        let script = "while read n; do \
                      while [ \"$n\" -gt 0 ]; do umask >/dev/null; n=$((n - 1)); done; \
                      echo done; done";
        let mut shell = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = shell.stdin.take().unwrap();
        let mut output = BufReader::new(shell.stdout.take().unwrap());
        let mut round = |n: u32| {
            writeln!(input, "{n}").unwrap();
            let mut line = String::new();
            output.read_line(&mut line).unwrap();
        };
        round(1);
        match count(shell.id()) {
            Ok(mut read) => {
                round(1);
                let before = read().unwrap();
                round(500);
                let long = read().unwrap() - before;
                let before = read().unwrap();
                round(100);
                let short = read().unwrap() - before;
                // Each turn of the shell's loop costs the same number of calls, at least one.
                let per_turn = (long - short) as f64 / 400.0;
                assert!((1.0..40.0).contains(&per_turn), "{long} and {short}");
            }
            // An ordinary user may not, and in a container there may be no tracefs.
            Err(error) => assert!(
                matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound),
                "{error}"
            ),
        }
        drop(input);
        assert!(shell.wait().unwrap().success());
    }

    #[test]
    fn a_tracepoint_counts_where_it_is_allowed() {
        count_with(|pid| {
            let mut counter = TracepointCounter::of(pid)?;
            Ok(Box::new(move || counter.read()))
        });
    }

    #[test]
    fn a_tracer_counts_and_lets_go() {
        count_with(|pid| {
            let counter = TraceCounter::of(pid)?;
            Ok(Box::new(move || Ok(counter.read())))
        });
    }

    #[test]
    fn a_process_that_ends_while_it_is_traced_is_its_parents_to_reap() {
        let ends = (0..20).try_for_each(|_| {
            let mut traced = Command::new("sleep").arg("600").spawn().unwrap();
            let counter = TraceCounter::of(traced.id());
            traced.kill().unwrap();
            // The tracer looks every few microseconds.
            std::thread::sleep(std::time::Duration::from_millis(20));
            let counted = counter.map(drop);
            let end = traced.wait().expect("nobody has reaped it");
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&end), Some(libc::SIGKILL));
            counted
        });
        // An ordinary user may not trace everywhere.
        if let Err::<(), io::Error>(error) = ends {
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
        }
    }

    #[test]
    fn a_dropped_tracer_holds_nobody() {
        let mut idle = Command::new("sleep").arg("600").spawn().unwrap();
        let traced = (0..500).try_for_each(|_| {
            drop(TraceCounter::of(idle.id())?);
            // A wait for a process that one of our threads still traces sees its stops.
            let status = std::fs::read_to_string(format!("/proc/{}/status", idle.id()))?;
            // No panic here, which would leave the process behind.
            let free = status.contains("\nTracerPid:\t0\n");
            if free { Ok(()) } else { Err(io::Error::other(status)) }
        });
        idle.kill().unwrap();
        idle.wait().unwrap();
        // An ordinary user may not trace everywhere.
        if let Err::<(), io::Error>(error) = traced {
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
        }
    }
}
