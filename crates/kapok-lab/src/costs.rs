//! What a request costs a server: CPU time, system calls by kind, operations of io_uring, context
//! switches, wake-ups, copied bytes; and what a connection and a thread cost in memory.
//!
//! It takes a run of its own, beside those that are timed: counting slows a server down, by some per
//! cent where the kernel counts and many times where it has to be traced. How it was counted, and
//! what could not be, is in the result.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::load::{self, LoadConfig, LoadReport, Phase};
use crate::meters::{
    Census, Counts, Depth, JointUsage, Memory, Sockets, Stacks, Usage, call_name, operation_name,
    with_descendants,
};

/// What a server's requests, connections and threads cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Costs {
    /// Requests that were served while it was counted.
    pub requests: u64,
    /// How it was counted.
    pub counted_by: Option<String>,
    /// CPU time per request in microseconds, user and system, while it was counted.
    pub cpu_us: f64,
    /// The part of it in user space; `None` when too little was used to tell.
    pub user_us: Option<f64>,
    /// The part of it in the kernel.
    pub system_us: Option<f64>,
    /// System calls per request.
    pub calls: Option<f64>,
    /// System calls by kind, most frequent first.
    pub calls_by_kind: Vec<CallCost>,
    /// Operations of io_uring by kind, most frequent first.
    pub ring: Vec<RingCost>,
    /// Context switches per request: the server waited.
    pub voluntary_switches: f64,
    /// Context switches per request: the server was taken off its core.
    pub involuntary_switches: f64,
    /// Wake-ups of its threads per request.
    pub wakes_taken: Option<f64>,
    /// Wake-ups of anybody per request while one of its threads ran.
    pub wakes_given: Option<f64>,
    /// Bytes per request that the kernel copied from sockets to the server, by what its TCP sockets
    /// have received; `None` where connections are closed and opened meanwhile (churn), since what is
    /// closed has no counts any more.
    pub bytes_in: Option<f64>,
    /// Bytes per request that the kernel copied from the server to sockets, likewise.
    pub bytes_out: Option<f64>,
    /// What one more connection takes.
    pub connection: ConnectionCost,
    /// Threads with all connections open.
    pub threads: u64,
    /// Their stacks in user space; `None` if they may not be looked for.
    pub stacks: Option<Stacks>,
    /// What could not be counted, each with its reason.
    pub missing: Vec<String>,
}

/// One kind of system call.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CallCost {
    /// As strace(1) has it.
    pub name: String,
    /// Calls per request.
    pub per_request: f64,
    /// Those of them that failed.
    pub errors_per_request: Option<f64>,
    /// Microseconds per request between entering and leaving, waiting included.
    pub us_per_request: Option<f64>,
}

/// One kind of operation of io_uring.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RingCost {
    /// As in `io_uring_prep_*`.
    pub name: String,
    /// Submissions per request.
    pub submitted_per_request: f64,
    /// Completions per request.
    pub landed_per_request: f64,
    /// Those of them that were errors.
    pub errors_per_request: f64,
}

/// Bytes that one more connection takes, after one message; `None` if there was but one.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ConnectionCost {
    /// The server's own pages: heaps and stacks.
    pub private: Option<f64>,
    /// Page tables.
    pub page_tables: Option<f64>,
    /// What the kernel holds for the data of the server's end of it.
    pub socket_buffers: Option<f64>,
}

/// What one process and its children had used, held and done at one time.
struct Reading {
    memory: (u64, u64),
    sockets: Option<Sockets>,
    usage: Option<JointUsage>,
    counts: Option<Counts>,
}

