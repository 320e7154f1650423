//! Where an operation runs.

use std::fmt;
use std::str::FromStr;

/// Where an operation runs.
///
/// An operation that is an entry of io_uring (those of [`Pool::entry`](crate::Pool::entry), transfers of
/// several buffers, splices, most of what is done to paths) goes to an I/O thread, whichever it is: an entry
/// may name what is the rings' own, and land again and again, and other engines than a ring make of it what
/// they can. What is done to it while it waits is the pool's then: its shutdown ends it, a fiber's
/// cancellation and deadline do not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Via {
    /// Where it is thought to be cheapest. Reads and writes of files are tried in the caller first, as
    /// long as such tries succeed. What is left goes to an I/O thread if it is awaited; in
    /// [`block`](crate::Operation::block), where the caller waits in any case, to the ring of the caller's own
    /// loop on a fiber, and on a plain thread the caller makes the system call itself: its flags
    /// (`MSG_WAITALL`) then have the meaning that they have on that descriptor, and the pool's shutdown
    /// neither waits for it nor ends it.
    #[default]
    Auto,
    /// In the caller, if that can be done without waiting (`RWF_NOWAIT`, the page cache), whatever
    /// became of earlier tries. What cannot goes to an I/O thread.
    Caller,
    /// On the ring of the caller's own loop, in [`block`](crate::Operation::block) on a fiber of Kapok: neither
    /// another thread nor a wake-up. The pool's shutdown neither waits for it nor ends it; the fiber's
    /// cancellation and deadline do, where the operation can be ended. From elsewhere, and if it is
    /// awaited, it goes to an I/O thread.
    Ring,
    /// On an I/O thread.
    Thread,
}

/// All of them, by name.
const NAMES: [(Via, &str); 4] =
    [(Via::Auto, "auto"), (Via::Caller, "caller"), (Via::Ring, "ring"), (Via::Thread, "thread")];

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(via, _)| via == self).map_or("", |&(_, name)| name);
        f.pad(name)
    }
}

impl FromStr for Via {
    type Err = UnknownVia;

    fn from_str(name: &str) -> Result<Via, UnknownVia> {
        let found = NAMES.iter().find(|&&(_, known)| known == name);
        found.map(|&(via, _)| via).ok_or_else(|| UnknownVia(name.to_owned()))
    }
}

/// No [`Via`] has this name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownVia(String);

impl fmt::Display for UnknownVia {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "operations do not run via {:?}: there are auto, caller, ring and thread", self.0)
    }
}

impl std::error::Error for UnknownVia {}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn each_is_found_by_its_name() {
        for (via, name) in NAMES {
            assert_eq!(name.parse(), Ok(via));
            assert_eq!(via.to_string(), name);
        }
        assert!("Ring".parse::<Via>().is_err());
    }
}
