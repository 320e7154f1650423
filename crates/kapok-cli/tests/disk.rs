//! `kapok disk` as a user runs it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn kapok(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kapok"));
    command.arg("disk").args(arguments).env_remove("KAPOK_LOG").env("NO_COLOR", "1");
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A place for a file, in the checkout's own file system: /tmp may be one without O_DIRECT.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("disk-{name}-{}", std::process::id()));
        Place(path)
    }

    /// With a file of 1 MiB that is to be verified.
    fn made(name: &str) -> Place {
        Place::made_of(name, 1)
    }

    fn made_of(name: &str, megabytes: u64) -> Place {
        let place = Place::new(name);
        let size = format!("{megabytes}M");
        let size = ["--file", place.path(), "--size", &size, "--buffered", "--seconds", "0.01"];
        let made = kapok(&size);
        assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
        assert_eq!(fs::metadata(&place.0).unwrap().len(), megabytes << 20);
        place
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// That it was refused: with this status, naming these, and without a backtrace.
fn refused(arguments: &[&str], code: i32, words: &[&str]) {
    let output = kapok(arguments);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{word} in: {said}");
    }
    assert!(!said.contains("panicked") && output.stdout.is_empty(), "{said}");
}

#[test]
fn every_operation_runs_in_every_way_and_is_one_line_of_json() {
    let place = Place::made("ways");
    for op in ["randread", "randwrite", "seqread", "cachedread", "fsync", "dsync", "nop"] {
        for via in ["auto", "caller", "ring", "thread"] {
            let run = |seconds: &str| -> (String, Value) {
                let output = kapok(&[
                    "--file",
                    place.path(),
                    "--op",
                    op,
                    "--via",
                    via,
                    "--buffered",
                    "--depth",
                    "4",
                    "--seconds",
                    seconds,
                    "--json",
                ]);
                let line = text(&output.stdout);
                assert_eq!(output.status.code(), Some(0), "{op} {via}: {}", text(&output.stderr));
                assert_eq!(line.lines().count(), 1, "{line}");
                let result = serde_json::from_str(&line).unwrap();
                (line, result)
            };
            // A disk that is busy with something else may take longer than that for a single operation.
            let mut runs = ["0.1", "1", "10"].into_iter().map(run);
            let is_some = |result: &Value| result["iops"].as_f64().is_some_and(|iops| iops > 0.0);
            let (line, result) =
                runs.find(|(_, result)| is_some(result)).expect("an operation in ten seconds");
            let keys: Vec<&String> = result.as_object().unwrap().keys().collect();
            assert_eq!(keys, ["cpu_us_per_op", "iops", "p50_us", "p99_us"], "{line}");
            for key in keys {
                assert!(result[key].as_f64().unwrap() > 0.0, "{op} {via} {key}: {line}");
            }
            assert!(result["p50_us"].as_f64() <= result["p99_us"].as_f64(), "{line}");
        }
    }
}

#[test]
fn where_operations_ran_is_told() {
    let place = Place::made("where");
    for (via, part) in [("ring", "0.0 % on"), ("thread", "100.0 % on")] {
        let arguments = ["--file", place.path(), "--via", via, "--buffered", "--seconds", "0.1"];
        let report = text(&kapok(&arguments).stdout);
        assert!(report.contains(&format!("ran         {part}")), "{via}: {report}");
    }
}

#[test]
fn what_was_read_is_verified() {
    let place = Place::made("verified");
    let read = ["--file", place.path(), "--op", "cachedread", "--seconds", "0.1"];
    let report = text(&kapok(&read).stdout);
    assert!(report.contains("blocks read, by words of each sector"), "{report}");
    // One byte of a word that is looked at, in a block that was not when the file was opened.
    let file = fs::File::options().write(true).open(&place.0).unwrap();
    let block = 4096 * 100;
    file.write_all_at(b"!", block + 8).unwrap();
    refused(&read, 1, &["409600", "is not what was written there"]);
}

#[test]
fn what_was_written_is_read_back() {
    let place = Place::made("written");
    for op in ["randwrite", "fsync", "dsync"] {
        let arguments = ["--file", place.path(), "--op", op, "--buffered", "--seconds", "0.1"];
        let report = text(&kapok(&arguments).stdout);
        assert!(report.contains("read back, every byte"), "{report}");
        assert!(!report.contains("verified    0 of"), "{report}");
    }
}

