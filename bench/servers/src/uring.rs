//! A loop over io_uring, written by hand: multishot accept and receive into provided buffers, sends
//! by a direct call that does not wait, one enter a round.
//!
//! A reply for which there is no room goes through the ring, and what is received meanwhile waits
//! for it to be gone. [`Way`] has other ways to do the same, to be measured beside that one.

use std::collections::VecDeque;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::squeue::Entry;
use io_uring::types::{BufRingEntry, Fd, Fixed};
use io_uring::{IoUring, cqueue, opcode, squeue};

use crate::work::{Replies, Speech, Work};

const BUFFERS: u16 = 1024;
const GROUP: u16 = 0;

/// Places of the ring's own table of descriptors: connections beyond it are not accepted.
const TABLE: u32 = 16 * 1024;

const ACCEPT: u64 = 1 << 32;
const RECEIVE: u64 = 2 << 32;
const SEND: u64 = 3 << 32;
const CLOSE: u64 = 4 << 32;
const KIND: u64 = !0 << 32;

/// How the loop receives and sends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Multishot receives into provided buffers, direct sends.
    Multishot,
    /// The same, with receives that may fill several buffers at once.
    Bundles,
    /// A receive for each message, into a provided buffer.
    Once,
    /// A receive for each message, into a buffer of the connection's own.
    Own,
    /// Multishot receives, and sends through the ring.
    Sends,
    /// The same on direct descriptors: no system call knows them, so all goes through the ring.
    Table,
}

/// Where the kernel finds a connection.
enum Socket {
    Stream(TcpStream),
    /// A place of the ring's table.
    Place(u32),
}

struct Connection {
    socket: Socket,
    /// What [`Way::Own`] receives into. It stays in place until the connection is gone.
    own: Vec<u8>,
    /// Whether sends are tried by a direct call first.
    direct: bool,
    replies: Replies,
    /// What the ring is sending, from `sent` on. It stays in place until the send has landed.
    sending: Vec<u8>,
    sent: usize,
    /// Answers to what was received meanwhile.
    next: VecDeque<u8>,
    receiving: bool,
    over: bool,
}

pub(crate) fn serve(listener: TcpListener, work: &Work, way: Way) -> io::Result<()> {
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_coop_taskrun()
        .setup_defer_taskrun()
        .setup_cqsize(16_384)
        .build(1024)?;
    let buffers = Buffers::new(&ring, work.buffer_bytes)?;
    if way == Way::Table {
        ring.submitter().register_files_sparse(TABLE)?;
    }
    let mut event_loop = Loop {
        ring,
        buffers,
        work,
        way,
        listener: listener.as_raw_fd(),
        connections: Vec::new(),
        free: Vec::new(),
        replies: Vec::new(),
    };
    event_loop.accept()?;
    loop {
        match event_loop.ring.submit_and_wait(1) {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY)) => {
                return Err(error);
            }
            _ => {}
        }
        while let Some(completion) = { event_loop.ring.completion().next() } {
            event_loop.complete(&completion)?;
        }
    }
}

struct Loop<'a> {
    ring: IoUring,
    buffers: Buffers,
    work: &'a Work,
    way: Way,
    listener: RawFd,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    replies: Vec<u8>,
}

