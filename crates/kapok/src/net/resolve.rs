//! Names to addresses, off the loop.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::blocking::blocking;
use crate::sim;

/// What can be resolved to socket addresses: the types of [`std::net::ToSocketAddrs`].
///
/// Numeric addresses are parsed on the spot. Names are looked up by getaddrinfo(3) on a thread of
/// the offload pool, while the fiber is suspended; the look-up itself cannot be cancelled, so a
/// cancelled fiber waits for it to end.
pub trait ToSocketAddrs {
    /// The addresses, in the order in which they are to be tried.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for text that is not `host:port`; what the resolver says otherwise.
    fn to_socket_addrs(&self) -> io::Result<Vec<SocketAddr>>;
}

fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    if sim::with_world(|_| ()).is_some() {
        return match host {
            "localhost" => Ok(vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)]),
            _ => Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("look up {host:?}: a simulated world has addresses and localhost only"),
            )),
        };
    }
    blocking(|| std::net::ToSocketAddrs::to_socket_addrs(&(host, port)).map(Iterator::collect))
        .and_then(|looked_up| looked_up)
        .map_err(|error| io::Error::new(error.kind(), format!("look up {host:?}: {error}")))
}

impl ToSocketAddrs for str {
    fn to_socket_addrs(&self) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = self.parse() {
            return Ok(vec![address]);
        }
        let invalid =
            |what| io::Error::new(io::ErrorKind::InvalidInput, format!("{self:?}: {what}"));
        let (host, port) =
            self.rsplit_once(':').ok_or_else(|| invalid("no port, want host:port"))?;
        let port = port.parse().map_err(|_| invalid("the port is not a number below 65536"))?;
        look_up(host, port)
    }
}

impl ToSocketAddrs for String {
    fn to_socket_addrs(&self) -> io::Result<Vec<SocketAddr>> {
        self.as_str().to_socket_addrs()
    }
}

impl ToSocketAddrs for (&str, u16) {
    fn to_socket_addrs(&self) -> io::Result<Vec<SocketAddr>> {
        look_up(self.0, self.1)
    }
}

impl ToSocketAddrs for (String, u16) {
    fn to_socket_addrs(&self) -> io::Result<Vec<SocketAddr>> {
        look_up(&self.0, self.1)
    }
}

impl ToSocketAddrs for [SocketAddr] {
    fn to_socket_addrs(&self) -> io::Result<Vec<SocketAddr>> {
        Ok(self.to_vec())
    }
}

macro_rules! one_address {
    ($($type:ty),*) => {$(
        impl ToSocketAddrs for $type {
            fn to_socket_addrs(&self) -> io::Result<Vec<SocketAddr>> {
                Ok(vec![SocketAddr::from(*self)])
            }
        }
    )*};
}
one_address!(
    SocketAddr,
    SocketAddrV4,
    SocketAddrV6,
    (IpAddr, u16),
    (Ipv4Addr, u16),
    (Ipv6Addr, u16)
);

impl<T: ToSocketAddrs + ?Sized> ToSocketAddrs for &T {
    fn to_socket_addrs(&self) -> io::Result<Vec<SocketAddr>> {
        (**self).to_socket_addrs()
    }
}

/// Tries `f` with each address until one succeeds; the last error says which address it was about.
pub(super) fn each_address<T>(
    what: &str,
    addresses: impl ToSocketAddrs,
    mut f: impl FnMut(SocketAddr) -> io::Result<T>,
) -> io::Result<T> {
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, format!("{what}: no address"));
    for address in addresses.to_socket_addrs()? {
        match f(address) {
            Ok(value) => return Ok(value),
            // An interrupted fiber does not go on to the next address.
            Err(error) if crate::Canceled::is(&error) => return Err(error),
            Err(error) => {
                let hint = match (what, error.raw_os_error()) {
                    // The one reason with a cure that the text of the error does not give away.
                    ("connect to", Some(libc::EADDRNOTAVAIL)) => {
                        " (no local port is free for it: see net.ipv4.ip_local_port_range)"
                    }
                    _ => "",
                };
                last = io::Error::new(error.kind(), format!("{what} {address}: {error}{hint}"));
            }
        }
    }
    Err(last)
}
