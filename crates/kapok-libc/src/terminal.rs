//! Terminals and their background: who reads there is stopped (`SIGTTIN`), and who writes, if the terminal
//! says so (`SIGTTOU`).
//!
//! A terminal is read and written on helper threads, which block those signals, so the kernel gives them
//! an error, or lets them write. What it would have done to the thread is done here first.

use std::ffi::c_int;
use std::os::fd::RawFd;

use crate::call::Call;
use crate::errno::Errno;
use crate::kernel::kernel;
use crate::signals::mask;

/// How often a process in the background is told. If nobody can continue it (it is orphaned) the kernel
/// does not stop it, and the transfer fails.
const TIMES: usize = 8;

/// Returns once a transfer on a terminal may be made by another thread.
///
/// # Errors
///
/// `EINTR`, if a handler of those signals is to run first.
pub(crate) fn keep_to_foreground(call: &Call, fd: RawFd, events: i16) -> Result<(), Errno> {
    let signal = if events == libc::POLLIN { libc::SIGTTIN } else { libc::SIGTTOU };
    for _ in 0..TIMES {
        if !is_in_background(fd) || signal == libc::SIGTTOU && !stops_writers(fd) {
            return Ok(());
        }
        if mask::mine() & mask::bit(signal) != 0 || is_ignored(signal) {
            return Ok(());
        }
        // To all of the group. Where nobody handles it, we stop in here.
        // SAFETY: no memory is named.
        let _ = unsafe { kernel!(libc::SYS_kill, 0, signal) };
        if call.is_struck() {
            return Err(Errno(libc::EINTR));
        }
    }
    Ok(())
}

fn is_in_background(fd: RawFd) -> bool {
    let mut foreground: libc::pid_t = 0;
    // SAFETY: writes to a local. It fails for what is not the process's own terminal.
    unsafe {
        kernel!(libc::SYS_ioctl, fd, libc::TIOCGPGRP, &raw mut foreground).is_ok()
            && foreground != libc::getpgrp()
    }
}

fn stops_writers(fd: RawFd) -> bool {
    // SAFETY: plain data, for which zero is a value; as much as the kernel writes, and more.
    unsafe {
        let mut settings: libc::termios = std::mem::zeroed();
        kernel!(libc::SYS_ioctl, fd, libc::TCGETS, &raw mut settings).is_ok()
            && settings.c_lflag & libc::TOSTOP != 0
    }
}

fn is_ignored(signal: c_int) -> bool {
    // SAFETY: plain data, written before it is read.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}
