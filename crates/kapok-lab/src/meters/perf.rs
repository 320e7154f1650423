//! Counting system calls with a perf counter on the tracepoint `raw_syscalls:sys_enter`.

use std::ffi::{CStr, CString};
use std::fs;
use std::io::{self, Read};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const TRACEPOINT: &str = "events/raw_syscalls/sys_enter/id";

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
        let tracepoint = tracepoint_id()?;
        let mut counters = Vec::new();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let name = task?.file_name();
            let Some(thread) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            match open(tracepoint, thread) {
                Ok(counter) => counters.push(counter),
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

fn open(tracepoint: u64, thread: libc::pid_t) -> io::Result<fs::File> {
    let attributes = Attributes {
        kind: PERF_TYPE_TRACEPOINT,
        size: size_of::<Attributes>() as u32,
        config: tracepoint,
        flags: INHERIT,
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
            -1 as libc::c_int,
            -1 as libc::c_int,
            CLOSE_ON_EXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just given us this descriptor, and nobody else knows it.
    Ok(fs::File::from(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) }))
}

/// The tracepoint's number, which differs from kernel to kernel: from where tracefs is mounted or,
/// for root, from a mount of it that is attached nowhere and so seen by nobody.
fn tracepoint_id() -> io::Result<u64> {
    let mut refusal = None;
    for root in ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"] {
        let path = format!("{root}/{TRACEPOINT}");
        match fs::read_to_string(&path) {
            Ok(text) => return parse_id(&text),
            Err(error) => {
                let error = io::Error::new(error.kind(), format!("{path}: {error}"));
                // "Permission denied" says more than "not found" where the other mount is missing.
                if refusal.is_none() || error.kind() == io::ErrorKind::PermissionDenied {
                    refusal = Some(error);
                }
            }
        }
    }
    match detached_tracefs() {
        Ok(text) => parse_id(&text),
        Err(_) => Err(refusal.unwrap_or_else(|| io::ErrorKind::NotFound.into())),
    }
}

fn parse_id(text: &str) -> io::Result<u64> {
    text.trim().parse().map_err(|_| io::Error::other(format!("{TRACEPOINT} holds no number")))
}

fn detached_tracefs() -> io::Result<String> {
    const FSCONFIG_CMD_CREATE: libc::c_long = 6;
    let system = open_by(|| {
        let name: &CStr = c"tracefs";
        // SAFETY: the name is a C string that outlives the call.
        unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), 1 as libc::c_long) }
    })?;
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: this command takes no key and no value.
    let created = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            system.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            null,
            null,
            0 as libc::c_long,
        )
    };
    if created < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: only numbers are passed.
    let mount = open_by(|| unsafe {
        libc::syscall(libc::SYS_fsmount, system.as_raw_fd(), 1 as libc::c_long, 0 as libc::c_long)
    })?;
    let path = CString::new(TRACEPOINT).map_err(io::Error::other)?;
    // SAFETY: the path is a C string that outlives the call.
    let file = open_by(|| unsafe {
        libc::syscall(
            libc::SYS_openat,
            mount.as_raw_fd(),
            path.as_ptr(),
            libc::O_RDONLY | libc::O_CLOEXEC,
        )
    })?;
    io::read_to_string(fs::File::from(file))
}

fn open_by(call: impl FnOnce() -> libc::c_long) -> io::Result<OwnedFd> {
    match call() {
        fd if fd >= 0 => {
            // SAFETY: the call has just given us this descriptor, and nobody else knows it.
            Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
        }
        _ => Err(io::Error::last_os_error()),
    }
}
