//! The questions: what was said by flags, what is asked for, and what is taken otherwise.

use std::io::{self, BufRead, Write};

use kapok_lab::advise::{Preset, Question};

use crate::cli::{AdviseOptions, bytes, microseconds, milliseconds};

/// One thing to know about a workload.
struct Item {
    /// As in the flag.
    name: &'static str,
    /// What is asked for, with its unit.
    asks: &'static str,
    /// What it is now, as somebody would type it.
    shown: fn(&Question) -> String,
    /// Takes what somebody has typed.
    take: fn(&mut Question, &str) -> Result<(), String>,
    /// Whether a flag has said it.
    said: fn(&AdviseOptions) -> bool,
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "that is no such number".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.strip_suffix('%').map_or_else(
        || number::<f64>(text),
        |percent| Ok(number::<f64>(percent.trim())? / 100.0),
    )?;
    match (0.0..=1.0).contains(&share) {
        true => Ok(share),
        false => Err("a share is from 0 to 1, or from 0 % to 100 %".to_owned()),
    }
}

fn yes(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(true),
        "n" | "no" => Ok(false),
        _ => Err("yes or no".to_owned()),
    }
}

fn shown_yes(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

/// In the order in which they are asked.
const ITEMS: [Item; 11] = [
    Item {
        name: "connections",
        asks: "Connections that are open at once",
        shown: |question| question.connections.to_string(),
        take: |question, text| {
            question.connections = number(text)?;
            if question.connections == 0 { Err("at least one".to_owned()) } else { Ok(()) }
        },
        said: |options| options.connections.is_some(),
    },
    Item {
        name: "active-share",
        asks: "The part of them that carries traffic (0.1, or 10 %)",
        shown: |question| question.active_share.to_string(),
        take: |question, text| {
            let share = share(text)?;
            question.active_share = share;
            if share == 0.0 { Err("more than none".to_owned()) } else { Ok(()) }
        },
        said: |options| options.active_share.is_some(),
    },
    Item {
        name: "request",
        asks: "Bytes of a request",
        shown: |question| question.request_bytes.to_string(),
        take: |question, text| {
            let same = question.request_bytes == question.response_bytes;
            question.request_bytes = bytes(text)? as usize;
            if same {
                question.response_bytes = question.request_bytes;
            }
            Ok(())
        },
        said: |options| options.request.is_some(),
    },
    Item {
        name: "response",
        asks: "Bytes of a response",
        shown: |question| question.response_bytes.to_string(),
        take: |question, text| {
            question.response_bytes = bytes(text)? as usize;
            Ok(())
        },
        said: |options| options.response.is_some(),
    },
    Item {
        name: "requests-per-connection",
        asks: "Requests before a connection is closed (0: it stays open)",
        shown: |question| question.requests_per_connection.unwrap_or(0).to_string(),
        take: |question, text| {
            question.requests_per_connection = Some(number(text)?).filter(|requests| *requests > 0);
            Ok(())
        },
        said: |options| options.requests_per_connection.is_some(),
    },
    Item {
        name: "cpu-us",
        asks: "CPU time of the handler for each request, in µs",
        shown: |question| (question.cpu_per_request.as_secs_f64() * 1e6).to_string(),
        take: |question, text| {
            question.cpu_per_request = microseconds(text)?;
            Ok(())
        },
        said: |options| options.cpu_us.is_some(),
    },
    Item {
        name: "delay-ms",
        asks: "What a request waits for another server, in ms (0: there is none)",
        shown: |question| (question.delay.as_secs_f64() * 1e3).to_string(),
        take: |question, text| {
            question.delay = milliseconds(text)?;
            Ok(())
        },
        said: |options| options.delay_ms.is_some(),
    },
    Item {
        name: "file-share",
        asks: "The part of the requests that reads a file",
        shown: |question| question.file_share.to_string(),
        take: |question, text| {
            question.file_share = share(text)?;
            Ok(())
        },
        said: |options| options.file_share.is_some(),
    },
    Item {
        name: "memory",
        asks: "Memory that the server may use (such as 64M; 0: no limit)",
        shown: |question| question.memory_limit_bytes.unwrap_or(0).to_string(),
        take: |question, text| {
            question.memory_limit_bytes = if text == "0" { None } else { Some(bytes(text)?) };
            Ok(())
        },
        said: |options| options.memory.is_some(),
    },
    Item {
        name: "no-io-uring",
        asks: "Must it run where io_uring is denied? (yes or no)",
        shown: |question| shown_yes(question.without_ring),
        take: |question, text| {
            question.without_ring = yes(text)?;
            Ok(())
        },
        said: |options| options.no_io_uring,
    },
    Item {
        name: "objective",
        asks: "What is to be best: throughput, p99, memory or cpu",
        shown: |question| question.objective.to_string(),
        take: |question, text| {
            question.objective = text.parse().map_err(|error| format!("{error}"))?;
            Ok(())
        },
        said: |options| options.objective.is_some(),
    },
];

/// What the flags say; the rest is the preset's, or the default.
pub(super) fn said(options: &AdviseOptions) -> Question {
    let mut question = options.preset.map_or_else(Question::default, Preset::question);
    if let Some(connections) = options.connections {
        question.connections = connections;
    }
    if let Some(share) = options.active_share {
        question.active_share = share;
    }
    if let Some(bytes) = options.request {
        // An echo stays one, unless something else is said.
        if question.response_bytes == question.request_bytes {
            question.response_bytes = bytes as usize;
        }
        question.request_bytes = bytes as usize;
    }
    if let Some(bytes) = options.response {
        question.response_bytes = bytes as usize;
    }
    if let Some(requests) = options.requests_per_connection {
        question.requests_per_connection = Some(requests).filter(|requests| *requests > 0);
    }
    if let Some(cpu) = options.cpu_us {
        question.cpu_per_request = cpu;
    }
    if let Some(delay) = options.delay_ms {
        question.delay = delay;
    }
    if let Some(share) = options.file_share {
        question.file_share = share;
    }
    question.memory_limit_bytes = options.memory.or(question.memory_limit_bytes);
    question.rate = options.rate.or(question.rate);
    question.without_ring |= options.no_io_uring;
    question.by_hand |= options.by_hand;
    question.may_spin |= options.may_spin;
    match (options.objective, options.rate) {
        (Some(objective), _) => question.objective = objective,
        // At a fixed rate everybody has the same throughput; latency is what is asked for then.
        (None, Some(_)) => question.objective = kapok_lab::advise::Objective::P99,
        (None, None) => {}
    }
    question
}

/// What no flag has said, each with what is taken instead.
pub(super) fn unsaid(options: &AdviseOptions, question: &Question) -> String {
    let items = ITEMS.iter().filter(|item| !(item.said)(options));
    let items = items.map(|item| format!("{} {}", item.name, (item.shown)(question)));
    items.collect::<Vec<_>>().join(", ")
}

/// Asks for what no flag has said. An empty line takes what is in brackets; so does the end of the input,
/// for all that is left.
///
/// # Errors
///
/// What reading and writing give.
pub(super) fn ask(
    options: &AdviseOptions,
    question: &mut Question,
    input: &mut impl BufRead,
    output: &mut impl Write,
) -> io::Result<()> {
    for item in ITEMS.iter().filter(|item| !(item.said)(options)) {
        loop {
            write!(output, "{} [{}]: ", item.asks, (item.shown)(question))?;
            output.flush()?;
            let mut line = String::new();
            if input.read_line(&mut line)? == 0 {
                writeln!(output)?;
                return Ok(());
            }
            let text = line.trim();
            if text.is_empty() {
                break;
            }
            // What is refused leaves the question as it was.
            let mut changed = question.clone();
            match (item.take)(&mut changed, text) {
                Ok(()) => {
                    *question = changed;
                    break;
                }
                Err(reason) => writeln!(output, "  {text}: {reason}")?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::time::Duration;

    use clap::Parser;
    use kapok_lab::advise::Objective;

    use super::*;
    use crate::cli::{Cli, Command};

    fn options(arguments: &[&str]) -> AdviseOptions {
        let all = ["kapok", "advise"].iter().chain(arguments);
        match Cli::parse_from(all).command {
            Command::Advise(options) => *options,
            other => panic!("{other:?}"),
        }
    }

    fn asked(arguments: &[&str], typed: &str) -> (Question, String) {
        let options = options(arguments);
        let mut question = said(&options);
        let mut output = Vec::new();
        ask(&options, &mut question, &mut Cursor::new(typed), &mut output).unwrap();
        (question, String::from_utf8(output).unwrap())
    }

    #[test]
    fn every_answer_lands_where_it_belongs() {
        let typed = "500\n10 %\n128\n4k\n20\n2.5\n5\n0.25\n64M\nyes\np99\n";
        let (question, said) = asked(&[], typed);
        let expected = Question {
            connections: 500,
            active_share: 0.1,
            request_bytes: 128,
            response_bytes: 4096,
            requests_per_connection: Some(20),
            cpu_per_request: Duration::from_nanos(2500),
            delay: Duration::from_millis(5),
            file_share: 0.25,
            memory_limit_bytes: Some(64 << 20),
            without_ring: true,
            objective: Objective::P99,
            ..Question::default()
        };
        assert_eq!(question, expected);
        assert_eq!(said.matches("]: ").count(), ITEMS.len(), "{said}");
    }

    #[test]
    fn an_empty_line_and_the_end_of_the_input_take_the_defaults() {
        assert_eq!(asked(&[], "\n\n\n").0, Question::default());
        assert_eq!(asked(&[], "").0, Question::default());
        let (question, _) = asked(&[], "\n\n512");
        // The response follows the request until it is said.
        assert_eq!((question.request_bytes, question.response_bytes), (512, 512));
    }

    #[test]
    fn what_is_refused_is_asked_again_with_the_reason() {
        let (question, said) = asked(&[], "many\n0\n9\n1.5\n0.5\n");
        assert_eq!((question.connections, question.active_share), (9, 0.5));
        assert!(said.contains("many: that is no such number"), "{said}");
        assert!(said.contains("0: at least one") && said.contains("from 0 to 1"), "{said}");
        assert_eq!(said.matches("open at once [64]").count(), 3, "the default is still 64: {said}");
    }

    #[test]
    fn what_a_flag_has_said_is_not_asked() {
        let flags = ["--connections", "7", "--objective", "cpu"];
        let (question, said) = asked(&flags, "0.5\n");
        assert_eq!((question.connections, question.active_share), (7, 0.5));
        assert!(!said.contains("open at once") && !said.contains("to be best"), "{said}");
        let unsaid = unsaid(&options(&flags), &question);
        assert!(
            unsaid.starts_with("active-share 0.5, request 64") && !unsaid.contains("objective")
        );
    }

    #[test]
    fn flags_come_before_the_preset_and_a_rate_asks_for_latency() {
        let question = said(&options(&["--preset", "web-server", "--connections", "9"]));
        assert_eq!((question.connections, question.file_share), (9, 1.0));
        let question = said(&options(&["--rate", "100"]));
        assert_eq!((question.rate, question.objective), (Some(100.0), Objective::P99));
        let question = said(&options(&["--request", "100"]));
        assert_eq!(question.response_bytes, 100);
    }
}
