//! What lies between two samples, in the form in which it is shown.

use std::time::Duration;

use serde::Serialize;

use super::sample::{Held, Sample, Transfers};
use crate::meters::{SocketMemory, Threads, call_name, operation_name};

/// How many sockets are shown for themselves.
const SOCKETS: usize = 8;

/// How far the CPU time of a thread that runs may be behind.
const TICK: Duration = Duration::from_millis(10);

/// What a process and its children did between two samples, and what they held at the second.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The process.
    pub process: u32,
    /// Its program, as the kernel names it.
    pub name: String,
    /// The process and its children.
    pub processes: Vec<u32>,
    /// The time between the samples, in seconds.
    pub seconds: f64,
    /// How system calls were counted, if they were.
    pub counted_by: Option<String>,
    /// CPU time per second, threads that have ended included: 1 is one core, wholly used.
    pub cores_used: f64,
    /// System calls of all kinds.
    pub calls: Option<u64>,
    /// System calls by kind, most frequent first.
    pub calls_by_kind: Vec<CallLine>,
    /// Operations of io_uring by kind, most frequent first.
    pub ring: Vec<RingLine>,
    /// How often its threads were woken.
    pub wakes_taken: Option<u64>,
    /// How often anybody was woken while one of them ran.
    pub wakes_given: Option<u64>,
    /// Context switches: they waited. Those of threads that have ended are missing; if there are such,
    /// [`not_seen`](Report::not_seen) says so.
    pub voluntary_switches: u64,
    /// Context switches: they were taken off their cores, likewise.
    pub involuntary_switches: u64,
    /// What was read and written by read(2), write(2) and their like.
    pub transfers: Option<Transfers>,
    /// How many sockets are in each state; `None` if they are not seen.
    pub sockets: Option<Vec<StateLine>>,
    /// What the kernel holds for the data of all sockets.
    pub socket_memory: Option<SocketMemory>,
    /// Listeners, and the sockets with the longest queues.
    pub notable_sockets: Vec<SocketLine>,
    /// Threads, most CPU time first.
    pub threads: Vec<ThreadLine>,
    /// Memory.
    pub memory: Held,
    /// What is not in here, each with its reason.
    pub not_seen: Vec<String>,
}

/// One kind of system call.
#[derive(Clone, Debug, Serialize)]
pub struct CallLine {
    /// As strace(1) has it.
    pub name: String,
    /// How often it was made.
    pub count: u64,
    /// The same per second.
    pub per_second: f64,
    /// How often it failed, `would_block` included: this and what follows by a sample, if it is
    /// frequent.
    pub errors: Option<u64>,
    /// How often it found nothing to do (`EAGAIN`).
    pub would_block: Option<u64>,
    /// Seconds between entering and leaving, over all threads, waiting included.
    pub seconds: Option<f64>,
    /// Microseconds a call took on average, waiting included.
    pub us_each: Option<f64>,
}

/// One kind of operation of io_uring.
#[derive(Clone, Debug, Serialize)]
pub struct RingLine {
    /// As in `io_uring_prep_*`.
    pub name: String,
    /// How often one was submitted.
    pub submitted: u64,
    /// Submissions per second.
    pub per_second: f64,
    /// Completions, if they are counted.
    pub landed: Option<u64>,
    /// Completions with an error, likewise.
    pub errors: Option<u64>,
}

/// Sockets in one state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StateLine {
    /// `tcp`, `udp` or `unix`.
    pub protocol: String,
    /// As ss(8) has it.
    pub state: String,
    /// How many.
    pub count: usize,
    /// Bytes that came and were not read, over all of them; for listeners, connections.
    pub receive_queue: u64,
    /// Bytes that were written and are not acknowledged; 0 for listeners.
    pub send_queue: u64,
    /// Segments that were sent again since their sockets were connected.
    pub retransmits: u64,
}

/// One socket.
#[derive(Clone, Debug, Serialize)]
pub struct SocketLine {
    /// `tcp`, `udp` or `unix`.
    pub protocol: String,
    /// As ss(8) has it.
    pub state: String,
    /// Its own address.
    pub local: String,
    /// The other end's.
    pub peer: Option<String>,
    /// As in [`StateLine`].
    pub receive_queue: u32,
    /// As ss(8) has it: for a listener, how many connections may wait.
    pub send_queue: u32,
    /// Segments that were sent again.
    pub retransmits: u32,
}

