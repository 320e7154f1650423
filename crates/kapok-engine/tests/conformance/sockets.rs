//! Descriptors to test with, and what the kernel's side of them looks like without an engine.

use std::ffi::CStr;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kapok_engine::Op;
use kapok_engine::sys::descriptors;

use crate::world::now;
use crate::world::{act, act_once, is_simulated};

/// Whose a descriptor is, as far as the engine knows, and whether it blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// Not declared, with `O_NONBLOCK`.
    Foreign,
    /// Not declared, without `O_NONBLOCK`.
    ForeignBlocking,
    /// Adopted, with `O_NONBLOCK`.
    Owned,
}

impl Ownership {
    pub(crate) const ALL: [Ownership; 3] =
        [Ownership::Foreign, Ownership::ForeignBlocking, Ownership::Owned];
}

/// What two ends are connected by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Unix,
}

impl Transport {
    pub(crate) const ALL: [Transport; 2] = [Transport::Tcp, Transport::Unix];
}

/// A descriptor that is retired, if it was adopted, and closed at the end.
#[derive(Debug)]
pub(crate) struct Descriptor {
    fd: RawFd,
    owned: bool,
}

impl Descriptor {
    pub(crate) fn new(fd: OwnedFd, ownership: Ownership) -> Descriptor {
        set_nonblocking(fd.as_raw_fd(), ownership != Ownership::ForeignBlocking);
        let owned = ownership == Ownership::Owned;
        let fd = std::os::fd::IntoRawFd::into_raw_fd(fd);
        if owned {
            descriptors::adopt(fd);
        }
        Descriptor { fd, owned }
    }

    pub(crate) fn foreign(fd: impl Into<OwnedFd>) -> Descriptor {
        Descriptor::new(fd.into(), Ownership::Foreign)
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.fd
    }

    /// The number, which the caller is to close; retired, if it was adopted.
    pub(crate) fn into_number(self) -> RawFd {
        let fd = self.fd;
        if self.owned {
            descriptors::retire(fd);
        }
        std::mem::forget(self);
        fd
    }

    /// This descriptor's open file under another number, which must be free.
    pub(crate) fn move_to(self, number: RawFd) -> Descriptor {
        let owned = self.owned;
        let fd = self.into_number();
        assert!(!is_open(number), "{number} is in use");
        // The lowest free number is the next: all below are taken until it is this one's turn.
        let mut below = Vec::new();
        let moved = loop {
            match must(Op::Duplicate { fd }) {
                next if next == number => break next,
                next => below.push(next),
            }
        };
        below.into_iter().for_each(close_number);
        close_number(fd);
        if owned {
            descriptors::adopt(moved);
        }
        Descriptor { fd: moved, owned }
    }

    /// Another descriptor of the same open file.
    pub(crate) fn duplicate(&self) -> Descriptor {
        Descriptor { fd: must(Op::Duplicate { fd: self.fd }), owned: false }
    }

    /// Another descriptor of the same open file, with the first free number from `lowest` on.
    pub(crate) fn duplicate_from(&self, lowest: RawFd) -> Descriptor {
        // SAFETY: fcntl with integer arguments.
        let fd = unsafe { libc::fcntl(self.fd, libc::F_DUPFD_CLOEXEC, lowest) };
        assert!(fd >= 0, "F_DUPFD_CLOEXEC: {}", io::Error::last_os_error());
        Descriptor { fd, owned: false }
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if self.owned {
            descriptors::retire(self.fd);
        }
        crate::world::close(self.fd);
    }
}

pub(crate) fn close_number(fd: RawFd) {
    // SAFETY: tests own the numbers they close; their process runs no other test.
    assert_eq!(unsafe { libc::close(fd) }, 0, "close({fd}): {}", io::Error::last_os_error());
}

