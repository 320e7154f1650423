//! What a stack overflow says.
//!
//! A fault in a guard of an arena is a fiber that ran out of stack. The handler prints which one,
//! how much it had and what to do, and aborts. Every other fault goes to the handler that was there
//! before (std's, which reports overflows of threads) or to the default action.
//!
//! The overflowed stack has no room for a signal frame, so each thread that runs fibers needs an
//! alternate signal stack: [`ensure_alternate_stack`].
//!
//! Wiring: a loop calls [`install_overflow_handler`] and keeps the [`AlternateStack`] for as long as
//! it runs fibers; it calls [`set_running`] with the fiber's label before each resume (one
//! thread-local store), and with null before a label is freed.

use std::{
    cell::Cell,
    fmt::{self, Write},
    io,
    marker::PhantomData,
    mem, ptr,
    sync::{Arc, OnceLock},
};

use super::{arena, guard::GUARD_BYTES};

/// Who a fiber is, for the report.
#[derive(Clone, Debug)]
pub(crate) struct FiberLabel {
    /// Its number.
    pub(crate) id: u64,
    /// Its name, if it was given one.
    pub(crate) name: Option<Arc<str>>,
}

thread_local! {
    /// The fiber that this thread runs, or ran last. Const and without destructor, so that a signal
    /// handler may read it.
    static RUNNING: Cell<*const FiberLabel> = const { Cell::new(ptr::null()) };
}

/// Says which fiber this thread resumes next; null for none.
///
/// # Safety
///
/// `label` stays valid and unchanged until the next call on this thread.
#[inline]
pub(crate) unsafe fn set_running(label: *const FiberLabel) {
    RUNNING.set(label);
}

/// The label of the fiber that the calling thread runs, or null. Async-signal-safe.
pub(crate) fn running() -> *const FiberLabel {
    RUNNING.get()
}

/// The signals a guard may raise: SIGSEGV on Linux, SIGBUS for protection faults on macOS.
const SIGNALS: [libc::c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// What was in place before us, in the order of [`SIGNALS`]. Set before the handler is.
static PREVIOUS: OnceLock<[libc::sigaction; 2]> = OnceLock::new();

/// Reports overflows of fibers' stacks from now on. Once per process; later calls do nothing.
pub(crate) fn install_overflow_handler() {
    let previous = PREVIOUS.get_or_init(|| {
        SIGNALS.map(|signal| {
            // SAFETY: sigaction is plain data, for which zero is a value; the call only reads.
            unsafe {
                let mut previous: libc::sigaction = mem::zeroed();
                libc::sigaction(signal, ptr::null(), &mut previous);
                previous
            }
        })
    });
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        for (signal, previous) in SIGNALS.into_iter().zip(previous) {
            // The mask and SA_NODEFER are the previous handler's, which may leave by siglongjmp;
            // without one a fault in ours ends the process at once.
            let mut action = *previous;
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags &= libc::SA_NODEFER;
            action.sa_flags |= libc::SA_SIGINFO | libc::SA_ONSTACK;
            // SAFETY: the handler has the type that SA_SIGINFO asks for and is async-signal-safe;
            // it finds what it chains to in `PREVIOUS`. Valid signals cannot be refused.
            unsafe { libc::sigaction(signal, &action, ptr::null_mut()) };
        }
    });
}

/// Async-signal-safe: atomics, a thread-local without destructor, write(2) and abort(3) only.
extern "C" fn on_fault(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes valid pointers to an SA_SIGINFO handler. Positive codes are faults,
    // which carry an address; the others were sent by a process.
    let (fault, address) = unsafe { ((*info).si_code > 0, (*info).si_addr().addr()) };
    if fault
        && let Some(chunk) = arena::chunk_of(address)
        && let slot = chunk.slot_start(address)
        && address - slot < GUARD_BYTES
        // A stray pointer that hits a guard from a thread's own stack is not an overflow.
        && stack_pointer(context).is_none_or(|pointer| arena::chunk_of(pointer).is_some())
    {
        report(address, slot, chunk.size);
        // SAFETY: always sound to call.
        unsafe { libc::abort() };
    }
    // SAFETY: the arguments are those that the kernel passed.
    unsafe { chain(signal, info, context, fault) };
}

