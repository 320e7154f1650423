//! Clients that behave, and compare every byte that they get.
//!
//! A famine makes them wait, in the listener's backlog, and nothing worse: a connection that is
//! refused, cut or answered with anything but what was asked for is a finding, and so is a wait
//! beyond the patience.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::options::Speech;
use crate::random::Random;
use crate::server::BODY_BYTES;

/// Clients of an echo or an HTTP server; for a chat room, the members of the one group.
pub(crate) const GUESTS: usize = 3;
/// Findings that are kept in words; all are counted.
const KEPT_FINDINGS: usize = 20;
/// A message; it fits into the buffers of a connection, so that writing it whole before reading
/// cannot stop both sides.
const MESSAGE_BYTES: u64 = 32 * 1024;

/// What all clients of one server share.
pub(crate) struct Ledger {
    /// How the server is called.
    pub(crate) server: String,
    pub(crate) addr: SocketAddr,
    pub(crate) patience: Duration,
    /// Exchanges per second of one client.
    pub(crate) rate: f64,
    pub(crate) began: Instant,
    pub(crate) done: AtomicBool,
    /// Exchanges in which every byte was right.
    pub(crate) exchanges: AtomicU64,
    pub(crate) connections: AtomicU64,
    /// The longest exchange so far.
    pub(crate) longest_micros: AtomicU64,
    pub(crate) findings: Mutex<Findings>,
}

/// What was found.
#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) count: u64,
    pub(crate) kept: Vec<String>,
}

impl Ledger {
    pub(crate) fn found(&self, what: &str) {
        let line = format!("at {:.1} s: {what}", self.began.elapsed().as_secs_f64());
        eprintln!("FOUND in {} {line}", self.server);
        let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        findings.count += 1;
        if findings.kept.len() < KEPT_FINDINGS {
            findings.kept.push(line);
        }
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(self.addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(self.patience))?;
        self.connections.fetch_add(1, Ordering::Relaxed);
        Ok(stream)
    }

    fn exchanged(&self, began: Instant) -> io::Result<()> {
        let took = began.elapsed();
        self.longest_micros.fetch_max(took.as_micros() as u64, Ordering::Relaxed);
        // Each byte may have come in time, and all of them not.
        if took > self.patience {
            return Err(io::Error::other(format!("an exchange took {took:?}")));
        }
        self.exchanges.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn pause(&self, random: &mut Random) {
        thread::sleep(random.around(Duration::from_secs_f64(1.0 / self.rate)));
    }

    fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }
}

/// Comes and goes until it is done.
pub(crate) fn visit(ledger: &Ledger, speech: Speech, mut random: Random) {
    while !ledger.is_done() {
        let outcome = match speech {
            Speech::Echo => echo(ledger, &mut random),
            Speech::Http => http(ledger, &mut random),
            Speech::Chat => chat(ledger, &mut random),
        };
        if let Err(error) = outcome {
            ledger.found(&format!("a client that behaves: {error}"));
            ledger.pause(&mut random);
        }
    }
}

