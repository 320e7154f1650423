//! Counting system calls as a tracer, for where perf counters are not allowed: a process may always
//! trace its children.
//!
//! Each call stops its thread twice, so the process runs many times slower and a loop finds more
//! ready at a turn than it would otherwise: the figure is an estimate, and named as such.
//!
//! The tracer is a thread of its own, because only the thread that attached may handle the stops,
//! and it waits for its own tracees only (`__WNOTHREAD`): it reaps nobody else's children, and it
//! leaves the end of the traced process to its parent, which may be another thread of ours. When it
//! ends, the kernel detaches every tracee and lets it run on. That is after the thread can be
//! joined, and until then a wait for the process by another thread of ours would be answered with a
//! stop of the trace: so the counter's drop waits until the kernel has done with the thread.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::mem::{size_of, zeroed};
use std::path::Path;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A tracer that counts.
#[derive(Debug)]
pub(super) struct TraceCounter {
    shared: Arc<Shared>,
    tracer: Option<JoinHandle<()>>,
}

/// More than there are system calls, the highest of which is 470.
const KINDS: usize = 600;

/// The event of a stop that is no signal's alone, and how a process stays in it (ptrace(2)).
const EVENT_STOP: i32 = 128;
const LISTEN: libc::c_uint = 0x4208;

#[derive(Debug)]
struct Shared {
    calls: AtomicU64,
    /// The same by number.
    kinds: [AtomicU64; KINDS],
    stop: AtomicBool,
    /// The tracer's number in `/proc/self/task`.
    tracer: AtomicI32,
}

impl TraceCounter {
    pub(super) fn of(pid: u32) -> io::Result<TraceCounter> {
        let shared = Arc::new(Shared {
            calls: AtomicU64::new(0),
            kinds: [const { AtomicU64::new(0) }; KINDS],
            stop: AtomicBool::new(false),
            tracer: AtomicI32::new(0),
        });
        let (attached, answer) = mpsc::channel();
        let tracer = thread::Builder::new().name("kapok-tracer".into()).spawn({
            let shared = Arc::clone(&shared);
            move || {
                // SAFETY: gettid takes nothing.
                shared.tracer.store(unsafe { libc::gettid() }, Ordering::Relaxed);
                match attach(pid) {
                    Ok(()) => {
                        // The maker waits for this; that it is gone is not for the tracer to handle.
                        let _ = attached.send(Ok(()));
                        count(&shared, pid as libc::pid_t);
                    }
                    Err(error) => {
                        let _ = attached.send(Err(error));
                    }
                }
            }
        })?;
        let counter = TraceCounter { shared, tracer: Some(tracer) };
        match answer.recv() {
            Ok(Ok(())) => Ok(counter),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::other("the tracer ended without a word")),
        }
    }

    pub(super) fn read(&self) -> u64 {
        self.shared.calls.load(Ordering::Relaxed)
    }

    /// Calls by number. Empty on kernels before 5.3, which do not tell.
    pub(super) fn kinds(&self) -> BTreeMap<u32, u64> {
        let counts = self.shared.kinds.iter().map(|count| count.load(Ordering::Relaxed));
        (0..).zip(counts).filter(|(_, count)| *count > 0).collect()
    }
}

impl Drop for TraceCounter {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(tracer) = self.tracer.take() {
            // A tracer that panicked is detached as well.
            let _ = tracer.join();
            // The thread's number goes after its tracees went. (Where there is no /proc, this does
            // not wait.)
            let task = format!("/proc/self/task/{}", self.shared.tracer.load(Ordering::Relaxed));
            while Path::new(&task).exists() {
                thread::sleep(Duration::from_micros(20));
            }
        }
    }
}

/// Attaches the calling thread to all threads of a process, and to those that they make.
pub(crate) fn attach(pid: u32) -> io::Result<()> {
    let mut attached = 0;
    let mut gone = None;
    // Those that are not attached yet make threads meanwhile; when there are none left, all are found.
    loop {
        let before = attached;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let name = task?.file_name();
            let Some(thread) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE;
            match trace(libc::PTRACE_SEIZE, thread, options as usize) {
                Ok(()) => attached += 1,
                Err(error) if has_left(pid, thread) => {
                    gone = Some(error);
                    continue;
                }
                // By us, when the thread that made it was attached already.
                Err(_) if is_ours(pid, thread) => continue,
                Err(error) => return Err(error),
            }
            // A seized thread runs on; it has to stop once to be resumed into the traced mode.
            match trace(libc::PTRACE_INTERRUPT, thread, 0) {
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
                _ => {}
            }
        }
        if attached == before {
            break;
        }
    }
    match gone {
        Some(error) if attached == 0 => Err(error),
        _ => Ok(()),
    }
}

