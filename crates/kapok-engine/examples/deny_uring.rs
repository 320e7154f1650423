//! Runs a program to which the kernel refuses io_uring: `deny_uring EPERM|ENOSYS PROGRAM [ARGS…]`.
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
//! (After `cargo build`; the refusal is an answer of the filter, so it needs no privileges.)

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
    use std::io;
    use std::mem::offset_of;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, ExitCode};

    pub(super) fn main() -> ExitCode {
        let mut arguments = std::env::args_os().skip(1);
        let errno = match arguments.next().as_ref().and_then(|name| name.to_str()) {
            Some("EPERM") => libc::EPERM,
            Some("ENOSYS") => libc::ENOSYS,
            _ => return usage(),
        };
        let Some(program) = arguments.next() else { return usage() };
        if let Err(error) = deny(errno) {
            eprintln!("deny_uring: the filter was refused: {error}");
            return ExitCode::FAILURE;
        }
        // Only returns if it failed.
        let error = Command::new(&program).args(arguments).exec();
        eprintln!("deny_uring: {}: {error}", program.display());
        ExitCode::FAILURE
    }

    fn usage() -> ExitCode {
        eprintln!("usage: deny_uring EPERM|ENOSYS PROGRAM [ARGS…]");
        ExitCode::from(2)
    }

    /// Has the kernel answer io_uring_setup with `errno` in this process from now on.
    fn deny(errno: i32) -> io::Result<()> {
        let statement = |code: u32, operand: u32| libc::sock_filter {
            code: code as u16,
            jt: 0,
            jf: 0,
            k: operand,
        };
        let skip_one_unless = |operand: u32| libc::sock_filter {
            jf: 1,
            ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, operand)
        };
        let number = offset_of!(libc::seccomp_data, nr) as u32;
        let refusal = libc::SECCOMP_RET_ERRNO | (errno as u32 & libc::SECCOMP_RET_DATA);
        let mut filter = [
            statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, number),
            skip_one_unless(libc::SYS_io_uring_setup as u32),
            statement(libc::BPF_RET | libc::BPF_K, refusal),
            statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the first call takes numbers only; the second copies a program that is as long as
        // it says and outlives the call.
        unsafe {
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(
                    libc::PR_SET_SECCOMP,
                    libc::SECCOMP_MODE_FILTER,
                    &raw const program,
                    0,
                    0,
                ) != 0
            {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}
