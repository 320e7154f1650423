//! A server on a free port, in a thread, for the length of a test.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use kapok_lab::{Model, Protocol, ServeConfig, Served, Stop, serve};

/// How long a test waits for what should happen at once: much longer, for the busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A running server. It is stopped at the latest when it is dropped.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) stop: Stop,
    thread: Option<JoinHandle<io::Result<Served>>>,
}

/// The default configuration for `model`, without an idle time-out that a slow machine could meet.
pub(crate) fn config(model: Model, protocol: Protocol) -> ServeConfig {
    ServeConfig { model, protocol, idle_timeout: PATIENCE * 10, ..ServeConfig::default() }
}

impl Server {
    pub(crate) fn start(config: ServeConfig) -> Server {
        let stop = Stop::new().expect("a pipe");
        let (ready, addr) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("server".into())
            .spawn({
                let stop = stop.clone();
                move || serve(&config, &stop, |addr| ready.send(addr).expect("the test waits"))
            })
            .expect("a thread");
        match addr.recv() {
            Ok(addr) => Server { addr, stop, thread: Some(thread) },
            Err(_) => panic!("the server ended before it was ready: {:?}", thread.join()),
        }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        connect(self.addr)
    }

    /// A connection that has room for few received bytes.
    pub(crate) fn connect_narrow(&self) -> TcpStream {
        let socket = Socket::new(Domain::for_address(self.addr), Type::STREAM, None);
        let socket = socket.expect("a socket");
        socket.set_recv_buffer_size(8 * 1024).expect("set");
        socket.connect(&self.addr.into()).expect("connected");
        prepare(socket.into())
    }

    /// Stops the server and returns what it met.
    pub(crate) fn finish(mut self) -> Served {
        self.stop.stop();
        let thread = self.thread.take().expect("finished once");
        thread.join().expect("the server panicked").expect("the server failed")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !thread::panicking() {
                ended.expect("the server panicked").expect("the server failed");
            }
        }
    }
}

/// A connection whose calls fail rather than hang.
pub(crate) fn connect(addr: SocketAddr) -> TcpStream {
    prepare(TcpStream::connect(addr).expect("connected"))
}

fn prepare(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).expect("time-out set");
    stream.set_write_timeout(Some(PATIENCE)).expect("time-out set");
    stream.set_nodelay(true).expect("nodelay set");
    stream
}

/// Sends `message` and expects it back.
pub(crate) fn exchange(stream: &mut TcpStream, message: &[u8]) {
    stream.write_all(message).expect("sent");
    let mut reply = vec![0; message.len()];
    stream.read_exact(&mut reply).expect("echoed");
    assert!(reply == message, "the echo differs from the message");
}

/// Reads to the end of the stream and expects nothing.
pub(crate) fn expect_end(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("an orderly end");
    assert!(rest.is_empty(), "{} surplus bytes", rest.len());
}

/// Makes a test of each function for each model, named `function::model`.
macro_rules! over_models {
    ($($test:ident),+ $(,)?) => {
        $(
            mod $test {
                over_models!(@model $test threads Threads, thread_pool ThreadPool, busy_poll BusyPoll, select Select,
                    poll Poll, epoll Epoll, mio Mio, uring Uring, tokio Tokio, fiber Fiber,
                    fiber_uring FiberUring, fiber_epoll FiberEpoll, fiber_poll FiberPoll,
                    fiber_select FiberSelect);
            }
        )+
    };
    (@model $test:ident $($name:ident $model:ident),+) => {
        $(
            #[test]
            fn $name() {
                super::super::$test(kapok_lab::Model::$model);
            }
        )+
    };
}
