//! Waits that lend memory, each with what comes for it when it is too late.

use std::cell::Cell;
use std::io::{self, IoSliceMut, Read, Write};
use std::net::TcpStream as StdTcpStream;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::rc::Rc;
use std::time::Duration;

use kapok::fs::File;
use kapok::net::{TcpListener, TcpStream, UdpSocket, UnixDatagram, UnixStream};
use socket2::SockRef;

use super::{CANARY, HEAP};

/// What comes late, and what a writer writes.
const LATE: u8 = b'!';

/// Longer than anything takes here.
const LONG: Duration = Duration::from_secs(20);

/// A call that waits with a buffer.
type Lend = dyn Fn(&mut [u8]) -> io::Result<usize>;

/// A wait that lends memory.
pub(super) struct Subject {
    pub(super) name: &'static str,
    /// Lends the buffer for a wait in vain.
    pub(super) lend: Box<Lend>,
    /// Brings what the wait was for.
    pub(super) come: Box<dyn Fn()>,
    /// Takes away what came, for the next round.
    pub(super) clear: Box<dyn Fn()>,
    /// Whether the wait may have been over before it was interrupted.
    pub(super) may_succeed: bool,
}

impl Subject {
    fn new(
        name: &'static str,
        lend: impl Fn(&mut [u8]) -> io::Result<usize> + 'static,
        come: impl Fn() + 'static,
        clear: impl Fn() + 'static,
    ) -> Rc<Subject> {
        let (lend, come, clear) = (Box::new(lend), Box::new(come), Box::new(clear));
        Rc::new(Subject { name, lend, come, clear, may_succeed: false })
    }

    pub(super) fn all() -> Vec<Rc<Subject>> {
        let (unix, unix_peer) = UnixStream::pair().unwrap();
        let (vectored, vectored_peer) = UnixStream::pair().unwrap();
        let (peeked, peeked_peer) = UnixStream::pair().unwrap();
        let (tcp, tcp_peer) = tcp_pair();
        vec![
            stream("read (Unix)", unix, unix_peer, |stream, buf| { stream }.read(buf)),
            stream("read (TCP)", tcp, tcp_peer, |stream, buf| { stream }.read(buf)),
            stream("read_vectored", vectored, vectored_peer, |stream, buf| {
                let (front, back) = buf.split_at_mut(buf.len() / 2);
                { stream }.read_vectored(&mut [IoSliceMut::new(front), IoSliceMut::new(back)])
            }),
            stream("peek", peeked, peeked_peer, |stream, buf| stream.peek(buf)),
            udp(),
            unix_datagrams(),
            pipe(),
            accept(),
            file(),
            write(),
        ]
    }
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (stream, listener.accept().unwrap().0)
}

fn stream<S: 'static>(
    name: &'static str,
    stream: S,
    peer: S,
    lend: fn(&S, &mut [u8]) -> io::Result<usize>,
) -> Rc<Subject>
where
    for<'a> &'a S: Read + Write,
{
    let stream = Rc::new(stream);
    let lent = Rc::clone(&stream);
    Subject::new(
        name,
        move |buf| lend(&lent, buf),
        move || (&peer).write_all(&[LATE; 4096]).unwrap(),
        move || {
            let mut late = [0; 4096];
            (&*stream).read_exact(&mut late).unwrap();
            assert!(late.iter().all(|byte| *byte == LATE));
        },
    )
}

/// The address of the sender is lent too, and lies in the same frame.
fn udp() -> Rc<Subject> {
    let [socket, peer] = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
    peer.connect(socket.local_addr().unwrap()).unwrap();
    let socket = Rc::new(socket);
    let lent = Rc::clone(&socket);
    Subject::new(
        "recv_from",
        move |buf| lent.recv_from(buf).map(|(count, _)| count),
        move || assert_eq!(peer.send(&[LATE; 4096]).unwrap(), 4096),
        move || assert_eq!(socket.recv(&mut [0; 8192]).unwrap(), 4096),
    )
}

