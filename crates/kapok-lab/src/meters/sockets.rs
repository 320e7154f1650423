//! The sockets of a process, as the kernel lists them (sock_diag(7), what ss(8) uses).

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::nlas::{MemInfo, Nla};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use netlink_packet_sock_diag::unix::nlas::UnixDiagName;
use netlink_packet_sock_diag::unix::{self, UnixRequest, UnixResponse};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use serde::Serialize;

/// One socket.
#[derive(Clone, Debug, Serialize)]
pub struct Socket {
    /// `tcp`, `udp` or `unix`.
    pub protocol: &'static str,
    /// Its state as ss(8) calls it, such as `ESTAB` or `LISTEN`.
    pub state: &'static str,
    /// Its own address; for `unix` the path if it has one, or `@` and a name that is in no file system.
    pub local: String,
    /// The other end's address, if there is one.
    pub peer: Option<String>,
    /// Bytes that came and were not read; for a listener, connections that were not accepted.
    pub receive_queue: u32,
    /// Bytes that were written and are not acknowledged; for `unix`, what the kernel holds for those that
    /// were not read; for a listener, how many connections may wait.
    pub send_queue: u32,
    /// Segments that were sent again.
    pub retransmits: u32,
    /// Bytes that came since it was connected.
    pub bytes_received: u64,
    /// Bytes that were sent and acknowledged since it was connected.
    pub bytes_sent: u64,
    /// What the kernel holds for it.
    pub memory: SocketMemory,
    /// Its number in the kernel, in `/proc/PID/fd` as `socket:[…]`.
    pub inode: u32,
}

/// Bytes that the kernel holds for a socket's data. The socket itself, some kilobytes, is not in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SocketMemory {
    /// For what has come (`sk_rmem_alloc`).
    pub receiving: u64,
    /// For what is being sent (`sk_wmem_queued`).
    pub sending: u64,
    /// Reserved for what comes next (`sk_fwd_alloc`).
    pub reserved: u64,
}

impl SocketMemory {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.receiving + self.sending + self.reserved
    }
}

/// The sockets of one process or several.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    /// Those that were found, each once, whoever shares it.
    pub all: Vec<Socket>,
    /// What is not seen, and why.
    pub missing: Vec<String>,
}

impl Sockets {
    /// Lists the sockets of `processes` that are TCP, UDP or Unix ones.
    ///
    /// # Errors
    ///
    /// The kernel gives no list, or nothing of these processes may be looked at.
    pub fn of(processes: &[u32]) -> io::Result<Sockets> {
        let mut inodes = HashSet::new();
        let mut missing = Vec::new();
        for &process in processes {
            match inodes_of(process) {
                Ok(found) => inodes.extend(found),
                Err(error) if processes.len() == 1 => return Err(error),
                Err(error) => missing.push(error.to_string()),
            }
        }
        let (Some(&first), false) = (processes.first(), inodes.is_empty()) else {
            return Ok(Sockets { all: Vec::new(), missing });
        };
        let namespace = format!("/proc/{first}/ns/net");
        let elsewhere = fs::read_link(&namespace)? != fs::read_link("/proc/thread-self/ns/net")?;
        let mut all = if elsewhere { list_in(Path::new(&namespace))? } else { list()? };
        all.retain(|socket| inodes.contains(&socket.inode));
        Ok(Sockets { all, missing })
    }

    /// How many are in each state, by protocol and state.
    #[must_use]
    pub fn states(&self) -> BTreeMap<(&'static str, &'static str), usize> {
        let mut states = BTreeMap::new();
        for socket in &self.all {
            *states.entry((socket.protocol, socket.state)).or_default() += 1;
        }
        states
    }

    /// What the kernel holds for all of them.
    #[must_use]
    pub fn memory(&self) -> SocketMemory {
        self.all.iter().fold(SocketMemory::default(), |sum, Socket { memory, .. }| SocketMemory {
            receiving: sum.receiving + memory.receiving,
            sending: sum.sending + memory.sending,
            reserved: sum.reserved + memory.reserved,
        })
    }

