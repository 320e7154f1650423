//! What a message takes to somebody and back.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{Subject, middle_of};
use crate::compare::environment::pin;

/// The size of the message.
const BYTES: usize = 64;

pub(super) fn subjects(cores: &[usize], peer: Option<SocketAddr>) -> Vec<Subject> {
    let core = cores.last().copied();
    let mut subjects = vec![Subject::new(
        "loopback round trip",
        None,
        "64 bytes over TCP to a blocking thread and back, the middle one of 200; loopback never leaves the \
         kernel",
        move || {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let address = listener.local_addr()?;
            let thread = thread::spawn(move || {
                // Without a core of its own it echoes all the same.
                let _ = core.map(|core| pin(&[core]));
                let Ok((mut stream, _)) = listener.accept() else { return };
                let mut message = [0; BYTES];
                let _ = stream.set_nodelay(true);
                while stream.read_exact(&mut message).is_ok() && stream.write_all(&message).is_ok()
                {
                }
            });
            let stream = TcpStream::connect(address)?;
            let mut echo = Echo { stream, thread: Some(thread) };
            echo.stream.set_nodelay(true)?;
            Ok(Box::new(move || echo.round_trips(200)))
        },
    )];
    const NAME: &str = "network round trip";
    const BOOK_NS: f64 = 1_000_000.0;
    subjects.push(match peer {
        None => Subject::absent(NAME, BOOK_NS, "give --peer, an echo server on another machine"),
        Some(peer) => Subject::new(
            NAME,
            BOOK_NS,
            format!("64 bytes over TCP to the echo server {peer} and back"),
            move || {
                let stream = TcpStream::connect_timeout(&peer, Duration::from_secs(5))?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                let mut echo = Echo { stream, thread: None };
                Ok(Box::new(move || echo.round_trips(10)))
            },
        ),
    });
    subjects
}

struct Echo {
    stream: TcpStream,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn round_trips(&mut self, times: usize) -> std::io::Result<f64> {
        let message = [7; BYTES];
        let mut reply = [0; BYTES];
        middle_of(times, || {
            self.stream.write_all(&message)?;
            self.stream.read_exact(&mut reply)?;
            if reply == message { Ok(()) } else { Err(std::io::Error::other("it does not echo")) }
        })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
