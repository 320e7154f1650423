//! CPU time, context switches, threads and memory of another process, from `/proc` and its CPU
//! clock.

use std::fs;
use std::io;
use std::time::Duration;

/// What a process has used since it began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU time in user space and in the kernel, threads that have ended included.
    pub cpu: Duration,
    /// The same in ticks of 10 ms: too coarse to be added up, good enough for a share.
    system_ticks: u64,
    user_ticks: u64,
    /// Context switches of the threads that exist now.
    pub switches: Switches,
    /// Threads that exist now.
    pub threads: u64,
}

/// Context switches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Switches {
    /// The thread waited for something.
    pub voluntary: u64,
    /// The thread was taken off its core.
    pub involuntary: u64,
}

impl Usage {
    /// Reads the meters of process `pid` as an interval begins: the CPU clock last, so that what
    /// the process does while its other files are read is not charged to the interval.
    ///
    /// # Errors
    ///
    /// The process is gone, or is not ours to look at.
    pub fn at_start(pid: u32) -> io::Result<Usage> {
        let usage = Usage::without_clock(pid)?;
        Ok(Usage { cpu: cpu_time(pid)?, ..usage })
    }

    /// Reads the meters of process `pid` as an interval ends: the CPU clock first.
    ///
    /// # Errors
    ///
    /// As for [`at_start`](Usage::at_start).
    pub fn at_end(pid: u32) -> io::Result<Usage> {
        let cpu = cpu_time(pid)?;
        Ok(Usage { cpu, ..Usage::without_clock(pid)? })
    }

    pub(super) fn without_clock(pid: u32) -> io::Result<Usage> {
        let stat = read(pid, "stat")?;
        // The name, in parentheses, may hold anything; the fields follow its last parenthesis.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse().ok());
        let (user_ticks, system_ticks) = match (ticks(11), ticks(12)) {
            (Some(user), Some(system)) => (user, system),
            _ => return Err(unreadable(pid, "stat")),
        };
        let (switches, threads) = switches(pid)?;
        Ok(Usage { cpu: Duration::ZERO, user_ticks, system_ticks, switches, threads })
    }

    pub(super) fn with_clock(self, cpu: Duration) -> Usage {
        Usage { cpu, ..self }
    }

    /// What was used between `earlier` and this reading. Context switches of threads that ended in
    /// between are missing.
    #[must_use]
    pub fn since(&self, earlier: &Usage) -> Usage {
        Usage {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            user_ticks: self.user_ticks.saturating_sub(earlier.user_ticks),
            system_ticks: self.system_ticks.saturating_sub(earlier.system_ticks),
            switches: Switches {
                voluntary: self.switches.voluntary.saturating_sub(earlier.switches.voluntary),
                involuntary: self.switches.involuntary.saturating_sub(earlier.switches.involuntary),
            },
            threads: self.threads,
        }
    }

    /// Two processes together.
    #[must_use]
    pub fn plus(&self, other: &Usage) -> Usage {
        Usage {
            cpu: self.cpu + other.cpu,
            user_ticks: self.user_ticks + other.user_ticks,
            system_ticks: self.system_ticks + other.system_ticks,
            switches: Switches {
                voluntary: self.switches.voluntary + other.switches.voluntary,
                involuntary: self.switches.involuntary + other.switches.involuntary,
            },
            threads: self.threads + other.threads,
        }
    }

    /// The share of the CPU time that was spent in the kernel, from 0 to 1; `None` when too little
    /// was used to tell.
    #[must_use]
    pub fn system_share(&self) -> Option<f64> {
        let all = self.user_ticks + self.system_ticks;
        (all >= 10).then(|| self.system_ticks as f64 / all as f64)
    }
}

/// The memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Everything resident, shared pages in full.
    pub resident: u64,
    /// Everything resident, shared pages by the part that falls to this process.
    pub proportional: u64,
    /// Resident pages that are its own and no file's: heaps and stacks.
    pub anonymous: u64,
    /// Page tables.
    pub page_tables: u64,
    /// Reserved for stacks and heaps and everything else, resident or not.
    pub reserved: u64,
}

