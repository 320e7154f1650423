//! The library, the header and what pkg-config reads, laid out as they would be installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// A path in this package.
pub(crate) fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Whether `program` can be started; if not, says that something is skipped.
pub(crate) fn is_there(program: &str) -> bool {
    let there = crate::starts(program);
    if !there {
        crate::skipped::skip(&format!("there is no {program}"));
    }
    there
}

/// The flags for a library that pkg-config knows; if it does not, says that something is skipped.
pub(crate) fn package(name: &str) -> Option<Vec<String>> {
    let asked = Command::new("pkg-config").args(["--cflags", "--libs", name]).output();
    match asked {
        Ok(asked) if asked.status.success() => Some(words(&asked.stdout)),
        _ => {
            crate::skipped::skip(&format!(
                "pkg-config knows no {name} (apt-get install pkg-config {name}-dev)"
            ));
            None
        }
    }
}

fn words(text: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(text).split_whitespace().map(str::to_owned).collect()
}

pub(crate) struct Installed {
    prefix: PathBuf,
    compiling: Vec<String>,
}

impl Installed {
    /// The library is another package's, so it is built here, once.
    pub(crate) fn get() -> &'static Installed {
        static INSTALLED: OnceLock<Installed> = OnceLock::new();
        INSTALLED.get_or_init(|| {
            let mut build = Command::new(env!("CARGO"));
            build.args(["build", "--quiet", "--package", "kapok-preload"]);
            // Where this test was built.
            let target = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().to_owned();
            build.arg("--target-dir").arg(&target);
            assert!(build.status().unwrap().success(), "{build:?}");
            let prefix = Path::new(env!("CARGO_TARGET_TMPDIR")).join("installed");
            for (from, to) in [
                (here("include/kapok.h"), "include/kapok.h"),
                (here("pkgconfig/kapok.pc"), "lib/pkgconfig/kapok.pc"),
                (target.join("debug/libkapok.so"), "lib/libkapok.so"),
                (target.join("debug/libkapok.a"), "lib/static/libkapok.a"),
            ] {
                let to = prefix.join(to);
                fs::create_dir_all(to.parent().unwrap()).unwrap();
                // A link to what is large.
                let _ = fs::remove_file(&to);
                fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop)).unwrap();
            }
            let compiling = compiling(&prefix);
            Installed { prefix, compiling }
        })
    }

    /// Compiles and links `source`, with no warnings, against the shared library unless `linking` names
    /// the static one.
    pub(crate) fn compile(
        &self,
        compiler: &str,
        flags: &[&str],
        source: &Path,
        linking: &[&str],
        name: &str,
    ) -> PathBuf {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let program = self.prefix.join(format!("{name}-{number}"));
        let is_static = linking.iter().any(|word| word.ends_with(".a"));
        let mut command = Command::new(compiler);
        command.args(flags).arg(source).arg("-o").arg(&program);
        if is_static {
            command.arg(format!("-I{}", self.prefix.join("include").display()));
        } else {
            command.args(&self.compiling);
            command.arg(format!("-Wl,-rpath,{}", self.prefix.join("lib").display()));
        }
        command.args(linking);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {said}");
        program
    }

    /// What links the static library.
    pub(crate) fn static_linking(&self) -> Vec<String> {
        let config = fs::read_to_string(here("pkgconfig/kapok.pc")).unwrap();
        let private = config.lines().find_map(|line| line.strip_prefix("Libs.private: ")).unwrap();
        let library = self.prefix.join("lib/static/libkapok.a").display().to_string();
        std::iter::once(library).chain(words(private.as_bytes())).collect()
    }
}

/// What pkg-config says, or would say.
fn compiling(prefix: &Path) -> Vec<String> {
    let asked = Command::new("pkg-config")
        .env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"))
        .args(["--cflags", "--libs", "kapok"])
        .output();
    match asked {
        Ok(asked) => {
            let said = String::from_utf8_lossy(&asked.stderr);
            assert!(asked.status.success(), "{said}");
            words(&asked.stdout)
        }
        Err(error) => {
            crate::skipped::skip(&format!("pkg-config(1): {error}; flags by hand"));
            let (include, lib) = (prefix.join("include"), prefix.join("lib"));
            vec![
                format!("-I{}", include.display()),
                format!("-L{}", lib.display()),
                "-lkapok".to_owned(),
            ]
        }
    }
}
