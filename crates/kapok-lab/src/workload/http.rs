//! HTTP/1.1 with a static reply, as far as a benchmark and an honest client need it.
//!
//! Keep-alive, pipelining (all requests of a buffer are answered by one write), HTTP/1.0, HEAD, and
//! request bodies with `Content-Length`, which are skipped. A body in chunks is refused with 411
//! (RFC 9112, 6.3, lets a server ask for a length), a head that is no HTTP with 400, one that is too
//! long or has more than [`MAX_HEADERS`] lines with 431; these end the connection. Any method and
//! any target gets the same reply; there is no Date header.

use std::io;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use httparse::{Header, Status};

use super::buffer::{Input, Output};
use super::files::resolve;
use super::{Want, Workload};

const MAX_HEADERS: usize = 64;

/// Requests wait in the input once this much output is pending: what a client that sends without
/// reading can make the server hold.
const MAX_PENDING_BYTES: usize = 64 * 1024;

/// What is read and thrown away after an error was reported, so that closing does not reset the
/// connection under the report.
const MAX_DISCARDED_BYTES: u64 = 1024 * 1024;

/// The replies of one server, ready to send.
#[derive(Debug)]
pub(super) struct Replies {
    keep_alive: Reply,
    /// HTTP/1.0 closes unless told otherwise.
    keep_alive_1_0: Reply,
    close: Reply,
}

#[derive(Debug)]
struct Reply {
    bytes: Vec<u8>,
    /// Without the body, for HEAD.
    head_bytes: usize,
}

impl Reply {
    fn new(connection: &str, body: &[u8]) -> Reply {
        let mut bytes = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n{connection}\r\n",
            body.len()
        )
        .into_bytes();
        let head_bytes = bytes.len();
        bytes.extend_from_slice(body);
        Reply { bytes, head_bytes }
    }
}

impl Replies {
    pub(super) fn new(body_bytes: usize) -> Replies {
        let body: Vec<u8> = b"Hello, World!".iter().copied().cycle().take(body_bytes).collect();
        Replies {
            keep_alive: Reply::new("", &body),
            keep_alive_1_0: Reply::new("Connection: keep-alive\r\n", &body),
            close: Reply::new("Connection: close\r\n", &body),
        }
    }
}

/// An HTTP connection.
#[derive(Debug)]
pub struct Http {
    workload: Arc<Workload>,
    input: Input,
    output: Output,
    phase: Phase,
    /// What the request asks for, where replies are files. Kept out of the phase, which is copied.
    file: Option<Box<Path>>,
    /// The peer sends no more.
    ended: bool,
    requests: u64,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// The next byte belongs to a request's head.
    Head,
    /// This many bytes of a request's body are still to come; then `reply` goes out.
    Body { left: u64, reply: Answer },
    /// The backend has to be asked before this goes out.
    Asking(Answer),
    /// The file has to be read that goes out.
    Loading(Answer),
    /// The last reply is on its way; then the connection is closed.
    Last,
    /// An error is on its way; then the sending direction is shut down and input discarded.
    Failed,
    /// The rest of the input, up to so many bytes.
    Discard { left: u64 },
}

/// Which reply a request gets.
#[derive(Debug, Clone, Copy)]
struct Answer {
    close: bool,
    http_1_0: bool,
    head_only: bool,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy)]
enum Refusal {
    BadRequest,
    LengthRequired,
    HeadTooLarge,
}

impl Refusal {
    fn reply(self) -> &'static [u8] {
        match self {
            Refusal::BadRequest => {
                b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            }
            Refusal::LengthRequired => {
                b"HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            }
            Refusal::HeadTooLarge => {
                b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\n\
                  Connection: close\r\n\r\n"
            }
        }
    }
}

/// A head that was understood.
struct Head {
    head_bytes: usize,
    body_bytes: u64,
    expects_continue: bool,
    answer: Answer,
    /// Where replies are files.
    file: Option<PathBuf>,
}

impl Http {
    pub(super) fn new(workload: Arc<Workload>) -> Http {
        Http {
            workload,
            input: Input::default(),
            output: Output::default(),
            phase: Phase::Head,
            file: None,
            ended: false,
            requests: 0,
        }
    }

    #[inline]
    pub(super) fn want(&self) -> Want {
        if !self.output.pending().is_empty() {
            return Want::Write;
        }
        match self.phase {
            Phase::Asking(_) => Want::Ask,
            Phase::Loading(_) => Want::Load,
            Phase::Last => Want::Close,
            Phase::Failed => Want::ShutDown,
            Phase::Head | Phase::Body { .. } | Phase::Discard { .. } if self.ended => Want::Close,
            Phase::Discard { left: 0 } => Want::Close,
            Phase::Head | Phase::Body { .. } | Phase::Discard { .. } => Want::Read,
        }
    }

