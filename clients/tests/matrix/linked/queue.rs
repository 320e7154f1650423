//! What is claimed of every client of Redis, and how it is shown.

use std::thread;
use std::time::{Duration, Instant};

use super::database::under_load;
use crate::place::Place;
use crate::ticker::{beside_a_ticker, in_time, on_threads};

/// How soon a wait of 90 seconds has to be over.
const SOON: Duration = Duration::from_secs(5);

/// A client's connection, as simply as the client allows.
pub(super) trait Connection: Sized + 'static {
    /// Connects, and gives up a reply after `limit`, if there is one.
    fn connect(place: &Place, limit: Option<Duration>) -> Result<Self, String>;

    /// Sends a command and gives its reply: a string or a number as text, of a list the last element.
    /// None: nothing.
    fn command(&mut self, words: &[&str]) -> Result<Option<String>, String>;
}

/// A ticker beside connecting and waiting for a list.
pub(super) fn ticker<C: Connection>(place: &Place) {
    let waits = || {
        let mut connection = C::connect(place, None).unwrap();
        assert_eq!(connection.command(&["BLPOP", "nothing", "0.2"]), Ok(None));
    };
    beside_a_ticker(Duration::from_millis(190), waits);
}

/// A hundred fibers of one thread wait for half a second each, and one more serves the last of them.
pub(super) fn hundred<C: Connection>(place: &Place) {
    let connections: Vec<_> = (0..100).map(|_| C::connect(place, None).unwrap()).collect();
    let (_, took) = beside_a_ticker(Duration::from_millis(490), || {
        let fibers: Vec<_> = connections
            .into_iter()
            .enumerate()
            .map(|(number, mut connection)| {
                kapok::spawn_local(move || {
                    connection.command(&["BLPOP", &format!("hundred {number}"), "0.5"])
                })
            })
            .collect();
        for fiber in fibers {
            assert_eq!(fiber.join().unwrap(), Ok(None));
        }
    });
    in_time("a hundred waits", took, Duration::from_secs(1), a_hundred_threads::<C>, place);
}

fn a_hundred_threads<C: Connection>(place: &Place) -> Duration {
    on_threads(
        place,
        |place| C::connect(place, None).unwrap(),
        |mut connection| {
            assert_eq!(connection.command(&["BLPOP", "nothing on threads", "0.5"]), Ok(None));
        },
    )
}

/// A fiber waits for a list that another fiber of its thread fills.
pub(super) fn other<C: Connection>(place: &Place) {
    let mut first = C::connect(place, None).unwrap();
    first.command(&["DEL", "filled"]).unwrap();
    let there = place.clone();
    let second = kapok::spawn_local(move || {
        let mut second = C::connect(&there, None).unwrap();
        second.command(&["BLPOP", "filled", "0"])
    });
    beside_a_ticker(Duration::from_millis(100), || {
        thread::sleep(Duration::from_millis(100));
        assert!(!second.is_finished());
        first.command(&["RPUSH", "filled", "a word"]).unwrap();
        assert_eq!(second.join().unwrap(), Ok(Some("a word".to_owned())));
    });
}

/// The client's own limit ends a wait.
pub(super) fn limit<C: Connection>(place: &Place) {
    let mut connection = C::connect(place, Some(Duration::from_millis(150))).unwrap();
    let (result, took) = beside_a_ticker(Duration::from_millis(140), || {
        connection.command(&["BLPOP", "nothing", "90"])
    });
    println!("{}", result.unwrap_err());
    assert!(took < SOON, "it took {took:?}");
}

/// The server ends a connection that waits, at the word of another fiber: an error, and the next
/// connection works.
pub(super) fn killed<C: Connection>(place: &Place) {
    let mut victim = C::connect(place, None).unwrap();
    let number = victim.command(&["CLIENT", "ID"]).unwrap().unwrap();
    let waiting = kapok::spawn_local(move || victim.command(&["BLPOP", "nothing", "90"]));
    thread::sleep(Duration::from_millis(100));
    let mut other = C::connect(place, None).unwrap();
    let began = Instant::now();
    assert_eq!(other.command(&["CLIENT", "KILL", "ID", &number]), Ok(Some("1".to_owned())));
    println!("{}", waiting.join().unwrap().unwrap_err());
    assert!(began.elapsed() < SOON, "it took {:?}", began.elapsed());
    assert_eq!(other.command(&["ECHO", "there"]), Ok(Some("there".to_owned())));
}

/// A fiber is cancelled while it waits: the client gives an error at once, and its fiber ends.
pub(super) fn cancelled<C: Connection>(place: &Place) {
    let there = place.clone();
    let waiting = kapok::spawn_local(move || {
        let mut connection = C::connect(&there, None).unwrap();
        connection.command(&["BLPOP", "nothing", "90"])
    });
    thread::sleep(Duration::from_millis(200));
    assert!(!waiting.is_finished());
    let began = Instant::now();
    waiting.cancel();
    println!("{}", waiting.join().unwrap().unwrap_err());
    assert!(began.elapsed() < SOON, "it took {:?}", began.elapsed());
    let mut other = C::connect(place, None).unwrap();
    assert_eq!(other.command(&["ECHO", "there"]), Ok(Some("there".to_owned())));
}

/// The server is restarted under load: each client gets errors, and goes on once the server is back.
pub(super) fn restarted<C: Connection>(place: &Place) {
    under_load(10, place, |place, stroke| {
        let mut connection = C::connect(place, None)?;
        loop {
            connection.command(&["BLPOP", "nothing", "0.01"])?;
            if !stroke() {
                return Ok(());
            }
        }
    });
}
