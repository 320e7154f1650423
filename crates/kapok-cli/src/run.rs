//! `kapok run`: an unmodified program with the C library's blocking calls hooked.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cli::RunOptions;
use crate::library::Library;
use crate::program;

/// Becomes the program. Returns only if that cannot be done.
///
/// The exit status is the program's. For what concerns the program it is what shells have: 127 if there
/// is none, 126 if it cannot be run so; for everything else it is Kapok's own, 1 and 2.
pub(crate) fn run(options: &RunOptions) -> io::Result<ExitCode> {
    let library = Library::find()?;
    if options.threads_as_fibers && !library.image.exports.contains("pthread_create") {
        let path = library.path.display();
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("{path} does not hook pthread_create, so it cannot make threads fibers"),
        ));
    }
    let (name, arguments) = options.command.split_first().expect("at least one is required");
    let program = match program::find_to_run(name) {
        Ok(program) => program,
        Err(refused) => {
            eprintln!("kapok: {}", refused.reason);
            return Ok(ExitCode::from(refused.status));
        }
    };
    let mut command = Command::new(&program);
    command.arg0(name).args(arguments).env("LD_PRELOAD", preloads(&library));
    let stats = if options.json { Some("json") } else { options.stats.then_some("1") };
    for (value, variable) in [
        // Threads can be fibers only of a loop, which is that of main.
        ((options.main_fiber || options.threads_as_fibers).then_some("1"), "KAPOK_MAIN_FIBER"),
        (options.threads_as_fibers.then_some("1"), "KAPOK_THREADS_AS_FIBERS"),
        (stats, "KAPOK_STATS"),
    ] {
        // What a `kapok run` around this one asked for was for its own program.
        match value {
            Some(value) => command.env(variable, value),
            None => command.env_remove(variable),
        };
    }
    restore_signals(&mut command);
    let error = command.exec();
    eprintln!("kapok: {}: {error}", program.display());
    Ok(ExitCode::from(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 }))
}

/// What SIGPIPE was when this process began, before Rust's own start changed it.
static SIGPIPE_IGNORED: AtomicBool = AtomicBool::new(false);

extern "C" fn look_at_sigpipe() {
    // SAFETY: integers and pointers, for which zero is a value; with no new action only a local is
    // written.
    let action = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut action);
        action.sa_sigaction
    };
    SIGPIPE_IGNORED.store(action == libc::SIG_IGN, Ordering::Relaxed);
}

// SAFETY: the linker gathers such pointers and the loader calls them; the function has the ABI that
// the loader calls, takes what it passes by ignoring it, and does not unwind.
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK_AT_SIGPIPE: extern "C" fn() = look_at_sigpipe;

/// Has the program begin with the signals that this process began with. std gives what it starts no
/// blocked ones, and SIGPIPE its default.
fn restore_signals(command: &mut Command) {
    // SAFETY: integers, for which zero is a value; with no new set only a local is written.
    let blocked = unsafe {
        let mut blocked: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut blocked);
        blocked
    };
    let restore = move || {
        // SAFETY: a set that was filled in, and a disposition that is no function.
        unsafe {
            if SIGPIPE_IGNORED.load(Ordering::Relaxed) {
                libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const blocked, std::ptr::null_mut());
        }
        Ok(())
    };
    // SAFETY: it makes system calls and nothing else.
    unsafe { command.pre_exec(restore) };
}

/// The library before those that are preloaded already.
fn preloads(library: &Library) -> OsString {
    let mut preloads = library.path.clone().into_os_string();
    if let Some(others) = env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        preloads.push(":");
        preloads.push(others);
    }
    preloads
}
