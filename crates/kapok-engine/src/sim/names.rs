//! Who is bound to which address.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::sim::address::Address;
use crate::sim::world::Id;

/// What addresses are told apart by. A Unix path is one file, whatever sort of socket it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Space {
    Tcp,
    Udp,
    Unix,
}

/// The ports that `0` stands for, as Linux has them by default.
const EPHEMERAL: std::ops::Range<u16> = 32_768..61_000;

#[derive(Default)]
pub(super) struct Names {
    bound: BTreeMap<(Space, Address), Id>,
    /// Counts the ephemeral ports that were given out.
    given: u16,
    /// Counts the names that Unix sockets were given.
    named: u32,
}

impl Names {
    /// Binds `id`, to a free port if the address has none, and says to what.
    pub(super) fn bind(&mut self, space: Space, wanted: Address, id: Id) -> Result<Address, i32> {
        let address = match wanted {
            Address::Inet(inet) if inet.port() == 0 => self.free_port(space, inet.ip())?,
            // As Linux names a Unix socket that is bound to nothing in particular.
            Address::Unix(name) if name.is_empty() => {
                self.named += 1;
                Address::Unix(format!("\0{:05x}", self.named).into_bytes())
            }
            wanted => wanted,
        };
        if self.is_taken(space, &address) {
            return Err(-libc::EADDRINUSE);
        }
        self.bound.insert((space, address.clone()), id);
        Ok(address)
    }

    fn free_port(&mut self, space: Space, ip: IpAddr) -> Result<Address, i32> {
        let ports = EPHEMERAL.end - EPHEMERAL.start;
        for _ in 0..ports {
            let port = EPHEMERAL.start + self.given % ports;
            self.given = (self.given + 1) % ports;
            let address = Address::Inet(SocketAddr::new(ip, port));
            if !self.is_taken(space, &address) {
                return Ok(address);
            }
        }
        Err(-libc::EADDRINUSE)
    }

    /// Whether somebody has this address, or one that overlaps with it.
    fn is_taken(&self, space: Space, address: &Address) -> bool {
        match address {
            // The path of a socket that is gone is free: nobody can unlink it here.
            Address::Unix(_) => {
                self.bound.get(&(space, address.clone())).is_some_and(|&id| id != GONE)
            }
            Address::Inet(wanted) => self.bound.keys().any(|(there, bound)| {
                let Address::Inet(bound) = bound else { return false };
                *there == space
                    && bound.port() == wanted.port()
                    && (bound.ip() == wanted.ip()
                        || bound.ip().is_unspecified()
                        || wanted.ip().is_unspecified())
            }),
        }
    }

    /// Who receives what is sent to this address. A name whose owner is gone is known, and nobody.
    pub(super) fn find(&self, space: Space, address: &Address) -> Option<Id> {
        let exactly = |address: &Address| self.bound.get(&(space, address.clone())).copied();
        exactly(address).or_else(|| match address {
            Address::Inet(to) => {
                let at = |ip: IpAddr| exactly(&Address::Inet(SocketAddr::new(ip, to.port())));
                let v4 = to.is_ipv4().then(|| at(Ipv4Addr::UNSPECIFIED.into())).flatten();
                // IPv6's wildcard takes IPv4 too.
                v4.or_else(|| at(Ipv6Addr::UNSPECIFIED.into()))
            }
            Address::Unix(_) => None,
        })
    }

    /// Gives up what `id` was bound to. A Unix path stays: it is a file.
    pub(super) fn release(&mut self, id: Id) {
        self.bound.retain(|(_, address), owner| {
            let is_path = matches!(address, Address::Unix(name) if !name.starts_with(&[0]));
            if *owner == id && is_path {
                *owner = GONE;
            }
            *owner != id
        });
    }
}

/// The owner of a path whose socket is gone.
const GONE: Id = 0;
