//! getaddrinfo(3), by way of std.

use std::ffi::c_int;
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs};
use std::time::Duration;

use super::Points;
use crate::place::{Place, Which};
use crate::proof::{Client, Point};
use crate::ticker::beside_a_ticker;

pub(super) static CLIENT: Client = Client {
    name: "getaddrinfo",
    title: "getaddrinfo (std)",
    server: Which::Dnsmasq,
    remark: "A look-up runs on a helper thread and ends by the resolver's own time-outs: neither a deadline \
             nor a cancellation ends it earlier.",
};

pub(super) fn points() -> Points {
    vec![(Point::Ticker, ticker), (Point::Hundred, hundred), (Point::Other, other)]
}

unsafe extern "C" {
    fn __res_init() -> c_int;
    fn __res_state() -> *mut Resolver;
}

/// The beginning of `_res`.
#[repr(C)]
struct Resolver {
    seconds: c_int,
    attempts: c_int,
    options: libc::c_ulong,
    count: c_int,
    servers: [libc::sockaddr_in; 3],
}

/// Has this thread ask dnsmasq, once, for as many seconds. It can be told from no file, where no port
/// can be named.
fn ask(place: &Place, seconds: c_int) {
    // SAFETY: this thread's own state, of which the beginning is as declared.
    unsafe {
        assert_eq!(__res_init(), 0);
        let resolver = __res_state();
        (*resolver).seconds = seconds;
        (*resolver).attempts = 1;
        (*resolver).count = 1;
        (*resolver).servers[0] = libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: place.port.to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
            sin_zero: [0; 8],
        };
    }
}

fn look_up(name: &str) -> std::io::Result<Vec<IpAddr>> {
    Ok((name, 80).to_socket_addrs()?.map(|address| address.ip()).collect())
}

fn assert_known(place: &Place) {
    ask(place, 5);
    let found = look_up("known.test").unwrap();
    assert!(found.contains(&IpAddr::V4(Ipv4Addr::new(127, 0, 0, 7))), "{found:?}");
}

/// A ticker beside the look-up of a name about which nobody answers.
fn ticker(place: &Place) {
    assert_known(place);
    ask(place, 1);
    let (found, _) = beside_a_ticker(Duration::from_millis(900), || look_up("nobody.test"));
    println!("{}", found.unwrap_err());
}

/// A hundred fibers of one thread look up names about which nobody answers, and a ticker goes on.
fn hundred(place: &Place) {
    ask(place, 1);
    beside_a_ticker(Duration::from_millis(900), || {
        let fibers: Vec<_> = (0..100)
            .map(|number| kapok::spawn_local(move || look_up(&format!("nobody{number}.test"))))
            .collect();
        for fiber in fibers {
            fiber.join().unwrap().unwrap_err();
        }
    });
    assert_known(place);
}

/// While a fiber waits in vain another finds what it looks for.
fn other(place: &Place) {
    ask(place, 3);
    let waiting = kapok::spawn_local(|| look_up("nobody.test"));
    std::thread::sleep(Duration::from_millis(50));
    assert_known(place);
    assert!(!waiting.is_finished());
    waiting.join().unwrap().unwrap_err();
}
