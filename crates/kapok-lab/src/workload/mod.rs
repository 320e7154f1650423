//! The work, without I/O: what a server answers, the same for every model.
//!
//! A [`Session`] is one connection's side of the protocol. A model gives it what was received and
//! sends what it has pending, in whatever way the model waits; [`want`](Session::want) says which
//! of the two is next. A session wants to read only when nothing is pending, so a peer that does
//! not read its replies is not read from: what a connection can occupy is bounded, and a model is
//! interested in reading or in writing, never in both.

mod buffer;
mod burn;
mod echo;
mod files;
mod http;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::serve::{Protocol, ServeConfig};
use burn::Burn;
pub(crate) use burn::{RATE as BURN_RATE, rounds_per_nanosecond};
pub use echo::Echo;
pub(crate) use files::{check as check_file, read as read_file};
pub use http::Http;

/// What every session of one server shares.
#[derive(Debug)]
pub struct Workload {
    protocol: Protocol,
    /// Each request waits for another server.
    asks: bool,
    /// Replies are files of this directory.
    directory: Option<PathBuf>,
    burn: Burn,
    replies: http::Replies,
    buffer_bytes: usize,
    max_head_bytes: usize,
}

impl Workload {
    /// The work that `config` describes. Calibrates the CPU burner if there is any to burn.
    #[must_use]
    pub fn new(config: &ServeConfig) -> Arc<Workload> {
        Arc::new(Workload {
            protocol: config.protocol,
            asks: config.backend.is_some(),
            directory: config.directory.clone().filter(|_| config.protocol == Protocol::Files),
            burn: Burn::new(config.cpu_per_request),
            replies: http::Replies::new(config.body_bytes),
            buffer_bytes: config.buffer_bytes,
            max_head_bytes: config.max_head_bytes,
        })
    }

    /// A session for a connection just accepted.
    #[must_use]
    pub fn session(self: &Arc<Workload>) -> Session {
        match self.protocol {
            Protocol::Echo => Session::Echo(Echo::new(Arc::clone(self))),
            Protocol::Http | Protocol::Files => Session::Http(Http::new(Arc::clone(self))),
        }
    }
}

/// What a session needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Receive into [`space`](Session::space), then call [`received`](Session::received) or, at the
    /// end of the input, [`ended`](Session::ended).
    Read,
    /// Send from [`pending`](Session::pending), then call [`sent`](Session::sent).
    Write,
    /// Ask the backend and wait for its answer, then call [`answered`](Session::answered).
    Ask,
    /// Read the file [`file`](Session::file), then call [`loaded`](Session::loaded).
    Load,
    /// Shut down the sending direction, then call [`shut_down`](Session::shut_down). A socket closed
    /// while it has unread input resets the connection, and the peer may lose the reply.
    ShutDown,
    /// Close the connection.
    Close,
}

/// One connection's side of the protocol.
#[derive(Debug)]
pub enum Session {
    /// An echo connection.
    Echo(Echo),
    /// An HTTP connection.
    Http(Http),
}

macro_rules! dispatch {
    ($session:expr, $inner:ident => $call:expr) => {
        match $session {
            Session::Echo($inner) => $call,
            Session::Http($inner) => $call,
        }
    };
}

impl Session {
    /// What comes next.
    #[inline]
    #[must_use]
    pub fn want(&self) -> Want {
        dispatch!(self, inner => inner.want())
    }

    /// Room to receive into; never empty while the session wants to read. Receiving 0 bytes into it
    /// therefore always means the end of the input.
    #[inline]
    pub fn space(&mut self) -> &mut [u8] {
        dispatch!(self, inner => inner.space())
    }

    /// `n` bytes, at least one, were received into [`space`](Session::space).
    #[inline]
    pub fn received(&mut self, n: usize) {
        debug_assert!(n > 0);
        dispatch!(self, inner => inner.received(n));
    }

    /// The peer sends no more. What it asked for is still answered.
    pub fn ended(&mut self) {
        dispatch!(self, inner => inner.ended());
    }

    /// Bytes to send.
    #[inline]
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        dispatch!(self, inner => inner.pending())
    }

    /// The first `n` bytes of [`pending`](Session::pending) were sent.
    #[inline]
    pub fn sent(&mut self, n: usize) {
        dispatch!(self, inner => inner.sent(n));
    }

    /// The backend has answered, as asked for by [`Want::Ask`].
    pub fn answered(&mut self) {
        dispatch!(self, inner => inner.answered());
    }

    /// The file to read, as asked for by [`Want::Load`]; otherwise an empty path.
    #[must_use]
    pub fn file(&self) -> &Path {
        match self {
            Session::Echo(_) => Path::new(""),
            Session::Http(http) => http.file(),
        }
    }

    /// What reading the file gave. Without a file the reply is 404.
    pub fn loaded(&mut self, file: io::Result<Vec<u8>>) {
        match self {
            Session::Echo(_) => {}
            Session::Http(http) => http.loaded(file),
        }
    }

    /// The sending direction was shut down, as asked for by [`Want::ShutDown`].
    pub fn shut_down(&mut self) {
        match self {
            Session::Echo(_) => {}
            Session::Http(http) => http.shut_down(),
        }
    }

    /// Everything is answered and nothing more is expected: close the connection.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.want() == Want::Close
    }

    /// The session will wait for input: memory that holds nothing is given back. Optional; models
    /// whose wait names the memory do without.
    #[inline]
    pub fn rest(&mut self) {
        dispatch!(self, inner => inner.rest());
    }

    /// Requests answered so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        dispatch!(self, inner => inner.requests())
    }
}
