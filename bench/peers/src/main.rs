//! The servers that Kapok is held against: echo and HTTP on other runtimes, on one thread.
//!
//! Each is written the way its own project would write it; what a request costs beside the I/O is
//! the lab's [`workload`](kapok_lab::workload) for HTTP, so parser and replies are the same. Echo
//! gives back the buffer that it was read into.
//!
//! ```text
//! peers monoio --addr 127.0.0.1:0 --protocol echo
//! ```

mod compio;
mod glommio;
mod may;
mod monoio;
mod work;

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};

use clap::{Parser, ValueEnum};
use socket2::{Domain, Protocol, Socket, Type};

use work::{Speech, Work};

/// What the lab's own models listen with.
const BACKLOG: i32 = 4096;

/// Serves echo or HTTP on another runtime, until it is ended by a signal.
#[derive(Parser)]
struct Arguments {
    /// The runtime.
    runtime: Runtime,
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    addr: SocketAddr,
    /// What to speak.
    #[arg(long, default_value = "echo")]
    protocol: Speech,
    /// Size of the buffer that each connection reads into.
    #[arg(long, default_value_t = 16 * 1024, value_name = "BYTES")]
    buffer: usize,
    /// Size of the HTTP reply's body.
    #[arg(long, default_value_t = 13, value_name = "BYTES")]
    body: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Runtime {
    Monoio,
    Compio,
    Glommio,
    May,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    let listener = listen(arguments.addr)?;
    let work = Work::new(arguments.protocol, arguments.buffer, arguments.body);
    println!("listening on {}", listener.local_addr()?);
    io::stdout().flush()?;
    match arguments.runtime {
        Runtime::Monoio => monoio::serve(listener, work),
        Runtime::Compio => compio::serve(listener, work),
        Runtime::Glommio => glommio::serve(listener, work),
        Runtime::May => may::serve(listener, work),
    }
}

/// As the lab's own models listen: connections inherit `TCP_NODELAY`.
fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
