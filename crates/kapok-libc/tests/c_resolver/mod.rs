//! The C library's resolver, which the crate `libc` has little of: the calls of `<resolv.h>` and those of
//! `<netdb.h>`.
#![allow(dead_code, reason = "each test calls some of it")]

use std::ffi::{c_char, c_int, c_void};
use std::net::Ipv4Addr;

pub(crate) type State = *mut Resolver;
pub(crate) type Name = *const c_char;
pub(crate) type Answer = *mut u8;
pub(crate) type Host = libc::hostent;

unsafe extern "C" {
    pub(crate) fn __res_state() -> State;
    pub(crate) fn __res_init() -> c_int;
    pub(crate) fn __res_ninit(state: State) -> c_int;
    pub(crate) fn __res_nclose(state: State);
    pub(crate) fn __h_errno_location() -> *mut c_int;
    pub(crate) fn res_query(
        name: Name,
        class: c_int,
        kind: c_int,
        answer: Answer,
        room: c_int,
    ) -> c_int;
    pub(crate) fn __res_query(
        name: Name,
        class: c_int,
        kind: c_int,
        answer: Answer,
        room: c_int,
    ) -> c_int;
    pub(crate) fn res_search(
        name: Name,
        class: c_int,
        kind: c_int,
        answer: Answer,
        room: c_int,
    ) -> c_int;
    pub(crate) fn __res_search(
        name: Name,
        class: c_int,
        kind: c_int,
        answer: Answer,
        room: c_int,
    ) -> c_int;
    pub(crate) fn res_querydomain(
        name: Name,
        domain: Name,
        class: c_int,
        kind: c_int,
        answer: Answer,
        room: c_int,
    ) -> c_int;
    pub(crate) fn __res_querydomain(
        name: Name,
        domain: Name,
        class: c_int,
        kind: c_int,
        answer: Answer,
        room: c_int,
    ) -> c_int;
    pub(crate) fn res_send(query: *const u8, len: c_int, answer: Answer, room: c_int) -> c_int;
    pub(crate) fn __res_send(query: *const u8, len: c_int, answer: Answer, room: c_int) -> c_int;
    pub(crate) fn res_nquery(
        s: State,
        name: Name,
        class: c_int,
        kind: c_int,
        to: Answer,
        n: c_int,
    ) -> c_int;
    pub(crate) fn __res_nquery(
        s: State,
        name: Name,
        class: c_int,
        kind: c_int,
        to: Answer,
        n: c_int,
    ) -> c_int;
    pub(crate) fn res_nsearch(
        s: State,
        name: Name,
        class: c_int,
        kind: c_int,
        to: Answer,
        n: c_int,
    ) -> c_int;
    pub(crate) fn __res_nsearch(
        s: State,
        name: Name,
        class: c_int,
        kind: c_int,
        to: Answer,
        n: c_int,
    ) -> c_int;
    pub(crate) fn res_nquerydomain(
        state: State,
        name: Name,
        domain: Name,
        class: c_int,
        kind: c_int,
        answer: Answer,
        room: c_int,
    ) -> c_int;
    pub(crate) fn __res_nquerydomain(
        state: State,
        name: Name,
        domain: Name,
        class: c_int,
        kind: c_int,
        answer: Answer,
        room: c_int,
    ) -> c_int;
    pub(crate) fn res_nsend(
        state: State,
        query: *const u8,
        len: c_int,
        answer: Answer,
        room: c_int,
    ) -> c_int;
    pub(crate) fn __res_nsend(
        state: State,
        query: *const u8,
        len: c_int,
        to: Answer,
        room: c_int,
    ) -> c_int;
    pub(crate) fn gethostbyname(name: Name) -> *mut Host;
    pub(crate) fn gethostbyname2(name: Name, family: c_int) -> *mut Host;
    pub(crate) fn gethostbyaddr(address: *const c_void, len: u32, family: c_int) -> *mut Host;
    pub(crate) fn gethostbyname_r(
        name: Name,
        entry: *mut Host,
        buffer: *mut c_char,
        room: usize,
        found: *mut *mut Host,
        error: *mut c_int,
    ) -> c_int;
    pub(crate) fn gethostbyname2_r(
        name: Name,
        family: c_int,
        entry: *mut Host,
        buffer: *mut c_char,
        room: usize,
        found: *mut *mut Host,
        error: *mut c_int,
    ) -> c_int;
    pub(crate) fn gethostbyaddr_r(
        address: *const c_void,
        len: u32,
        family: c_int,
        entry: *mut Host,
        buffer: *mut c_char,
        room: usize,
        found: *mut *mut Host,
        error: *mut c_int,
    ) -> c_int;
}

/// `struct __res_state`, as far as a program that brings its server sets it.
#[repr(C)]
pub(crate) struct Resolver {
    pub(crate) retrans: c_int,
    pub(crate) retry: c_int,
    pub(crate) options: libc::c_ulong,
    pub(crate) nameserver_count: c_int,
    pub(crate) nameservers: [libc::sockaddr_in; 3],
    /// More than there is in any release.
    pub(crate) rest: [u64; 128],
}

/// Has the server at this port of the loopback asked, and no other, by whoever asks with this state.
///
/// # Safety
///
/// The state has been set up.
pub(crate) unsafe fn ask_only(state: State, port: u16) {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(Ipv4Addr::LOCALHOST).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: by the caller; both are at the beginning of every state.
    unsafe {
        (*state).nameserver_count = 1;
        (*state).nameservers[0] = address;
    }
}
