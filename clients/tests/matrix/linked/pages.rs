//! Clients of HTTP, with TLS: libcurl and ureq.

use std::fs;
use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use super::Points;
use crate::place::{Place, Which};
use crate::proof::{Client, Point};
use crate::ticker::{beside_a_ticker, in_time, on_threads};

pub(super) static CURL: Client =
    Client { name: "curl", title: "libcurl (crate curl)", server: Which::Nginx, remark: "" };
pub(super) static UREQ: Client =
    Client { name: "ureq", title: "crate ureq, rustls", server: Which::Nginx, remark: "" };

/// A client that gets pages.
pub(super) trait Pages: 'static {
    /// Gets a page by a connection of its own, within `limit`, if there is one.
    fn get(place: &Place, path: &str, limit: Option<Duration>) -> Result<String, String>;
}

pub(super) fn points<P: Pages>() -> Points {
    vec![
        (Point::Ticker, ticker::<P>),
        (Point::Hundred, hundred::<P>),
        (Point::Limit, limit::<P>),
        (Point::Cancelled, cancelled::<P>),
    ]
}

/// Gets the first page of the process, for which a library sets itself up. That computes for tens of
/// milliseconds, in which no other fiber of the thread runs, and waits for nothing.
fn set_up<P: Pages>(place: &Place) {
    assert_eq!(P::get(place, "/", None).unwrap(), "quick");
}

/// A ticker beside a page that takes 300 ms.
fn ticker<P: Pages>(place: &Place) {
    set_up::<P>(place);
    let (page, _) = beside_a_ticker(Duration::from_millis(300), || P::get(place, "/slow", None));
    assert_eq!(page.unwrap(), "slow");
}

/// A hundred fibers of one thread get a page that takes 300 ms: it takes as long as on threads.
fn hundred<P: Pages>(place: &Place) {
    set_up::<P>(place);
    let began = Instant::now();
    let fibers: Vec<_> = (0..100)
        .map(|_| {
            let place = place.clone();
            kapok::spawn_local(move || P::get(&place, "/slow", None))
        })
        .collect();
    for fiber in fibers {
        assert_eq!(fiber.join().unwrap().unwrap(), "slow");
    }
    let took = began.elapsed();
    in_time("a hundred pages", took, Duration::from_secs(1), a_hundred_threads::<P>, place);
}

fn a_hundred_threads<P: Pages>(place: &Place) -> Duration {
    let gets = |place: Place| assert_eq!(P::get(&place, "/slow", None).unwrap(), "slow");
    // TLS computes, which a hundred threads do on all processors at once.
    let processors = thread::available_parallelism().map_or(1, usize::from);
    on_threads(place, Place::clone, gets) * processors as u32
}

/// The client's own limit ends a request that nobody answers.
fn limit<P: Pages>(place: &Place) {
    set_up::<P>(place);
    let limit = Duration::from_millis(250);
    let (page, took) = beside_a_ticker(limit * 9 / 10, || P::get(place, "/never", Some(limit)));
    println!("{}", page.unwrap_err());
    assert!(took < Duration::from_secs(30), "it took {took:?}");
}

/// A fiber is cancelled while it waits for a page: the client gives an error at once.
fn cancelled<P: Pages>(place: &Place) {
    let there = place.clone();
    let waiting = kapok::spawn_local(move || P::get(&there, "/never", None));
    std::thread::sleep(Duration::from_millis(300));
    assert!(!waiting.is_finished());
    let began = Instant::now();
    waiting.cancel();
    println!("{}", waiting.join().unwrap().unwrap_err());
    assert!(began.elapsed() < Duration::from_secs(30), "it took {:?}", began.elapsed());
    assert_eq!(P::get(place, "/", None).unwrap(), "quick");
}

fn address(place: &Place, path: &str) -> String {
    format!("https://localhost:{}{path}", place.port)
}

pub(super) struct Curl;

impl Pages for Curl {
    fn get(place: &Place, path: &str, limit: Option<Duration>) -> Result<String, String> {
        let mut page = Vec::new();
        let get = |page: &mut Vec<u8>| {
            let mut request = curl::easy::Easy::new();
            request.url(&address(place, path))?;
            request.cainfo(&place.certificate)?;
            // By signals otherwise, of which there is one for all.
            request.signal(false)?;
            if let Some(limit) = limit {
                request.timeout(limit)?;
            }
            let mut transfer = request.transfer();
            transfer.write_function(|bytes| {
                page.extend_from_slice(bytes);
                Ok(bytes.len())
            })?;
            transfer.perform()
        };
        get(&mut page).map_err(|error| error.to_string())?;
        Ok(String::from_utf8(page).unwrap())
    }
}

pub(super) struct Ureq;

impl Pages for Ureq {
    fn get(place: &Place, path: &str, limit: Option<Duration>) -> Result<String, String> {
        use ureq::tls::{Certificate, RootCerts, TlsConfig};
        let certificate = Certificate::from_pem(&fs::read(&place.certificate).unwrap()).unwrap();
        let trusted = RootCerts::new_with_certs(&[certificate]);
        let agent = ureq::Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(trusted).build())
            .timeout_global(limit)
            .build()
            .new_agent();
        let mut page = String::new();
        let get = || -> Result<String, ureq::Error> {
            let mut response = agent.get(address(place, path)).call()?;
            response.body_mut().as_reader().read_to_string(&mut page)?;
            Ok(page)
        };
        get().map_err(|error| error.to_string())
    }
}
