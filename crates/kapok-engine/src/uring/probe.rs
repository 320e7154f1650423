//! What the kernel's io_uring can do, found out by doing it.
//!
//! Versions say little: distributions backport, sandboxes take away, and a flag that is accepted may
//! still not work on the kind of descriptor at hand. So each feature is tried with a real operation
//! on a real descriptor, and what came of it is reported.

use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use linux_raw_sys::io_uring::{self as abi, io_uring_op as code};

use super::encode;
use super::ring::{Cqe, Ring, Sqe};
use crate::op::{Key, Op};

/// How long an operation of a probe may take; those that work take microseconds.
const PATIENCE: Duration = Duration::from_millis(500);

const KEY: Key = Key::new(7, 7);

/// A feature of io_uring, and whether it works here.
#[derive(Debug)]
#[non_exhaustive]
pub struct Feature {
    /// What io_uring(7) or liburing calls it.
    pub name: &'static str,
    /// What Kapok is, or would be, able to do with it.
    pub use_for: &'static str,
    /// The kernel that has it first.
    pub since: &'static str,
    /// Whether it works, and if not what came of the attempt.
    pub works: io::Result<()>,
}

/// Which system call it is that denies a ring, and with what.
#[derive(Debug)]
#[non_exhaustive]
pub enum Denied {
    /// There is no ring: io_uring_setup(2) said so, or the kernel is too old.
    Setup(io::Error),
    /// A ring can be set up but not entered by io_uring_enter(2), as under a seccomp filter that
    /// forgets the one or the other.
    Enter(io::Error),
}

impl std::fmt::Display for Denied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Denied::Setup(error) => write!(f, "io_uring_setup: {error}"),
            Denied::Enter(error) => write!(f, "io_uring_enter: {error}"),
        }
    }
}

impl std::error::Error for Denied {}

/// Tries every feature with a real operation, on rings and loopback sockets of its own.
///
/// # Errors
///
/// If there is not even a plain ring that can be entered: see [`Uring::new`](super::Uring).
pub fn probe() -> Result<Vec<Feature>, Denied> {
    let ring = || Ring::new(8, 32);
    let mut plain = ring().map_err(Denied::Setup)?;
    plain.enter(u32::MAX, false, None).map_err(Denied::Enter)?;
    drop(plain);
    let feature = |name, use_for, since, works| Feature { name, use_for, since, works };
    Ok(vec![
        feature(
            "COOP_TASKRUN",
            "no interrupt when something completes",
            "5.19",
            with_setup(abi::IORING_SETUP_COOP_TASKRUN | abi::IORING_SETUP_TASKRUN_FLAG),
        ),
        feature(
            "SINGLE_ISSUER, DEFER_TASKRUN",
            "completions are processed when the loop asks, and by it",
            "6.1",
            with_setup(abi::IORING_SETUP_SINGLE_ISSUER | abi::IORING_SETUP_DEFER_TASKRUN),
        ),
        feature(
            "NO_SQARRAY",
            "one memory access less for each submission",
            "6.6",
            with_setup(abi::IORING_SETUP_NO_SQARRAY),
        ),
        feature("REGISTER_RING_FDS", "cheaper entering", "5.18", ring().and_then(registered)),
        feature("multishot poll", "the bell", "5.13", ring().and_then(multishot_poll)),
        feature("multishot accept", "accepting in bulk", "5.19", ring().and_then(multishot_accept)),
        feature(
            "provided buffers",
            "no memory for idle connections",
            "5.19",
            ring().and_then(|ring| provided_buffers(ring, false)),
        ),
        feature(
            "multishot receive",
            "receives without submissions",
            "6.0",
            ring().and_then(|ring| provided_buffers(ring, true)),
        ),
        feature("SEND_ZC", "large replies without a copy", "6.0", ring().and_then(send_zero_copy)),
        feature("cancel all", "draining a ring", "5.19", ring().and_then(cancel_all)),
        feature("futex wait", "locks shared with threads", "6.7", ring().and_then(futex_wait)),
    ])
}

fn with_setup(flags: u32) -> io::Result<()> {
    nop(Ring::with_flags(8, 32, flags)?)
}

fn nop(mut ring: Ring) -> io::Result<()> {
    let Some(sqe) = encode::encode(KEY, &Op::Nop) else { return Err(unlike("a no-op")) };
    expect(&complete(&mut ring, &[sqe], 1)?, |cqe| cqe.res == 0)
}

fn registered(ring: Ring) -> io::Result<()> {
    if !ring.is_registered() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the ring could not be registered"));
    }
    nop(ring)
}

