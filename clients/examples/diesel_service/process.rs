//! What a process uses, and what it may open.

use std::fs;
use std::io;
use std::time::Duration;

/// The memory of a process, in bytes.
pub(crate) struct Memory {
    /// Everything resident, shared pages in full.
    pub(crate) resident: u64,
    /// Shared pages by the part that falls to this process.
    pub(crate) proportional: u64,
}

impl Memory {
    pub(crate) fn of(process: u32) -> io::Result<Memory> {
        let path = format!("/proc/{process}/smaps_rollup");
        let text = fs::read_to_string(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
        // Lines as `Rss:      1234 kB`.
        let bytes = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kibibytes: Option<u64> =
                line.and_then(|line| line.split(' ').rev().nth(1)?.parse().ok());
            kibibytes.map(|count| count * 1024).ok_or_else(|| {
                io::Error::other(format!("{path} has no {name} in the format that is known"))
            })
        };
        Ok(Memory { resident: bytes("Rss:")?, proportional: bytes("Pss:")? })
    }
}

/// How many descriptors a process has open.
pub(crate) fn descriptors(process: u32) -> io::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{process}/fd"))?.count())
}

/// The CPU time that a process has used, in user space and in the kernel, with the threads that have ended.
pub(crate) fn cpu_time(process: u32) -> io::Result<Duration> {
    let mut clock = 0;
    // SAFETY: writes to a local.
    let result = unsafe { libc::clock_getcpuclockid(process as libc::pid_t, &raw mut clock) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: as above.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// Lets this process and its children open as many descriptors as they may.
pub(crate) fn raise_descriptor_limit() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes to a local.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: reads a local.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
