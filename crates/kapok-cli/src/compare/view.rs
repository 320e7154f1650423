//! What is seen while a comparison runs: how far it is, and how the models stand so far.

use indicatif::{ProgressBar, ProgressStyle};
use kapok_lab::compare::{Standing, Step, Verdict};

use super::print::short;

/// Lines on the terminal that change as rounds go by; nothing where standard error is none.
pub(super) struct View {
    bar: ProgressBar,
    /// Rows that fit on a screen beside the bar.
    rows: usize,
}

impl View {
    pub(super) fn new() -> View {
        let style = ProgressStyle::with_template("{bar:24} {percent:>3} % · {elapsed} · {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let rows = std::env::var("LINES").ok().and_then(|lines| lines.parse().ok()).unwrap_or(24);
        View { bar: ProgressBar::new(0).with_style(style), rows: usize::max(rows, 4) - 3 }
    }

    pub(super) fn show(&self, step: &Step) {
        self.bar.set_length(step.total as u64);
        self.bar.set_position(step.done as u64);
        let mut message = step.what.clone();
        for (place, standing) in step.standings.iter().enumerate().take(self.rows) {
            let now = step.running.filter(|(running, _)| *running == place).map(|(_, rate)| rate);
            message.push('\n');
            message.push_str(&line(standing, now));
        }
        self.bar.set_message(message);
    }

    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

fn line(standing: &Standing, now: Option<f64>) -> String {
    let dash = || "–".to_owned();
    if standing.failed {
        return format!("  {:<14} failed, see below", standing.model);
    }
    let ratio = standing.cpu_ratio.filter(|ratio| ratio.rounds > 1).map_or_else(dash, |ratio| {
        let width = ratio
            .half_width()
            .map_or_else(String::new, |width| format!(" ± {:.1} %", width * 100.0));
        let said = match ratio.verdict {
            Verdict::Unsettled => String::new(),
            verdict => format!(" {verdict}"),
        };
        format!("{:.2}{width}{said}", ratio.estimate)
    });
    format!(
        "{} {:<14} {:>3} rounds  {:>7}/s  p99 {:>7} µs  CPU ratio {ratio}",
        if now.is_some() { "▶" } else { " " },
        standing.model,
        standing.rounds,
        now.or(standing.requests_per_second).map_or_else(dash, short),
        standing.p99_us.map_or_else(dash, short),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_shows_what_is_measured_now_and_the_median_otherwise() {
        let standing = Standing {
            model: "tokio".into(),
            rounds: 2,
            requests_per_second: Some(57_800.0),
            p99_us: Some(1400.0),
            cpu_ratio: None,
            failed: false,
        };
        let resting = line(&standing, None);
        assert!(resting.contains("57.8k/s") && resting.starts_with("  tokio"), "{resting}");
        let running = line(&standing, Some(61_000.0));
        assert!(running.contains("61.0k/s") && running.starts_with('▶'), "{running}");
        assert!(line(&Standing { failed: true, ..standing }, None).contains("failed"));
    }
}
