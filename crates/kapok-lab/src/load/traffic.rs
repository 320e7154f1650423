//! What goes over a connection and how every byte that comes back is checked.
//!
//! An echo is held against what was sent, an HTTP reply against the first one (see [`body`](super::body)).
//!
//! A [`Traffic`] is shared by all connections of a thread; a connection keeps only where it is in
//! its two streams. Requests are written straight from shared memory, without a copy.

use std::mem;

use httparse::Status;

use super::body::{Bodies, FirstBody};

/// The longest echo message.
pub(super) const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// A longer reply head is a fault of the server.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// A reply that is not what was asked for; the text says how.
#[derive(Debug)]
pub(super) struct Fault(pub(super) String);

/// Requests and the verification of their replies.
pub(super) trait Traffic {
    /// Where one connection is in its stream of replies.
    type Reader;

    /// A reader for the `serial`-th connection that is opened.
    fn reader(&self, serial: u64) -> Self::Reader;

    /// Bytes of one request.
    fn request_bytes(&self) -> u64;

    /// The connection's stream of requests from byte `from` on: what is contiguous, at least one
    /// byte.
    fn output(&self, reader: &Self::Reader, from: u64) -> &[u8];

    /// Verifies the next bytes of the reply stream while `outstanding` replies are due, and returns
    /// how many of them were completed.
    fn receive(
        &mut self,
        reader: &mut Self::Reader,
        bytes: &[u8],
        outstanding: u64,
    ) -> Result<u64, Fault>;

    /// Whole replies so far that had another body than the first one, and may have.
    fn other_bodies(&self) -> u64 {
        0
    }
}

/// A prime, so that messages of no usual size fall into step with it.
const PATTERN_PERIOD: usize = 65_521;

/// Echo: the stream of a connection is a window that wanders over one table of random bytes. It
/// begins elsewhere for every connection, so bytes that are lost, doubled, reordered or taken from
/// another connection do not match.
#[derive(Debug)]
pub(super) struct Echo {
    /// The period twice over: a stream is contiguous for at least one period.
    pattern: Box<[u8]>,
    message_bytes: u64,
}

/// Where an echo connection is.
#[derive(Debug)]
pub(super) struct EchoReader {
    offset: u64,
    received: u64,
}

impl Echo {
    pub(super) fn new(message_bytes: usize) -> Echo {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut pattern: Vec<u8> = (0..PATTERN_PERIOD)
            .map(|_| {
                // xorshift64*: the bytes must not repeat, nothing else is asked of them.
                state ^= state >> 12;
                state ^= state << 25;
                state ^= state >> 27;
                (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8
            })
            .collect();
        pattern.extend_from_within(..);
        Echo { pattern: pattern.into(), message_bytes: message_bytes as u64 }
    }

    fn stream(&self, offset: u64, position: u64) -> &[u8] {
        &self.pattern[((offset + position) % PATTERN_PERIOD as u64) as usize..]
    }
}

impl Traffic for Echo {
    type Reader = EchoReader;

    fn reader(&self, serial: u64) -> EchoReader {
        EchoReader { offset: serial.wrapping_mul(7919) % PATTERN_PERIOD as u64, received: 0 }
    }

    fn request_bytes(&self) -> u64 {
        self.message_bytes
    }

    fn output(&self, reader: &EchoReader, from: u64) -> &[u8] {
        self.stream(reader.offset, from)
    }