    /// Bytes that came and went on those sockets that are in `earlier` too.
    #[must_use]
    pub fn moved_since(&self, earlier: &Sockets) -> (u64, u64) {
        let before: BTreeMap<u32, &Socket> =
            earlier.all.iter().map(|socket| (socket.inode, socket)).collect();
        self.all.iter().fold((0, 0), |(received, sent), socket| {
            before.get(&socket.inode).map_or((received, sent), |before| {
                (
                    received + socket.bytes_received.saturating_sub(before.bytes_received),
                    sent + socket.bytes_sent.saturating_sub(before.bytes_sent),
                )
            })
        })
    }
}

/// The numbers of a process's sockets.
fn inodes_of(process: u32) -> io::Result<Vec<u32>> {
    let path = format!("/proc/{process}/fd");
    let entries = fs::read_dir(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
    let links = entries.map_while(Result::ok).filter_map(|entry| fs::read_link(entry.path()).ok());
    let inodes = links.filter_map(|link| {
        link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    });
    Ok(inodes.collect())
}

/// All sockets of another network namespace.
fn list_in(namespace: &Path) -> io::Result<Vec<Socket>> {
    let namespace = fs::File::open(namespace)?;
    let listed = thread::spawn(move || {
        // SAFETY: only numbers are passed. It is this thread that goes there, and it ends soon.
        if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } < 0 {
            let error = io::Error::last_os_error();
            let why = format!("its sockets are in another network namespace: {error}");
            return Err(io::Error::new(error.kind(), why));
        }
        list()
    });
    listed.join().unwrap_or_else(|_| Err(io::Error::other("the list could not be made")))
}

/// All sockets of this network namespace.
fn list() -> io::Result<Vec<Socket>> {
    let mut all = Vec::new();
    for (protocol, name) in [(IPPROTO_TCP, "tcp"), (IPPROTO_UDP, "udp")] {
        for family in [AF_INET, AF_INET6] {
            let request = InetRequest {
                family,
                protocol,
                extensions: ExtensionFlags::SKMEMINFO | ExtensionFlags::INFO,
                states: StateFlags::all(),
                socket_id: if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() },
            };
            dump(SockDiagMessage::InetRequest(request), |message, _| {
                if let SockDiagMessage::InetResponse(response) = message {
                    all.push(internet(name, &response));
                }
            })?;
        }
    }
    let request = UnixRequest {
        // The flags that have names are not all there are: who is not connected has none.
        state_flags: unix::StateFlags::from_bits_retain(u32::MAX),
        inode: 0,
        show_flags: unix::ShowFlags::all(),
        cookie: [0xff; 8],
    };
    dump(SockDiagMessage::UnixRequest(request), |message, bytes| {
        if let SockDiagMessage::UnixResponse(response) = message {
            all.push(local(&response, unread(bytes).unwrap_or(0).into()));
        }
    })?;
    Ok(all)
}

