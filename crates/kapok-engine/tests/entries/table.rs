//! The table of operations: that it is whole, that its tests exist, and that `docs/operations.md` is
//! what it says.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use kapok_engine::entry::{Elsewhere, OPERATIONS, render};
use kapok_engine::{AnyEngine, Config, Engine as _, Key, Kind, Op, Submitted};

use crate::encoding;
use crate::places::{Place, refused_elsewhere};

/// The names that liburing's header of August 2026 has, as data.
const LIBURING: &str = include_str!("liburing.txt");

/// Those that fill in fields and are no operations.
const NO_OPERATIONS: [&str; 2] = ["io_uring_prep_rw", "io_uring_prep_send_set_addr"];

#[test]
fn every_helper_of_liburing_has_its_row() {
    let names: BTreeSet<&str> = LIBURING.lines().collect();
    assert_eq!(names.len(), 104);
    assert!(NO_OPERATIONS.iter().all(|name| names.contains(name)));
    let rows: BTreeSet<&str> = OPERATIONS.iter().map(|row| row.prep).collect();
    assert_eq!(rows.len(), OPERATIONS.len(), "a row twice");
    let missing: Vec<_> = names
        .iter()
        .filter(|name| !rows.contains(*name) && !NO_OPERATIONS.contains(name))
        .collect();
    let unknown: Vec<_> = rows.difference(&names).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "missing {missing:?}, unknown {unknown:?}");
}

#[test]
fn every_test_that_the_table_names_is_there() {
    let this = std::env::current_exe().expect("this test has a path");
    let output = Command::new(this).arg("--list").output().expect("this test starts again");
    let listed = String::from_utf8(output.stdout).expect("names of tests");
    let tests: BTreeSet<&str> =
        listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    assert!(tests.contains("table::every_test_that_the_table_names_is_there"), "{tests:?}");
    let missing: Vec<_> = OPERATIONS.iter().filter(|row| !tests.contains(row.test)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

/// A test names the helpers that it is said to carry out.
#[test]
fn every_test_that_the_table_names_makes_its_operation() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/entries");
    for row in OPERATIONS {
        let (file, test) = row.test.split_once("::").expect("a file and a test");
        let source = std::fs::read_to_string(folder.join(format!("{file}.rs"))).expect("a file");
        let from =
            source.find(&format!("fn {test}()")).unwrap_or_else(|| panic!("no {}", row.test));
        let rest = &source[from..];
        let to = rest.find("\n#[test]").unwrap_or(rest.len());
        let makes = |text: &str| text.contains(&format!("{}(", row.function));
        // Or a function of the same file that it shares with others.
        let shared = source[..from].split("#[test]").next().is_some_and(makes);
        assert!(makes(&rest[..to]) || shared, "{} does not make {}", row.test, row.function);
    }
}

#[test]
fn what_the_table_says_is_refused_off_io_uring_is() {
    for (name, entry, _) in encoding::samples() {
        let prep = format!("io_uring_prep_{name}");
        let row = OPERATIONS.iter().find(|row| row.prep == prep).expect("its row");
        if row.elsewhere == Elsewhere::Refused {
            refused_elsewhere(&entry);
        }
    }
}

#[test]
fn in_a_simulated_world_there_is_none() {
    let mut config = Config::default();
    config.simulation = Some(kapok_engine::sim::Config::new(0));
    let mut engine = AnyEngine::new(Kind::Sim, &config).expect("a world");
    for (name, entry, _) in encoding::samples() {
        let op = Op::Entry { entry: &raw const entry };
        // SAFETY: the entry outlives the call, and what it names is not looked at.
        let submitted = unsafe { engine.submit(Key::new(1, 1), op) };
        assert_eq!(submitted, Submitted::Done(-libc::EOPNOTSUPP), "{name}");
    }
    assert_eq!(engine.in_flight(), 0);
}

#[test]
fn what_the_table_says_of_an_older_kernel_fits_this_one() {
    let Some(mut place) = Place::ring() else { return };
    let operations = place.uring().operations().unwrap();
    for (name, entry, _) in encoding::samples() {
        let prep = format!("io_uring_prep_{name}");
        let row = OPERATIONS.iter().find(|row| row.prep == prep).expect("its row");
        if !operations.has(row.opcode) {
            assert_eq!(Some(-place.run(&entry)), row.refusal(), "{name}");
        }
    }
}

#[test]
fn the_document_is_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md");
    let rendered = render();
    if std::env::var_os("KAPOK_WRITE_OPERATIONS").is_some_and(|value| value == "1") {
        std::fs::write(&path, &rendered).expect("the document can be written");
    }
    let committed = std::fs::read_to_string(&path).expect("docs/operations.md");
    for (at, (ours, theirs)) in (1..).zip(rendered.lines().zip(committed.lines())) {
        assert_eq!(
            ours, theirs,
            "line {at} of docs/operations.md; the document says how to write it"
        );
    }
    assert_eq!(rendered, committed, "docs/operations.md has more lines, or fewer");
}
