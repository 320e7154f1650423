//! Chat: everybody hears every line of the others once, and all in the same order.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::time::Duration;

use kapok::net::TcpStream;
use kapok::sync::Mutex;

use crate::world::{Client, for_each_seed};

#[path = "../../../kapok/examples/chat.rs"]
#[expect(dead_code, reason = "it has a main of its own")]
mod server;

const LINES: usize = 40;

/// Who heard what, in which order.
type Heard = Mutex<BTreeMap<usize, Vec<String>>>;

#[test]
fn all_hear_the_same_in_the_same_order() {
    for_each_seed(|world| {
        let Some(listener) = world.listen() else { return };
        let address = listener.local_addr().expect("it listens");
        let room = kapok::spawn_local(move || server::accept_all(&listener));
        let talkers = world.random.usize(2..=4);
        let heard = Heard::default();
        let ready = kapok::sync::Semaphore::new(0);
        // Some that never read again may come; the others must not notice for long.
        let deaf = world.random.usize(0..=3);
        let breaks = world.breaks;
        kapok::scope(|scope| {
            for number in 0..talkers {
                let client = Client::of(world);
                let (heard, ready) = (&heard, &ready);
                scope.spawn_local(move || talk(client, address, number, talkers, ready, heard));
            }
            for number in 0..deaf {
                let client = Client::of(world);
                scope.spawn_local(move || stop_reading(client, address, number));
            }
        });
        room.cancel();
        room.join().expect("no panic");
        let heard = heard.into_inner();
        for (one, lines) in &heard {
            for (other, others) in &heard {
                in_one_order(&without(lines, *other), &without(others, *one), breaks);
            }
        }
    });
}

/// The lines that are not of `number`.
fn without(lines: &[String], number: usize) -> Vec<&String> {
    let own = format!("t{number}: ");
    lines.iter().filter(|line| !line.starts_with(&own)).collect()
}

/// What two heard of third parties. On a network that breaks connections one may have heard less.
fn in_one_order(one: &[&String], other: &[&String], breaks: bool) {
    let common = one.len().min(other.len());
    if breaks {
        let (one, other) = (whole(one), whole(other));
        assert_eq!(both_heard(&one, &other), both_heard(&other, &one), "not in one order");
    } else {
        assert_eq!(one[..common], other[..common]);
        assert_eq!(one.len(), other.len(), "lines were lost or doubled");
    }
}

/// What was surely said as it was heard. Whoever talks or hears may be cut off in mid-line, and the
/// beginning of a line looks like an earlier one: of each talker, the lines that follow each other up
/// to the first that does not, and the last of these not.
fn whole<'a>(lines: &[&'a String]) -> Vec<&'a String> {
    let mut last = BTreeMap::new();
    let mut cut = BTreeSet::new();
    let mut kept = Vec::new();
    for &line in lines {
        let (talker, said) = line.split_once(": ").unwrap_or((line, ""));
        let number = said.strip_prefix("line ").and_then(|number| number.trim_end().parse().ok());
        let goes_on = |number: &usize| last.get(talker).is_none_or(|before| *number == before + 1);
        match number.filter(goes_on).filter(|_| !cut.contains(talker)) {
            Some(number) => {
                last.insert(talker, number);
                kept.push((talker, number, line));
            }
            None => {
                cut.insert(talker);
            }
        }
    }
    kept.retain(|(talker, number, _)| last[talker] != *number);
    kept.into_iter().map(|(_, _, line)| line).collect()
}

/// What is in `one` and in `other`.
fn both_heard<'a>(one: &[&'a String], other: &[&String]) -> Vec<&'a String> {
    one.iter().copied().filter(|line| other.contains(line)).collect()
}

fn talk(
    mut client: Client,
    address: SocketAddr,
    number: usize,
    talkers: usize,
    ready: &kapok::sync::Semaphore,
    heard: &Heard,
) {
    let told = conversation(&mut client, address, number, talkers, ready, heard);
    // Whoever failed must not keep the others waiting.
    if told.is_none() {
        assert!(client.breaks, "nothing breaks on this network");
        ready.add_permits(talkers);
    }
}

fn conversation(
    client: &mut Client,
    address: SocketAddr,
    number: usize,
    talkers: usize,
    ready: &kapok::sync::Semaphore,
    heard: &Heard,
) -> Option<()> {
    let stream = client.connect(address)?;
    let mut reader = BufReader::new(&stream);
    let mut line = String::new();
    client.allow(reader.read_line(&mut line))?;
    client.allow((&stream).write_all(format!("t{number}\n").as_bytes()))?;
    line.clear();
    client.allow(reader.read_line(&mut line))?;
    assert!(line.starts_with("* with you:") || client.breaks, "{line:?}");
    // All are in the room before the first says anything.
    ready.add_permits(1);
    drop(ready.acquire_many(talkers).expect("nobody cancels"));
    let mut lines = Vec::new();
    let mut sender = Client { random: client.random.fork(), breaks: client.breaks };
    let stream = &stream;
    let told = kapok::scope(|scope| {
        let telling = scope.spawn_local(move || {
            for line in 0..LINES {
                sender.send(stream, format!("line {line}\n").as_bytes())?;
            }
            Some(())
        });
        let expected = (talkers - 1) * LINES;
        while lines.len() < expected {
            let mut line = String::new();
            // Who was reset says nothing more: the others wait for it in vain.
            let read = kapok::timeout(Duration::from_secs(60), || reader.read_line(&mut line));
            if !matches!(client.allow(read), Some(count) if count > 0) {
                assert!(client.breaks, "dropped");
                break;
            }
            if line.starts_with('t') {
                lines.push(line);
            }
        }
        telling.join().expect("no panic")
    });
    for other in (0..talkers).filter(|&other| other != number) {
        let own = format!("t{other}: ");
        let said: Vec<_> = lines.iter().filter(|line| line.starts_with(&own)).collect();
        // Where talkers fail the others do not wait for all to be there, and miss the beginning.
        let first = if client.breaks {
            let first = said.first().and_then(|line| line.trim_end().rsplit(' ').next());
            first.and_then(|number| number.parse().ok()).unwrap_or(0)
        } else {
            0
        };
        for (at, line) in said.iter().enumerate() {
            let whole = format!("{own}line {}", first + at);
            if line.trim_end() == whole {
                continue;
            }
            // Who is cut off in the midst of a line has said its beginning, and what came after the
            // server had shut the stream down.
            assert!(
                client.breaks && whole.starts_with(line.trim_end()),
                "{line:?} is not {whole:?}: lost, doubled or out of order: {lines:?}"
            );
            break;
        }
    }
    heard.lock().insert(number, lines);
    told
}

/// Joins at some time, and reads no more.
fn stop_reading(mut client: Client, address: SocketAddr, number: usize) {
    let pause = Duration::from_millis(client.random.u64(0..500));
    kapok::sleep(pause).expect("nobody cancels");
    let Some(stream) = client.connect(address) else { return };
    let mut line = String::new();
    if client.allow(BufReader::new(&stream).read_line(&mut line)).is_none() {
        return;
    }
    if client.allow((&stream).write_all(format!("deaf{number}\n").as_bytes())).is_none() {
        return;
    }
    kapok::sleep(Duration::from_secs(20)).expect("nobody cancels");
    drop::<TcpStream>(stream);
}
