//! One connection of a server, call by call, in the order in which it happens: accept, register, wait,
//! read, write.
//!
//! A tracer (ptrace(2)) stops the server at every system call, as strace(1) does, and shows those that
//! have to do with the first connection that is accepted from now on, and the wait before each. What
//! io_uring does without system calls a tracer does not see: it is read off the rings, before and after
//! each io_uring_enter(2). Where the kernel does not tell, [`Ending::OnlyRings`] says so.

mod follow;
mod rings;
mod words;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::Serialize;

use crate::meters::ptrace;
use rings::Rings;

/// One call.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// When it was entered, in seconds since the connection was accepted; the wait before that has a
    /// negative one. Of a completion on a ring, when it was seen.
    pub at: f64,
    /// The thread that made it.
    pub thread: u32,
    /// What it was: `accept`, `register`, `submit`, `wait`, `read`, `write`, `close`, or something
    /// else.
    pub kind: &'static str,
    /// The call as strace(1) has it, with the descriptors among its arguments.
    pub call: String,
    /// The seconds that it took. Of a completion on a ring, since its operation was submitted; 0 if
    /// that was before the trace.
    pub took: f64,
    /// What it is for, in words.
    pub note: String,
}

/// Why a trace has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The connection was closed.
    Closed,
    /// The server has ended.
    Gone,
    /// No connection was seen to be accepted, but the server enters io_uring, and this kernel does not
    /// tell what is on its rings (it does since Linux 5.19).
    OnlyRings,
    /// Nothing of these.
    Stopped,
}

/// A tracer at work. Dropping it lets the process go, which runs on as if nothing had been.
#[derive(Debug)]
pub struct Trace {
    steps: Receiver<Step>,
    shared: Arc<Shared>,
    tracer: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    /// The tracer's number in `/proc/self/task`.
    tracer: AtomicI32,
    closed: AtomicBool,
    gone: AtomicBool,
    enters_rings: AtomicBool,
    rings_are_told: AtomicBool,
    has_accepted: AtomicBool,
}

impl Trace {
    /// Traces all of `processes` from now on.
    ///
    /// # Errors
    ///
    /// They may not be traced: they are another user's, somebody traces them already, or a sandbox
    /// forbids it.
    pub fn of(processes: &[u32]) -> io::Result<Trace> {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            tracer: AtomicI32::new(0),
            closed: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            enters_rings: AtomicBool::new(false),
            rings_are_told: AtomicBool::new(false),
            has_accepted: AtomicBool::new(false),
        });
        let (send, steps) = mpsc::channel();
        let (attached, answer) = mpsc::channel();
        let tracer = thread::Builder::new().name("kapok-tracer".into()).spawn({
            let shared = Arc::clone(&shared);
            let processes = processes.to_vec();
            move || {
                // SAFETY: gettid takes nothing.
                shared.tracer.store(unsafe { libc::gettid() }, Ordering::Relaxed);
                // Before it is attached: what lands from then on is new.
                let rings =
                    processes.iter().map(|&process| (process, Rings::of(process))).collect();
                let outcome = processes.iter().try_for_each(|&process| ptrace::attach(process));
                let failed = outcome.is_err();
                // The maker waits for this; that it is gone is not for the tracer to handle.
                let _ = attached.send(outcome);
                if !failed {
                    follow::follow(&shared, &processes, rings, &send);
                }
            }
        })?;
        let trace = Trace { steps, shared, tracer: Some(tracer) };
        match answer.recv() {
            Ok(Ok(())) => Ok(trace),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::other("the tracer ended without a word")),
        }
    }

    /// The next call, or `None` if there is none within `patience`; `Err` when there will be no more.
    ///
    /// # Errors
    ///
    /// Why it has ended.
    pub fn next(&self, patience: Duration) -> Result<Option<Step>, Ending> {
        match self.steps.recv_timeout(patience) {
            Ok(step) => Ok(Some(step)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(self.ending()),
        }
    }

    /// Why it would have ended if it ended now.
    #[must_use]
    pub fn ending(&self) -> Ending {
        let is = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        if is(&self.shared.closed) {
            Ending::Closed
        } else if !is(&self.shared.has_accepted)
            && is(&self.shared.enters_rings)
            && !is(&self.shared.rings_are_told)
        {
            Ending::OnlyRings
        } else if is(&self.shared.gone) {
            Ending::Gone
        } else {
            Ending::Stopped
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(tracer) = self.tracer.take() {
            // A tracer that panicked is detached as well.
            let _ = tracer.join();
            // The thread's number goes after its tracees went; until then a wait of ours for a traced
            // child would see its stops.
            let task = format!("/proc/self/task/{}", self.shared.tracer.load(Ordering::Relaxed));
            while Path::new(&task).exists() {
                thread::sleep(Duration::from_micros(20));
            }
        }
    }
}
