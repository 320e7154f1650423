//! A file for results that keeps what is in it until there is something to replace it by.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Where results go. A regular file is written beside its place and moved there by
/// [`finish`](Output::finish): whatever fails before leaves what was there.
pub(super) struct Output {
    to: BufWriter<Box<dyn Write>>,
    /// What is moved where, with whose permissions; `None` where there is nothing to keep: a pipe, a device.
    staged: Option<Staged>,
}

struct Staged {
    file: PathBuf,
    place: PathBuf,
    permissions: Option<Permissions>,
}

impl Output {
    /// The file at `path`, or standard output for `-`. That it can be written is known when this returns.
    pub(super) fn open(path: Option<&Path>, option: &str) -> io::Result<Option<Output>> {
        let Some(path) = path else { return Ok(None) };
        if super::is_stdout(path) {
            return Ok(Some(Output { to: BufWriter::new(Box::new(io::stdout())), staged: None }));
        }
        let named =
            |error: io::Error| io::Error::other(format!("{option} {}: {error}", path.display()));
        Output::at(path).map(Some).map_err(named)
    }

    fn at(path: &Path) -> io::Result<Output> {
        let there = match fs::metadata(path) {
            // A file that must not be written is not to be replaced either.
            Ok(there) => Some((there, OpenOptions::new().write(true).open(path)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let (place, permissions) = match there {
            Some((there, file)) if !there.is_file() => {
                return Ok(Output { to: BufWriter::new(Box::new(file)), staged: None });
            }
            // Through links: they stay, and what they lead to is replaced.
            Some((there, _)) => (fs::canonicalize(path)?, Some(there.permissions())),
            None => (path.to_owned(), None),
        };
        let (file, staged) = beside(&place)?;
        let staged = Staged { file: staged, place, permissions };
        Ok(Output { to: BufWriter::new(Box::new(file)), staged: Some(staged) })
    }

    /// Whether finishing would replace an older result.
    pub(super) fn replaces(&self) -> bool {
        self.staged.as_ref().is_some_and(|staged| staged.permissions.is_some())
    }

    /// What was written takes its place.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.to.flush()?;
        let Some(staged) = &self.staged else { return Ok(()) };
        if let Some(permissions) = &staged.permissions {
            fs::set_permissions(&staged.file, permissions.clone())?;
        }
        fs::rename(&staged.file, &staged.place)?;
        self.staged = None;
        Ok(())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(staged) = &self.staged {
            // It was not finished; a rest of it that cannot be removed does no harm.
            let _ = fs::remove_file(&staged.file);
        }
    }
}

/// A new file in the same directory, from which it can be moved to `place` in one step.
fn beside(place: &Path) -> io::Result<(File, PathBuf)> {
    let name = place.file_name().ok_or(io::ErrorKind::IsADirectory)?.to_string_lossy();
    for number in 0..1000 {
        let staged = place.with_file_name(format!(".{name}.{}-{number}.tmp", std::process::id()));
        match File::create_new(&staged) {
            Ok(file) => return Ok((file, staged)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn what_is_there_stays_until_the_new_is_finished() {
        let directory = std::env::temp_dir().join(format!("kapok-output-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let (path, link) = (directory.join("base.json"), directory.join("link.json"));
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        symlink(&path, &link).unwrap();
        let names = || fs::read_dir(&directory).unwrap().count();

        let mut output = Output::open(Some(&link), "--json").unwrap().unwrap();
        assert!(output.replaces());
        output.write_all(b"new").unwrap();
        output.flush().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        drop(output);
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), names()), ("old", 2));

        let mut output = Output::open(Some(&link), "--json").unwrap().unwrap();
        output.write_all(b"new").unwrap();
        output.finish().unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), names()), ("new", 2));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());

        // One that was not there does not appear before, nor if it comes to nothing.
        let fresh = directory.join("fresh.json");
        drop(Output::open(Some(&fresh), "--json").unwrap());
        assert!(!fresh.exists() && names() == 2);
        // A device has nothing to keep, and no file is moved over it.
        let mut device = Output::open(Some(Path::new("/dev/null")), "--csv").unwrap().unwrap();
        device.write_all(b"new").unwrap();
        assert!(!device.replaces());
        device.finish().unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());

        let refused = Output::open(Some(&directory.join("absent/x")), "--hdr").err().unwrap();
        assert!(refused.to_string().starts_with("--hdr "), "{refused}");
        fs::remove_dir_all(&directory).unwrap();
    }
}