pub(crate) fn is_open(fd: RawFd) -> bool {
    // SAFETY: fcntl with integer arguments.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

pub(crate) fn is_close_on_exec(fd: RawFd) -> bool {
    // SAFETY: fcntl with integer arguments.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    assert!(flags >= 0, "F_GETFD of {fd}: {}", io::Error::last_os_error());
    flags & libc::FD_CLOEXEC != 0
}

pub(crate) fn set_nonblocking(fd: RawFd, nonblocking: bool) {
    // SAFETY: fcntl with integer arguments.
    let set = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        let wanted = if nonblocking { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
        libc::fcntl(fd, libc::F_SETFL, wanted)
    };
    assert_eq!(set, 0, "F_SETFL of {fd}: {}", io::Error::last_os_error());
}

/// Takes over a descriptor that an operation landed with.
pub(crate) fn landed_descriptor(res: usize) -> Descriptor {
    let fd = res as RawFd;
    assert!(is_open(fd), "landed with {fd}, which is not open");
    // SAFETY: the operation made it, and nobody else has it.
    Descriptor::foreign(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// How many descriptors the process has open.
pub(crate) fn open_descriptors() -> usize {
    (0..4096).filter(|&fd| is_open(fd)).count()
}

/// The result of an operation of this world that must succeed.
#[track_caller]
fn must(op: Op) -> i32 {
    let res = act(&op);
    assert!(res >= 0, "{op:?}: {}", io::Error::from_raw_os_error(-res));
    res
}

/// A new socket, which blocks.
fn new_socket(domain: i32, kind: i32) -> OwnedFd {
    let fd = must(Op::Socket { domain, kind, protocol: 0 });
    // SAFETY: the operation made it, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn bind(fd: RawFd, address: &Address) {
    must(Op::Bind { fd, addr: &raw const address.storage, addr_len: address.len });
}

fn connect(fd: RawFd, address: &Address) {
    must(Op::Connect { fd, addr: &raw const address.storage, addr_len: address.len });
}

/// A listening socket, which blocks.
fn listening(domain: i32, address: &Address) -> OwnedFd {
    let listener = new_socket(domain, libc::SOCK_STREAM);
    set_option(listener.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1i32);
    bind(listener.as_raw_fd(), address);
    must(Op::Listen { fd: listener.as_raw_fd(), backlog: 128 });
    listener
}

/// Accepts the connection that is there: it, and its peer's address.
pub(crate) fn accept(fd: RawFd) -> (Descriptor, SocketAddr) {
    let mut room = Address::room();
    let (addr, addr_len) = (&raw mut room.storage, &raw mut room.len);
    let accepted = must(Op::Accept { fd, addr, addr_len });
    (landed_descriptor(accepted as usize), room.as_inet())
}

/// The address that a socket is bound to.
pub(crate) fn local_address(fd: RawFd) -> Address {
    let mut room = Address::room();
    let (addr, addr_len) = (&raw mut room.storage, &raw mut room.len);
    must(Op::LocalAddress { fd, addr, addr_len });
    room
}

fn any_port() -> Address {
    Address::inet((Ipv4Addr::LOCALHOST, 0).into())
}

pub(crate) fn stream_pair(transport: Transport, ownership: Ownership) -> (Descriptor, Descriptor) {
    let (a, b) = match transport {
        Transport::Unix => pair(libc::SOCK_STREAM),
        Transport::Tcp => tcp_pair(),
    };
    (Descriptor::new(a, ownership), Descriptor::new(b, ownership))
}

/// Two Unix sockets that are connected to each other.
fn pair(kind: i32) -> (OwnedFd, OwnedFd) {
    let mut fds = [-1; 2];
    must(Op::SocketPair { kind, fds: &raw mut fds });
    // SAFETY: the operation made them, and nobody else has them.
    let [a, b] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    (a, b)
}

fn tcp_pair() -> (OwnedFd, OwnedFd) {
    let listener = listening(libc::AF_INET, &any_port());
    let client = new_socket(libc::AF_INET, libc::SOCK_STREAM);
    connect(client.as_raw_fd(), &local_address(listener.as_raw_fd()));
    let null = (std::ptr::null_mut(), std::ptr::null_mut());
    let fd = must(Op::Accept { fd: listener.as_raw_fd(), addr: null.0, addr_len: null.1 });
    // SAFETY: the operation made it, and nobody else has it.
    let server = unsafe { OwnedFd::from_raw_fd(fd) };
    for end in [&client, &server] {
        set_option(end.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1i32);
    }
    (client, server)
}

pub(crate) fn unix_pair() -> (Descriptor, Descriptor) {
    stream_pair(Transport::Unix, Ownership::Foreign)
}

/// A TCP connection to a listener.
pub(crate) fn tcp_client(address: SocketAddr) -> Descriptor {
    let client = new_socket(libc::AF_INET, libc::SOCK_STREAM);
    connect(client.as_raw_fd(), &Address::inet(address));
    Descriptor::foreign(client)
}

/// A Unix connection to a listener.
pub(crate) fn unix_client(path: &Path) -> Descriptor {
    let client = new_socket(libc::AF_UNIX, libc::SOCK_STREAM);
    connect(client.as_raw_fd(), &Address::unix(path));
    Descriptor::foreign(client)
}

pub(crate) fn unix_listener(path: &Path, ownership: Ownership) -> Descriptor {
    Descriptor::new(listening(libc::AF_UNIX, &Address::unix(path)), ownership)
}

/// Takes a Unix socket's name away. In a simulated world the name of a socket that is gone is free.
pub(crate) fn remove_name(path: &Path) {
    if !is_simulated() {
        std::fs::remove_file(path).unwrap();
    }
}

/// A UDP socket on loopback.
pub(crate) fn udp_socket(ownership: Ownership) -> (Descriptor, SocketAddr) {
    let socket = new_socket(libc::AF_INET, libc::SOCK_DGRAM);
    bind(socket.as_raw_fd(), &any_port());
    let address = local_address(socket.as_raw_fd()).as_inet();
    (Descriptor::new(socket, ownership), address)
}

pub(crate) fn unix_datagram(path: &Path) -> Descriptor {
    let socket = new_socket(libc::AF_UNIX, libc::SOCK_DGRAM);
    bind(socket.as_raw_fd(), &Address::unix(path));
    Descriptor::foreign(socket)
}

/// Two UDP sockets on loopback, connected to each other.
pub(crate) fn udp_pair(ownership: Ownership) -> (Descriptor, Descriptor) {
    let ((a, a_address), (b, b_address)) = (udp_socket(ownership), udp_socket(ownership));
    connect(a.fd(), &Address::inet(b_address));
    connect(b.fd(), &Address::inet(a_address));
    (a, b)
}

pub(crate) fn datagram_pairs(ownership: Ownership) -> [(&'static str, Descriptor, Descriptor); 2] {
    let (a, b) = udp_pair(ownership);
    let (c, d) = pair(libc::SOCK_DGRAM);
    [("udp", a, b), ("unix", Descriptor::new(c, ownership), Descriptor::new(d, ownership))]
}

/// A connection with boundaries. There are none in a simulated world.
pub(crate) fn packet_pair(ownership: Ownership) -> (&'static str, Descriptor, Descriptor) {
    let (a, b) = pair(libc::SOCK_SEQPACKET);
    ("packets", Descriptor::new(a, ownership), Descriptor::new(b, ownership))
}

/// A listening TCP socket on loopback, with `O_NONBLOCK`.
pub(crate) fn tcp_listener(ownership: Ownership) -> (Descriptor, SocketAddr) {
    let listener = listening(libc::AF_INET, &any_port());
    let address = local_address(listener.as_raw_fd()).as_inet();
    (Descriptor::new(listener, ownership), address)
}

/// Changes how many connections may wait at a listener.
pub(crate) fn listen(fd: RawFd, backlog: i32) {
    must(Op::Listen { fd, backlog });
}

/// An unbound socket, with `O_NONBLOCK`.
pub(crate) fn socket(domain: i32, kind: i32, ownership: Ownership) -> Descriptor {
    Descriptor::new(new_socket(domain, kind), ownership)
}

pub(crate) fn tcp_socket(ownership: Ownership) -> Descriptor {
    socket(libc::AF_INET, libc::SOCK_STREAM, ownership)
}

/// All of a file of this world.
pub(crate) fn read_file(path: impl AsRef<Path>) -> Vec<u8> {
    let file = open_file(path.as_ref(), libc::O_RDONLY);
    let mut bytes = vec![0; 1 << 20];
    let (buf, len) = (bytes.as_mut_ptr(), bytes.len());
    let count = must(Op::Read { fd: file.fd(), buf, len, offset: 0 });
    bytes.truncate(count as usize);
    bytes
}

/// A new file of this world.
pub(crate) fn write_file(path: impl AsRef<Path>, bytes: &[u8]) {
    let file = open_file(path.as_ref(), libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL);
    let (buf, len) = (bytes.as_ptr(), bytes.len());
    let count = must(Op::Write { fd: file.fd(), buf, len, offset: 0 });
    assert_eq!(count as usize, len);
}

fn open_file(path: &Path, flags: i32) -> Descriptor {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    let fd = must(Op::Open { dir: libc::AT_FDCWD, path: path.as_ptr(), flags, mode: 0o640 });
    landed_descriptor(fd as usize)
}

/// The reading and the writing end of a pipe.
pub(crate) fn pipe(ownership: Ownership) -> (Descriptor, Descriptor) {
    let (reader, writer) = io::pipe().expect("a pipe");
    (Descriptor::new(reader.into(), ownership), Descriptor::new(writer.into(), ownership))
}

/// Sets a socket option that is an integer or a structure of integers.
pub(crate) fn set_option<T>(fd: RawFd, level: i32, name: i32, value: T) {
    // SAFETY: the pointer and the size are those of a local.
    let set = unsafe {
        let len = size_of::<T>() as libc::socklen_t;
        libc::setsockopt(fd, level, name, (&raw const value).cast(), len)
    };
    assert_eq!(set, 0, "setsockopt: {}", io::Error::last_os_error());
}

/// Makes the next close of a TCP socket a reset.
pub(crate) fn reset_on_close(fd: RawFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set_option(fd, libc::SOL_SOCKET, libc::SO_LINGER, linger);
}

/// Shrinks what a socket holds back for its peer, so that few bytes fill it.
///
/// The room for what it receives stays: below a loopback segment, TCP's window closes for good but
/// for probes at ever longer intervals.
pub(crate) fn shrink_send_buffer(fd: RawFd) {
    set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, 4096i32);
}

/// Sends without an engine and without waiting.
pub(crate) fn raw_send(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    let (buf, len, flags) = (bytes.as_ptr(), bytes.len(), libc::MSG_DONTWAIT);
    act_once(&Op::Send { fd, buf, len, flags })
}

/// Sends all of `bytes`, which must fit.
#[track_caller]
pub(crate) fn put(fd: RawFd, bytes: &[u8]) {
    assert_eq!(raw_send(fd, bytes).expect("send"), bytes.len(), "it did not fit");
}

/// Receives without an engine and without waiting.
pub(crate) fn raw_recv(fd: RawFd, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let (buf, flags) = (bytes.as_mut_ptr(), libc::MSG_DONTWAIT);
    let got = act_once(&Op::Recv { fd, buf, len, flags })?;
    bytes.truncate(got);
    Ok(bytes)
}

/// Receives what arrives within a while, without an engine.
pub(crate) fn raw_recv_soon(fd: RawFd, len: usize) -> Vec<u8> {
    let deadline = now() + Duration::from_secs(10);
    loop {
        match raw_recv(fd, len) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                assert!(now() < deadline, "nothing arrived at {fd}");
                std::thread::sleep(Duration::from_micros(200));
            }
            other => return other.expect("recv"),
        }
    }
}

/// Writes to a pipe without an engine and without waiting.
pub(crate) fn raw_write(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of a slice.
    let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    if written < 0 { Err(io::Error::last_os_error()) } else { Ok(written as usize) }
}

/// Sends until no more fits, and returns how much did. The bytes are those of [`pattern`] from
/// position `from` on.
pub(crate) fn fill(fd: RawFd, from: usize) -> usize {
    let mut sent = 0;
    loop {
        match raw_send(fd, &pattern(from + sent, 1024)) {
            Ok(n) => sent += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return sent,
            Err(error) => panic!("send: {error}"),
        }
    }
}

/// `len` bytes of an endless stream in which no two nearby places look the same.
pub(crate) fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|at| (at.wrapping_mul(2_654_435_761) >> 11) as u8).collect()
}

