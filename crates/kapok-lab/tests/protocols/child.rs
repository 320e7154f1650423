//! Tests that need a process of their own: for its limits, or for its CPU time.

use std::env;
use std::fs;
use std::io;
use std::process::Command;
use std::time::Duration;

const CHILD: &str = "KAPOK_TEST_CHILD";

/// Runs `body` in a child process: the test binary again, told to run the test `name` alone.
pub(crate) fn in_child(name: &str, body: impl FnOnce()) {
    if env::var_os(CHILD).is_some() {
        return body();
    }
    let name = name.split_once("::").expect("a path in this crate").1;
    let output = Command::new(env::current_exe().expect("a path"))
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .expect("the child ran");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "in the child: {said}{complained}");
    assert!(said.contains("1 passed"), "the child did not run {name}: {said}");
}

/// User and system time of this process so far.
pub(crate) fn cpu_time() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: getrusage fills the structure that it is given.
    let usage = unsafe {
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()), 0);
        usage.assume_init()
    };
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// Memory of this process that is in RAM.
pub(crate) fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").expect("procfs");
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.expect("the second field is the resident pages") * 4096
}

/// Sets a soft limit of this process, up to the hard one.
pub(crate) fn limit(resource: libc::__rlimit_resource_t, value: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls use the local structure only.
    let set = unsafe {
        libc::getrlimit(resource, &mut limit) == 0 && {
            limit.rlim_cur = value.min(limit.rlim_max);
            libc::setrlimit(resource, &limit) == 0
        }
    };
    assert!(set, "setrlimit: {}", io::Error::last_os_error());
    assert_eq!(limit.rlim_cur, value, "the hard limit is too low for this test");
}

/// Makes a test of each function for each model named, in a child process.
macro_rules! in_child_over_models {
    ($($test:ident: $($name:ident $model:ident),+;)+) => {
        $(
            mod $test {
                $(
                    #[test]
                    fn $name() {
                        crate::child::in_child(concat!(module_path!(), "::", stringify!($name)), || {
                            super::super::$test(kapok_lab::Model::$model);
                        });
                    }
                )+
            }
        )+
    };
}
