//! Calls in words.

use std::time::Duration;

use super::rings::Operation;
use crate::meters::call_name;

/// What a call is in the life of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Accept,
    Register,
    Submit,
    Wait,
    Read,
    Write,
    Spawn,
    Close,
    Other,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Accept => "accept",
            Kind::Register => "register",
            Kind::Submit => "submit",
            Kind::Wait => "wait",
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Spawn => "spawn",
            Kind::Close => "close",
            Kind::Other => "other",
        }
    }
}

/// A call that has ended.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) kind: Kind,
    /// As strace(1) has it.
    pub(super) text: String,
    pub(super) result: i64,
    /// The descriptor that it is about.
    pub(super) descriptor: Option<u64>,
    /// Its first argument.
    pub(super) first: u64,
    /// It was told not to wait, whatever its descriptor is set to.
    pub(super) does_not_wait: bool,
    /// It enters a ring.
    pub(super) is_ring: bool,
    /// It is the end of an operation of a ring, and no call.
    has_landed: bool,
    change: Change,
}

/// What a call does to a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Add,
    Modify,
    Delete,
}

pub(super) fn describe(number: u64, arguments: &[u64; 6], result: i64) -> Call {
    let name = call_name(u32::try_from(number).unwrap_or(u32::MAX));
    let first = arguments[0];
    let (kind, descriptor) = match name.as_str() {
        "accept" | "accept4" => (Kind::Accept, None),
        "epoll_ctl" => (Kind::Register, Some(arguments[2])),
        "epoll_wait" | "epoll_pwait" | "epoll_pwait2" | "poll" | "ppoll" | "select"
        | "pselect6" | "io_uring_enter" => (Kind::Wait, None),
        "read" | "readv" | "recvfrom" | "recvmsg" | "recvmmsg" => (Kind::Read, Some(first)),
        "write" | "writev" | "sendto" | "sendmsg" | "sendmmsg" | "sendfile" => {
            (Kind::Write, Some(first))
        }
        "clone" | "clone3" | "fork" | "vfork" => (Kind::Spawn, None),
        "close" => (Kind::Close, Some(first)),
        "shutdown" | "setsockopt" | "getsockopt" | "fcntl" | "ioctl" | "getpeername"
        | "getsockname" | "fstat" => (Kind::Other, Some(first)),
        _ => (Kind::Other, None),
    };
    const ADD: u64 = libc::EPOLL_CTL_ADD as u64;
    const DELETE: u64 = libc::EPOLL_CTL_DEL as u64;
    let change = match arguments[1] {
        ADD => Change::Add,
        DELETE => Change::Delete,
        _ => Change::Modify,
    };
    let is_ring = name == "io_uring_enter";
    let inside = match (kind, name.as_str()) {
        (Kind::Register, _) => {
            let what = match change {
                Change::Add => "ADD",
                Change::Delete => "DEL",
                Change::Modify => "MOD",
            };
            format!("{first}, {what}, {}", arguments[2])
        }
        (Kind::Wait, "poll" | "ppoll") => format!("{} descriptors", arguments[1]),
        (Kind::Wait, "select" | "pselect6") => format!("descriptors below {first}"),
        (Kind::Wait, "io_uring_enter") => {
            format!("{first}, submit {}, wait for {}", arguments[1], arguments[2])
        }
        (Kind::Read | Kind::Write, "read" | "write" | "recvfrom" | "sendto") => {
            format!("{first}, {} bytes", arguments[2])
        }
        (Kind::Spawn, _) => String::new(),
        _ => first.to_string(),
    };
    Call {
        kind,
        text: format!("{name}({inside}) = {}", outcome(result)),
        result,
        descriptor,
        first,
        does_not_wait: matches!(name.as_str(), "recvfrom" | "sendto")
            && arguments[3] & libc::MSG_DONTWAIT as u64 != 0
            || is_ring && arguments[2] == 0,
        is_ring,
        has_landed: false,
        change,
    }
}

/// What an operation of a ring is.
fn kind(operation: &str) -> Kind {
    match operation {
        "accept" => Kind::Accept,
        "recv" | "recvmsg" | "read" | "readv" | "read_fixed" | "read_multishot" => Kind::Read,
        "send" | "sendmsg" | "write" | "writev" | "write_fixed" | "send_zc" | "sendmsg_zc" => {
            Kind::Write
        }
        "poll_add" => Kind::Wait,
        "close" => Kind::Close,
        _ => Kind::Other,
    }
}

/// An operation that is queued on a ring when a thread enters it.
pub(super) fn submitted(operation: &Operation) -> Call {
    let descriptor = operation.descriptor;
    Call {
        kind: Kind::Submit,
        text: format!("ring: {}({})", operation.name, words_of(descriptor)),
        result: 0,
        descriptor,
        first: descriptor.unwrap_or(0),
        does_not_wait: true,
        is_ring: true,
        has_landed: false,
        change: Change::Modify,
    }
}

/// An operation of a ring that has landed; of one that was queued earlier only the name is guessed.
pub(super) fn landed(name: &str, operation: Option<&Operation>, result: i64) -> Call {
    let descriptor = operation.and_then(|operation| operation.descriptor);
    Call {
        kind: kind(name),
        text: format!("ring: {name}({}) = {}", words_of(descriptor), outcome(result)),
        result,
        descriptor,
        first: descriptor.unwrap_or(0),
        does_not_wait: true,
        is_ring: true,
        has_landed: true,
        change: Change::Modify,
    }
}

fn words_of(descriptor: Option<u64>) -> String {
    descriptor.map_or_else(|| "…".to_owned(), |descriptor| descriptor.to_string())
}

fn outcome(result: i64) -> String {
    match result {
        -4095..0 => error_name(-result as i32),
        _ => result.to_string(),
    }
}