/// A socket address as the kernel has it.
#[derive(Clone, Copy)]
pub(crate) struct Address {
    pub(crate) storage: libc::sockaddr_storage,
    pub(crate) len: libc::socklen_t,
}

impl Address {
    /// Room for any address.
    pub(crate) fn room() -> Address {
        // SAFETY: plain integers, for which zero is a value.
        let storage = unsafe { std::mem::zeroed() };
        Address { storage, len: size_of::<libc::sockaddr_storage>() as libc::socklen_t }
    }

    fn of<T>(value: T, len: usize) -> Address {
        let mut address = Address::room();
        // SAFETY: sockaddr_storage has room and alignment for every kind of address.
        unsafe { (&raw mut address.storage).cast::<T>().write(value) };
        address.len = len as libc::socklen_t;
        address
    }

    pub(crate) fn inet(address: SocketAddr) -> Address {
        let SocketAddr::V4(v4) = address else { panic!("{address} is not IPv4") };
        // SAFETY: plain integers, for which zero is a value.
        let mut raw: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        raw.sin_family = libc::AF_INET as libc::sa_family_t;
        raw.sin_port = v4.port().to_be();
        raw.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
        Address::of(raw, size_of::<libc::sockaddr_in>())
    }

    pub(crate) fn unix(path: &Path) -> Address {
        // SAFETY: plain integers, for which zero is a value.
        let mut raw: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        raw.sun_family = libc::AF_UNIX as libc::sa_family_t;
        let bytes = path.as_os_str().as_bytes();
        assert!(bytes.len() < raw.sun_path.len(), "{} is too long", path.display());
        for (to, from) in raw.sun_path.iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
        Address::of(raw, std::mem::offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1)
    }

