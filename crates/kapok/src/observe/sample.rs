//! Where a thread is that does not answer: a directed signal and its handler.
//!
//! The handler does what is async-signal-safe and no more: it reads the registers that it interrupted
//! and a thread-local without destructor, has the kernel copy the stack into a file in memory, which
//! neither faults nor touches anything of the program's, and sets a word. It takes no lock and
//! unwinds nothing: an unwinder in a handler may find its own lock held by the code that the signal
//! interrupted, or unwind information that is wrong at that instruction, and bring the process down.
//! Here it would have a wrong backtrace.
//!
//! One sample is taken at a time. The word says who may touch the rest:
//!
//! ```text
//!         somebody asks           the handler, on the thread asked      done
//!   IDLE ─────────────────► ASKED ────────────────────────────► TAKING ──────► TAKEN
//!    ▲                        │ who asked gives up                               │
//!    └────────────────────────┴──────────────────────────────────────────────────┘
//! ```

use std::cell::UnsafeCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use kapok_engine::sys::preserving_errno;

use super::collect::Sampled;
use super::unwind::{self, Registers};
use crate::runtime::{Published, current_thread_id, with_loops};
use crate::stack;

/// Ignored by default, so nobody comes to harm by one that comes late.
const SIGNAL: libc::c_int = libc::SIGURG;

/// How much of a stack is copied at most, from its top.
const MAX_STACK_BYTES: usize = 256 << 10;

/// How much of a name is told.
const MAX_NAME_BYTES: usize = 128;

/// How long a thread has for taking the signal. It may be in an uninterruptible wait.
const TAKE_LIMIT: Duration = Duration::from_millis(100);

const IDLE: u32 = 0;
const ASKED: u32 = 1;
const TAKING: u32 = 2;
const TAKEN: u32 = 3;

static WORD: AtomicU32 = AtomicU32::new(IDLE);
static THREAD: AtomicI32 = AtomicI32::new(0);
static SLOT: Slot = Slot(UnsafeCell::new(Sample {
    registers: Registers { ip: 0, sp: 0, fp: 0, lr: 0 },
    copied: 0,
    fiber: 0,
    name: [0; MAX_NAME_BYTES],
    name_len: 0,
}));

struct Slot(UnsafeCell<Sample>);

// SAFETY: `WORD` says who may touch it: in `TAKING` the handler that set it, in `TAKEN` who
// asked, else nobody.
unsafe impl Sync for Slot {}

#[derive(Clone, Copy)]
struct Sample {
    registers: Registers,
    /// Bytes of stack in the file.
    copied: usize,
    /// The number of the fiber, or 0.
    fiber: u64,
    name: [u8; MAX_NAME_BYTES],
    name_len: usize,
}

struct Installed {
    /// Where stacks are copied to, or why they are not.
    file: io::Result<File>,
    previous: libc::sigaction,
}

static INSTALLED: OnceLock<Installed> = OnceLock::new();

/// Installs the handler, for good. Once a process.
pub(super) fn install() {
    INSTALLED.get_or_init(|| {
        // SAFETY: a name that ends with NUL; plain data, for which zero is a value; the call only
        // reads.
        let (fd, previous) = unsafe {
            let fd = libc::memfd_create(c"kapok-stack".as_ptr(), libc::MFD_CLOEXEC);
            let mut previous: libc::sigaction = std::mem::zeroed();
            libc::sigaction(SIGNAL, std::ptr::null(), &raw mut previous);
            (fd, previous)
        };
        let file = if fd < 0 {
            Err(io::Error::last_os_error())
        } else {
            // SAFETY: a descriptor that was just made.
            Ok(unsafe { File::from_raw_fd(fd) })
        };
        Installed { file, previous }
    });
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: plain data. The handler has the type that SA_SIGINFO asks for and is
        // async-signal-safe; it finds what it needs in `INSTALLED`, which is set.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut());
        }
    });
}

