//! The C interface as C sees it: `include/kapok.h` is what the source says, every function of it has a
//! man page with the same prototype, and the version is the same everywhere.

mod skipped;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kapok_libc::api;

/// With this in the environment the header is written instead of compared.
const WRITE: &str = "KAPOK_WRITE_HEADER";

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn generated() -> String {
    let mut config = cbindgen::Config::from_file(here("cbindgen.toml")).unwrap();
    config.after_includes = Some(constants());
    let source = here("src/api/mod.rs");
    let builder = cbindgen::Builder::new().with_config(config).with_src(source);
    let mut header = Vec::new();
    builder.generate().unwrap().write(&mut header);
    // What Rust calls safety is what every function of C asks of its caller.
    String::from_utf8(header).unwrap().replace("# Safety", "The caller promises:")
}

/// What is a macro in C.
fn constants() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let durations = [
        ("NANOSECOND", api::KAPOK_NANOSECOND),
        ("MICROSECOND", api::KAPOK_MICROSECOND),
        ("MILLISECOND", api::KAPOK_MILLISECOND),
        ("SECOND", api::KAPOK_SECOND),
    ];
    let durations = durations
        .map(|(name, nanoseconds)| format!("#define KAPOK_{name} UINT64_C({nanoseconds})\n"));
    assert_eq!(api::KAPOK_FOREVER, u64::MAX);
    format!(
        "\n/** The version of this header. */\n#define KAPOK_VERSION \"{version}\"\n\n\
         /** All durations are given in nanoseconds. */\n{}\n\
         /** No time limit. */\n#define KAPOK_FOREVER UINT64_MAX",
        durations.concat()
    )
}

fn committed() -> String {
    fs::read_to_string(here("include/kapok.h")).unwrap()
}

#[test]
fn the_header_is_what_the_source_says() {
    let generated = generated();
    if std::env::var_os(WRITE).is_some() {
        fs::write(here("include/kapok.h"), &generated).unwrap();
    }
    let differs = generated
        .lines()
        .zip(committed().lines())
        .find(|(new, old)| new != old)
        .map(|(new, old)| format!("`{old}` should be `{new}`"));
    assert!(
        generated == committed(),
        "include/kapok.h is not what src/api says ({differs:?}): {WRITE}=1 cargo test -p kapok-libc \
         --test header writes it"
    );
}

/// The functions of the header: for each name its prototype in one line.
fn prototypes() -> BTreeMap<String, String> {
    let header = committed();
    let mut found = BTreeMap::new();
    let code: String = header.lines().filter(|line| !line.starts_with('#')).fold(
        String::new(),
        |mut code, line| {
            let comment = line.trim_start();
            if !comment.starts_with("/*") && !comment.starts_with('*') {
                code.push_str(line.trim());
                code.push(' ');
            }
            code
        },
    );
    for statement in code.split(';') {
        let statement = statement.trim();
        let Some((head, _)) = statement.split_once('(') else { continue };
        let name = head.rsplit([' ', '*']).next().unwrap();
        if name.starts_with("kapok_") && !statement.starts_with("typedef") {
            let start = statement.rfind(['{', '}']).map_or(0, |end| end + 1);
            found.insert(name.to_owned(), statement[start..].trim().to_owned());
        }
    }
    found
}

/// The functions that the source exports.
fn exported() -> Vec<String> {
    let mut names = Vec::new();
    for file in fs::read_dir(here("src/api")).unwrap() {
        let source = fs::read_to_string(file.unwrap().path()).unwrap();
        for part in source.split("#[unsafe(no_mangle)]").skip(1) {
            let (_, after) = part.split_once(" fn ").unwrap();
            names.push(after.split('(').next().unwrap().to_owned());
        }
    }
    names.sort();
    names
}

#[test]
fn every_exported_function_is_in_the_header() {
    let exported = exported();
    assert!(exported.len() > 20, "{exported:?}");
    assert_eq!(exported, prototypes().into_keys().collect::<Vec<_>>());
}

#[test]
fn the_header_declares_nothing_of_other_libraries() {
    let header = committed();
    let mut external = header.lines().filter(|line| line.trim_start().starts_with("extern "));
    let other = external.find(|line| line.trim() != "extern \"C\" {");
    assert_eq!(other, None);
}

fn pages() -> PathBuf {
    here("../../docs/man/man3")
}

/// The text of a page, behind its link if it is one.
fn page(name: &str) -> String {
    let read = |name: &str| {
        let path = pages().join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let text = read(&format!("{name}.3"));
    match text.strip_prefix(".so man3/") {
        Some(other) => read(other.trim()),
        None => text,
    }
}

#[test]
fn every_function_has_a_man_page_with_its_prototype() {
    for (name, prototype) in prototypes() {
        let (head, arguments) = prototype.split_once('(').unwrap();
        let returned = head.strip_suffix(name.as_str()).unwrap().trim();
        let mut wanted = format!(".Ft {}\n.Fn {name}", quoted(returned));
        for argument in arguments.trim_end_matches(')').split(", ") {
            wanted += &format!(" \"{argument}\"");
        }
        let page = page(&name);
        assert!(page.contains(&format!("\n.Nm {name}")), "{name}: not among the page's names");
        assert!(page.contains(&wanted), "{name}: the page should have\n{wanted}\nin\n{page}");
        for section in ["SYNOPSIS", "DESCRIPTION", "RETURN VALUES", "SEE ALSO"] {
            assert!(page.contains(&format!("\n.Sh {section}\n")), "{name}: no {section}");
        }
    }
}

/// As mdoc(7) wants an argument.
fn quoted(words: &str) -> String {
    if words.contains(' ') { format!("\"{words}\"") } else { words.to_owned() }
}

#[test]
fn there_is_no_page_of_a_function_that_is_not_there() {
    let known = prototypes();
    for page in fs::read_dir(pages()).unwrap() {
        let name = page.unwrap().file_name().into_string().unwrap();
        let name = name.strip_suffix(".3").expect(&name);
        assert!(name == "kapok" || known.contains_key(name), "{name}");
    }
}

#[test]
fn man_pages_have_no_mistakes_of_form() {
    let pages = fs::read_dir(pages()).unwrap().map(|page| page.unwrap().path());
    // Links have no form.
    let pages = pages.filter(|page| !fs::read_to_string(page).unwrap().starts_with(".so "));
    let linted =
        Command::new("mandoc").args(["-Tlint", "-Wwarning", "-Ios=Kapok"]).args(pages).output();
    match linted {
        Ok(linted) => {
            let said = String::from_utf8_lossy(&linted.stdout).into_owned();
            assert!(linted.status.success(), "{said}");
        }
        Err(error) => skipped::skip(&format!("mandoc(1): {error} (apt-get install mandoc)")),
    }
}

#[test]
fn the_version_is_the_same_everywhere() {
    let version = env!("CARGO_PKG_VERSION");
    // SAFETY: a string that lives as long as the program.
    let linked = unsafe { std::ffi::CStr::from_ptr(api::kapok_version()) };
    assert_eq!(linked.to_str(), Ok(version));
    let config = fs::read_to_string(here("pkgconfig/kapok.pc")).unwrap();
    assert!(config.contains(&format!("\nVersion: {version}\n")), "{config}");
}