impl Memory {
    /// Reads the memory of process `pid`. The kernel walks its page tables for it: not for a timed
    /// interval.
    ///
    /// # Errors
    ///
    /// The process is gone, or is not ours to look at.
    pub fn of(pid: u32) -> io::Result<Memory> {
        let rollup = read(pid, "smaps_rollup")?;
        let status = read(pid, "status")?;
        let kib = |text: &str, name: &str| field(text, name).map(|kib| kib * 1024);
        Ok(Memory {
            resident: kib(&rollup, "Rss").ok_or_else(|| unreadable(pid, "smaps_rollup"))?,
            proportional: kib(&rollup, "Pss").unwrap_or(0),
            anonymous: kib(&rollup, "Anonymous").unwrap_or(0),
            page_tables: kib(&status, "VmPTE").ok_or_else(|| unreadable(pid, "status"))?,
            reserved: kib(&status, "VmSize").unwrap_or(0),
        })
    }
}

fn read(pid: u32, file: &str) -> io::Result<String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))
}

fn unreadable(pid: u32, file: &str) -> io::Error {
    io::Error::other(format!("/proc/{pid}/{file} is not in the format that is known"))
}

/// The number behind `name:` at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Context switches over all threads, and how many there are. A thread that ends while its files
/// are read is left out.
fn switches(pid: u32) -> io::Result<(Switches, u64)> {
    let path = format!("/proc/{pid}/task");
    let tasks = fs::read_dir(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
    let mut switches = Switches::default();
    let mut threads = 0;
    for task in tasks {
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else { continue };
        threads += 1;
        switches.voluntary += field(&status, "voluntary_ctxt_switches").unwrap_or(0);
        switches.involuntary += field(&status, "nonvoluntary_ctxt_switches").unwrap_or(0);
    }
    Ok((switches, threads))
}

#[cfg(not(target_os = "linux"))]
/// As on Linux, where there is such a clock.
pub(crate) fn cpu_time(_pid: u32) -> io::Result<Duration> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The CPU clock of a process: nanoseconds, threads that have ended included. It can be read until the
/// process is reaped.
#[cfg(target_os = "linux")]
pub(crate) fn cpu_time(pid: u32) -> io::Result<Duration> {
    let mut clock = 0;
    // SAFETY: `clock` is a clockid_t that outlives the call.
    let result = unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &mut clock) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    clock_time(clock)
}

/// CPU time of the calling thread.
pub(crate) fn thread_cpu_time() -> Duration {
    clock_time(libc::CLOCK_THREAD_CPUTIME_ID).unwrap_or_default()
}

/// What a clock says (clock_gettime(2)).
pub(crate) fn clock_time(clock: libc::clockid_t) -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec that outlives the call.
    if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::hint::black_box;
    use std::time::Instant;

    #[test]
    fn cpu_time_includes_threads_that_have_ended() {
        let pid = std::process::id();
        let before = Usage::at_start(pid).unwrap();
        let burn = || {
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(100) {
                black_box(start);
            }
            // What this thread itself got, on a machine that may be busy.
            thread_cpu_time()
        };
        let burnt = std::thread::spawn(burn).join().unwrap();
        let used = Usage::at_end(pid).unwrap().since(&before);
        assert!(used.cpu >= burnt, "{:?} of {burnt:?}", used.cpu);
        assert!(used.threads >= 1);
    }

    #[test]
    fn memory_grows_by_what_is_touched() {
        let pid = std::process::id();
        let before = Memory::of(pid).unwrap();
        let touched = black_box(vec![1_u8; 64 << 20]);
        let after = Memory::of(pid).unwrap();
        drop(touched);
        // Other tests of this process give memory back meanwhile, a little.
        let grown = after.anonymous - before.anonymous;
        assert!(grown >= 60 << 20, "{grown}");
        assert!(after.resident >= after.anonymous && after.page_tables > 0);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error_with_its_path() {
        let error = Usage::at_start(u32::MAX / 4).unwrap_err().to_string();
        assert!(error.contains("/proc/"), "{error}");
    }
}