    #[inline]
    pub(super) fn space(&mut self) -> &mut [u8] {
        // One more than the longest head, so that a head that is too long is seen to be.
        let capacity = self.workload.buffer_bytes.max(self.workload.max_head_bytes + 1);
        self.input.space(capacity)
    }

    #[inline]
    pub(super) fn received(&mut self, n: usize) {
        self.input.filled(n);
        self.answer_all();
    }

    #[inline]
    pub(super) fn pending(&self) -> &[u8] {
        self.output.pending()
    }

    #[inline]
    pub(super) fn sent(&mut self, n: usize) {
        self.output.sent(n);
        if self.output.pending().is_empty() && !self.input.bytes().is_empty() {
            self.answer_all();
        }
    }

    pub(super) fn ended(&mut self) {
        self.ended = true;
    }

    pub(super) fn shut_down(&mut self) {
        self.phase = Phase::Discard { left: MAX_DISCARDED_BYTES };
    }

    #[inline]
    pub(super) fn rest(&mut self) {
        self.input.rest();
    }

    pub(super) fn requests(&self) -> u64 {
        self.requests
    }

    /// Answers every request in the input, as far as there is room for the output.
    fn answer_all(&mut self) {
        while !self.input.bytes().is_empty() {
            match self.phase {
                Phase::Head => {
                    if self.output.pending().len() >= MAX_PENDING_BYTES {
                        return;
                    }
                    match parse(self.input.bytes(), &self.workload) {
                        Ok(Some(head)) => self.begin(head),
                        Ok(None) => return,
                        Err(refusal) => self.refuse(refusal),
                    }
                }
                Phase::Body { left, reply } => {
                    let here = (self.input.bytes().len() as u64).min(left);
                    self.input.consume(here as usize);
                    if here < left {
                        self.phase = Phase::Body { left: left - here, reply };
                    } else {
                        self.ask(reply);
                    }
                }
                Phase::Discard { left } => {
                    let here = self.input.bytes().len();
                    self.input.consume(here);
                    self.phase = Phase::Discard { left: left.saturating_sub(here as u64) };
                }
                Phase::Asking(_) | Phase::Loading(_) => return,
                // Nothing that follows is answered.
                Phase::Last | Phase::Failed => self.input.consume(self.input.bytes().len()),
            }
        }
    }

