//! Clients that do everything wrong, in a process that is there to be killed.
//!
//! One thread, a list of connections, and a look at each every [`TICK`]. What they send is right now
//! and then, so that the server has something to be interrupted in.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use crate::options::Speech;
use crate::random::Random;
use crate::server;

const TICK: Duration = Duration::from_millis(10);
/// Connections at a time, but for those that bring a famine.
const CONNECTIONS: usize = 60;
/// Of these, clients of a chat room that may make all others wait for their patience.
const DEAF_IN_A_ROOM: usize = 3;
const SPEECH: &str = "KAPOK_SOAK_SPEECH";
const ADDRESS: &str = "KAPOK_SOAK_ADDRESS";
const SEED: &str = "KAPOK_SOAK_SEED";
const RATE: &str = "KAPOK_SOAK_RATE";
const DESCRIPTORS: &str = "KAPOK_SOAK_DESCRIPTORS";

/// Starts a process of them. It goes on until it is killed.
pub(crate) fn start(
    speech: Speech,
    addr: SocketAddr,
    seed: u64,
    rate: f64,
    descriptors: u64,
) -> io::Result<Child> {
    let mut command: Command = server::command("nuisance", None)?;
    command
        .env(SPEECH, speech.name())
        .env(ADDRESS, addr.to_string())
        .env(SEED, seed.to_string())
        .env(RATE, rate.to_string())
        .env(DESCRIPTORS, descriptors.to_string())
        .spawn()
}

/// The child's part.
pub(crate) fn run() -> io::Result<()> {
    fn variable<T: std::str::FromStr>(name: &str) -> io::Result<T> {
        let value = std::env::var(name).ok().and_then(|value| value.parse().ok());
        value.ok_or_else(|| io::Error::other(format!("{name} is not set")))
    }
    let speech = Speech::named(&variable::<String>(SPEECH)?);
    let mut crowd = Crowd {
        speech: speech.ok_or_else(|| io::Error::other(format!("{SPEECH} is wrong")))?,
        addr: variable(ADDRESS)?,
        random: Random(variable(SEED)?),
        descriptors: variable(DESCRIPTORS)?,
        clients: Vec::new(),
    };
    let pause = Duration::from_secs_f64(1.0 / variable::<f64>(RATE)?);
    let mut next = Instant::now();
    // The first soon: the shortest run is to see one in every period.
    let mut famine = Instant::now() + crowd.random.around(Duration::from_secs(2));
    loop {
        let now = Instant::now();
        // A backlog would come as a burst, which is an event of its own.
        while next <= now {
            next = next.max(now) + crowd.random.around(pause);
            crowd.arrive();
        }
        if famine <= now {
            famine = now + crowd.random.around(Duration::from_secs(12));
            crowd.bring_famine();
        }
        crowd.clients.retain_mut(Client::go_on);
        thread::sleep(TICK);
    }
}

/// What a client does with its connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Habit {
    /// Sends all it can and reads all there is.
    Brisk,
    /// Sends all it can and reads nothing.
    Deaf,
    /// Sends a byte now and then.
    Trickles,
    /// Sends all it can and reads a byte now and then.
    Sips,
    /// Sends all it has, says that there is no more, and reads to the end.
    HalfCloses,
    /// Neither sends nor reads.
    Idles,
}

struct Client {
    stream: Socket,
    habit: Habit,
    output: Vec<u8>,
    sent: usize,
    said_all: bool,
    leaves: Instant,
    resets: bool,
    /// When the next byte of those that take their time is due, and how much time they take.
    next_byte: Instant,
    pause: Duration,
}

impl Client {
    /// One look at the connection; false when the client has gone.
    fn go_on(&mut self) -> bool {
        let now = Instant::now();
        let outcome = self.exchange(now);
        if now < self.leaves && outcome.is_ok() {
            return true;
        }
        if self.resets {
            // The close becomes a reset, whatever is under way.
            let _ = self.stream.set_linger(Some(Duration::ZERO));
        }
        false
    }

    fn exchange(&mut self, now: Instant) -> io::Result<()> {
        let byte_due = now >= self.next_byte;
        if byte_due {
            self.next_byte = now + self.pause;
        }
        let sends = match self.habit {
            Habit::Idles => 0,
            Habit::Trickles => usize::from(byte_due),
            _ => usize::MAX,
        };
        let end = self.output.len().min(self.sent.saturating_add(sends));
        while self.sent < end {
            match would_block((&self.stream).write(&self.output[self.sent..end]))? {
                Some(count) => self.sent += count,
                None => break,
            }
        }
        if self.habit == Habit::HalfCloses && self.sent == self.output.len() && !self.said_all {
            self.said_all = true;
            self.stream.shutdown(Shutdown::Write)?;
        }
        let mut buffer = [0; 16 * 1024];
        let space = match self.habit {
            Habit::Idles | Habit::Deaf => return Ok(()),
            Habit::Sips if byte_due => &mut buffer[..1],
            Habit::Sips => return Ok(()),
            _ => &mut buffer[..],
        };
        // A bounded number of times: one that is sent to all the time would keep the others waiting.
        for _ in 0..if self.habit == Habit::Sips { 1 } else { 8 } {
            match would_block((&self.stream).read(space))? {
                Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(_) => {}
                None => break,
            }
        }
        Ok(())
    }
}

