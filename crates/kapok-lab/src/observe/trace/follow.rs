//! The tracer's loop: from stops to the calls of one connection.

use std::collections::HashMap;
use std::fs;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use super::rings::{Landed, Operation, Rings};
use super::words::{self, Call, Kind};
use super::{Shared, Step};
use crate::meters::ptrace::{AtCall, News, at_call, is_at_call, look, resume};
use crate::meters::{Sockets, process_of};

/// What is known of a traced thread.
#[derive(Default)]
struct Thread {
    process: u32,
    /// The call that it is in.
    inside: Option<(u64, [u64; 6], Instant)>,
    /// Its last wait that was not shown.
    waited: Option<(Call, Instant, Duration)>,
}

/// The connection that is followed.
struct Connection {
    process: u32,
    descriptor: u64,
    accepted: Instant,
    accepted_by: i32,
    was_read: bool,
}

const ENTER: u64 = libc::SYS_io_uring_enter as u64;
const SETUP: u64 = libc::SYS_io_uring_setup as u64;

/// Among the flags of io_uring_enter(2): the ring is named by the number under which it was registered.
const REGISTERED: u64 = 1 << 4;

pub(super) fn follow(
    shared: &Shared,
    processes: &[u32],
    rings: HashMap<u32, Rings>,
    steps: &Sender<Step>,
) {
    let mut tracer =
        Follower { shared, steps, threads: HashMap::new(), rings, connection: None, done: false };
    let mut left = processes.len();
    while !shared.stop.load(Ordering::Relaxed) && !tracer.done {
        // Looked at first and taken after: the end of a process is for its parent to take.
        let kinds = libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT;
        let news = match look(libc::P_ALL, 0, kinds) {
            Ok(Some(news)) => news,
            Ok(None) => {
                thread::sleep(Duration::from_micros(20));
                continue;
            }
            // No tracee is left.
            Err(_) => break,
        };
        if news.has_ended {
            tracer.threads.remove(&news.thread);
            if processes.contains(&(news.thread as u32)) {
                left -= 1;
                if left == 0 {
                    shared.gone.store(true, Ordering::Relaxed);
                    return;
                }
            }
            let _ = look(libc::P_PID, news.thread, libc::WEXITED);
            continue;
        }
        let Ok(Some(News { thread, status, .. })) = look(libc::P_PID, news.thread, libc::WSTOPPED)
        else {
            // Killed meanwhile.
            continue;
        };
        if is_at_call(status) {
            tracer.at_call(thread);
        }
        resume(thread, status);
    }
}

struct Follower<'a> {
    shared: &'a Shared,
    steps: &'a Sender<Step>,
    threads: HashMap<i32, Thread>,
    /// By process.
    rings: HashMap<u32, Rings>,
    connection: Option<Connection>,
    done: bool,
}

