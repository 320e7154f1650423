//! Counting for a part of the time, where to count all of it would cost what is watched too much.
//!
//! To take a program off a tracepoint is the only way to spare a call what it costs, most of which is the way
//! to the program. So time is cut into cycles, in each of which the programs hang for a while, somewhere in
//! the cycle. The rest of it is reckoned by the CPU time of the processes: as many calls for a second of it as
//! while there was counting the last time, when each of those seconds had less to give by what counting took.
//! How long that is follows from what counting has cost of late: what a call takes longer, which is measured
//! here, by the calls that were made, over the CPU time of the processes. Cycles are long, since a server pays
//! for milliseconds for kernel code that is changed under it.
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

/// Of it there is counting for a part.
const CYCLE: Duration = Duration::from_secs(1);

/// How often it is looked what counting costs while all is counted: at first, for so many times, and then.
const FIRST: Duration = Duration::from_millis(50);
const SHORT: u32 = 20;
const LATER: Duration = Duration::from_millis(250);

/// So many calls and operations are counted, whatever they cost, before it is asked.
const AT_FIRST: f64 = 20_000.0;

/// What counting may take of the CPU time of the processes.
const MOST: f64 = 0.015;

/// How many times more than here it takes to count a call of theirs, since not all that counts is in the
/// processor's caches: two to three times, in servers that are known.
const COLDER: f64 = 2.5;

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
#[derive(Clone)]
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

    fn sum(&self) -> u64 {
        self.calls.iter().chain(&self.ring).sum()
    }
}

struct State {
    /// What was made until `reading`, or, while nobody counts, until `passing` began.
    estimate: Estimate,
    reading: Reading,
    /// Since when nobody counts, and what CPU time the processes had had by then.
    passing: Option<(Instant, Duration)>,
    /// Calls and operations by kind for a second of CPU time, when there was counting the last time.
    rates: [Vec<f64>; 2],
    /// Whose CPU time it is: the processes and their children.
    processes: Vec<u32>,
    failed: Option<io::Error>,
    ends: bool,
}

impl State {
    /// Brings the estimate up to now.
    fn bring_up(&mut self, maps: &Maps) -> io::Result<()> {
        if let Some((then, before)) = self.passing {
            let cpu = cpu_time_of(&self.processes);
            // Of processes that have ended the clocks are gone.
            let used = cpu.saturating_sub(before).as_secs_f64();
            let [calls, ring] = &self.rates;
            let sums = self.estimate.calls.iter_mut().zip(calls);
            for (sum, rate) in sums.chain(self.estimate.ring.iter_mut().zip(ring)) {
                *sum += rate * used;
            }
            self.estimate.passed_by += then.elapsed();
            self.passing = Some((Instant::now(), cpu));
            return Ok(());
        }
        let now = Reading::of(maps)?;
        let add = |sums: &mut [f64], then: &[u64], now: &[u64]| {
            for ((sum, then), now) in sums.iter_mut().zip(then).zip(now) {
                *sum += (now - then) as f64;
            }
        };
        add(&mut self.estimate.calls, &self.reading.calls, &now.calls);
        add(&mut self.estimate.ring, &self.reading.ring, &now.ring);
        self.reading = now;
        Ok(())
    }

    /// Learns how much is made in a second of CPU time: since `then` there was counting, for so much of it.
    fn learn(&mut self, then: &Reading, own_seconds: f64) {
        let rates = |now: &[u64], then: &[u64]| -> Vec<f64> {
            now.iter().zip(then).map(|(now, then)| (now - then) as f64 / own_seconds).collect()
        };
        self.rates =
            [rates(&self.reading.calls, &then.calls), rates(&self.reading.ring, &then.ring)];
    }
}