/// Asks the kernel and hands over its answers, each also as it came.
fn dump(request: SockDiagMessage, mut each: impl FnMut(SockDiagMessage, &[u8])) -> io::Result<()> {
    let socket = netlink_sys::Socket::new(NETLINK_SOCK_DIAG)?;
    socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut packet = NetlinkMessage::new(header, request.into());
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    // The kernel makes its answers no longer than this.
    let mut buffer = vec![0_u8; 64 * 1024];
    loop {
        let length = socket.recv(&mut &mut buffer[..], 0)?;
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                .map_err(|error| io::Error::other(format!("the kernel's list: {error}")))?;
            match message.payload {
                NetlinkPayload::InnerMessage(inner) => {
                    let bytes = rest.get(..message.header.length as usize);
                    each(inner, bytes.unwrap_or(rest));
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            // Messages are aligned to four bytes.
            let taken = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(taken.max(4)..).unwrap_or(&[]);
        }
    }
}

fn internet(protocol: &'static str, response: &InetResponse) -> Socket {
    let header = &response.header;
    let id = &header.socket_id;
    let mut socket = Socket {
        protocol,
        state: state_name(header.state, protocol),
        local: SocketAddr::new(id.source_address, id.source_port).to_string(),
        peer: (id.destination_port != 0)
            .then(|| SocketAddr::new(id.destination_address, id.destination_port).to_string()),
        receive_queue: header.recv_queue,
        send_queue: header.send_queue,
        retransmits: 0,
        bytes_received: 0,
        bytes_sent: 0,
        memory: SocketMemory::default(),
        inode: header.inode,
    };
    for attribute in &response.nlas {
        match attribute {
            Nla::MemInfo(memory) => socket.memory = memory.into(),
            Nla::TcpInfo(info) => {
                // `struct tcp_info` (include/uapi/linux/tcp.h), which only grows at its end.
                let word = |at| info.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
                let double = |at| info.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
                socket.retransmits = word(100).map_or(0, u32::from_ne_bytes);
                socket.bytes_sent = double(120).map_or(0, u64::from_ne_bytes);
                socket.bytes_received = double(128).map_or(0, u64::from_ne_bytes);
            }
            _ => {}
        }
    }
    socket
}

impl From<&MemInfo> for SocketMemory {
    fn from(memory: &MemInfo) -> SocketMemory {
        SocketMemory {
            receiving: memory.receive_queue.into(),
            sending: memory.send_queue.into(),
            reserved: memory.cache.into(),
        }
    }
}

fn local(response: &UnixResponse, sending: u64) -> Socket {
    // The response's own words for the two are not those of ss(8): they miss the backlog of a listener, and
    // what others have sent.
    let queues = response.nlas.iter().find_map(|attribute| match attribute {
        unix::nlas::Nla::ReceiveQueueLength(receive, send) => Some((*receive, *send)),
        _ => None,
    });
    let (receive_queue, send_queue) = queues.unwrap_or_default();
    Socket {
        protocol: "unix",
        state: state_name(response.header.state, "unix"),
        local: response.name().map_or_else(String::new, local_name),
        peer: response.peer().map(|inode| format!("socket:[{inode}]")),
        receive_queue,
        send_queue,
        retransmits: 0,
        bytes_received: 0,
        bytes_sent: 0,
        memory: SocketMemory { sending, ..SocketMemory::default() },
        inode: response.header.inode,
    }
}

/// A Unix socket's name as ss(8) has it.
fn local_name(name: &UnixDiagName) -> String {
    match name {
        UnixDiagName::Pathname(path) => path.to_string_lossy().into_owned(),
        UnixDiagName::Abstract(name) => {
            format!("@{}", String::from_utf8_lossy(name).replace('\0', "@"))
        }
    }
}

/// What the kernel holds of a Unix socket's bytes that were written and not read, which is the writer's
/// (`sk_wmem_alloc`): netlink-packet-sock-diag takes another number for it, which is always 0.
fn unread(message: &[u8]) -> Option<u32> {
    const HEADERS: usize = size_of::<libc::nlmsghdr>() + 16; // `struct unix_diag_msg`
    const UNIX_DIAG_MEMINFO: u16 = 5;
    const SK_MEMINFO_WMEM_ALLOC: usize = 2;
    let mut attributes = message.get(HEADERS..)?;
    loop {
        let half = |at| Some(u16::from_ne_bytes(attributes.get(at..at + 2)?.try_into().ok()?));
        let (length, kind) = (usize::from(half(0)?), half(2)?);
        if kind == UNIX_DIAG_MEMINFO {
            let word = attributes.get(4..length)?.get(4 * SK_MEMINFO_WMEM_ALLOC..)?.get(..4)?;
            return Some(u32::from_ne_bytes(word.try_into().ok()?));
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

fn state_name(state: u8, protocol: &str) -> &'static str {
    match state {
        1 => "ESTAB",
        2 => "SYN-SENT",
        3 | 12 => "SYN-RECV",
        4 => "FIN-WAIT-1",
        5 => "FIN-WAIT-2",
        6 => "TIME-WAIT",
        7 if protocol == "tcp" => "CLOSED",
        7 => "UNCONN",
        8 => "CLOSE-WAIT",
        9 => "LAST-ACK",
        10 => "LISTEN",
        11 => "CLOSING",
        _ => "?",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
    use std::time::{Duration, Instant};

    #[test]
    fn a_process_finds_its_own_sockets_with_queues_and_bytes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(addr).unwrap();
        let mut waiting = TcpStream::connect(addr).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut pair = UnixStream::pair().unwrap();
        let sockets = || Sockets::of(&[std::process::id()]).unwrap();
        let find = |sockets: &Sockets, local: SocketAddr, peer: Option<SocketAddr>| {
            let peer = peer.map(|peer| peer.to_string());
            let is = |socket: &&Socket| socket.local == local.to_string() && socket.peer == peer;
            sockets.all.iter().find(is).unwrap_or_else(|| panic!("{local}: {sockets:?}")).clone()
        };
        let before = sockets();
        client.write_all(&[7; 1000]).unwrap();
        let peer = Some(client.local_addr().unwrap());
        // What has connected and what was sent is in the queues a moment later.
        let begun = Instant::now();
        let now = loop {
            let now = sockets();
            let queued = |peer| find(&now, addr, peer).receive_queue;
            if (queued(None), queued(peer)) == (1, 1000) {
                break now;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{now:?}");
            std::thread::yield_now();
        };
        let listens = find(&now, addr, None);
        assert_eq!((listens.protocol, listens.state), ("tcp", "LISTEN"));
        assert_eq!(listens.receive_queue, 1, "one is connected and not accepted");
        let unread = find(&now, addr, peer);
        assert_eq!((unread.state, unread.receive_queue), ("ESTAB", 1000));
        assert_eq!(unread.bytes_received, 1000);
        assert!(unread.memory.receiving >= 1000, "{unread:?}");
        assert_eq!(now.moved_since(&before), (1000, 1000), "once there, once here");
        server.read_exact(&mut [0; 1000]).unwrap();
        assert_eq!(find(&sockets(), addr, peer).receive_queue, 0);
        assert!(now.states()[&("unix", "ESTAB")] >= 2, "{:?}", now.states());
        let local = || -> u64 {
            let now = sockets();
            let local = now.all.iter().filter(|socket| socket.protocol == "unix");
            local.map(|socket| socket.memory.total()).sum()
        };
        pair.0.write_all(&[7; 100_000]).unwrap();
        assert!(local() >= 100_000, "{}", local());
        waiting.write_all(b"x").unwrap();
        drop(pair);
    }

    #[test]
    fn unix_sockets_have_their_names_and_what_waits_in_them() {
        let name = format!("kapok-sockets-{}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let _waiting = UnixStream::connect(&path).unwrap();
        let addr = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let bound = UnixDatagram::bind_addr(&addr).unwrap();
        UnixDatagram::unbound().unwrap().send_to_addr(&[7; 700], &addr).unwrap();
        let sockets = Sockets::of(&[std::process::id()]).unwrap();
        fs::remove_file(&path).unwrap();
        let find = |local: &str| {
            let is = |socket: &&Socket| socket.protocol == "unix" && socket.local == local;
            sockets.all.iter().find(is).unwrap_or_else(|| panic!("{local}: {sockets:?}"))
        };
        let listens = find(path.to_str().unwrap());
        assert_eq!((listens.state, listens.receive_queue), ("LISTEN", 1), "{listens:?}");
        assert!(listens.send_queue > 1, "so many may wait: {listens:?}");
        let unread = find(&format!("@{name}"));
        assert_eq!((unread.state, unread.receive_queue), ("UNCONN", 700), "{unread:?}");
        drop((listener, bound));
    }
}
