//! Records the commit that is built, for `kapok compare` to name beside its figures.

use std::process::Command;

const LOCK: &str = "../../Cargo.lock";

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
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    // Outside a repository, as from a package registry, there is no commit to name.
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_default();
    println!("cargo::rustc-env=KAPOK_COMMIT={commit}");
    println!("cargo::rustc-env=KAPOK_VERSIONS={}", versions().join(" · "));
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={LOCK}");
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && std::path::Path::new(&log).exists()
    {
        println!("cargo::rerun-if-changed={log}");
    }
}
