//! Who can serve a workload at all, and why the others cannot.
//!
//! What is known before anything is measured. What only shows when it is tried (a server that fails,
//! more memory than there may be) is found while measuring, and reported in the same way.

use std::fs;

use kapok_engine::{AUTO, AnyEngine, Choice, Config, Kind};
use serde::{Deserialize, Serialize};

use super::Question;
use crate::Model;
use crate::load::raise_descriptor_limit;
use crate::models::FEWEST_WORKERS;

/// What a thread of the server takes at least: a kernel stack, and of its own the pages that a reply
/// touches. 34 KiB were measured; see docs/design/advise.md.
pub(super) const THREAD_BYTES: u64 = 32 << 10;

/// A kernel stack on x86-64 and AArch64. It is in no process's account of its memory.
pub(super) const KERNEL_STACK_BYTES: u64 = 16 << 10;

/// Descriptors of a server beside its connections: standard streams, listener, selector, bells.
const SERVER_DESCRIPTORS: usize = 12;

/// A model that is not to be had for this workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excluded {
    /// The model's name.
    pub model: String,
    /// Why, with the figure that decided it.
    pub reason: String,
}

/// What this machine allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Why io_uring cannot be had; `None` if it can.
    pub ring_denied: Option<String>,
    /// Threads that one process may have.
    pub threads: u64,
    /// Descriptors that one process may have.
    pub descriptors: u64,
}

impl Limits {
    /// Looks, and tries io_uring.
    #[must_use]
    pub fn look() -> Limits {
        let denied = AnyEngine::new(Kind::Uring, &Config::default()).err();
        let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let limits = [
            number("/proc/sys/kernel/threads-max"),
            number("/proc/sys/kernel/pid_max"),
            // Each stack is a mapping, and its guard another.
            number("/proc/sys/vm/max_map_count").map(|mappings| mappings / 2),
            number("/sys/fs/cgroup/pids.max"),
        ];
        Limits {
            ring_denied: denied.map(|error| error.to_string()),
            threads: limits.into_iter().flatten().min().unwrap_or(u64::MAX),
            descriptors: raise_descriptor_limit().unwrap_or(u64::MAX),
        }
    }
}

/// The engine that a model stands on, for those of one engine only.
fn engine(model: Model) -> Option<Kind> {
    match model {
        Model::Uring | Model::FiberUring => Some(Kind::Uring),
        Model::Select | Model::FiberSelect => Some(Kind::Select),
        Model::Poll | Model::FiberPoll => Some(Kind::Poll),
        Model::Epoll | Model::Mio | Model::Tokio | Model::FiberEpoll => Some(Kind::Epoll),
        Model::BusyPoll => Some(Kind::Busy),
        Model::Threads | Model::ThreadPool | Model::Fiber => None,
    }
}

/// Whether who takes this model writes the event loop.
fn is_by_hand(model: Model) -> bool {
    matches!(
        model,
        Model::Mio | Model::Epoll | Model::Uring | Model::Poll | Model::Select | Model::BusyPoll
    )
}

/// The engine that `auto` takes, by the same rule as in every runtime: see [`AUTO`].
pub(super) fn auto_engine(question: &Question, limits: &Limits) -> Choice {
    let can = |choice: &&Choice| match choice.kind {
        Kind::Uring => !question.without_ring && limits.ring_denied.is_none(),
        _ => true,
    };
    *AUTO.iter().find(can).or(AUTO.last()).expect("auto tries at least one engine")
}

/// The fibers on that engine.
pub(super) fn auto_fiber(question: &Question, limits: &Limits) -> Model {
    match auto_engine(question, limits).kind {
        Kind::Uring => Model::FiberUring,
        _ => Model::FiberEpoll,
    }
}

/// Why a model cannot serve the workload, or is not to.
fn obstacle(model: Model, question: &Question, limits: &Limits) -> Option<String> {
    let connections = question.connections;
    let held = if question.delay.is_zero() { connections } else { 2 * connections };
    let needed = held + SERVER_DESCRIPTORS;
    let beside = if question.delay.is_zero() { "" } else { " and as many to the backend" };
    if question.by_hand && !is_by_hand(model) {
        return Some("not written by hand, which was asked for".to_owned());
    }
    if engine(model) == Some(Kind::Uring) {
        if question.without_ring {
            return Some("needs io_uring, and it must run without".to_owned());
        }
        if let Some(reason) = &limits.ring_denied {
            return Some(format!("needs io_uring, which is denied here: {reason}"));
        }
    }
    if let Some(most) = engine(model).and_then(Kind::most_descriptors)
        && needed > most
    {
        return Some(format!(
            "waits for descriptors below {most} only, and {connections} connections{beside} need {needed}"
        ));
    }
    if model == Model::BusyPoll && !question.may_spin {
        return Some(
            "uses a whole core while nothing is asked of it, and it was not allowed to".into(),
        );
    }
    if model == Model::ThreadPool && connections > FEWEST_WORKERS {
        return Some(format!(
            "has {FEWEST_WORKERS} workers, each held by a connection: of {connections} the others wait"
        ));
    }
    if model == Model::Threads {
        if connections as u64 + 8 > limits.threads {
            return Some(format!(
                "needs {connections} threads, and {} are allowed here",
                limits.threads
            ));
        }
        if let Some(limit) = question.memory_limit_bytes {
            let least = connections as u64 * THREAD_BYTES;
            if least > limit {
                return Some(format!(
                    "{connections} threads take at least {:.1} MiB, {} KiB each, and the limit is {:.1} MiB",
                    least as f64 / 1_048_576.0,
                    THREAD_BYTES >> 10,
                    limit as f64 / 1_048_576.0
                ));
            }
        }
    }
    if needed as u64 > limits.descriptors {
        return Some(format!(
            "{connections} connections{beside} need {needed} descriptors, and {} are allowed here",
            limits.descriptors
        ));
    }
    None
}

