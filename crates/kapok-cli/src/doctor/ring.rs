//! Whether io_uring can be set up, tried with real rings; and if not, why, and the cure.

#[cfg(target_os = "linux")]
use std::fs;

/// Why there is no ring here, in words, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Obstacle {
    pub(super) cause: String,
    pub(super) cure: String,
}

/// Something a ring can do, and what it is good for.
#[derive(Debug)]
pub(super) struct Mode {
    pub(super) name: &'static str,
    pub(super) use_for: &'static str,
    pub(super) since: &'static str,
    /// Or what came of the attempt.
    pub(super) works: Result<(), String>,
}

/// Sets up a ring, and if that works tries what it can do.
pub(super) fn probe() -> Result<Vec<Mode>, Obstacle> {
    #[cfg(target_os = "linux")]
    {
        use kapok_engine::uring::Denied;
        let features = kapok_engine::uring::probe().map_err(|denied| {
            let (call, error) = match denied {
                Denied::Setup(error) => (Call::Setup, error),
                Denied::Enter(error) => (Call::Enter, error),
                other => {
                    return Obstacle {
                        cause: format!("{other:?}"),
                        cure: "not a known cause: strace -f shows the calls".to_owned(),
                    };
                }
            };
            match error.raw_os_error() {
                Some(errno) => explain(call, errno, &Surroundings::look()),
                None => Obstacle {
                    cause: error.to_string(),
                    cure: "use Linux 5.19 or later".to_owned(),
                },
            }
        })?;
        let mode = |feature: kapok_engine::uring::Feature| Mode {
            name: feature.name,
            use_for: feature.use_for,
            since: feature.since,
            works: feature.works.map_err(|error| error.to_string()),
        };
        Ok(features.into_iter().map(mode).collect())
    }
    #[cfg(not(target_os = "linux"))]
    Err(Obstacle {
        cause: "io_uring is Linux's".to_owned(),
        cure: "nothing to do: kqueue is used here".to_owned(),
    })
}

// Elsewhere only the tests ask.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
/// The system call that was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Call {
    /// io_uring_setup(2).
    Setup,
    /// io_uring_enter(2), of a ring that could be set up.
    Enter,
}

// Elsewhere only the tests ask.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
/// What decides which of several causes an error number has.
#[derive(Debug, Default)]
struct Surroundings {
    /// `kernel.io_uring_disabled`, where the kernel has it (6.6).
    disabled: Option<u32>,
    /// `kernel.io_uring_group`.
    group: Option<i64>,
    /// A seccomp filter is installed over this process.
    filtered: bool,
    /// Security modules in force.
    security: String,
    /// The soft RLIMIT_MEMLOCK in bytes.
    locked: Option<u64>,
    /// The process has CAP_SYS_ADMIN.
    privileged: bool,
}

/// capabilities(7).
#[cfg(target_os = "linux")]
const CAP_SYS_ADMIN: u32 = 21;

