//! Blocking calls on a bounded number of workers.
//!
//! Waits: each worker sleeps in the `read` or `write` of the one connection that it keeps until the
//! end. Costs: what threads cost, but no more of them than were asked for; and a connection beyond
//! that number waits until another ends, however idle the others are. What still waits at the stop
//! never got a worker and is reported as unserved. With keep-alive connections such a pool serves
//! as many clients as it has workers, so it has at least [`FEWEST_WORKERS`].

use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::Server;
use super::blocking::converse;
use super::intake::accept_each;
use super::listener::Listener;
use super::roster::Roster;

pub(crate) const FEWEST_WORKERS: usize = 64;

/// As in `threads.rs`.
const STACK_BYTES: usize = 128 * 1024;

pub(super) fn serve(server: &Server, listeners: Vec<Listener>) -> io::Result<()> {
    let roster = Roster::default();
    let queue = Queue::default();
    thread::scope(|scope| {
        let work = || {
            while let Some(stream) = queue.take() {
                let entry = roster.enter(stream);
                let mut session = server.workload.session();
                // How a connection ended concerns that connection only.
                let _ = converse(entry.stream(), &mut session, server);
                server.tally.requests(session.requests());
            }
        };
        let mut workers = 0;
        let mut result = Ok(());
        for _ in 0..server.config.threads.max(FEWEST_WORKERS) {
            let worker = thread::Builder::new().name("worker".into()).stack_size(STACK_BYTES);
            match worker.spawn_scoped(scope, work) {
                Ok(_) => workers += 1,
                // Fewer workers than asked for serve more slowly; only none cannot serve.
                Err(error) if workers > 0 => {
                    server.tally.met(|| format!("only {workers} workers: {error}"));
                    break;
                }
                Err(error) => result = Err(error),
            }
        }
        let result = result.and_then(|()| {
            super::on_threads(server, "accept", listeners, |listener| {
                accept_each(server, listener, |stream| {
                    queue.put(stream);
                    Ok(())
                })
            })
        });
        queue.close(server);
        roster.stop(server.config.drain_timeout);
        result
    })
}

/// Connections that wait for a worker. It is bounded by the descriptors that the process may open.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<TcpStream>,
    closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, stream: TcpStream) {
        self.lock().waiting.push_back(stream);
        self.filled.notify_one();
    }

    /// The connection that has waited longest; none when there will be no more.
    fn take(&self) -> Option<TcpStream> {
        let mut state = self.lock();
        loop {
            if let Some(stream) = state.waiting.pop_front() {
                return Some(stream);
            }
            if state.closed {
                return None;
            }
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Closes what still waits, and lets the workers end.
    fn close(&self, server: &Server) {
        let mut state = self.lock();
        state.closed = true;
        for _stream in state.waiting.drain(..) {
            server.tally.unserved();
        }
        drop(state);
        self.filled.notify_all();
    }
}
