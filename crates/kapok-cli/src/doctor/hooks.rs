//! `kapok doctor --libc`: which hooks of the C library are active in a program, and which are not.
//!
//! A call of a hooked function is the hook's if the first object that has the function, in the order in
//! which the loader looks, is `libkapok.so`. That order is known without running the program: the
//! program, what is preloaded, and what they need, breadth first, as the loader itself lists it.
//!
//! A program may link the hooks instead. Its own calls then are the hooks', and so are those of an object
//! for which the linker exported them.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde::Serialize;

use super::{Finding, Verdict, print};
use crate::cli::DoctorOptions;
use crate::image::Image;
use crate::library::Library;
use crate::program::{self, Program};

/// What of an object's calls is hooked.
#[derive(Debug, Serialize)]
struct Object {
    path: PathBuf,
    /// Hooked functions that it calls; of a program that links the hooks, those that others get from it.
    active: Vec<String>,
    /// Functions that it calls, that there is a hook for, and that it has from elsewhere.
    bypassed: Vec<Bypassed>,
    /// What cannot be seen, or holds for the object as a whole.
    notes: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct Bypassed {
    name: String,
    because: String,
}

/// Prints the report. Fails if no hook is active in the program.
pub(super) fn run(options: &DoctorOptions, program: Option<&OsStr>) -> io::Result<ExitCode> {
    let library = Library::find()?;
    let Some(name) = program else { return list(options, &library) };
    let program = match program::find(name) {
        Ok(program) => program,
        Err(refused) => return report_refusal(options, name, &refused.reason),
    };
    let linked = program.image.kapok;
    let scope = scope(&program, &library)?;
    let hooks = if linked { &program.path } else { &library.path };
    let objects: Vec<Object> = scope
        .iter()
        .filter(|(path, _)| *path != library.path)
        .map(|(path, image)| look_at(path, image, &scope, &library, hooks))
        .collect();
    let active = linked || objects.iter().any(|object| !object.active.is_empty());
    let mut stdout = io::stdout().lock();
    if options.json {
        let all = serde_json::json!({
            "program": program.path, "library": library.path, "linked": linked, "active": active,
            "objects": objects,
        });
        writeln!(stdout, "{all}")?;
    } else {
        if program.file != program.path {
            let (file, path) = (program.file.display(), program.path.display());
            writeln!(stdout, "{file} is a script, which {path} runs.")?;
        }
        for object in &objects {
            describe(&mut stdout, object)?;
        }
        let end = if linked {
            "Hooks are linked into it, and active once it has called kapok_libc::install(). On a fiber \
             their calls suspend the fiber."
        } else if active {
            "Hooks are active in it. On a fiber their calls suspend the fiber: kapok run --main-fiber."
        } else {
            "No hook is active in it: it calls none of the hooked functions, or has them from elsewhere."
        };
        writeln!(stdout, "{end}")?;
    }
    stdout.flush()?;
    Ok(ExitCode::from(if active { 0 } else { 1 }))
}

/// Without a program: the hooks there are, and in which programs they cannot work.
fn list(options: &DoctorOptions, library: &Library) -> io::Result<ExitCode> {
    let hooks: Vec<&str> = library.hooks().collect();
    let mut stdout = io::stdout().lock();
    if options.json {
        let all = serde_json::json!({ "library": library.path, "hooks": hooks });
        writeln!(stdout, "{all}")?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(stdout, "{} hooks {} functions:", library.path.display(), hooks.len())?;
    wrapped(&mut stdout, hooks.iter().copied())?;
    writeln!(
        stdout,
        "They have no effect in programs that are linked statically, that run with other privileges\n\
         (setuid, setgid, file capabilities) or that are made by Go, nor on calls that the C library\n\
         makes inside itself. `kapok doctor --libc PROGRAM` looks at a program."
    )?;
    Ok(ExitCode::SUCCESS)
}

fn report_refusal(options: &DoctorOptions, name: &OsStr, reason: &str) -> io::Result<ExitCode> {
    let mut stdout = io::stdout().lock();
    if options.json {
        let name = name.to_string_lossy();
        let all = serde_json::json!({ "program": name, "active": false, "because": reason });
        writeln!(stdout, "{all}")?;
    } else {
        let finding = Finding {
            name: "no hook is active",
            verdict: Verdict::Fail,
            found: reason.to_owned(),
            cure: None,
        };
        print(&mut stdout, &[finding])?;
    }
    Ok(ExitCode::FAILURE)
}

/// All objects that are loaded with the program, in the order in which the loader looks names up.
fn scope(program: &Program, library: &Library) -> io::Result<Vec<(PathBuf, Image)>> {
    let mut paths = vec![program.path.clone()];
    let loaded = loaded_with(program)?;
    // Unless it is linked with the library, or with what is in it, `kapok run` puts it first.
    if !program.image.kapok && !loaded.contains(&library.path) {
        paths.push(library.path.clone());
    }
    paths.extend(loaded);
    let read = |path: PathBuf| match Image::read(&path) {
        Ok(image) => Ok((path, image)),
        Err(why) => Err(io::Error::other(format!("{}: {why}", path.display()))),
    };
    paths.into_iter().map(read).collect()
}

/// What the program's loader says that it would load, in its order. The program is not run.
fn loaded_with(program: &Program) -> io::Result<Vec<PathBuf>> {
    let loader = program.image.loader.as_deref().unwrap_or(Path::new(""));
    // The program names its loader. One that is not the system's is a program like any other.
    let real = fs::canonicalize(loader)?;
    if !["/lib", "/lib64", "/usr/lib", "/usr/lib64"].iter().any(|place| real.starts_with(place)) {
        return Err(io::Error::other(format!(
            "{} asks for the loader {}, which is not the system's and is not run here",
            program.path.display(),
            loader.display()
        )));
    }
    let listed = Command::new(&real)
        .arg("--list")
        .arg(fs::canonicalize(&program.path)?)
        .env_remove("LD_PRELOAD")
        .output()?;
    if !listed.status.success() {
        let said = String::from_utf8_lossy(&listed.stderr);
        return Err(io::Error::other(format!("{}: {}", program.path.display(), said.trim())));
    }
    // Lines as `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, or the path alone.
    let listed = String::from_utf8_lossy(&listed.stdout);
    let path = |line: &str| {
        let line = line.trim();
        let place = line.split_once(" => ").map_or(line, |(_, place)| place);
        let (path, _) = place.rsplit_once(" (0x")?;
        path.starts_with('/').then(|| fs::canonicalize(path)).and_then(Result::ok)
    };
    Ok(listed.lines().filter_map(path).collect())
}

/// Whether an object is part of the C library, whose calls of itself no hook sees.
fn is_c_library(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("libc.so") || name.starts_with("ld-linux") || name.starts_with("libc-2")
}

/// What of an object's calls goes to `hooks`, the library or the program that links the same.
fn look_at(
    path: &Path,
    image: &Image,
    scope: &[(PathBuf, Image)],
    library: &Library,
    hooks: &Path,
) -> Object {
    let mut object = Object {
        path: path.to_owned(),
        active: Vec::new(),
        bypassed: Vec::new(),
        notes: Vec::new(),
    };
    if is_c_library(path) {
        object.notes.push(
            "calls inside the C library are bound there: what stdio, popen, system and syslog wait for \
             blocks the thread",
        );
        return object;
    }
    for name in library.hooks() {
        let own = image.exports.contains(name);
        if !own && !image.imports.contains(name) {
            continue;
        }
        let provider = if own && image.symbolic {
            Some(path)
        } else {
            let first = scope.iter().find(|(_, image)| image.exports.contains(name));
            first.map(|(path, _)| path.as_path())
        };
        match provider {
            Some(provider) if provider == hooks => object.active.push(name.to_owned()),
            Some(provider) => object.bypassed.push(Bypassed {
                name: name.to_owned(),
                because: if provider == path {
                    "its own".to_owned()
                } else if hooks == library.path {
                    format!("comes from {}", provider.display())
                } else {
                    format!(
                        "comes from {}, as the program does not export Kapok's: link it with this \
                         object, or with -rdynamic",
                        provider.display()
                    )
                },
            }),
            None => {}
        }
    }
    if path == hooks {
        object.notes.push(
            "links Kapok: what it calls by itself is hooked, seen from outside or not, once it has \
             called kapok_libc::install()",
        );
    }
    if image.imports.contains("dlopen") || image.imports.contains("dlmopen") {
        object.notes.push(
            "opens others at run time, which are not listed here: hooks are active in them too, unless \
             they are opened with RTLD_DEEPBIND or by dlmopen(3), which cannot be seen from outside",
        );
    }
    if image.thread_locals && path != library.path {
        object.notes.push(
            "has thread-local variables, which all threads share if they are fibers \
             (--threads-as-fibers)",
        );
    }
    if image.imports.contains("syscall") && !library.hooks().any(|name| name == "syscall") {
        object.notes.push("makes system calls by number, by syscall(2), which is not hooked");
    }
    object
}

fn describe(out: &mut impl Write, object: &Object) -> io::Result<()> {
    let colours = io::stdout().is_terminal() && crate::cli::colours_allowed();
    let path = object.path.display();
    if colours {
        writeln!(out, "\x1b[1m{path}\x1b[0m")?;
    } else {
        writeln!(out, "{path}")?;
    }
    if !object.active.is_empty() {
        writeln!(out, "  active, {}:", object.active.len())?;
        wrapped(out, object.active.iter().map(String::as_str))?;
    }
    for Bypassed { name, because } in &object.bypassed {
        writeln!(out, "  bypassed: {name}: {because}")?;
    }
    for note in &object.notes {
        writeln!(out, "  note: {note}")?;
    }
    if object.active.is_empty() && object.bypassed.is_empty() && object.notes.is_empty() {
        writeln!(out, "  calls no hooked function")?;
    }
    Ok(())
}

/// Words in lines of up to 90 columns.
fn wrapped<'a>(out: &mut impl Write, words: impl Iterator<Item = &'a str>) -> io::Result<()> {
    let mut line = String::new();
    for word in words {
        if !line.is_empty() && line.len() + word.len() > 85 {
            writeln!(out, "    {line}")?;
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if line.is_empty() { Ok(()) } else { writeln!(out, "    {line}") }
}
