//! The textbook's decision tree, with this machine's figures in it.

use serde::{Deserialize, Serialize};

use super::choice::Decision;
use super::eligible::Excluded;
use super::figures::Figures;
use super::{Objective, Question};
use crate::compare::Verdict;

/// Fewer connections than these are few, by the book.
const FEW: usize = 100;

/// A way through the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Branch {
    /// Few connections: a blocking thread for each.
    Few,
    /// The handler computes more than the server moves: a pool of threads.
    CpuBound,
    /// Many connections that wait: async, or fibers.
    Waiting,
    /// Control over every call: an event loop of one's own.
    Control,
}

impl Branch {
    const ALL: [Branch; 4] = [Branch::Few, Branch::CpuBound, Branch::Waiting, Branch::Control];

    /// Where the book goes. `best_cpu_us` is the CPU time per request of the cheapest model, the
    /// handler's own in it.
    fn taken(question: &Question, best_cpu_us: Option<f64>) -> Branch {
        let handler = question.cpu_per_request.as_secs_f64() * 1e6;
        if question.by_hand {
            Branch::Control
        } else if question.connections < FEW {
            Branch::Few
        } else if handler > 0.0 && best_cpu_us.is_some_and(|all| handler * 2.0 > all) {
            Branch::CpuBound
        } else {
            Branch::Waiting
        }
    }

    /// The book's models for it; the first is the one it names.
    fn models(self) -> &'static [&'static str] {
        match self {
            Branch::Few => &["threads"],
            Branch::CpuBound => &["thread-pool"],
            Branch::Waiting => &["tokio", "fiber-uring", "fiber-epoll"],
            Branch::Control => &["mio", "epoll", "uring"],
        }
    }

    fn answer(self) -> &'static str {
        match self {
            Branch::Few => "a blocking thread per connection",
            Branch::CpuBound => "a pool of threads, blocking",
            Branch::Waiting => "async tasks, or fibers",
            Branch::Control => "an event loop by hand",
        }
    }
}

/// The tree, and where the workload falls in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tree {
    /// The branch that the book takes.
    pub branch: Branch,
    /// The model that the book names there.
    pub answer: String,
    /// What the measurement says about it.
    pub judged: String,
    /// The tree as text.
    pub lines: Vec<String>,
}

/// A cost with its unit, short.
#[must_use]
pub fn cost(objective: Objective, cost: f64) -> String {
    match objective {
        Objective::Memory => format!("{:.1} MiB", cost / 1_048_576.0),
        _ if cost >= 10_000.0 => format!("{:.1} ms", cost / 1e3),
        _ if cost >= 100.0 => format!("{cost:.0} µs"),
        _ => format!("{cost:.2} µs"),
    }
}

impl Tree {
    pub(super) fn draw(
        question: &Question,
        figures: &[Figures],
        excluded: &[Excluded],
        decision: Option<&Decision>,
    ) -> Tree {
        let objective = question.objective;
        let best_cpu = figures.iter().map(|one| one.cpu_us).filter(|us| *us > 0.0);
        let best_cpu = best_cpu.min_by(f64::total_cmp);
        let branch = Branch::taken(question, best_cpu);
        let figure = |model: &str| match figures.iter().find(|one| one.model == model) {
            Some(one) => match one.cost(objective) {
                Some(figure) => format!("{model} {}", cost(objective, figure)),
                None => format!("{model} –"),
            },
            None => {
                let short = excluded.iter().find(|one| one.model == model);
                format!("{model} {}", short.map_or("–", |_| "cannot"))
            }
        };
        let asked = |branch: Branch| match branch {
            Branch::Few => format!("Few connections, below {FEW}? {}", question.connections),
            Branch::CpuBound => {
                let handler = question.cpu_per_request.as_secs_f64() * 1e6;
                let all = best_cpu.map_or_else(|| "?".to_owned(), |us| format!("{us:.1}"));
                format!("CPU-bound work for each request? {handler} of {all} µs are the handler's")
            }
            Branch::Waiting => "Many connections, bound by I/O?".to_owned(),
            Branch::Control => "Is control over every call needed?".to_owned(),
        };
        let mut lines = Vec::new();
        let (mut reached, mut last) = (true, false);
        for one in Branch::ALL {
            let taken = one == branch;
            // Control is asked for, and asked first of all then: the way leads past the others.
            let on_way = reached && !last;
            let way = if on_way { "┃" } else { "│" };
            lines.push(format!("{} {}", if on_way { "◆" } else { "◇" }, asked(one)));
            let figures: Vec<String> = one.models().iter().map(|model| figure(model)).collect();
            let (arm, mark) = match (taken, one) {
                (true, Branch::Control) => ("┗━ yes ━►", "  ◄ the book's branch"),
                (true, _) => ("┣━ yes ━►", "  ◄ the book's branch"),
                (false, Branch::Control) => ("└─ yes ─▷", ""),
                (false, _) => ("├─ yes ─▷", ""),
            };
            lines.push(format!("{arm} {}: {}{mark}", one.answer(), figures.join(" · ")));
            if one != Branch::Control {
                lines.push(if taken { "│ no".to_owned() } else { format!("{way} no") });
            }
            last |= taken;
            reached &= !taken;
        }
        let answer = branch.models()[0].to_owned();
        let judged = judge(branch, &answer, decision, excluded);
        Tree { branch, answer, judged, lines }
    }
}

