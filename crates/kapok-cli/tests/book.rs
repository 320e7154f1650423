//! The book (`docs/book`): what stands in its consoles is typed, and what it says is printed must be
//! printed.
//!
//! Numbers stand for any number, whatever thousands of its unit they count, a run of blanks for any other,
//! `…` for anything in a line, and lines that are not shown may come between those that are.

#![cfg(target_os = "linux")]

use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const LABS: [&str; 3] = ["lab4_blocking_echo", "lab5_async_echo", "lab6_fiber_echo"];

/// What all consoles of a chapter may take together, on a machine with other things to do.
const PATIENCE: Duration = Duration::from_secs(120);

/// Stands between the output of one console and that of the next.
const BETWEEN: &str = "=== next console ===";

/// Chapters measure: one at a time.
static ONE: Mutex<()> = Mutex::new(());

fn book() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/book/src")
}

/// Where the programs of the labs are. They are built with the tests of the whole workspace.
fn labs() -> PathBuf {
    let directory = Path::new(env!("CARGO_BIN_EXE_kapok")).parent().unwrap().join("examples");
    if LABS.iter().any(|lab| !directory.join(lab).exists()) {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--package", "kapok-lab", "--examples"]);
        assert!(build.status().unwrap().success(), "{build:?}");
    }
    directory
}

/// A block ```` ```console ```` of a chapter.
#[derive(Debug, PartialEq, Eq)]
struct Console {
    /// What is typed: lines after `$ `, and after `> ` if they go on.
    commands: String,
    /// What is shown of what is printed.
    shown: Vec<String>,
}

fn consoles(chapter: &str) -> Vec<Console> {
    let mut consoles = Vec::new();
    let mut inside: Option<Console> = None;
    for line in chapter.lines() {
        match (&mut inside, line) {
            (None, "```console") => {
                inside = Some(Console { commands: String::new(), shown: Vec::new() });
            }
            (Some(_), "```") => consoles.extend(inside.take()),
            (Some(console), line) => {
                match line.strip_prefix("$ ").or_else(|| line.strip_prefix("> ")) {
                    Some(command) => console.commands += &format!("{command}\n"),
                    None => console.shown.push(line.to_owned()),
                }
            }
            (None, _) => {}
        }
    }
    assert_eq!(inside, None, "a console without an end");
    consoles
}

/// What stands behind a number in place of its bare unit, where the number would be long: `120k` is a
/// number as `26760` is one, and `1.2 ms` is as long as `1200 µs`.
const SCALED: [(&str, &str); 7] = [
    ("k", ""),
    (" KiB", " B"),
    (" MiB", " B"),
    (" GiB", " B"),
    (" ns", " s"),
    (" µs", " s"),
    (" ms", " s"),
];

/// A line without what differs from run to run: numbers, what they are scaled by, and the width of columns.
fn shape(line: &str) -> String {
    let mut shape = String::new();
    let mut letters = line.trim().chars().peekable();
    while let Some(letter) = letters.next() {
        let (class, mark): (fn(char) -> bool, char) = match letter {
            '0'..='9' => (|next| next.is_ascii_digit() || next == '.', '#'),
            ' ' => (|next| next == ' ', ' '),
            '─' => (|next| next == '─', '─'),
            '═' => (|next| next == '═', '═'),
            other => (|_| false, other),
        };
        while letters.next_if(|next| class(*next)).is_some() {}
        shape.push(mark);
    }
    let mut pieces = shape.split('#');
    let before = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(before, |line, piece| {
        let scaled = SCALED.iter().find_map(|(scaled, bare)| {
            let rest = piece.strip_prefix(scaled)?;
            (!rest.starts_with(char::is_alphanumeric)).then(|| format!("{bare}{rest}"))
        });
        format!("{line}#{}", scaled.as_deref().unwrap_or(piece))
    })
}

/// Whether a printed line is what a shown one stands for.
fn is_shown_as(printed: &str, shown: &str) -> bool {
    let printed = shape(printed);
    let pieces: Vec<String> = shown.split('…').map(shape).collect();
    let [first, middle @ .., last] = &pieces[..] else { return printed == pieces[0] };
    let Some(mut rest) = printed.strip_prefix(first.as_str()) else { return false };
    for piece in middle {
        let Some(at) = rest.find(piece.as_str()) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last.as_str())
}

/// The first line that is shown and was not printed, or not in this order.
fn missing<'a>(console: &'a Console, printed: &str) -> Option<&'a str> {
    let mut lines = printed.lines();
    let mut shown = console.shown.iter().filter(|line| !line.trim().is_empty() && *line != "…");
    shown.find(|shown| !lines.any(|line| is_shown_as(line, shown))).map(String::as_str)
}

