//! What the suites share.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each suite uses its part")]

use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use kapok_pool::{Buffer, Source};

/// A size for everyday, and one for `KAPOK_SCALE=full`.
pub fn scale(ci: usize, full: usize) -> usize {
    match std::env::var("KAPOK_SCALE").as_deref() {
        Ok("full") => full,
        _ => ci,
    }
}

/// Says that something is skipped, and why. Where everything has to be there, with `CI` in the
/// environment, that is a failure.
#[track_caller]
pub fn skip(why: &str) {
    let everything = std::env::var("CI").is_ok_and(|ci| !["", "0", "false"].contains(&ci.as_str()));
    assert!(!everything, "{why}, and with CI in the environment nothing is skipped");
    // Past the harness, which keeps what the macros print to itself.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// One test at a time: for suites that count the descriptors of the process.
pub fn turn() -> Turn {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Turn { before: io_threads(), _turn: turn }
}

/// A test's turn. It ends when the threads of the test's pools have, which close their rings: a pool that
/// is dropped does not wait for them.
pub struct Turn {
    before: usize,
    _turn: MutexGuard<'static, ()>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            eventually("the pools' threads have ended", || io_threads() <= self.before);
        }
    }
}

fn io_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("kapok-io")).count()
}

/// Whether a pool made here has rings.
pub fn has_uring() -> bool {
    let has =
        kapok_engine::AnyEngine::new(kapok_engine::Kind::Uring, &kapok_engine::Config::default())
            .is_ok();
    let required = std::env::var("KAPOK_REQUIRE_URING").is_ok_and(|value| value == "1");
    assert!(has || !required, "io_uring is required, and not there");
    has
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The smallest executor.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Polls once, for nobody.
pub fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Waits until it holds, for a while.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within 30 s");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// How many descriptors the process has.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A file of its own, gone with it.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str, content: &[u8]) -> Scratch {
        let path = std::env::temp_dir().join(format!("kapok-pool-{name}-{}", std::process::id()));
        std::fs::write(&path, content).unwrap();
        Scratch(path)
    }

    pub fn open(&self) -> Arc<std::fs::File> {
        Arc::new(std::fs::File::options().read(true).write(true).open(&self.0).unwrap())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Memory that notices a write after it was given back: dropped, it goes on a heap of used memory,
/// filled with a pattern that [`Canaries::check`] looks for.
#[derive(Clone, Default)]
pub struct Canaries(Arc<Inner>);

#[derive(Default)]
struct Inner {
    given_back: std::sync::Mutex<Vec<Box<[u8]>>>,
    lent: std::sync::atomic::AtomicUsize,
    checked: std::sync::atomic::AtomicUsize,
}

const CANARY: u8 = 0xc5;

impl Canaries {
    pub fn lend(&self, len: usize) -> Canary {
        self.0.lent.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Canary { memory: Some(vec![0; len].into()), of: self.clone() }
    }

    /// Looks at all that was given back so far, and forgets all but the last `keep`.
    pub fn check(&self, keep: usize) {
        let mut given_back = self.0.given_back.lock().unwrap();
        for memory in given_back.iter() {
            assert!(
                memory.iter().all(|&byte| byte == CANARY),
                "written to after it was given back"
            );
        }
        let gone = given_back.len().saturating_sub(keep);
        given_back.drain(..gone);
        self.0.checked.fetch_add(gone, std::sync::atomic::Ordering::Relaxed);
    }

    pub fn lent(&self) -> usize {
        self.0.lent.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub fn given_back(&self) -> usize {
        let waiting = self.0.given_back.lock().unwrap().len();
        waiting + self.0.checked.load(std::sync::atomic::Ordering::Relaxed)
    }
}

pub struct Canary {
    memory: Option<Box<[u8]>>,
    of: Canaries,
}

impl Drop for Canary {
    fn drop(&mut self) {
        let mut memory = self.memory.take().unwrap();
        memory.fill(CANARY);
        self.of.0.given_back.lock().unwrap().push(memory);
    }
}

// SAFETY: the memory is on the heap.
unsafe impl Source for Canary {
    const QUIET: bool = true;

    fn bytes(&self) -> &[u8] {
        self.memory.as_ref().unwrap()
    }
}

// SAFETY: the memory is its own.
unsafe impl Buffer for Canary {
    fn room(&mut self) -> std::ptr::NonNull<[u8]> {
        self.memory.as_mut().unwrap().room()
    }

    unsafe fn filled(&mut self, _count: usize) {}
}