impl Follower<'_> {
    fn at_call(&mut self, thread: i32) {
        let now = Instant::now();
        let state = self.threads.entry(thread).or_insert_with(|| Thread {
            process: process_of(thread as u32).unwrap_or(thread as u32),
            ..Thread::default()
        });
        match at_call(thread) {
            Some(AtCall::Enters { number, arguments }) => {
                state.inside = Some((number, arguments, now));
                if number == ENTER {
                    let by_name = arguments[3] & REGISTERED != 0;
                    self.enters_ring(thread, (!by_name).then_some(arguments[0]), now);
                }
            }
            Some(AtCall::Leaves { result }) => {
                let (inside, process) = (state.inside.take(), state.process);
                let Some((number, arguments, entered)) = inside else { return };
                let call = words::describe(number, &arguments, result);
                self.made(thread, call, entered, now - entered);
                match number {
                    ENTER => self.has_landed(thread, now),
                    SETUP => self.rings(process).look_for_more(Some(thread)),
                    _ => {}
                }
            }
            None => {}
        }
    }

    fn rings(&mut self, process: u32) -> &mut Rings {
        self.rings.entry(process).or_insert_with(|| Rings::of(process))
    }

    /// A thread is about to enter a ring: what has landed meanwhile, and what it submits.
    fn enters_ring(&mut self, thread: i32, ring: Option<u64>, now: Instant) {
        self.has_landed(thread, now);
        let Some(process) = self.threads.get(&thread).map(|state| state.process) else { return };
        let queued = self.rings(process).queued(thread, ring, now);
        for operation in queued {
            if self.is_about_it(process, operation.descriptor) {
                let call = words::submitted(&operation);
                self.show(thread, &call, now, Duration::ZERO, words::note(&call, false));
            }
        }
    }

    /// Looks for what has landed on the rings of a thread's process.
    fn has_landed(&mut self, thread: i32, now: Instant) {
        let Some(process) = self.threads.get(&thread).map(|state| state.process) else { return };
        for landed in self.rings(process).landed() {
            if self.done {
                return;
            }
            self.landed(landed.owner.unwrap_or(thread), process, &landed, now);
        }
        if self.connection.is_none()
            && let Some(told) = self.rings(process).are_told()
        {
            self.shared.rings_are_told.store(told, Ordering::Relaxed);
        }
    }

    fn landed(&mut self, thread: i32, process: u32, landed: &Landed, now: Instant) {
        let operation = landed.of.as_ref().map(|(operation, _)| operation);
        let took = landed.of.as_ref().map_or(Duration::ZERO, |(_, queued)| now - *queued);
        let Some(connection) = &mut self.connection else {
            if let Some(descriptor) = self.is_accept(process, operation, landed) {
                self.shared.has_accepted.store(true, Ordering::Relaxed);
                self.connection = Some(Connection {
                    process,
                    descriptor,
                    accepted: now,
                    accepted_by: thread,
                    was_read: false,
                });
                let call = words::landed("accept", operation, landed.result);
                let note = words::accepted_by_ring(
                    peer(process, descriptor).as_deref(),
                    landed.of.is_none(),
                );
                self.show(thread, &call, now, took, note);
            }
            return;
        };
        let descriptor = connection.descriptor;
        if process != connection.process {
            return;
        }
        let Some(operation) = operation.filter(|one| one.descriptor == Some(descriptor)) else {
            return;
        };
        let call = words::landed(&operation.name, Some(operation), landed.result);
        connection.was_read |= call.kind == Kind::Read && call.result > 0;
        let closes = call.kind == Kind::Close && call.result == 0;
        self.show(thread, &call, now, took, words::note(&call, false));
        if closes {
            self.shared.closed.store(true, Ordering::Relaxed);
            self.done = true;
        }
    }

    /// The descriptor of the connection that an operation has accepted, if that is what it did. Of one
    /// that was queued before anybody looked, only its result is known: a socket that is new.
    fn is_accept(
        &mut self,
        process: u32,
        operation: Option<&Operation>,
        landed: &Landed,
    ) -> Option<u64> {
        let descriptor = u64::try_from(landed.result).ok()?;
        let accepts = match operation {
            Some(operation) => operation.name == "accept",
            None => !self.rings(process).knew(descriptor) && peer(process, descriptor).is_some(),
        };
        accepts.then_some(descriptor)
    }

    fn is_about_it(&self, process: u32, descriptor: Option<u64>) -> bool {
        self.connection.as_ref().is_some_and(|connection| {
            process == connection.process && descriptor == Some(connection.descriptor)
        })
    }

    /// A call has ended.
    fn made(&mut self, thread: i32, call: Call, entered: Instant, took: Duration) {
        if call.is_ring {
            self.shared.enters_rings.store(true, Ordering::Relaxed);
        }
        let Some(process) = self.threads.get(&thread).map(|state| state.process) else { return };
        if call.kind == Kind::Wait {
            if let Some(state) = self.threads.get_mut(&thread) {
                state.waited = Some((call, entered, took));
            }
            return;
        }
        let Some(connection) = &mut self.connection else {
            if let (Kind::Accept, Ok(descriptor)) = (call.kind, u64::try_from(call.result)) {
                self.shared.has_accepted.store(true, Ordering::Relaxed);
                self.connection = Some(Connection {
                    process,
                    descriptor,
                    accepted: entered + took,
                    accepted_by: thread,
                    was_read: false,
                });
                let listener = call.first;
                let blocks = is_blocking(process, listener) && took >= words::WAITED;
                let note = words::accepted(peer(process, descriptor).as_deref(), blocks);
                self.show(thread, &call, entered, took, note);
            }
            return;
        };
        let about_it =
            process == connection.process && call.descriptor == Some(connection.descriptor);
        let hands_over =
            call.kind == Kind::Spawn && thread == connection.accepted_by && !connection.was_read;
        if !about_it && !hands_over {
            return;
        }
        connection.was_read |= call.kind == Kind::Read && call.result > 0;
        let waited = took >= words::WAITED
            && !call.does_not_wait
            && is_blocking(process, connection.descriptor);
        let note = words::note(&call, waited);
        let closes = call.kind == Kind::Close && call.result == 0;
        self.show(thread, &call, entered, took, note);
        if closes {
            self.shared.closed.store(true, Ordering::Relaxed);
            self.done = true;
        }
    }

    /// Shows a call and, before it, the wait of the same thread that led to it.
    fn show(&mut self, thread: i32, call: &Call, entered: Instant, took: Duration, note: String) {
        let waited = self.threads.get_mut(&thread).and_then(|state| state.waited.take());
        if let Some((wait, entered, took)) = waited {
            let note = words::note(&wait, took >= words::WAITED);
            self.send(thread, &wait, entered, took, note);
        }
        self.send(thread, call, entered, took, note);
    }

    fn send(&mut self, thread: i32, call: &Call, entered: Instant, took: Duration, note: String) {
        let Some(connection) = &self.connection else { return };
        let since = entered.saturating_duration_since(connection.accepted).as_secs_f64();
        let before = connection.accepted.saturating_duration_since(entered).as_secs_f64();
        let step = Step {
            at: since - before,
            thread: thread as u32,
            kind: call.kind.name(),
            call: call.text.clone(),
            took: took.as_secs_f64(),
            note,
        };
        if self.steps.send(step).is_err() {
            self.done = true;
        }
    }
}

/// Whether calls on a descriptor wait inside the kernel. Its last call may have closed it.
fn is_blocking(process: u32, descriptor: u64) -> bool {
    let info = fs::read_to_string(format!("/proc/{process}/fdinfo/{descriptor}"));
    let flags = info
        .iter()
        .flat_map(|text| text.lines())
        .find_map(|line| i32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_NONBLOCK == 0)
}

/// Who is at the other end of a descriptor. The thread that has it is stopped meanwhile.
fn peer(process: u32, descriptor: u64) -> Option<String> {
    let link = fs::read_link(format!("/proc/{process}/fd/{descriptor}")).ok()?;
    let inode: u32 = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()?;
    let sockets = Sockets::of(&[process]).ok()?;
    sockets.all.into_iter().find(|socket| socket.inode == inode)?.peer
}
