//! A report as lines of text.

use std::time::Duration;

use kapok_lab::observe::{CallLine, Report, RingLine, ThreadLine};

/// How many kinds of calls and threads a live view has; the summary has more.
const LIVE: usize = 10;
const SUMMARY: usize = 25;

/// The last moment, for a terminal.
pub(crate) fn live(report: &Report, since: Duration) -> Vec<String> {
    let mut lines = vec![format!(
        "{} ({}) · {:.0} s · Ctrl-C ends with the summary",
        report.name,
        report.process,
        since.as_secs_f64()
    )];
    lines.extend(body(report, LIVE));
    lines
}

/// The last moment in one line.
pub(crate) fn line(report: &Report, since: Duration) -> String {
    let per_second = |count: u64| rate(count as f64 / report.seconds.max(1e-9));
    let mut line = format!(
        "{:.0} s · CPU {:.0} % of a core · waited {}/s · {} resident · {} threads",
        since.as_secs_f64(),
        report.cores_used * 100.0,
        per_second(report.voluntary_switches),
        bytes(report.memory.resident),
        report.threads.len()
    );
    if let Some(states) = &report.sockets {
        line += &format!(" · {} sockets", states.iter().map(|state| state.count).sum::<usize>());
    }
    if let Some(calls) = report.calls {
        line += &format!(" · {} system calls/s", per_second(calls));
    }
    if !report.ring.is_empty() {
        let operations: f64 = report.ring.iter().map(|kind| kind.per_second).sum();
        line += &format!(" · {} operations of io_uring/s", rate(operations));
    }
    line
}

/// All of it.
pub(crate) fn summary(report: &Report, colours: bool) -> Vec<String> {
    let bold = |text: String| if colours { format!("\x1b[1m{text}\x1b[0m") } else { text };
    let children = match report.processes.len() {
        0 | 1 => String::new(),
        all => format!(" and {} children", all - 1),
    };
    let mut lines = vec![bold(format!(
        "{} ({}){children} · {:.1} s",
        report.name, report.process, report.seconds
    ))];
    lines.extend(body(report, SUMMARY));
    if let Some(counted) = &report.counted_by {
        lines.push(format!("counted by {counted}"));
    }
    for reason in &report.not_seen {
        lines.push(format!("not seen: {reason}"));
    }
    lines
}

fn body(report: &Report, limit: usize) -> Vec<String> {
    let per_second = |count: u64| rate(count as f64 / report.seconds.max(1e-9));
    let mut lines = vec![format!(
        "CPU {:.0} % of a core · switches: waited {}/s, taken off {}/s{}",
        report.cores_used * 100.0,
        per_second(report.voluntary_switches),
        per_second(report.involuntary_switches),
        match (report.wakes_taken, report.wakes_given) {
            (Some(taken), Some(given)) =>
                format!(" · woken {}/s, wakes others {}/s", per_second(taken), per_second(given)),
            _ => String::new(),
        }
    )];
    let memory = &report.memory;
    lines.push(format!(
        "memory {} resident{} · {} its own · page tables {} · {} reserved",
        bytes(memory.resident),
        memory
            .proportional
            .map_or_else(String::new, |share| format!(", {} its share", bytes(share))),
        bytes(memory.private),
        bytes(memory.page_tables),
        bytes(memory.reserved)
    ));
    if let Some(calls) = report.calls {
        lines.push(String::new());
        lines.push(format!("system calls {calls}, {}/s", per_second(calls)));
        if !report.calls_by_kind.is_empty() {
            lines.push(format!(
                "  {:<18}{:>10}{:>12}{:>10}{:>10}{:>12}{:>10}",
                "call", "per second", "count", "errors", "EAGAIN", "time s", "each µs"
            ));
            lines.extend(report.calls_by_kind.iter().take(limit).map(call));
            lines.extend(more(report.calls_by_kind.len(), limit, "kinds"));
        }
    }
    if !report.ring.is_empty() {
        lines.push(String::new());
        lines.push(format!(
            "  {:<18}{:>10}{:>12}{:>12}{:>10}",
            "io_uring", "per second", "submitted", "landed", "errors"
        ));
        lines.extend(report.ring.iter().take(limit).map(ring));
        lines.extend(more(report.ring.len(), limit, "kinds"));
    }
    if let Some(transfers) = report.transfers
        && report.calls_by_kind.is_empty()
    {
        lines.push(format!(
            "read(2) and its like {}/s, {}/s · write(2) and its like {}/s, {}/s (not recv, send, io_uring)",
            per_second(transfers.reads),
            bytes((transfers.bytes_read as f64 / report.seconds.max(1e-9)) as u64),
            per_second(transfers.writes),
            bytes((transfers.bytes_written as f64 / report.seconds.max(1e-9)) as u64),
        ));
    }
    sockets(report, &mut lines);
    lines.push(String::new());
    lines.push(format!(
        "  {:<18}{:>8}{:>6}{:>8}{:>10}{:>12}{:>12}",
        "thread", "number", "state", "CPU %", "ready %", "waited", "taken off"
    ));
    lines.extend(report.threads.iter().take(limit).map(thread));
    lines.extend(more(report.threads.len(), limit, "threads"));
    lines
}