    #[inline]
    fn begin(&mut self, head: Head) {
        self.file = head.file.map(PathBuf::into_boxed_path);
        self.input.consume(head.head_bytes);
        if head.body_bytes == 0 {
            return self.ask(head.answer);
        }
        if head.expects_continue && self.input.bytes().is_empty() {
            self.output.push(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        self.phase = Phase::Body { left: head.body_bytes, reply: head.answer };
    }

    /// Replies, after the backend was asked if there is one.
    #[inline]
    fn ask(&mut self, answer: Answer) {
        if self.workload.asks {
            self.phase = Phase::Asking(answer);
        } else {
            self.reply(answer);
        }
    }

    pub(super) fn answered(&mut self) {
        if let Phase::Asking(answer) = self.phase {
            self.reply(answer);
            self.answer_all();
        }
    }

    pub(super) fn file(&self) -> &Path {
        self.file.as_deref().unwrap_or(Path::new(""))
    }

    pub(super) fn loaded(&mut self, file: io::Result<Vec<u8>>) {
        let Phase::Loading(answer) = self.phase else { return };
        self.file = None;
        let (status, body) = match file {
            Ok(body) => ("200 OK", body),
            Err(_) => ("404 Not Found", Vec::new()),
        };
        let connection = match answer {
            Answer { close: true, .. } => "Connection: close\r\n",
            Answer { http_1_0: true, .. } => "Connection: keep-alive\r\n",
            Answer { .. } => "",
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\
             {connection}\r\n",
            body.len()
        );
        self.output.push(head.as_bytes());
        if !answer.head_only {
            self.output.push(&body);
        }
        self.phase = if answer.close { Phase::Last } else { Phase::Head };
        self.answer_all();
    }

    #[inline]
    fn reply(&mut self, answer: Answer) {
        self.requests += 1;
        self.workload.burn.burn();
        if self.file.is_some() {
            self.phase = Phase::Loading(answer);
            return;
        }
        let replies = &self.workload.replies;
        let reply = match answer {
            Answer { close: true, .. } => &replies.close,
            Answer { http_1_0: true, .. } => &replies.keep_alive_1_0,
            Answer { .. } => &replies.keep_alive,
        };
        let bytes = if answer.head_only { &reply.bytes[..reply.head_bytes] } else { &reply.bytes };
        self.output.push(bytes);
        self.phase = if answer.close { Phase::Last } else { Phase::Head };
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.requests += 1;
        self.output.push(refusal.reply());
        self.phase = Phase::Failed;
    }
}

/// Reads the head at the front of `bytes`; none if it is not complete.
#[inline]
fn parse(bytes: &[u8], workload: &Workload) -> Result<Option<Head>, Refusal> {
    let max_head_bytes = workload.max_head_bytes;
    let mut headers: [MaybeUninit<Header<'_>>; MAX_HEADERS] =
        [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut []);
    // What is beyond the limit must not be looked at: whether it is there yet depends on how the
    // input was cut, and the reply must not.
    let within = &bytes[..bytes.len().min(max_head_bytes)];
    let head_bytes = match request.parse_with_uninit_headers(within, &mut headers) {
        Ok(Status::Complete(n)) => n,
        Ok(Status::Partial) if bytes.len() <= max_head_bytes => return Ok(None),
        Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Err(Refusal::HeadTooLarge);
        }
        Err(_) => return Err(Refusal::BadRequest),
    };
    let http_1_0 = request.version == Some(0);
    let mut close = http_1_0;
    let mut body_bytes = None;
    let mut expects_continue = false;
    for header in request.headers.iter() {
        // The length of the name tells most headers apart without looking at their letters.
        match header.name.len() {
            10 if header.name.eq_ignore_ascii_case("connection") => {
                for token in header.value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                    if token.eq_ignore_ascii_case(b"close") {
                        close = true;
                    } else if http_1_0 && token.eq_ignore_ascii_case(b"keep-alive") {
                        close = false;
                    }
                }
            }
            14 if header.name.eq_ignore_ascii_case("content-length") => {
                let length = decimal(header.value).ok_or(Refusal::BadRequest)?;
                // Two lengths that differ are how requests are smuggled.
                if body_bytes.is_some_and(|earlier| earlier != length) {
                    return Err(Refusal::BadRequest);
                }
                body_bytes = Some(length);
            }
            17 if header.name.eq_ignore_ascii_case("transfer-encoding") => {
                return Err(Refusal::LengthRequired);
            }
            6 if header.name.eq_ignore_ascii_case("expect") => {
                expects_continue = header.value.eq_ignore_ascii_case(b"100-continue");
            }
            _ => {}
        }
    }
    let head_only = request.method == Some("HEAD");
    let answer = Answer { close, http_1_0, head_only };
    let file = workload.directory.as_deref().map(|directory| {
        // A target that names nothing is a file that is not there.
        request.path.and_then(|target| resolve(directory, target)).unwrap_or_default()
    });
    Ok(Some(Head {
        file,
        head_bytes,
        body_bytes: body_bytes.unwrap_or(0),
        expects_continue,
        answer,
    }))
}

/// A number in digits alone: no sign, no blanks inside, nothing beyond `u64`.
fn decimal(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value.trim_ascii()).ok()?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Protocol, ServeConfig};

    const LIMIT: usize = 256;

    /// The replies to `input`, received in pieces of `piece` bytes.
    fn replies(input: &[u8], piece: usize) -> Vec<u8> {
        let config = ServeConfig {
            protocol: Protocol::Http,
            max_head_bytes: LIMIT,
            buffer_bytes: 4 * LIMIT,
            ..ServeConfig::default()
        };
        let mut http = Http::new(Workload::new(&config));
        let mut replies = Vec::new();
        for bytes in input.chunks(piece) {
            if http.want() != Want::Read {
                break;
            }
            http.space()[..bytes.len()].copy_from_slice(bytes);
            http.received(bytes.len());
            replies.extend_from_slice(http.pending());
            http.sent(http.pending().len());
        }
        replies
    }

    #[test]
    fn a_head_is_judged_by_what_is_within_the_limit_however_it_is_cut() {
        let mut head = b"GET / HTTP/1.1\r\nX: ".to_vec();
        head.resize(LIMIT, b'x');
        // Beyond the limit is what no request may hold, and before it what would be too long.
        let too_long = [head.clone(), b"\r\nb\0d\r\n\r\n".to_vec()].concat();
        head[LIMIT - 1] = 0;
        let bad = [head, b"\r\n\r\n".to_vec()].concat();
        for (input, status) in [(too_long, "HTTP/1.1 431 "), (bad, "HTTP/1.1 400 ")] {
            for piece in [1, 2, 100, LIMIT, LIMIT + 1, 2 * LIMIT] {
                let replies = replies(&input, piece);
                let replies = String::from_utf8_lossy(&replies);
                assert!(replies.starts_with(status), "in pieces of {piece}: {replies}");
                assert_eq!(replies.matches("HTTP/1.1 ").count(), 1, "{replies}");
            }
        }
    }
}