/// Loads the server whose first process is `pid` and counts. It should run already and have nothing
/// else to do.
///
/// # Errors
///
/// The load's own, as for [`load::run`]; `Interrupted` if it was stopped. What cannot be counted is no
/// error: it is missing in the result, with the reason.
pub fn measure(pid: u32, load_config: &LoadConfig) -> io::Result<Costs> {
    let mut missing = Vec::new();
    let mut family = with_descendants(pid);
    let census = match &family[..] {
        [one] => Census::at_any_price(*one),
        several => Census::in_kernel(several, Depth::Everything),
    };
    let mut census = census.map_err(|error| missing.push(format!("system calls: {error}"))).ok();
    let counted_by = census.as_ref().map(|census| census.source().to_string());
    missing.extend(census.iter().flat_map(|census| census.missing().to_vec()));

    let (mut first, mut all, mut before, mut after) = (None, None, None, None);
    let (mut threads, mut stacks, mut connected) = (0, None, 0);
    let (mut phase, mut since_settling) = (None, 0);
    let report = load::run(load_config, &mut |progress| {
        // Connecting is told of all along; what counts is its first connection, served.
        let too_early = progress.phase == Phase::Connecting && progress.served == 0;
        if phase == Some(progress.phase) || too_early {
            return;
        }
        phase = Some(progress.phase);
        match progress.phase {
            // Workers may be made after the first of them listens, and for connections.
            Phase::Connecting => {
                family = with_descendants(pid);
                first = Some(Reading::held(&family, &mut missing));
            }
            Phase::WarmUp => {
                family = with_descendants(pid);
                all = Some(Reading::held(&family, &mut missing));
                connected = progress.served;
                let found = family.iter().map(|&process| Stacks::of(process));
                stacks = found.collect::<io::Result<Vec<_>>>().map_or_else(
                    |error| {
                        missing.push(format!("stacks of threads: {error}"));
                        None
                    },
                    |all| Some(all.into_iter().fold(Stacks::default(), sum_of_stacks)),
                );
                threads = JointUsage::at_end(&family).map_or(0, |usage| usage.threads());
            }
            Phase::Settling => before = Some(Reading::ahead(&family)),
            Phase::Measuring => {
                before = before.take().map(|reading| reading.begin(census.as_mut()));
            }
            Phase::Draining => {
                after = Some(Reading::end(&family, census.as_mut()));
                since_settling = progress.since_settling;
            }
        }
    })?;
    drop(census);
    if report.stopped_early {
        return Err(io::ErrorKind::Interrupted.into());
    }
    let (Some(mut before), Some(after)) = (before, after) else {
        return Err(io::Error::other("the load ended before it was measured"));
    };
    if load_config.churn.is_some() {
        // A socket takes its counts with it when it is closed.
        before.sockets = None;
        missing.push(
            "bytes in and out: connections were closed meanwhile, and their counts with them"
                .into(),
        );
    }
    missing.sort();
    missing.dedup();
    Ok(Costs {
        connection: connection(first.as_ref(), all.as_ref(), connected),
        threads,
        stacks,
        counted_by,
        ..per_request(&before, &after, &report, since_settling, missing)
    })
}

/// How long counting should take for figures per request to be steady.
pub const INTERVAL: Duration = Duration::from_millis(700);

fn sum_of_stacks(sum: Stacks, one: Stacks) -> Stacks {
    Stacks {
        found: sum.found + one.found,
        reserved: sum.reserved + one.reserved,
        resident: sum.resident + one.resident,
    }
}

impl Reading {
    fn of_memory(family: &[u32], missing: &mut Vec<String>) -> (u64, u64) {
        family.iter().fold((0, 0), |(private, tables), &process| match Memory::of(process) {
            Ok(memory) => (private + memory.anonymous, tables + memory.page_tables),
            Err(error) => {
                missing.push(format!("memory: {error}"));
                (private, tables)
            }
        })
    }

    /// What is held between two intervals.
    fn held(family: &[u32], missing: &mut Vec<String>) -> Reading {
        let sockets =
            Sockets::of(family).map_err(|error| missing.push(format!("sockets: {error}")));
        let memory = Reading::of_memory(family, missing);
        Reading { memory, sockets: sockets.ok(), usage: None, counts: None }
    }

    /// A moment before an interval begins: what takes long.
    fn ahead(family: &[u32]) -> Reading {
        let sockets = Sockets::of(family).ok();
        let usage = JointUsage::at_start(family).ok();
        Reading { memory: (0, 0), sockets, usage, counts: None }
    }

    /// As it begins: the rest.
    fn begin(mut self, census: Option<&mut Census>) -> Reading {
        self.counts = census.and_then(|census| census.read().ok());
        self.usage = self.usage.and_then(|usage| usage.begins_now().ok());
        self
    }

