//! Names that a server is asked for: one of the test's own, which takes its time and knows none of them.

use std::net::UdpSocket;

use super::c_resolver::*;
use super::*;

/// Answers each question after a while that no such name exists, until it is sent nothing.
fn serve(server: &UdpSocket) {
    let mut message = [0; 512];
    loop {
        let (len, asker) = server.recv_from(&mut message).unwrap();
        if len == 0 {
            return;
        }
        std::thread::sleep(BLOCKED + Duration::from_millis(10));
        // An answer; recursion is available, `NXDOMAIN`.
        message[2] |= 0x80;
        message[3] = 0x83;
        // Nobody may wait for it any more.
        let _ = server.send_to(&message[..len], asker);
    }
}

/// The question for the address of [`NAME`].
const QUERY: &[u8] = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x06kapok1\x07invalid\0\0\x01\0\x01";
/// With the dot that says that it is whole.
const NAME: Name = c"kapok1.invalid.".as_ptr();
const LABEL: Name = c"kapok1".as_ptr();
const DOMAIN: Name = c"invalid".as_ptr();
/// Of a network that is nobody's.
const ADDRESS: [u8; 4] = [192, 0, 2, 1];

pub(super) fn resolver() {
    let server = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
    let address = server.local_addr().unwrap();
    let serving = Arc::clone(&server);
    let serving = std::thread::spawn(move || serve(&serving));
    let own = Zeroed::<Resolver>::new();
    // SAFETY: the state of this thread, and one of our own that is longer than it need be.
    unsafe {
        assert_eq!((__res_init(), __res_ninit(own.at())), (0, 0));
        ask_only(__res_state(), address.port());
        ask_only(own.at(), address.port());
    }
    by_query(&own);
    by_host();
    // SAFETY: as above; the thread reads again what it read at first.
    unsafe {
        __res_nclose(own.at());
        assert_eq!(__res_init(), 0);
    }
    server.send_to(&[], address).unwrap();
    serving.join().unwrap();
}

/// What always asks a server.
fn by_query(own: &Arc<Zeroed<Resolver>>) {
    const LEN: c_int = QUERY.len() as c_int;
    let asks: [(&str, fn(State, Answer, c_int) -> c_int); 16] = [
        // SAFETY: names that end, room that is there, and a state that was set up, for all of these.
        ("res_query", |_, to, room| unsafe { res_query(NAME, 1, 1, to, room) }),
        // SAFETY: as above.
        ("__res_query", |_, to, room| unsafe { __res_query(NAME, 1, 1, to, room) }),
        // SAFETY: as above.
        ("res_search", |_, to, room| unsafe { res_search(NAME, 1, 1, to, room) }),
        // SAFETY: as above.
        ("__res_search", |_, to, room| unsafe { __res_search(NAME, 1, 1, to, room) }),
        // SAFETY: as above.
        ("res_querydomain", |_, to, room| unsafe {
            res_querydomain(LABEL, DOMAIN, 1, 1, to, room)
        }),
        // SAFETY: as above.
        ("__res_querydomain", |_, to, room| unsafe {
            __res_querydomain(LABEL, DOMAIN, 1, 1, to, room)
        }),
        // SAFETY: as above.
        ("res_send", |_, to, room| unsafe { res_send(QUERY.as_ptr(), LEN, to, room) }),
        // SAFETY: as above.
        ("__res_send", |_, to, room| unsafe { __res_send(QUERY.as_ptr(), LEN, to, room) }),
        // SAFETY: as above.
        ("res_nquery", |own, to, room| unsafe { res_nquery(own, NAME, 1, 1, to, room) }),
        // SAFETY: as above.
        ("__res_nquery", |own, to, room| unsafe { __res_nquery(own, NAME, 1, 1, to, room) }),
        // SAFETY: as above.
        ("res_nsearch", |own, to, room| unsafe { res_nsearch(own, NAME, 1, 1, to, room) }),
        // SAFETY: as above.
        ("__res_nsearch", |own, to, room| unsafe { __res_nsearch(own, NAME, 1, 1, to, room) }),
        // SAFETY: as above.
        ("res_nquerydomain", |own, to, room| unsafe {
            res_nquerydomain(own, LABEL, DOMAIN, 1, 1, to, room)
        }),
        // SAFETY: as above.
        ("__res_nquerydomain", |own, to, room| unsafe {
            __res_nquerydomain(own, LABEL, DOMAIN, 1, 1, to, room)
        }),
        // SAFETY: as above.
        ("res_nsend", |own, to, room| unsafe { res_nsend(own, QUERY.as_ptr(), LEN, to, room) }),
        // SAFETY: as above.
        ("__res_nsend", |own, to, room| unsafe { __res_nsend(own, QUERY.as_ptr(), LEN, to, room) }),
    ];
    for (name, ask) in asks {
        let own = Arc::clone(own);
        beside_a_ticker(name, move || {
            let mut answer = [0; 512];
            // That there is no such name is an answer, for some an error, and which is not the matter.
            ask(own.at(), answer.as_mut_ptr(), answer.len() as c_int);
        });
    }
}