/// Who can serve the workload, and who cannot.
pub(super) fn eligible(question: &Question, limits: &Limits) -> (Vec<Model>, Vec<Excluded>) {
    let (mut can, mut cannot) = (Vec::new(), Vec::new());
    for model in Model::ALL {
        match obstacle(model, question, limits) {
            None => can.push(model),
            Some(reason) => cannot.push(Excluded { model: model.to_string(), reason }),
        }
    }
    (can, cannot)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const WIDE: Limits = Limits { ring_denied: None, threads: 100_000, descriptors: 1_000_000 };

    fn why(question: &Question, limits: &Limits, model: Model) -> Option<String> {
        let (can, cannot) = eligible(question, limits);
        let reason = cannot.into_iter().find(|one| one.model == model.to_string());
        assert_ne!(can.contains(&model), reason.is_some(), "{model}: one or the other");
        reason.map(|one| one.reason)
    }

    fn question(connections: usize) -> Question {
        Question { connections, ..Question::default() }
    }

    #[test]
    fn everybody_who_may_can_serve_a_few() {
        let (can, cannot) = eligible(&question(10), &WIDE);
        assert_eq!(can.len(), Model::ALL.len() - 1);
        assert_eq!(cannot[0].model, "busy-poll");
        let spinning = Question { may_spin: true, ..question(10) };
        assert!(eligible(&spinning, &WIDE).1.is_empty());
    }

    #[test]
    fn select_ends_at_its_set_and_a_backend_counts_twice() {
        for model in [Model::Select, Model::FiberSelect] {
            assert_eq!(why(&question(1000), &WIDE, model), None);
            let reason = why(&question(1024), &WIDE, model).unwrap();
            assert!(reason.contains("below 1024") && reason.contains("1036"), "{reason}");
            let asking = Question { delay: Duration::from_millis(1), ..question(600) };
            let reason = why(&asking, &WIDE, model).unwrap();
            assert!(reason.contains("to the backend need 1212"), "{reason}");
        }
        assert_eq!(why(&question(5000), &WIDE, Model::Poll), None);
    }

    #[test]
    fn threads_meet_the_memory_limit_and_the_limit_on_threads() {
        // 1,000 threads of 32 KiB are 31.25 MiB.
        let within = |limit: u64| Question { memory_limit_bytes: Some(limit), ..question(1000) };
        assert_eq!(why(&within(32 << 20), &WIDE, Model::Threads), None);
        let reason = why(&within(31 << 20), &WIDE, Model::Threads).unwrap();
        assert!(reason.contains("31.2 MiB") && reason.contains("limit is 31.0 MiB"), "{reason}");
        assert_eq!(why(&within(31 << 20), &WIDE, Model::Epoll), None);
        let few = Limits { threads: 1000, ..WIDE };
        let reason = why(&question(1000), &few, Model::Threads).unwrap();
        assert!(reason.contains("1000 are allowed"), "{reason}");
    }

    #[test]
    fn the_pool_has_as_many_connections_as_workers() {
        assert_eq!(why(&question(64), &WIDE, Model::ThreadPool), None);
        let reason = why(&question(65), &WIDE, Model::ThreadPool).unwrap();
        assert!(reason.contains("64 workers"), "{reason}");
    }

    #[test]
    fn without_io_uring_its_models_go_and_auto_is_epoll() {
        let denied = Limits { ring_denied: Some("EPERM".into()), ..WIDE };
        let asked = Question { without_ring: true, ..question(64) };
        for model in [Model::Uring, Model::FiberUring] {
            assert!(why(&asked, &WIDE, model).unwrap().contains("must run without"));
            assert!(why(&question(64), &denied, model).unwrap().contains("EPERM"));
        }
        assert_eq!(auto_fiber(&question(64), &WIDE), Model::FiberUring);
        assert_eq!(auto_fiber(&question(64), &denied), Model::FiberEpoll);
        assert_eq!(auto_fiber(&asked, &WIDE), Model::FiberEpoll);
    }

    #[test]
    fn who_wants_control_writes_it_by_hand() {
        let (can, _) = eligible(&Question { by_hand: true, ..question(64) }, &WIDE);
        assert_eq!(can, [Model::Select, Model::Poll, Model::Epoll, Model::Mio, Model::Uring]);
    }

    #[test]
    fn more_connections_than_descriptors_exclude_everybody() {
        let few = Limits { descriptors: 500, ..WIDE };
        let (can, cannot) = eligible(&question(1000), &few);
        assert!(can.is_empty());
        assert!(cannot.iter().any(|one| one.reason.contains("500 are allowed")), "{cannot:?}");
    }
}
