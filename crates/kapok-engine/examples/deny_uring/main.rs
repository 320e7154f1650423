//! Runs a program to which the kernel refuses io_uring: `deny_uring EPERM|ENOSYS|EACCES PROGRAM
//! [ARGS…]`.
//!
//! What containers and hardened hosts do, made on this machine: a seccomp filter answers
//! io_uring_setup(2) with the errno that was asked for and lets everything else through. The filter
//! stays across execve(2) and is inherited by every child. Programs on Kapok are expected to say so
//! in their log and to go on with epoll:
//!
//! ```text
//! cargo run -p kapok-engine --example deny_uring -- EPERM target/debug/kapok doctor
//! ```
//!
//! With `enter:` before the errno a ring can be set up, and it is io_uring_enter(2) that is refused.
//!
//! (After `cargo build`; the refusal is an answer of the filter, so it needs no privileges.)

#[cfg(target_os = "linux")]
#[allow(dead_code, reason = "tests use the rest")]
mod filter;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    linux::main()
}

#[cfg(not(target_os = "linux"))]
fn main() -> std::process::ExitCode {
    eprintln!("deny_uring: there is no io_uring to deny outside of Linux");
    std::process::ExitCode::FAILURE
}

#[cfg(target_os = "linux")]
mod linux {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, ExitCode};

    use super::filter::{self, Threads};

    pub(super) fn main() -> ExitCode {
        let mut arguments = std::env::args_os().skip(1);
        let refusal = arguments.next();
        let Some(refusal) = refusal.as_ref().and_then(|refusal| refusal.to_str()) else {
            return usage();
        };
        let (call, name) = match refusal.strip_prefix("enter:") {
            Some(name) => (libc::SYS_io_uring_enter, name),
            None => (libc::SYS_io_uring_setup, refusal),
        };
        let (Some(errno), Some(program)) = (filter::errno(name), arguments.next()) else {
            return usage();
        };
        if let Err(error) = filter::deny(&[call], errno, Threads::Calling) {
            eprintln!("deny_uring: the filter was refused: {error}");
            return ExitCode::FAILURE;
        }
        // Only returns if it failed.
        let error = Command::new(&program).args(arguments).exec();
        eprintln!("deny_uring: {}: {error}", program.display());
        ExitCode::FAILURE
    }

    fn usage() -> ExitCode {
        eprintln!("usage: deny_uring [enter:]EPERM|ENOSYS|EACCES PROGRAM [ARGS…]");
        ExitCode::from(2)
    }
}
