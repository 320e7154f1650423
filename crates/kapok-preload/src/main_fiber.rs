//! main on a fiber, so that its waits have a fiber to suspend.
//!
//! A program's first code calls `__libc_start_main` with its `main`. Ours comes first and, if the
//! environment asks for it, hands another `main` on, which runs a loop with the program's as a fiber.
//!
//! When main returns the process exits from the fiber, as it would from the thread: functions of
//! atexit(3) may wait, and so may the child of a fork(2) in which main returns.

use std::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;

type Main = unsafe extern "C-unwind" fn(c_int, *mut *mut c_char, *mut *mut c_char) -> c_int;
type Start = unsafe extern "C-unwind" fn(
    Main,
    c_int,
    *mut *mut c_char,
    *const c_void,
    *const c_void,
    *const c_void,
    *const c_void,
) -> c_int;

/// The program's main.
static MAIN: OnceLock<Main> = OnceLock::new();

/// The C library's function of this name, which does not return, with another main if the environment
/// asks for it.
///
/// # Safety
///
/// For the program's first code only.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn __libc_start_main(
    main: Main,
    argc: c_int,
    argv: *mut *mut c_char,
    init: *const c_void,
    fini: *const c_void,
    loader_fini: *const c_void,
    stack_end: *const c_void,
) -> c_int {
    // SAFETY: a NUL-terminated name.
    let real = unsafe { libc::dlsym(libc::RTLD_NEXT, c"__libc_start_main".as_ptr()) };
    if real.is_null() {
        refuse(&"the C library has no __libc_start_main");
    }
    // SAFETY: the function of this name has this signature, in every version of the C library.
    let real: Start = unsafe { std::mem::transmute(real) };
    let chosen = if super::asked_for("KAPOK_MAIN_FIBER") {
        MAIN.get_or_init(|| main);
        on_fiber
    } else {
        main
    };
    // SAFETY: what we were called with, by the program's first code; and a main.
    unsafe { real(chosen, argc, argv, init, fini, loader_fini, stack_end) }
}

/// The main that runs the program's on a fiber.
unsafe extern "C-unwind" fn on_fiber(
    argc: c_int,
    argv: *mut *mut c_char,
    environment: *mut *mut c_char,
) -> c_int {
    let main = *MAIN.get().expect("set before the C library was called");
    let runtime = match kapok::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => refuse(&error),
    };
    let ended = runtime.run(move || {
        let fiber = kapok::Builder::new().name("main").stack_size(stack_bytes());
        let main = move || {
            if super::asked_for("KAPOK_THREADS_AS_FIBERS") {
                kapok_libc::threads_as_fibers();
            }
            // SAFETY: the program's main, with what the C library passed, which lives as long as the
            // process. exit(3) is called as the C library does after main.
            unsafe { libc::exit(main(argc, argv, environment)) }
        };
        fiber.spawn_local(main).join()
    });
    match ended {
        Ok(never) => never,
        Err(error) => refuse(&error),
    }
}

fn refuse(error: &dyn std::fmt::Display) -> ! {
    eprintln!("kapok: cannot run main on a fiber: {error}; {}", super::REFUSED);
    std::process::exit(1);
}

/// As much stack as main would have had on the thread, or as a fiber can have.
fn stack_bytes() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes to a local of its type.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_STACK, &raw mut limit) } == 0;
    if known { usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX) } else { 8 << 20 }
}
