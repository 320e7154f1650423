//! What fork(2) finds of ours, and what its child forgets.
//!
//! The child is one thread. A table that another thread had locked just then would be locked for good
//! there, so all are locked before the fork and unlocked after it, in both. What they have of fibers and
//! threads is the parent's: in the child nobody waits.

use std::cell::{Cell, RefCell};
use std::mem::ManuallyDrop;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use kapok::interpose::{self, Inside};

use crate::signals::{listener, mask, waiters};
use crate::sockets::returned;
use crate::{processes, wait};

/// A table that is locked while the process forks.
pub(crate) trait Held {
    /// Forgets what it has, in the child: without dropping it, since a waker would tell the parent.
    fn forget(&mut self);
}

type Tables = Vec<Box<dyn Held>>;

// Never destroyed: a thread may fork at its end.
thread_local! {
    static HELD: ManuallyDrop<RefCell<Tables>> =
        const { ManuallyDrop::new(RefCell::new(Vec::new())) };
    static INSIDE: ManuallyDrop<Cell<Option<Inside>>> =
        const { ManuallyDrop::new(Cell::new(None)) };
}

/// Looks after all forks from now on.
pub(crate) fn prepare() {
    static PREPARED: Once = Once::new();
    // SAFETY: the handlers lock and unlock, and touch thread-locals.
    PREPARED.call_once(|| unsafe {
        libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child));
    });
}

extern "C" fn before() {
    // From here until the tables are free again the fiber is not suspended, neither at a table that another
    // thread has just now nor by a handler of somebody else's: the next fiber of this thread would block it
    // at one of those that are locked.
    INSIDE.with(|inside| inside.set(interpose::enter()));
    let mut tables: Tables = Vec::new();
    // Nobody has two of them.
    wait::hold(&mut tables);
    processes::hold(&mut tables);
    returned::hold(&mut tables);
    HELD.with(|held| held.borrow_mut().append(&mut tables));
}

extern "C" fn in_parent() {
    HELD.with(|held| *held.borrow_mut() = Vec::new());
    drop(INSIDE.with(|inside| inside.take()));
}

extern "C" fn in_child() {
    let mut tables = HELD.with(|held| std::mem::take(&mut *held.borrow_mut()));
    for table in &mut tables {
        table.forget();
    }
    drop(tables);
    wait::in_child();
    waiters::forget();
    listener::in_child();
    mask::in_child();
    drop(INSIDE.with(|inside| inside.take()));
}

/// A table of which nothing is kept.
pub(crate) struct Emptied<'a, T: Default>(pub(crate) MutexGuard<'a, T>);

impl<T: Default> Held for Emptied<'_, T> {
    fn forget(&mut self) {
        std::mem::forget(std::mem::take(&mut *self.0));
    }
}

/// Adds a table of which nothing is kept.
pub(crate) fn emptied<T: Default>(tables: &mut Vec<Box<dyn Held>>, table: &'static Mutex<T>) {
    let locked = table.lock().unwrap_or_else(PoisonError::into_inner);
    tables.push(Box::new(Emptied(locked)));
}

/// A table of which everything is kept.
struct Kept<'a, T>(#[expect(dead_code, reason = "for as long as it is locked")] MutexGuard<'a, T>);

impl<T> Held for Kept<'_, T> {
    fn forget(&mut self) {}
}

/// Adds a table of which everything is kept.
pub(crate) fn kept<T>(tables: &mut Vec<Box<dyn Held>>, locked: MutexGuard<'static, T>) {
    tables.push(Box::new(Kept(locked)));
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    fn nap() {
        let time = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        // SAFETY: reads a local.
        unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) };
    }

    /// Runs `child` in the child of a fork while another thread is in the middle of `with_locked`.
    fn fork_beside(with_locked: fn(&mut dyn FnMut()), child: fn() -> bool) {
        let (locked, is_locked) = mpsc::channel();
        let other = thread::spawn(move || {
            with_locked(&mut || {
                locked.send(()).unwrap();
                thread::sleep(Duration::from_millis(50));
            });
        });
        is_locked.recv().unwrap();
        // SAFETY: the child looks, and ends, by a signal if it hangs.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: as above.
            unsafe {
                libc::alarm(10);
                libc::_exit(libc::c_int::from(!child()));
            }
        }
        let mut status = 1;
        // SAFETY: a child of ours; writes to a local.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        other.join().unwrap();
        assert_eq!(status, 0, "the child hangs, or finds what is its parent's");
    }

    #[test]
    fn a_child_finds_its_tables_empty_whoever_had_them() {
        crate::install();
        kapok::Runtime::builder().threads(1).build().unwrap().run(|| {
            let waits = kapok::spawn_local(|| {
                let time = libc::timespec { tv_sec: 600, tv_nsec: 0 };
                // SAFETY: reads a local.
                unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) };
            });
            while crate::wait::all().0 == 0 {
                kapok::yield_now();
            }
            fork_beside(|f| crate::wait::with_last_locked(f), || crate::wait::all() == (0, 0));
            let (entries, counted) = crate::wait::all();
            assert!(entries > 0 && counted > 0, "and the parent's are the parent's");
            waits.cancel();
            waits.join().unwrap();
            // SAFETY: a child that ends by itself.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                thread::sleep(Duration::from_secs(1));
                // SAFETY: as above.
                unsafe { libc::_exit(0) };
            }
            // A thread looks after it, and is on the list.
            let waits = kapok::spawn_local(move || {
                // SAFETY: nothing is written.
                unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WUNTRACED) }
            });
            while crate::processes::with_list_locked(|| ()) == 0 {
                kapok::yield_now();
            }
            fork_beside(
                |f| {
                    crate::processes::with_list_locked(f);
                },
                || crate::processes::with_list_locked(|| ()) == 0,
            );
            assert_eq!(waits.join().unwrap(), pid);
        });
    }

    #[test]
    fn a_fork_that_finds_a_table_locked_suspends_nobody() {
        crate::install();
        let (alive, watched) = mpsc::channel::<()>();
        thread::spawn(move || {
            let limit = Duration::from_secs(30);
            if watched.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("fibers wait for a table that a suspended one has locked");
                std::process::abort();
            }
        });
        kapok::Runtime::builder().threads(1).build().unwrap().run(|| {
            let stop = Rc::new(Cell::new(false));
            let stops = Rc::clone(&stop);
            let beside = kapok::spawn_local(move || {
                while !stops.get() {
                    nap();
                }
            });
            let (locked, is_locked) = mpsc::channel();
            let other = thread::spawn(move || {
                crate::wait::with_last_locked(|| {
                    locked.send(()).unwrap();
                    thread::sleep(Duration::from_millis(100));
                });
            });
            is_locked.recv().unwrap();
            // SAFETY: the child ends at once.
            let child = unsafe { libc::fork() };
            if child == 0 {
                // SAFETY: as above.
                unsafe { libc::_exit(0) };
            }
            let mut status = 1;
            // SAFETY: a child of ours; writes to a local.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0);
            stop.set(true);
            beside.join().unwrap();
            other.join().unwrap();
        });
        drop(alive);
    }
}
