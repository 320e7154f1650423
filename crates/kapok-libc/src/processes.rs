//! Processes: waiting for children, and vfork(2).
//!
//! A fiber that waits for one child waits for the child's pidfd. For a group, for any child, and for a
//! child that stops or goes on there is no descriptor: a thread waits in the kernel, without taking
//! anything from it, and then the fiber asks for itself.
//!
//! fork(2) needs no hook: Kapok's loops and the holders of locks follow by pthread_atfork(3). vfork(2)
//! lends the parent's memory and stack to the child, whose hooked calls would then suspend a fiber of
//! the parent's, and whose closes would end the waits of all: once a fiber has waited it is a fork.

use std::ffi::c_int;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use kapok::sync::oneshot;
use kapok_engine::sys::own::{self, OwnDescriptor};
use libc::{id_t, idtype_t, pid_t, rusage, siginfo_t};

use crate::call::Call;
use crate::errno::Errno;
use crate::hook::{Hook, hooks};
use crate::kernel::kernel;
use crate::signals::mask::Blocked;
use crate::wait::{Stopped, readiness};

/// Children of the calling thread only: no other thread can wait for them.
const OF_THIS_THREAD: c_int = 0x2000_0000;
/// `P_PIDFD`.
const BY_DESCRIPTOR: idtype_t = 3;

/// For how long a fiber sleeps that looks after children by itself.
const NAP: Duration = Duration::from_millis(5);

/// How often a child that is waited for is looked at again, each time after twice as long.
const LOOKS: u32 = 8;

/// Whose end, or stop, is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Children {
    by: idtype_t,
    id: id_t,
    /// `WEXITED`, `WSTOPPED`, `WCONTINUED` and those about threads.
    options: c_int,
}

impl Children {
    /// As wait4(2) names them.
    fn of(pid: pid_t, options: c_int) -> Children {
        let (by, id) = match pid {
            -1 => (libc::P_ALL, 0),
            0 => (libc::P_PGID, 0),
            pid if pid < 0 => (libc::P_PGID, pid.unsigned_abs()),
            pid => (libc::P_PID, pid.unsigned_abs()),
        };
        Children { by, id, options: options | libc::WEXITED }
    }

    /// Suspends the fiber until there may be something to be told.
    fn wait(self, call: &Call, looks: &mut u32) -> Result<(), Errno> {
        self.look_after(call, looks).map_err(Stopped::errno)
    }

    fn look_after(self, call: &Call, looks: &mut u32) -> Result<(), Stopped> {
        if self.options & OF_THIS_THREAD != 0 {
            return call.wait(kapok::time::sleep_async(NAP), None).map(drop);
        }
        if self.options & (libc::WSTOPPED | libc::WCONTINUED) == 0 {
            if self.by == libc::P_PID
                && !is_traced(self.id as pid_t)
                && let Some(child) = pidfd(self.id as pid_t)
            {
                // A child may ask to be traced at any time, and does so first of all.
                let look_again = (*looks < LOOKS).then(|| Instant::now() + NAP * (1 << *looks));
                *looks += 1;
                let ended = readiness(child.as_raw_fd(), libc::POLLIN);
                return match call.wait(ended, look_again) {
                    Err(Stopped::TimedOut) => Ok(()),
                    waited => waited.map(drop),
                };
            }
            if self.by == BY_DESCRIPTOR {
                return call.wait(readiness(self.id as c_int, libc::POLLIN), None).map(drop);
            }
        }
        match self.ask_a_thread() {
            Some((_alive, mut seen)) => call.wait(seen.recv_async(), None).map(drop),
            None => call.wait(kapok::time::sleep_async(NAP), None).map(drop),
        }
    }

    /// Has a thread wait in the kernel: one for all that wait for the same children. A wait that ends
    /// early leaves it there, for the next.
    fn ask_a_thread(self) -> Option<(Arc<()>, oneshot::Receiver<()>)> {
        let (done, seen) = oneshot::channel();
        let alive = Arc::new(());
        let mut asked = asked();
        if let Some((_, askers)) = asked.iter_mut().find(|(children, _)| *children == self) {
            askers.retain(|(still, _)| still.strong_count() > 0);
            askers.push((Arc::downgrade(&alive), done));
            return Some((alive, seen));
        }
        let _blocked = Blocked::all();
        let thread = std::thread::Builder::new().name("kapok-wait".into()).stack_size(128 << 10);
        thread.spawn(move || self.wait_on_thread()).ok()?;
        asked.push((self, vec![(Arc::downgrade(&alive), done)]));
        Some((alive, seen))
    }

    fn wait_on_thread(self) {
        let null = ptr::null_mut::<siginfo_t>();
        let options = self.options | libc::WNOWAIT;
        // SAFETY: nothing is written.
        let _ = unsafe { kernel!(libc::SYS_waitid, self.by, self.id, null, options, 0) };
        let mut asked = asked();
        let ours = asked.iter().position(|(children, _)| *children == self);
        let askers = ours.map(|index| asked.swap_remove(index).1);
        drop(asked);
        for (_, asker) in askers.into_iter().flatten() {
            let _ = asker.send(());
        }
    }
}

/// For whom a thread waits, and who has asked for it and may not wait any more.
type Asked = Vec<(Children, Vec<(Weak<()>, oneshot::Sender<()>)>)>;

