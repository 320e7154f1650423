//! One look at a process: everything that may be read of it now.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::meters::{Census, Counts, Memory, Sockets, Threads, cpu_time, with_descendants};

/// What a process and its children had used and held at one time.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When it was taken.
    pub at: Instant,
    /// The process, and its children.
    pub processes: Vec<u32>,
    /// What they asked of the kernel since counting began.
    pub counts: Option<Counts>,
    /// CPU time of each of them since it began, threads that have ended included; without those whose
    /// clock could not be read.
    pub cpu: Vec<(u32, Duration)>,
    /// Their threads.
    pub threads: Threads,
    /// Their sockets.
    pub sockets: Option<Sockets>,
    /// Their memory.
    pub memory: Held,
    /// What each of them had read and written by read(2), write(2) and their like.
    pub transfers: Option<Vec<(u32, Transfers)>>,
    /// What could not be read, each with its reason.
    pub not_seen: Vec<String>,
}

/// Memory of processes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Held {
    /// Resident, shared pages in full.
    pub resident: u64,
    /// Resident, shared pages by the part that falls to them; `None` if this may not be read.
    pub proportional: Option<u64>,
    /// Resident pages that are their own and no file's.
    pub private: u64,
    /// Page tables.
    pub page_tables: u64,
    /// Address space that is reserved, resident or not.
    pub reserved: u64,
}

/// What processes transferred by read(2), write(2) and their like, sendfile(2) included. What they
/// received and sent otherwise, by recv(2), send(2) or io_uring, is not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Transfers {
    /// Calls that read.
    pub reads: u64,
    /// Calls that wrote.
    pub writes: u64,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Bytes that were written.
    pub bytes_written: u64,
}

impl Sample {
    pub(super) fn take(process: u32, census: Option<&mut Census>) -> io::Result<Sample> {
        let mut not_seen = Vec::new();
        let counts = census.and_then(|census| {
            census.read().map_err(|error| not_seen.push(format!("system calls: {error}"))).ok()
        });
        let at = Instant::now();
        let processes = with_descendants(process);
        let cpu = clocks(&processes);
        // Without its threads there is nothing left to look at.
        let threads = Threads::of(&processes[..1])?;
        let threads = if processes.len() > 1 { Threads::of(&processes)? } else { threads };
        if threads.all.iter().all(|thread| thread.state == 'Z') {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("process {process} has ended"),
            ));
        }
        let sockets = Sockets::of(&processes)
            .map_err(|error| not_seen.push(format!("sockets: {error}")))
            .ok();
        not_seen.extend(sockets.iter().flat_map(|sockets| sockets.missing.clone()));
        let mut memory = Held::default();
        let mut transfers = Some(Vec::new());
        for &process in &processes {
            match Held::of(process) {
                Ok((held, refusal)) => {
                    memory = memory.plus(held);
                    not_seen.extend(refusal.map(|error| format!("proportional memory: {error}")));
                }
                Err(error) => not_seen.push(format!("memory: {error}")),
            }
            match Transfers::of(process) {
                Ok(of_one) => {
                    if let Some(all) = &mut transfers {
                        all.push((process, of_one));
                    }
                }
                Err(error) => {
                    not_seen.push(format!("bytes read and written: {error}"));
                    transfers = None;
                }
            }
        }
        Ok(Sample { at, processes, counts, cpu, threads, sockets, memory, transfers, not_seen })
    }

    /// What can be told of a process that has ended since `last`: its counts to the end, its CPU time,
    /// what it read and wrote and the switches of its first thread as long as it is not reaped, and else
    /// what `last` has.
    pub(super) fn of_ended(process: u32, census: Option<&mut Census>, last: &Sample) -> Sample {
        let mut sample = Sample { at: Instant::now(), ..last.clone() };
        match census.map(Census::read) {
            Some(Ok(counts)) => sample.counts = Some(counts),
            Some(Err(error)) => sample.not_seen.push(format!("system calls: {error}")),
            None => {}
        }
        let ended = "memory and sockets at the end: the process has ended, these are the last seen";
        sample.not_seen.push(ended.to_owned());
        for (process, now) in clocks(&sample.processes) {
            match sample.cpu.iter_mut().find(|(known, _)| *known == process) {
                Some((_, cpu)) => *cpu = now,
                None => sample.cpu.push((process, now)),
            }
        }
        for (process, transfers) in sample.transfers.iter_mut().flatten() {
            if let Ok(now) = Transfers::of(*process) {
                *transfers = now;
            }
        }
        for thread in Threads::of(&[process]).unwrap_or_default().all {
            match sample.threads.all.binary_search_by_key(&thread.id, |known| known.id) {
                Ok(at) => sample.threads.all[at] = thread,
                Err(at) => sample.threads.all.insert(at, thread),
            }
        }
        sample
    }
}

fn clocks(processes: &[u32]) -> Vec<(u32, Duration)> {
    processes.iter().filter_map(|&process| Some((process, cpu_time(process).ok()?))).collect()
}

impl Held {
    /// What anybody may read, and why there is no more if there is not.
    fn of(process: u32) -> io::Result<(Held, Option<io::Error>)> {
        match Memory::of(process) {
            Ok(memory) => Ok((
                Held {
                    resident: memory.resident,
                    proportional: Some(memory.proportional),
                    private: memory.anonymous,
                    page_tables: memory.page_tables,
                    reserved: memory.reserved,
                },
                None,
            )),
            Err(refusal) => {
                let path = format!("/proc/{process}/status");
                let status = fs::read_to_string(&path)
                    .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
                let kib = |name| number(&status, name).map_or(0, |kib| kib * 1024);
                let held = Held {
                    resident: kib("VmRSS"),
                    proportional: None,
                    private: kib("RssAnon"),
                    page_tables: kib("VmPTE"),
                    reserved: kib("VmSize"),
                };
                Ok((held, Some(refusal)))
            }
        }
    }

    fn plus(self, other: Held) -> Held {
        Held {
            resident: self.resident + other.resident,
            proportional: match (self.proportional, other.proportional) {
                // Nothing was added up yet.
                (None, proportional) if self.resident == 0 => proportional,
                (Some(sum), Some(one)) => Some(sum + one),
                _ => None,
            },
            private: self.private + other.private,
            page_tables: self.page_tables + other.page_tables,
            reserved: self.reserved + other.reserved,
        }
    }
}

impl Transfers {
    fn of(process: u32) -> io::Result<Transfers> {
        let path = format!("/proc/{process}/io");
        let text = fs::read_to_string(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
        let field = |name| number(&text, name).unwrap_or(0);
        Ok(Transfers {
            reads: field("syscr"),
            writes: field("syscw"),
            bytes_read: field("rchar"),
            bytes_written: field("wchar"),
        })
    }

    pub(super) fn plus(self, other: Transfers) -> Transfers {
        Transfers {
            reads: self.reads + other.reads,
            writes: self.writes + other.writes,
            bytes_read: self.bytes_read + other.bytes_read,
            bytes_written: self.bytes_written + other.bytes_written,
        }
    }

    pub(super) fn since(self, earlier: Transfers) -> Transfers {
        Transfers {
            reads: self.reads.saturating_sub(earlier.reads),
            writes: self.writes.saturating_sub(earlier.writes),
            bytes_read: self.bytes_read.saturating_sub(earlier.bytes_read),
            bytes_written: self.bytes_written.saturating_sub(earlier.bytes_written),
        }
    }
}

/// The number behind `name:` at the beginning of a line.
fn number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}
