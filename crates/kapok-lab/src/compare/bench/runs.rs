//! The runs of one server: one that is not timed, in which its calls and its memory are counted, and one
//! for each round.

use std::io;
use std::time::Duration;

use super::Bench;
use super::subject::Subject;
use crate::compare::Beside;
use crate::compare::contender::Contender;
use crate::compare::server::Server;
use crate::compare::table::{Measured, Untimed};
use crate::load::{self, LoadConfig, LoadReport, Phase};
use crate::meters::{JointUsage, Memory, SyscallCounter};
use crate::{DelayServer, Model, Protocol};

/// The untimed run: long enough for stable counts per request.
const UNTIMED: Duration = Duration::from_millis(200);
const UNTIMED_WARMUP: Duration = Duration::from_millis(100);

/// When no further connection is served for so long, the model holds no more. Ten thousand connections
/// to a server whose core others want too do not come at an even pace.
const PATIENCE: Duration = Duration::from_secs(4);

impl Bench<'_> {
    /// Starts the server and makes the untimed run, which also warms it up.
    pub(super) fn begin(&mut self, subject: &mut Subject) -> io::Result<()> {
        let server = self.start(&subject.contender)?;
        let server = subject.server.insert(server);
        let (warmup, duration) = match self.config.beside {
            Beside::Nothing => return Ok(()),
            Beside::Memory => (Duration::ZERO, self.config.duration / 4),
            Beside::Everything => (UNTIMED_WARMUP, UNTIMED),
        };
        let counted = match self.config.beside {
            Beside::Everything => SyscallCounter::of_all(&server.processes()),
            _ => Err(io::Error::other("it was not asked for")),
        };
        self.counted.get_or_insert_with(|| match &counted {
            Ok(counter) => format!("by {}", counter.source()),
            Err(error) => format!("not counted: {error}"),
        });
        let mut counter = counted.ok();
        let load_config = self.load(server, warmup, duration);
        let mut untimed = Untimed::default();
        let mut first: Option<Memory> = None;
        let mut calls = (None, None);
        let mut phase = None;
        let report = load::run(&load_config, &mut |progress| {
            if phase == Some(progress.phase) {
                return;
            }
            // Connecting is told of all along; what counts is its first connection, served.
            if progress.phase == Phase::Connecting && progress.served == 0 {
                return;
            }
            phase = Some(progress.phase);
            match progress.phase {
                Phase::Connecting => first = Memory::of_all(&server.processes()).ok(),
                Phase::WarmUp => {
                    let processes = server.processes();
                    if let (Some(first), Ok(all)) = (first, Memory::of_all(&processes)) {
                        let own = |memory: Memory| memory.anonymous + memory.page_tables;
                        untimed.resident_bytes = all.resident;
                        untimed.reserved_bytes = all.reserved;
                        untimed.memory_per_connection = (progress.served > 1).then(|| {
                            own(all).saturating_sub(own(first)) as f64
                                / (progress.served - 1) as f64
                        });
                    }
                    untimed.threads =
                        JointUsage::at_end(&processes).map_or(0, |usage| usage.threads());
                }
                Phase::Settling => {}
                Phase::Measuring => {
                    calls.0 = counter.as_mut().and_then(|counter| counter.read().ok());
                }
                Phase::Draining => {
                    calls.1 = counter.as_mut().and_then(|counter| counter.read().ok());
                }
            }
        })?;
        drop(counter);
        match self.sound(&report, &subject.contender) {
            // The machine may have stood still for the whole of it. Threads and memory are known by then, and
            // whether there will be replies the rounds show.
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            sound => sound?,
        }
        untimed.syscalls_per_request = match calls {
            (Some(before), Some(after)) if report.requests > 0 => {
                Some((after - before) as f64 / report.requests as f64)
            }
            _ => None,
        };
        if report.stopped_early {
            return Err(io::ErrorKind::Interrupted.into());
        }
        subject.untimed = Some(untimed);
        #[cfg(target_os = "linux")]
        if self.config.costs {
            // A server of its own: this one has memory for all connections already.
            let fresh = self.start(&subject.contender)?;
            let load = self.load(&fresh, UNTIMED_WARMUP, crate::costs::INTERVAL);
            subject.costs = Some(crate::costs::measure(fresh.pid(), &load)?);
        }
        Ok(())
    }

    pub(super) fn measure(
        &mut self,
        server: &mut Server,
        place: usize,
        round: usize,
    ) -> io::Result<Measured> {
        let load_config = self.load(server, self.config.warmup, self.config.duration);
        let mut processes = server.processes();
        let mut phase = Phase::Connecting;
        let (mut before, mut after) = (None, None);
        let (mut begun, mut since_settling) = (Duration::ZERO, 0);
        let backend = self.backend;
        let backend_cpu = || backend.and_then(DelayServer::cpu_time);
        let (mut backend_before, mut backend_after) = (None, None);
        let mut report = load::run(&load_config, &mut |progress| {
            if phase != progress.phase {
                phase = progress.phase;
                match phase {
                    // Some make a process for each connection: those are all there now.
                    Phase::WarmUp => processes = server.processes(),
                    Phase::Settling => before = JointUsage::at_start(&processes).ok(),
                    Phase::Measuring => {
                        before = before.take().and_then(|before| before.begins_now().ok());
                        backend_before = backend_cpu();
                        begun = progress.elapsed;
                    }
                    Phase::Draining => {
                        backend_after = backend_cpu();
                        after = JointUsage::at_end(&processes).ok();
                        since_settling = progress.since_settling;
                    }
                    Phase::Connecting => {}
                }
            } else if phase == Phase::Measuring {
                let seconds = progress.elapsed.saturating_sub(begun).as_secs_f64();
                self.step.running = Some((place, progress.requests as f64 / seconds));
                (self.progress)(self.step);
            }
        })?;
        self.sound(&report, &self.config.contenders[place])?;
        if let (Some(before), Some(after)) = (backend_before, backend_after) {
            report.count_in(after.saturating_sub(before));
        }
        let (Some(before), Some(after)) = (before, after) else {
            return Err(io::Error::other("its meters could not be read"));
        };
        let used = after.since(&before);
        let contender = &self.config.contenders[place];
        if used.cpu.is_zero() {
            let under_way = self.point.connections * self.config.pipeline;
            without_cpu(report.requests, under_way as u64, contender)?;
        }
        let per_request = |count: f64| count / report.requests.max(1) as f64;
        let switches = |count: u64| count as f64 / since_settling.max(1) as f64;
        Ok(Measured {
            round,
            cpu_us_per_request: per_request(used.cpu.as_secs_f64() * 1e6),
            cpu_seconds: used.cpu.as_secs_f64(),
            system_share: used.system_share(),
            voluntary_switches: switches(used.switches.voluntary),
            involuntary_switches: switches(used.switches.involuntary),
            load: report,
        })
    }

    /// A run whose figures may stand beside the others'.
    fn sound(&self, report: &LoadReport, contender: &Contender) -> io::Result<()> {
        if report.stopped_early {
            return Ok(());
        }
        let example = report.errors.examples.first().map_or("", String::as_str);
        if report.served < report.connections {
            let because = match contender {
                _ if !example.is_empty() => example.to_owned(),
                Contender::Model(Model::ThreadPool) => {
                    "each worker keeps its connection until that \
                     ends, and the others wait for a worker (--threads)"
                        .to_owned()
                }
                _ => format!("the others had no answer, and none came for {PATIENCE:?}"),
            };
            return Err(io::Error::other(format!(
                "serves {} of {} connections: {because}",
                report.served, report.connections
            )));
        }
        if report.errors.total() > 0 {
            return Err(io::Error::other(format!("{} errors: {example}", report.errors.total())));
        }
        if report.requests == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no reply in the whole interval"));
        }
        Ok(())
    }

    fn load(&self, server: &Server, warmup: Duration, duration: Duration) -> LoadConfig {
        LoadConfig {
            connections: self.point.connections,
            active: self.point.active,
            size_bytes: self.point.size_bytes,
            body_bytes: match self.protocol {
                Protocol::Files => self.config.index_bytes().map(|bytes| bytes as usize),
                Protocol::Echo | Protocol::Http => Some(self.config.body_bytes),
            },
            pipeline: self.config.pipeline,
            rate: self.config.rate,
            churn: self.point.churn,
            warmup,
            duration,
            patience: PATIENCE,
            stop: self.config.stop.clone(),
            ..LoadConfig::new(server.addr, self.protocol)
        }
    }
}

/// What it means that a server has used no CPU time in the whole interval. So many replies may have been
/// `under_way` before it: with no more than those the machine may have stood still.
fn without_cpu(requests: u64, under_way: u64, contender: &Contender) -> io::Result<()> {
    let stood_still = requests <= under_way;
    let reason = match contender {
        Contender::External(_) => {
            "the work is done by another process: what was started has used no CPU time, nor have its \
             children; it must stay in the foreground"
        }
        Contender::Model(_) if stood_still => "it had no processor in the whole interval",
        Contender::Model(_) => return Ok(()),
    };
    let kind = if stood_still { io::ErrorKind::TimedOut } else { io::ErrorKind::Other };
    Err(io::Error::new(kind, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_stood_still_is_told_from_work_of_another_process() {
        let external = &Contender::External("other=server {addr}".parse().unwrap());
        let kind = |requests| without_cpu(requests, 64, external).unwrap_err().kind();
        assert_eq!(kind(64), io::ErrorKind::TimedOut);
        assert_eq!(kind(65), io::ErrorKind::Other);
        assert!(without_cpu(65, 64, &Contender::Model(Model::Epoll)).is_ok());
        assert!(without_cpu(1, 64, &Contender::Model(Model::Epoll)).is_err());
    }
}
