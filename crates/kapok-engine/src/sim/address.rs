//! Socket addresses: out of and into the kernel's form.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ptr;

/// An address of the simulated network.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Address {
    /// IPv4-mapped IPv6 addresses are IPv4 addresses here.
    Inet(SocketAddr),
    /// The bytes of `sun_path`: a path, without its final NUL, or an abstract name, which begins
    /// with one. Empty: no name.
    Unix(Vec<u8>),
}

const PATH_OFFSET: usize = std::mem::offset_of!(libc::sockaddr_un, sun_path);
const PATH_ROOM: usize = size_of::<libc::sockaddr_un>() - PATH_OFFSET;

impl Address {
    pub(super) const UNNAMED: Address = Address::Unix(Vec::new());

    /// The address at `addr`, for a socket of `domain`.
    ///
    /// # Safety
    ///
    /// `addr` is null or points to `len` readable bytes.
    pub(super) unsafe fn read(
        addr: *const libc::sockaddr_storage,
        len: libc::socklen_t,
        domain: i32,
    ) -> Result<Address, i32> {
        let len = len as usize;
        if addr.is_null() || len < PATH_OFFSET || len > size_of::<libc::sockaddr_storage>() {
            return Err(-libc::EINVAL);
        }
        // SAFETY: zero is a value of this structure of integers.
        let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        // SAFETY: `len` bytes are readable, by the caller, and fit into the local.
        unsafe {
            ptr::copy_nonoverlapping(addr.cast::<u8>(), (&raw mut storage).cast::<u8>(), len);
        }
        let family = i32::from(storage.ss_family);
        if family != domain {
            return Err(-if family == libc::AF_UNSPEC { libc::EINVAL } else { libc::EAFNOSUPPORT });
        }
        match family {
            libc::AF_INET if len >= size_of::<libc::sockaddr_in>() => {
                // SAFETY: a storage is large and aligned enough for every address.
                let raw = unsafe { (&raw const storage).cast::<libc::sockaddr_in>().read() };
                let ip = raw.sin_addr.s_addr.to_ne_bytes();
                Ok(Address::inet(SocketAddr::from((ip, u16::from_be(raw.sin_port)))))
            }
            libc::AF_INET6 if len >= size_of::<libc::sockaddr_in6>() => {
                // SAFETY: as above.
                let raw = unsafe { (&raw const storage).cast::<libc::sockaddr_in6>().read() };
                let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
                let port = u16::from_be(raw.sin6_port);
                Ok(Address::inet(SocketAddrV6::new(ip, port, 0, raw.sin6_scope_id).into()))
            }
            libc::AF_UNIX => {
                // SAFETY: as above.
                let raw = unsafe { (&raw const storage).cast::<libc::sockaddr_un>().read() };
                let path = raw.sun_path[..(len - PATH_OFFSET).min(PATH_ROOM)].iter();
                let path: Vec<u8> = path.map(|&byte| byte as u8).collect();
                Ok(Address::Unix(match path.first() {
                    None | Some(0) => path,
                    _ => path.into_iter().take_while(|&byte| byte != 0).collect(),
                }))
            }
            _ => Err(-libc::EINVAL),
        }
    }

    fn inet(address: SocketAddr) -> Address {
        match address.ip().to_canonical() {
            IpAddr::V4(ip) => Address::Inet((ip, address.port()).into()),
            IpAddr::V6(_) => Address::Inet(address),
        }
    }

    /// Writes the address, as a socket of `domain` shows it, and its length; cut to the room.
    ///
    /// # Safety
    ///
    /// `len` is null, or readable and writable; `addr` is null or has room for what `len` says.
    pub(super) unsafe fn write(
        &self,
        domain: i32,
        addr: *mut libc::sockaddr_storage,
        len: *mut libc::socklen_t,
    ) {
        if addr.is_null() || len.is_null() {
            return;
        }
        let (storage, size) = self.raw(domain);
        // SAFETY: `len` says how much room there is, by the caller, and no more than both that and
        // the address's own size is copied.
        unsafe {
            let room = (*len as usize).min(size);
            ptr::copy_nonoverlapping((&raw const storage).cast::<u8>(), addr.cast::<u8>(), room);
            *len = size as libc::socklen_t;
        }
    }

    /// The kernel's form, and how many bytes of it count.
    fn raw(&self, domain: i32) -> (libc::sockaddr_storage, usize) {
        // SAFETY: zero is a value of this structure of integers.
        let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let size = match self {
            Address::Inet(SocketAddr::V4(v4)) if domain != libc::AF_INET6 => {
                raw_v4(&mut storage, v4)
            }
            Address::Inet(address) => raw_v6(&mut storage, *address),
            Address::Unix(name) => {
                let raw = (&raw mut storage).cast::<libc::sockaddr_un>();
                let shown = name.len().min(PATH_ROOM);
                // SAFETY: a storage is large and aligned enough, and a name is cut to its room.
                unsafe {
                    ptr::copy_nonoverlapping(
                        name.as_ptr(),
                        (&raw mut (*raw).sun_path).cast::<u8>(),
                        shown,
                    );
                }
                // A path is counted with its NUL, which is there: the rest of the storage is zero.
                PATH_OFFSET + shown + usize::from(name.first().is_some_and(|&first| first != 0))
            }
        };
        storage.ss_family = match self {
            Address::Unix(_) => libc::AF_UNIX,
            Address::Inet(_) if domain == libc::AF_INET6 => libc::AF_INET6,
            Address::Inet(SocketAddr::V4(_)) => libc::AF_INET,
            Address::Inet(SocketAddr::V6(_)) => libc::AF_INET6,
        } as libc::sa_family_t;
        #[cfg(any(
            target_os = "macos",
            target_os = "ios",
            target_os = "freebsd",
            target_os = "netbsd",
            target_os = "openbsd",
            target_os = "dragonfly"
        ))]
        {
            storage.ss_len = size as u8;
        }
        (storage, size)
    }
}

fn raw_v4(storage: &mut libc::sockaddr_storage, address: &SocketAddrV4) -> usize {
    let raw = std::ptr::from_mut(storage).cast::<libc::sockaddr_in>();
    // SAFETY: a storage is large and aligned enough for every address.
    unsafe {
        (*raw).sin_port = address.port().to_be();
        (*raw).sin_addr.s_addr = u32::from_ne_bytes(address.ip().octets());
    }
    size_of::<libc::sockaddr_in>()
}

fn raw_v6(storage: &mut libc::sockaddr_storage, address: SocketAddr) -> usize {
    let (ip, scope) = match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
        SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
    };
    let raw = std::ptr::from_mut(storage).cast::<libc::sockaddr_in6>();
    // SAFETY: a storage is large and aligned enough for every address.
    unsafe {
        (*raw).sin6_port = address.port().to_be();
        (*raw).sin6_addr.s6_addr = ip.octets();
        (*raw).sin6_scope_id = scope;
    }
    size_of::<libc::sockaddr_in6>()
}
