//! Ways to start a worker: on a thread, on a fiber, as a task.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar as StdCondvar, LazyLock, Mutex as StdMutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use kapok::sync::channel;

/// Ends when the worker has ended; panics if it did.
pub(crate) type Join = Box<dyn FnOnce()>;
/// Starts a worker.
pub(crate) type Spawn = fn(Box<dyn FnOnce() + Send>) -> Join;

pub(crate) fn thread(body: Box<dyn FnOnce() + Send>) -> Join {
    let handle = thread::spawn(body);
    Box::new(move || handle.join().expect("a worker panicked"))
}

type Job = Box<dyn FnOnce() + Send>;

/// A runtime on this many loops that runs whatever it is sent, each as a fiber.
fn fiber_loops(threads: usize) -> channel::Sender<Job> {
    let (jobs, received) = channel::unbounded::<Job>();
    thread::spawn(move || {
        let runtime = kapok::Runtime::builder().threads(threads).build().expect("an engine");
        runtime.run(move || received.iter().for_each(|job| kapok::spawn(job).detach()));
    });
    jobs
}

fn fiber_of(loops: &channel::Sender<Job>, body: Job) -> Join {
    let (done, ended) = mpsc::channel();
    let job: Job = Box::new(move || {
        body();
        let _ = done.send(());
    });
    assert!(loops.send(job).is_ok(), "the loops have ended");
    Box::new(move || ended.recv().expect("a fiber panicked"))
}

static ONE_LOOP: LazyLock<channel::Sender<Job>> = LazyLock::new(|| fiber_loops(1));
static TWO_LOOPS: LazyLock<channel::Sender<Job>> = LazyLock::new(|| fiber_loops(2));

pub(crate) fn fiber_on_one_loop(body: Job) -> Join {
    fiber_of(&ONE_LOOP, body)
}

pub(crate) fn fiber_on_two_loops(body: Job) -> Join {
    fiber_of(&TWO_LOOPS, body)
}

/// Threads and fibers of both runtimes by turns.
pub(crate) fn fiber_or_thread(body: Job) -> Join {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    match NEXT.fetch_add(1, Ordering::Relaxed) % 3 {
        0 => thread(body),
        1 => fiber_on_one_loop(body),
        _ => fiber_on_two_loops(body),
    }
}

pub(crate) fn rounds(at_ci: usize) -> usize {
    match std::env::var("KAPOK_SCALE").as_deref() {
        Ok("full") => at_ci * 20,
        _ => at_ci,
    }
}

/// A lost wake-up shows as a test that does not end: say so instead of hanging.
pub(crate) fn ends(body: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    let runner = thread::spawn(move || {
        body();
        let _ = done.send(());
    });
    let limit = Duration::from_secs(if rounds(1) > 1 { 1200 } else { 120 });
    match ended.recv_timeout(limit) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("not over after {limit:?}: a lost wake-up?"),
        _ => runner.join().expect("the test panicked"),
    }
}

/// Two threads that run tasks.
struct Executor {
    ready: StdMutex<VecDeque<Arc<Task>>>,
    more: StdCondvar,
}

type BoxFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Task {
    future: StdMutex<Option<BoxFuture>>,
    queued: AtomicBool,
}

static EXECUTOR: LazyLock<Executor> = LazyLock::new(|| {
    for _ in 0..2 {
        thread::spawn(|| EXECUTOR.run());
    }
    Executor { ready: StdMutex::default(), more: StdCondvar::new() }
});

impl Executor {
    fn run(&self) {
        loop {
            let mut ready = self.ready.lock().unwrap();
            let task = loop {
                match ready.pop_front() {
                    Some(task) => break task,
                    None => ready = self.more.wait(ready).unwrap(),
                }
            };
            drop(ready);
            let mut future = task.future.lock().unwrap();
            task.queued.store(false, Ordering::SeqCst);
            let waker = Waker::from(Arc::clone(&task));
            if let Some(running) = &mut *future {
                let poll = || running.as_mut().poll(&mut Context::from_waker(&waker));
                match std::panic::catch_unwind(std::panic::AssertUnwindSafe(poll)) {
                    Ok(Poll::Pending) => {}
                    // What it owned goes, and with it the sender of its join.
                    Ok(Poll::Ready(())) | Err(_) => *future = None,
                }
            }
        }
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            EXECUTOR.ready.lock().unwrap().push_back(self);
            EXECUTOR.more.notify_one();
        }
    }
}

pub(crate) fn task(future: impl Future<Output = ()> + Send + 'static) -> Join {
    let (done, ended) = mpsc::channel();
    let future: BoxFuture = Box::pin(async move {
        future.await;
        let _ = done.send(());
    });
    let task = Task { future: StdMutex::new(Some(future)), queued: AtomicBool::new(false) };
    Arc::new(task).wake();
    Box::new(move || ended.recv().expect("a task panicked"))
}

/// Lets others run, in a task.
pub(crate) async fn switch() {
    let mut switched = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut switched, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

pub(crate) fn join_all(workers: Vec<Join>) {
    workers.into_iter().for_each(|join| join());
}

/// Polls a future up to `polls` times for nobody, and drops it.
pub(crate) fn poll_and_drop<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    (0..polls).find_map(|_| match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    })
}
