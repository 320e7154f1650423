//! The soak test at a size for every day, and that it can find something.

#[path = "../../examples/soak/verdict.rs"]
mod verdict;

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

fn soak() -> Command {
    let test = std::env::current_exe().unwrap();
    let program: PathBuf = test.ancestors().nth(2).unwrap().join("examples/soak");
    let missing = format!("{}: `cargo build -p kapok-lab --examples` makes it", program.display());
    assert!(program.exists(), "{missing}");
    Command::new(program)
}

fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = soak().args(arguments).output().unwrap();
    let said = [stdout, stderr].concat();
    (status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// Two hours of it at full scale.
fn seconds() -> &'static str {
    match std::env::var("KAPOK_SCALE").as_deref() {
        Ok("full") => "7200",
        // The first famine of a period comes after one to three seconds.
        _ => "30",
    }
}

#[test]
fn nothing_is_found_at_three_servers() {
    let csv = std::env::temp_dir().join(format!("kapok-soak-{}.csv", std::process::id()));
    let path = csv.to_str().unwrap();
    let (code, said) = run(&["--seconds", seconds(), "--csv", path]);
    println!("{said}");
    let samples = std::fs::read_to_string(&csv).unwrap();
    let _ = std::fs::remove_file(&csv);
    assert_eq!(code, Some(0), "{said}");
    for server in ["echo", "http", "chat"] {
        let lulls = samples.lines().filter(|line| line.contains(&format!("{server},auto,1,")));
        assert!(lulls.count() >= verdict::LEAST_SAMPLES, "{samples}");
    }
    // It was not let off lightly: each has been out of descriptors.
    assert_eq!(said.matches("out of descriptors").count(), 3, "{said}");
    assert!(!said.contains("out of descriptors 0 times"), "{said}");
    assert!(!said.contains("too few lulls"), "{said}");
}

#[test]
fn what_comes_too_late_is_found() {
    let (code, said) = run(&["--seconds", "3", "--servers", "http", "--patience", "0.000001"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("FOUND") && said.contains("a client that behaves"), "{said}");
}

#[test]
fn a_signal_ends_it_early_with_a_verdict() {
    let child = soak()
        .args(["--seconds", "600", "--servers", "echo", "--period", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_secs(2));
    // SAFETY: kill takes two numbers; the child has not been waited for, so the id is its own.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("nothing was found"), "{said}");
}

#[test]
fn wrong_arguments_are_told() {
    for wrong in [&["--seconds", "0"][..], &["--engine", "kqueue"], &["--rate"], &["--fast", "1"]] {
        let (code, said) = run(wrong);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(wrong[0]) && said.contains("usage:"), "{said}");
    }
}

#[test]
fn noise_bursts_and_steps_are_no_growth_and_a_slow_leak_is() {
    let mut state = 7_u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f64 / (1_u64 << 24) as f64 * 1e6
    };
    let samples = |value: &mut dyn FnMut(usize) -> f64| -> Vec<(f64, f64)> {
        (0..200).map(|at| (at as f64 * 30.0, value(at))).collect()
    };
    let grown = |samples: &[(f64, f64)]| verdict::growth(samples).unwrap();

    assert!(grown(&samples(&mut |_| 8e6 + noise())).abs() < verdict::MEMORY_BOUND_BYTES / 4.0);
    let burst = |at| if (60..100).contains(&at) { 50e6 } else { 8e6 };
    assert!(grown(&samples(&mut |at| burst(at) + noise())) < verdict::MEMORY_BOUND_BYTES);
    for place in [20, 100, 180] {
        let step = |at| if at > place { 20e6 } else { 8e6 };
        assert!(grown(&samples(&mut |at| step(at) + noise())) < verdict::MEMORY_BOUND_BYTES);
    }
    // As few as a short run has.
    let few = |step: f64, rise: f64| -> Vec<(f64, f64)> {
        let value = |at: usize| if at < 4 { 5e6 } else { 5e6 + step } + at as f64 * rise;
        (0..8).map(|at| (at as f64, value(at))).collect()
    };
    assert!(grown(&few(4e6, 0.0)) < verdict::MEMORY_BOUND_BYTES);
    for count in 0..12 {
        for step in 1..count {
            let value = |at: usize| if at < step { 5e6 } else { 9e6 };
            let samples: Vec<_> = (0..count).map(|at| (at as f64, value(at))).collect();
            let growth = verdict::growth(&samples);
            assert!(growth.is_none_or(|growth| growth <= 0.0), "{step} of {count}: {growth:?}");
        }
    }
    assert!(grown(&few(0.0, 4e5)) > verdict::MEMORY_BOUND_BYTES);
    // 3 MiB in all, under noise of a third of it.
    let leak = |at: usize| 8e6 + at as f64 * 3.0 * 1024.0 * 1024.0 / 200.0;
    assert!(grown(&samples(&mut |at| leak(at) + noise())) > verdict::MEMORY_BOUND_BYTES);
    // One descriptor every twenty minutes.
    let leak = |at: usize| 13.0 + (at / 40) as f64 + (noise() * 3.0 / 1e6).floor();
    let mut leak = leak;
    assert!(grown(&samples(&mut leak)) > verdict::descriptors_bound(200, 3));
    let mut coming_and_going = |_| 13.0 + (noise() * 4.0 / 1e6).floor();
    assert!(grown(&samples(&mut coming_and_going)) < verdict::descriptors_bound(200, 3));

    // A thread that is never ended, every twenty minutes.
    assert!(grown(&samples(&mut |at| (at / 40) as f64)) > verdict::THREADS_BOUND);

    assert_eq!(verdict::growth(&[(0.0, 1.0), (1.0, 2.0)]), None);
    assert_eq!(verdict::warm_up(Duration::from_secs(7200)), Duration::from_secs(600));
    assert_eq!(verdict::warm_up(Duration::from_secs(20)), Duration::from_secs(2));
}