static ASKED: Mutex<Asked> = Mutex::new(Vec::new());

fn asked() -> MutexGuard<'static, Asked> {
    ASKED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs something while the list is locked. How many are on it.
#[cfg(test)]
pub(crate) fn with_list_locked(f: impl FnOnce()) -> usize {
    let asked = asked();
    f();
    asked.len()
}

/// Locks the list, for a fork: in the child there are no such threads.
pub(crate) fn hold(tables: &mut Vec<Box<dyn crate::fork::Held>>) {
    crate::fork::emptied(tables, &ASKED);
}

/// Whether a child is traced by a thread of ours: then what a debugger is told is waited for too, of
/// which a pidfd knows nothing.
fn is_traced(child: pid_t) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{child}/status")) else { return false };
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_some_and(|tracer| {
        let tracer = tracer.trim();
        tracer != "0" && std::path::Path::new(&format!("/proc/self/task/{tracer}")).exists()
    })
}

fn pidfd(pid: pid_t) -> Option<OwnDescriptor> {
    // SAFETY: no memory is named; the descriptor is new, and close-on-exec.
    unsafe {
        let fd = kernel!(libc::SYS_pidfd_open, pid, 0).ok()?;
        Some(OwnDescriptor::new(OwnedFd::from_raw_fd(fd as c_int)))
    }
}

/// wait4(2) on a fiber.
unsafe fn wait_for(
    call: &Call,
    pid: pid_t,
    status: *mut c_int,
    options: c_int,
    usage: *mut rusage,
) -> Result<pid_t, Errno> {
    let mut looks = 0;
    loop {
        // SAFETY: by the caller.
        let told = unsafe { kernel!(libc::SYS_wait4, pid, status, options | libc::WNOHANG, usage) }?
            as pid_t;
        if told != 0 || options & libc::WNOHANG != 0 {
            return Ok(told);
        }
        Children::of(pid, options).wait(call, &mut looks)?;
    }
}

hooks! {
    /// wait(2).
    fn wait(status: *mut c_int) -> pid_t = |call| {
        wait_for(call, -1, status, 0, ptr::null_mut())
    }

    /// The same, by the C library's own name.
    fn __wait(status: *mut c_int) -> pid_t = |call| {
        wait_for(call, -1, status, 0, ptr::null_mut())
    }

    /// waitpid(2).
    fn waitpid(pid: pid_t, status: *mut c_int, options: c_int) -> pid_t = |call| {
        wait_for(call, pid, status, options, ptr::null_mut())
    }

    /// The same, by the C library's own name.
    fn __waitpid(pid: pid_t, status: *mut c_int, options: c_int) -> pid_t = |call| {
        wait_for(call, pid, status, options, ptr::null_mut())
    }

    /// wait3(2).
    fn wait3(status: *mut c_int, options: c_int, usage: *mut rusage) -> pid_t = |call| {
        wait_for(call, -1, status, options, usage)
    }

    /// wait4(2).
    fn wait4(pid: pid_t, status: *mut c_int, options: c_int, usage: *mut rusage) -> pid_t
        = |call| {
            wait_for(call, pid, status, options, usage)
        }

    /// waitid(2).
    fn waitid(by: idtype_t, id: id_t, info: *mut siginfo_t, options: c_int) -> c_int = |call| {
        let mut looks = 0;
        loop {
            let mut told: siginfo_t = std::mem::zeroed();
            let at = &raw mut told;
            kernel!(libc::SYS_waitid, by, id, at, options | libc::WNOHANG, 0)?;
            if told.si_pid() != 0 || options & libc::WNOHANG != 0 {
                if !info.is_null() {
                    *info = told;
                }
                return Ok(0);
            }
            Children { by, id, options: options & !libc::WNOWAIT }.wait(call, &mut looks)?;
        }
    }
}

static VFORK: Hook = Hook::new(c"vfork", vfork as *const ());

/// Those that are not made by the macro.
pub(crate) static VFORKS: &[&Hook] = &[&VFORK];

/// Where a call of vfork(2) goes.
extern "C" fn vfork_or_fork() -> *const () {
    let fork = libc::fork as *const ();
    match VFORK.real() {
        // With a loop the child would have the memory of its fibers, and close what is theirs.
        Some(real) if !crate::hook::is_active() || !own::were_any() => {
            VFORK.count_bypass();
            real.cast_const().cast()
        }
        _ => {
            VFORK.count_call(false);
            fork
        }
    }
}

/// vfork(2). It returns twice, the second time through a frame that the child has overwritten: so there
/// is none, and the function is jumped to with the stack as it was found.
///
/// # Safety
///
/// As for the C library's function of this name.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vfork() -> pid_t {
    std::arch::naked_asm!(
        "sub rsp, 8",
        "call {choose}",
        "add rsp, 8",
        "jmp rax",
        choose = sym vfork_or_fork,
    )
}

/// vfork(2); as on x86-64.
///
/// # Safety
///
/// As for the C library's function of this name.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vfork() -> pid_t {
    std::arch::naked_asm!(
        "stp x29, x30, [sp, -16]!",
        "bl {choose}",
        "ldp x29, x30, [sp], 16",
        "br x0",
        choose = sym vfork_or_fork,
    )
}
