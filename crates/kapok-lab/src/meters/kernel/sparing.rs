//! Counting for a part of the time, where to count all of it would cost what is watched too much.
//!
//! To take a program off a tracepoint is the only way to spare a call what it costs, most of which is the way
//! to the program. So time is cut into cycles, in each of which the programs hang for a while, somewhere in
//! the cycle. The rest of it is reckoned by the CPU time of the processes: as many calls for a second of it as
//! while there was counting, when each of those seconds had less to give by what counting took. How long that is follows from what counting
//! has cost of late: what a call takes longer, which is measured here, by the calls that were counted, over
//! the CPU time of the processes. Whoever asks for counts waits for the end of a cycle.
//!
//! All is counted as long as that costs little, and in any case at first: a program that ends soon is
//! counted to the last call.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Hung;
use super::programs::{CALLS, Maps, OPERATIONS};
use crate::meters::process::cpu_time;
use crate::meters::tree::descendants;

const CYCLE: Duration = Duration::from_millis(200);

/// Cycles in which all is counted are so short at first, and so many are.
const FIRST: Duration = Duration::from_millis(50);
const SHORT: u32 = 20;

/// So many calls and operations are counted, whatever they cost, before it is asked.
const AT_FIRST: u64 = 20_000;

/// What counting may take of the CPU time of the processes, reckoned by what a call takes longer that finds all
/// in the processor's caches. In a server it is up to twice as much.
const MOST: f64 = 0.015;

/// Processes that use less than this, in cores, are not spared: it is nothing to the machine.
const LITTLE: f64 = 0.001;

/// The least and the most of the time for which there is counting, if not all of it.
const LEAST_SHARE: f64 = 0.1;
const MOST_SHARE: f64 = 0.9;

/// How far a cycle in which counting cost less decides on the next.
const NEWEST: f64 = 0.3;

/// After so many cycles it is looked whether there are other children.
const CHILDREN: u32 = 5;

/// Calls by which it is measured what one takes longer.
const MEASURED: u32 = 200;

/// What was made, by kind, as far as that is known.
#[derive(Clone, Debug)]
pub(super) struct Estimate {
    pub(super) calls: Vec<f64>,
    pub(super) ring: Vec<f64>,
    /// For how long nobody counted.
    pub(super) passed_by: Duration,
}

impl Estimate {
    fn sum(&self) -> f64 {
        self.calls.iter().chain(&self.ring).sum()
    }
}

/// What the maps say now.
struct Reading {
    calls: Vec<u64>,
    ring: Vec<u64>,
}

impl Reading {
    fn of(maps: &Maps) -> io::Result<Reading> {
        let calls = (0..CALLS)
            .map(|number| Ok(maps.calls.get(number)?.iter().map(|calls| calls.made).sum()));
        let ring = (0..OPERATIONS).map(|number| {
            Ok(maps.ring.get(number)?.iter().map(|operations| operations.submitted).sum())
        });
        Ok(Reading {
            calls: calls.collect::<io::Result<_>>()?,
            ring: ring.collect::<io::Result<_>>()?,
        })
    }
}

impl Reading {
    fn sum(&self) -> u64 {
        self.calls.iter().chain(&self.ring).sum()
    }
}

struct State {
    /// What was made by the time of `reading`.
    estimate: Estimate,
    reading: Reading,
    /// All is counted since then.
    is_counting: bool,
    cycles: u64,
    failed: Option<io::Error>,
    ends: bool,
}

struct Shared {
    maps: Arc<Maps>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits; says whether it is to go on.
    fn wait(&self, time: Duration) -> bool {
        let state = self.lock();
        let waited = self.changed.wait_timeout_while(state, time, |state| !state.ends);
        !waited.unwrap_or_else(PoisonError::into_inner).0.ends
    }
}

/// Counts for as much of the time as it may, until this is dropped.
pub(super) struct Sparing {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Sparing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sparing").finish_non_exhaustive()
    }
}

