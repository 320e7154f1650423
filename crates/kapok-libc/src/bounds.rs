//! Where the stack of the code that runs is: pthread_getattr_np(3) of the calling thread, on a fiber.
//!
//! Collectors of garbage look there for what is in use (Boehm's, Ruby's), and interpreters for how deep they
//! may recurse. They ask once, for the thread on which they begin: with main on a fiber, for main.

use std::ffi::c_int;

use libc::{pthread_attr_t, pthread_t};

use crate::hook::hooks;
use crate::{real, threads};

hooks! {
    /// pthread_getattr_np(3).
    fn pthread_getattr_np(thread: pthread_t, attributes: *mut pthread_attr_t) -> c_int = |call| {
        let of_caller = thread == threads::current();
        let asked = if of_caller { real::pthread_self() } else { thread };
        if threads::fiber_of(asked).is_some() {
            return Ok(libc::ESRCH);
        }
        let error = real::pthread_getattr_np(asked, attributes);
        if error == 0
            && of_caller
            && let Some(stack) = call.inside.stack()
        {
            let lowest = std::ptr::with_exposed_provenance_mut(stack.start);
            return Ok(libc::pthread_attr_setstack(attributes, lowest, stack.len()));
        }
        Ok(error)
    }
}
