//! What is between the load and the server: loopback, or two network namespaces joined by veth.
//!
//! On loopback whoever sends also delivers, in one system call and within one protocol stack. Between two
//! namespaces a packet goes through two stacks and two devices, with a queue and a softirq between them:
//! more of what a network costs, and still not one, for it never leaves the kernel.
//!
//! The namespaces have no names and nothing refers to them but this process and the servers: however those
//! end, the kernel takes the namespaces back, and the devices in them.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

#[cfg(target_os = "linux")]
pub(super) use linux::Namespaces;
#[cfg(not(target_os = "linux"))]
pub(super) use other::Namespaces;

use crate::UnknownName;
use crate::serve::by_name;

/// What is between the load and the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Network {
    /// The loopback device.
    #[default]
    Loopback,
    /// A pair of veth devices: the server in one network namespace of its own, the load in another. Needs
    /// root (`CAP_SYS_ADMIN` and `CAP_NET_ADMIN`) and ip(8) of iproute2.
    Veth,
}

impl Network {
    /// Both.
    pub const ALL: [Network; 2] = [Network::Loopback, Network::Veth];

    /// Where servers listen.
    pub(super) fn server(self) -> Ipv4Addr {
        match self {
            Network::Loopback => Ipv4Addr::LOCALHOST,
            Network::Veth => Ipv4Addr::new(10, 0, 0, 2),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Network::Loopback => "loopback",
            Network::Veth => "veth",
        })
    }
}

impl FromStr for Network {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Network, UnknownName> {
        by_name("network", &Network::ALL, name)
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::io;
    use std::os::fd::{AsRawFd, RawFd};
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use std::thread;

    use super::Network;

    /// The network namespace of the calling thread.
    const OWN: &str = "/proc/thread-self/ns/net";

    /// Two network namespaces, each with one end of a pair of veth devices.
    #[derive(Debug)]
    pub(in super::super) struct Namespaces {
        load: File,
        server: File,
    }

    /// While it lives, the thread that made it is in the load's namespace, and so are threads that this
    /// one starts.
    #[derive(Debug)]
    pub(in super::super) struct Inside {
        before: File,
    }

    impl Namespaces {
        /// Makes and joins them.
        pub(in super::super) fn make() -> io::Result<Namespaces> {
            let namespaces = Namespaces { load: unshared()?, server: unshared()? };
            let (load, server) = (namespaces.load.as_raw_fd(), namespaces.server.as_raw_fd());
            let other = format!("/proc/self/fd/{server}");
            let at = format!("{}/24", Network::Veth.server());
            ip(load, None, &["link", "set", "lo", "up"])?;
            ip(server, None, &["link", "set", "lo", "up"])?;
            let pair =
                ["link", "add", "load", "type", "veth", "peer", "name", "server", "netns", &other];
            ip(load, Some(server), &pair)?;
            ip(load, None, &["address", "add", "10.0.0.1/24", "dev", "load"])?;
            ip(server, None, &["address", "add", &at, "dev", "server"])?;
            ip(load, None, &["link", "set", "load", "up"])?;
            ip(server, None, &["link", "set", "server", "up"])?;
            Ok(namespaces)
        }

        /// Takes the calling thread into the load's namespace.
        pub(in super::super) fn enter(&self) -> io::Result<Inside> {
            let before = File::open(OWN)?;
            set(self.load.as_raw_fd())?;
            Ok(Inside { before })
        }

        /// Does something on a thread that is, like those it starts, in the servers' namespace.
        pub(in super::super) fn beside_server<T: Send>(
            &self,
            make: impl FnOnce() -> io::Result<T> + Send,
        ) -> io::Result<T> {
            let server = self.server.as_raw_fd();
            let made =
                thread::scope(|scope| scope.spawn(|| set(server).and_then(|()| make())).join());
            made.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        }

        /// Has a command run in the servers' namespace, which must outlive its start.
        pub(in super::super) fn contain(&self, command: &mut Command) {
            run_in(command, self.server.as_raw_fd(), None);
        }
    }

    impl Drop for Inside {
        fn drop(&mut self) {
            // Whoever could leave it can return to it. If not, no connection of this thread would ever
            // find what it is to find: better to say so here.
            set(self.before.as_raw_fd()).expect("back to the network namespace of before");
        }
    }

    /// A new network namespace.
    fn unshared() -> io::Result<File> {
        // On a thread of its own, which is the only one that this moves.
        let made = thread::spawn(|| {
            // SAFETY: only a flag is passed; what it gives the thread another one of is not memory.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error());
            }
            File::open(OWN)
        });
        let made = made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        made.map_err(|error| {
            let needs = match error.raw_os_error() {
                Some(libc::EPERM) => ": that needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN)",
                _ => "",
            };
            io::Error::new(error.kind(), format!("a network namespace: {error}{needs}"))
        })
    }

    /// Moves the calling thread. Async-signal-safe: it is also called between fork and exec.
    fn set(namespace: RawFd) -> io::Result<()> {
        // SAFETY: only numbers are passed.
        match unsafe { libc::setns(namespace, libc::CLONE_NEWNET) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Has a command run in a namespace, with another descriptor left open for it.
    fn run_in(command: &mut Command, namespace: RawFd, inherited: Option<RawFd>) {
        let prepare = move || {
            set(namespace)?;
            if let Some(descriptor) = inherited {
                // SAFETY: only numbers are passed; the descriptor is the child's own copy.
                if unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) } != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        };
        // SAFETY: between fork and exec this makes two system calls and touches no memory but its own.
        unsafe { command.pre_exec(prepare) };
    }

    /// Runs ip(8) in a namespace.
    fn ip(namespace: RawFd, inherited: Option<RawFd>, arguments: &[&str]) -> io::Result<()> {
        let mut command = Command::new("ip");
        command.args(arguments);
        run_in(&mut command, namespace, inherited);
        let what = format!("ip {}", arguments.join(" "));
        let output = command.output().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::other(
                "two namespaces are joined by ip(8), which is not there: install iproute2",
            ),
            _ => io::Error::new(error.kind(), format!("{what}: {error}")),
        })?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!("{what}: {}", said.trim())))
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use std::io;
    use std::process::Command;

    /// There are none here.
    #[derive(Debug)]
    pub(in super::super) enum Namespaces {}

    impl Namespaces {
        pub(in super::super) fn make() -> io::Result<Namespaces> {
            let why = "network namespaces are Linux's";
            Err(io::Error::new(io::ErrorKind::Unsupported, why))
        }

        pub(in super::super) fn enter(&self) -> io::Result<()> {
            match *self {}
        }

        pub(in super::super) fn beside_server<T: Send>(
            &self,
            _: impl FnOnce() -> io::Result<T> + Send,
        ) -> io::Result<T> {
            match *self {}
        }

        pub(in super::super) fn contain(&self, _: &mut Command) {
            match *self {}
        }
    }
}
