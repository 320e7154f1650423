//! Whether a child has ended, asked without reaping it: until it is reaped its number is its own, and
//! what it has used can still be read.

use std::io;
use std::process::Child;

/// Whether `child`, which nobody has reaped, has ended.
///
/// # Errors
///
/// It was reaped already.
pub(crate) fn has_ended(child: &Child) -> io::Result<bool> {
    // SAFETY: all zeros is a siginfo, which waitid leaves as it is if there is no news.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    loop {
        // SAFETY: waitid writes to the siginfo only, which outlives the call.
        if unsafe { libc::waitid(libc::P_PID, child.id(), &raw mut info, options) } == 0 {
            return Ok(info.si_signo != 0);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::thread;
    use std::time::{Duration, Instant};

    #[test]
    fn the_end_of_a_child_is_seen_and_left_to_be_reaped() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        assert!(!has_ended(&child).unwrap());
        drop(child.stdin.take());
        let begun = Instant::now();
        while !has_ended(&child).unwrap() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not end");
            thread::sleep(Duration::from_millis(2));
        }
        assert!(has_ended(&child).unwrap(), "it may be asked again");
        assert!(child.wait().unwrap().success());
        assert!(has_ended(&child).is_err(), "nobody knows any more");
    }
}
