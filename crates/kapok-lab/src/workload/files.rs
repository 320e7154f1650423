//! Files of a directory, by the targets of requests.
//!
//! Only what is below the directory is served: a target with `..`, or with anything else that is no
//! plain name, finds nothing. Links are followed, wherever they lead: who made them meant it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The largest file that is served: a session holds it whole.
const MOST_BYTES: u64 = 64 << 20;

/// What is served for a directory.
const INDEX: &str = "index.html";

/// The file below `directory` that `target` (of a request line) names; none if it names nothing.
pub(super) fn resolve(directory: &Path, target: &str) -> Option<PathBuf> {
    let path = target.split(['?', '#']).next()?;
    let mut file = directory.to_path_buf();
    for part in path.strip_prefix('/')?.split('/') {
        if part.is_empty() {
            continue;
        }
        let name = decode(part)?;
        if name == "." || name == ".." || name.contains(['/', '\0']) {
            return None;
        }
        file.push(name);
    }
    if path.ends_with('/') {
        file.push(INDEX);
    }
    Some(file)
}

/// Undoes percent-encoding (RFC 3986, 2.1).
fn decode(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let [high, low, tail @ ..] = rest else { return None };
        let digit = |letter: &u8| char::from(*letter).to_digit(16);
        bytes.push((digit(high)? * 16 + digit(low)?) as u8);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

/// Whether a file of this kind and size is served.
pub(crate) fn check(is_file: bool, bytes: u64) -> io::Result<()> {
    if !is_file {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no regular file"));
    }
    if bytes > MOST_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "a file of more than 64 MiB"));
    }
    Ok(())
}

/// Reads a file by calls that block.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Before it is opened: to open a pipe is to wait for its other end.
    let metadata = fs::metadata(path)?;
    check(metadata.is_file(), metadata.len())?;
    fs::read(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_stay_below_the_directory() {
        let directory = Path::new("/srv/www");
        let cases = [
            ("/", Some("/srv/www/index.html")),
            ("/a/b.txt", Some("/srv/www/a/b.txt")),
            ("/a//b.txt?query#part", Some("/srv/www/a/b.txt")),
            ("/a/", Some("/srv/www/a/index.html")),
            ("/two%20words", Some("/srv/www/two words")),
            ("/..", None),
            ("/a/../../etc/passwd", None),
            ("/%2e%2e/etc/passwd", None),
            ("/a%2f..%2f..%2fetc/passwd", None),
            ("/a%00b", None),
            ("/%", None),
            ("/%zz", None),
            ("/%ff", None),
            ("*", None),
            ("http://elsewhere/", None),
        ];
        for (target, file) in cases {
            assert_eq!(resolve(directory, target), file.map(PathBuf::from), "{target}");
        }
    }
}