    /// As an interval ends: what takes long last.
    fn end(family: &[u32], census: Option<&mut Census>) -> Reading {
        let counts = census.and_then(|census| census.read().ok());
        let usage = JointUsage::at_end(family).ok();
        Reading { memory: (0, 0), sockets: Sockets::of(family).ok(), usage, counts }
    }
}

fn connection(
    first: Option<&Reading>,
    all: Option<&Reading>,
    connections: usize,
) -> ConnectionCost {
    let (Some(first), Some(all), 2..) = (first, all, connections) else {
        return ConnectionCost::default();
    };
    let each = |all: u64, first: u64| all.saturating_sub(first) as f64 / (connections - 1) as f64;
    let buffers = |reading: &Reading| Some(reading.sockets.as_ref()?.memory().total());
    ConnectionCost {
        private: Some(each(all.memory.0, first.memory.0)),
        page_tables: Some(each(all.memory.1, first.memory.1)),
        socket_buffers: buffers(all).zip(buffers(first)).map(|(all, first)| each(all, first)),
    }
}

/// Everything that is counted per request; the rest is left empty.
fn per_request(
    before: &Reading,
    after: &Reading,
    report: &LoadReport,
    since_settling: u64,
    missing: Vec<String>,
) -> Costs {
    // What was read ahead is about a few replies more.
    let of_all = |count: u64| count as f64 / since_settling.max(1) as f64;
    let each = |count: f64| count / report.requests.max(1) as f64;
    let used = before.usage.as_ref().zip(after.usage.as_ref());
    let used = used.map_or_else(Usage::default, |(before, after)| after.since(before));
    let cpu_us = each(used.cpu.as_secs_f64() * 1e6);
    let system = used.system_share();
    let counts = before.counts.as_ref().zip(after.counts.as_ref());
    let counts = counts.map(|(before, after)| after.since(before));
    let moved = before.sockets.as_ref().zip(after.sockets.as_ref());
    let moved = moved.map(|(before, after)| after.moved_since(before));
    let kinds = counts.as_ref().and_then(|counts| counts.calls.as_ref());
    let mut calls_by_kind: Vec<CallCost> = kinds
        .into_iter()
        .flatten()
        .map(|(&number, call)| CallCost {
            name: call_name(number),
            per_request: each(call.made as f64),
            errors_per_request: call.errors().map(|errors| each(errors as f64)),
            us_per_request: call.nanoseconds().map(|ns| each(ns as f64 / 1e3)),
        })
        .collect();
    calls_by_kind.sort_by(|a, b| b.per_request.total_cmp(&a.per_request));
    let operations = counts.as_ref().and_then(|counts| counts.ring.as_ref());
    let mut ring: Vec<RingCost> = operations
        .into_iter()
        .flatten()
        .map(|(&number, count)| RingCost {
            name: operation_name(number),
            submitted_per_request: each(count.submitted as f64),
            landed_per_request: each(count.landed as f64),
            errors_per_request: each(count.errors as f64),
        })
        .collect();
    ring.sort_by(|a, b| b.landed_per_request.total_cmp(&a.landed_per_request));
    let woken = |of: fn(&Counts) -> Option<u64>| Some(each(of(counts.as_ref()?)? as f64));
    Costs {
        requests: report.requests,
        counted_by: None,
        cpu_us,
        user_us: system.map(|share| cpu_us * (1.0 - share)),
        system_us: system.map(|share| cpu_us * share),
        calls: counts.as_ref().map(|counts| each(counts.total as f64)),
        calls_by_kind,
        ring,
        voluntary_switches: of_all(used.switches.voluntary),
        involuntary_switches: of_all(used.switches.involuntary),
        wakes_taken: woken(|counts| counts.wakes_taken),
        wakes_given: woken(|counts| counts.wakes_given),
        bytes_in: moved.map(|(received, _)| of_all(received)),
        bytes_out: moved.map(|(_, sent)| of_all(sent)),
        connection: ConnectionCost::default(),
        threads: 0,
        stacks: None,
        missing,
    }
}
