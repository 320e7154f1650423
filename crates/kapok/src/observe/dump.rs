//! What a dump says.

use std::fmt;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use kapok_engine::Kind;

use super::backtrace::Backtrace;
use super::monitor;

/// Every fiber of every loop of the process, at about the same time: see [`dump`].
///
/// Shown by `{}` it is a text to be read. The same is in its fields.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Dump {
    /// The loops that ran when it was asked for.
    pub loops: Vec<LoopReport>,
    /// Why there is nothing to show: the monitor's thread was refused.
    pub error: Option<String>,
}

/// A loop of a [`Dump`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LoopReport {
    /// The loop's number, unique in the process.
    pub id: u64,
    /// Its place in its runtime.
    pub index: usize,
    /// The name of its thread.
    pub thread: String,
    /// Its engine.
    pub engine: Kind,
    /// How many fibers it has that have started.
    pub live: u64,
    /// Its fibers, by their numbers. Not all of them if the loop did not answer.
    pub fibers: Vec<FiberReport>,
    /// The loop did not answer within a fifth of a second, because it runs this.
    pub blocked: Option<RunningReport>,
}

/// What a thread does that does not come back to its loop.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RunningReport {
    /// The number of the fiber that runs. None if it could not be asked, or no fiber runs.
    pub fiber: Option<u64>,
    /// The fiber's name, of at most 128 bytes.
    pub name: Option<String>,
    /// The function of the C library that was called last from outside of it, if the thread is in one:
    /// `fgets`, `popen`, `recv`.
    pub function: Option<String>,
    /// The system call that the thread is in.
    pub system_call: Option<String>,
    /// Where it is. Empty if the thread did not take the signal.
    pub backtrace: Backtrace,
}

/// A fiber of a [`Dump`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FiberReport {
    /// Its number, unique in the process.
    pub id: u64,
    /// Its name.
    pub name: Option<String>,
    /// What it does.
    pub state: FiberState,
    /// Since it was spawned. To about a turn of its loop, as are all times here.
    pub age: Duration,
    /// Since it was suspended; for one that has not started, its age.
    pub suspended: Duration,
    /// Whether its cancellation was requested.
    pub canceled: bool,
    /// Where it is. Fibers that wait in the same place share it.
    pub backtrace: Arc<Backtrace>,
}

/// What a fiber does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FiberState {
    /// It was spawned and has not run.
    Unstarted,
    /// It could run, and waits for its turn.
    Ready,
    /// It waits for this, with operations pending on these descriptors.
    Waiting(WaitsFor, Vec<Descriptor>),
}

/// What a fiber waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitsFor {
    /// An operation, by the name of its system call.
    Operation(&'static str),
    /// The end of a sleep, in this time.
    Sleep(Duration),
    /// A lock: [`Mutex`](crate::sync::Mutex) or [`RwLock`](crate::sync::RwLock).
    Lock,
    /// A permit of a [`Semaphore`](crate::sync::Semaphore).
    Semaphore,
    /// A [`Condvar`](crate::sync::Condvar).
    Condition,
    /// A value from a channel, or room in one.
    Channel,
    /// The end of another fiber.
    Join,
    /// The end of the fibers of a [`scope`](crate::scope()).
    Scope,
    /// Code that blocks, on a thread of its own: [`blocking`](crate::blocking()).
    Blocking,
    /// A dump.
    Dump,
    /// Another future, by its type.
    Future(&'static str),
}

impl WaitsFor {
    /// What a future of this type is waited for.
    pub(super) fn future(name: &'static str) -> WaitsFor {
        let start = name.trim_start_matches(['&', ' ']);
        let start = start.strip_prefix("mut ").unwrap_or(start);
        let start = start.strip_prefix("core::future::poll_fn::PollFn<").unwrap_or(start);
        let known = [
            ("kapok::net::listener::", WaitsFor::Operation("accept")),
            ("kapok::sync::mutex::", WaitsFor::Lock),
            ("kapok::sync::rwlock::", WaitsFor::Lock),
            ("kapok::sync::semaphore::", WaitsFor::Semaphore),
            ("kapok::sync::condvar::", WaitsFor::Condition),
            ("kapok::sync::channel::", WaitsFor::Channel),
            ("kapok::sync::oneshot::", WaitsFor::Channel),
            // The receiving half of channels is the only one to wait for bare permits.
            ("kapok::sync::permits::", WaitsFor::Channel),
            ("kapok::fiber::join::", WaitsFor::Join),
            ("kapok::fiber::scope::", WaitsFor::Scope),
            ("kapok::blocking::", WaitsFor::Blocking),
            ("kapok::observe::", WaitsFor::Dump),
        ];
        known
            .into_iter()
            .find_map(|(prefix, what)| start.starts_with(prefix).then_some(what))
            .unwrap_or(WaitsFor::Future(name))
    }
}

impl fmt::Display for WaitsFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WaitsFor::Operation(name) => f.write_str(name),
            WaitsFor::Sleep(left) => write!(f, "sleep, {left:.1?} left"),
            WaitsFor::Lock => f.write_str("lock"),
            WaitsFor::Semaphore => f.write_str("semaphore"),
            WaitsFor::Condition => f.write_str("condition"),
            WaitsFor::Channel => f.write_str("channel"),
            WaitsFor::Join => f.write_str("join"),
            WaitsFor::Scope => f.write_str("scope"),
            WaitsFor::Blocking => f.write_str("blocking code"),
            WaitsFor::Dump => f.write_str("dump"),
            WaitsFor::Future(name) => write!(f, "future {name}"),
        }
    }
}

