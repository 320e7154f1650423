//! What several processes use together: a server may be a script and what it runs, or a master and its
//! workers.

use std::io;

use super::process::{Memory, Usage, cpu_time};

/// What several processes have used since they began.
#[derive(Clone, Debug, Default)]
pub struct JointUsage {
    each: Vec<(u32, Usage)>,
}

impl JointUsage {
    /// Reads the meters of `processes` as an interval begins: all CPU clocks last, as for
    /// [`Usage::at_start`]. Those that have ended are left out.
    ///
    /// # Errors
    ///
    /// None of them can be read.
    pub fn at_start(processes: &[u32]) -> io::Result<JointUsage> {
        JointUsage::read(processes, Usage::without_clock, |pid, rest| {
            Ok(rest.with_clock(cpu_time(pid)?))
        })
    }

    /// Reads all CPU clocks again: the interval begins only now. What takes longer to be read,
    /// [`at_start`](JointUsage::at_start) has read.
    ///
    /// # Errors
    ///
    /// As for [`at_start`](JointUsage::at_start).
    pub fn begins_now(self) -> io::Result<JointUsage> {
        let now = |(process, usage): (u32, Usage)| {
            Some((process, usage.with_clock(cpu_time(process).ok()?)))
        };
        let each: Vec<_> = self.each.into_iter().filter_map(now).collect();
        if each.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(JointUsage { each }) }
    }

    /// Reads the meters of `processes` as an interval ends: all CPU clocks first.
    ///
    /// # Errors
    ///
    /// As for [`at_start`](JointUsage::at_start).
    pub fn at_end(processes: &[u32]) -> io::Result<JointUsage> {
        JointUsage::read(processes, cpu_time, |pid, clock| {
            Ok(Usage::without_clock(pid)?.with_clock(clock))
        })
    }

    /// One half of all, then the other half of all.
    fn read<T>(
        processes: &[u32],
        half: impl Fn(u32) -> io::Result<T>,
        whole: impl Fn(u32, T) -> io::Result<Usage>,
    ) -> io::Result<JointUsage> {
        let mut refusal = io::ErrorKind::NotFound.into();
        let halves: Vec<_> = processes.iter().map(|&pid| (pid, half(pid))).collect();
        let mut each = Vec::with_capacity(halves.len());
        for (pid, half) in halves {
            match half.and_then(|half| whole(pid, half)) {
                Ok(usage) => each.push((pid, usage)),
                Err(error) => refusal = error,
            }
        }
        if each.is_empty() { Err(refusal) } else { Ok(JointUsage { each }) }
    }

    /// What the processes that are in both readings have used between them.
    #[must_use]
    pub fn since(&self, earlier: &JointUsage) -> Usage {
        let mut used = Usage::default();
        for (process, now) in &self.each {
            if let Some((_, then)) = earlier.each.iter().find(|(known, _)| known == process) {
                used = used.plus(&now.since(then));
            }
        }
        used
    }

    /// Threads of all of them.
    #[must_use]
    pub fn threads(&self) -> u64 {
        self.each.iter().map(|(_, usage)| usage.threads).sum()
    }
}

impl Memory {
    /// Reads the memory of several processes and adds it up: what they share is in it once for each,
    /// [`proportional`](Memory::proportional) aside. Those that have ended are left out.
    ///
    /// # Errors
    ///
    /// None of them can be read.
    pub fn of_all(processes: &[u32]) -> io::Result<Memory> {
        let mut sum: io::Result<Memory> = Err(io::ErrorKind::NotFound.into());
        for &process in processes {
            sum = match (sum, Memory::of(process)) {
                (Ok(sum), Ok(one)) => Ok(Memory {
                    resident: sum.resident + one.resident,
                    proportional: sum.proportional + one.proportional,
                    anonymous: sum.anonymous + one.anonymous,
                    page_tables: sum.page_tables + one.page_tables,
                    reserved: sum.reserved + one.reserved,
                }),
                (Ok(memory), Err(_)) | (Err(_), Ok(memory)) => Ok(memory),
                (Err(_), Err(error)) => Err(error),
            };
        }
        sum
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    const BURNS: &str = "while :; do :; done";

    struct Burning(Child);

    impl Burning {
        fn new() -> Burning {
            Burning(Command::new("sh").args(["-c", BURNS]).stdin(Stdio::null()).spawn().unwrap())
        }
    }

    impl Drop for Burning {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn processes_are_added_up_and_one_that_ends_is_left_out() {
        let (one, other, ends) = (Burning::new(), Burning::new(), Burning::new());
        let [one_pid, other_pid, ended] = [&one, &other, &ends].map(|burning| burning.0.id());
        let all = [ended, one_pid, other_pid];
        let burnt = |pid| cpu_time(pid).unwrap();
        let long = Duration::from_millis(50);
        while burnt(one_pid) < long || burnt(other_pid) < long || burnt(ended) < long {
            std::thread::yield_now();
        }
        let before = JointUsage::at_start(&all).unwrap();
        assert_eq!(before.threads(), 3);
        drop(ends);
        let (from_one, from_other) = (burnt(one_pid), burnt(other_pid));
        while burnt(one_pid) < from_one + long || burnt(other_pid) < from_other + long {
            std::thread::yield_now();
        }
        let after = JointUsage::at_end(&all).unwrap();
        let (most_one, most_other) = (burnt(one_pid), burnt(other_pid));
        let used = after.since(&before).cpu;
        // What was read before the first of the clocks and after the last of them.
        assert!(used >= 2 * long, "{used:?}");
        assert!(used <= most_one + most_other, "{used:?}");
        assert_eq!(after.threads(), 2);
        let (both, single) = (Memory::of_all(&all).unwrap(), Memory::of(one_pid).unwrap());
        assert!(both.page_tables > single.page_tables, "{both:?} {single:?}");
        assert!(JointUsage::at_start(&[ended]).is_err() && JointUsage::at_end(&[ended]).is_err());
        assert!(Memory::of_all(&[ended]).is_err() && Memory::of_all(&[]).is_err());
    }
}
