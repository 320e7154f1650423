//! The hooked functions beside which there is nothing to show: those that never suspend a fiber.
//!
//! Every other one has suspended one beside the ticker when all parts were called. So a function that is hooked
//! from now on is called here or is listed, and what is listed has not waited.

use std::collections::BTreeMap;

use super::{CALLED, SHOWN, suspensions};

/// Why, and which.
const NEVER: &[(&str, &[&str])] = &[
    (
        "only sets, asks or tells",
        &[
            "__pthread_register_cancel",
            "__pthread_unregister_cancel",
            "__sigaction",
            "__sysv_signal",
            "bsd_signal",
            "pthread_cancel",
            "pthread_detach",
            "pthread_getaffinity_np",
            "pthread_getattr_np",
            "pthread_getcpuclockid",
            "pthread_getname_np",
            "pthread_getschedparam",
            "pthread_getspecific",
            "pthread_key_create",
            "pthread_key_delete",
            "pthread_kill",
            "pthread_self",
            "pthread_setaffinity_np",
            "pthread_setname_np",
            "pthread_setschedparam",
            "pthread_setschedprio",
            "pthread_setspecific",
            "pthread_sigmask",
            "pthread_sigqueue",
            "shutdown",
            "sigaction",
            "sighold",
            "siginterrupt",
            "signal",
            "sigprocmask",
            "sigrelse",
            "sigset",
            "sigvec",
            "ssignal",
            "sysv_signal",
            "thrd_current",
            "thrd_detach",
            "tss_create",
            "tss_delete",
            "tss_get",
            "tss_set",
        ],
    ),
    (
        "gives up what it holds, or wakes who waits",
        &[
            "cnd_broadcast",
            "cnd_signal",
            "mtx_unlock",
            "pthread_cond_broadcast",
            "pthread_cond_signal",
            "pthread_mutex_unlock",
            "pthread_rwlock_unlock",
        ],
    ),
    (
        "tries, and is refused at once",
        &[
            "mtx_trylock",
            "pthread_mutex_trylock",
            "pthread_rwlock_tryrdlock",
            "pthread_rwlock_trywrlock",
            "pthread_tryjoin_np",
            "sem_trywait",
        ],
    ),
    ("begins a thread or a process", &["pthread_create", "thrd_create", "vfork"]),
    (
        // Of the main thread, the end of which waits for the others: it does not come back either.
        "ends the caller, or goes on elsewhere in it",
        &[
            "__longjmp_chk",
            "__pthread_unwind_next",
            "_longjmp",
            "longjmp",
            "pthread_exit",
            "siglongjmp",
            "thrd_exit",
        ],
    ),
];

/// Those that may wait, as they are shown to, and count no suspension: what they call counts it, or may
/// unwind past a count at their end, or they only let others run until these are done.
const UNCOUNTED: &[&str] = &[
    "__sigpause",
    "__xpg_sigpause",
    "call_once",
    "pthread_barrier_destroy",
    "pthread_once",
    "sigpause",
];

/// Of all functions that are hooked, those that have suspended no fiber beside the ticker are those that
/// never do.
pub(super) fn nothing_is_left_out() {
    let (shown, called) = (SHOWN.lock().unwrap(), CALLED.lock().unwrap());
    let never = NEVER.iter().flat_map(|(why, names)| names.iter().map(move |name| (*name, *why)));
    let uncounted = UNCOUNTED.iter().map(|name| (*name, "counts no suspension"));
    let mut listed = BTreeMap::new();
    let mut wrong = Vec::new();
    for (name, why) in never.chain(uncounted) {
        if listed.insert(name, why).is_some() {
            wrong.push(format!("{name} is listed twice"));
        }
    }
    for name in UNCOUNTED.iter().filter(|name| !called.contains(*name)) {
        wrong.push(format!("{name} may wait, and is not called beside the ticker"));
    }
    for (name, count) in suspensions() {
        match listed.remove(name) {
            Some(why) if count > 0 => wrong.push(format!(
                "{name} is listed as one that {why}, and has suspended a fiber {count} times"
            )),
            None if !shown.contains(name) => wrong.push(format!(
                "{name} has suspended no fiber beside the ticker, and is not listed as one that never does"
            )),
            _ => {}
        }
    }
    for name in listed.keys() {
        wrong.push(format!("{name} is listed, and is not hooked"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