fn wrong(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// One connection; most of the time the server sees its end of input before its close.
fn echo(ledger: &Ledger, random: &mut Random) -> io::Result<()> {
    let mut stream = ledger.connect()?;
    for _ in 0..random.size(200) {
        let began = Instant::now();
        let length = random.size(MESSAGE_BYTES);
        let message = random.bytes(length);
        let mut rest = &message[..];
        while !rest.is_empty() {
            let (part, after) = rest.split_at(random.size(rest.len() as u64));
            stream.write_all(part)?;
            rest = after;
        }
        expect(&mut stream, &message)?;
        ledger.exchanged(began)?;
        if ledger.is_done() {
            break;
        }
        ledger.pause(random);
    }
    if random.one_in(4) { Ok(()) } else { expect_end(&mut stream) }
}

fn http(ledger: &Ledger, random: &mut Random) -> io::Result<()> {
    let mut stream = ledger.connect()?;
    for _ in 0..random.size(100) {
        let began = Instant::now();
        let (mut requests, mut replies) = (Vec::new(), Vec::new());
        for _ in 0..random.size(8) {
            push_exchange(random, &mut requests, &mut replies);
        }
        stream.write_all(&requests)?;
        expect(&mut stream, &replies)?;
        ledger.exchanged(began)?;
        if ledger.is_done() {
            break;
        }
        ledger.pause(random);
    }
    if random.one_in(2) {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n\r\n")?;
        expect(&mut stream, &reply("Connection: close\r\n", true))?;
    }
    if random.one_in(4) { Ok(()) } else { expect_end(&mut stream) }
}

/// A request, and what it must be answered with.
fn push_exchange(random: &mut Random, requests: &mut Vec<u8>, replies: &mut Vec<u8>) {
    match random.between(0, 5) {
        0 => {
            requests.extend_from_slice(b"HEAD / HTTP/1.1\r\nHost: soak\r\n\r\n");
            replies.extend_from_slice(&reply("", false));
        }
        1 => {
            let length = random.size(4096);
            let body = random.bytes(length);
            let head = format!("POST /any HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
            requests.extend_from_slice(head.as_bytes());
            requests.extend_from_slice(&body);
            replies.extend_from_slice(&reply("", true));
        }
        2 => {
            requests.extend_from_slice(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
            replies.extend_from_slice(&reply("Connection: keep-alive\r\n", true));
        }
        _ => {
            requests.extend_from_slice(b"GET / HTTP/1.1\r\nHost: soak\r\n\r\n");
            replies.extend_from_slice(&reply("", true));
        }
    }
}

fn reply(connection: &str, with_body: bool) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {BODY_BYTES}\r\n\
         {connection}\r\n"
    );
    let body = b"Hello, World!".iter().cycle().take(if with_body { BODY_BYTES } else { 0 });
    head.bytes().chain(body.copied()).collect()
}

/// Reads as many bytes as are expected and compares them.
fn expect(stream: &mut TcpStream, expected: &[u8]) -> io::Result<()> {
    let mut received = vec![0; expected.len()];
    stream.read_exact(&mut received)?;
    match received.iter().zip(expected).position(|(received, expected)| received != expected) {
        None => Ok(()),
        Some(at) => Err(wrong(format!(
            "byte {at} of {} is {:#04x} and should be {:#04x}",
            expected.len(),
            received[at],
            expected[at]
        ))),
    }
}

/// Says that there is no more and waits for the server to say the same; nothing may come before.
fn expect_end(stream: &mut TcpStream) -> io::Result<()> {
    // An error says that the server has closed already, which is as well.
    let _ = stream.shutdown(Shutdown::Write);
    match stream.read(&mut [0; 64])? {
        0 => Ok(()),
        surplus => Err(wrong(format!("{surplus} bytes that nobody asked for"))),
    }
}

/// A member of the room that says what the others must hear.
struct Member {
    nick: String,
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Member {
    fn enter(ledger: &Ledger, random: &mut Random) -> io::Result<Member> {
        let mut stream = ledger.connect()?;
        // Unlike the names of those that do not behave, and of former members.
        let nick = format!("g{:016x}", random.next());
        stream.write_all(format!("{nick}\n").as_bytes())?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        while !line.starts_with("* with you:") {
            line = read_line(&mut reader)?;
            if !line.starts_with("* ") {
                return Err(wrong(format!("{line:?} before the room was entered")));
            }
        }
        Ok(Member { nick, stream, reader })
    }
}

fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 || !line.ends_with('\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line)
}

/// A group of members, who take turns: what one says, all others hear, each line once and in order,
/// among the lines of strangers.
fn chat(ledger: &Ledger, random: &mut Random) -> io::Result<()> {
    let mut members = Vec::new();
    for _ in 0..GUESTS {
        let began = Instant::now();
        members.push(Member::enter(ledger, random)?);
        ledger.exchanged(began)?;
    }
    for _ in 0..random.size(300) {
        for speaker in 0..members.len() {
            let began = Instant::now();
            let count = random.between(1, 4);
            let lengths: Vec<usize> = (0..count).map(|_| random.size(1000)).collect();
            let said: Vec<String> =
                lengths.into_iter().map(|length| random.letters(length)).collect();
            members[speaker].stream.write_all((said.join("\n") + "\n").as_bytes())?;
            let nick = members[speaker].nick.clone();
            for listener in (0..members.len()).filter(|listener| *listener != speaker) {
                for line in &said {
                    hear(ledger, &mut members[listener], &nick, line)?;
                }
            }
            ledger.exchanged(began)?;
        }
        if ledger.is_done() {
            break;
        }
        ledger.pause(random);
    }
    Ok(())
}

/// Reads up to the line of `nick`, which must be the next of the group.
fn hear(ledger: &Ledger, member: &mut Member, nick: &str, line: &str) -> io::Result<()> {
    let give_up = Instant::now() + ledger.patience;
    loop {
        let heard = read_line(&mut member.reader)?;
        match heard.trim_end().split_once(": ") {
            Some((from, text)) if from == nick && text == line => return Ok(()),
            Some((from, _)) if from.starts_with('g') => {
                return Err(wrong(format!("{heard:?} instead of {nick}: {line}")));
            }
            // A stranger, or the room itself, and on time or not.
            _ if Instant::now() > give_up => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "only strangers are heard"));
            }
            _ if heard.starts_with('x') || heard.starts_with("* ") => {}
            _ => return Err(wrong(format!("{heard:?} is nobody's line"))),
        }
    }
}
