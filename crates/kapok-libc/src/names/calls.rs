//! The calls, and which of them nobody has to be asked for.

use std::ffi::{CStr, c_char, c_int, c_uchar, c_void};

use libc::{addrinfo, hostent, size_t, sockaddr, socklen_t};

use super::elsewhere;
use crate::hook::hooks;
use crate::real;

/// Whether a node or a service is a number, or none: then nobody is asked.
unsafe fn is_numeric(node: *const c_char, service: *const c_char) -> bool {
    // SAFETY: by the caller: strings, or null.
    let string = |string: *const c_char| unsafe {
        (!string.is_null()).then(|| CStr::from_ptr(string).to_bytes())
    };
    is_address(string(node)) && is_port(string(service))
}

fn is_address(node: Option<&[u8]>) -> bool {
    let Some(node) = node else { return true };
    // A zone is an interface: looked up, but in the kernel.
    let address = node.split(|&byte| byte == b'%').next().unwrap_or(node);
    std::str::from_utf8(address).is_ok_and(|address| address.parse::<std::net::IpAddr>().is_ok())
}

fn is_port(service: Option<&[u8]>) -> bool {
    service.is_none_or(|service| service.iter().all(u8::is_ascii_digit))
}

/// What was found: a static of the C library, or nothing.
struct Found(*mut hostent);
// SAFETY: only passed on.
unsafe impl Send for Found {}

