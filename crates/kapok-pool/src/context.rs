//! Errors that say what was done to which file.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;

#[derive(Debug)]
struct Failed {
    what: String,
    why: io::Error,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

impl Error for Failed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.why)
    }
}

/// The same error, of the same kind, which says what failed. The error as it was is its source.
#[cold]
pub(crate) fn failed(what: String, why: io::Error) -> io::Error {
    io::Error::new(why.kind(), Failed { what, why })
}

/// That `what` was done to `path`.
#[cold]
pub(crate) fn named(what: &str, path: &Path, why: io::Error) -> io::Error {
    failed(format!("{what} {}", path.display()), why)
}

/// That `what` was done from one path to another.
#[cold]
pub(crate) fn named_both(what: &str, from: &Path, to: &Path, why: io::Error) -> io::Error {
    failed(format!("{what} {} to {}", from.display(), to.display()), why)
}
