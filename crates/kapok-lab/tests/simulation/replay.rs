//! The same seed is the same history, and a server's mistake is found and found again.

use std::cell::RefCell;
use std::io::{Read, Write};

use kapok::net::TcpStream;
use kapok_lab::Protocol;

use crate::echo;
use crate::world::{Client, World, message_of, run, run_clients};

thread_local! {
    /// What worlds have come to.
    static HISTORIES: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

fn note_history() {
    let digest = kapok::sim::digest().expect("a simulated world");
    HISTORIES.with_borrow_mut(|histories| histories.push(digest));
}

#[test]
fn the_same_seed_is_the_same_history() {
    fn served(world: &mut World) {
        let clients = world.random.usize(1..=5);
        world.serve(Protocol::Echo, |world, address| {
            run_clients(world, clients, |client| echo::converse(client, address));
        });
        note_history();
    }
    (0..50).for_each(|seed| run(seed, served));
    let first = HISTORIES.take();
    (0..50).for_each(|seed| run(seed, served));
    assert_eq!(first, HISTORIES.take());
    let mut different = first.clone();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), first.len(), "seeds are histories of their own");
}

/// An echo server that takes a short write for a whole one.
fn careless(mut stream: TcpStream) {
    let mut buffer = [0; 1000];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write(&buffer[..count]).is_err() {
            return;
        }
    }
}

fn careless_server(world: &mut World) {
    let Some(listener) = world.listen() else { return };
    let address = listener.local_addr().expect("it listens");
    let server = kapok::spawn_local(move || {
        let (stream, _) = listener.accept()?;
        careless(stream);
        std::io::Result::Ok(())
    });
    let mut client = Client::of(world);
    if let Some(stream) = client.connect(address) {
        let bytes: Vec<u8> = (0..3000_u32).map(|n| n as u8).collect();
        let (sent, received, ended) = client.exchange(&stream, &bytes, true);
        note_history();
        assert!(!sent || !ended || received == bytes, "{} bytes came back", received.len());
    }
    server.cancel();
}

#[test]
fn a_mistake_is_found_and_found_again() {
    let found = (0..100).find_map(|seed| message_of(seed, careless_server).map(|m| (seed, m)));
    let (seed, message) = found.expect("one world in a hundred writes short");
    let history = HISTORIES.take().pop();
    for _ in 0..3 {
        assert_eq!(message_of(seed, careless_server).as_ref(), Some(&message));
        assert_eq!(HISTORIES.take().pop(), history);
    }
}
