//! The loop of one thread: opens connections, keeps requests outstanding, measures.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token};

use super::connection::{Connection, State, connect, connected};
use super::limits::Sources;
use super::phases::{Callback, Shared, look};
use super::report::{ErrorKind, Tally};
use super::schedule::Schedule;
use super::traffic::Traffic;
use super::{LoadConfig, Phase};
use crate::meters::thread_cpu_time;

const MS: u64 = 1_000_000;

/// Connections that may be on their way to being served at the start: fewer than the smallest
/// backlog in use (128), because what overflows it waits for a retransmission of a second.
const OPENING_AT_ONCE: usize = 100;

/// How long a connection that failed stays closed: a server that refuses everyone must not make
/// the generator spin.
const RETRY_NS: u64 = 20 * MS;

/// How long to listen for surplus replies after the last one that was due.
const QUIET_NS: u64 = 20 * MS;

/// How long traffic goes on between a pause and the interval, and what each active connection adds.
const SETTLING: Duration = Duration::from_millis(20);
const SETTLING_EACH: Duration = Duration::from_micros(5);

const READ_BUFFER_BYTES: usize = 64 << 10;
const TICK_NS: u64 = 20 * MS;
const PROGRESS_NS: u64 = 100 * MS;

/// One thread's connections and what it counts.
pub(super) struct Generator<'a, T: Traffic> {
    config: &'a LoadConfig,
    shared: &'a Shared,
    index: usize,
    traffic: T,
    poll: Poll,
    events: Option<Events>,
    sources: Sources,
    connections: Vec<Connection<T::Reader>>,
    /// The first so many connections are the active ones.
    active: usize,
    /// When each outstanding request began: `pipeline` places for each active connection.
    starts_ns: Vec<u64>,
    /// Connections that wait to be opened again.
    vacant: Vec<usize>,
    schedule: Option<Schedule>,
    backlog: u64,
    buffer: Box<[u8]>,
    /// How many connections were ever opened.
    serial: u64,
    /// Traffic has started: connections that are opened from now on need no greeting.
    running: bool,
    /// No request is issued any more.
    ending: bool,
    /// The interval has begun, or will in a moment.
    settling: bool,
    /// Replies from then on.
    since_settling: u64,
    /// Replies are counted.
    measuring: bool,
    /// Requests that began before are not measured.
    measured_from_ns: u64,
    next_scan_ns: u64,
    next_progress_ns: u64,
    pub(super) tally: Tally,
}