fn unix_datagrams() -> Rc<Subject> {
    let (socket, peer) = UnixDatagram::pair().unwrap();
    let socket = Rc::new(socket);
    let lent = Rc::clone(&socket);
    Subject::new(
        "recv",
        move |buf| lent.recv(buf),
        move || assert_eq!(peer.send(&[LATE; 4096]).unwrap(), 4096),
        move || assert_eq!(socket.recv(&mut [0; 8192]).unwrap(), 4096),
    )
}

fn pipe() -> Rc<Subject> {
    let mut ends = [-1; 2];
    // SAFETY: pipe2 writes two descriptors to the array.
    assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    // SAFETY: they were just made, and nobody else knows them.
    let [reader, writer] =
        ends.map(|end| std::fs::File::from(unsafe { OwnedFd::from_raw_fd(end) }));
    let reader = Rc::new(reader);
    let lent = File::from(reader.try_clone().unwrap());
    let lent = std::cell::RefCell::new(lent);
    Subject::new(
        "read (pipe)",
        move |buf| lent.borrow_mut().read(buf),
        move || (&writer).write_all(&[LATE; 4096]).unwrap(),
        move || (&*reader).read_exact(&mut [0; 4096]).unwrap(),
    )
}

/// Lends no buffer, but an address on the heap: by a call, or by a future that loses a race.
fn accept() -> Rc<Subject> {
    let listener = Rc::new(TcpListener::bind("127.0.0.1:0").unwrap());
    let address = listener.local_addr().unwrap();
    let lent = Rc::clone(&listener);
    let (client, turn) = (Cell::new(None), Cell::new(false));
    Subject::new(
        "accept",
        move |_| {
            turn.set(!turn.get());
            if turn.get() {
                return lent.accept().map(|_| 0);
            }
            kapok::select! {
                accepted = lent.accept_async() => accepted.map(|_| 0),
                () = kapok::time::sleep_async(Duration::from_micros(20)) => {
                    Err(io::ErrorKind::TimedOut.into())
                }
            }
        },
        move || {
            let stream = StdTcpStream::connect(address).unwrap();
            // The ports are not to run out.
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            client.set(Some(stream));
        },
        move || {
            HEAP.check();
            kapok::timeout(LONG, || listener.accept()).expect("the connection is not lost");
        },
    )
}

/// A regular file makes nobody wait; but threads may be carrying the read out when it is cancelled.
fn file() -> Rc<Subject> {
    let path = std::env::temp_dir().join(format!("kapok-rule-{}", std::process::id()));
    std::fs::write(&path, [LATE; 4096]).unwrap();
    let file = File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let subject = Subject::new("read_at", move |buf| file.read_at(buf, 0), || (), || ());
    Rc::new(Subject { may_succeed: true, ..Rc::into_inner(subject).unwrap() })
}

/// The other way round: what is lent is read, and the peer must not get to see what is there later.
fn write() -> Rc<Subject> {
    let (stream, peer) = StdUnixStream::pair().unwrap();
    SockRef::from(&stream).set_send_buffer_size(4096).unwrap();
    let full = stream.try_clone().unwrap();
    let fill = move || {
        let flags = libc::MSG_DONTWAIT;
        while SockRef::from(&full).send_with_flags(&[LATE; 512], flags).is_ok() {}
    };
    fill();
    let stream = UnixStream::try_from(stream).unwrap();
    Subject::new(
        "write",
        move |buf| {
            buf.fill(LATE);
            { &stream }.write(buf)
        },
        move || {
            let mut bytes = vec![std::mem::MaybeUninit::uninit(); 65536];
            while let Ok(count) =
                SockRef::from(&peer).recv_with_flags(&mut bytes, libc::MSG_DONTWAIT)
            {
                // SAFETY: recv has filled that much.
                let seen = bytes[..count].iter().map(|byte| unsafe { byte.assume_init() });
                assert!(seen.into_iter().all(|byte| byte != CANARY), "memory given back was sent");
                // What still is to be sent is sent when there is room.
                for _ in 0..3 {
                    kapok::yield_now();
                }
            }
        },
        fill,
    )
}
