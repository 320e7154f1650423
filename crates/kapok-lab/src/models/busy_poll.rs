//! Non-blocking calls in a loop that never waits.
//!
//! Waits: not at all. Every connection is tried in every round, and the kernel is asked again and
//! again whether it has something. Costs: a core, always, busy or idle, and a system call for every
//! connection and round whether there was data or not, so the latency grows with the number of
//! connections that are idle. With one connection and a core to spare nothing answers faster.

use std::io;

use super::Server;
use super::connection::{Connection, Next};
use super::intake::Intake;
use super::listener::Accepted;
use super::pace::Pace;
use super::table::Table;

pub(super) fn serve(server: &Server, mut intake: Intake) -> io::Result<()> {
    let mut table = Table::default();
    let mut pace = Pace::new(&server.config);
    loop {
        for token in 0..table.len() {
            if let Some(connection) = table.get(token) {
                match connection.drive(pace.now()) {
                    Next::Close => table.remove(token),
                    // It will be tried again anyway.
                    Next::Wait(_) | Next::Again => {}
                }
            }
        }
        while pace.accepts() {
            match intake.next(server)? {
                Accepted::Connection(stream) => {
                    table.insert(Connection::new(server, stream, pace.now()));
                }
                Accepted::Pause(pause) => pace.pause_accepting(pause),
                Accepted::Empty => break,
            }
        }
        if server.stop.requested() && !pace.drains() {
            pace.drain(server.config.drain_timeout);
            table.iter().for_each(|(_, connection)| connection.end_input());
        }
        let due = pace.due();
        if due.sweep {
            pace.idle(&table).into_iter().for_each(|token| table.remove(token));
        }
        if due.cut || pace.drains() && table.is_empty() {
            return Ok(());
        }
    }
}