    pub(crate) fn family(&self) -> i32 {
        self.storage.ss_family as i32
    }

    pub(crate) fn as_inet(&self) -> SocketAddr {
        assert_eq!(self.family(), libc::AF_INET, "not an IPv4 address");
        assert_eq!(self.len as usize, size_of::<libc::sockaddr_in>());
        // SAFETY: the family says that it is one, and it has room and alignment for it.
        let raw = unsafe { (&raw const self.storage).cast::<libc::sockaddr_in>().read() };
        let ip = Ipv4Addr::from(raw.sin_addr.s_addr.to_ne_bytes());
        SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)))
    }

    pub(crate) fn as_unix(&self) -> PathBuf {
        assert_eq!(self.family(), libc::AF_UNIX, "not a Unix address");
        // SAFETY: the family says that it is one; the path ends within the zeroed room.
        let path = unsafe {
            let raw = (&raw const self.storage).cast::<libc::sockaddr_un>();
            CStr::from_ptr((&raw const (*raw).sun_path).cast())
        };
        PathBuf::from(std::ffi::OsStr::from_bytes(path.to_bytes()))
    }
}

/// A message header and all it points to.
pub(crate) struct Message {
    header: libc::msghdr,
    parts: Vec<Vec<u8>>,
    vectors: Vec<libc::iovec>,
    name: Option<Box<Address>>,
    /// Words, for the alignment that control messages need.
    control: Vec<u64>,
}