/// Whether a thread runs no more. A first thread that leaves before the others is listed until they go.
fn has_left(pid: u32, thread: libc::pid_t) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat"));
    let state = stat.as_ref().ok().and_then(|stat| stat.rsplit_once(") ")?.1.chars().next());
    state.is_none_or(|state| matches!(state, 'Z' | 'X'))
}

/// Whether the calling thread traces it already.
fn is_ours(pid: u32, thread: libc::pid_t) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/task/{thread}/status"));
    let tracer = status.iter().flat_map(|status| status.lines());
    let tracer = tracer.filter_map(|line| line.strip_prefix("TracerPid:")).next();
    // SAFETY: gettid takes nothing.
    tracer.and_then(|tracer| tracer.trim().parse().ok()) == Some(unsafe { libc::gettid() })
}

fn trace(request: libc::c_uint, thread: libc::pid_t, data: usize) -> io::Result<()> {
    // SAFETY: these requests take no memory of ours: the address is null and the data a number.
    let result = unsafe {
        libc::ptrace(request, thread, null_mut::<libc::c_void>(), data as *mut libc::c_void)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn count(shared: &Shared, process: libc::pid_t) {
    // Every thread's stops alternate between entering and leaving a call.
    let mut inside = std::collections::HashSet::new();
    while !shared.stop.load(Ordering::Relaxed) {
        // Looked at first and taken after: the end of the process is for its parent to take, which
        // would otherwise go on with a number that may be somebody else's by then.
        let news = match look(libc::P_ALL, 0, libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT) {
            Ok(Some(news)) => news,
            Ok(None) => {
                thread::sleep(Duration::from_micros(20));
                continue;
            }
            // No tracee is left.
            Err(_) => return,
        };
        if news.has_ended {
            if news.thread == process {
                // The other threads went before.
                return;
            }
            inside.remove(&news.thread);
            let _ = look(libc::P_PID, news.thread, libc::WEXITED);
            continue;
        }
        let Ok(Some(News { thread, status, .. })) = look(libc::P_PID, news.thread, libc::WSTOPPED)
        else {
            // Killed meanwhile.
            continue;
        };
        if is_at_call(status) {
            if inside.insert(thread) {
                shared.calls.fetch_add(1, Ordering::Relaxed);
                if let Some(kind) = entered(thread).and_then(|call| shared.kinds.get(call)) {
                    kind.fetch_add(1, Ordering::Relaxed);
                }
            } else {
                inside.remove(&thread);
            }
        }
        resume(thread, status);
    }
}

/// Whether a thread has stopped as it enters or leaves a call.
pub(crate) fn is_at_call(status: i32) -> bool {
    status == libc::SIGTRAP | 0x80
}

/// Lets a thread that has stopped with `status` go on to its next call.
pub(crate) fn resume(thread: libc::pid_t, status: i32) {
    let (signal, event) = (status & 0xff, status >> 8);
    let (request, deliver) = match event {
        _ if is_at_call(status) => (libc::PTRACE_SYSCALL, 0),
        // A signal for the thread itself, which it must get.
        0 => (libc::PTRACE_SYSCALL, signal as usize),
        // The whole process was stopped (SIGSTOP, SIGTSTP) and stays so until somebody continues it.
        EVENT_STOP if signal != libc::SIGTRAP => (LISTEN, 0),
        _ => (libc::PTRACE_SYSCALL, 0),
    };
    // A thread that was killed meanwhile cannot be resumed, and need not be.
    let _ = trace(request, thread, deliver);
}

/// The number of the call that a stopped thread enters, if it is entering one.
fn entered(thread: libc::pid_t) -> Option<usize> {
    match at_call(thread)? {
        AtCall::Enters { number, .. } => usize::try_from(number).ok(),
        AtCall::Leaves { .. } => None,
    }
}

/// Where a thread has stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AtCall {
    /// It enters a call.
    Enters { number: u64, arguments: [u64; 6] },
    /// It leaves one, which returns this: an error is negative.
    Leaves { result: i64 },
}

/// What a thread that has stopped at a call is about; `None` on kernels before 5.3.
pub(crate) fn at_call(thread: libc::pid_t) -> Option<AtCall> {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut info: libc::ptrace_syscall_info = unsafe { zeroed() };
    let bytes = size_of::<libc::ptrace_syscall_info>();
    // SAFETY: the kernel writes at most `bytes` into `info`, which outlives the call.
    let written = unsafe {
        libc::ptrace(
            libc::PTRACE_GET_SYSCALL_INFO,
            thread,
            bytes,
            (&raw mut info).cast::<libc::c_void>(),
        )
    };
    if written < 0 {
        return None;
    }
    match info.op {
        libc::PTRACE_SYSCALL_INFO_ENTRY => {
            // SAFETY: `op` says that this is what was filled in.
            let entry = unsafe { info.u.entry };
            Some(AtCall::Enters { number: entry.nr, arguments: entry.args })
        }
        libc::PTRACE_SYSCALL_INFO_EXIT => {
            // SAFETY: `op` says that this is what was filled in.
            Some(AtCall::Leaves { result: unsafe { info.u.exit.sval } })
        }
        _ => None,
    }
}

/// What has become of a tracee.
pub(crate) struct News {
    pub(crate) thread: libc::pid_t,
    pub(crate) has_ended: bool,
    /// The signal that it stopped with, and above its 8 bits the event (ptrace(2)).
    pub(crate) status: i32,
}

/// Looks for news of the calling thread's tracees, without waiting.
pub(crate) fn look(
    whose: libc::idtype_t,
    thread: libc::pid_t,
    kinds: libc::c_int,
) -> io::Result<Option<News>> {
    let options = kinds | libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG;
    // SAFETY: all zeros is a siginfo, which waitid leaves as it is if there is no news.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` outlives the call.
    if unsafe { libc::waitid(whose, thread as libc::id_t, &raw mut info, options) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid fills these in, or nothing.
    let (thread, status) = unsafe { (info.si_pid(), info.si_status()) };
    let has_ended = [libc::CLD_EXITED, libc::CLD_KILLED, libc::CLD_DUMPED].contains(&info.si_code);
    Ok((thread != 0).then_some(News { thread, has_ended, status }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    struct Killed(Child);

    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// An ordinary user may not trace everywhere.
    fn traced(pid: u32) -> Option<TraceCounter> {
        match TraceCounter::of(pid) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
            counter => Some(counter.unwrap()),
        }
    }

    #[test]
    fn a_process_that_was_stopped_stays_so_until_it_is_continued() {
        let mut busy = Command::new("sh");
        busy.args(["-c", "while :; do umask; done"]);
        let busy = Killed(busy.stdout(Stdio::null()).spawn().unwrap());
        let pid = busy.0.id();
        let Some(counter) = traced(pid) else { return };
        // SAFETY: only numbers are passed; the process is ours and not reaped.
        let signal = |signal| unsafe { libc::kill(pid as libc::pid_t, signal) };
        let moves = || {
            let before = counter.read();
            thread::sleep(Duration::from_millis(200));
            counter.read() > before
        };
        let until = |expected: bool| (0..100).any(|_| moves() == expected);
        assert!(until(true), "it runs");
        signal(libc::SIGSTOP);
        // A single look may find it waiting for a processor.
        assert!((0..100).any(|_| !moves() && !moves()), "it was stopped");
        assert!(!moves() && !moves(), "and nobody has continued it");
        signal(libc::SIGCONT);
        assert!(until(true), "it was continued");
    }

    #[test]
    fn threads_that_come_and_go_are_in_nobodys_way() {
        extern "C" fn nothing(_: *mut libc::c_void) -> *mut libc::c_void {
            std::ptr::null_mut()
        }
        // SAFETY: the C library sees to its own locks in a child, which makes threads and nothing else.
        let child = unsafe { libc::fork() };
        if child == 0 {
            loop {
                // SAFETY: the thread's function takes nothing, and each thread is joined before the next.
                unsafe {
                    let mut thread = zeroed();
                    let null = std::ptr::null();
                    if libc::pthread_create(&raw mut thread, null, nothing, null_mut()) == 0 {
                        libc::pthread_join(thread, null_mut());
                    }
                }
            }
        }
        let mut refused = Vec::new();
        for _ in 0..200 {
            match TraceCounter::of(child as u32) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    refused.push(error);
                    break;
                }
                Err(error) => refused.push(error),
                Ok(_) => {}
            }
        }
        // SAFETY: only numbers are passed; the process is ours and not reaped.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, null_mut(), 0);
        }
        // SAFETY: geteuid takes nothing.
        if unsafe { libc::geteuid() } == 0 {
            assert!(refused.is_empty(), "{refused:?}");
        }
    }
}
