//! The resolver, asked for what no server has to be asked for: names and addresses that are none, messages
//! that there is no room for.

use std::ffi::{c_char, c_int};
use std::mem::zeroed;
use std::ptr::null_mut;

use crate::c_resolver::*;
use crate::world::{Outcome, outcome};

pub(crate) fn ask(way: u8) -> Outcome {
    // Longer than a name may be.
    let mut name = [b'a' as c_char; 400];
    name[399] = 0;
    let (name, domain) = (name.as_ptr(), c"example".as_ptr());
    let mut bytes = [0_u8; 64];
    let (to, room) = (bytes.as_mut_ptr(), bytes.len() as c_int);
    let mut query = [0_u8; 32];
    let (query, len, none) = (query.as_mut_ptr().cast_const(), query.len() as c_int, 3);
    let address = [0_u8; 4];
    let address = address.as_ptr().cast();
    // SAFETY: names that end, and room that is there, but for where it is told to be too little.
    unsafe {
        // A thread's first look-up would do that, and a fiber's does it for a helper.
        assert_eq!(__res_init(), 0);
        let state = __res_state();
        *__h_errno_location() = 77;
        let mut told = outcome(|| {
            i64::from(match way % 18 {
                0 => res_query(name, 1, 1, to, room),
                1 => __res_query(name, 1, 1, to, room),
                2 => res_search(name, 1, 1, to, room),
                3 => __res_search(name, 1, 1, to, room),
                4 => res_nquery(state, name, 1, 1, to, room),
                5 => __res_nquery(state, name, 1, 1, to, room),
                6 => res_nsearch(state, name, 1, 1, to, room),
                7 => __res_nsearch(state, name, 1, 1, to, room),
                8 => res_querydomain(name, domain, 1, 1, to, room),
                9 => __res_querydomain(name, domain, 1, 1, to, room),
                10 => res_nquerydomain(state, name, domain, 1, 1, to, room),
                11 => __res_nquerydomain(state, name, domain, 1, 1, to, room),
                12 => res_send(query, len, to, none),
                13 => __res_send(query, len, to, none),
                14 => res_nsend(state, query, len, to, none),
                15 => __res_nsend(state, query, len, to, none),
                16 => c_int::from(gethostbyaddr(address, 4, libc::AF_UNIX).is_null()),
                _ => {
                    let (mut entry, mut buffer) = (zeroed(), [0; 512]);
                    let (mut found, mut error) = (null_mut(), 0);
                    let (at, room) = (buffer.as_mut_ptr(), buffer.len());
                    let (found, error) = (&raw mut found, &raw mut error);
                    let family = libc::AF_UNIX;
                    gethostbyaddr_r(address, 4, family, &raw mut entry, at, room, found, error)
                }
            })
        });
        told.details.push(i64::from(*__h_errno_location()));
        told
    }
}