fn multishot_poll(mut ring: Ring) -> io::Result<()> {
    let (reader, mut writer) = UnixStream::pair()?;
    writer.write_all(b"x")?;
    let sqe = encode::poll_multishot(KEY, reader.as_raw_fd());
    let cqes = complete(&mut ring, &[sqe], 1)?;
    expect(&cqes, |cqe| cqe.res > 0 && cqe.flags & abi::IORING_CQE_F_MORE != 0)
}

fn multishot_accept(mut ring: Ring) -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let _clients = [TcpStream::connect(address)?, TcpStream::connect(address)?];
    let sqe = Sqe {
        opcode: code::IORING_OP_ACCEPT as u8,
        fd: listener.as_raw_fd(),
        ioprio: abi::IORING_ACCEPT_MULTISHOT as u16,
        op_flags: libc::SOCK_CLOEXEC as u32,
        user_data: KEY.bits(),
        ..Sqe::default()
    };
    let cqes = complete(&mut ring, &[sqe], 2)?;
    for cqe in cqes.iter().filter(|cqe| cqe.res >= 0) {
        // SAFETY: a descriptor that accept has just made and that nobody else knows.
        drop(unsafe { OwnedFd::from_raw_fd(cqe.res) });
    }
    expect(&cqes, |cqe| cqe.res >= 0 && cqe.flags & abi::IORING_CQE_F_MORE != 0)
}

/// Receives into a buffer that the kernel picks from a ring of them.
fn provided_buffers(mut ring: Ring, multishot: bool) -> io::Result<()> {
    const GROUP: u16 = 1;
    const BUFFER_BYTES: usize = 64;
    /// One entry of the ring of buffers; the kernel wants the ring on a page of its own.
    #[repr(C, align(4096))]
    struct Buffers {
        entries: [abi::io_uring_buf; 2],
        bytes: [[u8; BUFFER_BYTES]; 2],
    }
    let empty = abi::io_uring_buf { addr: 0, len: 0, bid: 0, resv: 0 };
    let mut buffers = Box::new(Buffers { entries: [empty; 2], bytes: [[0; BUFFER_BYTES]; 2] });
    for index in 0..2 {
        buffers.entries[index] = abi::io_uring_buf {
            addr: buffers.bytes[index].as_mut_ptr() as u64,
            len: BUFFER_BYTES as u32,
            bid: index as u16,
            resv: 0,
        };
    }
    // The tail of the ring lies over the reserved field of the first entry.
    buffers.entries[0].resv = 2;
    let mut registration = abi::io_uring_buf_reg {
        ring_addr: buffers.entries.as_ptr() as u64,
        ring_entries: 2,
        bgid: GROUP,
        flags: 0,
        resv: [0; 3],
    };
    let buffers = Box::into_raw(buffers);
    // SAFETY: one registration, which outlives the call; the memory that it names is given back
    // only after the ring is gone.
    let registered = unsafe {
        ring.register(
            abi::io_uring_register_op::IORING_REGISTER_PBUF_RING as u32,
            (&raw mut registration).cast(),
            1,
        )
    };
    let outcome = registered.map_err(io::Error::from_raw_os_error).and_then(|_| {
        let (reader, mut writer) = UnixStream::pair()?;
        writer.write_all(b"provided")?;
        let sqe = Sqe {
            opcode: code::IORING_OP_RECV as u8,
            flags: 1 << abi::io_uring_sqe_flags_bit::IOSQE_BUFFER_SELECT_BIT as u8,
            fd: reader.as_raw_fd(),
            ioprio: if multishot { RECV_MULTISHOT } else { 0 },
            buf_group: GROUP,
            user_data: KEY.bits(),
            ..Sqe::default()
        };
        let cqes = complete(&mut ring, &[sqe], 1)?;
        // What is armed ends before its memory does.
        complete(&mut ring, &[encode::cancel(KEY, KEY)], 1)?;
        let wanted = abi::IORING_CQE_F_BUFFER | if multishot { abi::IORING_CQE_F_MORE } else { 0 };
        expect(&cqes, |cqe| cqe.res == 8 && cqe.flags & wanted == wanted)
    });
    drop(ring);
    if outcome.is_ok() {
        // SAFETY: made by `into_raw` above. What was armed has landed. Otherwise that is not known,
        // and the memory stays the kernel's.
        drop(unsafe { Box::from_raw(buffers) });
    }
    outcome
}

