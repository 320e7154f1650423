//! `kapok advise`: asks, measures, and says which model.

mod prompt;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use kapok_lab::advise::{self, Advice, AdviseConfig, Crossing, Decision, Versus, cost};
use kapok_lab::compare::{MARGIN, Ratio, Verdict};
use kapok_lab::{Model, Stop};

use crate::cli::AdviseOptions;
use crate::serve::stop_on_signals;

/// Fewer rounds than these cannot tell two models apart.
const FEW_ROUNDS: usize = 7;

/// Measures and prints; fails when no model could be measured, or it was stopped.
pub(crate) fn run(options: &AdviseOptions) -> io::Result<ExitCode> {
    let mut question = prompt::said(options);
    if options.ask || (io::stdin().is_terminal() && options.preset.is_none()) {
        // Standard output is for the result.
        prompt::ask(options, &mut question, &mut io::stdin().lock(), &mut io::stderr())?;
    } else {
        let unsaid = prompt::unsaid(options, &question);
        if !unsaid.is_empty() {
            let of = options.preset.map_or_else(String::new, |one| format!(" of the preset {one}"));
            eprintln!("Not asked for, and taken by default{of}: {unsaid}");
        }
    }
    question.check()?;
    // Only now: until here Ctrl-C ends the questions as it ends any program.
    let stop = Stop::new()?;
    stop_on_signals(&stop)?;
    let commit = env!("KAPOK_COMMIT");
    let config = AdviseConfig {
        program: std::env::current_exe()?,
        build: format!("kapok {} {commit}", env!("CARGO_PKG_VERSION")).trim().to_owned(),
        versions: env!("KAPOK_VERSIONS").split(" · ").map(str::to_owned).collect(),
        question,
        time: options.seconds,
        cross_over: !options.no_cross_over,
        stop: Some(stop),
    };
    let style = ProgressStyle::with_template("{bar:24} {percent:>3} % · {elapsed} · {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(1000).with_style(style);
    let advised = advise::run(&config, &mut |what, share| {
        bar.set_position((share * 1000.0) as u64);
        bar.set_message(what.to_owned());
    });
    bar.finish_and_clear();
    let advice = advised?;
    let mut stdout = io::stdout().lock();
    if options.json {
        writeln!(stdout, "{}", serde_json::to_string(&advice)?)?;
    } else {
        print(&mut stdout, &advice)?;
    }
    stdout.flush()?;
    let whole = advice.decision.is_some() && !advice.stopped_early;
    Ok(ExitCode::from(if whole { 0 } else { 1 }))
}

fn print(out: &mut impl Write, advice: &Advice) -> io::Result<()> {
    let environment = &advice.environment;
    writeln!(
        out,
        "{} · {} · {}{} · measured for {:.0} s",
        environment.build,
        environment.kernel,
        environment.cpu,
        if environment.virtual_machine { " (virtual machine)" } else { "" },
        advice.seconds
    )?;
    writeln!(out, "{}", advice.question.describe())?;
    if advice.stopped_early {
        writeln!(out, "Stopped by a signal: by what was measured until then.")?;
    }
    writeln!(out)?;
    match &advice.decision {
        Some(decision) => print_decision(out, advice, decision)?,
        None => writeln!(out, "  No model: nobody could be measured.")?,
    }
    print_figures(out, advice)?;
    if !advice.excluded.is_empty() {
        writeln!(out, "\nNot to be had:")?;
        for one in &advice.excluded {
            writeln!(out, "  {:<13} {}", one.model, one.reason)?;
        }
    }
    if let Some(decision) = &advice.decision {
        print_crossings(out, advice, decision)?;
    }
    if !advice.losses.is_empty() {
        writeln!(out, "\nWhere this advice loses:")?;
        for loss in &advice.losses {
            writeln!(out, "  · {loss}")?;
        }
    }
    writeln!(
        out,
        "\nThe textbook's decision tree, with {} of this machine:",
        advice.question.objective.cost()
    )?;
    for line in &advice.tree.lines {
        writeln!(out, "  {line}")?;
    }
    writeln!(out, "  → {}", advice.tree.judged)
}

/// The answer: the model, and its margin.
fn print_decision(out: &mut impl Write, advice: &Advice, decision: &Decision) -> io::Result<()> {
    let model = &decision.model;
    let described = model.parse().map_or("", Model::describe);
    writeln!(out, "  {model}: {described}")?;
    let unit = advice.question.objective.cost();
    match decision.next() {
        Some(next) => writeln!(out, "  {}", margin(next, unit))?,
        None => writeln!(out, "  nobody else could be measured")?,
    }
    if let Some(told) =
        decision.others.iter().skip(1).find(|other| other.ratio.verdict == Verdict::Higher)
        && decision.next().is_some_and(|next| next.ratio.verdict != Verdict::Higher)
    {
        writeln!(out, "  {}", margin(told, unit))?;
    }
    if decision.fastest != *model {
        writeln!(
            out,
            "  {} is the fastest measured, by less than 5 %, and {model} is simpler to write",
            decision.fastest
        )?;
    }
    if decision.others.iter().all(|other| other.ratio.rounds < FEW_ROUNDS) {
        writeln!(
            out,
            "  A first look, not a finding: so few rounds settle nothing; give it more --seconds"
        )?;
    }
    let auto = &advice.auto;
    match &auto.better {
        Some(better) => writeln!(
            out,
            "  --engine auto takes {}, and {} costs {} of it here",
            auto.model,
            better.model,
            times(&better.ratio)
        ),
        None => writeln!(out, "  --engine auto takes {} for fibers: {}", auto.model, auto.reason),
    }
}

fn margin(versus: &Versus, unit: &str) -> String {
    let Versus { model, ratio } = versus;
    let rounds = ratio.rounds;
    match ratio.verdict {
        Verdict::Indistinguishable => {
            format!("indistinguishable from {model}: {} over {rounds} rounds", times(ratio))
        }
        Verdict::Unsettled => {
            format!("not told apart from {model} yet: {} over {rounds} rounds", times(ratio))
        }
        Verdict::Higher => format!(
            "{:.0} % less than {model}, which costs {} ({unit}; {rounds} rounds)",
            (1.0 - 1.0 / ratio.estimate) * 100.0,
            times(ratio)
        ),
        Verdict::Lower => {
            format!("{model} costs {} ({unit}; {rounds} rounds)", times(ratio))
        }
    }
}

/// A ratio with its interval.
fn times(ratio: &Ratio) -> String {
    match ratio.interval {
        Some((low, high)) => format!("{:.2} times [{low:.2}, {high:.2}]", ratio.estimate),
        None => format!("{:.2} times", ratio.estimate),
    }
}

fn print_figures(out: &mut impl Write, advice: &Advice) -> io::Result<()> {
    if advice.figures.is_empty() {
        return Ok(());
    }
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_BORDERS_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header([
            "model",
            "requests/s",
            "p99\nµs",
            "CPU µs\n/request",
            "memory",
            "relative to\nthe advised [95 %]",
            "rounds",
        ]);
    let decision = advice.decision.as_ref();
    for one in &advice.figures {
        let versus = decision
            .and_then(|decision| decision.others.iter().find(|other| other.model == one.model));
        // Without a reply only memory is known.
        let known =
            |text: String| if one.requests_per_second > 0.0 { text } else { "–".to_owned() };
        let cells = [
            one.model.clone(),
            known(format!("{:.0}", one.requests_per_second)),
            known(format!("{:.0}", one.p99_us)),
            known(format!("{:.2}", one.cpu_us)),
            one.memory_bytes
                .map_or_else(|| "–".to_owned(), |bytes| format!("{:.1} MiB", bytes / 1_048_576.0)),
            match versus {
                Some(versus) => format!("{} {}", times(&versus.ratio), versus.ratio.verdict),
                None if decision.is_some_and(|decision| decision.model == one.model) => {
                    "advised".to_owned()
                }
                None => "first rounds only".to_owned(),
            },
            one.rounds.to_string(),
        ];
        table.add_row(cells.into_iter().enumerate().map(|(column, text)| {
            let left = column == 0 || column == 5;
            let side = if left { CellAlignment::Left } else { CellAlignment::Right };
            Cell::new(text).set_alignment(side)
        }));
    }
    writeln!(out, "{table}")
}

fn print_crossings(out: &mut impl Write, advice: &Advice, decision: &Decision) -> io::Result<()> {
    if advice.crossings.is_empty() && advice.fades_at_cpu_us.is_none() {
        return Ok(());
    }
    writeln!(out, "\nCross-over, from points beside it that were measured shortly:")?;
    for crossing in &advice.crossings {
        writeln!(out, "  · {}", crossed(crossing, &decision.model))?;
    }
    if let Some(us) = advice.fades_at_cpu_us {
        writeln!(
            out,
            "  · by the cost model, beyond what was measured: from {} of CPU a request on, the margin is \
             below 5 %",
            cost(kapok_lab::advise::Objective::Cpu, us)
        )?;
    }
    Ok(())
}

fn crossed(crossing: &Crossing, advised: &str) -> String {
    let Crossing { from, to, winner, .. } = crossing;
    let unit = crossing.axis.unit();
    if let Some(obstacle) = &crossing.obstacle {
        return format!("{to} {unit}: {advised} {obstacle}; {winner} does best");
    }
    match (&crossing.ratio, crossing.meet_at()) {
        (Some(ratio), Some(at)) if crossing.is_crossed() => format!(
            "{to} {unit}: {winner} wins, {advised} costs {}; they meet at about {at} (by lines between \
             {from} and {to})",
            times(ratio)
        ),
        (Some(ratio), None) if crossing.is_crossed() => {
            format!("{to} {unit}: {winner} wins, {advised} costs {}", times(ratio))
        }
        (Some(ratio), _) if ratio.estimate > 1.0 + MARGIN => format!(
            "{to} {unit}: perhaps {winner}, but {} rounds do not settle it: {advised} costs {}",
            ratio.rounds,
            times(ratio)
        ),
        (Some(ratio), _) => {
            format!(
                "{to} {unit}: {winner} is ahead by less than 5 %, {advised} costs {}",
                times(ratio)
            )
        }
        (None, _) => format!("{to} {unit}: still {winner}"),
    }
}
