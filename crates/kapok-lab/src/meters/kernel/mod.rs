//! Counting in the kernel: small programs on its tracepoints add to counters that this process reads
//! whenever it likes. Nothing is sent, nobody is woken, and what is watched is never stopped.
//!
//! The tracepoints are passed by every process on the machine, which look whether they are meant: some
//! tens of nanoseconds a system call, as long as anybody counts.

mod assembler;
mod programs;
mod system;
mod types;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::census::Depth;
use super::counts::{CallCount, Counts, RingCount};
use super::perf;
use super::tracefs::Tracefs;
use super::tree::descendants;
use programs::{Calls, Maps, Operations, Thread, Wakes};
use system::{ProgramKind, attach, attach_raw, load};
use types::Types;

/// Programs that count, until this is dropped.
#[derive(Debug)]
pub(super) struct KernelCounter {
    maps: Maps,
    /// What programs hang on.
    _hooks: Vec<OwnedFd>,
    sees_ring: bool,
    sees_wakes: bool,
    missing: Vec<String>,
}

impl KernelCounter {
    /// Counts processes and their children, those they have and those they make from now on.
    pub(super) fn of(processes: &[u32], depth: Depth) -> io::Result<KernelCounter> {
        numbers_are_the_kernels()?;
        let &first =
            processes.first().ok_or_else(|| io::Error::other("there is nothing to count"))?;
        let maps = Maps::new(first)?;
        for &process in processes {
            maps.watch(process)?;
        }
        let everything = depth == Depth::Everything;
        let mut hooks = Vec::new();
        let ends = everything.then(|| (c"sys_exit", programs::call_ends(&maps)));
        let begins = (c"sys_enter", programs::call_begins(&maps, everything));
        for (name, code) in ends.into_iter().chain([begins]) {
            let program = load(ProgramKind::RawTracepoint, &code)?;
            hooks.push(attach_raw(name, program.as_fd())?);
        }
        let mut counter = KernelCounter {
            maps,
            _hooks: hooks,
            sees_ring: false,
            sees_wakes: false,
            missing: Vec::new(),
        };
        // What lands is known only by its record.
        counter.sees_ring = !everything && counter.watch_submissions().is_ok();
        match Tracefs::open() {
            Ok(tracefs) => {
                counter.sees_ring = counter.sees_ring || counter.watch_rings(&tracefs, everything);
                counter.sees_wakes = everything && counter.watch_wakes(&tracefs);
                counter.watch_children(&tracefs);
                // Children that were made before the programs hung are not known to them, nor are theirs.
                while counter.take_in_descendants(processes)? {}
            }
            Err(error) => {
                let rings = if counter.sees_ring { "" } else { "operations of io_uring, " };
                counter
                    .missing
                    .push(format!("{rings}wake-ups and children that are made later: {error}"));
            }
        }
        Ok(counter)
    }

    /// What cannot be counted, and why.
    pub(super) fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Counts operations as they are submitted, for less than half of what [`watch_rings`](Self::watch_rings)
    /// takes.
    fn watch_submissions(&mut self) -> io::Result<()> {
        let code = programs::operation_is_handed_over(&self.maps, &Types::of_the_kernel()?)?;
        let program = load(ProgramKind::RawTracepoint, &code)?;
        self._hooks.push(attach_raw(c"io_uring_submit_req", program.as_fd())?);
        Ok(())
    }

    fn watch_rings(&mut self, tracefs: &Tracefs, landings: bool) -> bool {
        let begun = programs::operation_begins(&self.maps, tracefs, landings);
        let begun = ("io_uring/io_uring_submit_req", begun);
        let landed = landings.then(|| {
            ("io_uring/io_uring_complete", programs::operation_lands(&self.maps, tracefs))
        });
        let programs: Vec<_> = landed.into_iter().chain([begun]).collect();
        self.hang(tracefs, "operations of io_uring", &programs)
    }

    fn watch_wakes(&mut self, tracefs: &Tracefs) -> bool {
        let taken = programs::wakes_taken(&self.maps, tracefs);
        let given = Ok(programs::wakes_given(&self.maps));
        let programs = [("sched/sched_wakeup", taken), ("sched/sched_waking", given)];
        self.hang(tracefs, "wake-ups", &programs)
    }

    fn watch_children(&mut self, tracefs: &Tracefs) {
        let begins = programs::child_begins(&self.maps, tracefs);
        let ends = programs::thread_ends(&self.maps, tracefs);
        let process_ends = programs::process_ends(&self.maps, tracefs);
        self.hang(
            tracefs,
            "children that are made later",
            &[
                ("sched/sched_process_fork", begins),
                ("sched/sched_process_exit", ends),
                ("sched/sched_process_free", process_ends),
            ],
        );
    }

    /// Watches children that are not watched yet. Says whether there were any.
    fn take_in_descendants(&self, processes: &[u32]) -> io::Result<bool> {
        let mut found = false;
        for child in descendants(processes) {
            if self.maps.processes.get(child).is_err() {
                self.maps.watch(child)?;
                found = true;
            }
        }
        Ok(found)
    }

