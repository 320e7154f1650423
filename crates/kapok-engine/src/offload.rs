//! Threads for what can block: file operations without a non-blocking form, and callers' closures.
//!
//! One pool serves the whole process. It grows by one thread whenever more jobs wait than threads
//! do, up to [`max_threads`]; a thread that finds nothing to do for ten seconds ends. Beyond the
//! limit jobs wait in line. The line has no limit of its own: it is as long as what callers have in
//! flight, and who offloads bounds that (an engine by its keys, `blocking` by its fibers).
//!
//! Every signal but the synchronous ones is blocked in these threads, so that a process's handlers
//! run where the program expects them.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// The limit of threads that a process starts with.
pub const DEFAULT_MAX_THREADS: usize = 256;

/// How long a thread waits for work before it ends.
const IDLE: Duration = Duration::from_secs(10);

static MAX_THREADS: AtomicUsize = AtomicUsize::new(DEFAULT_MAX_THREADS);
static REFUSED: AtomicU64 = AtomicU64::new(0);
static POOL: AtomicPtr<Pool> = AtomicPtr::new(ptr::null_mut());

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    /// Not empty only if there are threads.
    line: VecDeque<Job>,
    threads: usize,
    /// Threads that wait for a job, woken but not yet running ones included.
    idle: usize,
}

struct Pool {
    /// The process whose threads these are: a fork inherits the memory but none of the threads.
    process: u32,
    state: Mutex<State>,
    work: Condvar,
}

/// Runs `job` on an offload thread, soon.
///
/// A panic in it ends the job and nothing else.
///
/// # Errors
///
/// `OutOfMemory` if the pool has no thread and none can be made (`EAGAIN` from clone(2): RLIMIT_NPROC,
/// a cgroup's `pids.max`, or no memory); `job` is then dropped without having run. As long as there is
/// a thread, a refused one only means that jobs wait in line for longer.
pub fn spawn(job: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let pool = pool();
    pool.put(Box::new(job), || start_thread("kapok-offload".into(), || pool.work()).map(drop))
}

/// How often a thread was refused to the pool, in this process and those it was forked from.
pub fn refused() -> u64 {
    REFUSED.load(Ordering::Relaxed)
}

/// The most threads that the pool grows to.
pub fn max_threads() -> usize {
    MAX_THREADS.load(Ordering::Relaxed)
}

/// Sets the most threads that the pool grows to, at least 1. Threads beyond a lowered limit are not
/// stopped; they end when they are idle.
pub fn set_max_threads(threads: usize) {
    MAX_THREADS.store(threads.max(1), Ordering::Relaxed);
}

/// How many threads the pool has now.
pub fn threads() -> usize {
    pool().lock().threads
}