/// One thread.
#[derive(Clone, Debug, Serialize)]
pub struct ThreadLine {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// As in proc_pid_stat(5).
    pub state: char,
    /// The share of a core that it used.
    pub cpu_share: f64,
    /// The share of the time for which it was ready and had no core.
    pub ready_share: Option<f64>,
    /// Context switches: it waited.
    pub voluntary: u64,
    /// Context switches: it was taken off its core.
    pub involuntary: u64,
}

/// The CPU time of all processes between two samples; of one without a clock, that of its threads.
fn processor_time(from: &Sample, to: &Sample, used: &Threads) -> Duration {
    let clock = |sample: &Sample, process| {
        let mut clocks = sample.cpu.iter();
        clocks.find(|(known, _)| *known == process).map(|(_, cpu)| *cpu)
    };
    let of_threads = |process| {
        let them = used.all.iter().filter(|thread| thread.process == process);
        Duration::from_nanos(them.map(|thread| thread.cpu_ns).sum())
    };
    let each = to.processes.iter().map(|&process| match clock(to, process) {
        // One that began since counts from its beginning.
        Some(now) => now.saturating_sub(clock(from, process).unwrap_or_default()),
        None => of_threads(process),
    });
    each.sum()
}

/// What all processes read and wrote between two samples; one that began since counts from its beginning.
fn transferred(from: &Sample, to: &Sample) -> Option<Transfers> {
    let (then, now) = (from.transfers.as_ref()?, to.transfers.as_ref()?);
    let each = now.iter().map(|(process, now)| {
        let then = then.iter().find(|(known, _)| known == process);
        now.since(then.map_or_else(Transfers::default, |(_, then)| *then))
    });
    Some(each.fold(Transfers::default(), Transfers::plus))
}

/// What is not in a report because those who had it have ended. Threads that began and ended between the
/// samples are known by the CPU time that no thread has.
fn ended_since(from: &Sample, to: &Sample, used: &Threads, cpu: Duration) -> Vec<String> {
    let listed = |id: u32| to.threads.all.binary_search_by_key(&id, |thread| thread.id).is_ok();
    let of_threads = Duration::from_nanos(used.all.iter().map(|thread| thread.cpu_ns).sum());
    // Of one that runs, the CPU time is as of the last tick.
    let running = used.all.iter().filter(|thread| thread.state == 'R').count() as u32;
    let unknown = cpu.saturating_sub(of_threads);
    let threads = from.threads.all.iter().any(|thread| !listed(thread.id))
        || unknown > TICK * (running + 1) && unknown > cpu / 20;
    let processes = from.processes.iter().any(|process| !to.processes.contains(process));
    let mut missing = Vec::new();
    if threads {
        missing.push("context switches of threads that have ended".to_owned());
    }
    if processes {
        missing.push("CPU time and bytes of processes that have ended".to_owned());
    }
    missing
}

