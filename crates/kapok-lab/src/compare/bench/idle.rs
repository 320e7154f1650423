//! What servers use while nothing is asked of them.

use std::thread;
use std::time::{Duration, Instant};

use super::Bench;
use super::subject::Subject;
use crate::meters::{JointUsage, stolen_time};

/// For how long idle servers are watched.
const IDLE: Duration = Duration::from_millis(300);

/// And those that never wait: long enough for the ticks in which a host tells what it took.
const RESTLESS: Duration = Duration::from_secs(1);

impl Bench<'_> {
    /// Watches all at once, and those that never wait afterwards, each for itself.
    pub(super) fn watch_idle(&mut self, subjects: &mut [Subject]) {
        if self.stopped() {
            return;
        }
        let cores = self.cores;
        let watch = |subjects: &mut [Subject], restless: bool| {
            let mut watched: Vec<(&mut Subject, Vec<u32>, JointUsage)> = subjects
                .iter_mut()
                .filter(|subject| (subject.is_restless()) == restless)
                .filter_map(|subject| {
                    let server = subject.server.as_mut()?;
                    server.resume();
                    let processes = server.processes();
                    let usage = JointUsage::at_start(&processes).ok()?;
                    Some((subject, processes, usage))
                })
                .collect();
            if watched.is_empty() {
                return;
            }
            let (begun, stolen) = (Instant::now(), stolen_time(cores));
            thread::sleep(if restless { RESTLESS } else { IDLE });
            for (subject, processes, before) in &mut watched {
                let elapsed = begun.elapsed();
                let Ok(after) = JointUsage::at_end(processes) else { continue };
                // What a core of the server had: it cannot use what the host gave to others.
                let stolen = stolen_time(cores).saturating_sub(stolen) / cores.len().max(1) as u32;
                let had = elapsed.saturating_sub(stolen).max(elapsed / 10);
                let share = after.since(before).cpu.as_secs_f64() / had.as_secs_f64();
                subject.idle_cpu_share = Some(share.min(cores.len().max(1) as f64));
            }
        };
        self.step.what = format!("{} · all servers idle", self.protocol);
        (self.progress)(self.step);
        // The last one has as many connections to close; it should be done within a second.
        let closing = Duration::from_micros(100) * self.point.connections.min(9_000) as u32;
        thread::sleep(Duration::from_millis(100) + closing);
        watch(subjects, false);
        watch(subjects, true);
    }
}