    /// Whether all of them hang where they should.
    fn hang(
        &mut self,
        tracefs: &Tracefs,
        what: &str,
        programs: &[(&str, io::Result<Vec<u64>>)],
    ) -> bool {
        let mut hooks = Vec::new();
        for (tracepoint, code) in programs {
            let hung = (|| {
                let code = code.as_ref().map_err(|error| io::Error::other(error.to_string()))?;
                let program = load(ProgramKind::Tracepoint, code)?;
                let counter = perf::tracepoint_of_all(tracefs.id(tracepoint)?)?;
                attach(counter.as_fd(), program.as_fd())?;
                Ok::<_, io::Error>(counter)
            })();
            match hung {
                Ok(counter) => hooks.push(counter),
                Err(error) => {
                    self.missing.push(format!("{what}: {error}"));
                    return false;
                }
            }
        }
        self._hooks.extend(hooks);
        true
    }

    /// Everything so far.
    pub(super) fn read(&self) -> io::Result<Counts> {
        let mut calls = BTreeMap::new();
        for number in 0..programs::CALLS {
            let values = self.maps.calls.get(number)?;
            let sum = |of: fn(&Calls) -> u64| values.iter().map(of).sum::<u64>();
            let made = sum(|calls| calls.made);
            if made > 0 {
                let call = CallCount {
                    made,
                    timed: sum(|calls| calls.timed),
                    timed_ns: sum(|calls| calls.nanoseconds),
                    timed_errors: sum(|calls| calls.errors),
                    timed_would_block: sum(|calls| calls.would_block),
                };
                calls.insert(number, call);
            }
        }
        let mut ring = BTreeMap::new();
        if self.sees_ring {
            for number in 0..programs::OPERATIONS {
                let values = self.maps.ring.get(number)?;
                let sum = |of: fn(&Operations) -> u64| values.iter().map(of).sum::<u64>();
                let count = RingCount {
                    submitted: sum(|operations| operations.submitted),
                    landed: sum(|operations| operations.landed),
                    errors: sum(|operations| operations.errors),
                };
                if count.submitted + count.landed > 0 {
                    ring.insert(number as u8, count);
                }
            }
        }
        let wakes = if self.sees_wakes { self.maps.wakes.get(0)? } else { Vec::new() };
        let woken = |of: fn(&Wakes) -> u64| self.sees_wakes.then(|| wakes.iter().map(of).sum());
        Ok(Counts {
            total: calls.values().map(|call| call.made).sum(),
            calls: Some(calls),
            ring: self.sees_ring.then_some(ring),
            wakes_taken: woken(|wakes| wakes.taken),
            wakes_given: woken(|wakes| wakes.given),
        })
    }

    /// The number under which operations are kept that began before anybody counted.
    pub(super) const BEGUN_BEFORE: u8 = programs::BEGUN_BEFORE;
}

impl Maps {
    /// Watches a process. Its threads first: those of one that is watched already write there themselves.
    fn watch(&self, process: u32) -> io::Result<()> {
        for thread in threads(process) {
            self.threads.set(thread, Thread { process, ..Thread::default() })?;
        }
        self.processes.set(process, process)
    }
}

/// The threads of a process now.
fn threads(process: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{process}/task"));
    let names = tasks.into_iter().flatten().map_while(Result::ok).map(|task| task.file_name());
    names.filter_map(|name| name.to_str()?.parse().ok()).collect()
}

/// Programs see the numbers that the kernel has for processes; in a container, others are seen here.
fn numbers_are_the_kernels() -> io::Result<()> {
    // `PROC_PID_INIT_INO` (include/linux/proc_ns.h).
    const OUTERMOST: &str = "pid:[4026531836]";
    match fs::read_link("/proc/self/ns/pid") {
        Ok(namespace) if namespace.as_os_str() == OUTERMOST => Ok(()),
        Ok(_) => Err(io::Error::other(
            "this is a container, whose numbers of processes are not the kernel's",
        )),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use io_uring::opcode::SyncFileRange;

    use super::*;

    #[test]
    fn submissions_are_counted_where_they_are_handed_over() {
        // SAFETY: it takes nothing and changes nothing.
        if unsafe { libc::geteuid() } != 0 || !Path::new("/sys/kernel/btf/vmlinux").exists() {
            return;
        }
        let Ok(mut ring) = io_uring::IoUring::new(8) else { return };
        let mut counter = KernelCounter::of(&[std::process::id()], Depth::Everything).unwrap();
        let submitted = |counter: &KernelCounter| {
            let operations = counter.read().unwrap().ring.unwrap();
            operations.get(&SyncFileRange::CODE).map_or(0, |operation| operation.submitted)
        };
        let mut submit = |times| {
            for _ in 0..times {
                // Nothing else in this process does so.
                let entry = SyncFileRange::new(io_uring::types::Fd(-1), 0).build();
                // SAFETY: the operation takes no memory, and there is no such descriptor.
                unsafe { ring.submission().push(&entry).unwrap() };
                ring.submit_and_wait(1).unwrap();
                assert_eq!(ring.completion().count(), 1);
            }
        };
        let before = submitted(&counter);
        submit(300);
        assert_eq!(submitted(&counter) - before, 300);
        // Beside the program on the record, the one that counts alone: both count each.
        counter.watch_submissions().unwrap();
        let before = submitted(&counter);
        submit(300);
        assert_eq!(submitted(&counter) - before, 600);
    }
}
