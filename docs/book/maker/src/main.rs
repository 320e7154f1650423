//! Makes the pages of the book and looks for what is broken in them: includes of files that are not there,
//! links that lead nowhere, in the book and into the repository.
//!
//! ```text
//! cargo run --manifest-path docs/book/maker/Cargo.toml
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use mdbook_driver::MDBook;

/// Links that begin so are to files of this repository.
const REPOSITORY: &str = "https://github.com/kapok-io/kapok/blob/main/";

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let root = fs::canonicalize(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))?;
    let book = MDBook::load(&root)?;
    book.build()?;
    let directory = book.build_dir_for("html");
    let pages = pages(&directory)?;
    let found = faults(&pages, &directory, &root.join("../.."));
    for fault in &found {
        eprintln!("{fault}");
    }
    println!("{} pages in {}", pages.len(), directory.display());
    Ok(if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The pages by their paths.
fn pages(directory: &Path) -> std::io::Result<BTreeMap<PathBuf, String>> {
    let mut pages = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            pages.extend(self::pages(&path)?);
        } else if path.extension().is_some_and(|ending| ending == "html") {
            pages.insert(path.clone(), fs::read_to_string(&path)?);
        }
    }
    Ok(pages)
}

/// What is wrong with the pages.
fn faults(pages: &BTreeMap<PathBuf, String>, directory: &Path, repository: &Path) -> Vec<String> {
    let mut faults = Vec::new();
    for (path, page) in pages {
        let name = path.strip_prefix(directory).unwrap_or(path).display();
        // What mdBook could not replace it leaves standing.
        for rest in page.split("{{#").skip(1) {
            let text = rest.split("}}").next().unwrap_or(rest);
            faults.push(format!("{name}: not included: {text}"));
        }
        // The page for addresses that are unknown is asked for from any place: its links have a base.
        if path.file_name().is_some_and(|name| name == "404.html") {
            continue;
        }
        for link in links(page) {
            if !leads_somewhere(&link, path, page, pages, repository) {
                faults.push(format!("{name}: leads nowhere: {link}"));
            }
        }
    }
    faults
}

/// What a page refers to.
fn links(page: &str) -> Vec<String> {
    let after = |attribute: &'static str| {
        page.split(attribute).skip(1).filter_map(|rest| rest.split('"').next())
    };
    after(" href=\"").chain(after(" src=\"")).map(|link| link.replace("&amp;", "&")).collect()
}

fn leads_somewhere(
    link: &str,
    path: &Path,
    page: &str,
    pages: &BTreeMap<PathBuf, String>,
    repository: &Path,
) -> bool {
    let (place, name) = link.split_once('#').map_or((link, None), |(p, name)| (p, Some(name)));
    if let Some(file) = place.strip_prefix(REPOSITORY) {
        return repository.join(file).exists();
    }
    // Elsewhere: no network is asked.
    if place.contains("://") || place.starts_with("data:") || place.starts_with("mailto:") {
        return true;
    }
    let target = match (place, path.parent()) {
        ("", _) => path.to_owned(),
        (place, Some(parent)) => plain(&parent.join(place)),
        (_, None) => return false,
    };
    let page = if place.is_empty() { Some(page) } else { pages.get(&target).map(String::as_str) };
    match (name, page) {
        (None | Some(""), Some(_)) => true,
        (Some(name), Some(page)) => page.contains(&format!("id=\"{name}\"")),
        (_, None) => target.is_file(),
    }
}

/// A path without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_nowhere_is_found() {
        let directory = Path::new("/book");
        let page = |name: &str, text: &str| (directory.join(name), text.to_owned());
        let there = "<h2 id=\"here\">x</h2> <a href=\"b.html#there\"> <a href=\"#here\"> \
                     <a href=\"https://github.com/kapok-io/kapok/blob/main/Cargo.toml\"> \
                     <a href=\"https://example.org/\">";
        let pages = BTreeMap::from([page("a.html", there), page("b.html", "<p id=\"there\">")]);
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert_eq!(faults(&pages, directory, repository), Vec::<String>::new());
        for (broken, fault) in [
            ("<a href=\"c.html\">", "a.html: leads nowhere: c.html"),
            ("<a href=\"b.html#else\">", "a.html: leads nowhere: b.html#else"),
            ("<a href=\"#else\">", "a.html: leads nowhere: #else"),
            ("<img src=\"none.png\">", "a.html: leads nowhere: none.png"),
            ("{{#include none.rs:1:}}", "a.html: not included: include none.rs:1:"),
        ] {
            let pages = BTreeMap::from([page("a.html", broken), page("b.html", "")]);
            assert_eq!(faults(&pages, directory, repository), [fault]);
        }
        let missing = format!("<a href=\"{REPOSITORY}none.md\">");
        let pages = BTreeMap::from([page("a.html", &missing)]);
        assert_eq!(faults(&pages, directory, repository).len(), 1);
    }
}
