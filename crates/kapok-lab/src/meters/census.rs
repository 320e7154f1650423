//! One census of what a process asks of the kernel, in whichever way this machine allows.

use std::fmt;
use std::io;

use super::counts::{CallCount, Counts};
use super::kernel::KernelCounter;
use super::perf::TracepointCounter;
use super::ptrace::TraceCounter;

/// How it was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CensusSource {
    /// By programs on the kernel's tracepoints: system calls by kind with their times, operations of
    /// io_uring, wake-ups. Nothing is stopped or woken for it.
    Programs,
    /// By perf counters on a tracepoint: the number of system calls, of all kinds together.
    Counters,
    /// By stopping each thread at each call (ptrace): system calls by kind. What is watched is many
    /// times slower, so figures per request are estimates.
    Tracing,
}

impl fmt::Display for CensusSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CensusSource::Programs => "programs on the kernel's tracepoints",
            CensusSource::Counters => "a counter on the tracepoint raw_syscalls:sys_enter",
            CensusSource::Tracing => "ptrace",
        })
    }
}

/// How much is counted in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// System calls and submissions to io_uring by kind: some per cent of a busy server's CPU time.
    Counts,
    /// Beside that how long calls take and how they end, completions of io_uring, and wake-ups: two to
    /// three times as much.
    Everything,
}

/// Counts what processes ask of the kernel, from its making until it is dropped.
#[derive(Debug)]
pub struct Census {
    way: Way,
    depth: Depth,
    missing: Vec<String>,
}

#[derive(Debug)]
enum Way {
    Programs(KernelCounter),
    Counters(Vec<TracepointCounter>),
    Tracing(TraceCounter),
}

impl Census {
    /// Counts `processes` and their children, those they have and those they make from now on, in the
    /// kernel. What is watched runs on as it did, but for some tens of nanoseconds a call.
    ///
    /// # Errors
    ///
    /// Neither programs nor perf counters are allowed: both reasons.
    pub fn in_kernel(processes: &[u32], depth: Depth) -> io::Result<Census> {
        let by_programs = match KernelCounter::of(processes, depth) {
            Ok(counter) => {
                let missing = counter.missing().to_vec();
                return Ok(Census { way: Way::Programs(counter), depth, missing });
            }
            Err(error) => error,
        };
        let counters: io::Result<Vec<_>> =
            processes.iter().map(|&process| TracepointCounter::of(process)).collect();
        match counters {
            Ok(counters) => {
                let missing = vec![format!(
                    "system calls by kind, operations of io_uring and wake-ups: a program on \
                     tracepoints was refused ({by_programs})"
                )];
                Ok(Census { way: Way::Counters(counters), depth: Depth::Counts, missing })
            }
            Err(error) => Err(io::Error::new(
                error.kind(),
                format!(
                    "a program on tracepoints was refused ({by_programs}), a counter too ({error})"
                ),
            )),
        }
    }

    /// [`Everything`](Depth::Everything), as [`in_kernel`](Census::in_kernel), and where that is refused, or cannot tell kinds of system
    /// calls apart, by tracing one process, which slows it down.
    ///
    /// # Errors
    ///
    /// Nothing of it is allowed: all reasons.
    pub fn at_any_price(process: u32) -> io::Result<Census> {
        let in_kernel = Census::in_kernel(&[process], Depth::Everything);
        if let Ok(Census { way: Way::Programs(_), .. }) = in_kernel {
            return in_kernel;
        }
        let reason = match &in_kernel {
            Ok(census) => census.missing.join("; "),
            Err(error) => error.to_string(),
        };
        match Census::by_tracing(process) {
            Ok(mut census) => {
                census.missing = vec![format!("operations of io_uring and wake-ups: {reason}")];
                Ok(census)
            }
            // The total at least, if there is one.
            Err(error) => in_kernel.map_err(|_| {
                io::Error::new(error.kind(), format!("{reason}, and tracing as well ({error})"))
            }),
        }
    }

    /// Counts one process by stopping its threads at each call.
    ///
    /// # Errors
    ///
    /// It may not be traced: another user's, or a sandbox.
    pub fn by_tracing(process: u32) -> io::Result<Census> {
        let missing =
            vec!["operations of io_uring and wake-ups: a tracer does not see them".into()];
        let way = Way::Tracing(TraceCounter::of(process)?);
        Ok(Census { way, depth: Depth::Counts, missing })
    }

    /// How much is counted.
    #[must_use]
    pub fn depth(&self) -> Depth {
        self.depth
    }

    /// How it is counted.
    #[must_use]
    pub fn source(&self) -> CensusSource {
        match self.way {
            Way::Programs(_) => CensusSource::Programs,
            Way::Counters(_) => CensusSource::Counters,
            Way::Tracing(_) => CensusSource::Tracing,
        }
    }

