//! Lab 4 and Lab 5 once more: an echo server, a fiber per connection.
//!
//! ```text
//! cargo run -p kapok --example lab_fibers [ADDRESS]
//! ```
//!
//! It is the blocking server of Lab 4 (`lab4_blocking_echo` in `kapok-lab`), with `std::net` and
//! `thread::spawn` replaced. It waits like the async server of Lab 5 (`lab5_async_echo`): where a
//! call would block its fiber steps aside, and one thread runs whatever can go on.

use std::env;
use std::io::{self, Read, Write};

use kapok::net::{TcpListener, TcpStream};

fn main() -> io::Result<()> {
    kapok::Runtime::new()?.run(serve)
}

fn serve() -> io::Result<()> {
    let address = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".into());
    let listener = TcpListener::bind(&address)?;
    println!("listening on {}", listener.local_addr()?);

    for stream in listener.incoming() {
        // The fiber waits here until somebody connects; its thread does not.
        let stream = stream?;
        let fiber = kapok::spawn(move || {
            if let Err(error) = echo(stream) {
                eprintln!("connection ended: {error}");
            }
        });
        fiber.detach();
    }
    Ok(())
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 16 * 1024];
    loop {
        // The fiber waits here; the kernel writes into `buffer` all the same. 0 means closed.
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        // The fiber waits here while the peer does not read.
        stream.write_all(&buffer[..n])?;
    }
}
