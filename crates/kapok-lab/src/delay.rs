//! A server that is slow on purpose: what a handler waits for that asks another service.
//!
//! It sends every byte back, after a fixed time. The time is kept here, so that what asks it can wait in
//! whatever way its model waits.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
#[cfg(target_os = "linux")]
use std::os::unix::thread::JoinHandleExt;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use crate::Stop;
use crate::load::poll_until;
#[cfg(target_os = "linux")]
use crate::meters::clock_time;

const STOP: Token = Token(usize::MAX - 1);
const LISTENER: Token = Token(usize::MAX - 2);

/// A thread that answers every byte after a fixed time. Dropping it stops it.
#[derive(Debug)]
pub struct DelayServer {
    addr: SocketAddr,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl DelayServer {
    /// Listens on a free port of the loopback address.
    ///
    /// # Errors
    ///
    /// What binding the address, or making the selector or the thread, gave.
    pub fn start(delay: Duration) -> io::Result<DelayServer> {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let addr = listener.local_addr()?;
        let stop = Stop::new()?;
        let server = Server::new(listener, &stop, delay)?;
        let thread = thread::Builder::new().name("delay".into()).spawn(move || {
            if let Err(error) = server.run() {
                tracing::warn!("the delay server ended: {error}");
            }
        })?;
        Ok(DelayServer { addr, stop, thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// CPU time that its thread has used; `None` where the system does not tell, or if the thread has ended.
    #[cfg(target_os = "linux")]
    pub(crate) fn cpu_time(&self) -> Option<Duration> {
        // One library has a pointer here.
        #[allow(clippy::unnecessary_cast, reason = "it is the same type in glibc")]
        let thread = self.thread.as_ref()?.as_pthread_t() as libc::pthread_t;
        let mut clock = 0;
        // SAFETY: nobody joins the thread while this is borrowed, so it is still known by its handle; `clock` is
        // a clockid_t that outlives the call.
        if unsafe { libc::pthread_getcpuclockid(thread, &mut clock) } != 0 {
            return None;
        }
        clock_time(clock).ok()
    }

    /// Which core the thread has is not known here either.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn cpu_time(&self) -> Option<Duration> {
        None
    }
}

impl Drop for DelayServer {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            // It ends by itself; a panic in it was printed.
            let _ = thread.join();
        }
    }
}

/// A reply that is due some time.
struct Due {
    at: Instant,
    slot: usize,
    /// Whose it is: a slot is used again.
    serial: u64,
    bytes: usize,
}

struct Server {
    listener: TcpListener,
    stop: Stop,
    delay: Duration,
    poll: Poll,
    slots: Vec<Option<(u64, TcpStream)>>,
    free: Vec<usize>,
    serial: u64,
    /// All wait equally long, so the first that came is the first that is due.
    due: VecDeque<Due>,
}

impl Server {
    fn new(mut listener: TcpListener, stop: &Stop, delay: Duration) -> io::Result<Server> {
        let poll = Poll::new()?;
        let fd = stop.as_fd().as_raw_fd();
        poll.registry().register(&mut SourceFd(&fd), STOP, Interest::READABLE)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let stop = stop.clone();
        let (slots, free, due) = (Vec::new(), Vec::new(), VecDeque::new());
        Ok(Server { listener, stop, delay, poll, slots, free, serial: 0, due })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        while !self.stop.requested() {
            let wait = self.due.front().map_or(Duration::from_secs(3600), |due| {
                due.at.saturating_duration_since(Instant::now())
            });
            match poll_until(&mut self.poll, &mut events, wait.as_nanos() as u64) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                match event.token() {
                    STOP => {}
                    LISTENER => self.accept(),
                    Token(slot) => self.receive(slot),
                }
            }
            self.reply();
        }
        Ok(())
    }

    fn accept(&mut self) {
        // A connection that cannot be accepted or registered is seen closed by who asked for it.
        while let Ok((mut stream, _)) = self.listener.accept() {
            let slot = self.free.pop().unwrap_or_else(|| {
                self.slots.push(None);
                self.slots.len() - 1
            });
            let _ = stream.set_nodelay(true);
            if self.poll.registry().register(&mut stream, Token(slot), Interest::READABLE).is_ok() {
                self.serial += 1;
                self.slots[slot] = Some((self.serial, stream));
            } else {
                self.free.push(slot);
            }
        }
    }

    fn receive(&mut self, slot: usize) {
        let Some(Some((serial, stream))) = self.slots.get_mut(slot) else { return };
        let serial = *serial;
        let at = Instant::now() + self.delay;
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer) {
                Ok(bytes @ 1..) => self.due.push_back(Due { at, slot, serial, bytes }),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => return self.close(slot),
            }
        }
    }

    fn reply(&mut self) {
        let now = Instant::now();
        while self.due.front().is_some_and(|due| due.at <= now) {
            let Some(due) = self.due.pop_front() else { break };
            let Some(Some((serial, stream))) = self.slots.get_mut(due.slot) else { continue };
            if *serial != due.serial {
                continue;
            }
            // Who lets a whole socket buffer of replies pile up is no longer waiting for them.
            match stream.write(&[0; 4096][..due.bytes]) {
                Ok(written) if written == due.bytes => {}
                _ => self.close(due.slot),
            }
        }
    }

    fn close(&mut self, slot: usize) {
        self.slots[slot] = None;
        self.free.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn bytes_come_back_when_their_time_is_over_and_all_of_them_do() {
        let delay = Duration::from_millis(30);
        let server = DelayServer::start(delay).unwrap();
        let mut streams: Vec<TcpStream> =
            (0..60).map(|_| TcpStream::connect(server.addr()).unwrap()).collect();
        let begun = Instant::now();
        for stream in &mut streams {
            stream.write_all(b"??").unwrap();
        }
        for stream in &mut streams {
            let mut replies = [0; 2];
            stream.read_exact(&mut replies).unwrap();
        }
        let took = begun.elapsed();
        // All at once: one after the other would be 60 times the delay.
        assert!(took >= delay && took < delay * 40, "{took:?}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_it_takes_of_a_core_is_told_while_it_serves() {
        let server = DelayServer::start(Duration::from_millis(1)).unwrap();
        let mut stream = TcpStream::connect(server.addr()).unwrap();
        let mut exchange = || {
            stream.write_all(b"?").unwrap();
            stream.read_exact(&mut [0]).unwrap();
        };
        exchange();
        let (begun, before) = (Instant::now(), server.cpu_time().unwrap());
        for _ in 0..100 {
            exchange();
        }
        let used = server.cpu_time().unwrap() - before;
        let took = begun.elapsed();
        // Some microseconds for each; most of the time it waited.
        assert!(used > Duration::from_micros(50) && used < took, "{used:?} of {took:?}");
    }

    #[test]
    fn a_reply_to_who_has_gone_reaches_nobody_else() {
        let delay = Duration::from_millis(300);
        let server = DelayServer::start(delay).unwrap();
        let mut gone = TcpStream::connect(server.addr()).unwrap();
        gone.write_all(b"?").unwrap();
        // Asked, then closed, each long enough before what follows to be seen in this order.
        thread::sleep(delay / 6);
        drop(gone);
        thread::sleep(delay / 6);
        // It takes the place that has become free.
        let mut next = TcpStream::connect(server.addr()).unwrap();
        let begun = Instant::now();
        next.write_all(b"?").unwrap();
        next.read_exact(&mut [0]).unwrap();
        assert!(begun.elapsed() >= delay, "the other's reply, after {:?}", begun.elapsed());
    }
}