fn error_name(error: i32) -> String {
    match error {
        libc::EAGAIN => "EAGAIN".into(),
        libc::EINTR => "EINTR".into(),
        libc::ECONNRESET => "ECONNRESET".into(),
        libc::EPIPE => "EPIPE".into(),
        libc::ENOTCONN => "ENOTCONN".into(),
        // What the kernel keeps to itself: the call is made again by itself (include/linux/errno.h).
        512..=516 => "again".into(),
        other => format!("error {other}"),
    }
}

/// From this on a call may have waited: without waiting, a traced one mostly returns sooner.
pub(super) const WAITED: Duration = Duration::from_micros(300);

pub(super) fn accepted(peer: Option<&str>, waited: bool) -> String {
    let from = peer.map_or_else(String::new, |peer| format!(" from {peer}"));
    if waited {
        format!("waits inside the call until a connection comes{from}, and takes it")
    } else {
        format!("takes the connection{from} that was waiting")
    }
}

/// A connection that an operation of a ring has taken. `armed`: it was queued before anybody looked.
pub(super) fn accepted_by_ring(peer: Option<&str>, armed: bool) -> String {
    let from = peer.map_or_else(String::new, |peer| format!(" from {peer}"));
    let armed = if armed { ", by an accept that was armed before" } else { "" };
    format!("the ring has taken the connection{from}{armed}")
}

/// What a call is for. `waited`: it took so long that its thread slept in it.
pub(super) fn note(call: &Call, waited: bool) -> String {
    let text = match (call.kind, call.result) {
        (Kind::Submit, _) => "hands it to the ring: no thread waits for it",
        (Kind::Read, 1..) if call.has_landed => "has landed: the kernel has read what came",
        (Kind::Write, 0..) if call.has_landed => "has landed: the reply is written",
        (Kind::Wait, 1..) if call.has_landed => "has landed: it is ready",
        (Kind::Wait, 0..) if call.is_ring => {
            let handed = match call.result {
                0 => None,
                1 => Some("hands over one operation".to_owned()),
                count => Some(format!("hands over {count} operations")),
            };
            let waits = (!call.does_not_wait).then(|| "waits for landings".to_owned());
            let does: Vec<String> = handed.into_iter().chain(waits).collect();
            return match &does[..] {
                [] => "enters the ring".to_owned(),
                does => format!("enters the ring: {}", does.join(" and ")),
            };
        }
        (Kind::Wait, error) if call.is_ring && error == -i64::from(libc::ETIME) => {
            "enters the ring: nothing landed in its time"
        }
        (Kind::Wait, 0) => "no descriptor was ready in its time",
        (Kind::Wait, count @ 1..) => {
            let count = if count == 1 { "one is".to_owned() } else { format!("{count} are") };
            let how = if waited { "sleeps until" } else { "does not sleep, since" };
            return format!("{how} a descriptor is ready: {count}");
        }
        (Kind::Register, 0) if call.change == Change::Add => {
            "registers it: from now on a wait tells when it is ready"
        }
        (Kind::Register, 0) if call.change == Change::Delete => "nothing tells of it any more",
        (Kind::Register, 0) => "changes what it is registered for",
        (Kind::Read, 1..) if waited => {
            "waits inside the call until bytes come: it blocks its thread"
        }
        (Kind::Read, 1..) => "reads what has come",
        (Kind::Read, 0) => "the end: the peer has closed",
        (Kind::Read, error) if error == -i64::from(libc::EAGAIN) => {
            "nothing has come yet: back to waiting"
        }
        (Kind::Write, 0..) if waited => "waits inside the call until all of it has room",
        (Kind::Write, 0..) => "writes the reply",
        (Kind::Write, error) if error == -i64::from(libc::EAGAIN) => {
            "the socket is full: back to waiting until it has room"
        }
        (Kind::Spawn, 1..) => "makes a thread for it",
        (Kind::Close, _) => "closes it",
        (Kind::Other, 0..) => "sets it up or asks about it",
        (_, ..=-1) => "did not succeed",
        _ => "",
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_as_strace_tells_them() {
        let call =
            |number: libc::c_long, arguments, result| describe(number as u64, &arguments, result);
        let add = call(libc::SYS_epoll_ctl, [4, libc::EPOLL_CTL_ADD as u64, 9, 0, 0, 0], 0);
        assert_eq!((add.text.as_str(), add.descriptor), ("epoll_ctl(4, ADD, 9) = 0", Some(9)));
        assert!(note(&add, false).contains("registers"));
        let delete = call(libc::SYS_epoll_ctl, [4, libc::EPOLL_CTL_DEL as u64, 9, 0, 0, 0], 0);
        assert!(note(&delete, false).contains("any more"));
        let enter = |handed: u64, wanted, result| {
            note(&call(libc::SYS_io_uring_enter, [4, handed, wanted, 0, 0, 0], result), true)
        };
        assert_eq!(enter(0, 1, 0), "enters the ring: waits for landings");
        assert_eq!(enter(1, 0, 1), "enters the ring: hands over one operation");
        assert!(enter(3, 1, 3).ends_with("hands over 3 operations and waits for landings"));
        assert_eq!(enter(0, 0, 0), "enters the ring");
        assert!(enter(0, 1, -62).contains("in its time"));
        let empty = call(libc::SYS_recvfrom, [9, 0, 4096, 0, 0, 0], -11);
        assert_eq!(empty.text, "recvfrom(9, 4096 bytes) = EAGAIN");
        assert!(note(&empty, false).contains("back to waiting"));
        let read = call(libc::SYS_read, [9, 0, 4096, 0, 0, 0], 64);
        assert!(note(&read, true).contains("blocks its thread"));
        assert_eq!(note(&read, false), "reads what has come");
    }
}
