//! The end of the program's first thread, if that is a fiber: pthread_exit(3) in main.
//!
//! It would end the loop's thread, by unwinding through the loop. Instead the fiber is parked for good, and
//! ends the process when the program has no other threads left.

use std::time::Duration;

use crate::hook;
use crate::specific;

/// How often it is looked whether there are other threads.
const LOOK: Duration = Duration::from_millis(20);

/// Whether it is the program's first thread that runs, as a fiber.
pub(crate) fn is_main() -> bool {
    hook::is_active() && kapok::current_name().as_deref() == Some("main")
}

/// Ends it.
pub(crate) fn leave() -> ! {
    specific::end();
    while has_other_threads() {
        // Nobody has another use for this fiber, not even if it is cancelled.
        if kapok::shield(|| kapok::sleep(LOOK)).is_err() {
            kapok::yield_now();
        }
    }
    std::process::exit(0)
}

/// Whether there are threads that are not Kapok's, whose names begin with its own.
fn has_other_threads() -> bool {
    // SAFETY: no conditions.
    let me = unsafe { libc::gettid() }.to_string();
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return false };
    threads.flatten().any(|thread| {
        let name = std::fs::read_to_string(thread.path().join("comm"));
        thread.file_name() != me.as_str() && name.is_ok_and(|name| !name.starts_with("kapok"))
    })
}