/// The count, or none if the socket was not ready.
fn would_block(outcome: io::Result<usize>) -> io::Result<Option<usize>> {
    match outcome {
        Ok(count) => Ok(Some(count)),
        // Not connected yet: it was opened without waiting.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

struct Crowd {
    speech: Speech,
    addr: SocketAddr,
    random: Random,
    descriptors: u64,
    clients: Vec<Client>,
}

impl Crowd {
    /// One comes, or many at once.
    fn arrive(&mut self) {
        let random = &mut self.random;
        let stays = Duration::from_millis(1 << random.between(0, 13));
        let habits = [
            Habit::Brisk,
            Habit::Deaf,
            Habit::Trickles,
            Habit::Sips,
            Habit::HalfCloses,
            Habit::Idles,
        ];
        let habit = habits[random.between(0, habits.len() as u64 - 1) as usize];
        if random.one_in(50) {
            for _ in 0..random.between(10, 40) {
                let stays = Duration::from_millis(self.random.between(0, 200));
                self.enter(habit, stays);
            }
        } else if self.clients.len() < CONNECTIONS {
            self.enter(habit, stays);
        }
    }

    /// More connections than the server has descriptors for, held for a while.
    fn bring_famine(&mut self) {
        let stays = Duration::from_millis(self.random.between(500, 2500));
        for _ in 0..self.descriptors {
            self.enter(Habit::Idles, stays);
        }
    }

    fn enter(&mut self, habit: Habit, stays: Duration) {
        let deaf = |client: &&Client| matches!(client.habit, Habit::Deaf | Habit::Sips);
        let quiet = self.speech == Speech::Chat
            && matches!(habit, Habit::Deaf | Habit::Sips)
            && self.clients.iter().filter(deaf).count() >= DEAF_IN_A_ROOM;
        let Ok(stream) = connect(self.addr) else {
            return;
        };
        if habit != Habit::Idles && self.random.one_in(2) {
            let _ = SockRef::from(&stream).set_recv_buffer_size(4096);
        }
        let output = if habit == Habit::Idles { Vec::new() } else { self.output() };
        let now = Instant::now();
        self.clients.push(Client {
            stream,
            habit: if quiet { Habit::Brisk } else { habit },
            output,
            sent: 0,
            said_all: false,
            leaves: now + stays,
            resets: self.random.one_in(2),
            next_byte: now,
            pause: Duration::from_millis(self.random.between(10, 1000)),
        });
    }

    /// What it has to say.
    fn output(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        if random.one_in(8) {
            // Nothing that anybody could mean: no end of a line, no letter.
            let length = random.size(64 * 1024);
            return random.bytes(length).into_iter().map(|byte| byte | 0x80).collect();
        }
        match self.speech {
            Speech::Echo => {
                let length = random.size(1024 * 1024);
                random.bytes(length)
            }
            Speech::Http => requests(random),
            Speech::Chat => talk(random),
        }
    }
}

/// Connects without waiting: at a famine the backlog may be full.
fn connect(addr: SocketAddr) -> io::Result<Socket> {
    let stream = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    stream.set_nonblocking(true)?;
    match stream.connect(&addr.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(stream),
    }
}

fn requests(random: &mut Random) -> Vec<u8> {
    let mut output = Vec::new();
    let last = random.between(0, 9);
    for _ in 0..random.size(400) {
        output.extend_from_slice(b"GET / HTTP/1.1\r\nHost: soak\r\n\r\n");
    }
    match last {
        // A body that does not come, or not all of it.
        0 => output.extend_from_slice(b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\nhalf a"),
        1 => {
            output.extend_from_slice(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n")
        }
        2 => output.extend_from_slice(b"GET / HTTP/1.0\r\n\r\nGET / HTTP/1.0\r\n\r\n"),
        3 => output.extend_from_slice(b"HEAD / HTTP/1.1\r\nConnection: close\r\n\r\n"),
        // A head without end.
        4 => {
            output.extend_from_slice(b"GET / HTTP/1.1\r\n");
            for number in 0..random.between(1, 2000) {
                output.extend_from_slice(format!("X-{number}: {number}\r\n").as_bytes());
            }
        }
        5 => output.extend_from_slice(b"GET / HT"),
        _ => {}
    }
    output
}

fn talk(random: &mut Random) -> Vec<u8> {
    let mut output = format!("x{}\n", random.letters(12)).into_bytes();
    for _ in 0..random.size(64) {
        let length = random.size(400);
        output.extend_from_slice(random.letters(length).as_bytes());
        output.push(b'\n');
    }
    if random.one_in(10) {
        output.extend_from_slice(random.letters(5000).as_bytes());
    }
    output
}
