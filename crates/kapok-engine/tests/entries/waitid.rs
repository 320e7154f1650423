use kapok_engine::entry::Entry;

use crate::places::{Place, child};

#[test]
#[expect(clippy::zombie_processes, reason = "it is waited for by an entry")]
fn a_child() {
    for mut place in Place::all() {
        // SAFETY: all zeros is a siginfo.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let mut child = child();
        let id = child.id() as libc::id_t;
        let wait =
            |info: *mut libc::siginfo_t| Entry::waitid(libc::P_PID, id, info, libc::WEXITED, 0);
        if !place.has(&Entry::waitid(
            libc::P_PID,
            id,
            &raw mut info,
            libc::WEXITED | libc::WNOHANG,
            0,
        )) {
            drop(child.stdin.take());
            child.wait().unwrap();
            continue;
        }
        let key = if place.name == "thread" {
            drop(child.stdin.take());
            place.start(&wait(&raw mut info))
        } else {
            let key = place.start(&wait(&raw mut info));
            place.turn(kapok_engine::Wait::No);
            assert!(place.taken(key).is_none(), "{}: it lives", place.name);
            drop(child.stdin.take());
            key
        };
        assert_eq!(place.last(key), 0);
        // SAFETY: it was filled in for a child.
        let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
        assert_eq!((pid, status, info.si_code), (id as i32, 7, libc::CLD_EXITED));
        assert_eq!(place.run(&wait(&raw mut info)), -libc::ECHILD, "it is waited for");
        place.settled();
    }
}

#[test]
fn is_cancelled_on_a_ring() {
    let Some(mut place) = Place::ring() else { return };
    let mut child = child();
    let id = child.id() as libc::id_t;
    let wait = Entry::waitid(libc::P_PID, id, std::ptr::null_mut(), libc::WEXITED, 0);
    if place.uring().operations().unwrap().has(wait.opcode()) {
        let key = place.start(&wait);
        place.turn(kapok_engine::Wait::No);
        place.cancel(key);
        assert_eq!(place.last(key), -libc::ECANCELED);
        place.settled();
    }
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(7), "nobody else has waited for it");
}
