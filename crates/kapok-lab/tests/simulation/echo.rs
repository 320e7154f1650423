//! Echo: what comes back is what was sent, all of it, in its order.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use kapok_lab::Protocol;

use crate::world::{Client, for_each_seed, run_clients};

#[test]
fn echo_loses_doubles_and_reorders_nothing() {
    for_each_seed(|world| {
        let clients = world.random.usize(1..=5);
        world.serve(Protocol::Echo, |world, address| {
            run_clients(world, clients, |client| converse(client, address));
        });
    });
}

pub(crate) fn converse(mut client: Client, address: SocketAddr) {
    let Some(stream) = client.connect(address) else { return };
    let mut bytes = vec![0; client.random.usize(0..20_000)];
    client.random.fill(&mut bytes);
    // Some go without a word in the midst of it, and have not listened.
    if client.random.u8(..) < 25 {
        let half = &bytes[..bytes.len() / 2];
        let patience = Duration::from_secs(1);
        let _ = kapok::timeout(patience, || (&stream).write_all(half));
        return;
    }
    let (sent, received, ended) = client.exchange(&stream, &bytes, true);
    assert!(bytes.starts_with(&received), "what came back is not what was sent");
    if !client.breaks {
        assert!(sent && ended, "nothing breaks on this network");
        assert_eq!(received.len(), bytes.len(), "bytes were lost");
    }
}
