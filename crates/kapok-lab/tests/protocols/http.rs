//! HTTP: framing, keep-alive, pipelining, and requests that are none.

use std::io::{Read, Write};
use std::net::TcpStream;

use kapok_lab::{Model, Protocol, ServeConfig};

use crate::server::{Server, config, expect_end};

mod models {
    over_models! {
        answers_one_request_and_a_hundred,
        answers_a_request_split_at_every_byte,
        answers_pipelined_requests_exactly_once,
        replies_have_the_body_asked_for,
        head_gets_no_body,
        closes_when_asked_to,
        keeps_http_1_0_alive_when_asked_to,
        skips_request_bodies,
        refuses_what_is_not_http,
        refuses_a_head_that_is_too_long,
        a_pipelining_client_that_never_reads_is_not_read_from,
    }
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: test\r\nUser-Agent: test\r\n\r\n";

fn start(model: Model) -> Server {
    Server::start(config(model, Protocol::Http))
}

struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// Reads one reply and not a byte more.
fn read_reply(stream: &mut TcpStream, has_body: bool) -> Reply {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut parsed = httparse::Response::new(&mut headers);
    assert!(parsed.parse(&head).expect("a reply").is_complete());
    let status = parsed.code.expect("a status");
    let headers: Vec<_> = parsed
        .headers
        .iter()
        .map(|header| {
            (header.name.to_owned(), String::from_utf8(header.value.to_vec()).expect("text"))
        })
        .collect();
    let mut reply = Reply { status, headers, body: Vec::new() };
    if has_body && status >= 200 {
        let length = reply.header("content-length").expect("a length").parse().expect("a number");
        reply.body.resize(length, 0);
        stream.read_exact(&mut reply.body).expect("a body");
    }
    reply
}

fn expect_hello(stream: &mut TcpStream) {
    let reply = read_reply(stream, true);
    assert_eq!(reply.status, 200);
    assert_eq!(reply.body, b"Hello, World!");
}

/// Sends `request` on a connection of its own and expects `status` and the end.
fn expect_refusal(server: &Server, request: &[u8], status: u16) {
    let mut stream = server.connect();
    stream.write_all(request).expect("sent");
    let reply = read_reply(&mut stream, true);
    assert_eq!(reply.status, status, "for {:?}", String::from_utf8_lossy(request));
    assert_eq!(reply.header("connection"), Some("close"));
    expect_end(&mut stream);
}

fn answers_one_request_and_a_hundred(model: Model) {
    let server = start(model);
    let mut stream = server.connect();
    for _ in 0..101 {
        stream.write_all(GET).expect("sent");
        expect_hello(&mut stream);
    }
    assert_eq!(server.finish().requests, 101);
    expect_end(&mut stream);
}

fn answers_a_request_split_at_every_byte(model: Model) {
    let server = start(model);
    let mut stream = server.connect();
    for split in 1..GET.len() {
        stream.write_all(&GET[..split]).expect("sent");
        // The first part is read by itself: the server has answered something in the meantime.
        let mut other = server.connect();
        other.write_all(GET).expect("sent");
        expect_hello(&mut other);
        stream.write_all(&GET[split..]).expect("sent");
        expect_hello(&mut stream);
    }
    for byte in GET {
        stream.write_all(std::slice::from_ref(byte)).expect("sent");
    }
    expect_hello(&mut stream);
}

/// Replies never outnumber requests, and none is missing.
fn answers_pipelined_requests_exactly_once(model: Model) {
    let server = start(model);
    let mut stream = server.connect();
    for _ in 0..10 {
        stream.write_all(&GET.repeat(64)).expect("sent");
        (0..64).for_each(|_| expect_hello(&mut stream));
    }
    // More than a buffer holds, the last one incomplete at first.
    let requests = GET.repeat(1_000);
    let (first, last) = requests.split_at(requests.len() - 10);
    stream.write_all(first).expect("sent");
    (0..999).for_each(|_| expect_hello(&mut stream));
    stream.write_all(last).expect("sent");
    expect_hello(&mut stream);
    assert_eq!(server.finish().requests, 1_640);
    expect_end(&mut stream);
}

fn replies_have_the_body_asked_for(model: Model) {
    for body_bytes in [0, 13, 1_800, 200_000] {
        let server = Server::start(ServeConfig { body_bytes, ..config(model, Protocol::Http) });
        let mut stream = server.connect();
        for _ in 0..3 {
            stream.write_all(GET).expect("sent");
            let reply = read_reply(&mut stream, true);
            assert_eq!(reply.body.len(), body_bytes);
            assert!(reply.body.iter().zip(b"Hello, World!".iter().cycle()).all(|(a, b)| a == b));
        }
    }
}

fn head_gets_no_body(model: Model) {
    let server = start(model);
    let mut stream = server.connect();
    stream.write_all(b"HEAD / HTTP/1.1\r\nHost: test\r\n\r\n").expect("sent");
    let reply = read_reply(&mut stream, false);
    assert_eq!((reply.status, reply.header("content-length")), (200, Some("13")));
    // A body would now be taken for the next reply's head.
    stream.write_all(GET).expect("sent");
    expect_hello(&mut stream);
}

fn closes_when_asked_to(model: Model) {
    let server = start(model);
    for request in [
        &b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"[..],
        b"GET / HTTP/1.1\r\nHost: test\r\nconnection: Foo, Close\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
    ] {
        let mut stream = server.connect();
        stream.write_all(request).expect("sent");
        let reply = read_reply(&mut stream, true);
        assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
        expect_end(&mut stream);
    }
}

fn keeps_http_1_0_alive_when_asked_to(model: Model) {
    let server = start(model);
    let mut stream = server.connect();
    for _ in 0..3 {
        stream.write_all(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").expect("sent");
        let reply = read_reply(&mut stream, true);
        assert_eq!((reply.status, reply.header("connection")), (200, Some("keep-alive")));
    }
}

fn skips_request_bodies(model: Model) {
    let server = start(model);
    let mut stream = server.connect();
    // In one write with what follows, the body looking like a request itself.
    let mut request =
        format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", GET.len()).into_bytes();
    request.extend_from_slice(GET);
    request.extend_from_slice(GET);
    stream.write_all(&request).expect("sent");
    expect_hello(&mut stream);
    expect_hello(&mut stream);
    // Larger than any buffer.
    let body = vec![b'x'; 300_000];
    stream
        .write_all(b"PUT / HTTP/1.1\r\nContent-Length: 300000\r\nExpect: 100-continue\r\n\r\n")
        .expect("sent");
    assert_eq!(read_reply(&mut stream, false).status, 100);
    stream.write_all(&body).expect("sent");
    expect_hello(&mut stream);
    assert_eq!(server.finish().requests, 3);
    expect_end(&mut stream);
}

fn refuses_what_is_not_http(model: Model) {
    let server = start(model);
    for request in [
        &b"\x16\x03\x01 this is no HTTP\r\n\r\n"[..],
        b"GET / HTTP/3.7\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost test\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    ] {
        expect_refusal(&server, request, 400);
    }
    expect_refusal(&server, b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n", 411);
    // What came before is answered first.
    let mut stream = server.connect();
    stream.write_all(&[GET, b"\0\r\n\r\n", GET].concat()).expect("sent");
    expect_hello(&mut stream);
    assert_eq!(read_reply(&mut stream, true).status, 400);
    expect_end(&mut stream);
}

fn refuses_a_head_that_is_too_long(model: Model) {
    let server = start(model);
    let head = |filler: usize| {
        let mut head = b"GET / HTTP/1.1\r\nX: ".to_vec();
        head.resize(head.len() + filler, b'x');
        head.extend_from_slice(b"\r\n\r\n");
        head
    };
    // Complete and just too long, endless, and the unread rest must not reset the reply away.
    expect_refusal(&server, &head(8 * 1024), 431);
    expect_refusal(&server, &head(200_000), 431);
    expect_refusal(
        &server,
        &[b"GET / HTTP/1.1\r\n".to_vec(), b"A: b\r\n".repeat(65)].concat(),
        431,
    );
    // The longest head that is allowed.
    let mut stream = server.connect();
    let longest = head(8 * 1024 - head(0).len());
    assert_eq!(longest.len(), 8 * 1024);
    stream.write_all(&longest).expect("sent");
    expect_hello(&mut stream);
}

fn a_pipelining_client_that_never_reads_is_not_read_from(model: Model) {
    let server = Server::start(ServeConfig { body_bytes: 10_000, ..config(model, Protocol::Http) });
    let mut stream = server.connect();
    // Requests for 1 GB of replies: only so many are taken on before the client's writes block.
    let requests = GET.repeat(100_000);
    stream.set_nonblocking(true).expect("set");
    let mut sent = 0;
    let mut blocked = 0;
    while sent < requests.len() && blocked < 10 {
        match stream.write(&requests[sent..]) {
            Ok(n) => (sent, blocked) = (sent + n, 0),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                blocked += 1;
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            Err(error) => panic!("sending failed: {error}"),
        }
    }
    drop(stream);
    let served = server.finish();
    assert!(served.requests < 10_000, "{} requests answered into the void", served.requests);
}
