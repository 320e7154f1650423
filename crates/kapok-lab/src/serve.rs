//! What to serve, and what was met while serving.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::models;
use crate::stop::Stop;

/// A name that is none of those known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownName {
    what: &'static str,
    name: String,
    known: String,
}

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown {} `{}`; known are {}", self.what, self.name, self.known)
    }
}

impl std::error::Error for UnknownName {}

/// Finds `name` among `all` by what each displays as.
pub(crate) fn by_name<T: Copy + fmt::Display>(
    what: &'static str,
    all: &[T],
    name: &str,
) -> Result<T, UnknownName> {
    all.iter().copied().find(|item| item.to_string() == name).ok_or_else(|| UnknownName {
        what,
        name: name.to_owned(),
        known: all.iter().map(T::to_string).collect::<Vec<_>>().join(", "),
    })
}

/// What the server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Every byte comes back.
    Echo,
    /// HTTP/1.1 with a static reply.
    Http,
    /// HTTP/1.1 with the files of a directory.
    Files,
}

impl Protocol {
    /// The protocols that need nothing but themselves: [`Files`](Protocol::Files) needs a directory.
    pub const ALL: [Protocol; 2] = [Protocol::Echo, Protocol::Http];
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Protocol::Echo => "echo",
            Protocol::Http => "http",
            Protocol::Files => "files",
        })
    }
}

impl FromStr for Protocol {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Protocol, UnknownName> {
        by_name("protocol", &[Protocol::Echo, Protocol::Http, Protocol::Files], name)
    }
}

/// How a server waits for its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Model {
    /// A blocking thread per connection.
    Threads,
    /// Blocking workers, a bounded number of them.
    ThreadPool,
    /// Non-blocking calls in a loop that never waits.
    BusyPoll,
    /// An event loop on `select(2)`.
    Select,
    /// An event loop on `poll(2)`.
    Poll,
    /// An event loop on `epoll(7)`, edge-triggered, by hand.
    Epoll,
    /// The same loop on the mio library.
    Mio,
    /// A loop over io_uring completions, by hand.
    Uring,
    /// Tasks on the tokio runtime.
    Tokio,
    /// Kapok's fibers on io_uring.
    FiberUring,
    /// Kapok's fibers on epoll.
    FiberEpoll,
    /// Kapok's fibers on poll.
    FiberPoll,
    /// Kapok's fibers on select.
    FiberSelect,
    /// Kapok's fibers on the best engine that this machine allows.
    Fiber,
}

impl Model {
    /// Every model once: [`Fiber`](Model::Fiber) is left out, being one of the four before it.
    pub const ALL: [Model; 13] = [
        Model::Threads,
        Model::ThreadPool,
        Model::BusyPoll,
        Model::Select,
        Model::Poll,
        Model::Epoll,
        Model::Mio,
        Model::Uring,
        Model::Tokio,
        Model::FiberUring,
        Model::FiberEpoll,
        Model::FiberPoll,
        Model::FiberSelect,
    ];

    /// Whether its connections are fibers.
    #[must_use]
    pub fn has_fibers(self) -> bool {
        matches!(
            self,
            Model::Fiber
                | Model::FiberUring
                | Model::FiberEpoll
                | Model::FiberPoll
                | Model::FiberSelect
        )
    }

