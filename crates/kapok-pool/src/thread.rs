//! The I/O threads: how they are started, what they run, how they end.

use std::cell::Cell;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use kapok_engine::{AnyEngine, Config, Engine, Kind, offload};

use crate::port::{Order, Rouse};
use crate::scale::Scaler;
#[cfg(target_os = "linux")]
use crate::shared::Registration;
use crate::shared::Shared;
use crate::step::{Event, Loop, Pace};

/// How threads are made.
pub(crate) struct Plan {
    pub(crate) name: String,
    /// `None`: the best there is.
    pub(crate) engine: Option<Kind>,
    pub(crate) config: Config,
    pub(crate) pace: Pace,
    /// Processors, dealt out by the number of the thread. Empty: wherever the kernel likes.
    pub(crate) processors: Vec<usize>,
    pub(crate) trace: bool,
    /// How many threads serve at least; the first is never retired.
    pub(crate) least: usize,
    pub(crate) scale: crate::scale::Thresholds,
}

/// The threads of a pool.
pub(crate) struct Crew {
    pub(crate) shared: Arc<Shared>,
    pub(crate) plan: Plan,
    /// By port. A thread that has ended is joined when its port gets another, or at the shutdown.
    threads: Mutex<Vec<Option<JoinHandle<()>>>>,
    /// Held by who waits for the end of all: others wait until it has seen that.
    ending: Mutex<()>,
}

/// The size of a buffer that the kernel receives into.
#[cfg(target_os = "linux")]
const PROVIDED_BYTES: u32 = 16 << 10;

/// What a thread runs.
type Job = Box<dyn FnOnce() + Send>;

/// How long the thread waits at most that looks after the number of the others.
const SCALING_WAIT: Duration = Duration::from_millis(50);

/// An I/O thread that unwinds has left operations behind whose memory the kernel may hold, and futures
/// that nobody will wake. There is no way on from there.
pub(crate) struct AbortOnPanic;

impl AbortOnPanic {
    /// None where a panic is under way already: a second one aborts by itself.
    pub(crate) fn unless_panicking() -> Option<AbortOnPanic> {
        if std::thread::panicking() { None } else { Some(AbortOnPanic) }
    }
}

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("kapok: an I/O thread has panicked with operations in flight; aborting");
            std::process::abort();
        }
    }
}

