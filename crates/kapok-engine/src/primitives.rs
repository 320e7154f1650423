//! What the words of the bell are made of: the machine's, or loom's when its models are run
//! (`RUSTFLAGS="--cfg loom"`).

#[cfg(not(loom))]
mod machine {
    pub(crate) use crate::sys::Notifier;
    pub(crate) use std::sync::atomic::AtomicU32;
}

#[cfg(loom)]
mod machine {
    use std::io;
    use std::os::fd::{AsRawFd, RawFd};

    pub(crate) use loom::sync::atomic::AtomicU32;
    use loom::sync::{Condvar, Mutex};

    /// An eventfd, as far as a bell can tell.
    #[derive(Debug)]
    pub(crate) struct Notifier {
        readable: Mutex<bool>,
        changed: Condvar,
    }

    impl Notifier {
        pub(crate) const COUNTS: bool = true;

        pub(crate) fn new() -> io::Result<Notifier> {
            Ok(Notifier { readable: Mutex::new(false), changed: Condvar::new() })
        }

        pub(crate) fn notify(&self) {
            *self.readable.lock().unwrap() = true;
            self.changed.notify_one();
        }

        pub(crate) fn drain(&self) {
            *self.readable.lock().unwrap() = false;
        }

        /// Waits until it is readable, as a selector does.
        pub(crate) fn wait(&self) {
            let mut readable = self.readable.lock().unwrap();
            while !*readable {
                readable = self.changed.wait(readable).unwrap();
            }
        }
    }

    impl AsRawFd for Notifier {
        fn as_raw_fd(&self) -> RawFd {
            -1
        }
    }
}

pub(crate) use machine::*;
