//! A chat room, with bounded queues and without mercy for those who do not read.
//!
//! ```text
//! cargo run -p kapok --example chat [ADDRESS]
//! ```
//!
//! The first line that a client sends is its nick name; every other one goes to everybody else.
//!
//! ```text
//!  socket ──► reader fiber ──┬──► queue ──► writer fiber ──► socket      one of each
//!                            ├──► queue ──► writer fiber ──► socket      per client
//!                            └──► …
//! ```
//!
//! # Slow readers
//!
//! A client's queue holds [`QUEUE`] lines. Whoever says something while a queue is full waits for a
//! place in it, and meanwhile does not read: so those who talk are no faster than those who listen,
//! and nobody who reads misses a line. But a client that does not take in [`PATIENCE`] what its
//! writer has for it, at most [`BATCH_BYTES`], is dropped, and the others are told. The clock runs
//! from when its socket takes no more, not from when its queue is full: one that stops reading in a
//! quiet room holds nobody up, and in a busy one it does so once, for [`PATIENCE`] at most.
//!
//! All memory has a limit: clients, lines in a queue, bytes in a line. A line is in memory once,
//! however many queues it is in.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use kapok::net::{TcpListener, TcpStream};
use kapok::signal::Signals;
use kapok::sync::channel::{self, Receiver, Sender};
use kapok::sync::{Mutex, Semaphore};

/// Clients at a time; others wait in the listener's backlog.
const CLIENTS: usize = 1000;
/// Lines that wait for a client.
const QUEUE: usize = 64;
/// The longest line, with its end.
const LINE_BYTES: usize = 4096;
/// What a client must be able to take within `PATIENCE`; one line more if it does not fit evenly.
const BATCH_BYTES: usize = 32 * 1024;
/// How long a client may be deaf, or be without a name.
const PATIENCE: Duration = Duration::from_secs(2);

type Line = Arc<[u8]>;

pub(crate) fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".into());
    kapok::Runtime::new()?.run(move || {
        let listener = TcpListener::bind(&address)?;
        // Asked for before anybody is told that the server is there.
        let mut signals = Signals::termination()?;
        println!("listening on {}", listener.local_addr()?);
        kapok::spawn_local(move || accept_all(&listener)).detach();
        // When this fiber ends, all the others are cancelled.
        signals.recv().map(drop)
    })
}

pub(crate) fn accept_all(listener: &TcpListener) {
    // One loop, one thread: its fibers may share by `Rc`.
    let room = Rc::new(Room::default());
    let places = Arc::new(Semaphore::new(CLIENTS));
    // An error is our cancellation.
    while let Ok(place) = Arc::clone(&places).acquire_owned() {
        match listener.accept() {
            Ok((stream, _)) => {
                let room = Rc::clone(&room);
                kapok::spawn_local(move || {
                    // How a client went is told in the room.
                    let _ = serve(&room, &stream);
                    drop(place);
                })
                .detach();
            }
            Err(error) if kapok::Canceled::is(&error) => return,
            Err(error) => {
                eprintln!("cannot accept: {error}");
                if kapok::sleep(Duration::from_millis(100)).is_err() {
                    return;
                }
            }
        }
    }
}

fn serve(room: &Room, stream: &TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (nick, lines) = kapok::timeout(PATIENCE, || enter(room, stream, &mut reader))?;
    // Both fibers borrow the stream, and the scope ends when both have.
    kapok::scope(|scope| {
        let writer = scope.spawn_local(move || write_all(stream, lines));
        // Not before there is a writer: this waits for the room, and the room may wait for a place
        // in our queue.
        room.say(&nick, format!("* {nick} joined\n").into_bytes().into());
        let heard = listen(room, &nick, &mut reader);
        // The queue goes with the member: the writer writes what is left, and ends.
        room.leave(&nick);
        let written = writer.join().unwrap_or_else(|error| Err(error.into()));
        let how = match (&written, &heard) {
            (Err(error), _) if error.kind() == io::ErrorKind::TimedOut => "was dropped: too slow",
            (_, Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                "was dropped: too long a line"
            }
            _ => "left",
        };
        room.say(&nick, format!("* {nick} {how}\n").into_bytes().into());
        heard.and(written)
    })
}