/// The interrupted code's stack pointer, where we know how to find it.
fn stack_pointer(context: *mut libc::c_void) -> Option<usize> {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    // SAFETY: on Linux the third argument of an SA_SIGINFO handler is a ucontext_t.
    return Some(unsafe {
        (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RSP as usize] as usize
    });
    #[cfg(all(target_os = "linux", target_arch = "aarch64"))]
    // SAFETY: as above.
    return Some(unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.sp as usize });
    #[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
    {
        let _ = context;
        None
    }
}

/// Text of bounded length; the rest is cut off.
struct Report {
    text: [u8; 768],
    len: usize,
}

impl Write for Report {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let room = &mut self.text[self.len..];
        let len = part.len().min(room.len());
        room[..len].copy_from_slice(&part.as_bytes()[..len]);
        self.len += len;
        Ok(())
    }
}

fn report(address: usize, slot: usize, size: arena::StackSize) {
    const KIB: usize = 1024;
    let mut report = Report { text: [0; 768], len: 0 };
    let _ = report.write_str("\nkapok: fiber ");
    // SAFETY: `set_running`'s caller keeps the label valid and unchanged.
    match unsafe { RUNNING.get().as_ref() } {
        Some(FiberLabel { id, name: Some(name) }) => {
            let _ = report.write_char('"');
            for part in name.chars().take(64).flat_map(char::escape_debug) {
                let _ = report.write_char(part);
            }
            let _ = write!(report, "\" (id {id})");
        }
        Some(FiberLabel { id, name: None }) => {
            let _ = write!(report, "{id} (unnamed)");
        }
        None => {
            let _ = report.write_str("(unknown)");
        }
    }
    let _ = write!(
        report,
        " overflowed its stack of {} KiB: fault at {address:#x} in the guard {slot:#x}..{:#x}\n\
         kapok: give it more with Builder::stack_size",
        size.usable_bytes() / KIB,
        slot + GUARD_BYTES,
    );
    if let Some(larger) = size.next_larger() {
        let _ = write!(report, " (the next size is {} KiB)", larger.usable_bytes() / KIB);
    }
    let _ = report.write_str(", or recurse less and keep large arrays on the heap\n");
    let mut text = &report.text[..report.len];
    while !text.is_empty() {
        let Ok(written @ 1..) = usize::try_from(write(text)) else { return };
        text = &text[written..];
    }
}

/// write(2) to standard error. By number, where that may be: as a function of the C library it may be
/// interposed, and wait.
fn write(text: &[u8]) -> isize {
    let (fd, at, len) = (libc::STDERR_FILENO, text.as_ptr(), text.len());
    // SAFETY: the buffer is valid for its length.
    unsafe {
        #[cfg(target_os = "linux")]
        return libc::syscall(libc::SYS_write, fd, at, len) as isize;
        #[cfg(not(target_os = "linux"))]
        return libc::write(fd, at.cast(), len);
    }
}

/// Leaves the signal to whoever handled it before us.
///
/// # Safety
///
/// The arguments are those of the running signal handler.
unsafe fn chain(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
    fault: bool,
) {
    let previous = PREVIOUS.get().and_then(|previous| {
        previous.iter().zip(SIGNALS).find_map(|(action, of)| (of == signal).then_some(action))
    });
    let handler = previous.map_or(libc::SIG_DFL, |action| action.sa_sigaction);
    let flags = previous.map_or(0, |action| action.sa_flags);
    match handler {
        libc::SIG_IGN if !fault => {}
        // The kernel never lets a fault be ignored.
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: plain data and a valid signal. A fault happens again on return, and a signal
            // that was sent is raised again, pending until then: now both take the default action.
            unsafe {
                let mut default: libc::sigaction = mem::zeroed();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &default, ptr::null_mut());
                if !fault {
                    libc::raise(signal);
                }
            }
        }
        handler if flags & libc::SA_SIGINFO != 0 => {
            type Action = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            // SAFETY: a handler registered with SA_SIGINFO has this type.
            let action = unsafe { mem::transmute::<usize, Action>(handler) };
            action(signal, info, context);
        }
        handler => {
            // SAFETY: a handler registered without SA_SIGINFO has this type.
            let action = unsafe { mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler) };
            action(signal);
        }
    }
}

