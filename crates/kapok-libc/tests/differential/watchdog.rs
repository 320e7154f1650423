//! Tells where everybody is if the calls do not go on, and ends the process.

use std::backtrace::Backtrace;
use std::ffi::c_int;
use std::fs;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::world::Command;

/// How often it looks, and after how many looks without a call in between it has seen enough. By looks,
/// not by the clock, which goes on while the process is stopped.
const LOOK: Duration = Duration::from_millis(100);
const LOOKS: u32 = 600;

/// By which threads are asked where they are.
const WHERE: c_int = libc::SIGUSR1;

/// How often anything has gone on.
static PROGRESS: AtomicUsize = AtomicUsize::new(0);
/// Which call of `COMMANDS` has begun.
static AT: AtomicUsize = AtomicUsize::new(0);
static COMMANDS: Mutex<(&str, Vec<Command>)> = Mutex::new(("nobody", Vec::new()));
static ENDED: AtomicBool = AtomicBool::new(false);
/// Threads that have answered.
static ANSWERED: AtomicUsize = AtomicUsize::new(0);

/// Says who is about to make which calls.
pub(crate) fn begin(who: &'static str, commands: &[Command]) {
    *COMMANDS.lock().unwrap() = (who, commands.to_vec());
    at(0);
}

/// Says that the call of this number begins.
pub(crate) fn at(index: usize) {
    AT.store(index, Ordering::Relaxed);
    PROGRESS.fetch_add(1, Ordering::Relaxed);
}

/// Watches until it is dropped.
pub(crate) struct Watchdog;

impl Watchdog {
    pub(crate) fn start() -> Watchdog {
        // SAFETY: plain data, and a handler for a process that is at its end.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = tell as extern "C" fn(c_int) as usize;
            action.sa_flags = libc::SA_RESTART;
            assert_eq!(libc::sigaction(WHERE, &raw const action, std::ptr::null_mut()), 0);
        }
        thread::Builder::new().name("watchdog".into()).spawn(watch).unwrap();
        Watchdog
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        ENDED.store(true, Ordering::Relaxed);
    }
}

fn watch() {
    let (mut seen, mut looks) = (0, 0);
    while looks < LOOKS {
        thread::sleep(LOOK);
        if ENDED.load(Ordering::Relaxed) {
            return;
        }
        let now = PROGRESS.load(Ordering::Relaxed);
        looks = if now == seen { looks + 1 } else { 0 };
        seen = now;
    }
    report();
    std::process::abort();
}

fn say(text: &str) {
    // Past the harness, which keeps what the macros print to itself.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn report() {
    let (at, doing) = (AT.load(Ordering::Relaxed), COMMANDS.try_lock());
    let doing = doing.map(|commands| commands.clone()).unwrap_or_else(|_| ("?", Vec::new()));
    let (who, commands) = doing;
    say(&format!(
        "\nSTUCK: {who} is in call {at} of {}: {:?}; before it: {:?}\n",
        commands.len(),
        commands.get(at),
        &commands[..at.min(commands.len())],
    ));
    for hook in kapok_libc::hooks() {
        let counts = hook.counts();
        if counts.suspended + counts.direct > 0 {
            say(&format!("{}: {counts:?}\n", hook.name()));
        }
    }
    say(&format!("\n{}\n", kapok::dump()));
    let me = this_thread();
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return };
    for task in tasks.flatten() {
        let Ok(thread) = task.file_name().to_string_lossy().parse::<c_int>() else { continue };
        let file = |name| {
            let text = fs::read_to_string(task.path().join(name)).unwrap_or_default();
            text.trim().to_owned()
        };
        let [name, call, channel] = ["comm", "syscall", "wchan"].map(file);
        say(&format!("\nthread {thread} {name:?}, system call {call}, in {channel}\n"));
        if thread == me {
            continue;
        }
        let before = ANSWERED.load(Ordering::Acquire);
        // SAFETY: no memory; a thread of this process.
        unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), thread, WHERE) };
        let answered = (0..20).any(|_| {
            thread::sleep(LOOK);
            ANSWERED.load(Ordering::Acquire) > before
        });
        if !answered {
            say("does not answer\n");
        }
    }
}

fn this_thread() -> c_int {
    // SAFETY: no conditions.
    unsafe { libc::gettid() }
}

/// Allocates and locks, which a handler must not: but nothing goes on any more, and who hangs in it is
/// passed over.
extern "C" fn tell(_: c_int) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    say(&format!("{}\n", Backtrace::force_capture()));
    ANSWERED.fetch_add(1, Ordering::Release);
}
