//! What the calls are made on: a few descriptors of each kind, the same in each world.

use std::ffi::{c_int, c_long};
use std::mem::zeroed;
use std::os::fd::RawFd;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

mod made;
mod transfers;

use crate::backlog::arrived;
use crate::names;
use made::{acknowledged, bound, connect, file, pair, set_time_outs};

/// How many descriptors a world has.
pub(crate) const SLOTS: usize = 14;

const TCP: [usize; 2] = [2, 3];
const UDP: [usize; 2] = [6, 7];
const EVENT: usize = 10;
const FILE: usize = 11;
const LISTENER: usize = 12;
/// A number that is not open.
const CLOSED: usize = 13;

/// More than this is not left lying in a TCP socket: how much fits is up to the moment.
const TCP_ROOM: usize = 30_000;

#[derive(Clone, Debug)]
pub(crate) enum Command {
    Send(usize, usize, c_int),
    Recv(usize, usize, c_int),
    RecvFrom(usize, usize, c_int),
    SendMsg(usize, usize, c_int),
    RecvMsg(usize, usize, c_int),
    RecvMmsg(usize, u32, c_int, bool),
    SendMmsg(usize, u32, c_int),
    Write(usize, usize),
    Writev(usize, usize),
    Read(usize, usize),
    Readv(usize, usize),
    Pread(usize, usize, i64),
    Pwrite(usize, usize, i64),
    Poll(Vec<(usize, i16)>, c_int),
    Select(Vec<(usize, i16)>, c_int),
    EpollWait(c_int),
    Nonblocking(usize, bool),
    Shutdown(usize, c_int),
    TimeOut(usize, u32),
    Connect(bool),
    Accept(bool, u8),
    Sleep(u8),
    Flock(usize, c_int),
    LockSection(usize),
    Sync(usize),
    Splice(usize, usize),
    SendFile(usize, usize),
    Renew(usize),
    UnknownControl(usize, c_int),
    Scene(u8, u8),
}

/// What came of a call.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) result: i64,
    pub(crate) errno: i32,
    pub(crate) bytes: Vec<u8>,
    /// Flags, lengths, events.
    pub(crate) details: Vec<i64>,
}

pub(crate) struct World {
    fds: [RawFd; SLOTS],
    epoll: RawFd,
    address: libc::sockaddr_in,
    /// Bytes that each TCP socket has been sent and has not received.
    lying: [usize; SLOTS],
    /// The file's bytes may lie in a socket or pipe without having been copied.
    lent: bool,
    /// Connections that wait to be accepted, and those that were made.
    backlog: usize,
    others: Vec<RawFd>,
    next_byte: u8,
    /// By which of its names each call is made.
    ways: u8,
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap()
}

/// What errno is before each call, to see that success leaves it alone.
const UNTOUCHED: i32 = 4242;

pub(crate) fn outcome(call: impl FnOnce() -> i64) -> Outcome {
    // SAFETY: the thread's own errno.
    unsafe { *libc::__errno_location() = UNTOUCHED };
    let result = call();
    Outcome { result, errno: errno(), ..Outcome::default() }
}

