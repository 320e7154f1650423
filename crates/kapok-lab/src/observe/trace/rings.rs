//! What a process does on its rings of io_uring, where no tracer of calls sees it: read off the rings
//! while the thread that enters one is stopped.
//!
//! `/proc/PID/fdinfo/RING` lists what is queued, which is what a call is about to submit, and what has
//! landed and was not taken yet, which is what a call has brought. Of rings without an index of their
//! entries (`IORING_SETUP_NO_SQARRAY`) the kernel lists no entries, only where they are: those are read
//! where the process has written them. What a program takes off its ring without entering it, and what a
//! thread of the kernel submits for it (`IORING_SETUP_SQPOLL`), passes unseen.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::ptr::{NonNull, null_mut};
use std::thread;
use std::time::{Duration, Instant};

use crate::meters::operation_name;

/// An operation that was queued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    /// As in `io_uring_prep_*`.
    pub(super) name: String,
    /// The descriptor that it is about; `None` if it is the number of a registered one.
    pub(super) descriptor: Option<u64>,
    user_data: u64,
}

/// A completion.
#[derive(Debug)]
pub(super) struct Landed {
    /// Of which operation, and when that was queued; `None` if that was before anybody looked.
    pub(super) of: Option<(Operation, Instant)>,
    pub(super) result: i64,
    /// Whose ring it is, if that is known.
    pub(super) owner: Option<i32>,
}

#[derive(Debug)]
struct Ring {
    descriptor: u64,
    /// The thread that has made it, or has entered it last.
    owner: Option<i32>,
    /// The position up to which its queued entries are known.
    known: Option<u32>,
    /// Where its entries are; none yet if nobody could look how many.
    entries: Mapped,
    /// By their user data.
    pending: HashMap<u64, (Operation, Instant)>,
    /// How many completions there had been when it was last looked at; `None`: it never was.
    landed: Option<u32>,
}

#[derive(Debug)]
enum Mapped {
    NotYet,
    /// It is not allowed.
    Refused,
    Here(Entries),
}

impl Ring {
    /// Looks at it; `None` while another thread is inside of it.
    fn look(&mut self, process: u32) -> Option<Seen> {
        let seen = look(process, self.descriptor)?;
        if matches!(self.entries, Mapped::NotYet) {
            let entries = Entries::of(process, self.descriptor, seen.entries);
            self.entries = entries.map_or(Mapped::Refused, Mapped::Here);
        }
        Some(seen)
    }
}

/// The rings of a process.
#[derive(Debug)]
pub(super) struct Rings {
    process: u32,
    rings: Vec<Ring>,
    /// Sockets that were there before, as the kernel calls them: their descriptors may be others' by now.
    old_sockets: HashSet<PathBuf>,
}

impl Rings {
    pub(super) fn of(process: u32) -> Rings {
        let old_sockets = descriptors(process, "socket:").map(|(_, name)| name).collect();
        let mut rings = Rings { process, rings: Vec::new(), old_sockets };
        rings.look_for_more(None);
        rings
    }

    /// Takes in rings that were made since, by this thread.
    pub(super) fn look_for_more(&mut self, owner: Option<i32>) {
        for (descriptor, _) in descriptors(self.process, "anon_inode:[io_uring]") {
            if self.rings.iter().all(|ring| ring.descriptor != descriptor) {
                let (pending, entries) = (HashMap::new(), Mapped::NotYet);
                let (known, landed) = (None, None);
                let mut ring = Ring { descriptor, owner, known, entries, pending, landed };
                ring.landed = ring.look(self.process).map(|seen| seen.tail);
                self.rings.push(ring);
            }
        }
    }

    /// Whether this kernel tells what is on them; `None`: nothing could be looked at.
    pub(super) fn are_told(&self) -> Option<bool> {
        let looks = self.rings.iter().filter_map(|ring| look(self.process, ring.descriptor));
        looks.map(|seen| seen.is_told).reduce(|one, other| one || other)
    }

