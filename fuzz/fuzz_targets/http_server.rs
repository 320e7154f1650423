//! The HTTP server's side of a connection, fed the same bytes whole and in pieces.
//!
//! The first byte says how the pieces are cut and how far the peer reads; the rest is the input.
//! However it is cut, the replies are the same; there are no more of them than requests could be in
//! the input; nothing panics, and what is held is bounded.

#![no_main]

use std::sync::Arc;

use kapok_lab::workload::{Want, Workload};
use kapok_lab::{Protocol, ServeConfig};
use libfuzzer_sys::fuzz_target;

const MAX_HEAD_BYTES: usize = 512;
/// The least that a request can be: a method, a target, a version, two ends of lines.
const SHORTEST_REQUEST: usize = "G / HTTP/1.1\n\n".len();

struct Outcome {
    output: Vec<u8>,
    requests: u64,
    /// The server stopped before the input ended.
    closed: bool,
}

/// Feeds `input` in pieces of `pieces` bytes, taking up and over, to a peer that reads `sips`.
fn converse(workload: &Arc<Workload>, input: &[u8], pieces: &[usize], sips: usize) -> Outcome {
    let mut session = workload.session();
    let mut pieces = pieces.iter().copied().cycle();
    let mut rest = input;
    let mut output = Vec::new();
    let mut shut_down = false;
    let mut ended = false;
    // Each step takes input or gives output, or is one of the three that come once.
    let most = 4 * (input.len() + 1) * 256 + 16;
    for _ in 0..most {
        match session.want() {
            Want::Read => {
                assert!(!ended, "reads after the end of the input");
                let space = session.space();
                assert!(!space.is_empty(), "no room to read into");
                let count = pieces.next().unwrap_or(1).max(1).min(space.len()).min(rest.len());
                space[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                if count == 0 {
                    ended = true;
                    session.ended();
                } else {
                    session.received(count);
                }
                session.rest();
            }
            Want::Write => {
                assert!(!shut_down, "writes after the sending direction was shut down");
                let count = session.pending().len().min(sips);
                assert!(count > 0, "nothing to write");
                output.extend_from_slice(&session.pending()[..count]);
                session.sent(count);
            }
            Want::Ask | Want::Load => unreachable!("there is no backend, and there are no files"),
            Want::ShutDown => {
                assert!(!shut_down, "shuts down twice");
                shut_down = true;
                session.shut_down();
            }
            Want::Close => {
                let requests = session.requests();
                return Outcome { output, requests, closed: !ended };
            }
        }
    }
    panic!("no end after {most} steps");
}

fuzz_target!(|data: &[u8]| {
    let Some((&cut, input)) = data.split_first() else { return };
    let config = ServeConfig {
        protocol: Protocol::Http,
        body_bytes: usize::from(cut >> 6) * 7,
        buffer_bytes: 1024,
        max_head_bytes: MAX_HEAD_BYTES,
        ..ServeConfig::default()
    };
    let workload = Workload::new(&config);
    let whole = converse(&workload, input, &[usize::MAX], usize::MAX);
    assert!(whole.requests as usize <= input.len() / SHORTEST_REQUEST + 1, "too many replies");

    let pieces = [usize::from(cut & 7) + 1, usize::from(cut >> 3 & 7) * 5 + 1];
    for sips in [1 + usize::from(cut & 31), usize::MAX] {
        let other = converse(&workload, input, &pieces, sips);
        // A client that waits for its body's go-ahead gets one only if it has not sent the body
        // yet: that is what the pieces are to decide.
        let without = |output: &[u8]| {
            String::from_utf8_lossy(output).replace("HTTP/1.1 100 Continue\r\n\r\n", "")
        };
        assert_eq!(
            without(&whole.output),
            without(&other.output),
            "the replies depend on the cuts"
        );
        assert_eq!(whole.requests, other.requests);
        assert_eq!(whole.closed, other.closed);
    }
});
