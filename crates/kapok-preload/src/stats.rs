//! What came of the calls, told at exit.

use std::cell::UnsafeCell;
use std::ffi::{CStr, c_char, c_int};
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

use kapok_libc::Counts;

/// Standard error as the program found it: some close theirs before they exit.
static STDERR: AtomicI32 = AtomicI32::new(2);

/// A number that a program is unlikely to mean.
const HIGH: libc::c_int = 900;

/// Who is to tell: the process that was started with the library, until it has. A child of fork(2) has its
/// parent's counts, and one of vfork(2) its parent's memory.
static TELLS: AtomicU32 = AtomicU32::new(0);

/// Whether what is told is JSON.
static JSON: AtomicBool = AtomicBool::new(false);

/// Counts all calls from now on, and prints the counts when the process exits, as a table or as a line of
/// JSON. Registered first, so it runs after what the program registers. A process that ends by a signal
/// tells nothing.
pub(super) fn print_at_exit(json: bool) {
    kapok_libc::count_bypasses();
    JSON.store(json, Ordering::Relaxed);
    TELLS.store(std::process::id(), Ordering::Relaxed);
    // SAFETY: only numbers are passed; a function that takes nothing and lives as long as the process.
    unsafe {
        let own = libc::fcntl(2, libc::F_DUPFD_CLOEXEC, HIGH);
        if own >= 0 {
            STDERR.store(own, Ordering::Relaxed);
        }
        libc::atexit(print);
    }
}

/// The C library's function of this name: shells end so.
#[unsafe(no_mangle)]
extern "C" fn _exit(status: c_int) -> ! {
    print();
    loop {
        // SAFETY: only numbers are passed; it does not return.
        unsafe { libc::syscall(libc::SYS_exit_group, status) };
    }
}

/// The same by the name that C99 has for it.
#[allow(non_snake_case, reason = "the name is C's")]
#[unsafe(no_mangle)]
extern "C" fn _Exit(status: c_int) -> ! {
    _exit(status)
}

extern "C" fn print() {
    let told = TELLS.compare_exchange(std::process::id(), 0, Ordering::Relaxed, Ordering::Relaxed);
    if told.is_err() {
        return;
    }
    // SAFETY: the exchange lets one caller of the process come here, once.
    let text = unsafe { &mut *TEXT.0.get() };
    let mut output = Output { text, len: 0, fd: STDERR.load(Ordering::Relaxed) };
    // Writing to it does not fail.
    let _ =
        if JSON.load(Ordering::Relaxed) { report_json(&mut output) } else { report(&mut output) };
    output.flush();
}

/// Room for what is told of all functions, so that it is written at once: several processes may write to the
/// same place.
const ROOM: usize = 16 * 1024;

struct Text(UnsafeCell<[u8; ROOM]>);

// SAFETY: `print` alone uses it, and only one caller of that gets so far.
unsafe impl Sync for Text {}

static TEXT: Text = Text(UnsafeCell::new([0; ROOM]));

/// What is printed, without memory from an allocator: _exit(2) may be called in a handler of a signal.
struct Output {
    text: &'static mut [u8; ROOM],
    len: usize,
    fd: c_int,
}

impl Output {
    fn flush(&mut self) {
        let mut rest = &self.text[..self.len];
        while !rest.is_empty() {
            let (at, len) = (rest.as_ptr(), rest.len());
            // SAFETY: the bytes of a slice. By number: the hook of write(2) might wait.
            let written = unsafe { libc::syscall(libc::SYS_write, self.fd, at, len) };
            match usize::try_from(written) {
                Ok(count) => rest = &rest[count.min(rest.len())..],
                Err(_) if std::io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) => {}
                Err(_) => break,
            }
        }
        self.len = 0;
    }
}

impl Write for Output {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        for part in part.as_bytes().chunks(self.text.len()) {
            if self.text.len() - self.len < part.len() {
                self.flush();
            }
            self.text[self.len..self.len + part.len()].copy_from_slice(part);
            self.len += part.len();
        }
        Ok(())
    }
}

/// What was called, and what came of it.
fn called() -> impl Iterator<Item = (&'static str, Counts)> {
    kapok_libc::hooks()
        .map(|hook| (hook.name(), hook.counts()))
        .filter(|(_, counts)| *counts != Counts::default())
}

fn sum(count: fn(&Counts) -> u64) -> u64 {
    called().map(|(_, counts)| count(&counts)).sum()
}

fn report(output: &mut Output) -> fmt::Result {
    output.write_str("kapok: ")?;
    for part in program().utf8_chunks() {
        output.write_str(part.valid())?;
    }
    writeln!(
        output,
        " ({}): suspensions {}, direct calls {}, bypasses {}",
        std::process::id(),
        sum(|counts| counts.suspended),
        sum(|counts| counts.direct),
        sum(|counts| counts.bypassed),
    )?;
    for (name, counts) in called() {
        writeln!(
            output,
            "kapok:   {name:<24} {:>10} {:>10} {:>10}",
            counts.suspended, counts.direct, counts.bypassed
        )?;
    }
    Ok(())
}

/// All in one line. The sums are of what was told, as other threads may go on.
fn report_json(output: &mut Output) -> fmt::Result {
    output.write_str("{\"program\":\"")?;
    // What is no UTF-8 is left out, as in the table.
    for letter in program().utf8_chunks().flat_map(|part| part.valid().chars()) {
        match letter {
            '"' | '\\' => write!(output, "\\{letter}")?,
            '\0'..='\x1f' => write!(output, "\\u{:04x}", u32::from(letter))?,
            _ => output.write_char(letter)?,
        }
    }
    write!(output, "\",\"pid\":{},\"calls\":{{", std::process::id())?;
    let mut sum = Counts::default();
    for (place, (name, counts)) in called().enumerate() {
        write!(output, "{}\"{name}\":{{", if place > 0 { "," } else { "" })?;
        write_counts(output, counts)?;
        output.write_str("}")?;
        sum.suspended += counts.suspended;
        sum.direct += counts.direct;
        sum.bypassed += counts.bypassed;
    }
    output.write_str("},")?;
    write_counts(output, sum)?;
    output.write_str("}\n")
}

fn write_counts(output: &mut Output, counts: Counts) -> fmt::Result {
    let Counts { suspended, direct, bypassed } = counts;
    write!(output, "\"suspended\":{suspended},\"direct\":{direct},\"bypassed\":{bypassed}")
}

/// The program's name, as the C library took it from the command line.
fn program() -> &'static [u8] {
    unsafe extern "C" {
        static program_invocation_short_name: *const c_char;
    }
    // SAFETY: a string that the C library keeps for the process's life.
    unsafe { CStr::from_ptr(program_invocation_short_name) }.to_bytes()
}
