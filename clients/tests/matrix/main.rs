//! What works of which client, proven one by one before real servers; `docs/clients.md` is the list.
//!
//! A *linked* proof runs in a process of its own, this executable once more, that calls
//! `kapok_libc::install()` and runs the client on fibers of one thread. A *preloaded* one runs a program as
//! it is, and again under `kapok run`. Servers are started when the first proof needs them, and end with
//! this process.
//!
//! The arguments are those of any test: `cargo test --test matrix -- diesel`.

#![cfg(target_os = "linux")]

mod linked;
mod page;
mod place;
mod preloaded;
mod proof;
mod ticker;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};

use place::Servers;

fn main() -> ExitCode {
    let proofs = linked::proofs();
    if let Some(name) = proof::asked_for() {
        proof::run_here(&proofs, &name);
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    // One at a time: they look at the time. On this thread: the servers end with it.
    arguments.test_threads = Some(1);
    let servers = Arc::new(Servers::default());
    let mut trials: Vec<Trial> = Vec::new();
    let rows = page::rows(&proofs, &preloaded::CASES);
    for proof in proofs {
        let servers = Arc::clone(&servers);
        let name = format!("linked::{}", proof.name());
        trials.push(Trial::ignorable_test(name, move || proof::run_in_a_process(&proof, &servers)));
    }
    for case in &preloaded::CASES {
        let servers = Arc::clone(&servers);
        let name = format!("preloaded::{}", case.name());
        trials.push(Trial::ignorable_test(name, move || preloaded::run(case, &servers)));
    }
    trials.push(Trial::test("the_document_is_what_is_proven", move || {
        page::compare(&rows);
        Ok(())
    }));
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(servers);
    conclusion.exit_code()
}