impl Message {
    pub(crate) fn new(
        parts: Vec<Vec<u8>>,
        name: Option<Address>,
        control: Vec<u64>,
    ) -> Box<Message> {
        // SAFETY: plain integers and pointers, for which zero is a value.
        let header = unsafe { std::mem::zeroed() };
        let name = name.map(Box::new);
        Box::new(Message { header, parts, vectors: Vec::new(), name, control })
    }

    /// Room for a message in parts of these sizes, with the sender's address.
    pub(crate) fn room(sizes: &[usize]) -> Box<Message> {
        let parts = sizes.iter().map(|&size| vec![0; size]).collect();
        Message::new(parts, Some(Address::room()), vec![0; 16])
    }

    /// The header, pointing to the rest, which must not be moved out of its box any more.
    pub(crate) fn header(&mut self) -> *mut libc::msghdr {
        self.vectors = self
            .parts
            .iter_mut()
            .map(|part| libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() })
            .collect();
        self.header.msg_iov = self.vectors.as_mut_ptr();
        self.header.msg_iovlen = self.vectors.len() as _;
        if let Some(name) = &mut self.name {
            self.header.msg_name = (&raw mut name.storage).cast();
            self.header.msg_namelen = name.len;
        }
        if !self.control.is_empty() {
            self.header.msg_control = self.control.as_mut_ptr().cast();
            self.header.msg_controllen = size_of_val(self.control.as_slice()) as _;
        }
        &raw mut self.header
    }

    /// The bytes of all parts, one after the other.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.parts.concat()
    }

    pub(crate) fn flags(&self) -> i32 {
        self.header.msg_flags
    }

    /// The address that came with the message.
    pub(crate) fn sender(&self) -> Address {
        let name = self.name.as_ref().expect("room for an address");
        Address { storage: name.storage, len: self.header.msg_namelen }
    }

    /// Ancillary data that passes these descriptors on.
    pub(crate) fn passing(fd: RawFd) -> Vec<u64> {
        let mut control = vec![0u64; 8];
        // SAFETY: the room is larger than CMSG_SPACE of one descriptor, and aligned for a cmsghdr.
        unsafe {
            let cmsg = control.as_mut_ptr().cast::<libc::cmsghdr>();
            (*cmsg).cmsg_level = libc::SOL_SOCKET;
            (*cmsg).cmsg_type = libc::SCM_RIGHTS;
            (*cmsg).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
            libc::CMSG_DATA(cmsg).cast::<RawFd>().write_unaligned(fd);
            control.truncate(libc::CMSG_SPACE(size_of::<RawFd>() as u32) as usize / 8);
        }
        control
    }

    /// The descriptor that was passed with the message.
    pub(crate) fn passed(&self) -> Option<RawFd> {
        // SAFETY: the header and the control messages are as the kernel left them.
        unsafe {
            let cmsg = libc::CMSG_FIRSTHDR(&raw const self.header);
            if cmsg.is_null() || (*cmsg).cmsg_type != libc::SCM_RIGHTS {
                return None;
            }
            Some(libc::CMSG_DATA(cmsg).cast::<RawFd>().read_unaligned())
        }
    }
}

/// A directory of the test's own, removed at the end.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Directory {
        let path = std::env::temp_dir().join(format!("kapok-conformance-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap_or_else(|e| panic!("mkdir {}: {e}", path.display()));
        Directory(path)
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
