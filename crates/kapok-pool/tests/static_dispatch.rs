//! The way of an operation, from its future to the ring and back, holds no `dyn`.
//!
//! Every source file of the pool is on that way or has a reason why not; of the engine those are looked at
//! that carry an operation out on a ring, and of the fibers those that bring one to their loop's engine and
//! back.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Files of the pool that are not on the way, and why.
const BESIDE: &[(&str, &str)] = &[
    ("blocking.rs", "calls on blocking threads, for what io_uring has no operation for"),
    ("context.rs", "errors, once something has failed"),
    ("fs", "several operations, or a call on a blocking thread, each"),
    ("models.rs", "loom's"),
    ("scale.rs", "starts and retires threads"),
    ("step/tests", "tests"),
    ("thread.rs", "starts threads, by a boxed closure"),
];

/// What the engine does of it.
const ENGINE: &[&str] = &[
    "any.rs",
    "bell.rs",
    "engine.rs",
    "entry",
    "op.rs",
    "salvage.rs",
    "stats.rs",
    "timers.rs",
    "uring",
];

/// What the loop of a fiber does of it, for what the fiber blocks for.
const FIBERS: &[&str] = &[
    "carrier.rs",
    "op.rs",
    "runtime/event_loop.rs",
    "runtime/operations.rs",
    "runtime/prefetch.rs",
    "runtime/slots.rs",
];

/// Lines of these with a `dyn` that is not on the way, and why.
const BESIDE_FIBERS: &[(&str, &str, &str)] = &[
    (
        "op.rs",
        "heir: Option<Box<dyn FnOnce(i32)>>,",
        "an arm of `select!`: what its operation brings when the arm is gone has an heir",
    ),
    (
        "op.rs",
        "pub(crate) unsafe fn new(op: Op, heir: Option<Box<dyn FnOnce(i32)>>) -> Pending {",
        "makes such an arm; `op::run`, which fibers block in, knows none",
    ),
    (
        "runtime/operations.rs",
        "pub(crate) fn orphan(&self, key: Key, heir: Option<Box<dyn FnOnce(i32)>>) {",
        "called when such an arm is dropped with its operation in flight",
    ),
    ("runtime/slots.rs", "Orphan(Box<dyn FnOnce(i32)>),", "who waits for an operation after that"),
];

fn sources(of: &Path) -> BTreeSet<PathBuf> {
    if of.is_file() {
        return BTreeSet::from([of.to_path_buf()]);
    }
    std::fs::read_dir(of)
        .unwrap_or_else(|error| panic!("{}: {error}", of.display()))
        .flat_map(|entry| sources(&entry.unwrap().path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// The lines with a `dyn`, comments and the tests at the end of a file apart.
fn dynamic(source: &str) -> Vec<String> {
    let is_word = |line: &str| {
        line.split(|letter: char| !letter.is_alphanumeric() && letter != '_')
            .any(|word| word == "dyn")
    };
    let code = source.split("\nmod tests {").next().unwrap_or("");
    let without_comments = code.lines().map(|line| line.split("//").next().unwrap_or(""));
    without_comments.filter(|line| is_word(line)).map(str::to_owned).collect()
}

/// Looks at the files of `root`. Each line of `beside` is there once, and is the only exception.
fn check(root: &Path, files: BTreeSet<PathBuf>, beside: &[(&str, &str, &str)]) {
    let mut beside = beside.to_vec();
    for path in files {
        let mut lines = dynamic(&std::fs::read_to_string(&path).unwrap());
        let name = path.strip_prefix(root).unwrap();
        lines.retain(|line| {
            let known = |&(file, known, _): &(&str, &str, &str)| {
                name == Path::new(file) && line.trim() == known
            };
            beside.iter().position(known).map(|at| beside.remove(at)).is_none()
        });
        assert!(lines.is_empty(), "{} is on an operation's way and has {lines:?}", name.display());
    }
    assert!(beside.is_empty(), "these are there no more: {beside:?}");
}

#[test]
fn the_way_through_the_pool_holds_no_dyn() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = sources(&root);
    assert!(files.len() > 25, "only {} files were found", files.len());
    for (name, _why) in BESIDE {
        let (beside, before) = (root.join(name), files.len());
        files.retain(|path| !path.starts_with(&beside));
        assert!(files.len() < before, "there is no {name}");
    }
    for known in ["operation.rs", "requests.rs", "slot.rs", "step/mod.rs", "channel.rs"] {
        assert!(files.contains(&root.join(known)), "{known} is not looked at");
    }
    check(&root, files, &[]);
}

#[test]
fn the_way_through_the_engine_holds_no_dyn() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kapok-engine/src");
    check(&root, ENGINE.iter().flat_map(|name| sources(&root.join(name))).collect(), &[]);
}

#[test]
fn the_way_through_a_fiber_s_loop_holds_no_dyn() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kapok/src");
    let files = FIBERS.iter().flat_map(|name| sources(&root.join(name))).collect();
    check(&root, files, BESIDE_FIBERS);
}

#[test]
fn a_dyn_is_found_and_only_one() {
    for found in ["Box<dyn FnOnce()>", "&dyn Engine", "impl dyn Any {}", "x: *const dyn T, // why"]
    {
        assert_eq!(dynamic(found).len(), 1, "{found}");
    }
    for none in ["// a dyn in words", "dynamic(&source)", "let dyn_free = 1;", "x\nmod tests { dyn"]
    {
        assert!(dynamic(none).is_empty(), "{none}");
    }
}
