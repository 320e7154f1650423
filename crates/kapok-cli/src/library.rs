//! Where `libkapok.so` is.

use std::env;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::image::Image;

/// The environment variable that names the library.
const VARIABLE: &str = "KAPOK_LIBRARY";
const NAME: &str = "libkapok.so";

/// The library and what it has.
#[derive(Debug)]
pub(crate) struct Library {
    pub(crate) path: PathBuf,
    pub(crate) image: Image,
}

impl Library {
    /// The file that [`VARIABLE`] names, and else the one beside this program, in
    /// `../lib/kapok` or in `../lib`, where those who compile in C find it too.
    ///
    /// # Errors
    ///
    /// With the paths that were tried; if the file is another library, or has a path that
    /// `LD_PRELOAD` cannot hold.
    pub(crate) fn find() -> io::Result<Library> {
        let path = match env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
            Some(named) => existing(vec![named.into()], VARIABLE)?,
            None => existing(usual_places()?, "the usual places")?,
        };
        let image = Image::read(&path)
            .map_err(|why| io::Error::other(format!("{}: {why}", path.display())))?;
        if !image.exports.contains("kapok_version") {
            return Err(io::Error::other(format!("{} is not Kapok's library", path.display())));
        }
        // What separates paths in it, and what the loader would expand.
        if path.as_os_str().as_bytes().iter().any(|byte| b" :$".contains(byte)) {
            return Err(io::Error::other(format!(
                "{}: LD_PRELOAD cannot hold a path with spaces, colons or dollar signs; put a link \
                 elsewhere and name it by {VARIABLE}",
                path.display()
            )));
        }
        Ok(Library { path, image })
    }

    /// The names of the functions of the C library that it comes before.
    pub(crate) fn hooks(&self) -> impl Iterator<Item = &str> {
        let exports = self.image.exports.iter().map(String::as_str);
        // The rest is its own interface, the way in, and what a Rust library has for itself.
        exports.filter(|name| {
            !name.starts_with("kapok_")
                && !["__libc_start_main", "_exit", "_Exit"].contains(name)
                && !name.starts_with("rust_")
                && !name.starts_with("_R")
                && !name.starts_with("_ZN")
        })
    }
}

fn usual_places() -> io::Result<Vec<PathBuf>> {
    let program = fs::canonicalize(env::current_exe()?)?;
    let Some(directory) = program.parent() else { return Ok(Vec::new()) };
    let mut places = vec![directory.join(NAME)];
    if let Some(above) = directory.parent() {
        places.extend(["lib/kapok", "lib"].map(|lib| above.join(lib).join(NAME)));
    }
    Ok(places)
}

fn existing(places: Vec<PathBuf>, whose: &str) -> io::Result<PathBuf> {
    let tried: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    let found = places.into_iter().find_map(|place| fs::canonicalize(place).ok());
    found.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!(
                "{NAME} is not there: tried {} ({whose}). `cargo build -p kapok-preload` makes it; \
                 {VARIABLE} says where it is",
                tried.join(", ")
            ),
        )
    })
}