impl Loop<'_> {
    fn push(&mut self, entry: &Entry) -> io::Result<()> {
        // SAFETY: entries name no memory but what `Connection::sending` and `own` keep in place.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        let accept = opcode::AcceptMulti::new(Fd(self.listener));
        let accept = match self.way {
            Way::Table => accept.allocate_file_index(true),
            _ => accept.flags(libc::SOCK_CLOEXEC),
        };
        self.push(&accept.build().user_data(ACCEPT))
    }

    fn receive(&mut self, place: usize) -> io::Result<()> {
        let Some(connection) = &mut self.connections[place] else { return Ok(()) };
        connection.receiving = true;
        let (memory, len) = (connection.own.as_mut_ptr(), self.work.buffer_bytes as u32);
        let entry = match (&connection.socket, self.way) {
            (Socket::Place(number), _) => opcode::RecvMulti::new(Fixed(*number), GROUP).build(),
            (Socket::Stream(stream), way) => {
                let fd = Fd(stream.as_raw_fd());
                match way {
                    Way::Bundles => opcode::RecvMultiBundle::new(fd, GROUP).build(),
                    Way::Own => opcode::Recv::new(fd, memory, len).build(),
                    Way::Once => opcode::Recv::new(fd, ptr::null_mut(), len)
                        .buf_group(GROUP)
                        .build()
                        .flags(squeue::Flags::BUFFER_SELECT),
                    Way::Multishot | Way::Sends | Way::Table => {
                        opcode::RecvMulti::new(fd, GROUP).build()
                    }
                }
            }
        };
        self.push(&entry.user_data(RECEIVE | place as u64))
    }

    fn complete(&mut self, completion: &cqueue::Entry) -> io::Result<()> {
        let place = (completion.user_data() & !KIND) as usize;
        match completion.user_data() & KIND {
            RECEIVE => self.received(place, completion.result(), completion.flags()),
            SEND => self.sent(place, completion.result()),
            CLOSE => Ok(()),
            _ => self.accepted(completion.result(), completion.flags()),
        }
    }

    fn accepted(&mut self, result: i32, flags: u32) -> io::Result<()> {
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result));
        }
        let socket = match self.way {
            Way::Table => Socket::Place(result as u32),
            // SAFETY: a descriptor that the kernel just made for this completion alone.
            _ => Socket::Stream(unsafe { TcpStream::from_raw_fd(result) }),
        };
        let own = if self.way == Way::Own { vec![0; self.work.buffer_bytes] } else { Vec::new() };
        let place = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        self.connections[place] = Some(Connection {
            socket,
            own,
            direct: !matches!(self.way, Way::Sends | Way::Table),
            replies: self.work.replies(),
            sending: Vec::new(),
            sent: 0,
            next: VecDeque::new(),
            receiving: false,
            over: false,
        });
        self.receive(place)?;
        if cqueue::more(flags) { Ok(()) } else { self.accept() }
    }

    fn received(&mut self, place: usize, result: i32, flags: u32) -> io::Result<()> {
        let Some(connection) = &mut self.connections[place] else { return Ok(()) };
        connection.receiving = cqueue::more(flags);
        match result {
            1.. => {
                let (mut left, mut id) = (result as usize, cqueue::buffer_select(flags));
                while left > 0 {
                    let count = left.min(self.work.buffer_bytes);
                    if let Some(entry) = self.answer(place, id, count) {
                        self.push(&entry)?;
                    }
                    left -= count;
                    // A bundle fills buffers in the order in which they were given, which is that of
                    // their numbers: they are given back in the order in which they came.
                    id = id.map(|id| (id + 1) & (BUFFERS - 1));
                }
            }
            _ if result == -libc::ENOBUFS => {}
            _ => connection.over = true,
        }
        self.go_on(place)
    }

    /// Answers what was received into a provided buffer, or without one into the connection's own.
    fn answer(&mut self, place: usize, id: Option<u16>, count: usize) -> Option<Entry> {
        let connection = self.connections[place].as_mut()?;
        let own = std::mem::take(&mut connection.own);
        let bytes = match id {
            Some(id) => self.buffers.bytes(id, count),
            None => &own[..count],
        };
        let answers = match self.work.speech {
            Speech::Echo => bytes,
            Speech::Http => {
                self.replies.clear();
                connection.over |= !connection.replies.answer(bytes, &mut self.replies);
                &self.replies
            }
        };
        let entry = connection.answer(answers, place);
        connection.own = own;
        if let Some(id) = id {
            self.buffers.recycle(id);
        }
        entry
    }

    fn sent(&mut self, place: usize, result: i32) -> io::Result<()> {
        let Some(connection) = &mut self.connections[place] else { return Ok(()) };
        match result {
            0.. => connection.sent += result as usize,
            _ => {
                connection.over = true;
                connection.next.clear();
                connection.sent = connection.sending.len();
            }
        }
        if connection.sent == connection.sending.len() {
            connection.sending.clear();
            connection.sending.extend(connection.next.drain(..));
            connection.sent = 0;
        }
        if let Some(entry) = connection.send(place) {
            self.push(&entry)?;
        }
        self.go_on(place)
    }

    /// Closes a connection that is over once the ring has nothing of it, or receives on.
    fn go_on(&mut self, place: usize) -> io::Result<()> {
        let Some(connection) = &self.connections[place] else { return Ok(()) };
        if connection.receiving {
            if !connection.over || !connection.sending.is_empty() {
                return Ok(());
            }
            // The receive that is armed ends with the connection.
            return match &connection.socket {
                Socket::Stream(stream) => stream.shutdown(std::net::Shutdown::Both).or(Ok(())),
                Socket::Place(number) => {
                    let both = opcode::Shutdown::new(Fixed(*number), libc::SHUT_RDWR).build();
                    self.push(&both.user_data(CLOSE))
                }
            };
        }
        if !connection.over {
            return self.receive(place);
        }
        if !connection.sending.is_empty() {
            return Ok(());
        }
        let gone = self.connections[place].take().map(|connection| connection.socket);
        self.free.push(place);
        match gone {
            Some(Socket::Place(number)) => {
                self.push(&opcode::Close::new(Fixed(number)).build().user_data(CLOSE))
            }
            _ => Ok(()),
        }
    }
}

