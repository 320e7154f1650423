//! A million fibers at once, as the example of that name has them: what each costs, and that the
//! guard of each holds. 50,000 unless `KAPOK_SCALE=full`: more than twice as many mappings as a
//! process may have by default, if each guard took two.
#![cfg(target_os = "linux")]

mod harness;

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use harness::{Watchdog, scale};

/// Memory and page tables of a fiber that sleeps, in bytes: 5.5 KiB.
const MOST_BYTES: f64 = 5.5 * 1024.0;

fn example(arguments: &[&str]) -> Output {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("examples/million_fibers");
    let missing = format!("{}: `cargo build -p kapok --examples` makes it", program.display());
    assert!(program.exists(), "{missing}");
    Command::new(program).args(arguments).output().unwrap()
}

fn count() -> String {
    scale(50_000, 1_000_000).to_string()
}

/// Whether guards take no mappings here (Linux 6.13).
fn has_markers() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 13)
}

#[test]
fn each_of_a_million_sleepers_costs_little_more_than_a_page() {
    let _watchdog = Watchdog::new();
    let output = example(&[&count()]);
    let printed = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    if !has_markers() && !output.status.success() {
        assert!(said.contains("vm.max_map_count"), "{said}");
        return;
    }
    assert!(output.status.success(), "{}: {printed}{said}", output.status);
    assert!(printed.contains(&format!("{} fibers asleep at once", count())), "{printed}");
    let bytes = printed
        .lines()
        .find_map(|line| line.split_once(" bytes each"))
        .and_then(|(bytes, _)| bytes.parse::<f64>().ok())
        .unwrap_or_else(|| panic!("no bytes in {printed}"));
    println!("{printed}");
    // A page of stack is the least there is: less would be a fiber that is not there.
    assert!((4096.0..=MOST_BYTES).contains(&bytes), "{bytes} bytes each");
}

#[test]
fn the_overflow_of_one_of_a_million_is_reported_by_name() {
    if !has_markers() {
        return;
    }
    let _watchdog = Watchdog::new();
    let output = example(&[&count(), "overflow"]);
    let printed = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{}: {said}", output.status);
    assert!(printed.contains(&format!("{} fibers asleep at once", count())), "{printed}");
    assert!(said.contains("the deep one") && said.contains("overflow"), "{said}");
}