/// What handlers need beside the kernel's frame, which AT_MINSIGSTKSZ measures (with AVX-512 and
/// AMX it is far more than the constants of old say).
const HANDLER_BYTES: usize = 4096;

/// The alternate signal stack of this thread, for as long as the value lives.
///
/// Dropping it restores what was there, unless somebody changed it since.
#[must_use = "dropping it removes the alternate stack again"]
pub(crate) struct AlternateStack {
    /// Ours, if the thread had none that is big enough: mapping, bytes, and what was there before.
    installed: Option<(*mut libc::c_void, usize, libc::stack_t)>,
    _not_send: PhantomData<*mut ()>,
}

/// Sees to it that this thread has an alternate signal stack on which [`install_overflow_handler`]'s
/// handler and the one before it can run. One that is there and big enough stays.
///
/// # Errors
///
/// Those of mmap(2), mprotect(2) and sigaltstack(2); EPERM on the alternate stack itself.
pub(crate) fn ensure_alternate_stack() -> io::Result<AlternateStack> {
    let frame = frame_bytes();
    let mut previous = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: 0, ss_size: 0 };
    // SAFETY: only reads, into a valid stack_t.
    if unsafe { libc::sigaltstack(ptr::null(), &mut previous) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if previous.ss_flags & libc::SS_DISABLE == 0 && previous.ss_size >= frame + HANDLER_BYTES {
        return Ok(AlternateStack { installed: None, _not_send: PhantomData });
    }
    // One guard below it: a chained handler may be greedy.
    let size = (frame + 4 * HANDLER_BYTES).next_multiple_of(GUARD_BYTES);
    let bytes = GUARD_BYTES + size;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANON;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a fresh anonymous mapping touches nothing that exists.
    let start = unsafe { libc::mmap(ptr::null_mut(), bytes, access, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // From here on dropping it unmaps; restoring is harmless before installing.
    let alternate =
        AlternateStack { installed: Some((start, bytes, previous)), _not_send: PhantomData };
    let ours =
        libc::stack_t { ss_sp: start.wrapping_byte_add(GUARD_BYTES), ss_flags: 0, ss_size: size };
    // SAFETY: guard and stack are the two parts of the mapping just made, which outlives its use as
    // the alternate stack: `drop` uninstalls it first.
    let refused = unsafe {
        libc::mprotect(start, GUARD_BYTES, libc::PROT_NONE) != 0
            || libc::sigaltstack(&ours, ptr::null_mut()) != 0
    };
    if refused { Err(io::Error::last_os_error()) } else { Ok(alternate) }
}

impl Drop for AlternateStack {
    fn drop(&mut self) {
        let Some((start, bytes, previous)) = self.installed.take() else { return };
        let mut current = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: 0, ss_size: 0 };
        // SAFETY: `previous` is as the kernel reported it on this thread (the type is not Send), so
        // its memory is still its owner's concern. The mapping is ours and unmapped once, after
        // sigaltstack no longer names it; where that is refused, it stays.
        unsafe {
            libc::sigaltstack(ptr::null(), &mut current);
            let in_place = current.ss_flags & libc::SS_DISABLE == 0
                && current.ss_sp == start.wrapping_byte_add(GUARD_BYTES);
            if in_place && libc::sigaltstack(&previous, ptr::null_mut()) != 0 {
                return;
            }
            libc::munmap(start, bytes);
        }
    }
}

/// The largest frame that the kernel pushes for a signal, in bytes.
pub(super) fn frame_bytes() -> usize {
    #[cfg(target_os = "linux")]
    // SAFETY: always sound to call; zero where the kernel does not say.
    let reported = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) } as usize;
    #[cfg(not(target_os = "linux"))]
    let reported = 0;
    reported.max(libc::MINSIGSTKSZ)
}
