//! `kapok doctor`: what this machine allows, what it does not, and the cure for that.

mod hooks;
mod ring;

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::DoctorOptions;

/// How a finding is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    verdict: Verdict,
    found: String,
    cure: Option<String>,
}

impl Finding {
    fn ok(name: &'static str, found: impl Into<String>) -> Finding {
        Finding { name, verdict: Verdict::Ok, found: found.into(), cure: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Finding {
        Finding { name, verdict: Verdict::Warn, found: found.into(), cure: Some(cure.into()) }
    }
}

/// Looks at everything; fails when there is no engine to run on.
pub(crate) fn run(options: &DoctorOptions) -> io::Result<ExitCode> {
    if let Some(program) = &options.libc {
        return hooks::run(options, program.as_deref());
    }
    let mut findings = vec![Finding::ok("kernel", kernel())];
    let ring = rings(&mut findings);
    let readiness = selectors(&mut findings);
    let usable = ring || readiness;
    if let Ok(forced) = std::env::var("KAPOK_ENGINE") {
        findings.push(forced_engine(&forced));
    }
    findings.push(guards());
    findings.extend(limits());
    findings.push(match kapok_lab::meters::tracepoint_access() {
        Ok(()) => Finding::ok("system calls", "can be counted by a tracepoint"),
        Err(error) => Finding::warn(
            "system calls",
            format!(
                "no tracepoint ({error}): compare counts them by ptrace, which slows the server"
            ),
            "run as root, or as root: mount -t tracefs none /sys/kernel/tracing; chmod a+rx \
             /sys/kernel/tracing; sysctl -w kernel.perf_event_paranoid=-1",
        ),
    });

    let mut stdout = io::stdout().lock();
    if options.json {
        let all = serde_json::json!({ "usable": usable, "findings": findings });
        writeln!(stdout, "{all}")?;
    } else {
        print(&mut stdout, &findings)?;
        let end = if ring {
            "Kapok runs here, on io_uring."
        } else if readiness {
            "Kapok runs here, on readiness (epoll or poll); io_uring is refused, see above."
        } else {
            "No engine can run here."
        };
        writeln!(stdout, "{end}")?;
    }
    stdout.flush()?;
    Ok(ExitCode::from(if usable { 0 } else { 1 }))
}

/// What `KAPOK_ENGINE` makes of it all.
fn forced_engine(name: &str) -> Finding {
    match name.parse::<kapok_engine::Kind>() {
        _ if name == "auto" => Finding::ok("KAPOK_ENGINE", "auto: the best engine there is"),
        Ok(kind) => Finding::ok("KAPOK_ENGINE", format!("forces {kind}")),
        Err(error) => Finding {
            name: "KAPOK_ENGINE",
            verdict: Verdict::Fail,
            found: format!("{error}: no runtime starts"),
            cure: Some("unset KAPOK_ENGINE, or give it one of these names".into()),
        },
    }
}

fn print(out: &mut impl Write, findings: &[Finding]) -> io::Result<()> {
    let colours = io::stdout().is_terminal() && crate::cli::colours_allowed();
    for finding in findings {
        let (word, colour) = match finding.verdict {
            Verdict::Ok => ("ok  ", "32"),
            Verdict::Warn => ("warn", "33"),
            Verdict::Fail => ("FAIL", "31"),
        };
        let word = if colours { format!("\x1b[{colour}m{word}\x1b[0m") } else { word.to_owned() };
        writeln!(out, "{word}  {:<22} {}", finding.name, finding.found)?;
        if let Some(cure) = &finding.cure {
            for (number, line) in cure.lines().enumerate() {
                let label = if number == 0 { "cure:" } else { "" };
                writeln!(out, "      {:<22} {label:<5} {line}", "")?;
            }
        }
    }
    Ok(())
}

fn kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease");
    format!("{} {}", std::env::consts::OS, release.as_deref().unwrap_or("").trim())
}

fn rings(findings: &mut Vec<Finding>) -> bool {
    match ring::probe() {
        Ok(modes) => {
            findings.push(Finding::ok("io_uring", "a ring was set up"));
            for mode in modes {
                findings.push(match mode.works {
                    Ok(()) => Finding::ok("io_uring", format!("{}: {}", mode.name, mode.use_for)),
                    Err(error) => Finding::warn(
                        "io_uring",
                        format!("no {} ({error}); it is for: {}", mode.name, mode.use_for),
                        format!("Linux {} or later", mode.since),
                    ),
                });
            }
            true
        }
        Err(obstacle) => {
            findings.push(Finding::warn("io_uring", obstacle.cause, obstacle.cure));
            false
        }
    }
}

/// The readiness engines, each with a real wait for a real descriptor.
fn selectors(findings: &mut Vec<Finding>) -> bool {
    let kernels_own = if cfg!(target_os = "linux") { "epoll" } else { "kqueue" };
    let mut usable = false;
    for (name, outcome) in [(kernels_own, wait_with_mio()), ("poll", wait_with_poll())] {
        findings.push(match outcome {
            Ok(()) => {
                usable = true;
                Finding::ok(name, "a wait was answered")
            }
            Err(error) => Finding {
                name,
                verdict: Verdict::Fail,
                found: error.to_string(),
                cure: Some("look for a seccomp filter, or for the limit on descriptors".into()),
            },
        });
    }
    usable
}

fn wait_with_mio() -> io::Result<()> {
    let mut poll = mio::Poll::new()?;
    let waker = mio::Waker::new(poll.registry(), mio::Token(1))?;
    waker.wake()?;
    let mut events = mio::Events::with_capacity(1);
    poll.poll(&mut events, Some(std::time::Duration::from_secs(1)))?;
    if events.is_empty() {
        Err(io::Error::other("the wait ended without its event"))
    } else {
        Ok(())
    }
}

fn wait_with_poll() -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let (readable, mut writer) = io::pipe()?;
    writer.write_all(&[1])?;
    let mut wanted = libc::pollfd { fd: readable.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, which outlives the call.
    match unsafe { libc::poll(&raw mut wanted, 1, 1000) } {
        1 => Ok(()),
        0 => Err(io::Error::other("the wait ended without its event")),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Guard pages that need no mapping of their own: without them fibers stop at `vm.max_map_count`.
fn guards() -> Finding {
    const MADV_GUARD_INSTALL: libc::c_int = 102;
    const PAGE: usize = 64 << 10;
    // SAFETY: a fresh anonymous mapping that nothing else refers to; it is unmapped below.
    let installed = unsafe {
        let page = libc::mmap(
            std::ptr::null_mut(),
            PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANON,
            -1,
            0,
        );
        if page == libc::MAP_FAILED {
            return Finding::warn("stack guards", "no memory could be mapped", "free some memory");
        }
        let installed =
            cfg!(target_os = "linux") && libc::madvise(page, PAGE, MADV_GUARD_INSTALL) == 0;
        libc::munmap(page, PAGE);
        installed
    };
    let maps = setting("/proc/sys/vm/max_map_count");
    if installed {
        Finding::ok("stack guards", "MADV_GUARD_INSTALL: fibers are not limited by mappings")
    } else {
        let maps = maps.unwrap_or(65_530);
        Finding::warn(
            "stack guards",
            format!("by mprotect: about {} fibers (vm.max_map_count is {maps})", maps / 2),
            "Linux 6.13 or later, or as root: sysctl -w vm.max_map_count=2097152",
        )
    }
}

fn setting(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn limits() -> Vec<Finding> {
    let mut findings = Vec::new();
    let (soft, hard) = limit(libc::RLIMIT_NOFILE);
    let found =
        format!("soft {}, hard {} (the soft one is raised to it)", amount(soft), amount(hard));
    findings.push(if hard >= 10_100 {
        Finding::ok("descriptors", found)
    } else {
        Finding::warn(
            "descriptors",
            format!("{found}: too few for 10,000 connections"),
            "ulimit -Hn 1048576 as root, LimitNOFILE=1048576 in systemd, --ulimit nofile=1048576 \
             for a container",
        )
    });

    let (locked, _) = limit(libc::RLIMIT_MEMLOCK);
    let found = format!("{} bytes may be locked", amount(locked));
    findings.push(if locked >= 8 << 20 {
        Finding::ok("locked memory", found)
    } else {
        Finding::warn(
            "locked memory",
            format!("{found}: registered buffers and, before Linux 5.12, rings count against it"),
            "ulimit -l unlimited, LimitMEMLOCK=infinity in systemd, --ulimit memlock=-1 for a \
             container",
        )
    });

    let (threads, _) = limit(libc::RLIMIT_NPROC);
    let found = format!("{} per user", amount(threads));
    findings.push(if threads >= 4096 {
        Finding::ok("threads", found)
    } else {
        Finding::warn(
            "threads",
            format!("{found}: the model `threads` needs one per connection"),
            "ulimit -u 65536, LimitNPROC=65536 in systemd",
        )
    });

    if let Some(maps) = setting("/proc/sys/vm/max_map_count") {
        findings.push(Finding::ok("vm.max_map_count", maps.to_string()));
    }
    if let Some(backlog) = setting("/proc/sys/net/core/somaxconn") {
        findings.push(if backlog >= 1024 {
            Finding::ok("somaxconn", backlog.to_string())
        } else {
            Finding::warn(
                "somaxconn",
                format!("{backlog}: bursts of connections wait for a retransmission"),
                "as root: sysctl -w net.core.somaxconn=4096",
            )
        });
    }
    if let Ok(range) = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range") {
        let range = range.split_whitespace().collect::<Vec<_>>().join(" to ");
        findings.push(Finding::ok("local ports", range));
    }
    if setting("/proc/sys/vm/overcommit_memory") == Some(2) {
        findings.push(Finding::warn(
            "overcommit",
            "vm.overcommit_memory is 2: address space for stacks counts as memory",
            "as root: sysctl -w vm.overcommit_memory=0, or fewer and smaller stacks",
        ));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    findings.push(if cores > 1 {
        Finding::ok("cores", cores.to_string())
    } else {
        Finding::warn(
            "cores",
            "one: in compare the server and the load share it and disturb each other",
            "measure on two cores or more",
        )
    });
    findings
}

/// The soft and the hard limit.
// Signed on FreeBSD.
#[allow(clippy::unnecessary_cast)]
fn limit(resource: LimitKind) -> (u64, u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit that outlives the call.
    unsafe { libc::getrlimit(resource, &mut limit) };
    (limit.rlim_cur as u64, limit.rlim_max as u64)
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
type LimitKind = libc::__rlimit_resource_t;
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
type LimitKind = libc::c_int;

fn amount(limit: u64) -> String {
    if limit == u64::MAX || limit == i64::MAX as u64 {
        "unlimited".to_owned()
    } else {
        limit.to_string()
    }
}
