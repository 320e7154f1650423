//! What is drawn on a terminal while something runs.

use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::servers::{Busy, KAPOK, MESSAGE, PATIENCE, Server, text};

/// Both ends of a terminal of 30 lines and 60 columns: ours, and the one that a program takes for its own.
fn terminal() -> (OwnedFd, OwnedFd) {
    let (mut ours, mut theirs) = (-1, -1);
    let size = libc::winsize { ws_row: 30, ws_col: 60, ws_xpixel: 0, ws_ypixel: 0 };
    let nothing = std::ptr::null_mut();
    // SAFETY: both numbers and the size are valid for writing and reading, the others may be missing.
    let made = unsafe { libc::openpty(&mut ours, &mut theirs, nothing, nothing.cast(), &size) };
    assert_eq!(made, 0);
    // SAFETY: the call has just made both descriptors, and nobody else knows them.
    unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) }
}

#[test]
fn the_live_view_is_drawn_in_one_place_on_a_terminal() {
    let server = Server::kapok("epoll");
    let _busy = Busy::with(server.connect(), MESSAGE, 64);
    let (ours, theirs) = terminal();
    let pid = server.pid().to_string();
    let mut observe = Command::new(KAPOK)
        .args(["observe", &pid, "--seconds", "2", "--every", "0.4"])
        .env("TERM", "xterm")
        .stdout(Stdio::null())
        .stderr(Stdio::from(theirs))
        .spawn()
        .unwrap();
    // Nobody holds the other end but the child: what it said ends with it, by an error.
    let reader = thread::spawn(move || {
        let (mut said, mut bytes) = (Vec::new(), [0; 4096]);
        let mut terminal = File::from(ours);
        while let Ok(count @ 1..) = terminal.read(&mut bytes) {
            said.extend_from_slice(&bytes[..count]);
        }
        text(&said)
    });
    assert!(observe.wait().unwrap().success());
    let said = reader.join().unwrap();
    let views = said.matches("Ctrl-C ends with the summary").count();
    assert!((2..=5).contains(&views), "one each 0.4 s of 2 s:\n{said}");
    // Each is taken back, line by line: what was drawn is gone in the end.
    let (drawn, erased) = (said.matches('\n').count(), said.matches("\x1b[2K").count());
    assert!(drawn > 0 && drawn == erased, "{drawn} lines drawn, {erased} erased:\n{said:?}");
    for line in said.split('\n') {
        let visible = console::strip_ansi_codes(line);
        assert!(console::measure_text_width(visible.trim()) < 60, "{visible:?} is too wide");
    }
}

#[test]
fn a_comparison_draws_how_far_it_is_at_once() {
    let (ours, theirs) = terminal();
    let begun = Instant::now();
    // As a newcomer starts it, and for no longer than it takes to draw.
    let mut compare = Command::new(KAPOK)
        .arg("compare")
        .env("TERM", "xterm")
        .env("TMPDIR", env!("CARGO_TARGET_TMPDIR"))
        .stdout(Stdio::null())
        .stderr(Stdio::from(theirs))
        .spawn()
        .unwrap();
    let (sender, drawn) = mpsc::channel();
    let reader = thread::spawn(move || {
        let (mut terminal, mut bytes) = (File::from(ours), [0; 4096]);
        // To the end, whoever listens: a terminal that is full would stop the comparison.
        while let Ok(count @ 1..) = terminal.read(&mut bytes) {
            let _ = sender.send((Instant::now(), text(&bytes[..count])));
        }
    });
    // When what was drawn so far has `words`.
    let mut said = String::new();
    let mut comes = |words: &str| {
        while let Ok((at, more)) = drawn.recv_timeout(PATIENCE) {
            said.push_str(&more);
            if console::strip_ansi_codes(&said).contains(words) {
                return Some(at - begun);
            }
        }
        None
    };
    let progress = comes("0 % · ");
    // And it goes on: the models come, with what they do.
    let standings = comes("threads");
    // SAFETY: only numbers are passed; the child is ours and not reaped.
    unsafe { libc::kill(compare.id() as libc::pid_t, libc::SIGINT) };
    assert_eq!(compare.wait().unwrap().code(), Some(1), "it was stopped");
    reader.join().unwrap();
    assert!(progress.is_some_and(|after| after < Duration::from_secs(2)), "{progress:?}: {said:?}");
    assert!(standings.is_some(), "{said:?}");
}