/// A descriptor that an operation is pending on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Descriptor {
    /// Its number.
    pub fd: RawFd,
    /// The address of the peer, of a socket that is connected and whose peer has one.
    pub peer: Option<String>,
    /// Its own address, of a socket that is not connected.
    pub local: Option<String>,
}

impl fmt::Display for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "descriptor {}", self.fd)?;
        match (&self.peer, &self.local) {
            (Some(peer), _) => write!(f, " (peer {peer})"),
            (None, Some(local)) => write!(f, " (at {local})"),
            (None, None) => Ok(()),
        }
    }
}

/// Shows every fiber of every loop of the process.
///
/// May be called from a fiber, which waits meanwhile and is itself shown as waiting for the dump, and
/// from any thread. Each loop shows its fibers when it comes round to it, so they are not all of one
/// instant. A loop that does not come round within a fifth of a second is shown with the fiber
/// that it runs. What this costs is said in [`observe`](crate::observe#what-it-costs).
///
/// # Cancellation
///
/// The wait is not interrupted. It is bounded, and blocks its thread if that unwinds from a panic.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// # kapok::Runtime::new()?.run(|| {
/// let sleeper = kapok::Builder::new().name("sleeper");
/// let sleeper = sleeper.spawn_local(|| kapok::sleep(std::time::Duration::from_secs(3600)));
/// kapok::yield_now();
/// println!("{}", kapok::dump());
/// # sleeper.cancel();
/// # });
/// # Ok(())
/// # }
/// ```
pub fn dump() -> Dump {
    monitor::request_dump()
        .unwrap_or_else(|error| Dump { loops: Vec::new(), error: Some(error.to_string()) })
}

impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fibers: usize = self.loops.iter().map(|one| one.fibers.len()).sum();
        writeln!(f, "kapok: {fibers} fibers on {} loops", self.loops.len())?;
        if let Some(error) = &self.error {
            writeln!(f, "cannot look: {error}")?;
        }
        // Who shows a backtrace that others share.
        let mut shown = std::collections::HashMap::new();
        for one in &self.loops {
            let LoopReport { id, index, thread, engine, live, .. } = one;
            writeln!(
                f,
                "\nloop {id}, number {index} of its runtime, thread {thread:?}, {engine}: {live} \
                 fibers have started"
            )?;
            if let Some(blocked) = &one.blocked {
                writeln!(f, "  does not answer: {}", blocked.title())?;
                blocked.backtrace.fmt(f)?;
            }
            for fiber in &one.fibers {
                fiber.describe(f)?;
                if fiber.backtrace.frames().is_empty() {
                    continue;
                }
                match shown.get(&Arc::as_ptr(&fiber.backtrace)) {
                    Some(other) => writeln!(f, "      as #{other}")?,
                    None => {
                        shown.insert(Arc::as_ptr(&fiber.backtrace), fiber.id);
                        fiber.backtrace.fmt(f)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl FiberReport {
    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  {}", title(self.id, self.name.as_deref()))?;
        match &self.state {
            FiberState::Unstarted => f.write_str(": not started")?,
            FiberState::Ready => f.write_str(": ready")?,
            FiberState::Waiting(what, descriptors) => {
                write!(f, ": waits for {what}")?;
                for (index, descriptor) in descriptors.iter().enumerate() {
                    write!(f, "{} {descriptor}", if index == 0 { " on" } else { "," })?;
                }
            }
        }
        write!(f, ", since {:.1?}, age {:.1?}", self.suspended, self.age)?;
        writeln!(f, "{}", if self.canceled { ", cancelled" } else { "" })
    }
}

impl RunningReport {
    pub(super) fn title(&self) -> String {
        let fiber = match self.fiber {
            Some(id) => format!("it runs fiber {}", title(id, self.name.as_deref())),
            None => "what it runs is not known".to_owned(),
        };
        fiber + &in_call(self.function.as_deref(), self.system_call.as_deref())
    }
}

/// How reports say what a thread blocks in: a function of the C library, and the system call behind it.
pub(super) fn in_call(function: Option<&str>, system_call: Option<&str>) -> String {
    match (function, system_call) {
        (Some(function), Some(call)) => format!(", in {function}, by {call}"),
        (Some(one), None) | (None, Some(one)) => format!(", in {one}"),
        (None, None) => String::new(),
    }
}

/// How reports call a fiber.
pub(super) fn title(id: u64, name: Option<&str>) -> String {
    match name {
        Some(name) => format!("{name:?} (#{id})"),
        None => format!("#{id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn futures_are_known_by_their_types() {
        let mutex = crate::sync::Mutex::new(());
        fn name_of<F: Future>(_: &F) -> &'static str {
            std::any::type_name::<F>()
        }
        assert_eq!(WaitsFor::future(name_of(&mutex.lock_async())), WaitsFor::Lock);
        let (_sender, mut receiver) = crate::sync::oneshot::channel::<()>();
        assert_eq!(WaitsFor::future(name_of(&receiver.recv_async())), WaitsFor::Channel);
        let other = std::future::pending::<crate::sync::Mutex<()>>();
        assert!(matches!(WaitsFor::future(name_of(&other)), WaitsFor::Future(_)));
    }
}
