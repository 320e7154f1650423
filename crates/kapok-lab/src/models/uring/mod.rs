//! A loop over io_uring completions, written by hand.
//!
//! Waits: in one call that also submits. Nothing is asked twice: one accept and one receive for each
//! connection stay armed and complete again and again (multishot), the received bytes lying in a
//! buffer that the kernel picked (see [`buffers`]). Costs: one call a round for everything that
//! arrived in it, and a send for each reply. The send is a direct system call that does not block:
//! it nearly always succeeds, and then the ring has nothing to add. Only what the socket did not
//! take goes through the ring.
//!
//! Completion, not readiness: an operation holds what it was lent, a buffer or the session's
//! pending bytes, until it *lands*. A connection is therefore closed in two steps: its operations
//! are cancelled, and when the last of them has landed it is dropped. Its place in the table, which
//! is in the `user_data` of its operations, is reused only then, so a completion always finds the
//! connection that it is about.

mod backend;
mod buffers;

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};

use super::Server;
use super::intake::Intake;
use super::listener::Accepted;
use super::pace::Pace;
use crate::workload::{Session, Want, read_file};
use backend::{Backend, Step};
use buffers::{Buffers, GROUP};

/// What is kept of a peer that sends on while its request waits for the backend, before it is no
/// longer read from.
const MOST_EARLY_BYTES: usize = 64 * 1024;

const SUBMISSIONS: u32 = 1024;
const COMPLETIONS: u32 = 8192;

/// What a completion is about: the upper half of `user_data`. The lower half is the connection.
const STOP: u64 = 1 << 32;
const INTAKE: u64 = 2 << 32;
const RECEIVE: u64 = 3 << 32;
const SEND: u64 = 4 << 32;
/// The backend: its handshake, then each answer.
const ASK: u64 = 6 << 32;
/// A cancel's own completion, which tells nothing: what counts is how the target lands.
const CANCEL: u64 = 5 << 32;
const OPERATION: u64 = !0 << 32;

pub(super) fn serve(server: &Server, intake: Intake) -> io::Result<()> {
    let mut event_loop = Loop::new(server, intake)?;
    let outcome = event_loop.run();
    if outcome.is_err() && !event_loop.is_empty() {
        // The ring can no longer be waited on, and the kernel may still hold memory of ours.
        std::mem::forget(event_loop);
    }
    outcome
}

/// Whether this system lets us have a ring of the kind that the loop needs.
pub(super) fn check() -> io::Result<()> {
    new_ring().map(drop)
}

fn new_ring() -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_coop_taskrun()
        .setup_defer_taskrun()
        .setup_cqsize(COMPLETIONS)
        .build(SUBMISSIONS)
        .map_err(|error| {
            let kind = match error.raw_os_error() {
                Some(libc::ENOSYS | libc::EPERM | libc::EACCES | libc::EINVAL) => {
                    io::ErrorKind::Unsupported
                }
                _ => error.kind(),
            };
            io::Error::new(kind, format!("no io_uring for the uring model: {error}"))
        })
}

struct Connection<'a> {
    server: &'a Server,
    stream: TcpStream,
    session: Session,
    /// Received while replies were pending; the session has not seen it.
    early: Vec<u8>,
    /// The sweep in which something last moved.
    active: u32,
    /// A multishot receive is armed.
    receiving: bool,
    /// A cancel for that receive is on its way.
    cancelling: bool,
    /// The ring holds the session's pending bytes: the session must not be touched.
    sending: bool,
    /// The peer sends no more.
    ended: bool,
    closing: bool,
    /// Opened at the first request that has to ask.
    backend: Option<Backend>,
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        self.server.tally.requests(self.session.requests());
    }
}

/// Fields in the order in which they are dropped: the ring before the memory that it was lent.
struct Loop<'a> {
    ring: IoUring,
    buffers: Buffers,
    server: &'a Server,
    intake: Intake,
    pace: Pace,
    slots: Vec<Option<Connection<'a>>>,
    free: Vec<usize>,
    /// The accept, or the poll of the inbox, is armed.
    taking_in: bool,
}