    fn receive(
        &mut self,
        reader: &mut EchoReader,
        mut bytes: &[u8],
        outstanding: u64,
    ) -> Result<u64, Fault> {
        let done_before = reader.received / self.message_bytes;
        let asked_for = (done_before + outstanding) * self.message_bytes - reader.received;
        let surplus = (bytes.len() as u64).saturating_sub(asked_for);
        bytes = &bytes[..bytes.len() - surplus as usize];
        while !bytes.is_empty() {
            let expected = self.stream(reader.offset, reader.received);
            let length = bytes.len().min(expected.len());
            if bytes[..length] != expected[..length] {
                let wrong = (0..length).find(|&at| bytes[at] != expected[at]).unwrap_or(0);
                return Err(Fault(format!(
                    "byte {} of the echo is {:#04x} and {:#04x} was sent",
                    reader.received + wrong as u64,
                    bytes[wrong],
                    expected[wrong]
                )));
            }
            reader.received += length as u64;
            bytes = &bytes[length..];
        }
        if surplus > 0 {
            return Err(Fault(format!("{surplus} bytes more than were sent")));
        }
        Ok(reader.received / self.message_bytes - done_before)
    }
}

/// Requests in one write at most: how often the request is repeated in memory.
const REQUESTS_IN_A_ROW: usize = 256;

/// HTTP/1.1 GET requests; replies with status 200, a Content-Length that is the same for all, and the
/// body of the first one.
#[derive(Debug)]
pub(super) struct Http {
    requests: Box<[u8]>,
    request_bytes: u64,
    bodies: Bodies,
    other_bodies: u64,
    /// The head that was parsed last. Servers repeat it (but for the date), so the next reply is
    /// most often verified by one comparison.
    known_head: Vec<u8>,
}

/// Where an HTTP connection is.
#[derive(Debug, Default)]
pub(super) struct HttpReader {
    /// The beginning of a head whose end has not come yet.
    head: Vec<u8>,
    body_left: usize,
    /// What has come of the body is not that of the first reply.
    is_other: bool,
}

impl Http {
    /// Threads of one run have its first body in common.
    pub(super) fn new(host: &str, body_bytes: Option<usize>, first: FirstBody) -> Http {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        Http {
            requests: request.repeat(REQUESTS_IN_A_ROW).into_bytes().into(),
            request_bytes: request.len() as u64,
            bodies: Bodies::new(body_bytes, first),
            other_bodies: 0,
            known_head: Vec::new(),
        }
    }

    /// Checks a whole head and returns the length of the body it announces.
    fn check_head(&mut self, head: &[u8]) -> Result<usize, Fault> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(head) {
            Ok(Status::Complete(_)) => {}
            Ok(Status::Partial) => return Err(Fault("the head of the reply has no end".into())),
            Err(error) => return Err(Fault(format!("the head of the reply: {error}"))),
        }
        let status = response.code.unwrap_or(0);
        if status != 200 {
            return Err(Fault(format!("status {status} instead of 200")));
        }
        let mut length = None;
        for header in response.headers.iter() {
            if header.name.eq_ignore_ascii_case("transfer-encoding") {
                return Err(Fault("Transfer-Encoding in place of Content-Length".into()));
            }
            if header.name.eq_ignore_ascii_case("content-length") {
                let value = str::from_utf8(header.value).ok().and_then(|text| text.parse().ok());
                if value.is_none() || length.is_some_and(|known| Some(known) != value) {
                    return Err(Fault("a Content-Length that is no number, or two".into()));
                }
                length = value;
            }
        }
        let length: usize = length.ok_or_else(|| Fault("no Content-Length".into()))?;
        self.bodies.announce(length)?;
        if self.known_head != head {
            self.known_head.clear();
            self.known_head.extend_from_slice(head);
        }
        Ok(length)
    }
}

impl Traffic for Http {
    type Reader = HttpReader;

    fn reader(&self, _serial: u64) -> HttpReader {
        HttpReader::default()
    }

    fn request_bytes(&self) -> u64 {
        self.request_bytes
    }

    fn output(&self, _reader: &HttpReader, from: u64) -> &[u8] {
        &self.requests[(from % self.request_bytes) as usize..]
    }