    /// One line on how the model waits.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Model::Threads => "blocking calls, a thread per connection",
            Model::ThreadPool => "blocking calls on a bounded number of workers",
            Model::BusyPoll => "non-blocking calls in a loop that never waits",
            Model::Select => "an event loop on select(2), at most 1024 descriptors",
            Model::Poll => "an event loop on poll(2)",
            Model::Epoll => "an event loop on epoll(7) by hand, edge-triggered",
            Model::Mio => "the same event loop on the mio library",
            Model::Uring => "a loop over io_uring completions by hand",
            Model::Tokio => "async tasks on the tokio runtime",
            Model::FiberUring => "Kapok's fibers on io_uring",
            Model::FiberEpoll => "Kapok's fibers on epoll",
            Model::FiberPoll => "Kapok's fibers on poll",
            Model::FiberSelect => "Kapok's fibers on select",
            Model::Fiber => "Kapok's fibers on the best engine here",
        }
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Model::Threads => "threads",
            Model::ThreadPool => "thread-pool",
            Model::BusyPoll => "busy-poll",
            Model::Select => "select",
            Model::Poll => "poll",
            Model::Epoll => "epoll",
            Model::Mio => "mio",
            Model::Uring => "uring",
            Model::Tokio => "tokio",
            Model::FiberUring => "fiber-uring",
            Model::FiberEpoll => "fiber-epoll",
            Model::FiberPoll => "fiber-poll",
            Model::FiberSelect => "fiber-select",
            Model::Fiber => "fiber",
        })
    }
}

impl FromStr for Model {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Model, UnknownName> {
        let mut all = Model::ALL.to_vec();
        all.push(Model::Fiber);
        by_name("model", &all, name)
    }
}

/// Who accepts connections when there are several workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AcceptMode {
    /// One thread accepts and hands the sockets to the workers, round robin.
    Thread,
    /// Each worker has a listener of its own on the same address (`SO_REUSEPORT`).
    Worker,
}

impl AcceptMode {
    /// Every mode.
    pub const ALL: [AcceptMode; 2] = [AcceptMode::Thread, AcceptMode::Worker];
}

impl fmt::Display for AcceptMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            AcceptMode::Thread => "thread",
            AcceptMode::Worker => "worker",
        })
    }
}

impl FromStr for AcceptMode {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<AcceptMode, UnknownName> {
        by_name("accept mode", &AcceptMode::ALL, name)
    }
}

/// What to serve, where and how.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// The address to listen on; port 0 takes a free one.
    pub addr: SocketAddr,
    /// What to speak.
    pub protocol: Protocol,
    /// How to wait.
    pub model: Model,
    /// Workers, at least 1. With 1, the single-threaded models accept and serve on the thread that
    /// called. `threads` makes a thread per connection whatever is said here, and `thread-pool` has
    /// at least 64 workers: each is occupied by one connection.
    pub threads: usize,
    /// Who accepts when there are several workers.
    pub accept: AcceptMode,
    /// The directory whose files are served, by the protocol [`Files`](Protocol::Files).
    pub directory: Option<PathBuf>,
    /// A server to ask, and to wait for, before each reply (for echo: each read): any echo server. Each
    /// connection has a connection of its own to it.
    pub backend: Option<SocketAddr>,
    /// CPU time to burn for each request (for echo: each read).
    pub cpu_per_request: Duration,
    /// Size of the HTTP reply's body.
    pub body_bytes: usize,
    /// Size of the buffer to read into.
    pub buffer_bytes: usize,
    /// Connections on which nothing moved for this long are closed. The models that sweep look
    /// every quarter of it, at most once a second, and may be up to two sweeps late. Zero: never.
    pub idle_timeout: Duration,
    /// HTTP: a longer request head is answered with 431.
    pub max_head_bytes: usize,
    /// What is left of the requests in progress is cut off this long after the stop.
    pub drain_timeout: Duration,
    /// Models of fibers: a fiber that runs for so long without waiting is reported as a warning, by
    /// [`RuntimeBuilder::watchdog`](kapok::RuntimeBuilder::watchdog). Zero: never; `None`: as the
    /// environment says.
    pub watchdog: Option<Duration>,
    /// Models of fibers: whether `SIGUSR2` prints every fiber to standard error, by
    /// [`RuntimeBuilder::dump_on_signal`](kapok::RuntimeBuilder::dump_on_signal).
    pub dump_on_signal: bool,
}