hooks! {
    /// getaddrinfo(3).
    fn getaddrinfo(
        node: *const c_char,
        service: *const c_char,
        hints: *const addrinfo,
        found: *mut *mut addrinfo,
    ) -> c_int = |call| {
        let numeric = |flag| hints.as_ref().is_some_and(|hints| hints.ai_flags & flag != 0);
        if is_numeric(node, service)
            || (numeric(libc::AI_NUMERICHOST) && numeric(libc::AI_NUMERICSERV))
        {
            let error = real::getaddrinfo(node, service, hints, found);
            call.leave_errno(crate::errno::get());
            return Ok(error);
        }
        Ok(elsewhere(call, || real::getaddrinfo(node, service, hints, found))
            .unwrap_or(libc::EAI_MEMORY))
    }

    /// getnameinfo(3).
    fn getnameinfo(
        address: *const sockaddr,
        length: socklen_t,
        host: *mut c_char,
        host_length: socklen_t,
        service: *mut c_char,
        service_length: socklen_t,
        flags: c_int,
    ) -> c_int = |call| {
        let look_up = || {
            real::getnameinfo(address, length, host, host_length, service, service_length, flags)
        };
        let wants = |part: *mut c_char, length, flag| {
            !part.is_null() && length > 0 && flags & flag == 0
        };
        if wants(host, host_length, libc::NI_NUMERICHOST)
            || wants(service, service_length, libc::NI_NUMERICSERV)
        {
            return Ok(elsewhere(call, look_up).unwrap_or(libc::EAI_MEMORY));
        }
        let error = look_up();
        call.leave_errno(crate::errno::get());
        Ok(error)
    }

    /// gethostbyname_r(3).
    fn gethostbyname_r(name: *const c_char, entry: *mut hostent, buffer: *mut c_char, room: size_t, found: *mut *mut hostent, h_error: *mut c_int) -> c_int = |call| {
        Ok(elsewhere(call, || real::gethostbyname_r(name, entry, buffer, room, found, h_error)).unwrap_or(libc::ENOMEM))
    }

    /// gethostbyname2_r(3).
    fn gethostbyname2_r(name: *const c_char, family: c_int, entry: *mut hostent, buffer: *mut c_char, room: size_t, found: *mut *mut hostent, h_error: *mut c_int) -> c_int = |call| {
        Ok(elsewhere(call, || real::gethostbyname2_r(name, family, entry, buffer, room, found, h_error)).unwrap_or(libc::ENOMEM))
    }

    /// gethostbyaddr_r(3).
    fn gethostbyaddr_r(address: *const c_void, length: socklen_t, family: c_int, entry: *mut hostent, buffer: *mut c_char, room: size_t, found: *mut *mut hostent, h_error: *mut c_int) -> c_int = |call| {
        Ok(elsewhere(call, || real::gethostbyaddr_r(address, length, family, entry, buffer, room, found, h_error)).unwrap_or(libc::ENOMEM))
    }

    /// gethostbyname(3).
    fn gethostbyname(name: *const c_char) -> *mut hostent = |call| {
        Ok(elsewhere(call, || Found(real::gethostbyname(name)))?.0)
    }

    /// gethostbyname2(3).
    fn gethostbyname2(name: *const c_char, family: c_int) -> *mut hostent = |call| {
        Ok(elsewhere(call, || Found(real::gethostbyname2(name, family)))?.0)
    }

    /// gethostbyaddr(3).
    fn gethostbyaddr(address: *const c_void, length: socklen_t, family: c_int) -> *mut hostent = |call| {
        Ok(elsewhere(call, || Found(real::gethostbyaddr(address, length, family)))?.0)
    }

    /// res_query(3).
    fn res_query(name: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, room: c_int) -> c_int = |call| {
        elsewhere(call, || real::res_query(name, class, kind, answer, room))
    }

    /// res_query(3).
    fn __res_query(name: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, room: c_int) -> c_int = |call| {
        elsewhere(call, || real::__res_query(name, class, kind, answer, room))
    }

    /// res_nquery(3).
    fn res_nquery(state: *mut c_void, name: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, room: c_int) -> c_int = |call| {
        elsewhere(call, || real::res_nquery(state, name, class, kind, answer, room))
    }

    /// res_nquery(3).
    fn __res_nquery(state: *mut c_void, name: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, room: c_int) -> c_int = |call| {
        elsewhere(call, || real::__res_nquery(state, name, class, kind, answer, room))
    }

    /// res_search(3).
    fn res_search(name: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, room: c_int) -> c_int = |call| {
        elsewhere(call, || real::res_search(name, class, kind, answer, room))
    }

    /// res_search(3).
    fn __res_search(name: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, room: c_int) -> c_int = |call| {
        elsewhere(call, || real::__res_search(name, class, kind, answer, room))
    }

    /// res_nsearch(3).
    fn res_nsearch(state: *mut c_void, name: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, room: c_int) -> c_int = |call| {
        elsewhere(call, || real::res_nsearch(state, name, class, kind, answer, room))
    }

    /// res_nsearch(3).
    fn __res_nsearch(state: *mut c_void, name: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, room: c_int) -> c_int = |call| {
        elsewhere(call, || real::__res_nsearch(state, name, class, kind, answer, room))
    }

    /// res_querydomain(3).
    fn res_querydomain(name: *const c_char, domain: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, room: c_int) -> c_int = |call| {
        elsewhere(call, || real::res_querydomain(name, domain, class, kind, answer, room))
    }

    /// res_querydomain(3).
    fn __res_querydomain(name: *const c_char, domain: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, room: c_int) -> c_int = |call| {
        elsewhere(call, || real::__res_querydomain(name, domain, class, kind, answer, room))
    }

    /// res_nquerydomain(3).
    fn res_nquerydomain(state: *mut c_void, name: *const c_char, domain: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, room: c_int) -> c_int = |call| {
        elsewhere(call, || real::res_nquerydomain(state, name, domain, class, kind, answer, room))
    }

    /// res_nquerydomain(3).
    fn __res_nquerydomain(state: *mut c_void, name: *const c_char, domain: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, room: c_int) -> c_int = |call| {
        elsewhere(call, || real::__res_nquerydomain(state, name, domain, class, kind, answer, room))
    }

    /// res_send(3).
    fn res_send(query: *const c_uchar, length: c_int, answer: *mut c_uchar, room: c_int) -> c_int = |call| {
        elsewhere(call, || real::res_send(query, length, answer, room))
    }

    /// res_send(3).
    fn __res_send(query: *const c_uchar, length: c_int, answer: *mut c_uchar, room: c_int) -> c_int = |call| {
        elsewhere(call, || real::__res_send(query, length, answer, room))
    }

    /// res_nsend(3).
    fn res_nsend(state: *mut c_void, query: *const c_uchar, length: c_int, answer: *mut c_uchar, room: c_int) -> c_int = |call| {
        elsewhere(call, || real::res_nsend(state, query, length, answer, room))
    }

    /// res_nsend(3).
    fn __res_nsend(state: *mut c_void, query: *const c_uchar, length: c_int, answer: *mut c_uchar, room: c_int) -> c_int = |call| {
        elsewhere(call, || real::__res_nsend(state, query, length, answer, room))
    }
}