/// What the loop's thread runs. None if it did not take the signal in time, or has ended.
pub(super) fn take(published: &Published) -> Option<Sampled> {
    // One at a time: the monitor, for a dump, or the watchdog.
    static TAKING_TURNS: Mutex<()> = Mutex::new(());
    let _turn = TAKING_TURNS.lock().unwrap_or_else(PoisonError::into_inner);
    install();
    let installed = INSTALLED.get()?;
    THREAD.store(published.thread_id, Ordering::Relaxed);
    WORD.store(ASKED, Ordering::Release);
    let sent = with_loops(|loops| {
        // On the list it is not over, so its number is still its own.
        loops.running.iter().any(|one| one.id == published.id)
            // SAFETY: a directed signal, whose handler is in place.
            && unsafe {
                libc::syscall(libc::SYS_tgkill, libc::getpid(), published.thread_id, SIGNAL) == 0
            }
    });
    let deadline = Instant::now() + TAKE_LIMIT;
    while sent && WORD.load(Ordering::Acquire) != TAKEN && Instant::now() < deadline {
        std::thread::sleep(Duration::from_micros(200));
    }
    if WORD.compare_exchange(ASKED, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok() {
        return None;
    }
    // The handler is at it, and waits for nothing.
    while WORD.load(Ordering::Acquire) != TAKEN {
        std::thread::yield_now();
    }
    // SAFETY: in `TAKEN` it is ours.
    let sample = unsafe { *SLOT.0.get() };
    WORD.store(IDLE, Ordering::Release);
    let mut copy = vec![0; sample.copied];
    let read = installed.file.as_ref().ok()?.read_exact_at(&mut copy, 0);
    if read.is_err() {
        copy.clear();
    }
    let name = String::from_utf8_lossy(&sample.name[..sample.name_len]).into_owned();
    Some(Sampled {
        fiber: (sample.fiber != 0).then_some(sample.fiber),
        name: (!name.is_empty()).then_some(name),
        frames: unwind::frames(sample.registers, &copy),
    })
}

/// Async-signal-safe: atomics, a thread-local without destructor, gettid(2) and pwrite(2).
extern "C" fn on_signal(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    preserving_errno(|| {
        let ours = THREAD.load(Ordering::Relaxed) == current_thread_id()
            && WORD.compare_exchange(ASKED, TAKING, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if ours {
            // SAFETY: the kernel passes a ucontext_t to an SA_SIGINFO handler; in `TAKING` the slot
            // is this handler's.
            unsafe { fill(&mut *SLOT.0.get(), context.cast()) };
            WORD.store(TAKEN, Ordering::Release);
        } else {
            // SAFETY: the arguments are those that the kernel passed.
            unsafe { chain(signal, info, context) };
        }
    });
}

/// # Safety
///
/// In the handler, with the context that the kernel passed.
unsafe fn fill(sample: &mut Sample, context: *const libc::ucontext_t) {
    // SAFETY: by the caller.
    sample.registers = unsafe { registers(context) };
    sample.copied = 0;
    let sp = sample.registers.sp as usize;
    // A fiber's stack ends where its slot does; of others the kernel copies what is there.
    let end = stack::bounds_of(sp).map_or(usize::MAX, |bounds| bounds.end);
    if let Some(Ok(file)) = INSTALLED.get().map(|installed| &installed.file) {
        let bytes = (end - sp).min(MAX_STACK_BYTES);
        // SAFETY: the kernel reads, and stops at what is not mapped. By number, because a sanitizer
        // that wraps the function would look at memory that is not this code's.
        let copied =
            unsafe { libc::syscall(libc::SYS_pwrite64, file.as_raw_fd(), sp, bytes, 0usize) };
        sample.copied = usize::try_from(copied).unwrap_or(0);
    }
    (sample.fiber, sample.name_len) = (0, 0);
    // SAFETY: whoever set it keeps it valid and unchanged while the fiber runs on this thread, which
    // is in this handler.
    if let Some(label) = unsafe { stack::running().as_ref() } {
        sample.fiber = label.id;
        if let Some(name) = &label.name {
            let len = name.len().min(MAX_NAME_BYTES);
            sample.name[..len].copy_from_slice(&name.as_bytes()[..len]);
            sample.name_len = len;
        }
    }
}

/// # Safety
///
/// `context` is what the kernel passed.
unsafe fn registers(context: *const libc::ucontext_t) -> Registers {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: by the caller.
        let registers = unsafe { &(*context).uc_mcontext.gregs };
        Registers {
            ip: registers[libc::REG_RIP as usize] as u64,
            sp: registers[libc::REG_RSP as usize] as u64,
            fp: registers[libc::REG_RBP as usize] as u64,
            lr: 0,
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        // SAFETY: by the caller.
        let context = unsafe { &(*context).uc_mcontext };
        Registers { ip: context.pc, sp: context.sp, fp: context.regs[29], lr: context.regs[30] }
    }
}

/// Leaves the signal to whoever handled it before us; without one it is ignored.
///
/// # Safety
///
/// The arguments are those of the running handler.
unsafe fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(Installed { previous, .. }) = INSTALLED.get() else { return };
    match previous.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {}
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            type Action = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            // SAFETY: a handler registered with SA_SIGINFO has this type.
            let action = unsafe { std::mem::transmute::<usize, Action>(handler) };
            action(signal, info, context);
        }
        handler => {
            // SAFETY: a handler registered without SA_SIGINFO has this type.
            let action =
                unsafe { std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler) };
            action(signal);
        }
    }
}