impl World {
    pub(crate) fn new() -> World {
        let mut fds = [-1; SLOTS];
        [fds[0], fds[1]] = pair(libc::AF_UNIX, libc::SOCK_STREAM);
        [fds[4], fds[5]] = pair(libc::AF_UNIX, libc::SOCK_DGRAM);
        let mut pipe = [0; 2];
        // SAFETY: writes to a local.
        assert_eq!(unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_NONBLOCK) }, 0);
        [fds[8], fds[9]] = pipe;
        // SAFETY: no memory.
        fds[EVENT] = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) };
        fds[FILE] = file();
        let (listener, address) = bound(libc::SOCK_STREAM);
        // SAFETY: no memory.
        assert_eq!(unsafe { libc::listen(listener, 64) }, 0);
        fds[LISTENER] = listener;
        // SAFETY: no memory.
        let tcp = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
        assert_eq!(connect(tcp, &address), 0);
        // SAFETY: no address is asked for.
        fds[TCP[0]] = unsafe { libc::accept(listener, null_mut(), null_mut()) };
        fds[TCP[1]] = tcp;
        // Or a short message would wait until the one before is acknowledged, which takes its time.
        for slot in TCP {
            let (on, len): (c_int, _) = (1, size_of::<c_int>() as libc::socklen_t);
            // SAFETY: reads a local.
            let set = unsafe {
                let value = (&raw const on).cast();
                libc::setsockopt(fds[slot], libc::IPPROTO_TCP, libc::TCP_NODELAY, value, len)
            };
            assert_eq!(set, 0);
        }
        let ((one, to_one), (other, to_other)) = (bound(libc::SOCK_DGRAM), bound(libc::SOCK_DGRAM));
        assert_eq!((connect(one, &to_other), connect(other, &to_one)), (0, 0));
        [fds[UDP[0]], fds[UDP[1]]] = [one, other];
        for fd in [0, 1, 2, 3, 4, 5, 6, 7, LISTENER] {
            assert_eq!(set_time_outs(fds[fd], 2), 0);
        }
        // SAFETY: no memory, and events that are read.
        let epoll = unsafe {
            let epoll = libc::epoll_create1(0);
            for slot in [0, 2, 4, 8, 10] {
                let mut event =
                    libc::epoll_event { events: libc::EPOLLIN as u32, u64: slot as u64 };
                libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fds[slot], &raw mut event);
            }
            epoll
        };
        let others = Vec::new();
        World {
            fds,
            epoll,
            address,
            lying: [0; SLOTS],
            lent: false,
            backlog: 0,
            others,
            next_byte: 0,
            ways: 0,
        }
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len)
            .map(|_| {
                self.next_byte = self.next_byte.wrapping_add(1);
                self.next_byte
            })
            .collect()
    }

    /// Not in a file that was sent: sendfile(2) leaves it to the caller that it stays as it is until it was
    /// received, and who receives it otherwise may get what was written later.
    fn has_room(&self, slot: usize, len: usize) -> bool {
        if slot == FILE && self.lent {
            return false;
        }
        let Some(peer) = self.tcp_peer(slot) else { return true };
        self.lying[peer] + len < TCP_ROOM
    }

    fn tcp_peer(&self, slot: usize) -> Option<usize> {
        TCP.contains(&slot).then_some(slot ^ 1)
    }

    /// The network is a thread of its own: waits until it is done with what was sent.
    fn settle(&mut self, slot: usize, sent: i64) {
        if let Some(peer) = self.tcp_peer(slot)
            && sent > 0
        {
            self.lying[peer] += sent as usize;
        }
        // On a machine with much to do the network is behind, too.
        let deadline = Instant::now() + Duration::from_secs(1);
        for slot in TCP {
            loop {
                let mut count: c_int = 0;
                // SAFETY: writes to a local.
                unsafe { libc::ioctl(self.fds[slot], libc::FIONREAD, &raw mut count) };
                // What was shut down for receiving keeps nothing, and nothing comes over a connection that
                // was reset.
                let is_over = count as usize >= self.lying[slot] || self.is_reset();
                if is_over || Instant::now() > deadline {
                    self.lying[slot] = count.max(0) as usize;
                    break;
                }
                std::hint::spin_loop();
            }
        }
        if UDP.contains(&slot) && sent >= 0 {
            // A datagram may be empty, or for a socket that takes none: then there is nothing to see.
            let mut one = libc::pollfd { fd: self.fds[slot ^ 1], events: libc::POLLIN, revents: 0 };
            // SAFETY: writes to a local.
            unsafe { libc::poll(&raw mut one, 1, 1) };
        }
    }

    /// Whether neither end of the TCP connection has any more to give or to take.
    fn is_reset(&self) -> bool {
        let mut ends = TCP.map(|slot| libc::pollfd { fd: self.fds[slot], events: 0, revents: 0 });
        // SAFETY: as many as are told.
        unsafe { libc::poll(ends.as_mut_ptr(), 2, 0) };
        ends.iter().all(|end| end.revents & libc::POLLHUP != 0)
    }

    fn received(&mut self, slot: usize, outcome: &Outcome, flags: c_int) {
        if self.lying[slot] > 0 && outcome.result > 0 && flags & libc::MSG_PEEK == 0 {
            self.lying[slot] = self.lying[slot].saturating_sub(outcome.result as usize);
        }
    }

    pub(crate) fn carry_out(&mut self, command: &Command) -> Outcome {
        let fds = self.fds;
        self.ways = self.ways.wrapping_add(1);
        let way = self.ways;
        match *command {
            Command::Send(slot, len, flags) => self.send(slot, len, flags),
            Command::Recv(slot, len, flags) => self.recv(slot, len, flags),
            Command::RecvFrom(slot, len, flags) => self.recv_from(slot, len, flags),
            Command::SendMsg(slot, len, flags) => self.send_msg(slot, len, flags),
            Command::RecvMsg(slot, len, flags) => self.recv_msg(slot, len, flags),
            Command::RecvMmsg(slot, count, flags, limited) => {
                self.recv_mmsg(slot, count, flags, limited)
            }
            Command::SendMmsg(slot, count, flags) => self.send_mmsg(slot, count, flags),
            Command::Write(slot, len) => self.write(slot, len),
            Command::Writev(slot, len) => self.writev(slot, len),
            Command::Read(slot, len) => self.read(slot, len),
            Command::Readv(slot, len) => self.readv(slot, len),
            Command::Pread(slot, len, offset) => self.pread(slot, len, offset),
            Command::Pwrite(slot, len, offset) => self.pwrite(slot, len, offset),
            Command::Poll(ref set, timeout) => {
                let mut polled: Vec<_> = set
                    .iter()
                    .map(|&(slot, events)| libc::pollfd { fd: fds[slot], events, revents: 99 })
                    .collect();
                // SAFETY: as many as are told.
                let mut got =
                    outcome(|| unsafe { i64::from(names::poll(way, &mut polled, timeout)) });
                got.details = polled.iter().map(|one| i64::from(one.revents)).collect();
                got
            }
            Command::Select(ref set, timeout) => self.select(set, timeout),
            Command::EpollWait(timeout) => {
                let mut events = [libc::epoll_event { events: 0, u64: 99 }; 8];
                // SAFETY: room for as many as are told.
                let mut got = outcome(|| unsafe {
                    i64::from(names::epoll_wait(way, self.epoll, &mut events, timeout))
                });
                let mut told: Vec<_> = events
                    .iter()
                    .take(got.result.max(0) as usize)
                    .map(|event| [event.u64 as i64, i64::from(event.events)])
                    .collect();
                // In which order is nobody's promise: the kernel's list forgets what has been read meanwhile
                // whenever somebody waits for the instance itself, as loops do.
                told.sort_unstable();
                got.details = told.concat();
                got
            }
            // A pipe or an event that blocks would wait for good.
            Command::Nonblocking(slot, on) if [8, 9, 10].contains(&slot) => {
                let _ = on;
                Outcome::default()
            }
            Command::Nonblocking(slot, on) => {
                let mut on = c_int::from(on);
                // SAFETY: reads a local.
                outcome(|| unsafe { i64::from(libc::ioctl(fds[slot], libc::FIONBIO, &raw mut on)) })
            }
            Command::Shutdown(slot, how) => {
                // The end of a TCP stream travels; by then both know of it.
                // SAFETY: no memory.
                let done = outcome(|| unsafe { i64::from(libc::shutdown(fds[slot], how)) });
                if let Some(peer) = self.tcp_peer(slot)
                    && done.result == 0
                    && how != libc::SHUT_RD
                {
                    let mut one =
                        libc::pollfd { fd: fds[peer], events: libc::POLLRDHUP, revents: 0 };
                    // SAFETY: writes to a local.
                    unsafe { libc::poll(&raw mut one, 1, 1000) };
                    acknowledged(fds[slot], fds[peer]);
                }
                done
            }
            Command::TimeOut(slot, ms) => outcome(|| i64::from(set_time_outs(fds[slot], ms))),
            Command::Connect(again) => {
                if self.backlog >= 32 {
                    return Outcome::default();
                }
                // SAFETY: no memory.
                let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
                let mut done = outcome(|| i64::from(connect(fd, &self.address)));
                if again {
                    let twice = outcome(|| i64::from(connect(fd, &self.address)));
                    done.details = vec![twice.result, i64::from(twice.errno)];
                }
                if done.result == 0 {
                    self.backlog += 1;
                    arrived(fds[LISTENER], self.backlog);
                }
                self.others.push(fd);
                done
            }
            Command::Accept(with_address, flags) => self.accept(with_address, flags),
            Command::Sleep(kind) => {
                let mut left = libc::timespec { tv_sec: 1, tv_nsec: 2 };
                let nsec = [0, 1_000_000, -1, 2_000_000_000][usize::from(kind)];
                let time = libc::timespec { tv_sec: 0, tv_nsec: nsec };
                // SAFETY: locals.
                let mut done = outcome(|| unsafe {
                    i64::from(libc::nanosleep(&raw const time, &raw mut left))
                });
                // SAFETY: locals.
                let other = outcome(|| unsafe {
                    let (time, clock) = (&raw const time, libc::CLOCK_MONOTONIC);
                    i64::from(libc::clock_nanosleep(clock, libc::TIMER_ABSTIME, time, null_mut()))
                });
                // SAFETY: no memory of ours.
                let third = outcome(|| unsafe { i64::from(names::short_sleep(way)) });
                done.details =
                    vec![left.tv_sec, left.tv_nsec, other.result, i64::from(other.errno)];
                done.details.extend([third.result, i64::from(third.errno)]);
                done
            }
            // All events of a machine are one inode, whose locks are other processes' too.
            // The two ends of a pipe are one too, and the second to be locked would wait for good.
            Command::Flock(EVENT | 9, _) | Command::LockSection(EVENT) => Outcome::default(),
            Command::Flock(slot, operation) => {
                // SAFETY: no memory.
                outcome(|| unsafe { i64::from(libc::flock(fds[slot], operation)) })
            }
            Command::LockSection(slot) => {
                // SAFETY: integers.
                let mut section: libc::flock = unsafe { zeroed() };
                section.l_type = libc::F_WRLCK as _;
                section.l_len = 10;
                // SAFETY: a section that is there.
                outcome(|| unsafe { i64::from(names::lock_section(way, fds[slot], &mut section)) })
            }
            Command::Sync(slot) => {
                // SAFETY: no memory.
                let mut done = outcome(|| unsafe { i64::from(libc::fsync(fds[slot])) });
                // SAFETY: no memory.
                let data = outcome(|| unsafe { i64::from(libc::fdatasync(fds[slot])) });
                done.details = vec![data.result, i64::from(data.errno)];
                done
            }
            Command::Splice(from, out) => {
                if !self.has_room(out, 100) || TCP.contains(&from) || TCP.contains(&out) {
                    return Outcome::default();
                }
                // SAFETY: no memory.
                let moved = outcome(|| unsafe {
                    let flags = libc::SPLICE_F_NONBLOCK;
                    libc::splice(fds[from], null_mut(), fds[out], null_mut(), 100, flags) as i64
                });
                self.lent |= from == FILE && moved.result > 0;
                moved
            }
            Command::SendFile(out, from) => {
                if !self.has_room(out, 1000) {
                    return Outcome::default();
                }
                // SAFETY: no offset is named.
                let sent =
                    outcome(|| unsafe { names::sendfile(way, fds[out], fds[from], 1000) as i64 });
                self.settle(out, sent.result);
                self.lent |= from == FILE && sent.result > 0;
                sent
            }
            Command::Renew(slot) => self.renew(slot),
            Command::Scene(scene, way) => crate::scenes::play(scene, way),
            Command::UnknownControl(slot, command) => {
                // Those that are known do something.
                let command = command + 5000;
                // SAFETY: no command has such a number.
                outcome(|| unsafe { i64::from(libc::fcntl(fds[slot], command, 0)) })
            }
        }
    }

    fn select(&mut self, wanted: &[(usize, i16)], timeout_ms: c_int) -> Outcome {
        // SAFETY: integers.
        let mut sets: [libc::fd_set; 3] = unsafe { zeroed() };
        let mut count = 0;
        for &(slot, events) in wanted {
            // What is not open is refused together with all the rest: its number is that of nobody.
            let fd = if slot == CLOSED { 700 } else { self.fds[slot] };
            count = count.max(fd + 1);
            for (bit, set) in sets.iter_mut().enumerate() {
                if events >> bit & 1 == 1 {
                    // SAFETY: a number that sets have room for.
                    unsafe { libc::FD_SET(fd, &raw mut *set) };
                }
            }
        }
        let mut timeout = libc::timeval { tv_sec: 0, tv_usec: c_long::from(timeout_ms) * 1000 };
        let [readable, writable, exceptional] = sets.each_mut().map(|set| &raw mut *set);
        // SAFETY: sets of the usual size.
        let mut got = outcome(|| unsafe {
            let (timeout, sets) = (&raw mut timeout, [readable, writable, exceptional]);
            i64::from(names::select(self.ways, count, sets, timeout))
        });
        if got.result == 0 {
            got.details = vec![timeout.tv_sec, timeout.tv_usec];
        }
        for &(slot, _) in wanted {
            let fd = if slot == CLOSED { 700 } else { self.fds[slot] };
            for set in &sets {
                // SAFETY: as above.
                got.details.push(i64::from(unsafe { libc::FD_ISSET(fd, &raw const *set) }));
            }
        }
        got
    }

    fn accept(&mut self, with_address: bool, flags: u8) -> Outcome {
        let flags = if flags & 1 == 1 { libc::SOCK_CLOEXEC } else { 0 }
            | if flags & 2 == 2 { libc::SOCK_NONBLOCK } else { 0 };
        // SAFETY: integers.
        let mut from: libc::sockaddr_in = unsafe { zeroed() };
        // Shorter than the address, which is cut off.
        let mut len: libc::socklen_t = 8;
        let (at, len_at) = match with_address {
            true => ((&raw mut from).cast(), &raw mut len),
            false => (null_mut(), null_mut()),
        };
        // SAFETY: room as told.
        let mut got = outcome(|| unsafe {
            i64::from(names::accept(self.ways, self.fds[LISTENER], at, len_at, flags))
        });
        got.details = vec![i64::from(len), i64::from(from.sin_family)];
        if got.result >= 0 {
            let fd = got.result as RawFd;
            self.others.push(fd);
            self.backlog -= 1;
            // SAFETY: no memory.
            unsafe {
                got.details.push(i64::from(libc::fcntl(fd, libc::F_GETFL)));
                got.details.push(i64::from(libc::fcntl(fd, libc::F_GETFD)));
            }
            got.result = 0;
        }
        got
    }

    /// Closes a number and opens something else under it.
    fn renew(&mut self, slot: usize) -> Outcome {
        if slot != FILE {
            return Outcome::default();
        }
        self.lent = false;
        let fresh = file();
        // SAFETY: numbers of ours.
        let done = outcome(|| unsafe { i64::from(libc::dup2(fresh, self.fds[slot])) });
        // SAFETY: as above.
        unsafe { libc::close(fresh) };
        Outcome { result: done.result - i64::from(self.fds[slot]), ..done }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for fd in self.fds.iter().chain(&self.others).chain([&self.epoll]).filter(|fd| **fd >= 0) {
            // SAFETY: numbers of ours.
            assert_eq!(unsafe { libc::close(*fd) }, 0);
        }
    }
}