impl Sparing {
    /// Takes over hooks that hang.
    pub(super) fn new(
        maps: &Arc<Maps>,
        processes: &[u32],
        hooks: Vec<Hung>,
    ) -> io::Result<Sparing> {
        let estimate = Estimate {
            calls: vec![0.0; CALLS as usize],
            ring: vec![0.0; OPERATIONS as usize],
            passed_by: Duration::ZERO,
        };
        let reading =
            Reading { calls: vec![0; CALLS as usize], ring: vec![0; OPERATIONS as usize] };
        let state =
            State { estimate, reading, is_counting: true, cycles: 0, failed: None, ends: false };
        let shared = Arc::new(Shared {
            maps: Arc::clone(maps),
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let mut cycles = Cycles {
            shared: Arc::clone(&shared),
            hooks,
            roots: processes.to_vec(),
            processes: processes.to_vec(),
            cpu: Duration::ZERO,
            least: [f64::INFINITY; 2],
            cost: 0.0,
        };
        let thread =
            std::thread::Builder::new().name("kapok-sparing".to_owned()).spawn(move || {
                if let Err(error) = cycles.run() {
                    let mut state = cycles.shared.lock();
                    state.failed = Some(error);
                    state.is_counting = false;
                    cycles.shared.changed.notify_all();
                }
            })?;
        Ok(Sparing { shared, thread: Some(thread) })
    }

    /// What was made until now, or, if not all is counted, until the end of this cycle, which is waited for.
    pub(super) fn read(&self) -> io::Result<Estimate> {
        let mut state = self.shared.lock();
        let cycle = state.cycles;
        while !state.is_counting && state.cycles == cycle && state.failed.is_none() {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(error) = &state.failed {
            return Err(io::Error::new(error.kind(), error.to_string()));
        }
        if state.is_counting {
            let reading = Reading::of(&self.shared.maps)?;
            state.take_in(reading, 1.0);
        }
        Ok(state.estimate.clone())
    }
}

impl Drop for Sparing {
    fn drop(&mut self) {
        self.shared.lock().ends = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl State {
    /// Adds what was counted since the last time, each call for so many.
    fn take_in(&mut self, now: Reading, each: f64) {
        let add = |sums: &mut [f64], then: &[u64], now: &[u64]| {
            for ((sum, then), now) in sums.iter_mut().zip(then).zip(now) {
                *sum += (now - then) as f64 * each;
            }
        };
        add(&mut self.estimate.calls, &self.reading.calls, &now.calls);
        add(&mut self.estimate.ring, &self.reading.ring, &now.ring);
        self.reading = now;
    }
}

/// What the thread has.
struct Cycles {
    shared: Arc<Shared>,
    hooks: Vec<Hung>,
    roots: Vec<u32>,
    /// They and their children.
    processes: Vec<u32>,
    /// Their CPU time at the last look.
    cpu: Duration,
    /// The least that a call took while nothing hung and while all did, in nanoseconds.
    least: [f64; 2],
    /// What to count all would cost, as a share of the CPU time of the processes.
    cost: f64,
}

impl Cycles {
    fn run(&mut self) -> io::Result<()> {
        let mut made = 0;
        for cycle in 0_u32.. {
            if cycle.is_multiple_of(CHILDREN) {
                let children = descendants(&self.roots);
                self.processes = self.roots.iter().copied().chain(children).collect();
                self.cpu = self.cpu_time();
            }
            let share = if made < AT_FIRST { 1.0 } else { self.share() };
            let begun = Instant::now();
            let came = match share {
                ..MOST_SHARE => self.count_for(share, begun)?,
                _ => self.count_all(if cycle < SHORT { FIRST } else { CYCLE }, begun)?,
            };
            let Some(came) = came else { break };
            made += came as u64;
            self.reckon(came, begun.elapsed());
        }
        Ok(())
    }

    /// A cycle in which all is counted. How many calls and operations there were; `None` at the end.
    fn count_all(&mut self, time: Duration, begun: Instant) -> io::Result<Option<f64>> {
        self.hang()?;
        let before = {
            let mut state = self.shared.lock();
            state.is_counting = true;
            state.estimate.sum()
        };
        if !self.shared.wait(time.saturating_sub(begun.elapsed())) {
            return Ok(None);
        }
        let mut state = self.shared.lock();
        let reading = Reading::of(&self.shared.maps)?;
        state.take_in(reading, 1.0);
        state.cycles += 1;
        self.shared.changed.notify_all();
        Ok(Some(state.estimate.sum() - before))
    }

    /// A cycle in which there is counting for a part of the time, at any place of it. The same.
    fn count_for(&mut self, share: f64, begun: Instant) -> io::Result<Option<f64>> {
        let before = {
            let mut state = self.shared.lock();
            if state.is_counting {
                let reading = Reading::of(&self.shared.maps)?;
                state.take_in(reading, 1.0);
                state.is_counting = false;
            }
            state.estimate.sum()
        };
        self.take_down();
        self.measure(0);
        let window = CYCLE.mul_f64(share);
        let at = (CYCLE - window).mul_f64(fastrand::f64());
        if !self.shared.wait(at.saturating_sub(begun.elapsed())) {
            return Ok(None);
        }
        self.hang()?;
        let (hung, cpu) = (Instant::now(), self.cpu_time());
        self.measure(1);
        if !self.shared.wait(window.saturating_sub(hung.elapsed())) {
            return Ok(None);
        }
        let (counted, cpu_counted) = (hung.elapsed(), self.cpu_time().saturating_sub(cpu));
        self.take_down();
        if !self.shared.wait(CYCLE.saturating_sub(begun.elapsed())) {
            return Ok(None);
        }
        let cycle = begun.elapsed();
        let cpu_cycle = self.cpu_time().saturating_sub(self.cpu);
        let mut state = self.shared.lock();
        let reading = Reading::of(&self.shared.maps)?;
        let came = reading.sum() - state.reading.sum();
        let taken = came as f64 * self.longer_ns() / 1e9;
        let own = cpu_counted.as_secs_f64() - taken;
        // Not of processes that have ended, whose clocks are gone.
        let each = if own > taken && cpu_cycle >= cpu_counted {
            1.0 + (cpu_cycle - cpu_counted).as_secs_f64() / own
        } else {
            cycle.as_secs_f64() / counted.as_secs_f64()
        };
        state.take_in(reading, each);
        state.estimate.passed_by += cycle.saturating_sub(counted);
        state.cycles += 1;
        self.shared.changed.notify_all();
        Ok(Some(state.estimate.sum() - before))
    }

    fn hang(&mut self) -> io::Result<()> {
        self.hooks.iter_mut().try_for_each(Hung::hang)
    }

    fn take_down(&mut self) {
        self.hooks.iter_mut().for_each(Hung::take_down);
    }

    /// What a call takes now, where one is that is not counted.
    fn measure(&mut self, hung: usize) {
        let begun = Instant::now();
        for _ in 0..MEASURED {
            // SAFETY: getppid takes nothing.
            unsafe { libc::syscall(libc::SYS_getppid) };
        }
        let each = begun.elapsed().as_secs_f64() * 1e9 / f64::from(MEASURED);
        self.least[hung] = self.least[hung].min(each);
    }

    /// How much longer a call takes that is counted, in nanoseconds.
    fn longer_ns(&self) -> f64 {
        /// Until it was measured.
        const USUAL: f64 = 80.0;
        match self.least[1] - self.least[0] {
            longer if longer.is_finite() => longer.clamp(10.0, 1000.0),
            _ => USUAL,
        }
    }

    /// Learns from a cycle with so many calls.
    fn reckon(&mut self, came: f64, cycle: Duration) {
        let now = self.cpu_time();
        let used = now.saturating_sub(self.cpu).as_secs_f64();
        self.cpu = now;
        let costs = came * self.longer_ns() / 1e9;
        let cost =
            if costs < LITTLE * cycle.as_secs_f64() || used <= 0.0 { 0.0 } else { costs / used };
        // More counts at once, less as it stays.
        let before = self.cost;
        self.cost = if cost > before { cost } else { before + (cost - before) * NEWEST };
    }

    /// For how much of the next cycle there is counting.
    fn share(&self) -> f64 {
        if self.cost > 0.0 { (MOST / self.cost).clamp(LEAST_SHARE, 1.0) } else { 1.0 }
    }

    fn cpu_time(&self) -> Duration {
        self.processes.iter().filter_map(|&process| cpu_time(process).ok()).sum()
    }
}
