//! Handlers that ask another server and wait for it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use kapok_lab::{DelayServer, Model, Protocol, ServeConfig};

use crate::server::{Server, config, exchange, expect_end};

mod models {
    over_models! { waits_for_all_at_once, answers_in_order_after_asking, a_backend_that_goes_away }
}

const DELAY: Duration = Duration::from_millis(40);

fn waits_for_all_at_once(model: Model) {
    let backend = DelayServer::start(DELAY).unwrap();
    let server = Server::start(ServeConfig {
        backend: Some(backend.addr()),
        ..config(model, Protocol::Echo)
    });
    let mut streams: Vec<TcpStream> = (0..30).map(|_| server.connect()).collect();
    for message in [b"first", b"again"] {
        let begun = Instant::now();
        for stream in &mut streams {
            stream.write_all(message).unwrap();
        }
        for stream in &mut streams {
            let mut reply = [0; 5];
            stream.read_exact(&mut reply).unwrap();
            assert_eq!(&reply, message);
        }
        let took = begun.elapsed();
        assert!(took >= DELAY, "it did not wait: {took:?}");
        // One after the other would be 30 times the delay.
        assert!(took < DELAY * 25, "they waited for one another: {took:?}");
    }
    for stream in &mut streams {
        stream.shutdown(Shutdown::Write).unwrap();
        expect_end(stream);
    }
    drop(streams);
    assert!(server.finish().requests >= 60);
}

/// The backend may be any echo server, and a request that was received before the end of the input is
/// answered.
fn answers_in_order_after_asking(model: Model) {
    let backend = Server::start(config(Model::Threads, Protocol::Echo));
    let server = Server::start(ServeConfig {
        backend: Some(backend.addr),
        body_bytes: 5,
        ..config(model, Protocol::Http)
    });
    let mut stream = server.connect();
    let request = b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc";
    stream.write_all(&request.repeat(40)).unwrap();
    stream.write_all(b"HEAD / HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut replies = String::new();
    stream.read_to_string(&mut replies).unwrap();
    assert_eq!(replies.matches("HTTP/1.1 200 OK").count(), 41, "{replies}");
    assert_eq!(replies.matches("Hello").count(), 40);
    assert!(replies.ends_with("Connection: close\r\n\r\n"), "{replies}");
    assert_eq!(server.finish().requests, 41);
    // A question each, and nothing more.
    assert_eq!(backend.finish().requests, 41);
}

fn a_backend_that_goes_away(model: Model) {
    // It answers each connection once, and closes it at the second question.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    let backend = thread::spawn(move || {
        for mut stream in listener.incoming().take(2).map_while(Result::ok) {
            let mut question = [0];
            stream.read_exact(&mut question).unwrap();
            stream.write_all(&question).unwrap();
            stream.read_exact(&mut question).unwrap();
        }
    });
    let server =
        Server::start(ServeConfig { backend: Some(addr), ..config(model, Protocol::Echo) });
    for _ in 0..2 {
        let mut stream = server.connect();
        exchange(&mut stream, b"answered");
        stream.write_all(b"never").unwrap();
        // Closed, with or without a reset: what matters is that nobody waits for ever.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert_eq!(rest, b"", "a reply without its answer");
    }
    backend.join().unwrap();
    // Nobody listens there any more; the server goes on all the same.
    let mut stream = server.connect();
    stream.write_all(b"nobody").unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert_eq!(rest, b"");
    drop(stream);
    server.finish();
}
