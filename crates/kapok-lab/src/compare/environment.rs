//! Where figures were taken: without it they mean nothing.

use std::fs;
use std::io;
use std::mem::MaybeUninit;

use serde::Serialize;

/// The machine and the build.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    /// Version and commit of the program.
    pub build: String,
    /// The kernel's name and release.
    pub kernel: String,
    /// The processor's name.
    pub cpu: String,
    /// The machine is a virtual one.
    pub virtual_machine: bool,
    /// Cores that this process may use.
    pub cores: Vec<usize>,
    /// The hard limit on descriptors.
    pub descriptors: u64,
    /// `net.core.somaxconn`.
    pub somaxconn: Option<u64>,
    /// `net.ipv4.ip_local_port_range`.
    pub port_range: Option<String>,
    /// `net.ipv4.tcp_rmem` and `tcp_wmem`.
    pub tcp_buffers: Option<String>,
    /// What the kernel does against faults of this processor: it costs system calls dearly.
    pub mitigations: Vec<String>,
}

impl Environment {
    /// Looks around.
    pub(super) fn look(build: &str) -> Environment {
        let setting = |path: &str| {
            let text = fs::read_to_string(path).ok()?;
            Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
        };
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu_field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let buffers =
            (setting("/proc/sys/net/ipv4/tcp_rmem"), setting("/proc/sys/net/ipv4/tcp_wmem"));
        Environment {
            build: build.to_owned(),
            kernel: kernel(),
            cpu: cpu_field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            virtual_machine: cpu_field("flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            cores: allowed_cores(),
            descriptors: crate::load::raise_descriptor_limit().unwrap_or(0),
            somaxconn: setting("/proc/sys/net/core/somaxconn").and_then(|text| text.parse().ok()),
            port_range: setting("/proc/sys/net/ipv4/ip_local_port_range"),
            tcp_buffers: match buffers {
                (Some(receive), Some(send)) => Some(format!("rmem {receive}, wmem {send}")),
                _ => None,
            },
            mitigations: mitigations(),
        }
    }
}

fn kernel() -> String {
    let mut name = MaybeUninit::<libc::utsname>::zeroed();
    // SAFETY: `name` is a utsname that outlives the call; zeroes are a value of it.
    let name = unsafe {
        libc::uname(name.as_mut_ptr());
        name.assume_init()
    };
    let text = |field: &[libc::c_char]| {
        let bytes: Vec<u8> =
            field.iter().take_while(|&&byte| byte != 0).map(|&byte| byte as u8).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    format!("{} {}", text(&name.sysname), text(&name.release))
}

fn mitigations() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") else {
        return Vec::new();
    };
    let mut found: Vec<String> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let state = fs::read_to_string(&path).ok()?;
            let state = state.trim();
            (state != "Not affected")
                .then(|| format!("{}: {state}", path.file_name().unwrap_or_default().display()))
        })
        .collect();
    found.sort();
    found
}

/// The cores that the calling thread may run on.
#[cfg(target_os = "linux")]
pub(super) fn allowed_cores() -> Vec<usize> {
    // SAFETY: a cpu_set_t is an array of integers, for which zero is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set outlives the call and its size is what is passed.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) } != 0 {
        return Vec::new();
    }
    (0..libc::CPU_SETSIZE as usize)
        // SAFETY: the index is below CPU_SETSIZE.
        .filter(|&core| unsafe { libc::CPU_ISSET(core, &set) })
        .collect()
}

/// Binds the calling thread, and those it makes, to `cores`. Async-signal-safe: it is also called
/// between fork and exec.
#[cfg(target_os = "linux")]
pub(super) fn pin(cores: &[usize]) -> io::Result<()> {
    // Not known: let the scheduler decide.
    if cores.is_empty() {
        return Ok(());
    }
    // SAFETY: a cpu_set_t is an array of integers, for which zero is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &core in cores {
        // SAFETY: the cores come from `allowed_cores`, which are below CPU_SETSIZE.
        unsafe { libc::CPU_SET(core, &mut set) };
    }
    // SAFETY: the set outlives the call and its size is what is passed.
    if unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Threads cannot be bound to cores here: the scheduler decides.
#[cfg(not(target_os = "linux"))]
pub(super) fn allowed_cores() -> Vec<usize> {
    (0..std::thread::available_parallelism().map_or(1, usize::from)).collect()
}

/// Threads cannot be bound to cores here: the scheduler decides.
#[cfg(not(target_os = "linux"))]
pub(super) fn pin(_cores: &[usize]) -> io::Result<()> {
    Ok(())
}