impl Surroundings {
    #[cfg(target_os = "linux")]
    fn look() -> Surroundings {
        fn number<T: std::str::FromStr>(path: &str) -> Option<T> {
            fs::read_to_string(path).ok()?.trim().parse().ok()
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Surroundings {
            disabled: number("/proc/sys/kernel/io_uring_disabled"),
            group: number("/proc/sys/kernel/io_uring_group"),
            filtered: status
                .lines()
                .any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2")),
            security: fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default(),
            locked: Some(super::limit(libc::RLIMIT_MEMLOCK).0),
            privileged: status
                .lines()
                .find_map(|line| line.strip_prefix("CapEff:"))
                .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
                .is_some_and(|set| set & 1 << CAP_SYS_ADMIN != 0),
        }
    }
}

/// One line for each place that filters come from.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
const SECCOMP_CURE: &str = "\
let the three calls pass. In a profile (start from the runtime's own default), under \"syscalls\":
{\"names\": [\"io_uring_setup\", \"io_uring_enter\", \"io_uring_register\"], \
\"action\": \"SCMP_ACT_ALLOW\"}
Docker, Podman, nerdctl: run with --security-opt seccomp=PROFILE.json
containerd: ctr run --seccomp --seccomp-profile PROFILE.json
Kubernetes: /var/lib/kubelet/seccomp/PROFILE.json on the node, and in the securityContext \
seccompProfile: {type: Localhost, localhostProfile: PROFILE.json}
systemd: in the unit, SystemCallFilter=io_uring_setup io_uring_enter io_uring_register, or take ~@aio \
out where calls are listed to be denied";

#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
const SECURITY_CURE: &str = "\
see the denial with `ausearch -m avc -ts recent` or `dmesg`
SELinux: allow the domain { create map read write } on its anon_inode [io_uring], and class io_uring \
(audit2allow writes the rule)
AppArmor: add `io_uring,` to the profile";

/// The cause of a refusal and its cure, by lines. Pure, so that every case can be tested anywhere.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
fn explain(call: Call, errno: i32, around: &Surroundings) -> Obstacle {
    let obstacle =
        |cause: &str, cure: &str| Obstacle { cause: cause.to_owned(), cure: cure.to_owned() };
    let name = match errno {
        libc::ENOSYS => "ENOSYS",
        libc::EPERM => "EPERM",
        libc::EACCES => "EACCES",
        _ => "",
    };
    match (call, errno) {
        // The kernel itself has no reason to refuse a ring that it has set up.
        (Call::Enter, libc::ENOSYS | libc::EPERM | libc::EACCES) => Obstacle {
            cause: format!(
                "{name}: a ring can be set up, but a seccomp filter denies io_uring_enter"
            ),
            cure: SECCOMP_CURE.to_owned(),
        },
        (Call::Enter, errno) => Obstacle {
            cause: format!("io_uring_enter: {}", std::io::Error::from_raw_os_error(errno)),
            cure: "not a known cause: strace -e io_uring_enter shows the call".to_owned(),
        },
        (_, libc::ENOSYS) if around.filtered => obstacle(
            "ENOSYS: a seccomp filter denies io_uring_setup, or this kernel lacks it",
            SECCOMP_CURE,
        ),
        (_, libc::ENOSYS) => obstacle(
            "ENOSYS: this kernel has no io_uring",
            "use Linux 5.19 or later, built with CONFIG_IO_URING=y (gVisor and WSL 1 have none)",
        ),
        (_, libc::EPERM) if around.disabled == Some(2) => obstacle(
            "EPERM: kernel.io_uring_disabled is 2, io_uring is switched off for everyone",
            "as root: sysctl -w kernel.io_uring_disabled=0
to keep it: echo kernel.io_uring_disabled=0 >/etc/sysctl.d/io_uring.conf",
        ),
        (_, libc::EPERM) if around.disabled == Some(1) && !around.privileged => {
            let group = around.group.unwrap_or(-1);
            let join = if group < 0 {
                "sysctl -w kernel.io_uring_group=GID with a group of this user".to_owned()
            } else {
                format!("add this user to the group {group}, which kernel.io_uring_group names")
            };
            Obstacle {
                cause: "EPERM: kernel.io_uring_disabled is 1, io_uring is for one group and for \
                        CAP_SYS_ADMIN only"
                    .to_owned(),
                cure: format!("as root: sysctl -w kernel.io_uring_disabled=0, or {join}"),
            }
        }
        (_, libc::EPERM) if around.filtered => obstacle(
            "EPERM: a seccomp filter denies io_uring_setup, as container runtimes do by default",
            SECCOMP_CURE,
        ),
        (_, libc::EACCES) if around.filtered && !around.confines() => obstacle(
            "EACCES: a seccomp filter denies io_uring_setup, and answers with this error",
            SECCOMP_CURE,
        ),
        (_, libc::EPERM | libc::EACCES) => Obstacle {
            cause: format!(
                "{name}: a security module denies it (in force: {}){}",
                if around.security.is_empty() { "unknown" } else { around.security.trim() },
                if around.filtered { ", or the seccomp filter over this process" } else { "" },
            ),
            cure: if around.filtered {
                format!("{SECURITY_CURE}\nthe filter: {SECCOMP_CURE}")
            } else {
                SECURITY_CURE.to_owned()
            },
        },
        (_, libc::ENOMEM) => Obstacle {
            cause: format!(
                "ENOMEM: no memory for a ring. Kernels before 5.12 and after 6.13 charge it to \
                 RLIMIT_MEMLOCK ({}) unless the process has CAP_IPC_LOCK, all later ones to the memory \
                 cgroup",
                around.locked.map_or("unknown".to_owned(), |bytes| match bytes {
                    u64::MAX => "unlimited".to_owned(),
                    bytes => format!("{} KiB", bytes / 1024),
                }),
            ),
            cure: "the limit: ulimit -l unlimited, LimitMEMLOCK=infinity in systemd, \
                   --ulimit memlock=-1 for a container
the cgroup: MemoryMax= in systemd, --memory for a container"
                .to_owned(),
        },
        (_, libc::EMFILE) => obstacle(
            "EMFILE: this process has no descriptor left for a ring",
            "ulimit -n 1048576, LimitNOFILE=1048576 in systemd, --ulimit nofile=1048576 for a \
             container",
        ),
        (_, libc::ENFILE) => obstacle(
            "ENFILE: this system has no open file left for a ring",
            "as root: sysctl -w fs.file-max=9223372036854775807",
        ),
        (_, other) => Obstacle {
            cause: format!("io_uring_setup: {}", std::io::Error::from_raw_os_error(other)),
            cure: "not a known cause: strace -e io_uring_setup shows the call".to_owned(),
        },
    }
}

#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
impl Surroundings {
    /// Whether a security module is in force that has a say about rings.
    fn confines(&self) -> bool {
        ["selinux", "apparmor", "smack", "bpf"].iter().any(|name| self.security.contains(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around(disabled: Option<u32>, filtered: bool) -> Surroundings {
        Surroundings { disabled, group: Some(-1), filtered, ..Surroundings::default() }
    }

    #[track_caller]
    fn check(call: Call, errno: i32, around: &Surroundings, cause: &str, cures: &[&str]) {
        let obstacle = explain(call, errno, around);
        assert!(obstacle.cause.contains(cause), "{errno}: {}", obstacle.cause);
        for cure in cures {
            assert!(obstacle.cure.contains(cure), "{errno}, {cure}: {}", obstacle.cure);
        }
    }

    const CALLS: [&str; 3] = ["io_uring_setup", "io_uring_enter", "io_uring_register"];

    #[test]
    fn a_kernel_without_io_uring() {
        let here = around(None, false);
        check(Call::Setup, libc::ENOSYS, &here, "no io_uring", &["CONFIG_IO_URING=y"]);
    }

    #[test]
    fn filters_name_every_runtime_and_every_call() {
        for errno in [libc::ENOSYS, libc::EPERM, libc::EACCES] {
            for call in [Call::Setup, Call::Enter] {
                let here = around(Some(0), true);
                check(call, errno, &here, "a seccomp filter denies", &CALLS);
                let runtimes = ["Docker", "Podman", "containerd", "Kubernetes", "systemd"];
                check(call, errno, &here, "seccomp", &runtimes);
                let lines = ["SCMP_ACT_ALLOW", "--security-opt seccomp=", "SystemCallFilter="];
                check(call, errno, &here, "seccomp", &lines);
            }
        }
        // What has set the ring up denies entering it by a filter only, whatever else is there.
        let here = Surroundings { security: "selinux".into(), ..around(Some(1), true) };
        check(Call::Enter, libc::EPERM, &here, "io_uring_enter", &CALLS);
    }

    #[test]
    fn the_profile_lines_are_json() {
        let line = SECCOMP_CURE.lines().find(|line| line.starts_with('{')).unwrap();
        let rule: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(rule["names"].as_array().unwrap().len(), 3);
        assert_eq!(rule["action"], "SCMP_ACT_ALLOW");
    }

    #[test]
    fn the_sysctl_at_two_and_at_one() {
        let two = around(Some(2), true);
        let lines = ["sysctl -w kernel.io_uring_disabled=0", "/etc/sysctl.d/"];
        check(Call::Setup, libc::EPERM, &two, "io_uring_disabled is 2", &lines);
        let one = around(Some(1), true);
        let lines = ["sysctl -w kernel.io_uring_disabled=0", "kernel.io_uring_group=GID"];
        check(Call::Setup, libc::EPERM, &one, "io_uring_disabled is 1", &lines);
        let group = Surroundings { group: Some(44), ..around(Some(1), false) };
        check(Call::Setup, libc::EPERM, &group, "io_uring_disabled is 1", &["group 44"]);
        // Root is not meant by 1.
        let root = Surroundings { privileged: true, ..around(Some(1), true) };
        check(Call::Setup, libc::EPERM, &root, "seccomp", &CALLS);
    }

    #[test]
    fn security_modules() {
        let lines = ["audit2allow", "AppArmor: add `io_uring,`"];
        for errno in [libc::EPERM, libc::EACCES] {
            let here = Surroundings { security: "lockdown,selinux".into(), ..around(None, false) };
            check(Call::Setup, errno, &here, "lockdown,selinux", &lines);
        }
        // Either may be the one.
        let both = Surroundings { security: "apparmor".into(), ..around(None, true) };
        check(Call::Setup, libc::EACCES, &both, "or the seccomp filter", &lines);
        check(Call::Setup, libc::EACCES, &both, "a security module", &CALLS);
    }

    #[test]
    fn limits() {
        let here = Surroundings { locked: Some(64 << 10), ..around(None, false) };
        let lines = ["ulimit -l unlimited", "LimitMEMLOCK=infinity", "memlock=-1", "MemoryMax="];
        check(Call::Setup, libc::ENOMEM, &here, "RLIMIT_MEMLOCK (64 KiB)", &lines);
        let lines = ["ulimit -n", "LimitNOFILE=", "--ulimit nofile="];
        check(Call::Setup, libc::EMFILE, &here, "EMFILE: this process", &lines);
        check(Call::Setup, libc::ENFILE, &here, "ENFILE: this system", &["fs.file-max"]);
        check(Call::Setup, libc::EINVAL, &here, "Invalid argument", &["strace"]);
        check(Call::Enter, libc::EBADF, &here, "io_uring_enter: Bad", &["strace"]);
    }
}
