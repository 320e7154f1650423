//! A seccomp filter that answers system calls with an errno: what containers and hardened hosts do
//! to io_uring, made anywhere. It needs no privileges, and can never be taken off again.

use std::io;
use std::mem::offset_of;

/// Which threads a filter is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Threads {
    /// The calling one, and those that it starts from now on.
    Calling,
    /// Every one of the process.
    All,
}

/// The names by which the errnos of a refusal go.
pub(crate) fn errno(name: &str) -> Option<i32> {
    match name {
        "EPERM" => Some(libc::EPERM),
        "ENOSYS" => Some(libc::ENOSYS),
        "EACCES" => Some(libc::EACCES),
        _ => None,
    }
}

/// Has the kernel answer these system calls with `errno` from now on, and let all others through.
pub(crate) fn deny(calls: &[libc::c_long], errno: i32, threads: Threads) -> io::Result<()> {
    let statement =
        |code: u32, operand: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k: operand };
    let refusal = libc::SECCOMP_RET_ERRNO | (errno as u32 & libc::SECCOMP_RET_DATA);
    let number = offset_of!(libc::seccomp_data, nr) as u32;
    let mut filter = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, number)];
    for &call in calls {
        let equal = statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call as u32);
        // Anything else skips the refusal.
        filter.push(libc::sock_filter { jf: 1, ..equal });
        filter.push(statement(libc::BPF_RET | libc::BPF_K, refusal));
    }
    filter.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    let flags = match threads {
        Threads::Calling => 0,
        Threads::All => libc::SECCOMP_FILTER_FLAG_TSYNC,
    };
    // SAFETY: the first call takes numbers only; the second copies a program that is as long as it
    // says and outlives the call.
    let res = unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    };
    match res {
        0 => Ok(()),
        // The first thread that could not be brought under the filter.
        thread if thread > 0 => {
            Err(io::Error::other(format!("thread {thread} has another filter")))
        }
        _ => Err(io::Error::last_os_error()),
    }
}