fn cpu_time_of(processes: &[u32]) -> Duration {
    processes.iter().filter_map(|&process| cpu_time(process).ok()).sum()
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
        let state = State {
            estimate: Estimate {
                calls: vec![0.0; CALLS as usize],
                ring: vec![0.0; OPERATIONS as usize],
                passed_by: Duration::ZERO,
            },
            reading: Reading { calls: vec![0; CALLS as usize], ring: vec![0; OPERATIONS as usize] },
            passing: None,
            rates: [vec![0.0; CALLS as usize], vec![0.0; OPERATIONS as usize]],
            processes: processes.to_vec(),
            failed: None,
            ends: false,
        };
        let shared = Arc::new(Shared {
            maps: Arc::clone(maps),
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let mut cycles = Cycles {
            shared: Arc::clone(&shared),
            hooks,
            roots: processes.to_vec(),
            least: [f64::INFINITY; 2],
            cost: 0.0,
        };
        let thread =
            std::thread::Builder::new().name("kapok-sparing".to_owned()).spawn(move || {
                if let Err(error) = cycles.run() {
                    cycles.shared.lock().failed = Some(error);
                }
            })?;
        Ok(Sparing { shared, thread: Some(thread) })
    }

    /// What was made until now.
    pub(super) fn read(&self) -> io::Result<Estimate> {
        let mut state = self.shared.lock();
        if let Some(error) = &state.failed {
            return Err(io::Error::new(error.kind(), error.to_string()));
        }
        state.bring_up(&self.shared.maps)?;
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

/// What the thread has.
struct Cycles {
    shared: Arc<Shared>,
    hooks: Vec<Hung>,
    roots: Vec<u32>,
    /// The least that a call took while nothing hung and while all did, in nanoseconds.
    least: [f64; 2],
    /// What to count all would cost, as a share of the CPU time of the processes.
    cost: f64,
}

impl Cycles {
    fn run(&mut self) -> io::Result<()> {
        for cycle in 0_u32.. {
            let begun = Instant::now();
            let (made, cpu) = self.look_around(cycle)?;
            let share = if made < AT_FIRST { 1.0 } else { self.share() };
            let goes_on = if share < MOST_SHARE {
                self.count_for(CYCLE.mul_f64(share), begun)?
            } else {
                self.count(if cycle < SHORT { FIRST } else { LATER })?
            };
            if !goes_on {
                break;
            }
            let mut state = self.shared.lock();
            state.bring_up(&self.shared.maps)?;
            let came = state.estimate.sum() - made;
            let used = cpu_time_of(&state.processes).saturating_sub(cpu);
            drop(state);
            self.reckon(came, used, begun.elapsed());
        }
        Ok(())
    }

    /// Before a cycle: how many calls and operations there were, and the CPU time of all processes.
    fn look_around(&mut self, cycle: u32) -> io::Result<(f64, Duration)> {
        let mut state = self.shared.lock();
        state.bring_up(&self.shared.maps)?;
        if cycle.is_multiple_of(CHILDREN) {
            let children = descendants(&self.roots);
            state.processes = self.roots.iter().copied().chain(children).collect();
            if state.passing.is_some() {
                state.passing = Some((Instant::now(), cpu_time_of(&state.processes)));
            }
        }
        Ok((state.estimate.sum(), cpu_time_of(&state.processes)))
    }

    /// Counts for so long, at any place of a cycle, and passes by for the rest of it. Whether it is to go on.
    fn count_for(&mut self, window: Duration, begun: Instant) -> io::Result<bool> {
        self.pass_by()?;
        self.measure(0);
        let at = (CYCLE - window).mul_f64(fastrand::f64());
        let goes_on = self.shared.wait(at.saturating_sub(begun.elapsed())) && self.count(window)?;
        self.pass_by()?;
        Ok(goes_on && self.shared.wait(CYCLE.saturating_sub(begun.elapsed())))
    }

    /// Counts for so long, and learns from it. Whether it is to go on.
    fn count(&mut self, time: Duration) -> io::Result<bool> {
        self.hooks.iter_mut().try_for_each(Hung::hang)?;
        let (then, cpu) = {
            let mut state = self.shared.lock();
            // To read the maps takes a while, in which a process may go on: clocks are always read before.
            let cpu = cpu_time_of(&state.processes);
            state.bring_up(&self.shared.maps)?;
            if state.passing.take().is_some() {
                // Nothing of what is counted from here on is reckoned already.
                state.reading = Reading::of(&self.shared.maps)?;
            }
            (state.reading.clone(), cpu)
        };
        self.measure(1);
        if !self.shared.wait(time) {
            return Ok(false);
        }
        let mut state = self.shared.lock();
        let cpu = cpu_time_of(&state.processes).saturating_sub(cpu);
        state.bring_up(&self.shared.maps)?;
        let taken = (state.reading.sum() - then.sum()) as f64 * self.longer_ns() / 1e9;
        let own = cpu.as_secs_f64() - taken;
        if own > taken {
            state.learn(&then, own);
        }
        Ok(true)
    }

    fn pass_by(&mut self) -> io::Result<()> {
        self.hooks.iter_mut().for_each(Hung::take_down);
        let mut state = self.shared.lock();
        let now = (Instant::now(), cpu_time_of(&state.processes));
        state.bring_up(&self.shared.maps)?;
        state.passing.get_or_insert(now);
        Ok(())
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

    /// How much longer a call of the processes takes that is counted, in nanoseconds.
    fn longer_ns(&self) -> f64 {
        /// Until it was measured.
        const USUAL: f64 = 80.0;
        match self.least[1] - self.least[0] {
            longer if longer.is_finite() => longer.clamp(10.0, 1000.0) * COLDER,
            _ => USUAL * COLDER,
        }
    }

    /// Learns what counting costs from a cycle with so many calls.
    fn reckon(&mut self, came: f64, used: Duration, cycle: Duration) {
        let costs = came * self.longer_ns() / 1e9;
        let cost = if costs < LITTLE * cycle.as_secs_f64() || used.is_zero() {
            0.0
        } else {
            costs / used.as_secs_f64()
        };
        // More counts at once, less as it stays.
        let before = self.cost;
        self.cost = if cost > before { cost } else { before + (cost - before) * NEWEST };
    }

    /// For how much of the next cycle there is counting.
    fn share(&self) -> f64 {
        if self.cost > 0.0 { (MOST / self.cost).clamp(LEAST_SHARE, 1.0) } else { 1.0 }
    }
}