    fn receive(
        &mut self,
        reader: &mut HttpReader,
        mut bytes: &[u8],
        outstanding: u64,
    ) -> Result<u64, Fault> {
        let mut replies = 0;
        while !bytes.is_empty() {
            if reader.body_left > 0 {
                let length = bytes.len().min(reader.body_left);
                let at = self.bodies.length() - reader.body_left;
                reader.is_other |= !self.bodies.verify(at, &bytes[..length])?;
                reader.body_left -= length;
                bytes = &bytes[length..];
                if reader.body_left == 0 {
                    replies += 1;
                    self.other_bodies += u64::from(mem::take(&mut reader.is_other));
                }
                continue;
            }
            if replies == outstanding {
                return Err(Fault(format!(
                    "{} bytes after the last reply that was asked for",
                    bytes.len()
                )));
            }
            let body = if reader.head.is_empty()
                && !self.known_head.is_empty()
                && bytes.starts_with(&self.known_head)
            {
                bytes = &bytes[self.known_head.len()..];
                // A head is known only once its length was found to be the expected one.
                self.bodies.length()
            } else {
                let kept = reader.head.len();
                reader.head.extend_from_slice(bytes);
                // The end may be split over two reads.
                let search_from = kept.saturating_sub(3);
                let Some(end) = find_head_end(&reader.head[search_from..]) else {
                    if reader.head.len() > MAX_HEAD_BYTES {
                        return Err(Fault(format!("a head of more than {MAX_HEAD_BYTES} bytes")));
                    }
                    break;
                };
                let head_bytes = search_from + end;
                let mut head = mem::take(&mut reader.head);
                let body = self.check_head(&head[..head_bytes])?;
                head.clear();
                reader.head = head;
                bytes = &bytes[head_bytes - kept..];
                body
            };
            reader.body_left = body;
            replies += u64::from(body == 0);
        }
        Ok(replies)
    }

    fn other_bodies(&self) -> u64 {
        self.other_bodies
    }
}

