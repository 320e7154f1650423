//! The monitor: one thread a process, started when it is first needed, that takes dumps and tells of
//! stalls. Where loops are watched another thread looks at them.
//!
//! Names are looked up here and never on a fiber: it takes more stack than a fiber may have.

use std::cell::Cell;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::thread::Thread;

use kapok_engine::Readiness;
use kapok_engine::sys::{self, Notifier};

use super::backtrace::Symbols;
use super::collect::collect;
use super::dump::Dump;
use super::sample;
use super::watchdog::{Finding, watch_for_ever};
use crate::fiber;
use crate::sync::oneshot;

/// Who waits for a dump: a fiber or a thread that can wait, or a thread that unwinds.
enum Asker {
    Waits(oneshot::Sender<Dump>),
    Unwinds(mpsc::Sender<Dump>),
}

struct Shared {
    notifier: Notifier,
    askers: Mutex<Vec<Asker>>,
    findings: Mutex<Vec<Finding>>,
    /// The thread that looks at loops, if any are watched.
    watcher: OnceLock<Thread>,
    /// The signal has come that asks for a dump on standard error.
    signalled: AtomicBool,
    /// The process whose thread it is: a child made by fork(2) has none.
    process: u32,
}

/// Set once the thread runs. What it points to is never freed.
static SHARED: AtomicPtr<Shared> = AtomicPtr::new(std::ptr::null_mut());

/// The monitor of this process, if it runs. Async-signal-safe.
fn running() -> Option<&'static Shared> {
    // SAFETY: null, or leaked by `shared`; Acquire pairs with its store.
    let shared = unsafe { SHARED.load(Ordering::Acquire).as_ref() }?;
    (shared.process == std::process::id()).then_some(shared)
}

/// The monitor, which runs from now on.
///
/// # Errors
///
/// If it is refused a descriptor or a thread. It is tried again the next time.
fn shared() -> io::Result<&'static Shared> {
    static STARTING: Mutex<()> = Mutex::new(());
    if let Some(shared) = running() {
        return Ok(shared);
    }
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(shared) = running() {
        return Ok(shared);
    }
    let notifier = Notifier::new()?;
    let (go, started) = mpsc::channel::<&'static Shared>();
    std::thread::Builder::new().name("kapok-monitor".to_owned()).spawn(move || {
        block_signals();
        if let Ok(shared) = started.recv() {
            serve(shared);
        }
    })?;
    let shared: &'static Shared = Box::leak(Box::new(Shared {
        notifier,
        askers: Mutex::new(Vec::new()),
        findings: Mutex::new(Vec::new()),
        watcher: OnceLock::new(),
        signalled: AtomicBool::new(false),
        process: std::process::id(),
    }));
    SHARED.store(std::ptr::from_ref(shared).cast_mut(), Ordering::Release);
    sample::install();
    // The receiver waits for this.
    let _ = go.send(shared);
    Ok(shared)
}

/// Starts the watchdog's thread, and the monitor, unless they run.
///
/// # Errors
///
/// See [`shared`].
pub(crate) fn ensure_watching() -> io::Result<()> {
    static STARTING: Mutex<()> = Mutex::new(());
    let shared = shared()?;
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if shared.watcher.get().is_none() {
        let watcher = std::thread::Builder::new().name("kapok-watchdog".to_owned());
        let watcher = watcher.spawn(|| {
            block_signals();
            watch_for_ever();
        })?;
        shared.watcher.get_or_init(|| watcher.thread().clone());
    }
    Ok(())
}

/// Has the watchdog look at the loops: one has come.
pub(crate) fn look_again() {
    if let Some(watcher) = running().and_then(|shared| shared.watcher.get()) {
        watcher.unpark();
    }
}

/// Has the monitor tell of a stall.
pub(super) fn tell(finding: Finding) {
    if let Some(shared) = running() {
        shared.findings.lock().unwrap_or_else(PoisonError::into_inner).push(finding);
        shared.notifier.notify();
    }
}

pub(super) fn request_dump() -> io::Result<Dump> {
    if IS_MONITOR.get() {
        // Asked for by who is told of a stall: nobody else would answer.
        return Ok(collect(&mut Symbols::default()));
    }
    let shared = shared()?;
    let ask = |asker| {
        shared.askers.lock().unwrap_or_else(PoisonError::into_inner).push(asker);
        shared.notifier.notify();
    };
    let ended = || io::Error::other("the monitor has ended");
    if std::thread::panicking() {
        // A fiber that waited here would count as one that never comes back.
        let (sender, receiver) = mpsc::channel();
        ask(Asker::Unwinds(sender));
        return receiver.recv().map_err(|_| ended());
    }
    let (sender, mut receiver) = oneshot::channel();
    ask(Asker::Waits(sender));
    // Bounded: the monitor waits for no loop for ever.
    crate::park::block_on(async { receiver.recv_async().await }).map_err(|_| ended())
}

/// Prints a dump to standard error whenever the process gets `SIGUSR2`, from now on.
///
/// # Errors
///
/// See [`shared`]; what sigaction(2) says.
pub(crate) fn dump_on_signal() -> io::Result<()> {
    static REGISTERED: Mutex<bool> = Mutex::new(false);
    shared()?;
    let mut registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*registered {
        let action = || {
            if let Some(shared) = running() {
                shared.signalled.store(true, Ordering::Release);
                shared.notifier.notify();
            }
        };
        // SAFETY: getpid(2), atomics and one write(2), which leaves errno alone: async-signal-safe.
        unsafe { signal_hook_registry::register(libc::SIGUSR2, action) }?;
        *registered = true;
    }
    Ok(())
}

/// Signals are for threads that expect them.
fn block_signals() {
    // SAFETY: a set of our own that is filled before it is used; it concerns this thread only.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
    }
}

fn take<T>(queue: &Mutex<Vec<T>>) -> Vec<T> {
    std::mem::take(&mut *queue.lock().unwrap_or_else(PoisonError::into_inner))
}

thread_local! {
    static IS_MONITOR: Cell<bool> = const { Cell::new(false) };
}

fn serve(shared: &Shared) {
    IS_MONITOR.set(true);
    let mut symbols = Symbols::default();
    loop {
        // There is nothing to be done about an error.
        let _ = sys::wait_ready(shared.notifier.as_raw_fd(), Readiness::READABLE, None);
        shared.notifier.drain();
        // Who asks first: what was found before they asked is told before they are answered.
        let askers = take(&shared.askers);
        let signalled = shared.signalled.swap(false, Ordering::AcqRel);
        for finding in take(&shared.findings) {
            finding.tell(&mut symbols);
        }
        if signalled {
            let text = collect(&mut symbols).to_string();
            use std::io::Write;
            // Who cannot read it has asked for nothing.
            let _ = std::io::stderr().write_all(text.as_bytes());
        }
        if !askers.is_empty() {
            // What several have asked for meanwhile is one.
            let dump = collect(&mut symbols);
            for asker in askers {
                let dump = dump.clone();
                fiber::contain(|| match asker {
                    Asker::Waits(sender) => drop(sender.send(dump)),
                    Asker::Unwinds(sender) => drop(sender.send(dump)),
                });
            }
        }
    }
}
