//! What the fuzz targets reach of the generator: the check of replies, without a connection.

use super::body::FirstBody;
use super::traffic::{Echo, Http, Traffic};

/// Replies in a row, as they come from a server.
#[derive(Clone, Copy, Debug)]
pub enum Replies {
    /// The echo of messages of this many bytes.
    Echo {
        /// Bytes of a message, at least one.
        message_bytes: usize,
    },
    /// HTTP replies with any body, or with one of this many bytes.
    Http {
        /// The body that each must have.
        body_bytes: Option<usize>,
    },
}

impl Replies {
    /// Checks `bytes`, cut as `pieces` says, over and over, while `outstanding` replies are due, and
    /// counts those that are whole.
    ///
    /// # Errors
    ///
    /// What is wrong with them, in words.
    pub fn check(self, bytes: &[u8], pieces: &[usize], outstanding: u64) -> Result<u64, String> {
        match self {
            Replies::Echo { message_bytes } => {
                check(Echo::new(message_bytes), bytes, pieces, outstanding)
            }
            Replies::Http { body_bytes } => {
                let http = Http::new("fuzz", body_bytes, FirstBody::default());
                check(http, bytes, pieces, outstanding)
            }
        }
    }

    /// What an echo server that makes no mistake sends back for so many bytes.
    pub fn echo_of(message_bytes: usize, length: usize) -> Vec<u8> {
        let echo = Echo::new(message_bytes);
        let reader = echo.reader(0);
        (0..length as u64).map(|at| echo.output(&reader, at)[0]).collect()
    }
}

fn check(
    mut traffic: impl Traffic,
    mut bytes: &[u8],
    pieces: &[usize],
    outstanding: u64,
) -> Result<u64, String> {
    let mut reader = traffic.reader(0);
    let mut pieces = pieces.iter().copied().cycle();
    let mut replies = 0;
    while !bytes.is_empty() {
        let (piece, rest) = bytes.split_at(pieces.next().unwrap_or(1).clamp(1, bytes.len()));
        replies +=
            traffic.receive(&mut reader, piece, outstanding - replies).map_err(|fault| fault.0)?;
        bytes = rest;
    }
    Ok(replies)
}
