//! Errors that say what was done to which file.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;

use crate::descriptor::Descriptor;

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

/// The same error, of the same kind, which says what failed. The error as it was is its source. What was
/// said before of a part of it is left out.
#[cold]
pub(crate) fn failed(what: String, why: io::Error) -> io::Error {
    let why = why.downcast::<Failed>().map_or_else(|why| why, |failed| failed.why);
    io::Error::new(why.kind(), Failed { what, why })
}

/// The number that the kernel gave of an error (errno(3)), whether or not the error says of what file it is:
/// [`raw_os_error`](io::Error::raw_os_error) knows of errors only that say nothing more.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// let pool = kapok_pool::Pool::builder().build()?;
/// let error = kapok_pool::block_on(kapok_pool::File::open(&pool, "/nowhere")).unwrap_err();
/// assert_eq!(error.to_string(), "open /nowhere: No such file or directory (os error 2)");
/// assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
/// assert_eq!(kapok_pool::raw_os_error(&error), Some(2));
/// # Ok(())
/// # }
/// ```
pub fn raw_os_error(error: &io::Error) -> Option<i32> {
    let failed = error.get_ref().and_then(|inner| inner.downcast_ref::<Failed>());
    failed.map_or(error, |failed| &failed.why).raw_os_error()
}

/// What the kernel said of an operation at an offset of a file. Without a path, and if somebody else said it, the
/// error as it is.
#[cold]
pub(crate) fn at(
    what: &str,
    file: &impl Descriptor,
    offset: Option<u64>,
    why: io::Error,
) -> io::Error {
    match (file.path().filter(|_| why.raw_os_error().is_some()), offset) {
        (None, _) => why,
        (Some(path), None) => named(what, path, why),
        (Some(path), Some(at)) => failed(format!("{what} {} at {at}", path.display()), why),
    }
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
