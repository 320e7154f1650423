//! Where figures were taken: without it they mean nothing.

use std::fs;
use std::io;
use std::mem::MaybeUninit;

use serde::{Deserialize, Serialize};

/// The machine and the build.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Environment {
    /// Version and commit of the program.
    pub build: String,
    /// Versions of the compiler and of the libraries that are compared.
    pub versions: Vec<String>,
    /// The kernel's name and release.
    pub kernel: String,
    /// The processor's name.
    pub cpu: String,
    /// The machine is a virtual one.
    pub virtual_machine: bool,
    /// Cores that this process may use.
    pub cores: Vec<usize>,
    /// What the processor's frequency is governed by; `None` where nothing governs it that we see.
    pub governor: Option<String>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Load averages of 1, 5 and 15 minutes before anything was started.
    pub load_averages: Option<String>,
    /// `kernel.threads-max`.
    pub threads_max: Option<u64>,
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
    pub(crate) fn look(build: &str, versions: &[String]) -> Environment {
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
            versions: versions.to_vec(),
            kernel: kernel(),
            cpu: cpu_field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            virtual_machine: cpu_field("flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            cores: allowed_cores(),
            governor: setting("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            memory_bytes: setting("/proc/meminfo").and_then(|text| {
                let kib: u64 =
                    text.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok()?;
                Some(kib * 1024)
            }),
            load_averages: setting("/proc/loadavg")
                .map(|text| text.split(' ').take(3).collect::<Vec<_>>().join(" ")),
            threads_max: setting("/proc/sys/kernel/threads-max").and_then(|text| text.parse().ok()),
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
pub(crate) fn allowed_cores() -> Vec<usize> {
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

/// The calling thread on some cores only. Dropping it, on the same thread, gives the others back:
/// whoever compares twice has as many cores the second time.
#[derive(Debug)]
pub(crate) struct Bound {
    before: Vec<usize>,
}

impl Bound {
    pub(crate) fn to(cores: &[usize], before: &[usize]) -> io::Result<Bound> {
        pin(cores)?;
        Ok(Bound { before: before.to_vec() })
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Err(error) = pin(&self.before) {
            tracing::warn!("the cores of this thread could not be given back: {error}");
        }
    }
}

/// Binds the calling thread, and those it makes, to `cores`. Async-signal-safe: it is also called
/// between fork and exec.
#[cfg(target_os = "linux")]
pub(crate) fn pin(cores: &[usize]) -> io::Result<()> {
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
pub(crate) fn allowed_cores() -> Vec<usize> {
    (0..std::thread::available_parallelism().map_or(1, usize::from)).collect()
}

/// Threads cannot be bound to cores here: the scheduler decides.
#[cfg(not(target_os = "linux"))]
pub(crate) fn pin(_cores: &[usize]) -> io::Result<()> {
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gets_its_cores_back() {
        let all = allowed_cores();
        let bound = Bound::to(&all[..1], &all).unwrap();
        assert_eq!(allowed_cores(), &all[..1]);
        drop(bound);
        assert_eq!(allowed_cores(), all);
    }
}
