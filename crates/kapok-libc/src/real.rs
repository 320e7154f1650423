//! Functions of the C library that hooks call by themselves, whoever runs: past our definitions.
//!
//! All are looked up when the program begins ([`look_up_all`]). A hook may be called inside malloc(3), by an
//! allocator that takes a lock, or from a handler of signals, and dlsym(3) is not for there: it waits for
//! the loader's lock, and frees what an earlier failure of the thread's has left.

use std::ffi::{c_char, c_int, c_uchar, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::errno;

/// The next definition of `name`. Some names are kept for programs that were linked long ago: those are
/// found with the version that all functions had then, and not without.
pub(crate) fn next_definition(name: &std::ffi::CStr) -> *mut c_void {
    #[cfg(target_arch = "x86_64")]
    const FIRST: &std::ffi::CStr = c"GLIBC_2.2.5";
    #[cfg(not(target_arch = "x86_64"))]
    const FIRST: &std::ffi::CStr = c"GLIBC_2.17";
    // SAFETY: NUL-terminated names.
    unsafe {
        // Conditions are of two kinds, of which functions of another library get the new one, and before
        // glibc 2.36 dlsym(3) gives the old.
        #[cfg(target_arch = "x86_64")]
        if name.to_bytes().starts_with(b"pthread_cond_") {
            let found = libc::dlvsym(libc::RTLD_NEXT, name.as_ptr(), c"GLIBC_2.3.2".as_ptr());
            if !found.is_null() {
                return found;
            }
        }
        let found = libc::dlsym(libc::RTLD_NEXT, name.as_ptr());
        if !found.is_null() {
            return found;
        }
        libc::dlvsym(libc::RTLD_NEXT, name.as_ptr(), FIRST.as_ptr())
    }
}

/// A function, and where it is once it was looked up.
struct Place {
    name: &'static std::ffi::CStr,
    real: AtomicPtr<c_void>,
}

/// The next definition of `name` after that of the object we are in, for who comes before [`look_up_all`].
#[cold]
fn look_up(place: &Place) -> *mut c_void {
    let before = errno::get();
    let found = next_definition(place.name);
    errno::set(before);
    if found.is_null() {
        eprintln!("kapok: the C library has no {}", place.name.to_string_lossy());
        std::process::abort();
    }
    place.real.store(found, Ordering::Relaxed);
    found
}

/// Looks up all of these. Those that this C library has not are missed when they are called.
pub(crate) fn look_up_all() {
    let before = errno::get();
    for place in PLACES {
        place.real.store(next_definition(place.name), Ordering::Relaxed);
    }
    errno::set(before);
}

macro_rules! real {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $returned:ty;)*) => {
        static PLACES: &[&Place] = &[$(&$name::PLACE),*];
        $(
            /// Beside the function of this name.
            mod $name {
                pub(super) static PLACE: super::Place = super::Place {
                    // SAFETY: the one NUL is at the end.
                    name: unsafe {
                        std::ffi::CStr::from_bytes_with_nul_unchecked(
                            concat!(stringify!($name), "\0").as_bytes(),
                        )
                    },
                    real: super::AtomicPtr::new(std::ptr::null_mut()),
                };
            }

            /// As the C library has it.
            ///
            /// # Safety
            ///
            /// As for the C library's function of this name.
            #[inline]
            #[allow(clippy::too_many_arguments, reason = "as many as the C library's")]
            pub(crate) unsafe fn $name($($argument: $type),*) -> $returned {
                let mut real = $name::PLACE.real.load(Ordering::Relaxed);
                if real.is_null() {
                    real = look_up(&$name::PLACE);
                }
                type Real = unsafe extern "C-unwind" fn($($type),*) -> $returned;
                let real = {
                    // SAFETY: the function of this name has this signature.
                    unsafe { std::mem::transmute::<*mut c_void, Real>(real) }
                };
                // SAFETY: by the caller.
                unsafe { real($($argument),*) }
            }
        )*
    };
}

