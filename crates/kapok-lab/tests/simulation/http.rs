//! HTTP: as many replies as requests, each whole, in their order.

use std::net::SocketAddr;

use kapok_lab::Protocol;

use crate::world::{BODY_BYTES, Client, for_each_seed, run_clients};

/// The reply to every request that is none of the odd ones.
fn reply() -> Vec<u8> {
    let body: Vec<u8> = b"Hello, World!".iter().copied().cycle().take(BODY_BYTES).collect();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {BODY_BYTES}\r\n\r\n"
    );
    [head.as_bytes(), &body].concat()
}

#[test]
fn every_request_has_one_reply() {
    for_each_seed(|world| {
        let clients = world.random.usize(1..=5);
        world.serve(Protocol::Http, |world, address| {
            run_clients(world, clients, |client| converse(client, address));
        });
    });
}

fn converse(mut client: Client, address: SocketAddr) {
    let Some(stream) = client.connect(address) else { return };
    let requests = client.random.usize(0..30);
    let mut bytes = Vec::new();
    for number in 0..requests {
        let body = "x".repeat(client.random.usize(0..200));
        let length = body.len();
        bytes.extend_from_slice(
            format!(
                "POST /{number} HTTP/1.1\r\nHost: kapok\r\nContent-Length: {length}\r\n\r\n{body}"
            )
            .as_bytes(),
        );
    }
    let mut expected = reply().repeat(requests);
    // Some end with what is no HTTP, some with half a head and no word more.
    let end = client.random.u8(..);
    match end {
        0..40 => bytes.extend_from_slice(b"no such thing\r\n\r\n"),
        40..60 => bytes.extend_from_slice(b"GET / HTTP/1.1\r\nHost: ka"),
        _ => {}
    }
    // Who has half a head to send waits for the server to lose its patience.
    let (sent, mut received, ended) = client.exchange(&stream, &bytes, end >= 60);
    if end < 40 && received.len() > expected.len() {
        let refusal = received.split_off(expected.len());
        let start = &b"HTTP/1.1 400 "[..];
        // A reset may cut it off anywhere.
        let whole = refusal.len() >= start.len() || !client.breaks;
        let refused = if whole { refusal.starts_with(start) } else { start.starts_with(&refusal) };
        assert!(refused, "{:?}", String::from_utf8_lossy(&refusal));
        expected.truncate(received.len());
    }
    assert!(expected.starts_with(&received), "replies that were not asked for, or broken ones");
    if !client.breaks {
        assert!(sent && ended, "nothing breaks on this network");
        assert_eq!(received.len(), expected.len(), "replies were lost");
    }
}
