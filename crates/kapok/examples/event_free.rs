//! The event-free API: a listener and a handler are registered, and a loop runs them.
//!
//! ```text
//! cargo run -p kapok --example event_free [ADDRESS]
//! ```
//!
//! Each connection's handler is a fiber: it reads, writes and sleeps, and meanwhile the others go
//! on. There is no callback, and nothing to tell the loop but when to stop. Lines that a client
//! sends come back; `nap` first sleeps for a tenth of a second, and `quit` ends the server.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;
use std::time::Duration;

use kapok::net::{TcpListener, TcpStream};
use kapok::signal::Signals;

/// More than this without an end of line is not a command.
const LONGEST_LINE: u64 = 1024;

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".into());
    let listener = TcpListener::bind(&address)?;
    let address = listener.local_addr()?;

    // All fibers of the loop run on this thread: what they share needs no lock.
    let lines = Rc::new(Cell::new(0));
    let counted = Rc::clone(&lines);
    kapok::register(listener, move |stream| talk(stream, &counted))?;
    kapok::start(move || tick(&lines))?;

    let mut signals = Signals::termination()?;
    kapok::start(move || {
        if signals.recv().is_ok() {
            kapok::stop();
        }
    })?;

    println!("listening on {address}");
    let counters = kapok::run()?;
    println!("served {} connections", counters.accepted);
    Ok(())
}

/// The handler of one connection. When it returns, the connection is closed.
fn talk(stream: &TcpStream, lines: &Cell<u64>) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        (&mut reader).take(LONGEST_LINE).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        lines.set(lines.get() + 1);
        match line.trim_ascii() {
            b"quit" => {
                kapok::write(stream, b"bye\n")?;
                // Ends the loop, and with it `kapok::run`.
                kapok::stop();
                return Ok(());
            }
            b"nap" => kapok::sleep(Duration::from_millis(100))?,
            _ => {}
        }
        kapok::write(stream, &line)?;
    }
}

/// A fiber that serves nobody. It is cancelled when the loop ends: then its sleep is an error.
fn tick(lines: &Cell<u64>) {
    while kapok::sleep(Duration::from_millis(500)).is_ok() {
        println!("tick: {} lines so far", lines.get());
    }
    println!("the ticker ends");
}