    /// Whether the socket that has this descriptor now was there when the rings were first looked at.
    pub(super) fn knew(&self, descriptor: u64) -> bool {
        let name = fs::read_link(format!("/proc/{}/fd/{descriptor}", self.process));
        name.is_ok_and(|name| self.old_sockets.contains(&name))
    }

    /// What is queued at `now`, when a thread enters one of the rings; `None` if it has a name for it that
    /// is no descriptor. What is on the rings of others they enter themselves, and each entry is told once:
    /// a call may submit only some of them.
    pub(super) fn queued(
        &mut self,
        thread: i32,
        entered: Option<u64>,
        now: Instant,
    ) -> Vec<Operation> {
        let mut all = Vec::new();
        for ring in &mut self.rings {
            match entered {
                Some(entered) if entered == ring.descriptor => ring.owner = Some(thread),
                None if ring.owner.is_none_or(|owner| owner == thread) => {}
                _ => continue,
            }
            let Some(seen) = ring.look(self.process) else { continue };
            let (first, end) = seen.between;
            let written = match &ring.entries {
                Mapped::Here(entries) if seen.queued.is_empty() && first != end => {
                    let count = end.wrapping_sub(first).min(seen.entries);
                    (0..count).map(|place| entries.at(first.wrapping_add(place))).collect()
                }
                _ => Vec::new(),
            };
            let known = ring.known.map_or(0, |known| known.wrapping_sub(first));
            // Positions wrap around: what lies behind the last is one before the first.
            let known = if known <= end.wrapping_sub(first) { known } else { 0 };
            ring.known = Some(end);
            for operation in seen.queued.into_iter().chain(written).skip(known as usize) {
                ring.pending.insert(operation.user_data, (operation.clone(), now));
                all.push(operation);
            }
        }
        all
    }

    /// What has landed since this was asked last.
    pub(super) fn landed(&mut self) -> Vec<Landed> {
        let mut all = Vec::new();
        for ring in &mut self.rings {
            let Some(seen) = ring.look(self.process) else { continue };
            // Positions of the ring wrap around. At a first look all that is there is new.
            let new = ring.landed.map_or(usize::MAX, |then| seen.tail.wrapping_sub(then) as usize);
            let old = seen.landed.len().saturating_sub(new);
            for (user_data, result, more) in seen.landed.into_iter().skip(old) {
                let of = match more {
                    true => ring.pending.get(&user_data).cloned(),
                    false => ring.pending.remove(&user_data),
                };
                all.push(Landed { of, result, owner: ring.owner });
            }
            ring.landed = Some(seen.tail);
        }
        all
    }
}

/// The descriptors of a process that are something which the kernel calls so, with what it calls them.
fn descriptors(process: u32, what: &'static str) -> impl Iterator<Item = (u64, PathBuf)> {
    let entries = fs::read_dir(format!("/proc/{process}/fd"));
    entries.into_iter().flatten().map_while(Result::ok).filter_map(move |entry| {
        let link = fs::read_link(entry.path()).ok()?;
        link.to_str()?.starts_with(what).then_some(())?;
        Some((entry.file_name().to_str()?.parse().ok()?, link))
    })
}

/// The descriptor of an entry is the number of a registered one.
const FIXED_FILE: u32 = 1;

/// The submission entries of another process's ring, where that process writes them.
#[derive(Debug)]
struct Entries {
    memory: NonNull<[u64; 8]>,
    count: u32,
}