    /// What is not counted, each with its reason.
    #[must_use]
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Everything since the census began. It takes no locks that what is watched would wait for.
    ///
    /// # Errors
    ///
    /// The counters cannot be read any more.
    pub fn read(&mut self) -> io::Result<Counts> {
        match &mut self.way {
            Way::Programs(counter) => counter.read(),
            Way::Counters(counters) => {
                let mut counts = Counts::default();
                for counter in counters {
                    counts.total += counter.read()?;
                }
                Ok(counts)
            }
            Way::Tracing(counter) => {
                let kinds = counter.kinds().into_iter();
                let calls = kinds
                    .map(|(number, made)| (number, CallCount { made, ..CallCount::default() }));
                Ok(Counts {
                    total: counter.read(),
                    calls: Some(calls.collect()),
                    ..Counts::default()
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn call(number: libc::c_long) -> u32 {
        u32::try_from(number).unwrap()
    }

    /// A census of this process in the kernel; `None` where an ordinary user may not.
    fn own() -> Option<Census> {
        match Census::in_kernel(&[std::process::id()], Depth::Everything) {
            Ok(census) if census.source() == CensusSource::Programs => Some(census),
            Ok(_) | Err(_) if !is_root() => None,
            other => panic!("root may count: {other:?}"),
        }
    }

    fn is_root() -> bool {
        // SAFETY: geteuid takes nothing.
        unsafe { libc::geteuid() == 0 }
    }

    #[test]
    fn calls_are_counted_by_kind_with_their_errors_and_times() {
        let Some(mut census) = own() else { return };
        let before = census.read().unwrap();
        for _ in 0..1000 {
            // SAFETY: takes a number. No shell that another test starts makes this call.
            unsafe { libc::syscall(libc::SYS_sched_get_priority_max, 0) };
        }
        for _ in 0..7 {
            // SAFETY: the file is none and nothing is written.
            unsafe { libc::syscall(libc::SYS_fdatasync, -1) };
        }
        std::thread::sleep(std::time::Duration::from_millis(60));
        let came = census.read().unwrap().since(&before);
        let calls = came.calls.unwrap();
        let frequent = calls[&call(libc::SYS_sched_get_priority_max)];
        assert_eq!((frequent.made, frequent.errors()), (1000, Some(0)));
        let timed = frequent.timed;
        assert!((256..900).contains(&timed), "some of a frequent kind: {timed}");
        let refused = calls[&call(libc::SYS_fdatasync)];
        assert_eq!((refused.made, refused.errors(), refused.would_block()), (7, Some(7), Some(0)));
        let sleep = calls[&call(libc::SYS_clock_nanosleep)];
        assert!(sleep.nanoseconds().unwrap() >= 59_000_000, "{sleep:?}");
        assert!(came.total >= 1008);
        assert!(came.wakes_taken.unwrap() >= 1, "the sleep ended");
    }

    #[test]
    fn threads_that_begin_later_and_children_are_counted() {
        let Some(mut census) = own() else { return };
        let before = census.read().unwrap();
        std::thread::spawn(|| {
            for _ in 0..300 {
                // SAFETY: getpgrp takes nothing.
                unsafe { libc::syscall(libc::SYS_getpriority, 0, 0) };
            }
        })
        .join()
        .unwrap();
        let made = |census: &mut Census, number| {
            let calls = census.read().unwrap().since(&before).calls.unwrap();
            calls.get(&call(number)).map_or(0, |call| call.made)
        };
        assert_eq!(made(&mut census, libc::SYS_getpriority), 300);
        let execs = made(&mut census, libc::SYS_execve);
        assert!(Command::new("true").stdout(Stdio::null()).status().unwrap().success());
        assert!(made(&mut census, libc::SYS_execve) > execs, "the child's own call");
    }

    #[test]
    fn a_process_that_is_not_watched_is_not_counted() {
        if !is_root() {
            return;
        }
        let mut other = Command::new("sleep").arg("600").spawn().unwrap();
        let mut census = Census::in_kernel(&[other.id()], Depth::Counts).unwrap();
        for _ in 0..100 {
            // SAFETY: getsid takes a number.
            unsafe { libc::syscall(libc::SYS_getsid, 0) };
        }
        let counts = census.read().unwrap();
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(counts.calls.unwrap().get(&call(libc::SYS_getsid)), None);
    }

    /// Binds the calling thread.
    fn pin_to(core: usize) {
        // SAFETY: all zeros is an empty set, which is written to and read within this.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(core, &mut set);
            libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
        }
    }

    /// A process of ours in which nothing runs but `child`.
    struct Forked(libc::pid_t);

    impl Forked {
        /// # Safety
        ///
        /// `child` takes no locks: who holds them was left behind.
        unsafe fn new(child: impl FnOnce()) -> Forked {
            // SAFETY: the child does what `child` does, whose maker has promised the above, and ends.
            let process = unsafe { libc::fork() };
            if process == 0 {
                child();
                // SAFETY: takes a number.
                unsafe { libc::_exit(0) };
            }
            assert!(process > 0);
            Forked(process)
        }
    }

    impl Drop for Forked {
        fn drop(&mut self) {
            // SAFETY: only numbers are passed; the process is ours and not reaped.
            unsafe {
                libc::kill(self.0, libc::SIGKILL);
                libc::waitpid(self.0, std::ptr::null_mut(), 0);
            }
        }
    }

    fn write_byte(pipe: libc::c_int) -> bool {
        // SAFETY: one byte is read from where one is.
        unsafe { libc::write(pipe, [1_u8].as_ptr().cast(), 1) == 1 }
    }

    fn read_byte(pipe: libc::c_int) -> bool {
        let mut byte = 0_u8;
        // SAFETY: one byte is written to where one has room.
        unsafe { libc::read(pipe, (&raw mut byte).cast(), 1) == 1 }
    }

    #[test]
    fn who_wakes_a_thread_on_another_processor_has_woken_it() {
        use std::os::fd::AsRawFd;
        if !is_root() || std::thread::available_parallelism().is_ok_and(|cores| cores.get() < 2) {
            return;
        }
        let (reader, writer) = io::pipe().unwrap();
        let (taken, take) = io::pipe().unwrap();
        let (reader, writer) = (reader.as_raw_fd(), writer.as_raw_fd());
        let (taken, take) = (taken.as_raw_fd(), take.as_raw_fd());
        // SAFETY: it makes system calls on open descriptors only.
        let child = unsafe {
            Forked::new(|| {
                pin_to(0);
                read_byte(taken);
                for _ in 0..1000 {
                    write_byte(writer);
                    read_byte(taken);
                    // Until the reader waits again.
                    libc::usleep(200);
                }
                libc::pause();
            })
        };
        let mut census = Census::in_kernel(&[child.0 as u32], Depth::Everything).unwrap();
        let before = census.read().unwrap();
        std::thread::spawn(move || {
            pin_to(1);
            write_byte(take);
            for _ in 0..1000 {
                assert!(read_byte(reader) && write_byte(take));
            }
        })
        .join()
        .unwrap();
        let given = census.read().unwrap().since(&before).wakes_given.unwrap();
        assert!((900..3000).contains(&given), "{given} of 1,000");
    }

    #[test]
    fn a_process_is_counted_for_as_long_as_one_of_its_threads_runs() {
        use std::os::fd::AsRawFd;
        if !is_root() {
            return;
        }
        let (taken, take) = io::pipe().unwrap();
        let (done, doing) = io::pipe().unwrap();
        let pipes = [taken.as_raw_fd(), doing.as_raw_fd()];
        extern "C" fn second(pipes: *mut libc::c_void) -> *mut libc::c_void {
            // SAFETY: its maker's, who waits for good.
            let [taken, doing] = unsafe { *pipes.cast::<[libc::c_int; 2]>() };
            read_byte(taken);
            for _ in 0..300 {
                // SAFETY: takes a number.
                unsafe { libc::syscall(libc::SYS_sched_get_priority_min, 0) };
            }
            write_byte(doing);
            read_byte(taken);
            std::ptr::null_mut()
        }
        // SAFETY: the C library sees to its own locks in a child; beyond it, system calls are made.
        let child = unsafe {
            Forked::new(|| {
                let mut thread = std::mem::zeroed();
                let argument = (&raw const pipes).cast_mut().cast();
                read_byte(pipes[0]);
                libc::pthread_create(&raw mut thread, std::ptr::null(), second, argument);
                // This thread alone, whose stack stays.
                libc::syscall(libc::SYS_exit, 0);
            })
        };
        // The first that is watched is known by its number, whatever became of it: this one is the second.
        // SAFETY: it makes a system call that takes nothing.
        let first = unsafe {
            Forked::new(|| {
                libc::pause();
            })
        };
        let watched = [first.0 as u32, child.0 as u32];
        let mut census = Census::in_kernel(&watched, Depth::Counts).unwrap();
        write_byte(take.as_raw_fd());
        let begun = std::time::Instant::now();
        let stat = format!("/proc/{0}/task/{0}/stat", child.0);
        while !std::fs::read_to_string(&stat).unwrap().contains(") Z ") {
            assert!(begun.elapsed().as_secs() < 60, "its first thread does not end");
            std::thread::yield_now();
        }
        write_byte(take.as_raw_fd());
        assert!(read_byte(done.as_raw_fd()));
        let calls = census.read().unwrap().calls.unwrap();
        let made = calls.get(&call(libc::SYS_sched_get_priority_min)).map(|call| call.made);
        assert_eq!(made, Some(300));
    }

    #[test]
    fn children_that_were_there_before_are_counted() {
        use std::io::{Read, Write};
        if !is_root() {
            return;
        }
        let script = "sh -c 'echo ready; read go; umask; umask; echo done; read end'; :";
        let mut shell = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        shell.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
        let mut census = Census::in_kernel(&[shell.id()], Depth::Counts).unwrap();
        shell.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        // Two masks of four digits each, and the word.
        shell.stdout.as_mut().unwrap().read_exact(&mut [0; 15]).unwrap();
        let calls = census.read().unwrap().calls.unwrap();
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert!(calls.get(&call(libc::SYS_umask)).is_some_and(|call| call.made >= 2), "{calls:?}");
    }

    #[test]
    fn counts_alone_are_the_same_counts() {
        let Some(mut everything) = own() else { return };
        let mut alone = Census::in_kernel(&[std::process::id()], Depth::Counts).unwrap();
        let before = (alone.read().unwrap(), everything.read().unwrap());
        for _ in 0..500 {
            // SAFETY: takes a number. Neither another test here nor a shell that one starts makes this call.
            unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) };
        }
        let counts = alone.read().unwrap().since(&before.0);
        let all = everything.read().unwrap().since(&before.1);
        let of =
            |counts: &Counts| counts.calls.as_ref().unwrap()[&call(libc::SYS_sched_getscheduler)];
        assert_eq!((of(&counts).made, of(&all).made), (500, 500));
        assert_eq!((of(&counts).nanoseconds(), counts.wakes_taken), (None, None));
        assert!(of(&all).nanoseconds().is_some() && all.wakes_taken.is_some());
    }

    #[test]
    fn operations_of_a_ring_are_counted_by_kind() {
        let Some(mut census) = own() else { return };
        let mut alone = Census::in_kernel(&[std::process::id()], Depth::Counts).unwrap();
        assert_eq!((census.missing(), alone.missing()), (&[][..], &[][..]));
        let Ok(mut ring) = io_uring::IoUring::new(64) else { return };
        let before = (census.read().unwrap(), alone.read().unwrap());
        for _ in 0..10 {
            for index in 0..50 {
                let entry = if index < 40 {
                    io_uring::opcode::Nop::new().build()
                } else {
                    io_uring::opcode::Fsync::new(io_uring::types::Fd(-1)).build()
                };
                // SAFETY: neither operation takes memory.
                unsafe { ring.submission().push(&entry).unwrap() };
            }
            ring.submit_and_wait(50).unwrap();
            assert_eq!(ring.completion().count(), 50);
        }
        let operations = census.read().unwrap().since(&before.0).ring.unwrap();
        let nop = operations[&io_uring::opcode::Nop::CODE];
        assert_eq!((nop.submitted, nop.landed, nop.errors), (400, 400, 0));
        let fsync = operations[&io_uring::opcode::Fsync::CODE];
        assert_eq!((fsync.submitted, fsync.landed, fsync.errors), (100, 100, 100));
        // Counts alone have the submissions, from another program.
        let operations = alone.read().unwrap().since(&before.1).ring.unwrap();
        let of = |code: u8| (operations[&code].submitted, operations[&code].landed);
        assert_eq!(of(io_uring::opcode::Nop::CODE), (400, 0));
        assert_eq!(of(io_uring::opcode::Fsync::CODE), (100, 0));
    }

    #[test]
    fn tracing_tells_kinds_apart_as_the_kernel_does() {
        let script = "read go; i=0; while [ $i -lt 200 ]; do umask 022; i=$((i + 1)); done; \
                      echo done; read end";
        let mut shell = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let counted = Census::by_tracing(shell.id()).and_then(|mut census| {
            use std::io::{Read, Write};
            shell.stdin.as_mut().unwrap().write_all(b"\n")?;
            shell.stdout.as_mut().unwrap().read_exact(&mut [0; 5])?;
            census.read()
        });
        drop(shell.stdin.take());
        shell.wait().unwrap();
        match counted {
            Ok(counts) => {
                // Shells make one to three of it for a command, the same number each time.
                let made = counts.calls.unwrap()[&call(libc::SYS_umask)].made;
                assert!(made >= 200 && made % 200 == 0, "{made}");
            }
            // An ordinary user may not trace everywhere.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}"),
        }
    }
}
