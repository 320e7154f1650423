//! The page that has the figures.

use std::fs;
use std::path::Path;

use crate::Error;

const BEGIN: &str = "<!-- figures -->\n";
const END: &str = "<!-- end of figures -->\n";

/// What is before the figures and what is after them.
fn around(path: &Path) -> Result<(String, String), Error> {
    let text =
        fs::read_to_string(path).map_err(|error| format!("--page {}: {error}", path.display()))?;
    let before = text.split_once(BEGIN);
    let parts = before.and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.ok_or_else(|| {
        format!(
            "--page {}: it has no lines {:?} and {:?}",
            path.display(),
            BEGIN.trim(),
            END.trim()
        )
    })?;
    Ok((before.to_owned(), after.to_owned()))
}

/// Whether figures can be put there.
pub(crate) fn check(path: &Path) -> Result<(), Error> {
    around(path).map(drop)
}

/// Puts them there, in place of those of before.
pub(crate) fn write(path: &Path, figures: &str) -> Result<(), Error> {
    let (before, after) = around(path)?;
    fs::write(path, format!("{before}{BEGIN}\n{figures}\n{END}{after}"))
        .map_err(|error| format!("--page {}: {error}", path.display()).into())
}