/// What the measurement says about the book's answer.
fn judge(
    branch: Branch,
    answer: &str,
    decision: Option<&Decision>,
    excluded: &[Excluded],
) -> String {
    let Some(decision) = decision else { return "nothing was measured".to_owned() };
    let advised = &decision.model;
    if advised == answer {
        return format!("the measurement agrees: {answer}");
    }
    let also =
        if branch.models().contains(&advised.as_str()) { ", in the same branch" } else { "" };
    if let Some(versus) = decision.others.iter().find(|other| other.model == answer) {
        let (low, high) = versus.ratio.interval.unwrap_or((f64::NAN, f64::NAN));
        return match versus.ratio.verdict {
            Verdict::Indistinguishable => {
                format!("the book says {answer}, which is indistinguishable from {advised}{also}")
            }
            verdict => format!(
                "the book says {answer}; it costs {:.2} times what {advised}{also} does [{low:.2}, \
                 {high:.2}]{}",
                versus.ratio.estimate,
                if verdict == Verdict::Unsettled { ", unsettled" } else { "" }
            ),
        };
    }
    if let Some(one) = excluded.iter().find(|one| one.model == answer) {
        return format!("the book says {answer}, which {}; {advised}{also}", one.reason);
    }
    format!(
        "the book says {answer}, which was not among the best of the first rounds; {advised}{also} was"
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn figures(model: &str, cpu_us: f64) -> Figures {
        Figures {
            model: model.to_owned(),
            rounds: 5,
            requests_per_second: 1e6 / cpu_us,
            p99_us: cpu_us * 80.0,
            cpu_us,
            memory_bytes: Some(4e6),
            generator_limited: false,
        }
    }

    fn drawn(question: &Question) -> Tree {
        let figures = [figures("threads", 9.0), figures("tokio", 7.5), figures("epoll", 60.0)];
        let pool = Excluded { model: "thread-pool".into(), reason: "has 64 workers".into() };
        Tree::draw(question, &figures, &[pool], None)
    }

    #[test]
    fn each_question_leads_into_its_branch() {
        let with = |connections| Question { connections, ..Question::default() };
        assert_eq!(drawn(&with(99)).branch, Branch::Few);
        assert_eq!(drawn(&with(100)).branch, Branch::Waiting);
        // The cheapest takes 7.5 µs in all: 3 of them are not most of it, 5 are.
        let busy = |us| Question { cpu_per_request: Duration::from_micros(us), ..with(100) };
        assert_eq!(drawn(&busy(3)).branch, Branch::Waiting);
        assert_eq!(drawn(&busy(5)).branch, Branch::CpuBound);
        assert_eq!(drawn(&Question { by_hand: true, ..with(5) }).branch, Branch::Control);
    }

    #[test]
    fn the_branch_is_marked_once_and_figures_are_this_machines() {
        let tree = drawn(&Question { connections: 1000, ..Question::default() });
        let text = tree.lines.join("\n");
        assert_eq!(text.matches("the book's branch").count(), 1, "{text}");
        let marked = tree.lines.iter().find(|line| line.contains("the book's branch")).unwrap();
        assert!(marked.contains("tokio 7.50 µs"), "{text}");
        assert!(text.contains("threads 9.00 µs") && text.contains("thread-pool cannot"), "{text}");
        // Past the branch, nothing is on the way.
        let after = text.split("the book's branch").nth(1).unwrap();
        assert!(!after.contains('◆') && !after.contains('┃'), "{text}");
    }
}
