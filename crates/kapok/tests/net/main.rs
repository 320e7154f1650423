//! Sockets: that they do what std's do, on fibers and on threads, and keep every byte.

mod accepting;
mod addresses;
mod datagrams;
#[path = "../harness/mod.rs"]
mod harness;
mod received;
mod sharing;
mod streams;
mod transfers;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use kapok::net::{TcpListener, TcpStream};

const SHORT: Duration = Duration::from_millis(5);

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, peer) = listener.accept().unwrap();
    assert_eq!(peer, client.local_addr().unwrap());
    // Or an echo in pieces waits for acknowledgements that are in no hurry.
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    (client, server)
}

fn echo<S>(stream: &S)
where
    for<'a> &'a S: Read + Write,
{
    let mut buf = [0; 4096];
    loop {
        match { stream }.read(&mut buf).unwrap() {
            0 => return,
            count => { stream }.write_all(&buf[..count]).unwrap(),
        }
    }
}

/// A path that nobody else uses; what is there goes with it.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        Place(std::env::temp_dir().join(format!("kapok-net-{}-{name}", std::process::id())))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
