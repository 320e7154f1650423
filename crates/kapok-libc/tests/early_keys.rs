//! Keys that were made before the hooks work, as constructors of libraries make them.

#![cfg(target_os = "linux")]

use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};

static DESTROYED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn destroy(value: *mut c_void) {
    DESTROYED.fetch_add(value.addr(), Ordering::SeqCst);
}

#[test]
fn their_values_on_fibers_are_destroyed() {
    let mut key = 0;
    // SAFETY: writes to a local.
    assert_eq!(unsafe { libc::pthread_key_create(&raw mut key, Some(destroy)) }, 0);
    kapok_libc::install();
    kapok::Runtime::new().unwrap().run(move || {
        let fiber = kapok::spawn_local(move || {
            // SAFETY: the value is a number, and its destructor takes it for one.
            let set = unsafe { libc::pthread_setspecific(key, std::ptr::without_provenance(7)) };
            assert_eq!(set, 0);
        });
        fiber.join().unwrap();
        assert_eq!(DESTROYED.load(Ordering::SeqCst), 7);
    });
}