/// Room for what a call finds, and where it tells that.
struct Found {
    entry: Host,
    buffer: [c_char; 1024],
    found: *mut Host,
    error: c_int,
}

/// What asks a server where this machine is set up to, and may be answered at once elsewhere.
fn by_host() {
    const IPV4: c_int = libc::AF_INET;
    let asks: [(&str, fn(&mut Found)); 7] = [
        // SAFETY: names that end, addresses of the length that is told, and room that is there, for all
        // of these.
        ("gethostbyname", |_| unsafe { _ = gethostbyname(NAME) }),
        // SAFETY: as above.
        ("gethostbyname2", |_| unsafe { _ = gethostbyname2(NAME, IPV4) }),
        // SAFETY: as above.
        ("gethostbyaddr", |_| unsafe { _ = gethostbyaddr(ADDRESS.as_ptr().cast(), 4, IPV4) }),
        // SAFETY: as above.
        ("gethostbyname_r", |to| unsafe {
            let (entry, buffer, room) = (&raw mut to.entry, to.buffer.as_mut_ptr(), 1024);
            gethostbyname_r(NAME, entry, buffer, room, &raw mut to.found, &raw mut to.error);
        }),
        // SAFETY: as above.
        ("gethostbyname2_r", |to| unsafe {
            let (entry, buffer, room) = (&raw mut to.entry, to.buffer.as_mut_ptr(), 1024);
            let (found, error) = (&raw mut to.found, &raw mut to.error);
            gethostbyname2_r(NAME, IPV4, entry, buffer, room, found, error);
        }),
        // SAFETY: as above.
        ("gethostbyaddr_r", |to| unsafe {
            let (entry, buffer, room) = (&raw mut to.entry, to.buffer.as_mut_ptr(), 1024);
            let (found, error) = (&raw mut to.found, &raw mut to.error);
            let address = ADDRESS.as_ptr().cast();
            gethostbyaddr_r(address, 4, IPV4, entry, buffer, room, found, error);
        }),
        // SAFETY: as above; all zeros is an address.
        ("getnameinfo", |to| unsafe {
            let mut address: libc::sockaddr_in = std::mem::zeroed();
            address.sin_family = libc::AF_INET as libc::sa_family_t;
            address.sin_addr.s_addr = u32::from_ne_bytes(ADDRESS);
            let (at, len) = ((&raw const address).cast(), size_of_val(&address) as u32);
            libc::getnameinfo(at, len, to.buffer.as_mut_ptr(), 1024, null_mut(), 0, 0);
        }),
    ];
    for (name, ask) in asks {
        again_beside_a_ticker(name, move || {
            // SAFETY: integers and pointers.
            ask(&mut unsafe { std::mem::zeroed() });
            true
        });
    }
}