impl Entries {
    fn of(process: u32, ring: u64, count: u32) -> io::Result<Entries> {
        const IORING_OFF_SQES: libc::off_t = 0x1000_0000;
        let descriptor = |fd: libc::c_long| {
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the call has just given us this descriptor, and nobody else knows it.
            Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
        };
        // SAFETY: only numbers are passed.
        let process = descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) })?;
        let (process, ring) = (process.as_raw_fd(), ring as libc::c_int);
        // SAFETY: only numbers are passed.
        let ring = descriptor(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, ring, 0) })?;
        let bytes = count as usize * size_of::<[u64; 8]>();
        let (read, shared) = (libc::PROT_READ, libc::MAP_SHARED);
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let memory = unsafe {
            libc::mmap(null_mut(), bytes, read, shared, ring.as_raw_fd(), IORING_OFF_SQES)
        };
        match NonNull::new(memory) {
            Some(memory) if memory.as_ptr() != libc::MAP_FAILED => {
                Ok(Entries { memory: memory.cast(), count })
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The entry at a position of the ring.
    fn at(&self, position: u32) -> Operation {
        // The ring's size is a power of two.
        let place = (position & (self.count - 1)) as usize;
        // SAFETY: the mapping has `count` entries, is aligned to a page and lives as long as this does;
        // the other process may write to it, so nothing is assumed of what is read.
        let entry = unsafe { self.memory.as_ptr().add(place).read_volatile() };
        let (code, flags) = (entry[0] as u8, (entry[0] >> 8) as u8);
        let descriptor = u64::try_from((entry[0] >> 32) as i32).ok();
        Operation {
            name: operation_name(code).to_ascii_lowercase(),
            descriptor: descriptor.filter(|_| u32::from(flags) & FIXED_FILE == 0),
            user_data: entry[4],
        }
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        let bytes = self.count as usize * size_of::<[u64; 8]>();
        // SAFETY: what `of` has mapped, and nobody else has a pointer to it.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), bytes) };
    }
}

/// What the kernel says of a ring.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    /// It lists what is on the ring: since Linux 5.19.
    is_told: bool,
    /// How many entries the ring has.
    entries: u32,
    /// The positions of the first entry that is queued, and of the one after the last.
    between: (u32, u32),
    queued: Vec<Operation>,
    /// Completions that were not taken yet: user data, result, whether more will come.
    landed: Vec<(u64, i64, bool)>,
    /// The position of the next completion.
    tail: u32,
}

/// How often to look again at a ring that another thread is inside of, which mostly is not for long.
const LOOKS: usize = 5;

fn look(process: u32, descriptor: u64) -> Option<Seen> {
    (0..LOOKS).find_map(|look| {
        if look > 0 {
            thread::sleep(Duration::from_micros(20));
        }
        seen(&fs::read_to_string(format!("/proc/{process}/fdinfo/{descriptor}")).ok()?)
    })
}

/// `None`: the kernel says nothing of a ring while another thread is inside of it.
fn seen(text: &str) -> Option<Seen> {
    const MORE: u32 = 2;
    let mut seen = Seen::default();
    let mut is_said = false;
    for line in text.lines() {
        let position = |name: &str| -> Option<u32> { line.strip_prefix(name)?.trim().parse().ok() };
        if let Some(tail) = position("CqTail:") {
            seen.tail = tail;
            is_said = true;
        } else if let Some(first) = position("SqHead:") {
            seen.between.0 = first;
        } else if let Some(end) = position("SqTail:") {
            seen.between.1 = end;
        } else if let Some(mask) = line.strip_prefix("SqMask:") {
            let mask = u32::from_str_radix(mask.trim().trim_start_matches("0x"), 16);
            seen.entries = mask.map_or(0, |mask| mask + 1);
        } else if line.starts_with("SQEs:") {
            seen.is_told = true;
        } else if let (Some(name), Some(user_data)) = (field(line, "opcode:"), number(line)) {
            let flags =
                field(line, " flags:").and_then(|flags| u32::from_str_radix(flags, 16).ok());
            let descriptor = field(line, " fd:").and_then(|fd| fd.parse().ok());
            seen.queued.push(Operation {
                name: name.to_ascii_lowercase(),
                descriptor: descriptor.filter(|_| flags.unwrap_or(0) & FIXED_FILE == 0),
                user_data,
            });
        } else if let (Some(result), Some(user_data)) = (field(line, " res:"), number(line)) {
            // It is called `flag` in some versions.
            let flags = field(line, " flags:").or_else(|| field(line, " flag:"));
            let flags = flags.and_then(|flags| u32::from_str_radix(flags, 16).ok()).unwrap_or(0);
            seen.landed.push((user_data, result.parse().unwrap_or(0), flags & MORE != 0));
        }
    }
    is_said.then_some(seen)
}

