//! What the numbers of system calls and of io_uring's operations are called.

use super::kernel::KernelCounter;

/// Names by the numbers that libc has for them on this machine's architecture.
macro_rules! calls {
    ($($(#[$only:meta])? $name:ident = $number:ident),+ $(,)?) => {
        const CALLS: &[(libc::c_long, &str)] =
            &[$($(#[$only])? (libc::$number, stringify!($name)),)+];
    };
}

calls! {
    read = SYS_read, write = SYS_write, readv = SYS_readv, writev = SYS_writev,
    pread64 = SYS_pread64, pwrite64 = SYS_pwrite64, preadv = SYS_preadv, pwritev = SYS_pwritev,
    preadv2 = SYS_preadv2, pwritev2 = SYS_pwritev2, sendfile = SYS_sendfile, splice = SYS_splice,
    tee = SYS_tee, vmsplice = SYS_vmsplice, copy_file_range = SYS_copy_file_range,
    openat = SYS_openat, openat2 = SYS_openat2, close = SYS_close, close_range = SYS_close_range,
    fstat = SYS_fstat, newfstatat = SYS_newfstatat, statx = SYS_statx, lseek = SYS_lseek,
    fsync = SYS_fsync, fdatasync = SYS_fdatasync, sync_file_range = SYS_sync_file_range,
    ftruncate = SYS_ftruncate, fallocate = SYS_fallocate, fcntl = SYS_fcntl, ioctl = SYS_ioctl,
    flock = SYS_flock, getdents64 = SYS_getdents64, unlinkat = SYS_unlinkat,
    renameat2 = SYS_renameat2, mkdirat = SYS_mkdirat, faccessat = SYS_faccessat,
    readlinkat = SYS_readlinkat, dup = SYS_dup, dup3 = SYS_dup3, pipe2 = SYS_pipe2,
    socket = SYS_socket, socketpair = SYS_socketpair, bind = SYS_bind, listen = SYS_listen,
    accept = SYS_accept, accept4 = SYS_accept4, connect = SYS_connect, shutdown = SYS_shutdown,
    sendto = SYS_sendto, recvfrom = SYS_recvfrom, sendmsg = SYS_sendmsg, recvmsg = SYS_recvmsg,
    sendmmsg = SYS_sendmmsg, recvmmsg = SYS_recvmmsg, setsockopt = SYS_setsockopt,
    getsockopt = SYS_getsockopt, getsockname = SYS_getsockname, getpeername = SYS_getpeername,
    epoll_create1 = SYS_epoll_create1, epoll_ctl = SYS_epoll_ctl, epoll_pwait = SYS_epoll_pwait,
    epoll_pwait2 = SYS_epoll_pwait2, ppoll = SYS_ppoll, pselect6 = SYS_pselect6,
    eventfd2 = SYS_eventfd2, timerfd_create = SYS_timerfd_create,
    timerfd_settime = SYS_timerfd_settime, signalfd4 = SYS_signalfd4,
    io_uring_setup = SYS_io_uring_setup, io_uring_enter = SYS_io_uring_enter,
    io_uring_register = SYS_io_uring_register, io_setup = SYS_io_setup, io_submit = SYS_io_submit,
    io_getevents = SYS_io_getevents, futex = SYS_futex, nanosleep = SYS_nanosleep,
    clock_nanosleep = SYS_clock_nanosleep, clock_gettime = SYS_clock_gettime,
    sched_yield = SYS_sched_yield, sched_setaffinity = SYS_sched_setaffinity,
    sched_getaffinity = SYS_sched_getaffinity, mmap = SYS_mmap, munmap = SYS_munmap,
    mprotect = SYS_mprotect, madvise = SYS_madvise, mremap = SYS_mremap, brk = SYS_brk,
    mlock = SYS_mlock, msync = SYS_msync, clone = SYS_clone, clone3 = SYS_clone3,
    execve = SYS_execve, exit = SYS_exit, exit_group = SYS_exit_group, wait4 = SYS_wait4,
    waitid = SYS_waitid, kill = SYS_kill, tgkill = SYS_tgkill, getpid = SYS_getpid,
    gettid = SYS_gettid, getppid = SYS_getppid, getuid = SYS_getuid, umask = SYS_umask,
    prctl = SYS_prctl, prlimit64 = SYS_prlimit64, getrusage = SYS_getrusage, uname = SYS_uname,
    sysinfo = SYS_sysinfo, getrandom = SYS_getrandom, rseq = SYS_rseq,
    membarrier = SYS_membarrier, memfd_create = SYS_memfd_create, ptrace = SYS_ptrace,
    rt_sigaction = SYS_rt_sigaction, rt_sigprocmask = SYS_rt_sigprocmask,
    rt_sigreturn = SYS_rt_sigreturn, rt_sigsuspend = SYS_rt_sigsuspend,
    rt_sigtimedwait = SYS_rt_sigtimedwait, sigaltstack = SYS_sigaltstack,
    set_robust_list = SYS_set_robust_list, set_tid_address = SYS_set_tid_address,
    restart_syscall = SYS_restart_syscall, setitimer = SYS_setitimer, times = SYS_times,
    gettimeofday = SYS_gettimeofday, perf_event_open = SYS_perf_event_open, bpf = SYS_bpf,
    #[cfg(target_arch = "x86_64")] open = SYS_open,
    #[cfg(target_arch = "x86_64")] stat = SYS_stat,
    #[cfg(target_arch = "x86_64")] lstat = SYS_lstat,
    #[cfg(target_arch = "x86_64")] access = SYS_access,
    #[cfg(target_arch = "x86_64")] poll = SYS_poll,
    #[cfg(target_arch = "x86_64")] select = SYS_select,
    #[cfg(target_arch = "x86_64")] epoll_wait = SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")] epoll_create = SYS_epoll_create,
    #[cfg(target_arch = "x86_64")] eventfd = SYS_eventfd,
    #[cfg(target_arch = "x86_64")] pipe = SYS_pipe,
    #[cfg(target_arch = "x86_64")] dup2 = SYS_dup2,
    #[cfg(target_arch = "x86_64")] fork = SYS_fork,
    #[cfg(target_arch = "x86_64")] vfork = SYS_vfork,
    #[cfg(target_arch = "x86_64")] pause = SYS_pause,
    #[cfg(target_arch = "x86_64")] unlink = SYS_unlink,
    #[cfg(target_arch = "x86_64")] rename = SYS_rename,
    #[cfg(target_arch = "x86_64")] mkdir = SYS_mkdir,
    #[cfg(target_arch = "x86_64")] readlink = SYS_readlink,
    #[cfg(target_arch = "x86_64")] arch_prctl = SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")] time = SYS_time,
}

/// What a system call is called, as strace(1) has it; `call 471` for one that is not known here.
#[must_use]
pub fn call_name(number: u32) -> String {
    let known = CALLS.iter().find(|(call, _)| *call == libc::c_long::from(number));
    known.map_or_else(|| format!("call {number}"), |(_, name)| (*name).to_owned())
}

/// What an operation of io_uring is called, as in `io_uring_prep_*` of liburing.
#[must_use]
pub fn operation_name(number: u8) -> String {
    if number == KernelCounter::BEGUN_BEFORE {
        return "(begun before)".into();
    }
    let helpers = kapok_engine::entry::OPERATIONS
        .iter()
        .filter(|operation| operation.opcode == number)
        .filter_map(|operation| operation.prep.strip_prefix("io_uring_prep_"));
    // Several helpers make variants of one operation: the plainest names it.
    helpers
        .min_by_key(|name| name.len())
        .map_or_else(|| format!("operation {number}"), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_names_that_everybody_uses() {
        let number = |call: libc::c_long| u32::try_from(call).unwrap();
        assert_eq!(call_name(number(libc::SYS_recvfrom)), "recvfrom");
        assert_eq!(call_name(number(libc::SYS_io_uring_enter)), "io_uring_enter");
        assert_eq!(call_name(599), "call 599");
        assert_eq!((operation_name(27).as_str(), operation_name(13).as_str()), ("recv", "accept"));
        assert_eq!(operation_name(250), "operation 250");
    }

    #[test]
    fn no_number_has_two_names() {
        let mut numbers: Vec<_> = CALLS.iter().map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), CALLS.len());
    }
}
