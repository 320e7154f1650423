//! `kapok doctor --libc` on a program that links the hooks: this one.

#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The library, which is another package's, so it is built here.
fn library() -> PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_kapok")).ancestors().nth(2).unwrap();
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--package", "kapok-preload", "--target-dir"]).arg(target);
    assert!(build.status().unwrap().success(), "{build:?}");
    target.join("debug/libkapok.so")
}

fn names(of: &Value) -> Vec<&str> {
    of.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect()
}

#[test]
fn a_program_that_links_the_hooks_is_told_from_one_with_functions_of_its_own() {
    kapok_libc::install();
    let this = std::env::current_exe().unwrap();
    let library = library();
    // Who strips a program takes its symbols, and not what it exports.
    let stripped = Path::new(env!("CARGO_TARGET_TMPDIR")).join("linked-and-stripped");
    let strip = Command::new("strip").arg("-o").arg(&stripped).arg(&this).status();
    let mut programs = vec![this];
    if strip.is_ok_and(|status| status.success()) {
        programs.push(stripped);
    }
    for program in programs {
        let doctor = |more: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_kapok"));
            command.args(["doctor", "--libc"]).arg(&program).args(more);
            command.env("KAPOK_LIBRARY", &library).env("NO_COLOR", "1").env_remove("LD_PRELOAD");
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{said}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let found = doctor(&["--json"]);
        let found: Value = serde_json::from_str(&found).unwrap();
        assert_eq!((&found["linked"], &found["active"]), (&true.into(), &true.into()), "{found}");
        let objects = found["objects"].as_array().unwrap();
        // Not the library: `kapok run` has no part in it.
        assert!(!found["objects"].to_string().contains("libkapok.so"), "{found}");
        assert!(objects[0]["notes"].to_string().contains("links Kapok"), "{found}");
        for object in objects {
            assert_eq!(names_of_bypassed(object), [""; 0], "{found}");
        }
        // Both call it: the program has it, and the linker has exported it for the other.
        let compiler = objects
            .iter()
            .find(|object| object["path"].to_string().contains("libgcc_s"))
            .expect("every Rust program has it");
        for object in [&objects[0], compiler] {
            assert!(names(&object["active"]).contains(&"pthread_mutex_lock"), "{found}");
        }
        let told = doctor(&[]);
        assert!(told.contains("Hooks are linked into it"), "{told}");
    }
}

fn names_of_bypassed(object: &Value) -> Vec<&str> {
    let all = object["bypassed"].as_array().unwrap();
    all.iter().map(|bypassed| bypassed["name"].as_str().unwrap()).collect()
}

#[test]
fn kapok_itself_links_no_hooks() {
    let kapok = env!("CARGO_BIN_EXE_kapok");
    let output = Command::new(kapok)
        .args(["doctor", "--json", "--libc", kapok])
        .env("KAPOK_LIBRARY", library())
        .env_remove("LD_PRELOAD")
        .output()
        .unwrap();
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["linked"], false, "{found}");
}
