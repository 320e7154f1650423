//! Counting system calls with a perf counter on the tracepoint `raw_syscalls:sys_enter`, and opening
//! tracepoints for others.

use std::fs;
use std::io::{self, Read};
use std::mem::{size_of, zeroed};
use std::os::fd::{FromRawFd, OwnedFd};

use super::tracefs::Tracefs;

/// `struct perf_event_attr` in its first published size, which is all that counting needs and what
/// every kernel takes.
#[repr(C)]
#[derive(Clone, Copy)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    bp_addr: u64,
}

const PERF_TYPE_TRACEPOINT: u32 = 2;
/// Bit 1 of the flags: threads and children that are made later are counted too.
const INHERIT: u64 = 1 << 1;

/// Counters on every thread that a process has, inherited by those it makes.
#[derive(Debug)]
pub(super) struct TracepointCounter {
    counters: Vec<fs::File>,
}

impl TracepointCounter {
    /// Begins to count. Every system call on this machine is a little slower until this is dropped.
    pub(super) fn of(pid: u32) -> io::Result<TracepointCounter> {
        let tracepoint = Tracefs::open()?.id("raw_syscalls/sys_enter")?;
        let mut counters = Vec::new();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let name = task?.file_name();
            let Some(thread) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            match open(tracepoint, thread, -1, INHERIT) {
                Ok(counter) => counters.push(counter.into()),
                // The thread has ended since it was listed.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(TracepointCounter { counters })
    }

    pub(super) fn read(&mut self) -> io::Result<u64> {
        let mut calls = 0;
        for counter in &mut self.counters {
            let mut value = [0; 8];
            counter.read_exact(&mut value)?;
            calls += u64::from_ne_bytes(value);
        }
        Ok(calls)
    }
}

/// A counter of a tracepoint that every process on this machine passes by, for a program of the
/// kernel's to be hung on it.
pub(super) fn tracepoint_of_all(tracepoint: u64) -> io::Result<OwnedFd> {
    // A program that hangs on a tracepoint runs on all processors, whichever the counter is for.
    open(tracepoint, -1, 0, 0)
}

fn open(
    tracepoint: u64,
    thread: libc::pid_t,
    processor: libc::c_int,
    flags: u64,
) -> io::Result<OwnedFd> {
    let attributes = Attributes {
        kind: PERF_TYPE_TRACEPOINT,
        size: size_of::<Attributes>() as u32,
        config: tracepoint,
        flags,
        // SAFETY: all fields are integers, for which zero is a value.
        ..unsafe { zeroed() }
    };
    const CLOSE_ON_EXEC: libc::c_ulong = 1 << 3;
    // SAFETY: the kernel reads `size` bytes of the attributes, which outlive the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            thread,
            processor,
            -1 as libc::c_int,
            CLOSE_ON_EXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just given us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}
