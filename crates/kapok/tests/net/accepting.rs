//! Many connections at once, and many that accept.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::echo;
use crate::harness::{alone, engine, open_descriptors, run_on, wait_until};
use crate::sharing::on_another_loop;
use kapok::Kind;
use kapok::net::{TcpListener, TcpStream};
use kapok::sync::channel;

#[test]
fn hundreds_connect_at_once_and_all_are_served() {
    alone("accepting::hundreds_connect_at_once_and_all_are_served", || {
        // select(2) knows no numbers above 1023.
        let count = if engine() == Some(Kind::Select) { 300 } else { 500 };
        run_on(2, move || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            // When both loops have what they need.
            on_another_loop(|| ()).join().unwrap();
            let before = open_descriptors();
            let (open, opened) = channel::unbounded();
            let clients: Vec<_> = (0..count)
                .map(|number| {
                    let open = open.clone();
                    kapok::spawn(move || {
                        let mut stream = TcpStream::connect(address).unwrap();
                        open.send(()).unwrap();
                        stream.write_all(&[number as u8; 100]).unwrap();
                        let mut buf = [0; 100];
                        stream.read_exact(&mut buf).unwrap();
                        assert_eq!(buf, [number as u8; 100]);
                    })
                })
                .collect();
            // They are all connected before the first is accepted.
            for _ in 0..count {
                opened.recv().unwrap();
            }
            let streams = listener.incoming().take(count).map(Result::unwrap);
            let servers: Vec<_> =
                streams.map(|stream| kapok::spawn(move || echo(&stream))).collect();
            clients.into_iter().for_each(|client| client.join().unwrap());
            servers.into_iter().for_each(|server| server.join().unwrap());
            wait_until(|| open_descriptors() == before);
        });
    });
}

#[test]
fn several_fibers_accept_from_one_listener() {
    run_on(2, || {
        const COUNT: usize = 200;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let acceptors: Vec<_> = (0..4)
            .map(|_| {
                let listener = listener.try_clone().unwrap();
                let accepted = Arc::clone(&accepted);
                kapok::spawn(move || {
                    while let Ok((mut stream, _)) = listener.accept() {
                        accepted.fetch_add(1, Ordering::SeqCst);
                        stream.write_all(b"!").unwrap();
                    }
                })
            })
            .collect();
        kapok::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..COUNT / 4 {
                        let mut stream = TcpStream::connect(address).unwrap();
                        stream.read_exact(&mut [0; 1]).unwrap();
                    }
                });
            }
        });
        assert_eq!(accepted.load(Ordering::SeqCst), COUNT);
        for acceptor in acceptors {
            acceptor.cancel();
            acceptor.join().unwrap();
        }
    });
}