/// Asks until there is a name that can be had.
fn enter(
    room: &Room,
    mut stream: &TcpStream,
    reader: &mut impl BufRead,
) -> io::Result<(String, Receiver<Line>)> {
    stream.write_all(b"* your nick?\n")?;
    loop {
        let Some(line) = read_line(reader)? else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let nick = match std::str::from_utf8(line.trim_ascii()) {
            Ok(nick) if (1..=20).contains(&nick.len()) && is_word(nick) => nick.to_owned(),
            _ => {
                stream.write_all(b"* up to 20 letters and digits, please: your nick?\n")?;
                continue;
            }
        };
        match room.join(&nick) {
            Some(lines) => return Ok((nick, lines)),
            None => stream.write_all(b"* that one is taken: your nick?\n")?,
        }
    }
}

fn is_word(nick: &str) -> bool {
    nick.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Passes on what the client says until it has no more to say.
fn listen(room: &Room, nick: &str, reader: &mut impl BufRead) -> io::Result<()> {
    while let Some(line) = read_line(reader)? {
        room.say(nick, [nick.as_bytes(), b": ", &line, b"\n"].concat().into());
        // A client whose lines are all there already would go on without ever waiting.
        kapok::check_interrupted()?;
    }
    Ok(())
}

/// The next line without its end, or `None` at the end of the stream.
fn read_line(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let count = reader.take(LINE_BYTES as u64).read_until(b'\n', &mut line)?;
    if count == LINE_BYTES && !line.ends_with(b"\n") {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the line is too long"));
    }
    line.truncate(line.trim_ascii_end().len());
    Ok((count > 0).then_some(line))
}

/// The writer fiber: what is in the queue, as much as there is at a time.
fn write_all(mut stream: &TcpStream, lines: Receiver<Line>) -> io::Result<()> {
    let mut batch = Vec::new();
    // An error is the end: of the queue, which nobody sends into any more, or of the server.
    while let Ok(line) = lines.recv() {
        batch.clear();
        batch.extend_from_slice(&line);
        while batch.len() < BATCH_BYTES
            && let Ok(line) = lines.try_recv()
        {
            batch.extend_from_slice(&line);
        }
        let written = kapok::timeout(PATIENCE, || stream.write_all(&batch));
        if written.is_err() {
            // Whoever waits for a place in the queue is let go, and so is the client's reader.
            drop(lines);
            let _ = stream.shutdown(Shutdown::Both);
            return written;
        }
    }
    Ok(())
}

/// Who is there, and the queue of each.
///
/// The lock is held while a line is passed on, although that may wait: so everybody hears the lines
/// in the same order, and those who wait to speak hold one line each. It waits only for places in
/// queues, which their writers make without the lock: from its entry on a member has a writer before
/// it waits for anything.
#[derive(Default)]
struct Room(Mutex<BTreeMap<String, Sender<Line>>>);

impl Room {
    /// Gives the newcomer a queue, with who is there in it; `None` if the name is taken.
    fn join(&self, nick: &str) -> Option<Receiver<Line>> {
        let mut members = self.0.lock();
        if members.contains_key(nick) {
            return None;
        }
        let (sender, receiver) = channel::bounded(QUEUE);
        let present: Vec<&str> = members.keys().map(String::as_str).collect();
        let welcome = format!("* with you: {}\n", present.join(" "));
        // There is a place: nobody else has the sender yet.
        let _ = sender.try_send(welcome.into_bytes().into());
        members.insert(nick.to_owned(), sender);
        Some(receiver)
    }

    fn leave(&self, nick: &str) {
        self.0.lock().remove(nick);
    }

    /// Passes a line on to all but who said it. First to those who have room for it.
    fn say(&self, from: &str, line: Line) {
        let members = self.0.lock();
        let full = members
            .iter()
            .filter(|(nick, _)| *nick != from)
            .filter(|(_, queue)| queue.try_send(Arc::clone(&line)).is_err());
        for (_, queue) in full.collect::<Vec<_>>() {
            // An error: its writer has given up, and its reader is about to take it out.
            let _ = queue.send(Arc::clone(&line));
        }
    }
}
