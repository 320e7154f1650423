//! `auto` beside the best fixed choice of where an operation runs, in every cell.

use crate::cases::{Case, all};
use crate::job::Figures;
use crate::markdown::spelled;
use crate::record::Records;

/// Who calls, and the fixed choices that there are for it.
const CALLERS: [(&str, &[&str]); 3] = [
    ("fibers auto", &["fibers caller", "fibers ring", "fibers thread"]),
    ("tasks auto", &["tasks caller", "tasks thread"]),
    ("threads auto", &["threads caller", "threads thread"]),
];

/// All who are in the table.
pub(crate) fn contenders() -> Vec<&'static str> {
    CALLERS
        .iter()
        .flat_map(|(auto, fixed)| [*auto].into_iter().chain(fixed.iter().copied()))
        .collect()
}

/// A line for each case and caller. The best is the best of these rounds, luck included, so that among
/// equals `auto` is a little below 1.
pub(crate) fn table(records: &Records) -> String {
    let mut text =
        "| case | auto of | best fixed | rate [95 %] | CPU [95 %] | |\n|---|---|---|--:|--:|---|\n"
            .to_owned();
    let mut counts = [0; 3];
    for case in all().iter().map(Case::name) {
        for (auto, fixed) in CALLERS {
            let Some(best) = records.best(&case, fixed) else { continue };
            let Some(rate) = records.ratio(&case, auto, best, Figures::rate) else { continue };
            let cpu = records.ratio(&case, auto, best, Figures::cpu_us);
            let (at, verdict) = match rate.interval {
                Some((_, high)) if high < 1.0 => (0, "**loses**"),
                Some((low, _)) if low > 1.0 => (2, "wins"),
                _ => (1, "within noise"),
            };
            counts[at] += 1;
            text += &format!(
                "| {case} | {} | {} | {} | {} | {verdict} |\n",
                auto.trim_end_matches(" auto"),
                best.split_once(' ').map_or(best, |(_, via)| via),
                spelled(Some(rate)),
                spelled(cpu),
            );
        }
    }
    let [loses, noise, wins] = counts;
    text + &format!(
        "\nOf {} cells auto wins {wins}, loses {loses}; {noise} are within noise.\n",
        loses + noise + wins
    )
}