#[test]
fn a_signal_ends_the_making_of_a_file_and_leaves_none() {
    use std::time::{Duration, Instant};
    let place = Place::new("stopped");
    let making = Command::new(env!("CARGO_BIN_EXE_kapok"))
        .args(["disk", "--file", place.path(), "--size", "3G", "--buffered", "--seconds", "0.1"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !fs::metadata(&place.0).is_ok_and(|file| file.len() > 0) {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing is made");
        std::thread::sleep(Duration::from_millis(5));
    }
    // SAFETY: only numbers are passed; the child is ours and not reaped.
    unsafe { libc::kill(making.id() as libc::pid_t, libc::SIGTERM) };
    let ended = making.wait_with_output().unwrap();
    let said = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("stopped") && !place.0.exists(), "{said}");
}

#[test]
fn blocks_of_other_sizes_are_told_from_wrong_ones() {
    // More than is written over meanwhile.
    let place = Place::made_of("sizes", 64);
    let run = |op: &str, size: &str| {
        let arguments = ["--file", place.path(), "--op", op, "--bs", size];
        let output = kapok(&[&arguments[..], &["--buffered", "--seconds", "0.05"]].concat());
        assert_eq!(output.status.code(), Some(0), "{op} {size}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    // In parts, over what was written as a whole; looked at in larger ones, and written over again.
    assert!(run("fsync", "4k").contains("read back, every byte"));
    for op in ["seqread", "cachedread"] {
        assert!(run(op, "128k").contains("blocks read, by words of each sector"), "{op}");
    }
    assert!(run("randwrite", "512").contains("read back, every byte"));
    assert!(run("randread", "64k").contains("blocks read, by words of each sector"));
    assert!(run("randwrite", "64k").contains("read back, every byte"));
}

#[test]
fn nothing_is_made_or_destroyed_unless_it_is_asked_for() {
    let place = Place::new("missing");
    refused(&["--file", place.path()], 1, &[place.path(), "No such file", "--size"]);
    assert!(!place.0.exists());

    let mine = vec![42u8; 1 << 16];
    fs::write(&place.0, &mine).unwrap();
    for op in ["randwrite", "fsync", "dsync"] {
        refused(&["--file", place.path(), "--op", op, "--buffered"], 1, &["--overwrite"]);
    }
    refused(&["--file", place.path(), "--size", "1M"], 1, &["65536", "1048576"]);
    assert_eq!(fs::read(&place.0).unwrap(), mine, "it was touched");
    let arguments = ["--file", place.path(), "--buffered", "--seconds", "0.05"];
    let report = text(&kapok(&arguments).stdout);
    assert!(report.contains("verified    nothing"), "{report}");
    let overwritten = kapok(&[
        "--file",
        place.path(),
        "--op",
        "randwrite",
        "--buffered",
        "--seconds",
        "0.05",
        "--overwrite",
    ]);
    assert_eq!(overwritten.status.code(), Some(0), "{}", text(&overwritten.stderr));
    assert_ne!(fs::read(&place.0).unwrap(), mine);
}

#[test]
fn what_makes_no_sense_is_refused_with_a_reason() {
    let place = Place::made("sense");
    let file = place.path();
    refused(&["--op", "randread"], 2, &["--file"]);
    refused(&["--file", file, "--bs", "1000"], 2, &["--bs 1000", "512"]);
    refused(&["--file", file, "--bs", "2M", "--buffered"], 2, &["1048576", "2097152"]);
    refused(&["--file", file, "--size", "10000"], 2, &["--size 10000", "4096"]);
    refused(&["--file", file, "--depth", "0"], 2, &["--depth 0"]);
    refused(&["--file", file, "--threads", "0"], 2, &["thread"]);
    refused(&["--file", file, "--via", "somewhere"], 2, &["auto, caller, ring and thread"]);
    refused(&["--file", file, "--op", "dance"], 2, &["randread", "fsync"]);
    refused(&["--file", env!("CARGO_MANIFEST_DIR")], 2, &["not a regular file"]);
    // Of a file system that has no O_DIRECT.
    if Path::new("/proc/kallsyms").exists() {
        refused(&["--file", "/proc/kallsyms"], 2, &["refuses O_DIRECT", "--buffered"]);
    }
}

#[test]
fn the_five_steps_are_printed_as_they_are_taken() {
    let traced = |op: &[&str]| {
        let mut arguments = vec!["--via", "thread", "--seconds", "0.2", "--trace", "--json"];
        arguments.extend(op);
        kapok(&arguments)
    };
    let output = traced(&["--op", "nop", "--depth", "8"]);
    let (trace, result) = (text(&output.stderr), text(&output.stdout));
    assert_eq!(output.status.code(), Some(0), "{trace}");
    assert_eq!(result.lines().count(), 1, "{result}");
    for step in ["1 take", "2 submit", "3 spin", "5 complete"] {
        assert!(trace.contains(&format!("thread 0  {step}")), "{step} in:\n{trace}");
    }
    // What was taken is submitted next, and completing follows what landed.
    let steps: Vec<&str> =
        trace.lines().filter_map(|line| line.split("thread 0  ").nth(1)).collect();
    assert!(steps.len() <= 1000, "{} lines", steps.len());
    for pair in steps.windows(2) {
        let taken = pair[0].strip_prefix("1 take").map(str::trim).filter(|count| *count != "0");
        if let Some(count) = taken {
            assert_eq!(pair[1].strip_prefix("2 submit").map(str::trim), Some(count), "{pair:?}");
        }
    }
    let last = trace.lines().last().unwrap_or_default();
    assert!(last.starts_with("steps") && last.contains("5 complete"), "{last}");
    // Of those it may have found work whenever it looked; a disk takes longer than a look.
    let place = Place::made("steps");
    let output = traced(&["--op", "fsync", "--file", place.path(), "--buffered", "--spin", "1"]);
    let trace = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{trace}");
    assert!(trace.contains("thread 0  4 wait      for completions"), "{trace}");
    // Without being asked for it says nothing of them.
    let silent = kapok(&["--op", "nop", "--via", "thread", "--seconds", "0.05", "--json"]);
    assert!(silent.stderr.is_empty(), "{}", text(&silent.stderr));
}
