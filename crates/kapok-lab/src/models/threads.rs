//! A thread per connection.
//!
//! Waits: each thread sleeps in its own `read` or `write`, and the code reads from top to bottom.
//! Costs: a kernel thread a connection (a stack, a kernel stack of 16 KiB, a place in the
//! scheduler), and a context switch for every message; beyond some thousands of active connections
//! the switches are most of the work. The limit is the number of threads that the kernel grants:
//! beyond it `clone` says EAGAIN, the connection is closed and counted, and the rest is served.

use std::io;
use std::thread::{self, Scope};

use super::Server;
use super::blocking::converse;
use super::intake::accept_each;
use super::listener::Listener;
use super::roster::Roster;

/// Reserved for each thread and committed as touched. A session needs about 8 KiB; the standard
/// library's 2 MiB would reserve 20 GiB of address space for 10,000 connections.
const STACK_BYTES: usize = 128 * 1024;

/// Serves the listeners, each with a thread that accepts; the first is the caller's.
pub(super) fn serve(server: &Server, listeners: Vec<Listener>) -> io::Result<()> {
    let roster = Roster::default();
    thread::scope(|scope| {
        let result = super::on_threads(server, "accept", listeners, |listener| {
            accept(server, listener, &roster, scope)
        });
        roster.stop(server.config.drain_timeout);
        result
    })
}

fn accept<'scope, 'env: 'scope>(
    server: &'env Server,
    listener: Listener,
    roster: &'env Roster,
    scope: &'scope Scope<'scope, 'env>,
) -> io::Result<()> {
    accept_each(server, listener, |stream| {
        let entry = roster.enter(stream);
        let spawned = thread::Builder::new()
            .name("connection".into())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, move || {
                let mut session = server.workload.session();
                // How a connection ended concerns that connection only.
                let _ = converse(entry.stream(), &mut session, server);
                server.tally.requests(session.requests());
            });
        if let Err(error) = spawned {
            // The closure is dropped and the connection with it: the peer sees it closed.
            server.tally.refused(|| {
                format!(
                    "connection closed, no thread for it: {error}; raise the limit of threads \
                     (ulimit -u, kernel.threads-max, vm.max_map_count, a container's pids limit) \
                     or use a model that needs none"
                )
            });
        }
        Ok(())
    })
}
