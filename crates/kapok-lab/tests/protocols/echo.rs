//! Echo: the bytes, the end of the stream, slow readers.

use std::fs;
use std::io::{Read, Write};
use std::mem::ManuallyDrop;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{FromRawFd, RawFd};
use std::thread;
use std::time::Duration;

use kapok_lab::{Model, Protocol};

use crate::child::{cpu_time, resident_bytes};
use crate::server::{Server, config, exchange, expect_end};

mod models {
    over_models! { returns_every_byte, half_closed_client_gets_its_full_reply }
    in_child_over_models! {
        a_slow_reader_costs_nothing_and_loses_nothing:
            threads Threads, thread_pool ThreadPool, busy_poll BusyPoll, select Select, poll Poll,
            epoll Epoll, mio Mio, uring Uring, tokio Tokio, fiber_uring FiberUring, fiber_epoll FiberEpoll,
            fiber_poll FiberPoll, fiber_select FiberSelect;
        small_replies_wait_for_no_others:
            threads Threads, thread_pool ThreadPool, busy_poll BusyPoll, select Select, poll Poll,
            epoll Epoll, mio Mio, uring Uring, tokio Tokio, fiber_uring FiberUring, fiber_epoll FiberEpoll,
            fiber_poll FiberPoll, fiber_select FiberSelect;
    }
}

/// A reproducible stream of bytes and sizes (xorshift).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

fn returns_every_byte(model: Model) {
    let server = Server::start(config(model, Protocol::Echo));
    let mut noise = Noise(0x5eed);
    let mut stream = server.connect();
    for _ in 0..50 {
        let len = 1 + noise.next() as usize % 40_000;
        let message = noise.bytes(len);
        exchange(&mut stream, &message);
    }
    // Pipelined: sent without waiting for replies, in pieces of odd sizes.
    let message = noise.bytes(500_000);
    let mut writer = stream.try_clone().expect("cloned");
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut left = &message[..];
            while !left.is_empty() {
                let n = (1 + noise.next() as usize % 5_000).min(left.len());
                writer.write_all(&left[..n]).expect("sent");
                left = &left[n..];
            }
        });
        let mut reply = vec![0; message.len()];
        stream.read_exact(&mut reply).expect("echoed");
        assert!(reply == message, "the echo differs from the message");
    });
    let served = server.finish();
    assert_eq!(served.accepted, 1);
    assert!(served.requests >= 50, "{served:?}");
}

/// A read of 0 bytes is the end of the input and nothing else: replies still pending go out first.
fn half_closed_client_gets_its_full_reply(model: Model) {
    let server = Server::start(config(model, Protocol::Echo));
    let message = Noise(0xe0f).bytes(300_000);
    let mut stream = server.connect();
    thread::scope(|scope| {
        let mut writer = stream.try_clone().expect("cloned");
        let message = &message;
        scope.spawn(move || {
            writer.write_all(message).expect("sent");
            writer.shutdown(Shutdown::Write).expect("shut down");
        });
        let mut reply = vec![0; message.len()];
        stream.read_exact(&mut reply).expect("echoed");
        assert!(reply == *message, "the echo differs from the message");
        expect_end(&mut stream);
    });
    // A connection that never sends, and one that sends nothing but its end.
    let silent = server.connect();
    let mut stream = server.connect();
    stream.shutdown(Shutdown::Write).expect("shut down");
    expect_end(&mut stream);
    drop(silent);
}

/// While its peer does not read, the server waits: it holds a bounded part of the reply, burns no
/// CPU on a socket that cannot be written to, and goes on where it was.
fn a_slow_reader_costs_nothing_and_loses_nothing(model: Model) {
    let server = Server::start(config(model, Protocol::Echo));
    let message = Noise(0x510).bytes(32 << 20);
    let mut stream = server.connect_narrow();
    let mut writer = stream.try_clone().expect("cloned");
    let (window, least, held) = thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&message).expect("sent"));
        let mut reply = vec![1; message.len()];
        let resident_before = resident_bytes();
        // Read a little, then nothing for a time.
        stream.read_exact(&mut reply[..100_000]).expect("echoed");
        // The first windows may still see buffers filling.
        let window = Duration::from_millis(300);
        let least = (0..5)
            .map(|_| {
                let before = cpu_time();
                thread::sleep(window);
                cpu_time() - before
            })
            .min()
            .expect("five");
        let held = resident_bytes().saturating_sub(resident_before);
        // The rest, slowly at first.
        let (slow, rest) = reply[100_000..].split_at_mut(200_000);
        for piece in slow.chunks_mut(10_000) {
            stream.read_exact(piece).expect("echoed");
            thread::sleep(Duration::from_millis(1));
        }
        stream.read_exact(rest).expect("echoed");
        assert!(reply == message, "the echo differs from the message");
        (window, least, held)
    });
    // Busy polling burns all it gets: that is the model.
    if model != Model::BusyPoll {
        assert!(least <= window / 8, "{least:?} of CPU in a stall of {window:?}");
    }
    assert!(held < 8 << 20, "{held} bytes more held for one slow reader");
}

/// The server's end of a connection: the server is in this process.
fn other_end(client: &TcpStream) -> ManuallyDrop<TcpStream> {
    let descriptors = fs::read_dir("/proc/self/fd").expect("procfs").flatten();
    let sockets = descriptors.filter_map(|entry| {
        let is_socket = fs::read_link(entry.path()).ok()?.to_str()?.starts_with("socket:");
        let number = entry.file_name().to_str()?.parse::<RawFd>().ok()?;
        is_socket.then_some(number)
    });
    let mut ends = sockets.map(|number| {
        // SAFETY: a socket of this process, where nobody else runs and nobody closes one now; it is only looked
        // at, and not closed here.
        ManuallyDrop::new(unsafe { TcpStream::from_raw_fd(number) })
    });
    let (ours, theirs) = (client.local_addr().ok(), client.peer_addr().ok());
    ends.find(|end| end.peer_addr().ok() == ours && end.local_addr().ok() == theirs)
        .expect("the server has its end among its descriptors")
}

/// As is said of all models where they are compared: without TCP_NODELAY a small reply may wait until earlier
/// ones are acknowledged.
fn small_replies_wait_for_no_others(model: Model) {
    for protocol in Protocol::ALL {
        let server = Server::start(config(model, protocol));
        // Some may accept in another way once they have begun.
        let mut clients = [server.connect(), server.connect()];
        for client in &mut clients {
            match protocol {
                Protocol::Echo => exchange(client, b"echo"),
                _ => {
                    client.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sent");
                    assert!(client.read(&mut [0; 1024]).expect("a reply") > 0);
                }
            }
            assert!(other_end(client).nodelay().expect("a socket"), "{protocol}");
        }
    }
}
