//! Echo and HTTP on Kapok, on the runtimes that it is held against, and as two loops by hand.
//!
//! Each is written the way its own project would write it: bare, without the limits and time-outs
//! that the lab's servers have. What a request costs beside the I/O is the lab's
//! [`workload`](kapok_lab::workload) for HTTP, so parser and replies are the same. Echo gives back
//! the buffer that it was read into. mio is the lab's own model, as mio is no runtime.
//!
//! ```text
//! servers monoio --addr 127.0.0.1:0 --protocol echo
//! ```

mod compio;
mod epoll;
mod glommio;
mod kapok;
mod may;
mod monoio;
mod tokio;
mod uring;
mod work;

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};

use ::kapok::Kind;
use clap::{Parser, ValueEnum};
use kapok_lab::{Model, ServeConfig, Stop};
use socket2::{Domain, Protocol, Socket, Type};

use uring::Way;
use work::{Speech, Work};

/// What the lab's own models listen with.
const BACKLOG: i32 = 4096;

/// Serves echo or HTTP on one runtime or another, until it is ended by a signal.
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
    /// Threads of kapok, tokio and mio. The others have one.
    #[arg(long, default_value_t = 1, value_name = "N")]
    threads: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Runtime {
    /// Kapok's fibers on io_uring.
    FiberUring,
    /// Kapok's fibers on epoll.
    FiberEpoll,
    /// The same, receiving into buffers of the loop's.
    FiberUringPooled,
    /// The same, receiving into buffers of the loop's.
    FiberEpollPooled,
    /// io_uring by hand: multishot receives into provided buffers, direct sends.
    Uring,
    /// The same, with receives that may fill several buffers at once.
    UringBundles,
    /// The same, with a receive for each message.
    UringOnce,
    /// A receive for each message into a buffer of the connection's own.
    UringOwn,
    /// Multishot receives, and sends through the ring.
    UringSends,
    /// The same on descriptors of the ring's own table.
    UringTable,
    /// epoll by hand.
    Epoll,
    Mio,
    Tokio,
    Monoio,
    Compio,
    Glommio,
    May,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    if matches!(arguments.runtime, Runtime::Mio) {
        return serve_mio(&arguments);
    }
    let listener = listen(arguments.addr)?;
    let work = Work::new(arguments.protocol, arguments.buffer, arguments.body);
    println!("listening on {}", listener.local_addr()?);
    io::stdout().flush()?;
    let threads = arguments.threads;
    match arguments.runtime {
        Runtime::FiberUring => kapok::serve(listener, work, Kind::Uring, threads, false),
        Runtime::FiberEpoll => kapok::serve(listener, work, Kind::Epoll, threads, false),
        Runtime::FiberUringPooled => kapok::serve(listener, work, Kind::Uring, threads, true),
        Runtime::FiberEpollPooled => kapok::serve(listener, work, Kind::Epoll, threads, true),
        Runtime::Uring => uring::serve(listener, &work, Way::Multishot),
        Runtime::UringBundles => uring::serve(listener, &work, Way::Bundles),
        Runtime::UringOnce => uring::serve(listener, &work, Way::Once),
        Runtime::UringOwn => uring::serve(listener, &work, Way::Own),
        Runtime::UringSends => uring::serve(listener, &work, Way::Sends),
        Runtime::UringTable => uring::serve(listener, &work, Way::Table),
        Runtime::Epoll => epoll::serve(listener, &work),
        Runtime::Tokio => tokio::serve(listener, work, threads),
        Runtime::Monoio => monoio::serve(listener, work),
        Runtime::Compio => compio::serve(listener, work),
        Runtime::Glommio => glommio::serve(listener, work),
        Runtime::May => may::serve(listener, work),
        Runtime::Mio => unreachable!("it binds its own listeners"),
    }
}

fn serve_mio(arguments: &Arguments) -> io::Result<()> {
    let config = ServeConfig {
        addr: arguments.addr,
        protocol: arguments.protocol.into(),
        model: Model::Mio,
        threads: arguments.threads,
        buffer_bytes: arguments.buffer,
        body_bytes: arguments.body,
        ..ServeConfig::default()
    };
    kapok_lab::serve(&config, &Stop::new()?, |addr| println!("listening on {addr}")).map(drop)
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