impl Report {
    pub(super) fn between(
        process: u32,
        counted_by: Option<String>,
        not_counted: &[String],
        from: &Sample,
        to: &Sample,
    ) -> Report {
        let seconds = to.at.duration_since(from.at).as_secs_f64();
        let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let counts = to.counts.as_ref().zip(from.counts.as_ref());
        let counts = counts.map(|(now, then)| now.since(then));

        let mut calls_by_kind: Vec<CallLine> = counts
            .iter()
            .filter_map(|counts| counts.calls.as_ref())
            .flatten()
            .map(|(&number, call)| CallLine {
                name: call_name(number),
                count: call.made,
                per_second: per_second(call.made),
                errors: call.errors(),
                would_block: call.would_block(),
                seconds: call.nanoseconds().map(|ns| ns as f64 / 1e9),
                us_each: call.nanoseconds().map(|ns| ns as f64 / 1e3 / call.made.max(1) as f64),
            })
            .collect();
        calls_by_kind.sort_by_key(|line| std::cmp::Reverse(line.count));
        let mut ring: Vec<RingLine> = counts
            .iter()
            .filter_map(|counts| counts.ring.as_ref())
            .flatten()
            .map(|(&number, count)| RingLine {
                name: operation_name(number),
                submitted: count.submitted,
                per_second: per_second(count.submitted),
                landed: Some(count.landed),
                errors: Some(count.errors),
            })
            .collect();
        ring.sort_by_key(|line| std::cmp::Reverse(line.submitted.max(line.landed.unwrap_or(0))));

        let used = to.threads.since(&from.threads);
        let mut threads: Vec<ThreadLine> = used
            .all
            .iter()
            .map(|thread| ThreadLine {
                id: thread.id,
                name: thread.name.clone(),
                state: thread.state,
                cpu_share: per_second(thread.cpu_ns) / 1e9,
                ready_share: thread.ready_ns.map(|ns| per_second(ns) / 1e9),
                voluntary: thread.voluntary,
                involuntary: thread.involuntary,
            })
            .collect();
        threads.sort_by(|a, b| b.cpu_share.total_cmp(&a.cpu_share));

        let cpu = processor_time(from, to, &used);
        let mut not_seen: Vec<String> =
            not_counted.iter().chain(&from.not_seen).chain(&to.not_seen).cloned().collect();
        not_seen.extend(ended_since(from, to, &used, cpu));
        not_seen.sort();
        not_seen.dedup();
        let name = used.all.iter().find(|thread| thread.id == process);
        let mut report = Report {
            process,
            name: name.map_or_else(String::new, |thread| thread.name.clone()),
            processes: to.processes.clone(),
            seconds,
            counted_by,
            cores_used: if seconds > 0.0 { cpu.as_secs_f64() / seconds } else { 0.0 },
            calls: counts.as_ref().map(|counts| counts.total),
            calls_by_kind,
            ring,
            wakes_taken: counts.as_ref().and_then(|counts| counts.wakes_taken),
            wakes_given: counts.as_ref().and_then(|counts| counts.wakes_given),
            voluntary_switches: threads.iter().map(|thread| thread.voluntary).sum(),
            involuntary_switches: threads.iter().map(|thread| thread.involuntary).sum(),
            transfers: transferred(from, to),
            sockets: None,
            socket_memory: to.sockets.as_ref().map(|sockets| sockets.memory()),
            notable_sockets: Vec::new(),
            threads,
            memory: to.memory,
            not_seen,
        };
        report.take_sockets(to);
        report
    }

    /// Completions were not counted: that there were none is not known.
    pub(super) fn forget_landings(&mut self) {
        for line in &mut self.ring {
            line.landed = None;
            line.errors = None;
        }
    }

    fn take_sockets(&mut self, to: &Sample) {
        let Some(sockets) = &to.sockets else { return };
        let mut states: Vec<StateLine> = Vec::new();
        for ((protocol, state), count) in sockets.states() {
            let them =
                || sockets.all.iter().filter(|one| one.protocol == protocol && one.state == state);
            let listens = state == "LISTEN";
            states.push(StateLine {
                protocol: protocol.to_owned(),
                state: state.to_owned(),
                count,
                receive_queue: them().map(|socket| u64::from(socket.receive_queue)).sum(),
                send_queue: if listens {
                    0
                } else {
                    them().map(|socket| u64::from(socket.send_queue)).sum()
                },
                retransmits: them().map(|socket| u64::from(socket.retransmits)).sum(),
            });
        }
        self.sockets = Some(states);
        let mut notable: Vec<_> = sockets
            .all
            .iter()
            .filter(|socket| {
                socket.state == "LISTEN"
                    || socket.receive_queue + socket.send_queue > 0
                    || socket.retransmits > 0
            })
            .collect();
        notable.sort_by_key(|socket| {
            let queued = u64::from(socket.receive_queue) + u64::from(socket.send_queue);
            (socket.state != "LISTEN", std::cmp::Reverse(queued))
        });
        self.notable_sockets = notable
            .into_iter()
            .take(SOCKETS)
            .map(|socket| SocketLine {
                protocol: socket.protocol.to_owned(),
                state: socket.state.to_owned(),
                local: socket.local.clone(),
                peer: socket.peer.clone(),
                receive_queue: socket.receive_queue,
                send_queue: socket.send_queue,
                retransmits: socket.retransmits,
            })
            .collect();
    }
}
