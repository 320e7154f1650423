//! As much of HTTP as the handlers need.

use std::io;

use crate::handlers::Request;

/// The longest head of a request.
const LONGEST: usize = 8192;

/// A status and a body.
pub(crate) struct Reply {
    status: &'static str,
    body: Vec<u8>,
}

impl Reply {
    pub(crate) fn found(body: Vec<u8>) -> Reply {
        Reply { status: "200 OK", body }
    }

    pub(crate) fn not_found() -> Reply {
        Reply { status: "404 Not Found", body: Vec::new() }
    }

    pub(crate) fn failed(error: &dyn std::fmt::Display) -> Reply {
        Reply { status: "500 Internal Server Error", body: error.to_string().into_bytes() }
    }

    /// The reply as it is sent.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let head = format!(
            "HTTP/1.1 {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.status,
            self.body.len()
        );
        [head.as_bytes(), &self.body].concat()
    }
}

/// Takes the first request, if it is whole, out of what has come.
///
/// # Errors
///
/// It is no request, or too long for one.
pub(crate) fn take(received: &mut Vec<u8>) -> io::Result<Option<Request>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Request::new(&mut headers);
    let parsed = head.parse(received).map_err(io::Error::other)?;
    let httparse::Status::Complete(length) = parsed else {
        let too_long = received.len() > LONGEST;
        return if too_long { Err(io::Error::other("a head too long")) } else { Ok(None) };
    };
    let request = route(head.path.unwrap_or_default());
    received.drain(..length);
    Ok(Some(request))
}

fn route(path: &str) -> Request {
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let (kind, number) = (parts.next(), parts.next().and_then(|number| number.parse().ok()));
    match (kind, number) {
        (Some("book"), Some(id)) => Request::Book(id),
        (Some("author"), Some(id)) => Request::Author(id),
        (Some("buy"), Some(id)) => Request::Buy(id),
        (Some("none"), Some(id)) => Request::Nothing(id),
        _ => Request::Unknown,
    }
}
