//! The steps of I/O threads, as they take them: events of `tracing`, printed and counted.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// How many are printed.
const PRINTED: u64 = 1000;

const TARGET: &str = "kapok_pool::step";

const NAMES: [&str; 6] = ["end", "take", "submit", "spin", "wait", "complete"];

/// The steps that were taken so far. A handle: clones are of the same ones.
#[derive(Clone)]
pub(crate) struct Steps(Arc<Shared>);

struct Shared {
    start: Instant,
    printed: AtomicU64,
    counts: [AtomicU64; NAMES.len()],
}

impl Steps {
    pub(crate) fn new() -> Steps {
        Steps(Arc::new(Shared {
            start: Instant::now(),
            printed: AtomicU64::new(0),
            counts: Default::default(),
        }))
    }

    /// One line: how many there were of each.
    pub(crate) fn summary(&self) -> String {
        let mut line = "steps       ".to_owned();
        for step in [1, 2, 3, 4, 5] {
            let count = self.0.counts[step].load(Ordering::Relaxed);
            let _ = write!(line, "{step} {} {count}   ", NAMES[step]);
        }
        line.trim_end().to_owned()
    }
}

impl<S> Layer<S> for Steps
where
    S: Subscriber,
{
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() != TARGET {
            return;
        }
        let mut step = Step::default();
        event.record(&mut step);
        let Shared { start, printed, counts } = &*self.0;
        if let Some(count) = counts.get(step.number as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if printed.load(Ordering::Relaxed) < PRINTED
            && printed.fetch_add(1, Ordering::Relaxed) < PRINTED
        {
            let micros = start.elapsed().as_secs_f64() * 1e6;
            // A reader that has gone away is no reason to stop an I/O thread.
            let _ = writeln!(
                io::stderr(),
                "{micros:>10.1} µs  thread {}  {} {}",
                step.thread,
                step.number,
                step.what
            );
        }
    }
}

/// The fields of one event.
#[derive(Default)]
struct Step {
    thread: u64,
    number: u64,
    what: String,
}

impl Visit for Step {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "thread" => self.thread = value,
            "step" => self.number = value,
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.what, "{value:?}");
        }
    }
}
