//! Echo: what comes back is what was sent, all of it, in its order.

use std::net::{Shutdown, SocketAddr};

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
    // Some go without a word in the midst of it.
    let leaves = client.random.u8(..) < 25;
    let sent_bytes = if leaves { bytes.len() / 2 } else { bytes.len() };
    let mut sender = Client { random: client.random.fork(), breaks: client.breaks };
    let (stream, bytes) = (&stream, &bytes);
    let (sent, received, ended) = kapok::scope(|scope| {
        let sending = scope.spawn_local(move || {
            sender.send(stream, &bytes[..sent_bytes])?;
            if leaves { Some(()) } else { sender.allow(stream.shutdown(Shutdown::Write)) }
        });
        let (received, ended) = if leaves { (Vec::new(), false) } else { client.receive(stream) };
        (sending.join().expect("no panic"), received, ended)
    });
    assert!(bytes.starts_with(&received), "what came back is not what was sent");
    if !client.breaks && !leaves {
        assert!(sent.is_some() && ended, "nothing breaks on this network");
        assert_eq!(received.len(), bytes.len(), "bytes were lost");
    }
}