fn number(line: &str) -> Option<u64> {
    field(line, " user_data:")?.parse().ok()
}

/// The word behind a name.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let rest = &line[line.find(name)? + name.len()..];
    rest.split([',', ' ']).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_socket_under_an_old_number_is_new() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let rings = Rings::of(std::process::id());
        let number = socket.as_raw_fd();
        assert!(rings.knew(number as u64));
        let other = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        // SAFETY: both are open, and the first number goes on being one of a socket.
        assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), number) }, number);
        assert!(!rings.knew(number as u64));
    }

    #[test]
    fn an_entry_is_told_once_for_the_thread_that_enters_its_ring() {
        let Ok(mut first) = io_uring::IoUring::new(8) else { return };
        let Ok(second) = io_uring::IoUring::new(8) else { return };
        let mut rings = Rings::of(std::process::id());
        let (here, there) = (first.as_raw_fd() as u64, second.as_raw_fd() as u64);
        rings.rings.retain(|ring| [here, there].contains(&ring.descriptor));
        if rings.are_told() != Some(true) {
            return;
        }
        let mut queue = |user_data| {
            let nop = io_uring::opcode::Nop::new().build().user_data(user_data);
            // SAFETY: it takes no memory.
            unsafe { first.submission().push(&nop).unwrap() };
        };
        let now = Instant::now();
        let mut queued = |thread, ring| -> Vec<u64> {
            rings.queued(thread, ring, now).iter().map(|one| one.user_data).collect()
        };
        queue(1);
        queue(2);
        assert_eq!(queued(20, Some(there)), [0; 0], "another's ring");
        assert_eq!(queued(10, Some(here)), [1, 2]);
        queue(3);
        assert_eq!(queued(20, None), [0; 0], "whose ring that is is known");
        assert_eq!(queued(10, None), [3], "the others are known");
        assert_eq!(queued(10, Some(here)), [0; 0]);
        first.submit_and_wait(3).unwrap();
        assert_eq!(first.completion().count(), 3);
        for round in 0..5 {
            let nop = io_uring::opcode::Nop::new().build().user_data(10 + round);
            // SAFETY: it takes no memory.
            unsafe { first.submission().push(&nop).unwrap() };
            assert_eq!(queued(10, Some(here)), [10 + round]);
            first.submit_and_wait(1).unwrap();
            assert_eq!(first.completion().count(), 1);
        }
    }

    #[test]
    fn what_the_kernel_says_of_a_ring_is_read() {
        let text = "SqMask:\t0x3ff\nSqHead:\t3\nSqTail:\t5\nCqHead:\t6\nCqTail:\t8\nCachedCqTail:\t8\nSQEs:\t2\n\
            \x20   3: opcode:RECV, fd:9, flags:0, off:0, addr:0x7f, rw_flags:0x0, buf_index:0 user_data:77\n\
            \x20   4: opcode:ACCEPT, fd:6, flags:1, off:0, addr:0x0, rw_flags:0x0, buf_index:0 user_data:78\n\
            CQEs:\t2\n    6: user_data:18446744073709551615, res:-11, flags:0\n\
            \x20   7: user_data:5, res:9, flags:2\nSqThread:\t-1\n";
        let recv = Operation { name: "recv".into(), descriptor: Some(9), user_data: 77 };
        let accept = Operation { name: "accept".into(), descriptor: None, user_data: 78 };
        let expected = Seen {
            is_told: true,
            entries: 1024,
            between: (3, 5),
            queued: vec![recv, accept],
            landed: vec![(u64::MAX, -11, false), (5, 9, true)],
            tail: 8,
        };
        assert_eq!(seen(text), Some(expected));
        let older = seen("SqHead:\t1\nCqTail:\t8\n").unwrap();
        assert!(!older.is_told, "an older kernel lists nothing");
        let locked = "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t1057\n";
        assert_eq!(seen(locked), None, "another thread is inside of it");
    }
}