thread_local! {
    static IS_IO_THREAD: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread is an I/O thread, which must not block.
pub(crate) fn is_io_thread() -> bool {
    IS_IO_THREAD.try_with(Cell::get).unwrap_or(false)
}

/// The calling thread counts as an I/O thread until this is dropped.
pub(crate) struct AsIoThread(bool);

impl AsIoThread {
    pub(crate) fn begin() -> AsIoThread {
        AsIoThread(IS_IO_THREAD.try_with(|is| is.replace(true)).unwrap_or(true))
    }
}

impl Drop for AsIoThread {
    fn drop(&mut self) {
        let _ = IS_IO_THREAD.try_with(|is| is.set(self.0));
    }
}

impl Crew {
    pub(crate) fn new(shared: Arc<Shared>, plan: Plan) -> Arc<Crew> {
        let threads = Mutex::new((0..shared.ports.len()).map(|_| None).collect());
        Arc::new(Crew { shared, plan, threads, ending: Mutex::default() })
    }

    /// Starts the thread of port `number`, which serves when `ready` says so or why it does not. It
    /// first waits for the end of the port's last thread, which must have been told to end.
    pub(crate) fn start(
        self: &Arc<Self>,
        number: usize,
        ready: impl FnOnce(io::Result<()>) + Send + 'static,
    ) -> io::Result<()> {
        self.start_by(offload::start_thread, number, ready)
    }

    fn start_by(
        self: &Arc<Self>,
        start_thread: impl FnOnce(String, Job) -> io::Result<JoinHandle<()>>,
        number: usize,
        ready: impl FnOnce(io::Result<()>) + Send + 'static,
    ) -> io::Result<()> {
        let crew = Arc::clone(self);
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("{}-{number}", self.plan.name);
        // The handle on the last thread goes over once there is a thread to wait for it. Lost with one
        // that could not be started, it would leave the port to two consumers later.
        let (hand_over, handed_over) = mpsc::channel::<JoinHandle<()>>();
        let job = Box::new(move || {
            if let Ok(before) = handed_over.recv() {
                // A panic has aborted the process.
                let _ = before.join();
            }
            crew.serve(number, ready);
        });
        let thread = start_thread(name, job)?;
        if let Some(before) = threads[number].replace(thread) {
            let _ = hand_over.send(before);
        }
        Ok(())
    }

    /// Starts the thread of port `number` and waits until it serves.
    pub(crate) fn start_and_wait(self: &Arc<Self>, number: usize) -> io::Result<()> {
        let (tell, told) = mpsc::channel();
        self.start(number, move |outcome| {
            let _ = tell.send(outcome);
        })?;
        told.recv().unwrap_or_else(|_| Err(io::Error::other("an I/O thread did not start")))
    }

    fn serve(self: &Arc<Self>, number: usize, ready: impl FnOnce(io::Result<()>)) {
        let _guard = AbortOnPanic;
        IS_IO_THREAD.set(true);
        if let Some(&processor) =
            self.plan.processors.get(number % self.plan.processors.len().max(1))
            && let Err(error) = pin_to(processor)
        {
            ready(Err(io::Error::new(
                error.kind(),
                format!("an I/O thread cannot be pinned to processor {processor}: {error}"),
            )));
            return;
        }
        let engine = match self.plan.engine {
            Some(kind) => AnyEngine::new(kind, &self.plan.config),
            None => AnyEngine::best(&self.plan.config),
        };
        let mut engine = match engine {
            Ok(engine) => engine,
            Err(error) => return ready(Err(error)),
        };
        if let Err(error) = self.register_buffers(&mut engine) {
            return ready(Err(error));
        }
        let port = &self.shared.ports[number];
        port.open(Rouse::Bell(engine.bell()));
        // A pool that was closed while this thread started has told the others.
        if self.shared.closed.load(Ordering::SeqCst) {
            port.give(Order::Close);
        }
        let mut pace = self.plan.pace.clone();
        // The first thread looks after the number of the others, busy or not.
        let scales = number == 0 && self.shared.ports.len() > self.plan.least;
        if scales {
            pace.completion_wait = pace.completion_wait.min(SCALING_WAIT);
            pace.channel_wait = pace.channel_wait.min(SCALING_WAIT);
        }
        let mut steps = Loop::new(engine, Arc::clone(&self.shared), number, pace);
        steps.provide = provide_buffers;
        ready(Ok(()));
        let mut scaler = scales.then(|| Scaler::new(Arc::clone(self)));
        loop {
            let event = match steps.step() {
                Ok(event) => event,
                Err(error) => match steps.recover(&error) {
                    Ok(()) => continue,
                    Err(worse) => panic!("no engine is left: {error}; {worse}"),
                },
            };
            if self.plan.trace {
                let step = event.number();
                tracing::trace!(target: "kapok_pool::step", thread = number, step, "{event}");
            }
            if event == Event::Ended {
                port.leave();
                return;
            }
            if let Some(scaler) = &mut scaler {
                scaler.look(event);
            }
        }
    }

    /// Lets a new ring know the buffers of the pool.
    ///
    /// # Errors
    ///
    /// It refuses, and others have taken them: operations that name them must not go to it.
    #[cfg_attr(
        not(target_os = "linux"),
        expect(clippy::unused_self, reason = "there are no rings")
    )]
    pub(crate) fn register_buffers(&self, engine: &mut AnyEngine) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if let (AnyEngine::Uring(ring), Some(buffers)) = (engine, &self.shared.buffers)
            && self.shared.registration() != Registration::Refused
        {
            // SAFETY: the thread has a handle on them until its engine is gone, and so on the mapping.
            // Only operations that leases are in change the memory, as anywhere.
            let registered = unsafe { ring.register_buffers(&buffers.pieces()) };
            if let Err(error) = registered {
                if self.shared.registration() == Registration::Done {
                    return Err(error);
                }
                tracing::warn!(%error, ?buffers, "io_uring does not take the buffers of the pool");
                self.shared.refuse_registration();
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = engine;
        Ok(())
    }

    /// Waits for the end of all threads, which have been told to close.
    pub(crate) fn join(&self) {
        let _ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        for number in 0..self.shared.ports.len() {
            let thread = {
                let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
                threads[number].take()
            };
            if let Some(thread) = thread {
                let _ = thread.join();
            }
        }
    }
}

/// Buffers for operations that bring none.
#[cold]
pub(crate) fn provide_buffers(
    engine: &mut AnyEngine,
) -> Option<std::rc::Rc<kapok_engine::Buffers>> {
    #[cfg(target_os = "linux")]
    if let AnyEngine::Uring(ring) = engine {
        return ring
            .add_buffers(crate::request::BUFFER_GROUP, PROVIDED_BYTES)
            .inspect_err(
                |error| tracing::warn!(%error, "io_uring takes no buffers to receive into"),
            )
            .ok();
    }
    let _ = engine;
    None
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn pin_to(processor: usize) -> io::Result<()> {
    if processor >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: a set of zeros is empty; the number is within it; the calling thread is named by 0.
    let res = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    if res < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn pin_to(_: usize) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "threads are pinned on Linux only"))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn a_thread_that_cannot_be_started_leaves_its_predecessor_to_the_next_attempt() {
        let crew = crate::pool::crew_for_tests();
        let (end, ended) = mpsc::channel::<()>();
        let is_over = Arc::new(AtomicBool::new(false));
        let before = std::thread::spawn({
            let is_over = Arc::clone(&is_over);
            move || {
                let _ = ended.recv();
                is_over.store(true, Ordering::SeqCst);
            }
        });
        crew.threads.lock().unwrap()[0] = Some(before);
        let refused = crew.start_by(|_, _| Err(io::ErrorKind::WouldBlock.into()), 0, |_| {});
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let (tell, told) = mpsc::channel();
        crew.start(0, {
            let is_over = Arc::clone(&is_over);
            move |outcome| {
                let _ = tell.send((outcome.is_ok(), is_over.load(Ordering::SeqCst)));
            }
        })
        .unwrap();
        // It may not serve while its predecessor does.
        assert!(told.recv_timeout(Duration::from_millis(50)).is_err(), "two serve one port");
        end.send(()).unwrap();
        assert_eq!(told.recv().unwrap(), (true, true));
        crew.shared.ports[0].give(Order::Close);
        crew.join();
    }
}