real! {
    fn pthread_mutex_lock(mutex: *mut libc::pthread_mutex_t) -> c_int;
    fn pthread_mutex_trylock(mutex: *mut libc::pthread_mutex_t) -> c_int;
    fn pthread_mutex_unlock(mutex: *mut libc::pthread_mutex_t) -> c_int;
    fn pthread_rwlock_tryrdlock(lock: *mut libc::pthread_rwlock_t) -> c_int;
    fn pthread_rwlock_trywrlock(lock: *mut libc::pthread_rwlock_t) -> c_int;
    fn pthread_rwlock_unlock(lock: *mut libc::pthread_rwlock_t) -> c_int;
    fn pthread_rwlockattr_setkind_np(
        attributes: *mut libc::pthread_rwlockattr_t,
        kind: c_int,
    ) -> c_int;
    fn pthread_cond_signal(condition: *mut libc::pthread_cond_t) -> c_int;
    fn pthread_cond_broadcast(condition: *mut libc::pthread_cond_t) -> c_int;
    fn sem_trywait(semaphore: *mut libc::sem_t) -> c_int;
    fn pthread_barrier_wait(barrier: *mut libc::pthread_barrier_t) -> c_int;
    fn pthread_barrier_destroy(barrier: *mut libc::pthread_barrier_t) -> c_int;
    fn pthread_once(
        once: *mut libc::pthread_once_t,
        initialise: unsafe extern "C-unwind" fn(),
    ) -> c_int;
    fn pthread_join(thread: libc::pthread_t, value: *mut *mut c_void) -> c_int;
    fn pthread_clockjoin_np(
        thread: libc::pthread_t,
        value: *mut *mut c_void,
        clock: libc::clockid_t,
        at: *const libc::timespec,
    ) -> c_int;
    fn pthread_tryjoin_np(thread: libc::pthread_t, value: *mut *mut c_void) -> c_int;
    fn getaddrinfo(node: *const c_char, service: *const c_char, hints: *const libc::addrinfo, found: *mut *mut libc::addrinfo) -> c_int;
    fn getnameinfo(address: *const libc::sockaddr, length: libc::socklen_t, host: *mut c_char, host_length: libc::socklen_t, service: *mut c_char, service_length: libc::socklen_t, flags: c_int) -> c_int;
    fn gethostbyname_r(name: *const c_char, entry: *mut libc::hostent, buffer: *mut c_char, room: libc::size_t, found: *mut *mut libc::hostent, h_error: *mut c_int) -> c_int;
    fn gethostbyname2_r(name: *const c_char, family: c_int, entry: *mut libc::hostent, buffer: *mut c_char, room: libc::size_t, found: *mut *mut libc::hostent, h_error: *mut c_int) -> c_int;
    fn gethostbyaddr_r(address: *const c_void, length: libc::socklen_t, family: c_int, entry: *mut libc::hostent, buffer: *mut c_char, room: libc::size_t, found: *mut *mut libc::hostent, h_error: *mut c_int) -> c_int;
    fn gethostbyname(name: *const c_char) -> *mut libc::hostent;
    fn gethostbyname2(name: *const c_char, family: c_int) -> *mut libc::hostent;
    fn gethostbyaddr(address: *const c_void, length: libc::socklen_t, family: c_int) -> *mut libc::hostent;
    fn res_query(name: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, room: c_int) -> c_int;
    fn __res_query(name: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, room: c_int) -> c_int;
    fn res_nquery(state: *mut c_void, name: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, room: c_int) -> c_int;
    fn __res_nquery(state: *mut c_void, name: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, room: c_int) -> c_int;
    fn res_search(name: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, room: c_int) -> c_int;
    fn __res_search(name: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, room: c_int) -> c_int;
    fn res_nsearch(state: *mut c_void, name: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, room: c_int) -> c_int;
    fn __res_nsearch(state: *mut c_void, name: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, room: c_int) -> c_int;
    fn res_querydomain(name: *const c_char, domain: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, room: c_int) -> c_int;
    fn __res_querydomain(name: *const c_char, domain: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, room: c_int) -> c_int;
    fn res_nquerydomain(state: *mut c_void, name: *const c_char, domain: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, room: c_int) -> c_int;
    fn __res_nquerydomain(state: *mut c_void, name: *const c_char, domain: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, room: c_int) -> c_int;
    fn res_send(query: *const c_uchar, length: c_int, answer: *mut c_uchar, room: c_int) -> c_int;
    fn __res_send(query: *const c_uchar, length: c_int, answer: *mut c_uchar, room: c_int) -> c_int;
    fn res_nsend(state: *mut c_void, query: *const c_uchar, length: c_int, answer: *mut c_uchar, room: c_int) -> c_int;
    fn __res_nsend(state: *mut c_void, query: *const c_uchar, length: c_int, answer: *mut c_uchar, room: c_int) -> c_int;
    fn res_mkquery(operation: c_int, name: *const c_char, class: c_int, kind: c_int, data: *const c_uchar, length: c_int, record: *const c_uchar, query: *mut c_uchar, room: c_int) -> c_int;
    fn __res_state() -> *mut c_void;
    fn __res_init() -> c_int;
    fn __h_errno_location() -> *mut c_int;
    fn pthread_self() -> libc::pthread_t;
    fn pthread_create(thread: *mut libc::pthread_t, attributes: *const libc::pthread_attr_t, start: crate::threads::Start, argument: *mut c_void) -> c_int;
    fn thrd_create(thread: *mut libc::pthread_t, start: unsafe extern "C-unwind" fn(*mut c_void) -> c_int, argument: *mut c_void) -> c_int;
    fn pthread_getattr_default_np(attributes: *mut libc::pthread_attr_t) -> c_int;
    fn pthread_attr_getdetachstate(attributes: *const libc::pthread_attr_t, state: *mut c_int) -> c_int;
    fn pthread_getattr_np(thread: libc::pthread_t, attributes: *mut libc::pthread_attr_t) -> c_int;
    fn pthread_setspecific(key: libc::pthread_key_t, value: *const c_void) -> c_int;
    fn pthread_getspecific(key: libc::pthread_key_t) -> *mut c_void;
    fn sigaction(signal: c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> c_int;
    fn syscall(
        number: std::ffi::c_long,
        a: usize,
        b: usize,
        c: usize,
        d: usize,
        e: usize,
        f: usize,
    ) -> std::ffi::c_long;
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    #[test]
    fn conditions_are_those_that_other_libraries_have() {
        for name in [c"pthread_cond_wait", c"pthread_cond_signal", c"pthread_cond_timedwait"] {
            // SAFETY: NUL-terminated names.
            let (new, old) = unsafe {
                let of = |version: &std::ffi::CStr| {
                    libc::dlvsym(libc::RTLD_NEXT, name.as_ptr(), version.as_ptr())
                };
                (of(c"GLIBC_2.3.2"), of(c"GLIBC_2.2.5"))
            };
            assert!(!new.is_null() && new != old, "{name:?}");
            assert_eq!(super::next_definition(name), new, "{name:?}");
        }
    }
}