impl Connection {
    /// Sends what it can at once, if it may. What is left is for the ring.
    fn answer(&mut self, bytes: &[u8], place: usize) -> Option<Entry> {
        if !self.sending.is_empty() {
            self.next.extend(bytes);
            return None;
        }
        let sent = match &self.socket {
            Socket::Stream(stream) if self.direct => {
                // SAFETY: pointer and length are those of a slice that outlives the call.
                unsafe {
                    libc::send(
                        stream.as_raw_fd(),
                        bytes.as_ptr().cast(),
                        bytes.len(),
                        libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                    )
                }
            }
            _ => 0,
        };
        if sent == bytes.len() as isize {
            return None;
        }
        if sent < 0 && io::Error::last_os_error().kind() != io::ErrorKind::WouldBlock {
            self.over = true;
            return None;
        }
        self.sending.extend_from_slice(&bytes[sent.max(0) as usize..]);
        self.send(place)
    }

    fn send(&self, place: usize) -> Option<Entry> {
        let bytes = &self.sending[self.sent..];
        if bytes.is_empty() {
            return None;
        }
        let (start, len) = (bytes.as_ptr(), bytes.len() as u32);
        let send = match &self.socket {
            Socket::Stream(stream) => opcode::Send::new(Fd(stream.as_raw_fd()), start, len),
            Socket::Place(number) => opcode::Send::new(Fixed(*number), start, len),
        };
        Some(send.flags(libc::MSG_NOSIGNAL).build().user_data(SEND | place as u64))
    }
}

/// Buffers that the kernel picks from when data arrives: a mapping with their ring, and another with
/// the buffers an odd number of cache lines apart.
struct Buffers {
    ring: *mut BufRingEntry,
    memory: Vec<u8>,
    stride: usize,
    buffer_bytes: usize,
    tail: u16,
}

impl Buffers {
    fn new(ring: &IoUring, buffer_bytes: usize) -> io::Result<Buffers> {
        let bytes = usize::from(BUFFERS) * size_of::<BufRingEntry>();
        // SAFETY: a new private mapping, at an address of the kernel's choice.
        let entries = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if entries == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stride = (buffer_bytes.div_ceil(64) | 1) * 64;
        let memory = vec![0; usize::from(BUFFERS) * stride];
        // SAFETY: the mapping is never undone, so it outlives the ring.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(entries as u64, BUFFERS, GROUP, 0)?;
        }
        let mut buffers = Buffers { ring: entries.cast(), memory, stride, buffer_bytes, tail: 0 };
        (0..BUFFERS).for_each(|id| buffers.recycle(id));
        Ok(buffers)
    }

    fn bytes(&self, id: u16, count: usize) -> &[u8] {
        &self.memory[usize::from(id) * self.stride..][..count]
    }

    /// Gives a buffer (back) to the kernel.
    fn recycle(&mut self, id: u16) {
        let address = &raw mut self.memory[usize::from(id) * self.stride];
        // SAFETY: within the mapping by the mask; the kernel reads entries below the tail only.
        let tail = unsafe {
            let entry = &mut *self.ring.add(usize::from(self.tail & (BUFFERS - 1)));
            entry.set_addr(address as u64);
            entry.set_len(self.buffer_bytes as u32);
            entry.set_bid(id);
            &*BufRingEntry::tail(self.ring).cast::<AtomicU16>()
        };
        self.tail = self.tail.wrapping_add(1);
        tail.store(self.tail, Ordering::Release);
    }
}