fn sockets(report: &Report, lines: &mut Vec<String>) {
    let Some(states) = &report.sockets else { return };
    lines.push(String::new());
    let held = report.socket_memory.map_or(0, |memory| memory.total());
    let all: usize = states.iter().map(|state| state.count).sum();
    lines.push(format!("sockets {all}, for whose data the kernel holds {}", bytes(held)));
    for state in states {
        lines.push(format!(
            "  {:<5}{:<12}{:>7}   unread {}   unsent {}   sent again {}",
            state.protocol,
            state.state,
            state.count,
            state.receive_queue,
            state.send_queue,
            state.retransmits
        ));
    }
    for socket in &report.notable_sockets {
        let peer = socket.peer.as_ref().map_or_else(String::new, |peer| format!(" ← {peer}"));
        let queues = if socket.state == "LISTEN" {
            format!("{} of {} wait to be accepted", socket.receive_queue, socket.send_queue)
        } else {
            format!(
                "unread {} unsent {} sent again {}",
                socket.receive_queue, socket.send_queue, socket.retransmits
            )
        };
        lines.push(format!("    {} {}{peer}  {queues}", socket.state, socket.local));
    }
}

fn more(all: usize, limit: usize, what: &str) -> Option<String> {
    (all > limit).then(|| format!("  … and {} {what} more", all - limit))
}

fn count(count: Option<u64>) -> String {
    count.map_or_else(|| "–".to_owned(), |count| count.to_string())
}

fn call(line: &CallLine) -> String {
    let number = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
    };
    format!(
        "  {:<18}{:>10}{:>12}{:>10}{:>10}{:>12}{:>10}",
        line.name,
        rate(line.per_second),
        line.count,
        count(line.errors),
        count(line.would_block),
        number(line.seconds, 3),
        number(line.us_each, 1)
    )
}

fn ring(line: &RingLine) -> String {
    format!(
        "  {:<18}{:>10}{:>12}{:>12}{:>10}",
        line.name,
        rate(line.per_second),
        line.submitted,
        count(line.landed),
        count(line.errors)
    )
}

fn thread(line: &ThreadLine) -> String {
    format!(
        "  {:<18}{:>8}{:>6}{:>8.1}{:>10}{:>12}{:>12}",
        line.name,
        line.id,
        line.state,
        line.cpu_share * 100.0,
        line.ready_share.map_or_else(|| "–".to_owned(), |share| format!("{:.1}", share * 100.0)),
        line.voluntary,
        line.involuntary
    )
}

fn rate(per_second: f64) -> String {
    match per_second {
        ..10.0 => format!("{per_second:.1}"),
        10.0..100_000.0 => format!("{per_second:.0}"),
        _ => format!("{:.0}k", per_second / 1e3),
    }
}

fn bytes(count: u64) -> String {
    match count {
        0..10_240 => format!("{count} B"),
        10_240..10_485_760 => format!("{:.0} KiB", count as f64 / 1024.0),
        10_485_760..10_737_418_240 => format!("{:.0} MiB", count as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", count as f64 / 1_073_741_824.0),
    }
}
