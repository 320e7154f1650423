//! The tables.

use kapok_lab::compare::Ratio;

use crate::cases::{Case, DEPTHS, GROUPS};
use crate::contenders::{ALL, BASELINE, base};
use crate::job::Figures;
use crate::record::Records;

/// A number with about three digits.
fn short(value: f64) -> String {
    match value {
        0.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        100.0..10_000.0 => format!("{value:.0}"),
        10_000.0..1_000_000.0 => format!("{:.0} k", value / 1e3),
        _ => format!("{:.1} M", value / 1e6),
    }
}

pub(crate) fn spelled(ratio: Option<Ratio>) -> String {
    match ratio {
        None => "–".to_owned(),
        Some(Ratio { estimate, interval: None, .. }) => format!("{estimate:.2}"),
        Some(Ratio { estimate, interval: Some((low, high)), .. }) => {
            format!("{estimate:.2} [{low:.2} {high:.2}]")
        }
    }
}

/// Who is in a table, in the order of [`ALL`], a pool with other numbers after its like.
fn names<'r>(records: &'r Records, present: &[(usize, &String)]) -> Vec<&'r str> {
    let mut names: Vec<&str> = records
        .0
        .iter()
        .filter(|record| present.iter().any(|(_, case)| **case == record.case))
        .map(|record| record.contender.as_str())
        .collect();
    names.sort_by_key(|name| (ALL.iter().position(|known| *known == base(name)), *name));
    names.dedup();
    names
}

/// One table for each group of cases.
pub(crate) fn tables(records: &Records) -> String {
    let mut text = String::new();
    for (group, workload, block) in GROUPS {
        let cases = DEPTHS.map(|depth| Case { group, workload, block, depth }.name());
        let present: Vec<(usize, &String)> = DEPTHS
            .into_iter()
            .zip(&cases)
            .filter(|(_, case)| records.contenders(case).next().is_some())
            .collect();
        if present.is_empty() {
            continue;
        }
        text += &format!("### {group}, {block} bytes\n\n|");
        for (depth, _) in &present {
            text += &format!(" | ×{depth}: ops/s | × {BASELINE} [95 %] | CPU µs | × {BASELINE}");
        }
        text += " |\n|---";
        text += &"|--:|--:|--:|--:".repeat(present.len());
        text += "|\n";
        for name in names(records, &present) {
            text += &format!("| {name}");
            for (_, case) in &present {
                let rate = records.median(case, name, Figures::rate);
                let cpu = records.median(case, name, Figures::cpu_us);
                let cpu_ratio = records.ratio(case, name, BASELINE, Figures::cpu_us);
                text += &format!(
                    " | {} | {} | {} | {}",
                    rate.map_or("–".to_owned(), short),
                    spelled(records.ratio(case, name, BASELINE, Figures::rate)),
                    cpu.map_or("–".to_owned(), |cpu| format!("{cpu:.2}")),
                    cpu_ratio.map_or("–".to_owned(), |ratio| format!("{:.2}", ratio.estimate)),
                );
            }
            text += " |\n";
        }
        text += "\n";
    }
    text
}

/// A line of [`goals`]: whether one is at least so good as another.
struct Goal {
    what: String,
    case: String,
    one: &'static str,
    others: Vec<&'static str>,
    /// At least so much of the rate; of the CPU at most.
    bound: f64,
    cpu: bool,
}

fn wanted() -> Vec<Goal> {
    let mut goals = Vec::new();
    let mut add = |what: &str, case: String, one, others: &[&'static str], bound, cpu| {
        goals.push(Goal { what: what.to_owned(), case, one, others: others.to_vec(), bound, cpu });
    };
    for depth in DEPTHS {
        let case = || format!("warm read ×{depth}");
        for one in ["fibers auto", "tasks auto", "tasks driven"] {
            add("the page cache in the caller", case(), one, &["nowait"], 0.95, false);
            add("the page cache, and tokio::fs", case(), one, &["tokio::fs"], 8.0, false);
        }
    }
    // Where there is a core for more than one of them.
    for depth in [32, 128] {
        let case = format!("warm read ×{depth}");
        add("one pool, beyond one ring", case, "threads auto", &[BASELINE], 1.0, false);
    }
    for group in ["cold read", "cold write"] {
        for one in ["fibers auto", "tasks auto", "tasks driven", "threads auto"] {
            add("one at a time", format!("{group} ×1"), one, &[BASELINE], 0.95, false);
        }
        for depth in [32, 128] {
            let case = || format!("{group} ×{depth}");
            for one in ["fibers auto", "tasks auto", "tasks driven"] {
                add("many at a time", case(), one, &["fio", BASELINE], 1.0, false);
                add("many at a time, CPU", case(), one, &[BASELINE], 1.3, true);
            }
        }
    }
    for one in ["fibers auto", "tasks auto", "tasks driven", "threads auto"] {
        let case = "write and fdatasync ×1".to_owned();
        add("fdatasync", case, one, &["threads"], 0.95, false);
    }
    for one in ["futures thread", "tasks thread", "fibers thread"] {
        add("an I/O thread", "nop ×32".to_owned(), one, &[BASELINE], 0.22, false);
    }
    for one in ["fibers ring", "tasks driven"] {
        add("the caller's ring", "nop ×32".to_owned(), one, &[BASELINE], 0.33, false);
    }
    for (group, ..) in GROUPS {
        for depth in DEPTHS {
            let case = || format!("{group} ×{depth}");
            let fibers = ["fibers caller", "fibers ring", "fibers thread"];
            add("auto is the best", case(), "fibers auto", &fibers, 1.0, false);
            let tasks = ["tasks caller", "tasks thread"];
            add("auto is the best", case(), "tasks auto", &tasks, 1.0, false);
            let threads = ["threads caller", "threads thread"];
            add("auto is the best", case(), "threads auto", &threads, 1.0, false);
        }
    }
    goals
}

/// What is to be reached, and whether it is.
pub(crate) fn goals(records: &Records) -> String {
    let mut text =
        "| to reach | case | who | of | ratio [95 %] | wanted | |\n|---|---|---|---|--:|--:|---|\n"
            .to_owned();
    for goal in wanted() {
        let Some(other) = records.best(&goal.case, &goal.others) else { continue };
        let value = if goal.cpu { Figures::cpu_us } else { Figures::rate };
        let Some(ratio) = records.ratio(&goal.case, goal.one, other, value) else { continue };
        let holds = |value: f64| if goal.cpu { value <= goal.bound } else { value >= goal.bound };
        let verdict = match ratio.interval {
            Some((low, high)) if holds(low) && holds(high) => "holds",
            Some((low, high)) if !holds(low) && !holds(high) => "**does not hold**",
            // The rounds do not say.
            _ if holds(ratio.estimate) => "open, holds by the estimate",
            _ => "open, does not by the estimate",
        };
        let sign = if goal.cpu { "≤" } else { "≥" };
        text += &format!(
            "| {} | {} | {} | {other} | {} | {sign} {:.2} | {verdict} |\n",
            goal.what,
            goal.case,
            goal.one,
            spelled(Some(ratio)),
            goal.bound
        );
    }
    text
}
