//! What the kernel says of a thread of this process: `/proc/self/task/TID`, see proc(5).

use std::time::Duration;

/// The system call that a thread is in: its name, or its number if that is not a common one. None if
/// it is in none, or where the kernel does not say.
pub(super) fn system_call(thread_id: i32) -> Option<String> {
    let text = read(thread_id, "syscall")?;
    let mut fields = text.split_whitespace();
    let number: i64 = fields.next()?.parse().ok().filter(|&number| number >= 0)?;
    let first =
        fields.next().and_then(|text| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok());
    Some(match (name(number), first) {
        (Some((name, true)), Some(fd)) => format!("{name}(2) on descriptor {}", fd as i32),
        (Some((name, _)), _) => format!("{name}(2)"),
        (None, _) => format!("system call {number}"),
    })
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
