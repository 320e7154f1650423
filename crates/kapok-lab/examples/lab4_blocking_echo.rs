//! Lab 4: a blocking echo server, a thread per connection, with nothing but the standard library.
//!
//! ```text
//! cargo run -p kapok-lab --example lab4_blocking_echo [ADDRESS]
//! ```
//!
//! Each thread sleeps in `read` until its peer has sent something; the kernel does all the waiting.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::{env, thread};

fn main() -> io::Result<()> {
    let address = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".into());
    let listener = TcpListener::bind(&address)?;
    println!("listening on {}", listener.local_addr()?);

    for stream in listener.incoming() {
        // Blocks here until somebody connects.
        let stream = stream?;
        thread::spawn(move || {
            if let Err(error) = echo(stream) {
                eprintln!("connection ended: {error}");
            }
        });
    }
    Ok(())
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 16 * 1024];
    loop {
        // Blocks here until the peer sends. The buffer is not empty, so 0 means that it has closed.
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        // Blocks here while the peer does not read.
        stream.write_all(&buffer[..n])?;
    }
}
