//! Lab 5: an async echo server, a task per connection, on tokio.
//!
//! ```text
//! cargo run -p kapok-lab --example lab5_async_echo [ADDRESS]
//! ```
//!
//! It reads like the blocking server of Lab 4. At each `.await` the task steps aside, and a few
//! threads, which wait in one epoll call for all sockets, run whatever can go on.

use std::{env, io};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::main]
async fn main() -> io::Result<()> {
    let address = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".into());
    let listener = TcpListener::bind(&address).await?;
    println!("listening on {}", listener.local_addr()?);

    loop {
        let (stream, _peer) = listener.accept().await?;
        tokio::spawn(async move {
            if let Err(error) = echo(stream).await {
                eprintln!("connection ended: {error}");
            }
        });
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 16 * 1024];
    loop {
        // The task waits here; its thread does not. 0 means that the peer has closed.
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..n]).await?;
    }
}