/// The length of the head at the start of `bytes`, its empty line included.
fn find_head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(echo: &Echo, reader: &EchoReader, length: usize) -> Vec<u8> {
        (0..length as u64).map(|at| echo.output(reader, at)[0]).collect()
    }

    #[test]
    fn an_exact_echo_is_counted_however_it_is_cut() {
        for cut in [1, 7, 64, 100, 4096, 70_000] {
            let mut echo = Echo::new(100);
            let mut reader = echo.reader(3);
            let bytes = sent(&echo, &reader, 140_000);
            let mut replies = 0;
            for part in bytes.chunks(cut) {
                replies += echo.receive(&mut reader, part, 1400 - replies).unwrap();
            }
            assert_eq!(replies, 1400, "cut into {cut}");
        }
    }

    #[test]
    fn one_flipped_bit_anywhere_is_found_and_named() {
        for wrong in [0, 1, 63, 64, 999] {
            let mut echo = Echo::new(1000);
            let mut reader = echo.reader(0);
            let mut bytes = sent(&echo, &reader, 1000);
            bytes[wrong] ^= 1;
            let fault = echo.receive(&mut reader, &bytes, 1).unwrap_err();
            assert!(fault.0.starts_with(&format!("byte {wrong} ")), "{}", fault.0);
        }
    }

    #[test]
    fn an_extra_byte_a_missing_byte_and_a_second_echo_are_found() {
        let mut echo = Echo::new(64);

        let mut reader = echo.reader(0);
        let bytes = sent(&echo, &reader, 65);
        let fault = echo.receive(&mut reader, &bytes, 1).unwrap_err();
        assert_eq!(fault.0, "1 bytes more than were sent");

        let mut reader = echo.reader(0);
        let mut bytes = sent(&echo, &reader, 128);
        bytes.remove(20);
        assert!(echo.receive(&mut reader, &bytes, 2).is_err());

        // Cut short at the end: not wrong yet, and not a reply.
        let mut reader = echo.reader(0);
        let bytes = sent(&echo, &reader, 63);
        assert_eq!(echo.receive(&mut reader, &bytes, 1).unwrap(), 0);

        // The same reply again, while the next one is awaited.
        let mut reader = echo.reader(0);
        let bytes = sent(&echo, &reader, 64);
        assert_eq!(echo.receive(&mut reader, &bytes, 1).unwrap(), 1);
        assert!(echo.receive(&mut reader, &bytes, 1).is_err());
        assert!(echo.receive(&mut reader, &bytes, 0).is_err());
    }

    #[test]
    fn the_echo_of_another_connection_is_found() {
        let mut echo = Echo::new(64);
        let theirs = sent(&echo, &echo.reader(1), 64);
        let mut mine = echo.reader(2);
        assert!(echo.receive(&mut mine, &theirs, 1).is_err());
    }

    const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nHello, world!";

    fn http(body_bytes: Option<usize>) -> Http {
        Http::new("localhost", body_bytes, FirstBody::default())
    }

    #[test]
    fn replies_are_counted_however_they_are_cut() {
        for cut in 1..REPLY.len() + 3 {
            let mut http = http(Some(13));
            let mut reader = http.reader(0);
            let mut replies = 0;
            for part in REPLY.repeat(5).chunks(cut) {
                replies += http.receive(&mut reader, part, 5 - replies).unwrap();
            }
            assert_eq!(replies, 5, "cut into {cut}");
        }
    }

    #[test]
    fn a_server_that_answers_twice_is_flagged() {
        let mut http = http(None);
        let mut reader = http.reader(0);
        assert_eq!(http.receive(&mut reader, REPLY, 1).unwrap(), 1);
        // At once, behind the reply that was due.
        let fault = http.receive(&mut reader, &REPLY.repeat(2), 1).unwrap_err();
        assert!(fault.0.contains("after the last reply"), "{}", fault.0);
        // Later, when nothing is due.
        let mut reader = http.reader(0);
        let fault = http.receive(&mut reader, REPLY, 0).unwrap_err();
        assert!(fault.0.contains("after the last reply"), "{}", fault.0);
    }

    #[test]
    fn wrong_replies_say_what_is_wrong() {
        let cases: [(&[u8], &str); 6] = [
            (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "status 404"),
            (b"HTTP/1.1 200 OK\r\n\r\n", "no Content-Length"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n", "Content-Length 12 instead of 13"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "no number"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "Transfer-Encoding"),
            (b"nonsense\r\n\r\n", "the head of the reply"),
        ];
        for (reply, complaint) in cases {
            let mut http = http(None);
            let mut reader = http.reader(0);
            http.receive(&mut reader, REPLY, 1).unwrap();
            let fault = http.receive(&mut reader, reply, 1).unwrap_err();
            assert!(fault.0.contains(complaint), "{}", fault.0);
        }
    }

    #[test]
    fn a_body_that_is_too_long_or_too_short_is_found() {
        let mut http = http(None);
        let mut reader = http.reader(0);
        http.receive(&mut reader, REPLY, 1).unwrap();
        let long = [REPLY, b"!"].concat();
        assert!(http.receive(&mut reader, &long, 1).is_err());

        let mut reader = http.reader(0);
        let short = [&REPLY[..REPLY.len() - 1], REPLY].concat();
        assert!(http.receive(&mut reader, &short, 2).is_err());
    }

    /// The reply with one bit of its body flipped.
    fn flipped(at: usize) -> Vec<u8> {
        let mut reply = REPLY.to_vec();
        let body = reply.len() - 13;
        reply[body + at] ^= 1;
        reply
    }

    #[test]
    fn a_flipped_bit_of_a_body_that_is_known_is_found_and_named() {
        for cut in [1, 5, 40, 1000] {
            for wrong in [0, 7, 12] {
                let mut http = http(Some(13));
                let mut reader = http.reader(0);
                let replies = [REPLY, &flipped(wrong)].concat();
                let verdict: Result<Vec<u64>, Fault> =
                    replies.chunks(cut).map(|part| http.receive(&mut reader, part, 2)).collect();
                let fault = verdict.unwrap_err();
                assert!(fault.0.starts_with(&format!("byte {wrong} of the body")), "{}", fault.0);
            }
        }
    }

    #[test]
    fn bodies_that_may_change_are_counted_once_each_however_they_are_cut() {
        let replies = [REPLY, &flipped(0), REPLY, &flipped(12), &flipped(5), REPLY].concat();
        for cut in 1..replies.len() {
            let mut http = http(None);
            let mut reader = http.reader(0);
            let mut counted = 0;
            for part in replies.chunks(cut) {
                counted += http.receive(&mut reader, part, 6 - counted).unwrap();
            }
            assert_eq!((counted, http.other_bodies()), (6, 3), "cut into {cut}");
        }
    }

    #[test]
    fn an_empty_body_and_a_changing_head_are_fine() {
        let mut http = http(None);
        let mut reader = http.reader(0);
        let replies = b"HTTP/1.1 200 OK\r\nDate: a\r\ncontent-length: 0\r\n\r\n\
                        HTTP/1.1 200 OK\r\nDate: b\r\ncontent-length: 0\r\n\r\n\
                        HTTP/1.1 200 OK\r\nDate: b\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(http.receive(&mut reader, replies, 3).unwrap(), 3);
    }
}