impl<'a> Loop<'a> {
    fn new(server: &'a Server, intake: Intake) -> io::Result<Loop<'a>> {
        let ring = new_ring()?;
        if let Intake::Listener(listener) = &intake {
            // On a socket that does not block the ring would report EAGAIN instead of waiting.
            listener.set_blocking()?;
        }
        let buffers = Buffers::register(&ring, server.config.buffer_bytes)?;
        Ok(Loop {
            ring,
            buffers,
            server,
            intake,
            pace: Pace::new(&server.config),
            slots: Vec::new(),
            free: Vec::new(),
            taking_in: false,
        })
    }

    fn is_empty(&self) -> bool {
        self.slots.len() == self.free.len()
    }

    fn run(&mut self) -> io::Result<()> {
        let stop = Fd(self.server.stop.as_fd().as_raw_fd());
        self.submit(opcode::PollAdd::new(stop, libc::POLLIN as u32).build().user_data(STOP))?;
        self.arm_intake()?;
        loop {
            self.enter()?;
            // The completion queue is looked at anew each time: handling a completion submits.
            while let Some(completion) = { self.ring.completion().next() } {
                self.complete(&completion)?;
            }
            let due = self.pace.due();
            if due.resume {
                self.arm_intake()?;
            }
            for slot in 0..if due.sweep || due.cut { self.slots.len() } else { 0 } {
                let Some(connection) = &mut self.slots[slot] else { continue };
                if due.cut || self.pace.is_idle(connection.active) {
                    connection.closing = true;
                    self.advance(slot)?;
                }
            }
            if self.pace.drains() && self.is_empty() {
                return Ok(());
            }
        }
    }

    /// Submits what is queued, and waits for a completion or for the time at which something is due.
    fn enter(&mut self) -> io::Result<()> {
        let entered = match self.pace.timeout(self.is_empty()) {
            // After the cut only landings are awaited, which come soon; do not spin meanwhile.
            Some(timeout) => {
                let timeout = timeout.max(Duration::from_micros(100));
                let timespec = Timespec::from(timeout);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timespec))
            }
            None => self.ring.submit_and_wait(1),
        };
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // The time is over, a signal came, or completions must be reaped first.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(io::Error::new(error.kind(), format!("io_uring_enter failed: {error}"))),
            },
        }
    }

    /// Queues an operation for the next [`enter`](Loop::enter).
    fn submit(&mut self, entry: Entry) -> io::Result<()> {
        loop {
            // SAFETY: the memory that an entry names is the session's pending bytes, which stay in
            // place until the send lands (`Connection::sending`), or the backend's own, which does
            // until its operation lands (`Backend::is_waiting`); other entries name none.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            // The queue is full: hand it over. Nothing is waited for and nothing is lost.
            match self.ring.submit() {
                Err(error)
                    if !matches!(
                        error.raw_os_error(),
                        Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)
                    ) =>
                {
                    return Err(error);
                }
                _ => {}
            }
        }
    }

    /// Waits for connections, unless that is so already or they are not wanted now.
    fn arm_intake(&mut self) -> io::Result<()> {
        if self.taking_in || !self.pace.accepts() {
            return Ok(());
        }
        let fd = Fd(self.intake.as_fd().as_raw_fd());
        let entry = match self.intake {
            Intake::Listener(_) => opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build(),
            Intake::Inbox(_) => opcode::PollAdd::new(fd, libc::POLLIN as u32).build(),
        };
        self.taking_in = true;
        self.submit(entry.user_data(INTAKE))
    }

    #[inline]
    fn complete(&mut self, completion: &cqueue::Entry) -> io::Result<()> {
        let data = completion.user_data();
        let slot = (data & !OPERATION) as usize;
        match data & OPERATION {
            RECEIVE => self.received(slot, completion.result(), completion.flags())?,
            SEND => self.sent(slot, completion.result()),
            ASK => self.answered(slot, completion.result()),
            INTAKE => return self.took_in(completion.result(), completion.flags()),
            STOP => return self.drain(),
            _ => return Ok(()),
        }
        self.advance(slot)
    }

    /// An accept, or the news that the inbox holds something.
    fn took_in(&mut self, result: i32, flags: u32) -> io::Result<()> {
        if !cqueue::more(flags) {
            self.taking_in = false;
        }
        match &mut self.intake {
            Intake::Listener(_) if result >= 0 => {
                // SAFETY: a descriptor that the kernel just made for this completion alone.
                let stream = unsafe { TcpStream::from_raw_fd(result) };
                self.server.tally.accepted();
                self.open(stream)?;
            }
            // Cancelled by the stop.
            Intake::Listener(_) if result == -libc::ECANCELED => {}
            Intake::Listener(listener) => {
                let error = io::Error::from_raw_os_error(-result);
                if let Some(pause) = listener.failed(error, &self.server.tally)? {
                    self.pace.pause_accepting(pause);
                }
            }
            Intake::Inbox(_) => {
                while let Accepted::Connection(stream) = self.intake.next(self.server)? {
                    self.open(stream)?;
                }
            }
        }
        // No MORE is the end of a multishot, whatever its result.
        self.arm_intake()
    }

    fn open(&mut self, stream: TcpStream) -> io::Result<()> {
        if self.pace.drains() {
            // It was accepted before the cancel landed: what it has sent already is answered.
            let _ = stream.shutdown(Shutdown::Read);
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(Connection {
            server: self.server,
            stream,
            session: self.server.workload.session(),
            early: Vec::new(),
            active: self.pace.now(),
            receiving: false,
            cancelling: false,
            sending: false,
            ended: false,
            closing: false,
            backend: None,
        });
        self.advance(slot)
    }

    fn drain(&mut self) -> io::Result<()> {
        self.pace.drain(self.server.config.drain_timeout);
        if self.taking_in {
            self.submit(opcode::AsyncCancel::new(INTAKE).build().user_data(CANCEL))?;
        }
        for connection in self.slots.iter().flatten() {
            // The armed receive completes with what has arrived, then with the end.
            let _ = connection.stream.shutdown(Shutdown::Read);
        }
        Ok(())
    }

    #[inline]
    fn received(&mut self, slot: usize, result: i32, flags: u32) -> io::Result<()> {
        let Some(connection) = &mut self.slots[slot] else { return Ok(()) };
        if !cqueue::more(flags) {
            connection.receiving = false;
            connection.cancelling = false;
        }
        match result {
            1.. => {
                let Some(id) = cqueue::buffer_select(flags) else {
                    return Err(io::Error::other("a receive completed without its buffer"));
                };
                connection.active = self.pace.now();
                let bytes = self.buffers.bytes(id, result as usize);
                connection.take(bytes);
                self.buffers.recycle(id);
            }
            0 => connection.ended = true,
            // No buffer was free, or the receive was cancelled to slow the peer down: the data is
            // still in the socket, and the receive is armed again when it is wanted.
            _ => match -result {
                libc::ENOBUFS | libc::ECANCELED | libc::EINTR | libc::EAGAIN => {}
                _ => connection.closing = true,
            },
        }
        Ok(())
    }

    fn sent(&mut self, slot: usize, result: i32) {
        let Some(connection) = &mut self.slots[slot] else { return };
        connection.sending = false;
        match result {
            0.. => {
                connection.active = self.pace.now();
                connection.session.sent(result as usize);
            }
            _ if matches!(-result, libc::EINTR | libc::EAGAIN | libc::ECANCELED) => {}
            _ => connection.closing = true,
        }
    }

    /// The backend's handshake has ended, or its answer has come.
    fn answered(&mut self, slot: usize, result: i32) {
        let Some(connection) = &mut self.slots[slot] else { return };
        let Some(backend) = &mut connection.backend else { return };
        match backend.landed(result) {
            Ok(true) => {
                connection.active = self.pace.now();
                connection.session.answered();
            }
            Ok(false) => {}
            Err(_) => connection.closing = true,
        }
    }

    /// Does what the session wants until it has to wait for a completion.
    #[inline]
    fn advance(&mut self, slot: usize) -> io::Result<()> {
        loop {
            let Some(connection) = &mut self.slots[slot] else { return Ok(()) };
            if connection.closing {
                return self.close(slot);
            }
            if connection.sending {
                return self.stop_receiving(slot);
            }
            match connection.session.want() {
                Want::Read if !connection.early.is_empty() => connection.take_early(),
                Want::Read if connection.ended => connection.session.ended(),
                Want::Read => {
                    connection.session.rest();
                    if connection.receiving {
                        return Ok(());
                    }
                    connection.receiving = true;
                    let fd = Fd(connection.stream.as_raw_fd());
                    let entry = opcode::RecvMulti::new(fd, GROUP).build();
                    return self.submit(entry.user_data(RECEIVE | slot as u64));
                }
                Want::Write => {
                    match send(connection.stream.as_fd(), connection.session.pending()) {
                        Ok(n) => {
                            connection.active = self.pace.now();
                            connection.session.sent(n);
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            connection.sending = true;
                            let fd = Fd(connection.stream.as_raw_fd());
                            let pending = connection.session.pending();
                            // A length beyond u32 is sent in parts, like any short send.
                            let len = pending.len().min(i32::MAX as usize) as u32;
                            let entry = opcode::Send::new(fd, pending.as_ptr(), len)
                                .flags(libc::MSG_NOSIGNAL)
                                .build();
                            self.submit(entry.user_data(SEND | slot as u64))?;
                        }
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(_) => connection.closing = true,
                    }
                }
                Want::Ask => {
                    let backend = match &mut connection.backend {
                        Some(backend) => backend,
                        none => match Backend::new(self.server.config.backend) {
                            Ok(backend) => none.insert(backend),
                            Err(_) => {
                                connection.closing = true;
                                continue;
                            }
                        },
                    };
                    match backend.ask() {
                        Ok(Step::Submit(entry)) => {
                            self.submit(entry.user_data(ASK | slot as u64))?;
                            return Ok(());
                        }
                        Ok(Step::Wait) if connection.early.len() > MOST_EARLY_BYTES => {
                            return self.stop_receiving(slot);
                        }
                        Ok(Step::Wait) => return Ok(()),
                        Err(_) => connection.closing = true,
                    }
                }
                // As in the loops on readiness: the loop stands still until the disk has answered.
                Want::Load => {
                    let file = read_file(connection.session.file());
                    connection.session.loaded(file);
                }
                Want::ShutDown => {
                    connection.session.shut_down();
                    if connection.stream.shutdown(Shutdown::Write).is_err() {
                        connection.closing = true;
                    }
                }
                Want::Close => connection.closing = true,
            }
        }
    }

    /// The peer does not read its replies: it is not read from either. What a multishot receive
    /// delivers before its cancel lands is kept as `early`, at most a queue of completions.
    fn stop_receiving(&mut self, slot: usize) -> io::Result<()> {
        match &mut self.slots[slot] {
            Some(connection) if connection.receiving && !connection.cancelling => {
                connection.cancelling = true;
                self.cancel(RECEIVE | slot as u64)
            }
            _ => Ok(()),
        }
    }

    /// Closes the connection as soon as the kernel holds nothing of it any more.
    fn close(&mut self, slot: usize) -> io::Result<()> {
        let Some(connection) = &self.slots[slot] else { return Ok(()) };
        let asking = connection.backend.as_ref().is_some_and(Backend::is_waiting);
        if asking {
            self.cancel(ASK | slot as u64)?;
        }
        let Some(connection) = &self.slots[slot] else { return Ok(()) };
        if !connection.receiving && !connection.sending && !asking {
            self.slots[slot] = None;
            self.free.push(slot);
            return Ok(());
        }
        if connection.sending {
            self.cancel(SEND | slot as u64)?;
        }
        self.stop_receiving(slot)
    }

    fn cancel(&mut self, target: u64) -> io::Result<()> {
        self.submit(opcode::AsyncCancel::new(target).build().user_data(CANCEL))
    }
}

impl Connection<'_> {
    /// Gives received bytes to the session, or keeps them if it has replies pending.
    #[inline]
    fn take(&mut self, bytes: &[u8]) {
        if self.sending || !self.early.is_empty() || self.session.want() != Want::Read {
            self.early.extend_from_slice(bytes);
            return;
        }
        let space = self.session.space();
        let n = space.len().min(bytes.len());
        space[..n].copy_from_slice(&bytes[..n]);
        self.session.received(n);
        self.early.extend_from_slice(&bytes[n..]);
    }

    fn take_early(&mut self) {
        let space = self.session.space();
        let n = space.len().min(self.early.len());
        space[..n].copy_from_slice(&self.early[..n]);
        self.session.received(n);
        self.early.drain(..n);
        if self.early.is_empty() {
            self.early = Vec::new();
        }
    }
}

/// Sends without blocking, on a socket that does.
fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the pointer and length are those of a slice that outlives the call.
    let n = unsafe {
        libc::send(
            fd.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    if n >= 0 { Ok(n as usize) } else { Err(io::Error::last_os_error()) }
}
