//! The threads of a process, each for itself.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

/// One thread.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Thread {
    /// Its number.
    pub id: u32,
    /// The process it belongs to.
    pub process: u32,
    /// Its name.
    pub name: String,
    /// `R` runs or is ready, `S` waits, `D` waits for a device, and so on (proc_pid_stat(5)).
    pub state: char,
    /// CPU time, in nanoseconds.
    pub cpu_ns: u64,
    /// Time for which it was ready and had no processor, in nanoseconds; `None` if the kernel does not
    /// count it.
    pub ready_ns: Option<u64>,
    /// Context switches: it waited for something.
    pub voluntary: u64,
    /// Context switches: it was taken off its core.
    pub involuntary: u64,
}

/// All threads of one process or several.
#[derive(Clone, Debug, Default)]
pub struct Threads {
    /// Ordered by number.
    pub all: Vec<Thread>,
}

impl Threads {
    /// Reads the threads of `processes`. One that ends meanwhile is left out.
    ///
    /// # Errors
    ///
    /// The only process that was given is gone.
    pub fn of(processes: &[u32]) -> io::Result<Threads> {
        let mut all = Vec::new();
        for &process in processes {
            let path = format!("/proc/{process}/task");
            let tasks = match fs::read_dir(&path) {
                Ok(tasks) => tasks,
                Err(error) if processes.len() == 1 => {
                    return Err(io::Error::new(error.kind(), format!("{path}: {error}")));
                }
                Err(_) => continue,
            };
            all.extend(tasks.map_while(Result::ok).filter_map(|task| {
                read(process, &task.path().to_string_lossy(), task.file_name().to_str()?)
            }));
        }
        all.sort_by_key(|thread| thread.id);
        Ok(Threads { all })
    }

    /// What each used since `earlier`; threads that began since count from their beginning.
    #[must_use]
    pub fn since(&self, earlier: &Threads) -> Threads {
        let before = |id| {
            let found = earlier.all.binary_search_by_key(&id, |thread: &Thread| thread.id);
            found.ok().map(|at| &earlier.all[at])
        };
        let all = self.all.iter().map(|now| {
            let Some(then) = before(now.id) else { return now.clone() };
            Thread {
                cpu_ns: now.cpu_ns.saturating_sub(then.cpu_ns),
                ready_ns: now.ready_ns.map(|ns| ns.saturating_sub(then.ready_ns.unwrap_or(0))),
                voluntary: now.voluntary.saturating_sub(then.voluntary),
                involuntary: now.involuntary.saturating_sub(then.involuntary),
                ..now.clone()
            }
        });
        Threads { all: all.collect() }
    }
}

fn read(process: u32, path: &str, id: &str) -> Option<Thread> {
    let stat = fs::read_to_string(format!("{path}/stat")).ok()?;
    let status = fs::read_to_string(format!("{path}/status")).ok()?;
    let (front, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    // Nanoseconds where the kernel has them, else ticks of 10 ms.
    let schedule = fs::read_to_string(format!("{path}/schedstat")).ok();
    let mut exact = schedule.iter().flat_map(|text| text.split_whitespace());
    let mut exact = || exact.next()?.parse::<u64>().ok();
    let (ran, ready_ns) = (exact(), exact());
    Some(Thread {
        id: id.parse().ok()?,
        process,
        name: front.split_once('(')?.1.to_owned(),
        state: fields.first()?.chars().next()?,
        cpu_ns: match ran {
            Some(ran) => ran,
            None => (ticks(11)? + ticks(12)?) * 10_000_000,
        },
        ready_ns,
        voluntary: field(&status, "voluntary_ctxt_switches")?,
        involuntary: field(&status, "nonvoluntary_ctxt_switches")?,
    })
}

/// The number behind `name:` at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The stacks of a process's threads, in user space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Stacks {
    /// Threads whose stack was found: those that wait in the kernel.
    pub found: u64,
    /// Bytes of address space that are reserved for them.
    pub reserved: u64,
    /// Bytes of them that are in memory.
    pub resident: u64,
}