/// Types what is in a chapter's consoles, all of them into one shell.
fn follow(chapter: &str) {
    // SAFETY: geteuid takes nothing.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("SKIPPED: counting what a server does takes root");
        return;
    }
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let consoles = consoles(&fs::read_to_string(book().join(chapter)).unwrap());
    assert!(!consoles.is_empty(), "{chapter} has no console");
    let script: String =
        consoles.iter().map(|console| format!("{}echo '{BETWEEN}'\n", console.commands)).collect();
    let directory = env::temp_dir().join(format!("kapok-book-{}-{chapter}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_kapok")).parent().unwrap().to_owned();
    let mut paths = vec![programs, labs()];
    paths.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    // A file, not a pipe: that would be open as long as anything that was left runs. And a network of its
    // own, in which no port is taken.
    let terminal = directory.join("terminal");
    let out = fs::File::create(&terminal).unwrap();
    let mut shell = Command::new("unshare")
        .args(["--net", "bash", "-e", "-o", "pipefail", "-c"])
        .arg(format!("ip link set lo up\n{script}"))
        .current_dir(&directory)
        .env("PATH", env::join_paths(&paths).unwrap())
        .env("NO_COLOR", "1")
        .env("COLUMNS", "160")
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        .process_group(0)
        .spawn()
        .unwrap();
    let group = shell.id() as libc::pid_t;
    let begun = Instant::now();
    let status = loop {
        match shell.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if begun.elapsed() > PATIENCE => break None,
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    // What is left of it, servers among them. Its own number is that of the group.
    // SAFETY: only numbers are passed, and the group was made for this shell.
    unsafe { libc::kill(-group, libc::SIGKILL) };
    if status.is_none() {
        shell.wait().unwrap();
    }
    let printed = fs::read_to_string(&terminal).unwrap();
    fs::remove_dir_all(directory).unwrap();
    println!("{chapter}, {:.1} s:\n{printed}", begun.elapsed().as_secs_f64());
    assert!(
        status.is_some_and(|status| status.success()),
        "{chapter}: {status:?} after\n{printed}"
    );
    for (console, printed) in consoles.iter().zip(printed.split(BETWEEN)) {
        let missing = missing(console, printed);
        assert_eq!(missing, None, "{chapter}: this was not printed by\n{}", console.commands);
    }
}

/// A test for each chapter that has consoles, and the list of those chapters.
macro_rules! chapters {
    ($($test:ident: $file:literal,)*) => {
        const FOLLOWED: &[&str] = &[$($file),*];
        $(#[test]
        fn $test() {
            follow($file);
        })*
    };
}

chapters! {
    models: "models.md",
    blocking: "blocking.md",
    asynchronous: "async.md",
    tokio_inside: "tokio.md",
    fibers: "fibers.md",
    choosing: "choosing.md",
    measuring: "measuring.md",
    kapok_inside: "kapok.md",
}

#[test]
fn every_chapter_is_in_the_summary_and_every_console_is_followed() {
    let summary = fs::read_to_string(book().join("SUMMARY.md")).unwrap();
    for chapter in fs::read_dir(book()).unwrap() {
        let name = chapter.unwrap().file_name().into_string().unwrap();
        let text = fs::read_to_string(book().join(&name)).unwrap();
        assert!(name == "SUMMARY.md" || summary.contains(&format!("({name})")), "{name}");
        let followed = FOLLOWED.contains(&name.as_str());
        assert_eq!(!consoles(&text).is_empty(), followed, "{name}");
        assert!(!text.contains("```rust\n"), "{name}: code that is compiled is included");
    }
}

#[test]
fn every_listing_is_a_whole_program_of_the_repository() {
    let mut listings = 0;
    for chapter in fs::read_dir(book()).unwrap() {
        let text = fs::read_to_string(chapter.unwrap().path()).unwrap();
        for listing in text.split("{{#include ").skip(1) {
            let (path, from) = listing.split("}}").next().unwrap().split_once(':').unwrap();
            let from: usize = from.trim_end_matches(':').parse().unwrap();
            let program = fs::read_to_string(book().join(path)).unwrap();
            let first = program.lines().nth(from - 1).unwrap();
            // After the words about it, which the chapter has in its own way.
            assert!(first.starts_with("use "), "{path}:{from}: {first}");
            let before = program.lines().take(from - 1);
            assert!(
                before.clone().all(|line| line.is_empty() || line.starts_with("//!")),
                "{path}"
            );
            listings += 1;
        }
    }
    assert!(listings >= LABS.len(), "{listings} listings");
}

#[test]
fn what_is_shown_is_told_from_what_is_not() {
    let shown = ["call  per second   count", "  recvfrom   1204  3612 –", "at …, thread … reads"];
    assert!(is_shown_as("call per second  count ", shown[0]));
    assert!(is_shown_as("recvfrom 7.5 12    –", shown[1]));
    assert!(!is_shown_as("recvfrom – 12 –", shown[1]), "a number is a number");
    assert!(!is_shown_as("recvmsg 1204 3612 –", shown[1]));
    assert!(is_shown_as("at 11.5, thread main reads", shown[2]));
    assert!(!is_shown_as("at 11.5, reads thread", shown[2]));
    assert!(is_shown_as("waited 120k/s, 3 GiB, 2 ms", "waited 26760/s, 12 B, 900 ns"));
    assert!(!is_shown_as("120kinds/s", "26760/s"), "only what scales a number");
    assert!(!is_shown_as("12 B", "12 s"), "a size is not a time");
    let chapter = "```console\n$ a \\\n> b\nfirst 1\n…\nsecond 2\n```\n```sh\n$ c\n```\n";
    let consoles = consoles(chapter);
    assert_eq!(consoles.len(), 1);
    assert_eq!(consoles[0].commands, "a \\\nb\n");
    assert_eq!(missing(&consoles[0], "before\nfirst 3\nbetween\nsecond 4\n"), None);
    assert_eq!(missing(&consoles[0], "second 4\nfirst 3\n"), Some("second 2"));
    assert_eq!(missing(&consoles[0], "second 4\n"), Some("first 1"));
}
