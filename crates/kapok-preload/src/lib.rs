//! `libkapok.so`: what `LD_PRELOAD` puts before an unmodified program, and what programs in C link.
//!
//! The hooks and the C interface are those of `kapok-libc`, which the linker exports from here under
//! their own names. Here is what happens around them: the constructor, and what `kapok run` asks for
//! by the environment, where children find it too.
//!
//! | variable | what it asks for |
//! |---|---|
//! | `KAPOK_MAIN_FIBER=1` | main runs on a fiber ([`main_fiber`]) |
//! | `KAPOK_THREADS_AS_FIBERS=1` | with the former: threads are fibers of main's loop, an experiment |
//! | `KAPOK_STATS=1` | at exit, what came of the calls, on standard error ([`stats`]) |
//! | `KAPOK_STATS=json` | the same as one line of JSON |

#![cfg(target_os = "linux")]

mod main_fiber;
mod stats;

/// Runs once, before the program's own constructors and after those of the C library.
extern "C" fn begin() {
    kapok_libc::install();
    if asked_for("KAPOK_STATS") {
        stats::print_at_exit(std::env::var_os("KAPOK_STATS").is_some_and(|value| value == "json"));
    }
}

/// How messages about the way in end.
const REFUSED: &str = "run the program without `kapok run --main-fiber`";

/// Whether the environment has `variable`, and not as 0 or nothing.
fn asked_for(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty() && value != "0")
}

// SAFETY: the linker gathers such pointers and the loader calls them; the function has the ABI that
// the loader calls, takes what it passes by ignoring it, and does not unwind.
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;
