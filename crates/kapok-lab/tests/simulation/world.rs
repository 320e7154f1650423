//! One seed: a runtime on a simulated engine, and what is allowed to fail in it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use fastrand::Rng;
use kapok::Runtime;
use kapok::net::{TcpListener, TcpStream};
use kapok::sim::{Config, Faults};
use kapok_lab::{Protocol, ServeConfig, Served, serve_on_fibers};

/// How many seeds a test runs.
fn seeds() -> std::ops::Range<u64> {
    if let Ok(seed) = std::env::var("KAPOK_SIM_SEED") {
        let seed = seed.parse().expect("KAPOK_SIM_SEED is a number");
        return seed..seed + 1;
    }
    let full = std::env::var("KAPOK_SCALE").is_ok_and(|scale| scale == "full");
    0..if full { 100_000 } else { 10_000 }
}

/// Runs `body` in the world of each seed.
pub(crate) fn for_each_seed(body: fn(&mut World)) {
    for seed in seeds() {
        let outcome = catch_unwind(|| run(seed, body));
        if let Err(panic) = outcome {
            eprintln!("failed with seed {seed}: KAPOK_SIM_SEED={seed} runs it again");
            resume_unwind(panic);
        }
    }
}

/// Runs `body` as the main fiber of one world.
pub(crate) fn run(seed: u64, body: fn(&mut World)) {
    let mut random = Rng::with_seed(seed);
    // Every other network breaks nothing: there every byte must arrive.
    let breaks = random.bool();
    let mut config = Config::new(seed);
    config.buffer_bytes = 1 << random.u32(6..=16);
    config.stuck_after = Some(Duration::from_secs(5));
    config.faults = if breaks { Faults::some() } else { Faults::benign() };
    let runtime = Runtime::builder().simulation(config).build().expect("a simulated runtime");
    runtime.run(move || {
        body(&mut World { random, breaks });
        // What the servers' own limits end is over by then.
        kapok::sleep(Duration::from_secs(120)).expect("nobody cancels the main fiber");
        assert_eq!(live_fibers(), 1, "fibers are left behind");
    });
}

/// How many fibers live on the calling thread's loop.
fn live_fibers() -> u64 {
    let thread = std::thread::current();
    let metrics = kapok::metrics();
    let here = metrics.loops.iter().find(|one| Some(one.thread.as_str()) == thread.name());
    here.expect("a test runs on a thread with its name").counts.fibers.live
}

/// What a test of one seed draws from.
pub(crate) struct World {
    pub(crate) random: Rng,
    /// Connections may be reset, refused, and descriptors denied.
    pub(crate) breaks: bool,
}

impl World {
    /// Serves `protocol` while `clients` runs.
    pub(crate) fn serve(
        &mut self,
        protocol: Protocol,
        clients: impl FnOnce(&mut World, SocketAddr),
    ) -> Option<Served> {
        let listener = self.listen()?;
        let address = listener.local_addr().expect("it listens");
        let config = ServeConfig {
            protocol,
            body_bytes: BODY_BYTES,
            buffer_bytes: self.random.usize(16..4096),
            ..ServeConfig::default()
        };
        let (stop, mut stopped) = kapok::sync::oneshot::channel::<()>();
        let drain = config.drain_timeout;
        let server = kapok::spawn_local(move || {
            serve_on_fibers(&config, listener, move || stopped.recv().map_err(io::Error::other))
        });
        clients(self, address);
        let began = kapok::time::now();
        stop.send(()).expect("the server listens");
        let served = server.join().expect("no panic");
        assert!(kapok::time::now() - began < drain, "connections were left whose clients had gone");
        Some(served.expect("no error ends the server"))
    }

    /// Listens, unless this network denies it.
    pub(crate) fn listen(&mut self) -> Option<TcpListener> {
        match TcpListener::bind("127.0.0.1:0") {
            Ok(listener) => Some(listener),
            Err(error) => {
                assert!(self.breaks, "{error}");
                None
            }
        }
    }
}

pub(crate) const BODY_BYTES: usize = 100;

/// A client's own randomness and its tolerance.
pub(crate) struct Client {
    pub(crate) random: Rng,
    pub(crate) breaks: bool,
}

impl Client {
    pub(crate) fn of(world: &mut World) -> Client {
        Client { random: world.random.fork(), breaks: world.breaks }
    }

    /// A success, or none if this network may have caused the failure.
    pub(crate) fn allow<T>(&self, result: io::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let kind = error.kind();
                assert!(
                    kind != io::ErrorKind::WouldBlock && kind != io::ErrorKind::Interrupted,
                    "a fiber must never see {error}"
                );
                assert!(self.breaks, "nothing breaks on this network, but: {error}");
                None
            }
        }
    }

    pub(crate) fn connect(&self, address: SocketAddr) -> Option<TcpStream> {
        self.allow(TcpStream::connect(address))
    }

    /// Sends in pieces of any size, with pauses.
    pub(crate) fn send(&mut self, mut stream: &TcpStream, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() {
            let piece = self.random.usize(1..=bytes.len().min(5000));
            self.allow(stream.write_all(&bytes[..piece]))?;
            bytes = &bytes[piece..];
            self.pause();
        }
        Some(())
    }

    /// What comes until the end of the stream, by reads of any size. The flag: it came to its end.
    pub(crate) fn receive(&mut self, mut stream: &TcpStream) -> (Vec<u8>, bool) {
        let mut all = Vec::new();
        let mut buffer = [0; 3000];
        loop {
            let room = self.random.usize(1..=buffer.len());
            match self.allow(stream.read(&mut buffer[..room])) {
                None => return (all, false),
                Some(0) => return (all, true),
                Some(count) => all.extend_from_slice(&buffer[..count]),
            }
            self.pause();
        }
    }

    /// Sends `bytes` while it receives what comes; shuts its side down in the end if `ends`. Whether
    /// all was sent, what came, and whether it came to its end.
    pub(crate) fn exchange(
        &mut self,
        stream: &TcpStream,
        bytes: &[u8],
        ends: bool,
    ) -> (bool, Vec<u8>, bool) {
        let mut sender = Client { random: self.random.fork(), breaks: self.breaks };
        kapok::scope(|scope| {
            let sending = scope.spawn_local(move || {
                sender.send(stream, bytes)?;
                if ends { sender.allow(stream.shutdown(Shutdown::Write)) } else { Some(()) }
            });
            let (received, ended) = self.receive(stream);
            (sending.join().expect("no panic").is_some(), received, ended)
        })
    }

    pub(crate) fn pause(&mut self) {
        if self.random.u8(..) < 60 {
            let pause = Duration::from_micros(self.random.u64(0..20_000));
            kapok::sleep(pause).expect("nobody cancels clients");
        }
    }
}

/// Runs one fiber for each client and waits for all of them.
pub(crate) fn run_clients(world: &mut World, count: usize, client: impl Fn(Client) + Copy) {
    kapok::scope(|scope| {
        for _ in 0..count {
            let one = Client::of(world);
            scope.spawn_local(move || client(one));
        }
    });
}

/// Repeats a panic of a world where it can be looked at: its message.
pub(crate) fn message_of(seed: u64, body: fn(&mut World)) -> Option<String> {
    let panic = catch_unwind(AssertUnwindSafe(|| run(seed, body))).err()?;
    Some(match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(other) => {
            other.downcast::<&str>().map_or_else(|_| String::new(), |text| (*text).into())
        }
    })
}
