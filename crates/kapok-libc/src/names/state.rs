//! `_res`, which each thread has for itself, and h_errno.
//!
//! A program that sets options of the resolver does so in its thread's `_res`, after `res_init`. On
//! the thread that looks up for it they are put in the place of that thread's own for the time of the
//! call. A thread that has never touched `_res` brings none.
//!
//! The C library compares `_res` with what it last read from `/etc/resolv.conf`: if they are the same
//! and the file has changed, it reads the file again; if they are not, the program has changed something
//! and keeps it. That is done here before the copy is taken, so what is carried over is never older than
//! the file.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use crate::real;

/// `struct __res_state`, as far as programs may use it.
#[repr(C)]
struct Resolver {
    retrans: c_int,
    retry: c_int,
    options: libc::c_ulong,
    nameserver_count: c_int,
    nameservers: [libc::sockaddr_in; 3],
    id: u16,
    search: [*mut c_char; 7],
    domain: [c_char; 256],
    code: libc::c_ulong,
    /// `ndots`, `nsort`, and the C library's own bits.
    bits: u32,
    sort: [[u32; 2]; 10],
    _unused: [*mut c_void; 2],
    h_errno: c_int,
}

const _: () = assert!(std::mem::offset_of!(Resolver, search) == 72);
const _: () = assert!(std::mem::offset_of!(Resolver, sort) == 396);
const _: () = assert!(std::mem::offset_of!(Resolver, h_errno) == 496);

/// `RES_INIT`: it has been set up.
const IS_SET_UP: libc::c_ulong = 1;
/// `ndots` and `nsort` in `bits`.
const PROGRAMS_BITS: u32 = 0xff;

/// What a program may have set.
pub(super) struct State {
    retrans: c_int,
    retry: c_int,
    options: libc::c_ulong,
    nameserver_count: c_int,
    nameservers: [libc::sockaddr_in; 3],
    /// Where names begin in `domain`, or pointers to elsewhere.
    search: [Suffix; 7],
    domain: [c_char; 256],
    bits: u32,
    sort: [[u32; 2]; 10],
}

#[derive(Clone, Copy)]
enum Suffix {
    None,
    At(usize),
    Elsewhere(usize),
}

fn of_this_thread() -> *mut Resolver {
    // SAFETY: the address of the calling thread's own.
    unsafe { real::__res_state() }.cast()
}

impl State {
    /// What the calling thread has set up. None: nothing.
    pub(super) fn of_this_thread() -> Option<State> {
        let resolver = of_this_thread();
        // SAFETY: the calling thread's own, here and below; nothing else refers to it.
        if unsafe { (*resolver).options } & IS_SET_UP == 0 {
            return None;
        }
        // Making a query has the C library look after the file, and asks nobody.
        let mut query = [0_u8; 64];
        let null = ptr::null();
        // SAFETY: writes to a local of the length that is told.
        unsafe {
            let length = query.len() as c_int;
            real::res_mkquery(0, c"a".as_ptr(), 1, 1, null, 0, null, query.as_mut_ptr(), length);
            Some(State::copy(&*resolver))
        }
    }

    fn copy(resolver: &Resolver) -> State {
        let begin = resolver.domain.as_ptr().addr();
        let search = resolver.search.map(|name| match name.addr().wrapping_sub(begin) {
            _ if name.is_null() => Suffix::None,
            at if at < resolver.domain.len() => Suffix::At(at),
            _ => Suffix::Elsewhere(name.expose_provenance()),
        });
        State {
            retrans: resolver.retrans,
            retry: resolver.retry,
            options: resolver.options,
            nameserver_count: resolver.nameserver_count,
            nameservers: resolver.nameservers,
            search,
            domain: resolver.domain,
            bits: resolver.bits & PROGRAMS_BITS,
            sort: resolver.sort,
        }
    }

    fn put(&self, resolver: &mut Resolver) {
        resolver.retrans = self.retrans;
        resolver.retry = self.retry;
        resolver.options = self.options;
        resolver.nameserver_count = self.nameserver_count;
        resolver.nameservers = self.nameservers;
        resolver.domain = self.domain;
        let begin = resolver.domain.as_mut_ptr();
        resolver.search = self.search.map(|name| match name {
            Suffix::None => ptr::null_mut(),
            Suffix::At(at) => begin.wrapping_add(at),
            Suffix::Elsewhere(address) => ptr::with_exposed_provenance_mut(address),
        });
        resolver.bits = resolver.bits & !PROGRAMS_BITS | self.bits;
        resolver.sort = self.sort;
    }

    /// Runs `f` with this in the place of what the calling thread has.
    pub(super) fn during<R>(&self, f: impl FnOnce() -> R) -> R {
        let resolver = of_this_thread();
        // SAFETY: the calling thread's own; references to it end before the C library uses it.
        unsafe {
            if (*resolver).options & IS_SET_UP == 0 {
                real::__res_init();
            }
            let before = State::copy(&*resolver);
            self.put(&mut *resolver);
            let result = f();
            before.put(&mut *resolver);
            result
        }
    }
}

/// The thread's h_errno.
pub(super) fn h_errno() -> c_int {
    // SAFETY: the address of the calling thread's own.
    unsafe { *real::__h_errno_location() }
}

/// Sets the thread's h_errno, and that in its `_res`.
pub(super) fn set_h_errno(value: c_int) {
    // SAFETY: as above, twice.
    unsafe {
        *real::__h_errno_location() = value;
        (*of_this_thread()).h_errno = value;
    }
}
