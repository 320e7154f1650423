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
        let features =
            kapok_engine::uring::probe().map_err(|error| match error.raw_os_error() {
                Some(errno) => explain(errno, &Surroundings::look()),
                None => Obstacle {
                    cause: error.to_string(),
                    cure: "use Linux 5.19 or later".to_owned(),
                },
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
}

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
        }
    }
}

#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
const SECCOMP_CURE: &str = "let the container's seccomp profile pass these: in Docker's and Podman's \
    JSON add {\"names\": [\"io_uring_setup\", \"io_uring_enter\", \"io_uring_register\"], \
    \"action\": \"SCMP_ACT_ALLOW\"} to \"syscalls\" and start with --security-opt \
    seccomp=PROFILE.json; in systemd remove them from SystemCallFilter=";

#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
/// The cause of a refusal and its cure. Pure, so that every case can be tested anywhere.
fn explain(errno: i32, around: &Surroundings) -> Obstacle {
    let obstacle = |cause: String, cure: String| Obstacle { cause, cure };
    match errno {
        libc::ENOSYS if around.filtered => obstacle(
            "ENOSYS: a seccomp filter denies the system call, or this kernel lacks it".into(),
            SECCOMP_CURE.into(),
        ),
        libc::ENOSYS => obstacle(
            "ENOSYS: this kernel has no io_uring".into(),
            "use Linux 5.19 or later, built with CONFIG_IO_URING=y (gVisor and WSL 1 have none)"
                .into(),
        ),
        libc::EPERM if around.disabled == Some(2) => obstacle(
            "EPERM: kernel.io_uring_disabled is 2, io_uring is switched off for everyone".into(),
            "as root: sysctl -w kernel.io_uring_disabled=0 (and the same line in \
             /etc/sysctl.d/io_uring.conf to keep it)"
                .into(),
        ),
        libc::EPERM if around.disabled == Some(1) => {
            let group = around.group.unwrap_or(-1);
            let join = if group < 0 {
                "sysctl -w kernel.io_uring_group=GID with a group of this user".to_owned()
            } else {
                format!("add this user to the group {group}, which kernel.io_uring_group names")
            };
            obstacle(
                "EPERM: kernel.io_uring_disabled is 1, io_uring is for one group and for \
                 CAP_SYS_ADMIN only"
                    .into(),
                format!("as root: sysctl -w kernel.io_uring_disabled=0, or {join}"),
            )
        }
        libc::EPERM if around.filtered => obstacle(
            "EPERM: a seccomp filter denies the system call, as container runtimes do by default"
                .into(),
            SECCOMP_CURE.into(),
        ),
        libc::EPERM | libc::EACCES => obstacle(
            format!(
                "{}: a security module denies it (in force: {})",
                if errno == libc::EPERM { "EPERM" } else { "EACCES" },
                if around.security.is_empty() { "unknown" } else { around.security.trim() }
            ),
            "see the denial with `ausearch -m avc -ts recent` or `dmesg`; for SELinux allow the \
             domain { create map read write } on its anon_inode [io_uring] and class io_uring \
             (audit2allow writes the rule), for AppArmor add `io_uring,` to the profile"
                .into(),
        ),
        libc::ENOMEM => obstacle(
            "ENOMEM: the ring does not fit into RLIMIT_MEMLOCK, which kernels before 5.12 charge \
             it to"
                .into(),
            "ulimit -l unlimited, LimitMEMLOCK=infinity in systemd, --ulimit memlock=-1 for a \
             container"
                .into(),
        ),
        libc::EMFILE | libc::ENFILE => obstacle(
            "no descriptor is left for a ring".into(),
            "raise the limit (ulimit -n, LimitNOFILE=) or fs.file-max".into(),
        ),
        other => obstacle(
            format!("io_uring_setup: {}", std::io::Error::from_raw_os_error(other)),
            "not a known cause: strace -e io_uring_setup shows the call".into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around(disabled: Option<u32>, filtered: bool) -> Surroundings {
        Surroundings { disabled, group: Some(-1), filtered, security: String::new() }
    }

    #[test]
    fn every_refusal_has_its_own_cause_and_cure() {
        let cases = [
            (libc::ENOSYS, around(None, false), "no io_uring", "CONFIG_IO_URING"),
            (libc::ENOSYS, around(None, true), "seccomp", "io_uring_register"),
            (libc::EPERM, around(Some(2), true), "io_uring_disabled is 2", "io_uring_disabled=0"),
            (libc::EPERM, around(Some(1), false), "io_uring_disabled is 1", "io_uring_group=GID"),
            (libc::EPERM, around(Some(0), true), "seccomp", "io_uring_enter"),
            (libc::EPERM, around(Some(0), false), "security module", "audit2allow"),
            (libc::EACCES, around(Some(0), false), "EACCES", "AppArmor"),
            (libc::ENOMEM, around(None, false), "RLIMIT_MEMLOCK", "ulimit -l"),
            (libc::EMFILE, around(None, false), "descriptor", "LimitNOFILE"),
        ];
        for (errno, around, cause, cure) in cases {
            let obstacle = explain(errno, &around);
            assert!(obstacle.cause.contains(cause), "{errno}: {}", obstacle.cause);
            assert!(obstacle.cure.contains(cure), "{errno}: {}", obstacle.cure);
        }
        let group = Surroundings { group: Some(44), ..around(Some(1), false) };
        assert!(explain(libc::EPERM, &group).cure.contains("group 44"));
    }
}