impl Default for ServeConfig {
    fn default() -> ServeConfig {
        ServeConfig {
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            protocol: Protocol::Echo,
            model: Model::Threads,
            threads: 1,
            accept: AcceptMode::Thread,
            directory: None,
            backend: None,
            cpu_per_request: Duration::ZERO,
            body_bytes: 13,
            buffer_bytes: 16 * 1024,
            idle_timeout: Duration::from_secs(60),
            max_head_bytes: 8 * 1024,
            drain_timeout: Duration::from_secs(5),
            watchdog: None,
            dump_on_signal: false,
        }
    }
}

/// The most workers: more than any machine has cores.
const MAX_THREADS: usize = 1024;

/// The most bytes of a reply's body or of a buffer: 1 GiB.
pub(crate) const MAX_BYTES: usize = 1 << 30;

impl ServeConfig {
    fn check(&self) -> io::Result<()> {
        let refuse = |message: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        if self.threads == 0 {
            return refuse("threads must be at least 1");
        }
        if self.buffer_bytes == 0 {
            return refuse("buffer_bytes must be at least 1");
        }
        if self.max_head_bytes < 64 {
            return refuse("max_head_bytes must be at least 64");
        }
        if self.protocol == Protocol::Files {
            match &self.directory {
                Some(directory) if directory.is_dir() => {}
                Some(directory) => {
                    return refuse(&format!("{} is no directory", directory.display()));
                }
                None => return refuse("files need a directory to be in"),
            }
        }
        if self.threads > MAX_THREADS {
            return refuse(&format!("{} threads: at most {MAX_THREADS}", self.threads));
        }
        for (what, bytes) in [
            ("body_bytes", self.body_bytes),
            ("buffer_bytes", self.buffer_bytes),
            ("max_head_bytes", self.max_head_bytes),
        ] {
            if bytes > MAX_BYTES {
                return refuse(&format!("{what} of {bytes} bytes: at most {MAX_BYTES}"));
            }
        }
        Ok(())
    }
}

/// Limits that were met.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusals {
    /// Connections accepted and closed at once, since the model could not hold them.
    pub count: u64,
    /// The first limit met, in words: which one it is and what to do about it.
    pub reason: Option<String>,
}

/// What a server did, from start to stop.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Served {
    /// Connections accepted, those refused included.
    pub accepted: u64,
    /// HTTP requests answered, errors included; for echo, reads answered.
    pub requests: u64,
    /// Connections accepted that no worker ever became free for (`thread-pool`).
    pub unserved: u64,
    /// Connections that the model could not hold.
    pub refused: Refusals,
    /// Times that accepting paused, since the process or the system was out of descriptors. The
    /// connections waited in the backlog meanwhile; `refused.reason` says which limit it was.
    pub accept_pauses: u64,
}

/// Serves until `stop`, calling `ready` with the address once connections are accepted.
///
/// At the stop the server accepts no more, connections see the end of their input, requests that
/// were received are answered, and what is left after
/// [`drain_timeout`](ServeConfig::drain_timeout) is cut off.
///
/// # Errors
///
/// `InvalidInput` for a configuration that makes no sense (fibers to be watched in a model that has
/// none, for one), `Unsupported` for a model that this
/// system does not have, and whatever binding the address or setting up the model gave. Errors of
/// single connections end those connections only.
pub fn serve(
    config: &ServeConfig,
    stop: &Stop,
    ready: impl FnOnce(SocketAddr),
) -> io::Result<Served> {
    config.check()?;
    models::run(config, stop, ready)
}

/// Serves, on the fibers of the runtime in which it is called, until `stopped` returns; otherwise as
/// [`serve()`]. The listener is the caller's, so that it may be on a simulated network. Of `config`
/// the address, the model and the threads are left aside, and what is to watch the fibers: the
/// runtime is the caller's.
///
/// # Errors
///
/// As for [`serve()`], and the error of `stopped`.
///
/// # Panics
///
/// Outside a [`kapok::Runtime`].
pub fn serve_on_fibers(
    config: &ServeConfig,
    listener: kapok::net::TcpListener,
    stopped: impl FnOnce() -> io::Result<()>,
) -> io::Result<Served> {
    config.check()?;
    models::run_on_fibers(config, listener, stopped)
}