impl Stacks {
    /// Finds the stacks of the threads of `process`: the mappings in which their stack pointers are. A
    /// thread that runs meanwhile is not found. Fibers' stacks are other mappings and not in this. The
    /// kernel walks the page tables for it: not for a timed interval.
    ///
    /// # Errors
    ///
    /// The process is gone, or may not be looked into so closely: that takes what tracing takes.
    pub fn of(process: u32) -> io::Result<Stacks> {
        let read = |path: String| {
            fs::read_to_string(&path)
                .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))
        };
        let maps = parse_smaps(&read(format!("/proc/{process}/smaps"))?);
        let mut stacks = Stacks::default();
        let mut refusal = None;
        for task in fs::read_dir(format!("/proc/{process}/task"))?.map_while(Result::ok) {
            let path = task.path().join("syscall");
            let text = match read(path.to_string_lossy().into_owned()) {
                Ok(text) => text,
                Err(error) => {
                    refusal = Some(error);
                    continue;
                }
            };
            // The last two are the stack pointer and the program counter; one that runs has none.
            let Some(pointer) = text
                .split_whitespace()
                .rev()
                .nth(1)
                .and_then(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok())
            else {
                continue;
            };
            if let Some(map) = maps.iter().find(|map| (map.from..map.to).contains(&pointer)) {
                stacks.found += 1;
                stacks.reserved += map.to - map.from;
                stacks.resident += map.resident;
            }
        }
        match refusal {
            Some(error) if stacks.found == 0 => Err(error),
            _ => Ok(stacks),
        }
    }
}

struct Mapping {
    from: u64,
    to: u64,
    resident: u64,
}

fn parse_smaps(text: &str) -> Vec<Mapping> {
    let mut maps: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        if let Some(resident) = line.strip_prefix("Rss:") {
            if let Some(map) = maps.last_mut() {
                map.resident = resident
                    .trim()
                    .split(' ')
                    .next()
                    .map_or(0, |kib| kib.parse::<u64>().unwrap_or(0) * 1024);
            }
            continue;
        }
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let ends = range.map(|(from, to)| {
            (u64::from_str_radix(from, 16).ok(), u64::from_str_radix(to, 16).ok())
        });
        if let Some((Some(from), Some(to))) = ends {
            maps.push(Mapping { from, to, resident: 0 });
        }
    }
    maps
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    #[test]
    fn a_thread_is_listed_with_what_it_used_and_its_stack() {
        let process = std::process::id();
        let (stop, stopped) = mpsc::channel::<()>();
        let (ready, is_ready) = mpsc::channel();
        let reserved = 3 << 20;
        let waits = thread::Builder::new().name("waits-here".into()).stack_size(reserved);
        let waits = waits
            .spawn(move || {
                for _ in 0..50 {
                    thread::sleep(std::time::Duration::from_micros(100));
                }
                ready.send(()).unwrap();
                let _ = stopped.recv();
            })
            .unwrap();
        is_ready.recv().unwrap();
        let threads = Threads::of(&[process]).unwrap();
        let found = threads.all.iter().find(|thread| thread.name == "waits-here").unwrap();
        assert!(found.voluntary >= 50 && found.cpu_ns > 0, "{found:?}");
        let nothing = threads.since(&threads);
        assert!(nothing.all.iter().all(|thread| thread.voluntary == 0 && thread.cpu_ns == 0));
        // An ordinary user may look into its own process.
        let stacks = Stacks::of(process).unwrap();
        assert!(stacks.found >= 1 && stacks.reserved >= reserved as u64, "{stacks:?}");
        assert!(stacks.resident > 0 && stacks.resident < stacks.reserved, "{stacks:?}");
        drop(stop);
        waits.join().unwrap();
    }
}
