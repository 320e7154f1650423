//! `kapok load --join` and `--listen`: several generators, one report.

use std::io;
use std::process::ExitCode;

use indicatif::ProgressBar;
use kapok_lab::Stop;
use kapok_lab::load::{self, Gathering, JoinConfig};

use super::{build, print, progress_bar, verdict, write};
use crate::cli::LoadOptions;

/// Has the generators run, prints what they found, and fails as one of them would.
pub(super) fn run(options: &LoadOptions, stop: Stop) -> io::Result<ExitCode> {
    let config = JoinConfig {
        commands: options.join.clone(),
        listen: options.listen.zip(options.generators),
        wait: options.wait,
        build: build(),
        stop: Some(stop),
    };
    let bar = progress_bar(options.json);
    let joined = load::join(&config, &mut |gathering| show(&bar, gathering));
    bar.finish_and_clear();
    let joined = joined?;
    let json = options.json.then(|| serde_json::to_string(&joined)).transpose()?;
    write(json, |out| {
        print::print(out, &joined.report)?;
        print::print_parts(out, &joined.parts)
    })?;
    Ok(verdict(&joined.report))
}

fn show(bar: &ProgressBar, gathering: Gathering) {
    let message = match gathering {
        // Standard output is for the result.
        Gathering::Listening(addr) => return eprintln!("generators may connect to {addr}"),
        Gathering::TurnedAway(why) => return tracing::warn!("{why}"),
        Gathering::Ready(ready, all) => format!("{ready} of {all} generators are ready"),
        Gathering::Running(since) => format!("{:.1} s · measuring", since.as_secs_f64()),
        Gathering::Collected(parts, all) => format!("{parts} of {all} parts are here"),
    };
    bar.set_message(message);
}
