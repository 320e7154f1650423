//! Lab 6: an echo server on Kapok's fibers, a fiber per connection.
//!
//! ```text
//! cargo run -p kapok-lab --example lab6_fiber_echo [ADDRESS]
//! ```
//!
//! It is the blocking server of Lab 4, with `kapok` where that has `std`. At each call that waits the
//! fiber steps aside, and its thread goes on with another.

use std::io::{self, Read, Write};

use kapok::net::{TcpListener, TcpStream};

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".into());
    kapok::Runtime::new()?.run(move || {
        let listener = TcpListener::bind(&address)?;
        println!("listening on {}", listener.local_addr()?);
        loop {
            // The fiber waits here until somebody connects; its thread does not.
            let (stream, _peer) = listener.accept()?;
            kapok::spawn(move || {
                if let Err(error) = echo(stream) {
                    eprintln!("connection ended: {error}");
                }
            })
            .detach();
        }
    })
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 16 * 1024];
    loop {
        // The buffer is lent to the kernel as it is. 0 means that the peer has closed.
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..n])?;
    }
}