/// This process's pool. It is never freed: its threads may outlive any of its users.
fn pool() -> &'static Pool {
    let process = std::process::id();
    let mut present = POOL.load(Ordering::Acquire);
    loop {
        // SAFETY: the pointer is null or came from `Box::into_raw` below and is never freed.
        if let Some(pool) = unsafe { present.as_ref() }
            && pool.process == process
        {
            return pool;
        }
        let fresh = Box::into_raw(Box::new(Pool {
            process,
            state: Mutex::new(State::default()),
            work: Condvar::new(),
        }));
        match POOL.compare_exchange(present, fresh, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: as above; it was just made.
            Ok(_) => return unsafe { &*fresh },
            Err(other) => {
                // SAFETY: it was just made, and lost the race before anyone saw it.
                drop(unsafe { Box::from_raw(fresh) });
                present = other;
            }
        }
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No job runs under the lock, so a poisoned state is still a whole one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `job` in line, and calls `start` if that takes another thread.
    ///
    /// The lock is held meanwhile: `threads` counts only those there are, so nobody leaves a job to
    /// a thread that somebody else then fails to start.
    fn put(&self, job: Job, start: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut state = self.lock();
        if state.line.len() >= state.idle && state.threads < max_threads() {
            match start() {
                Ok(()) => state.threads += 1,
                Err(error) => {
                    REFUSED.fetch_add(1, Ordering::Relaxed);
                    if state.threads == 0 {
                        return Err(io::Error::new(
                            io::ErrorKind::OutOfMemory,
                            format!(
                                "no offload thread can be started: {error} (`ulimit -u` and \
                                 pids.max limit them)"
                            ),
                        ));
                    }
                    // Those there are get to it.
                }
            }
        }
        state.line.push_back(job);
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.line.pop_front() {
                drop(state);
                if let Err(panic) = catch_unwind(AssertUnwindSafe(job)) {
                    // What was thrown may throw again when it is dropped.
                    let _ = catch_unwind(AssertUnwindSafe(|| drop(panic)));
                }
                state = self.lock();
                continue;
            }
            state.idle += 1;
            let (woken, waited) =
                self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if waited.timed_out() && state.line.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

/// Starts a thread that is born with its signals blocked, all but those that a fault of its own raises.
///
/// # Errors
///
/// What clone(2) says; `run` is then dropped without having run.
pub fn start_thread(
    name: String,
    run: impl FnOnce() + Send + 'static,
) -> io::Result<thread::JoinHandle<()>> {
    // Those that a fault of the thread itself raises: blocking them would turn a diagnosis into
    // a kill.
    const SYNCHRONOUS: [i32; 7] = [
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGFPE,
        libc::SIGILL,
        libc::SIGTRAP,
        libc::SIGSYS,
        libc::SIGABRT,
    ];
    // SAFETY: signal sets are locals and are filled before they are read.
    let blocked = unsafe {
        let mut blocked: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut blocked);
        for signal in SYNCHRONOUS {
            libc::sigdelset(&raw mut blocked, signal);
        }
        blocked
    };
    let before = change_mask(libc::SIG_BLOCK, &blocked);
    let started = thread::Builder::new().name(name).spawn(run);
    change_mask(libc::SIG_SETMASK, &before);
    started
}

/// Changes the calling thread's mask, and gives the one before.
///
/// By the system call: threads are started under the pool's lock, also on fibers, and who comes before
/// the C library's function may suspend its caller.
fn change_mask(how: i32, new: &libc::sigset_t) -> libc::sigset_t {
    // SAFETY: a set of signals is integers.
    let mut before: libc::sigset_t = unsafe { std::mem::zeroed() };
    #[cfg(any(target_os = "linux", target_os = "android"))]
    // SAFETY: sets of the kernel's size, which is that of its 64 signals and the least that the C
    // library's have; only the calling thread's mask changes.
    unsafe {
        let (new, old) = (ptr::from_ref(new) as usize, (&raw mut before) as usize);
        let number = libc::SYS_rt_sigprocmask;
        crate::sys::kernel::call(number, [how as usize, new, old, size_of::<u64>(), 0, 0]);
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    // SAFETY: sets that are there; only the calling thread's mask changes.
    unsafe {
        libc::pthread_sigmask(how, new, &raw mut before);
    }
    before
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_panic_ends_the_job_and_not_the_pool() {
        let (send, receive) = mpsc::channel();
        for number in 0..8 {
            let send = send.clone();
            spawn(move || {
                // The sender goes first, so that the panic is over when the receiver hears of it.
                let _send = send;
                if number % 2 == 0 {
                    std::panic::resume_unwind(Box::new("on purpose"));
                }
                _send.send(number).unwrap();
            })
            .unwrap();
        }
        drop(send);
        let mut done: Vec<i32> = receive.iter().collect();
        done.sort_unstable();
        assert_eq!(done, [1, 3, 5, 7]);
    }

    #[test]
    fn a_job_is_refused_or_run_when_threads_cannot_be_started() {
        let pool: &'static Pool = Box::leak(Box::new(Pool {
            process: std::process::id(),
            state: Mutex::default(),
            work: Condvar::new(),
        }));
        let (starting, is_starting) = mpsc::channel();
        let refuse = move || {
            starting.send(()).unwrap();
            // Long enough for the other to come in between, if it can.
            thread::sleep(Duration::from_millis(100));
            Err(io::Error::from_raw_os_error(libc::EAGAIN))
        };
        let first = thread::spawn({
            let refuse = refuse.clone();
            move || pool.put(Box::new(|| {}), refuse)
        });
        is_starting.recv_timeout(LONG).unwrap();
        let second = pool.put(Box::new(|| {}), refuse);
        let taken = [first.join().unwrap(), second].iter().filter(|put| put.is_ok()).count();
        assert_eq!(taken, 0, "jobs were taken that no thread will run");
        assert!(pool.lock().line.is_empty());
        assert_eq!(pool.lock().threads, 0);
    }

    #[test]
    fn jobs_that_wait_for_each_other_all_get_a_thread() {
        let gate = std::sync::Arc::new(std::sync::Barrier::new(9));
        let (send, receive) = mpsc::channel();
        for _ in 0..8 {
            let (gate, send) = (gate.clone(), send.clone());
            spawn(move || {
                gate.wait();
                send.send(thread::current().name().map(str::to_owned)).unwrap();
            })
            .unwrap();
        }
        gate.wait();
        for _ in 0..8 {
            assert_eq!(receive.recv_timeout(LONG).unwrap().as_deref(), Some("kapok-offload"));
        }
        assert!(threads() >= 8);
    }

    #[test]
    fn signals_are_blocked_in_the_threads_and_not_in_their_makers() {
        fn is_blocked(signal: i32) -> bool {
            // SAFETY: reads the calling thread's mask into a local.
            unsafe {
                let mut mask: libc::sigset_t = std::mem::zeroed();
                libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &raw mut mask);
                libc::sigismember(&raw const mask, signal) == 1
            }
        }
        let (send, receive) = mpsc::channel();
        spawn(move || send.send((is_blocked(libc::SIGTERM), is_blocked(libc::SIGSEGV))).unwrap())
            .unwrap();
        assert_eq!(receive.recv_timeout(LONG).unwrap(), (true, false));
        assert!(!is_blocked(libc::SIGTERM));
    }
}
