//! Echo: the bytes, the end of the stream, slow readers.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;

use kapok_lab::{Model, Protocol};

use crate::server::{Server, config, exchange, expect_end};

mod models {
    over_models! { returns_every_byte, half_closed_client_gets_its_full_reply }
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
