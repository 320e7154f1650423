//! Records the commit that is built, for `kapok compare` to name beside its figures.

use std::path::{Path, PathBuf};
use std::process::Command;

const LOCK: &str = "../../Cargo.lock";

/// What all programs of the workspace are made of. In a package there is nothing of it.
fn sources() -> Vec<PathBuf> {
    let crates = std::fs::read_dir("../../crates").into_iter().flatten().flatten();
    let mut sources: Vec<PathBuf> = crates
        .flat_map(|one| ["Cargo.toml", "build.rs", "src"].map(|part| one.path().join(part)))
        .chain(["../../Cargo.toml", LOCK].map(PathBuf::from))
        .filter(|path| path.exists())
        .collect();
    sources.sort();
    sources
}

/// The compiler, and the libraries that are compared or that all servers share.
fn versions() -> Vec<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let rustc = Command::new(rustc).arg("--version").output();
    let mut versions: Vec<String> =
        rustc.ok().and_then(|said| String::from_utf8(said.stdout).ok()).into_iter().collect();
    // Not there in a package: then the libraries go unnamed.
    let lock = std::fs::read_to_string(LOCK).unwrap_or_default();
    for package in lock.split("[[package]]") {
        let field = |name: &str| {
            let line =
                package.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "))?;
            Some(line.trim_matches('"'))
        };
        if let (Some(name), Some(version)) = (field("name"), field("version"))
            && ["tokio", "mio", "io-uring", "httparse", "corosensei"].contains(&name)
        {
            versions.push(format!("{name} {version}"));
        }
    }
    versions.iter().map(|version| version.trim().to_owned()).collect()
}

fn main() {
    let sources = sources();
    let git = |arguments: &[&str], paths: &[PathBuf]| {
        let output = Command::new("git").args(arguments).args(paths).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    // Outside a repository, as from a package registry, there is no commit to name.
    let mut commit = git(&["rev-parse", "--short=12", "HEAD"], &[]).unwrap_or_default();
    // What is built may be more than the commit. Documents and tests are left out: they are not built, and this
    // does not run again for them.
    let status = ["--no-optional-locks", "status", "--porcelain", "--untracked-files=no", "--"];
    if !commit.is_empty() && git(&status, &sources).is_some_and(|changed| !changed.is_empty()) {
        commit += "-dirty";
    }
    println!("cargo::rustc-env=KAPOK_COMMIT={commit}");
    println!("cargo::rustc-env=KAPOK_VERSIONS={}", versions().join(" · "));
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={LOCK}");
    for source in &sources {
        println!("cargo::rerun-if-changed={}", source.display());
    }
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"], &[])
        && Path::new(&log).exists()
    {
        println!("cargo::rerun-if-changed={log}");
    }
}
