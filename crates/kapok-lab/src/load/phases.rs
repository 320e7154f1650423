//! A run from its first connection to its last reply, on one thread or on several.
//!
//! Each thread owns a [`Generator`]; the threads meet at every change of phase, so that the
//! measured interval is one interval and the progress callback runs while no traffic is handled.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use super::body::FirstBody;
use super::generator::Generator;
use super::report::{LoadReport, Tally};
use super::traffic::{Echo, Http, Traffic};
use super::{LoadConfig, Phase, Progress};
use crate::Protocol;

/// What the threads of a run share.
pub(super) struct Shared {
    pub(super) start: Instant,
    barrier: Barrier,
    failure: Mutex<Option<io::Error>>,
    failed: AtomicBool,
    first_body: FirstBody,
    pub(super) counts: Vec<Counts>,
}

/// What one thread shows of itself while it runs.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) served: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) since_settling: AtomicU64,
    pub(super) errors: AtomicU64,
}

pub(super) type Callback<'a> = &'a mut dyn FnMut(Progress);

/// Runs all threads to the end and puts together what they counted.
pub(super) fn run(config: &LoadConfig, progress: Callback<'_>) -> io::Result<LoadReport> {
    let shared = Shared {
        start: Instant::now(),
        barrier: Barrier::new(config.threads),
        failure: Mutex::new(None),
        failed: AtomicBool::new(false),
        first_body: FirstBody::default(),
        counts: (0..config.threads).map(|_| Counts::default()).collect(),
    };
    let tally = thread::scope(|scope| {
        let others: Vec<_> = (1..config.threads)
            .map(|index| {
                let shared = &shared;
                scope.spawn(move || run_thread(config, shared, index, None))
            })
            .collect();
        let mut tally = run_thread(config, &shared, 0, Some(progress));
        for other in others {
            match other.join() {
                Ok(theirs) => tally.merge(theirs),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        tally
    });
    let failure = shared.failure.into_inner().unwrap_or_else(PoisonError::into_inner);
    match failure {
        Some(error) => Err(error),
        None => Ok(tally.report(config)),
    }
}

fn run_thread(
    config: &LoadConfig,
    shared: &Shared,
    index: usize,
    progress: Option<Callback<'_>>,
) -> Tally {
    match config.protocol {
        Protocol::Echo => run_phases(config, shared, index, progress, Echo::new(config.size_bytes)),
        Protocol::Http | Protocol::Files => {
            let host = config.addr.to_string();
            let traffic = Http::new(&host, config.body_bytes, shared.first_body.clone());
            run_phases(config, shared, index, progress, traffic)
        }
    }
}

fn run_phases<T: Traffic>(
    config: &LoadConfig,
    shared: &Shared,
    index: usize,
    callback: Option<Callback<'_>>,
    traffic: T,
) -> Tally {
    let generator =
        Generator::new(config, shared, index, traffic).map_err(|error| fail(shared, error)).ok();
    let mut worker = Worker { shared, generator, callback };
    worker.step(Some(Phase::Connecting), |generator, callback| {
        if index == 0 { generator.serve_once(1, callback) } else { Ok(()) }
    });
    worker.step(Some(Phase::WarmUp), |generator, callback| {
        generator.serve_once(usize::MAX, callback)?;
        generator.retire_unserved()
    });
    worker.step(Some(Phase::Settling), |generator, callback| {
        generator.start_traffic();
        generator.drive(config.warmup, Phase::WarmUp, callback)
    });
    worker.step(Some(Phase::Measuring), Generator::settle);
    worker.step(Some(Phase::Draining), Generator::measure);
    worker.step(None, Generator::drain);
    let duration = config.duration;
    worker.generator.map_or_else(|| Tally::new(duration), |generator| generator.tally)
}

/// A thread on its way through the phases.
struct Worker<'a, 'p, T: Traffic> {
    shared: &'a Shared,
    /// `None` when it could not be made.
    generator: Option<Generator<'a, T>>,
    /// On the thread that called [`run`] only.
    callback: Option<Callback<'p>>,
}

impl<'a, 'p, T: Traffic> Worker<'a, 'p, T> {
    /// Takes one step, meets the other threads, and announces what begins now. All threads pass the
    /// same barriers in the same order, also when one of them has failed.
    fn step(
        &mut self,
        begins: Option<Phase>,
        step: impl FnOnce(&mut Generator<'a, T>, &mut Option<Callback<'p>>) -> io::Result<()>,
    ) {
        let failed = || self.shared.failed.load(Ordering::SeqCst);
        if let Some(generator) = &mut self.generator {
            if !failed()
                && let Err(error) = step(generator, &mut self.callback)
            {
                fail(self.shared, error);
            }
            generator.publish();
        }
        self.shared.barrier.wait();
        if let (Some(phase), Some(callback)) = (begins, &mut self.callback)
            && !failed()
        {
            callback(look(self.shared, phase));
        }
        self.shared.barrier.wait();
    }
}

fn fail(shared: &Shared, error: io::Error) {
    shared.failed.store(true, Ordering::SeqCst);
    let mut failure = shared.failure.lock().unwrap_or_else(PoisonError::into_inner);
    failure.get_or_insert(error);
}

pub(super) fn look(shared: &Shared, phase: Phase) -> Progress {
    let sum = |pick: fn(&Counts) -> &AtomicU64| {
        shared.counts.iter().map(|counts| pick(counts).load(Ordering::Relaxed)).sum()
    };
    let served: u64 = sum(|counts| &counts.served);
    Progress {
        phase,
        served: served as usize,
        requests: sum(|counts| &counts.requests),
        since_settling: sum(|counts| &counts.since_settling),
        errors: sum(|counts| &counts.errors),
        elapsed: shared.start.elapsed(),
    }
}
