//! Which file runs in the end when a program is asked for by its name, and whether a library can be
//! preloaded into it.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::image::Image;

/// How many interpreters may interpret each other: the kernel's limit is 4.
const DEPTH: u32 = 4;

/// A program into which a library can be preloaded.
#[derive(Debug)]
pub(crate) struct Program {
    /// What was asked for.
    pub(crate) file: PathBuf,
    /// What the kernel runs: the same, or a script's interpreter.
    pub(crate) path: PathBuf,
    pub(crate) image: Image,
}

/// Why it cannot be done, with the exit status that shells, env(1) and timeout(1) have for it.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) reason: String,
    /// 127: there is no such program. 126: there is, and it cannot be run so.
    pub(crate) status: u8,
}

impl Refused {
    fn missing(reason: String) -> Refused {
        Refused { reason, status: 127 }
    }

    fn unsuitable(path: &Path, reason: impl std::fmt::Display) -> Refused {
        Refused { reason: format!("{}: {reason}", path.display()), status: 126 }
    }
}

/// Finds a program by name, as execvp(3) does, and looks into it.
pub(crate) fn find(name: &OsStr) -> Result<Program, Refused> {
    let file = look_up(name)?;
    let path = interpreter(&file, DEPTH)?;
    let image = match Image::read(&path) {
        Ok(image) => image,
        Err(why) => return Err(Refused::unsuitable(&path, why)),
    };
    suitable(&path, &image)?;
    Ok(Program { file, path, image })
}

/// The file to run, looked into where it can be read: who may execute a program need not be able to.
pub(crate) fn find_to_run(name: &OsStr) -> Result<PathBuf, Refused> {
    let file = look_up(name)?;
    match File::open(&file) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(file),
        _ => find(name).map(|program| program.file),
    }
}

/// The file of this name: a path, or looked up in PATH.
fn look_up(name: &OsStr) -> Result<PathBuf, Refused> {
    if name.as_bytes().contains(&b'/') {
        let path = PathBuf::from(name);
        return match fs::metadata(&path) {
            Err(error) => Err(Refused::missing(format!("{}: {error}", path.display()))),
            Ok(found) if is_executable(&path, &found) => Ok(path),
            Ok(_) => Err(Refused::unsuitable(&path, "it is not an executable file")),
        };
    }
    let places = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/bin:/usr/bin"));
    let mut refused = None;
    for place in std::env::split_paths(&places) {
        let path = place.join(name);
        match fs::metadata(&path) {
            Ok(found) if is_executable(&path, &found) => return Ok(path),
            Ok(found) if found.is_file() && refused.is_none() => refused = Some(path),
            _ => {}
        }
    }
    Err(match refused {
        Some(path) => Refused::unsuitable(&path, "it is not executable"),
        None => Refused::missing(format!("{}: no such program in PATH", name.display())),
    })
}

/// Whether this process may execute it, whoever else may.
fn is_executable(path: &Path, found: &Metadata) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: a NUL-terminated string.
    found.is_file() && unsafe { libc::access(path.as_ptr(), libc::X_OK) } == 0
}

/// What runs in the end: the file itself, or what its first line names.
fn interpreter(file: &Path, depth: u32) -> Result<PathBuf, Refused> {
    let mut head = Vec::new();
    let read = File::open(file).and_then(|file| file.take(256).read_to_end(&mut head));
    if let Err(error) = read {
        return Err(Refused::unsuitable(file, format!("it cannot be read: {error}")));
    }
    if head.starts_with(b"\x7fELF") {
        return Ok(file.to_owned());
    }
    let Some(depth) = depth.checked_sub(1) else {
        return Err(Refused::unsuitable(file, "too many interpreters"));
    };
    let Some(line) = head.strip_prefix(b"#!") else {
        // execvp(3) gives what the kernel does not know to the shell.
        return interpreter(Path::new("/bin/sh"), depth);
    };
    let line = line.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let mut words = line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
    let Some(first) = words.next() else {
        return Err(Refused::unsuitable(file, "its first line names no interpreter"));
    };
    let named = PathBuf::from(OsString::from_vec(first.to_vec()));
    if !fs::metadata(&named).is_ok_and(|found| is_executable(&named, &found)) {
        let reason = format!("its interpreter {} is not an executable file", named.display());
        return Err(Refused::unsuitable(file, reason));
    }
    // env(1) runs the first word that is neither an option nor a variable.
    let is_env = named.file_name() == Some(OsStr::new("env"));
    let program = words.find(|word| !word.starts_with(b"-") && !word.contains(&b'='));
    match program.filter(|_| is_env) {
        Some(program) => interpreter(&look_up(OsStr::from_bytes(program))?, depth),
        None => interpreter(&named, depth),
    }
}

/// Whether the loader will preload into it.
fn suitable(path: &Path, image: &Image) -> Result<(), Refused> {
    let refuse = |reason: &str| Err(Refused::unsuitable(path, reason));
    if !image.is_for_this_machine() {
        return refuse("it is for another machine than the library");
    }
    let Some(loader) = &image.loader else {
        return refuse("it is linked statically, so nothing can be preloaded");
    };
    if image.go {
        return refuse(
            "Go makes its system calls itself, so hooks of the C library have no effect",
        );
    }
    if cfg!(target_env = "gnu") && loader.to_string_lossy().contains("ld-musl") {
        return refuse("it is linked with musl, and the library with the GNU C library");
    }
    if gains_privileges(path) {
        return refuse(
            "it runs with other privileges than yours (setuid, setgid or file capabilities), so \
             the loader ignores LD_PRELOAD",
        );
    }
    Ok(())
}

/// Whether the kernel would run it in secure mode (`AT_SECURE`, getauxval(3)).
fn gains_privileges(path: &Path) -> bool {
    let Ok(found) = fs::metadata(path) else { return false };
    // SAFETY: no arguments; they cannot fail.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    let mode = found.mode();
    let set_user = mode & libc::S_ISUID != 0 && found.uid() != user;
    let executed_as_group = libc::S_ISGID | libc::S_IXGRP;
    let set_group = mode & executed_as_group == executed_as_group && found.gid() != group;
    set_user || set_group || (user != 0 && has_capabilities(path))
}

fn has_capabilities(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    let name = c"security.capability";
    // SAFETY: two NUL-terminated strings; with a size of 0 nothing is written.
    unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) > 0 }
}
