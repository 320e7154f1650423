//! What this machine must allow before many connections fit: descriptors and local ports.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Descriptors beside the connections: standard streams, the selector, meters, files.
const SPARE_DESCRIPTORS: u64 = 64;

/// Raises the soft limit on descriptors to the hard one and returns it. The soft limit's default
/// of 1024 is there for programs that use `select`.
///
/// # Errors
///
/// What `getrlimit` and `setrlimit` say.
// Signed on FreeBSD.
#[allow(clippy::unnecessary_cast)]
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit that outlives the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: as above; the call only reads it.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur as u64)
}

/// Fails with the cure when `connections` do not fit into the limit on descriptors.
pub(super) fn fit_descriptors(connections: usize) -> io::Result<()> {
    let limit = raise_descriptor_limit()?;
    let needed = (connections as u64).saturating_add(SPARE_DESCRIPTORS);
    if needed > limit {
        return Err(io::Error::other(format!(
            "{connections} connections need {needed} descriptors and the hard limit is {limit}: \
             raise it (ulimit -Hn {needed} as root, LimitNOFILE={needed} in systemd, \
             --ulimit nofile={needed} for a container) or ask for at most {} connections",
            limit.saturating_sub(SPARE_DESCRIPTORS)
        )));
    }
    Ok(())
}

/// Local addresses to connect from, so that connections to one server address are not limited to
/// one range of ports.
#[derive(Debug)]
pub(super) struct Sources {
    addresses: Vec<Option<IpAddr>>,
    next: usize,
}

impl Sources {
    /// Sources for `connections` at once to `server`; a run that opens connections again and again
    /// (`churn`) gets more, because closed ones keep their ports for a while (TIME_WAIT).
    pub(super) fn new(server: SocketAddr, connections: usize, churn: bool) -> io::Result<Sources> {
        let ports = local_ports();
        // The kernel's search for a free port slows down as the range fills up.
        let per_address = (ports * 9 / 10).max(1);
        let needed = connections.div_ceil(per_address).max(if churn { 8 } else { 1 });
        let addresses = match server.ip() {
            // On Linux every address of 127/8 is ours.
            IpAddr::V4(ip) if cfg!(target_os = "linux") && ip.is_loopback() && needed > 1 => (0
                ..needed)
                .map(|index| {
                    let host = index as u32 + 2;
                    Some(IpAddr::V4(Ipv4Addr::from(0x7f00_0000 + (host / 250) * 256 + host % 250)))
                })
                .collect(),
            _ if connections > ports => {
                return Err(io::Error::other(format!(
                    "{connections} connections to {server} need as many local ports and \
                     net.ipv4.ip_local_port_range gives {ports}: widen it (sysctl -w \
                     net.ipv4.ip_local_port_range=\"1024 65535\"), or use a server on 127.0.0.1, \
                     where several source addresses are taken"
                )));
            }
            _ => vec![None],
        };
        Ok(Sources { addresses, next: 0 })
    }

    /// The address for the next connection, in turn; `None` leaves the choice to the kernel.
    pub(super) fn next(&mut self) -> Option<IpAddr> {
        let address = self.addresses[self.next];
        self.next = (self.next + 1) % self.addresses.len();
        address
    }
}

fn local_ports() -> usize {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let bounds = range.ok().and_then(|text| {
        let mut numbers = text.split_whitespace().map(|word| word.parse::<usize>().ok());
        Some((numbers.next()??, numbers.next()??))
    });
    // 16384: the range that IANA reserves for it, and the default outside Linux.
    bounds.map_or(16384, |(low, high)| high.saturating_sub(low) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn loopback_takes_several_sources_and_nothing_else_does() {
        let server: SocketAddr = "127.0.0.1:80".parse().unwrap();
        let mut sources = Sources::new(server, 200_000, false).unwrap();
        let first = sources.next().unwrap();
        let second = sources.next().unwrap();
        assert!(first.is_loopback() && second.is_loopback() && first != second);

        assert_eq!(Sources::new(server, 10, false).unwrap().next(), None);

        let remote: SocketAddr = "192.0.2.1:80".parse().unwrap();
        let refusal = Sources::new(remote, 200_000, false).unwrap_err().to_string();
        assert!(refusal.contains("ip_local_port_range"), "{refusal}");
    }

    #[test]
    fn too_many_connections_name_the_limit_and_the_cure() {
        for connections in [usize::MAX / 2, usize::MAX] {
            let refusal = fit_descriptors(connections).unwrap_err().to_string();
            assert!(refusal.contains("ulimit -Hn"), "{refusal}");
        }
    }
}