/// `IORING_RECV_MULTISHOT`, a bit of `ioprio`.
const RECV_MULTISHOT: u16 = 1 << 1;

fn send_zero_copy(mut ring: Ring) -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let sender = TcpStream::connect(listener.local_addr()?)?;
    let _receiver = listener.accept()?;
    static BYTES: [u8; 64] = [b'z'; 64];
    let sqe = Sqe {
        opcode: code::IORING_OP_SEND_ZC as u8,
        fd: sender.as_raw_fd(),
        addr: BYTES.as_ptr() as u64,
        len: BYTES.len() as u32,
        op_flags: libc::MSG_NOSIGNAL as u32,
        user_data: KEY.bits(),
        ..Sqe::default()
    };
    // It lands twice: with its result, and when the kernel has let go of the memory.
    let cqes = complete(&mut ring, &[sqe], 2)?;
    expect(&cqes, |cqe| cqe.res == 64 || cqe.flags & abi::IORING_CQE_F_NOTIF != 0)
}

fn cancel_all(mut ring: Ring) -> io::Result<()> {
    let (quiet, _peer) = UnixStream::pair()?;
    let sqes = [poll_once(quiet.as_raw_fd()), encode::cancel_all(KEY)];
    expect(&complete(&mut ring, &sqes, 2)?, |cqe| matches!(cqe.res, 1 | CANCELED))
}

const CANCELED: i32 = -libc::ECANCELED;

fn poll_once(fd: RawFd) -> Sqe {
    Sqe { len: 0, ..encode::poll_multishot(KEY, fd) }
}

fn futex_wait(mut ring: Ring) -> io::Result<()> {
    static WORD: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
    /// `FUTEX2_SIZE_U32 | FUTEX2_PRIVATE`.
    const FLAGS: i32 = 2 | 128;
    let sqe = Sqe {
        opcode: code::IORING_OP_FUTEX_WAIT as u8,
        fd: FLAGS,
        // Expects another value than the word has, so that it returns at once.
        off: 0,
        addr: WORD.as_ptr() as u64,
        addr3: u64::from(u32::MAX),
        user_data: KEY.bits(),
        ..Sqe::default()
    };
    expect(&complete(&mut ring, &[sqe], 1)?, |cqe| cqe.res == -libc::EAGAIN)
}

/// Submits the entries and waits for this many completions.
fn complete(ring: &mut Ring, sqes: &[Sqe], count: usize) -> io::Result<Vec<Cqe>> {
    for &sqe in sqes {
        // SAFETY: the probes name statics, locals that outlive the operation, and nothing else;
        // rings are dropped with at most polls and accepts armed, which write to no memory.
        if !unsafe { ring.push(sqe) } {
            return Err(io::Error::other("the submission queue is full"));
        }
    }
    let deadline = Instant::now() + PATIENCE;
    let mut cqes = Vec::new();
    loop {
        ring.reap(|cqe| cqes.push(cqe));
        let left = deadline.saturating_duration_since(Instant::now());
        // A refusal is all there will be.
        let refused = cqes.iter().any(|cqe| cqe.res < 0 && cqe.flags & abi::IORING_CQE_F_MORE == 0);
        if cqes.len() >= count || refused && ring.unsubmitted() == 0 || left.is_zero() {
            return Ok(cqes);
        }
        ring.enter(u32::MAX, true, Some(left))?;
    }
}

/// Whether every completion is as it should be, and there is one.
fn expect(cqes: &[Cqe], good: impl Fn(&Cqe) -> bool) -> io::Result<()> {
    match cqes.iter().find(|cqe| !good(cqe)) {
        None if cqes.is_empty() => Err(io::ErrorKind::TimedOut.into()),
        None => Ok(()),
        Some(bad) if bad.res < 0 => Err(io::Error::from_raw_os_error(-bad.res)),
        Some(bad) => Err(unlike(&format!("{bad:?}"))),
    }
}

fn unlike(what: &str) -> io::Error {
    io::Error::other(format!("not as documented: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_is_tried_and_this_kernel_has_what_it_should() {
        let features = match probe() {
            Ok(features) => features,
            Err(error) => {
                eprintln!("SKIPPED: no io_uring here: {error:?}");
                return;
            }
        };
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut parts = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
        let here = (parts.next().unwrap(), parts.next().unwrap());
        for feature in features {
            let (major, minor) = feature.since.split_once('.').unwrap();
            let since = (major.parse().unwrap(), minor.parse().unwrap());
            assert!(here < since || feature.works.is_ok(), "{feature:?} on {release}");
        }
    }
}
