//! What the kernel says of a thread of this process: `/proc/self/task/TID`, see proc(5).

use std::time::Duration;

/// The system call that a thread is in: its name, or its number if that is not a common one. If it waits
/// in the kernel and in none of them, as in a fault for a page on a disk, or if that is not told, the
/// function of the kernel in which it waits. None if it runs, or where the kernel does not say.
pub(super) fn system_call(thread_id: i32) -> Option<String> {
    let Some(text) = read(thread_id, "syscall") else {
        return waits_in(thread_id).map(|function| format!("{function} of the kernel"));
    };
    let mut fields = text.split_whitespace();
    // A thread that runs has a word here.
    let number: i64 = fields.next()?.parse().ok()?;
    if number < 0 {
        let function = waits_in(thread_id)?;
        return Some(format!("{function} of the kernel, by no system call (a page fault)"));
    }
    let first =
        fields.next().and_then(|text| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok());
    Some(match (name(number), first) {
        (Some((name, true)), Some(fd)) => format!("{name}(2) on descriptor {}", fd as i32),
        (Some((name, _)), _) => format!("{name}(2)"),
        (None, _) => format!("system call {number}"),
    })
}

/// The function of the kernel in which a thread waits.
fn waits_in(thread_id: i32) -> Option<String> {
    read(thread_id, "wchan").filter(|function| !["", "0"].contains(&function.as_str()))
}

/// How long a thread has been ready and had no processor, since it began. Zero where the kernel does
/// not count it.
pub(super) fn queued(thread_id: i32) -> Duration {
    let nanos = read(thread_id, "schedstat")
        .and_then(|text| text.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0);
    Duration::from_nanos(nanos)
}

fn read(thread_id: i32, what: &str) -> Option<String> {
    // Elsewhere there is no such file.
    std::fs::read_to_string(format!("/proc/self/task/{thread_id}/{what}")).ok()
}

/// System calls in which threads block, and whether their first argument is a descriptor.
fn name(number: i64) -> Option<(&'static str, bool)> {
    #[cfg(target_os = "linux")]
    {
        macro_rules! calls {
            ($($call:ident $name:literal $has_fd:literal)*) => {
                [$((libc::$call as i64, $name, $has_fd)),*]
            };
        }
        const CALLS: &[(i64, &str, bool)] = &calls! {
            SYS_read "read" true
            SYS_write "write" true
            SYS_readv "readv" true
            SYS_writev "writev" true
            SYS_pread64 "pread" true
            SYS_pwrite64 "pwrite" true
            SYS_recvfrom "recv" true
            SYS_sendto "send" true
            SYS_recvmsg "recvmsg" true
            SYS_sendmsg "sendmsg" true
            SYS_accept "accept" true
            SYS_accept4 "accept4" true
            SYS_connect "connect" true
            SYS_close "close" true
            SYS_openat "openat" false
            SYS_fsync "fsync" true
            SYS_fdatasync "fdatasync" true
            SYS_flock "flock" true
            SYS_fcntl "fcntl" true
            SYS_ioctl "ioctl" true
            SYS_sendfile "sendfile" true
            SYS_ppoll "ppoll" false
            SYS_pselect6 "pselect" false
            SYS_epoll_pwait "epoll_pwait" true
            SYS_io_uring_enter "io_uring_enter" true
            SYS_futex "futex" false
            SYS_nanosleep "nanosleep" false
            SYS_clock_nanosleep "clock_nanosleep" false
            SYS_wait4 "wait4" false
            SYS_waitid "waitid" false
            // A sleep or a wait that was interrupted and goes on; which one is not said.
            SYS_restart_syscall "restart_syscall" false
            SYS_preadv "preadv" true
            SYS_pwritev "pwritev" true
            SYS_preadv2 "preadv2" true
            SYS_pwritev2 "pwritev2" true
            SYS_recvmmsg "recvmmsg" true
            SYS_sendmmsg "sendmmsg" true
            SYS_splice "splice" true
            SYS_tee "tee" true
            SYS_vmsplice "vmsplice" true
            SYS_copy_file_range "copy_file_range" true
            SYS_fallocate "fallocate" true
            SYS_ftruncate "ftruncate" true
            SYS_sync_file_range "sync_file_range" true
            SYS_syncfs "syncfs" true
            SYS_sync "sync" false
            SYS_getdents64 "getdents64" true
            SYS_unlinkat "unlinkat" false
            SYS_renameat2 "renameat2" false
            SYS_mkdirat "mkdirat" false
            SYS_newfstatat "newfstatat" false
            SYS_statx "statx" false
            SYS_execve "execve" false
            // As fork(3), popen(3), system(3) and posix_spawn(3) make children, waiting for their exec.
            SYS_clone "clone" false
            SYS_clone3 "clone3" false
            SYS_exit_group "exit_group" false
            SYS_epoll_pwait2 "epoll_pwait2" true
            SYS_futex_waitv "futex_waitv" false
            SYS_rt_sigtimedwait "sigtimedwait" false
            SYS_rt_sigsuspend "sigsuspend" false
            SYS_msgrcv "msgrcv" false
            SYS_msgsnd "msgsnd" false
            SYS_semop "semop" false
            SYS_semtimedop "semtimedop" false
            SYS_mq_timedreceive "mq_receive" true
            SYS_mq_timedsend "mq_send" true
            SYS_getrandom "getrandom" false
            SYS_sched_yield "sched_yield" false
            SYS_msync "msync" false
            SYS_mlock "mlock" false
            SYS_mmap "mmap" false
            SYS_munmap "munmap" false
            SYS_madvise "madvise" false
        };
        #[cfg(target_arch = "x86_64")]
        const OLD_CALLS: &[(i64, &str, bool)] = &calls! {
            SYS_open "open" false
            SYS_poll "poll" false
            SYS_select "select" false
            SYS_epoll_wait "epoll_wait" true
            SYS_pause "pause" false
            SYS_vfork "vfork" false
            SYS_fork "fork" false
            SYS_stat "stat" false
            SYS_unlink "unlink" false
            SYS_rename "rename" false
        };
        #[cfg(not(target_arch = "x86_64"))]
        const OLD_CALLS: &[(i64, &str, bool)] = &[];
        let found = CALLS.iter().chain(OLD_CALLS).find(|(one, ..)| *one == number);
        found.map(|&(_, name, has_fd)| (name, has_fd))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = number;
        None
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn names_the_call_that_a_thread_sleeps_in() {
        let (tell, told) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let sleeper = std::thread::spawn(move || {
            tell.send(crate::runtime::current_thread_id()).unwrap();
            let _ = stopped.recv();
        });
        let thread_id = told.recv().unwrap();
        let found = (0..1000).find_map(|_| {
            std::thread::sleep(Duration::from_millis(1));
            system_call(thread_id)
        });
        assert_eq!(found.as_deref(), Some("futex(2)"));
        drop(stop);
        sleeper.join().unwrap();
    }
}
