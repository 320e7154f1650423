//! Files of a directory.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::PathBuf;

use kapok_lab::{Model, Protocol, ServeConfig};

use crate::server::{Server, config};

mod models {
    over_models! { serves_files_and_nothing_else }
}

fn directory(model: Model) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("files-{model}"));
    let below = directory.join("www/below");
    fs::create_dir_all(&below).unwrap();
    fs::write(directory.join("www/index.html"), b"index").unwrap();
    fs::write(below.join("two words.txt"), b"below").unwrap();
    fs::write(below.join("large"), large()).unwrap();
    fs::write(directory.join("secret"), b"SECRET").unwrap();
    directory.join("www")
}

/// More than a socket takes at once.
fn large() -> Vec<u8> {
    (0..3_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn serves_files_and_nothing_else(model: Model) {
    let server = Server::start(ServeConfig {
        directory: Some(directory(model)),
        ..config(model, Protocol::Files)
    });
    let mut stream = server.connect();
    // Pipelined, so that they are answered in order whichever is read sooner.
    for target in [
        "/",
        "/below/large",
        "/below/two%20words.txt?q",
        "/absent",
        "/below",
        "/../secret",
        "/%2e%2e/secret",
    ] {
        write!(stream, "GET {target} HTTP/1.1\r\n\r\n").unwrap();
    }
    stream.write_all(b"HEAD /below/large HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut replies = Vec::new();
    stream.read_to_end(&mut replies).unwrap();
    let reply = |status: &str, length: usize, more: &str, body: &[u8]| {
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\nContent-Length: {length}\r\n\
             {more}\r\n"
        );
        [head.as_bytes(), body].concat()
    };
    let absent = reply("404 Not Found", 0, "", b"");
    let expected = [
        reply("200 OK", 5, "", b"index"),
        reply("200 OK", 3_000_000, "", &large()),
        reply("200 OK", 5, "", b"below"),
        absent.repeat(4),
        reply("200 OK", 3_000_000, "Connection: close\r\n", b""),
    ]
    .concat();
    assert_eq!(replies.len(), expected.len());
    assert!(replies == expected, "the replies differ");
    assert_eq!(server.finish().requests, 8);
}