impl<'a, T: Traffic> Generator<'a, T> {
    pub(super) fn new(
        config: &'a LoadConfig,
        shared: &'a Shared,
        index: usize,
        traffic: T,
    ) -> io::Result<Generator<'a, T>> {
        let share =
            |whole: usize| whole / config.threads + usize::from(index < whole % config.threads);
        let active = share(config.active.unwrap_or(config.connections));
        // Idle ones are shared out separately, so that every thread has its part of both.
        let idle = share(config.connections - config.active.unwrap_or(config.connections));
        let connections = active + idle;
        Ok(Generator {
            config,
            shared,
            index,
            traffic,
            poll: Poll::new()?,
            events: Some(Events::with_capacity(1024)),
            sources: Sources::new(config.addr, config.connections, config.churn.is_some())?,
            connections: (0..connections).map(|_| Connection::new()).collect(),
            active,
            starts_ns: vec![0; active * config.pipeline],
            vacant: Vec::with_capacity(connections),
            schedule: None,
            backlog: 0,
            buffer: vec![0; READ_BUFFER_BYTES].into(),
            serial: index as u64,
            running: false,
            ending: false,
            settling: false,
            since_settling: 0,
            measuring: false,
            measured_from_ns: u64::MAX,
            next_scan_ns: 0,
            next_progress_ns: 0,
            tally: Tally::new(config.duration),
        })
    }

    fn now_ns(&self) -> u64 {
        self.shared.start.elapsed().as_nanos() as u64
    }

    /// Opens connections and has each served once, until `most` of them are open or nothing has
    /// moved for the configured patience.
    pub(super) fn serve_once(
        &mut self,
        most: usize,
        callback: &mut Option<Callback<'_>>,
    ) -> io::Result<()> {
        let most = most.min(self.connections.len());
        let mut next = self.connections[..most]
            .iter()
            .position(|connection| matches!(connection.state, State::Vacant { .. }))
            .unwrap_or(most);
        let mut settled = self.settled();
        let mut moved_ns = self.now_ns();
        while settled < most && !self.stop_requested() {
            while next < most && next - settled < OPENING_AT_ONCE {
                self.open(next);
                next += 1;
            }
            self.turn(TICK_NS)?;
            self.report_progress(Phase::Connecting, callback);
            let now = self.now_ns();
            let settled_now = self.settled();
            if settled_now > settled {
                (settled, moved_ns) = (settled_now, now);
            } else if now - moved_ns > self.config.patience.as_nanos() as u64 {
                break;
            }
            if self.nobody_was_served() && self.tally.errors.total() > 0 {
                return Err(self.never_served());
            }
        }
        Ok(())
    }

    /// Connections that have been served once or have failed.
    fn settled(&self) -> usize {
        let open = |connection: &&Connection<T::Reader>| {
            matches!(connection.state, State::Open | State::Retired)
        };
        self.connections.iter().filter(open).count()
    }

    /// By no thread: that one has none who is served is for the report.
    fn nobody_was_served(&self) -> bool {
        let others =
            || self.shared.counts.iter().map(|counts| counts.served.load(Ordering::Relaxed));
        self.tally.served == 0 && others().all(|served| served == 0)
    }

    fn never_served(&self) -> io::Error {
        let reason = self.tally.errors.examples.first().map_or_else(
            || format!("no reply within {:?}", self.config.patience),
            |example| example.clone(),
        );
        io::Error::other(format!("{}: {reason}", self.config.addr))
    }

    pub(super) fn retire_unserved(&mut self) -> io::Result<()> {
        if self.nobody_was_served() && !self.stop_requested() {
            return Err(self.never_served());
        }
        for connection in &mut self.connections {
            if connection.state != State::Open {
                connection.stream = None;
                (connection.requests, connection.replies) = (0, 0);
                connection.state = State::Retired;
            }
        }
        Ok(())
    }

    pub(super) fn start_traffic(&mut self) {
        self.running = true;
        let now = self.now_ns();
        if let Some(rate) = self.config.rate {
            // Threads take their turns one after the other, not at the same moment.
            let phase_ns = 1e9 / rate * self.index as f64;
            let rate = rate / self.config.threads as f64;
            self.schedule = Some(Schedule::new(now + phase_ns as u64, rate, self.active));
        }
        for index in 0..self.active {
            // The message with which it was opened may have been its last.
            if self.is_worn_out(index) {
                self.renew(index);
            } else if self.schedule.is_none() {
                self.refill(index, now);
            }
        }
    }

    /// Goes on until the requests that were outstanding before the pause are among many others.
    pub(super) fn settle(&mut self, callback: &mut Option<Callback<'_>>) -> io::Result<()> {
        self.settling = true;
        let active = self.config.active.unwrap_or(self.config.connections);
        let time = SETTLING + SETTLING_EACH * active as u32;
        self.drive(time, Phase::Settling, callback)
    }

    pub(super) fn measure(&mut self, callback: &mut Option<Callback<'_>>) -> io::Result<()> {
        let (cpu, waited) = (thread_cpu_time(), thread_wait_for_core());
        let from = self.now_ns();
        self.measured_from_ns = from;
        self.tally.slices.begin(from);
        self.tally.backlog.most = self.backlog;
        self.measuring = true;
        let driven = self.drive(self.config.duration, Phase::Measuring, callback);
        self.measuring = false;
        self.settling = false;
        self.tally.cpu = thread_cpu_time().saturating_sub(cpu);
        self.tally.waited = thread_wait_for_core().saturating_sub(waited);
        self.tally.measured = Duration::from_nanos(self.now_ns() - from);
        let active = self.connections[..self.active].iter();
        self.tally.least = active.map(|connection| connection.measured).min().unwrap_or(0);
        driven
    }

    /// Awaits what is outstanding, then listens for what nobody asked for.
    pub(super) fn drain(&mut self, callback: &mut Option<Callback<'_>>) -> io::Result<()> {
        self.ending = true;
        let give_up = self.now_ns() + self.config.timeout.as_nanos() as u64;
        loop {
            let now = self.now_ns();
            let outstanding: u64 = self.connections.iter().map(Connection::outstanding).sum();
            if outstanding == 0 || self.stop_requested() {
                break;
            }
            if now >= give_up {
                self.tally.errors.timeout += outstanding - 1;
                let timeout = self.config.timeout;
                self.tally.errors.count(ErrorKind::Timeout, || {
                    format!("{outstanding} requests had no reply {timeout:?} after the end")
                });
                break;
            }
            self.turn(TICK_NS / 10)?;
            self.report_progress(Phase::Draining, callback);
        }
        let quiet_until = self.now_ns() + QUIET_NS;
        loop {
            let left = quiet_until.saturating_sub(self.now_ns());
            if left == 0 {
                break;
            }
            self.turn(left)?;
        }
        self.tally.backlog.unsent = self.backlog;
        self.tally.other_bodies = self.traffic.other_bodies();
        Ok(())
    }

    fn stop_requested(&self) -> bool {
        self.config.stop.as_ref().is_some_and(|stop| stop.requested())
    }

    pub(super) fn drive(
        &mut self,
        duration: Duration,
        phase: Phase,
        callback: &mut Option<Callback<'_>>,
    ) -> io::Result<()> {
        let end = self.now_ns() + duration.as_nanos() as u64;
        loop {
            let now = self.now_ns();
            if now >= end {
                return Ok(());
            }
            if self.stop_requested() {
                self.tally.stopped_early = true;
                return Ok(());
            }
            self.turn(TICK_NS.min(end - now))?;
            self.report_progress(phase, callback);
        }
    }

    /// One turn: waits at most `wait_ns`, handles what happened, issues what is due.
    fn turn(&mut self, wait_ns: u64) -> io::Result<()> {
        self.issue_due();
        let Some(mut events) = self.events.take() else { return Ok(()) };
        let polled = match &self.schedule {
            Some(schedule) if !self.ending => {
                let wait_ns = wait_ns.min(schedule.next_ns().saturating_sub(self.now_ns()));
                poll_until(&mut self.poll, &mut events, wait_ns)
            }
            _ => self.poll.poll(&mut events, Some(Duration::from_nanos(wait_ns))),
        };
        match polled {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in &events {
            let ended = event.is_read_closed() || event.is_error();
            self.handle(event.token().0, event.is_readable() || ended, ended);
        }
        self.events = Some(events);
        let now = self.now_ns();
        if now >= self.next_scan_ns {
            self.next_scan_ns = now + TICK_NS;
            self.scan(now);
        }
        Ok(())
    }

    /// Counts what the schedule has due, and issues it where the connection may.
    fn issue_due(&mut self) {
        if self.ending {
            return;
        }
        let now = self.now_ns();
        while let Some(index) = self.schedule.as_mut().and_then(|schedule| schedule.take_due(now)) {
            self.connections[index].turns.due += 1;
            self.backlog += 1;
            self.refill(index, now);
        }
        self.tally.backlog.most = self.tally.backlog.most.max(self.backlog);
    }

    /// Opens connections again whose time has come, and ends those that wait in vain.
    fn scan(&mut self, now: u64) {
        let mut waiting = std::mem::take(&mut self.vacant);
        waiting.retain(|&index| {
            let State::Vacant { retry_ns } = self.connections[index].state else { return false };
            if retry_ns > now || self.ending {
                return !self.ending;
            }
            self.tally.reopened += 1;
            self.open(index);
            false
        });
        // Opening may have failed at once and put a connection back.
        waiting.append(&mut self.vacant);
        self.vacant = waiting;

        let timeout = self.config.timeout.as_nanos() as u64;
        if !self.running || self.ending {
            return;
        }
        for index in 0..self.connections.len() {
            let connection = &self.connections[index];
            let late =
                connection.outstanding() > 0 && now.saturating_sub(connection.heard_ns) > timeout;
            if late {
                // Each of them is a request without its reply; the fault counts one.
                self.tally.errors.timeout += connection.outstanding() - 1;
                self.fault(index, ErrorKind::Timeout, || "no reply in time".into());
            }
        }
    }

    fn report_progress(&mut self, phase: Phase, callback: &mut Option<Callback<'_>>) {
        let now = self.now_ns();
        if now >= self.next_progress_ns {
            self.next_progress_ns = now + PROGRESS_NS;
            self.publish();
            if let Some(callback) = callback {
                callback(look(self.shared, phase));
            }
        }
    }

    pub(super) fn publish(&self) {
        let counts = &self.shared.counts[self.index];
        counts.served.store(self.tally.served as u64, Ordering::Relaxed);
        counts.requests.store(self.tally.requests, Ordering::Relaxed);
        counts.since_settling.store(self.since_settling, Ordering::Relaxed);
        counts.errors.store(self.tally.errors.total(), Ordering::Relaxed);
    }

    /// Begins to connect. Its requests are issued at once: the first of them pay for the handshake.
    fn open(&mut self, index: usize) {
        let now = self.now_ns();
        let opened = connect(self.config.addr, self.sources.next()).and_then(|mut stream| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, Token(index), interest)?;
            Ok(stream)
        });
        match opened {
            Ok(stream) => {
                let reader = self.traffic.reader(self.serial);
                self.serial += self.config.threads as u64;
                self.connections[index].reopen(stream, reader, now);
                if self.running && index < self.active {
                    self.refill(index, now);
                } else {
                    self.connections[index].requests = 1;
                }
            }
            Err(error) => self.fault(index, ErrorKind::Connect, || error.to_string()),
        }
    }

    /// Counts a fault and closes its connection, to be opened again a little later.
    fn fault(&mut self, index: usize, kind: ErrorKind, what: impl FnOnce() -> String) {
        self.tally.errors.count(kind, what);
        let retry_ns = self.now_ns() + RETRY_NS;
        let running = self.running;
        let connection = &mut self.connections[index];
        connection.stream = None;
        (connection.requests, connection.replies) = (0, 0);
        if running {
            connection.state = State::Vacant { retry_ns };
            self.vacant.push(index);
        } else {
            connection.state = State::Retired;
        }
    }

    fn handle(&mut self, index: usize, readable: bool, ended: bool) {
        let connection = &mut self.connections[index];
        let Some(stream) = &connection.stream else { return };
        if connection.state == State::Connecting {
            match connected(stream) {
                Ok(true) => {
                    let active = self.running && index < self.active;
                    connection.state = if active { State::Open } else { State::Greeting };
                }
                Ok(false) => return,
                Err(error) => {
                    return self.fault(index, ErrorKind::Connect, || error.to_string());
                }
            }
        }
        // With requests unwritten this event may be the one that says there is room again.
        self.flush(index);
        if readable {
            self.receive(index, ended);
        }
    }

    /// Writes what is issued; a failure is a fault of the connection.
    fn flush(&mut self, index: usize) {
        match self.connections[index].flush(&self.traffic) {
            Ok(bytes) => self.tally.bytes_sent += if self.measuring { bytes } else { 0 },
            Err(error) => self.fault(index, ErrorKind::Write, || error.to_string()),
        }
    }

    /// Reads until the socket is drained, verifies, and issues what may follow.
    fn receive(&mut self, index: usize, ended: bool) {
        loop {
            let connection = &mut self.connections[index];
            let (Some(stream), Some(reader)) = (&mut connection.stream, &mut connection.reader)
            else {
                return;
            };
            let length = match stream.read(&mut self.buffer) {
                Ok(0) => {
                    let due = connection.outstanding();
                    return self.fault(index, ErrorKind::Read, || {
                        format!("closed by the server with {due} replies due")
                    });
                }
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return self.fault(index, ErrorKind::Read, || error.to_string()),
            };
            let now = self.shared.start.elapsed().as_nanos() as u64;
            let outstanding = connection.requests - connection.replies;
            let replies = match self.traffic.receive(reader, &self.buffer[..length], outstanding) {
                Ok(replies) => replies,
                Err(fault) => return self.fault(index, ErrorKind::Verify, || fault.0),
            };
            if replies > 0 {
                connection.heard_ns = now;
            }
            if self.measuring {
                self.tally.bytes_received += length as u64;
            }
            if connection.state == State::Greeting {
                if replies == 1 {
                    connection.replies = 1;
                    connection.state = State::Open;
                    self.tally.served += usize::from(!self.running);
                }
            } else if replies > 0 {
                self.answered(index, replies, now);
            }
            // A short read means drained, unless the end of the stream is what comes next.
            if length < self.buffer.len() && !ended {
                return;
            }
        }
    }

    /// Records the replies' latencies and issues what may follow them.
    fn answered(&mut self, index: usize, replies: u64, now: u64) {
        let pipeline = self.config.pipeline as u64;
        let connection = &mut self.connections[index];
        self.tally.slices.advance(now);
        let places = &self.starts_ns[index * self.config.pipeline..][..self.config.pipeline];
        for reply in connection.replies..connection.replies + replies {
            let start_ns = places[(reply % pipeline) as usize];
            if start_ns >= self.measured_from_ns {
                self.tally.slices.record(now.saturating_sub(start_ns));
            }
        }
        connection.replies += replies;
        if self.settling {
            self.since_settling += replies;
        }
        if self.measuring {
            self.tally.requests += replies;
            self.tally.slices.replies(replies);
            connection.measured += replies;
        }
        if self.is_worn_out(index) && !self.ending {
            self.renew(index);
        } else {
            self.refill(index, now);
        }
    }

    /// Whether a connection has had all the requests that it is to have.
    fn is_worn_out(&self, index: usize) -> bool {
        self.config.churn.is_some_and(|churn| self.connections[index].replies >= churn)
    }

    /// Closes a connection and opens another in its place.
    fn renew(&mut self, index: usize) {
        self.connections[index].stream = None;
        self.tally.reopened += 1;
        self.open(index);
    }

    /// Issues as many requests as may be outstanding and are due, and writes them.
    fn refill(&mut self, index: usize, now: u64) {
        let connection = &mut self.connections[index];
        if self.ending
            || index >= self.active
            || !matches!(connection.state, State::Open | State::Connecting)
        {
            return;
        }
        let pipeline = self.config.pipeline as u64;
        let churn = self.config.churn.unwrap_or(u64::MAX);
        let before = connection.requests;
        while connection.outstanding() < pipeline && connection.requests < churn {
            let start_ns = match &self.schedule {
                Some(schedule) => match connection.turns.issue(schedule, index) {
                    Some(intended) => {
                        self.backlog -= 1;
                        intended
                    }
                    None => break,
                },
                None => now,
            };
            if connection.outstanding() == 0 {
                connection.heard_ns = now;
            }
            let place = index * self.config.pipeline + (connection.requests % pipeline) as usize;
            self.starts_ns[place] = start_ns;
            connection.requests += 1;
        }
        if connection.requests > before && connection.state == State::Open {
            self.flush(index);
        }
    }
}

/// Waits for events until `wait_ns` have passed. The selector's own time-outs are whole
/// milliseconds, which a schedule of many requests per millisecond cannot wait for.
pub(crate) fn poll_until(poll: &mut Poll, events: &mut Events, wait_ns: u64) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "freebsd"))]
    if wait_ns > 0 {
        let mut selector = libc::pollfd { fd: poll.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let timeout = libc::timespec {
            tv_sec: (wait_ns / 1_000_000_000) as libc::time_t,
            tv_nsec: (wait_ns % 1_000_000_000) as libc::c_long,
        };
        // SAFETY: one pollfd and one timespec, both living across the call; a null mask changes
        // no signal. Its result does not matter: the poll below sees what there is.
        unsafe { libc::ppoll(&raw mut selector, 1, &raw const timeout, std::ptr::null()) };
        return poll.poll(events, Some(Duration::ZERO));
    }
    let _ = poll.as_raw_fd();
    poll.poll(events, Some(Duration::from_nanos(wait_ns)))
}

/// How long the calling thread has been ready to run while its core ran something else; zero where
/// the system does not tell. Allocates nothing.
fn thread_wait_for_core() -> Duration {
    let mut text = [0; 128];
    let length = std::fs::File::open("/proc/thread-self/schedstat")
        .and_then(|mut file| file.read(&mut text))
        .unwrap_or(0);
    let waited = str::from_utf8(&text[..length])
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse().ok());
    Duration::from_nanos(waited.unwrap_or(0))
}
