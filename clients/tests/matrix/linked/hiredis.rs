//! hiredis, as C has it.

use std::ffi::{CStr, c_char, c_int, c_longlong, c_void};
use std::ptr::NonNull;
use std::slice;
use std::time::Duration;

use super::queue::Connection;
use crate::place::{Place, Which};
use crate::proof::Client;

pub(super) static CLIENT: Client =
    Client { name: "hiredis", title: "hiredis", server: Which::Redis, remark: "" };

/// The beginning of `redisContext`.
#[repr(C)]
struct Context {
    error: c_int,
    message: [c_char; 128],
}

/// What follows in `redisReply` after the kind and the integer. Version 1 has a double before it.
#[repr(C)]
struct Rest {
    length: usize,
    text: *const c_char,
    count: usize,
    elements: *const *const Reply,
}

/// The beginning of `redisReply`.
#[repr(C)]
struct Reply {
    kind: c_int,
    integer: c_longlong,
}

const STRING: c_int = 1;
const ARRAY: c_int = 2;
const INTEGER: c_int = 3;
const NIL: c_int = 4;
const STATUS: c_int = 5;

impl Reply {
    /// # Safety
    ///
    /// `reply` is a reply of hiredis's that was not freed.
    unsafe fn text(reply: *const Reply) -> Result<Option<String>, String> {
        // A function that came with version 1.
        // SAFETY: a string that lives for the program.
        let doubles =
            !unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"redisSetPushCallback".as_ptr()) }.is_null();
        // SAFETY: the layout is that of the version that is loaded; what is pointed to belongs to the reply,
        // which is there by the caller's word.
        unsafe {
            let after = reply.add(1).cast::<f64>();
            let rest = &*(if doubles { after.add(1) } else { after }).cast::<Rest>();
            let words = || {
                let bytes = slice::from_raw_parts(rest.text.cast::<u8>(), rest.length);
                String::from_utf8_lossy(bytes).into_owned()
            };
            match (*reply).kind {
                STRING | STATUS => Ok(Some(words())),
                INTEGER => Ok(Some((*reply).integer.to_string())),
                NIL => Ok(None),
                ARRAY if rest.count == 0 => Ok(None),
                ARRAY => Reply::text(*rest.elements.add(rest.count - 1)),
                _ => Err(words()),
            }
        }
    }
}

#[link(name = "hiredis")]
unsafe extern "C" {
    fn redisConnect(address: *const c_char, port: c_int) -> *mut Context;
    fn redisSetTimeout(context: *mut Context, limit: libc::timeval) -> c_int;
    fn redisCommandArgv(
        context: *mut Context,
        count: c_int,
        words: *const *const c_char,
        lengths: *const usize,
    ) -> *mut c_void;
    fn freeReplyObject(reply: *mut c_void);
    fn redisFree(context: *mut Context);
}

pub(super) struct Hiredis(NonNull<Context>);

impl Hiredis {
    /// What went wrong.
    fn error(&self) -> Option<String> {
        // SAFETY: a context that is there, whose message is a string.
        let (error, message) = unsafe {
            let context = self.0.as_ptr();
            ((*context).error, CStr::from_ptr((&raw const (*context).message).cast()))
        };
        (error != 0).then(|| message.to_string_lossy().into_owned())
    }
}

impl Connection for Hiredis {
    fn connect(place: &Place, limit: Option<Duration>) -> Result<Hiredis, String> {
        // SAFETY: a string that lives for the program; a context that is there.
        unsafe {
            let context = redisConnect(c"127.0.0.1".as_ptr(), place.port.into());
            let connection = Hiredis(NonNull::new(context).unwrap());
            if let Some(error) = connection.error() {
                return Err(error);
            }
            if let Some(limit) = limit {
                let limit = libc::timeval {
                    tv_sec: limit.as_secs() as libc::time_t,
                    tv_usec: limit.subsec_micros().into(),
                };
                assert_eq!(redisSetTimeout(context, limit), 0);
            }
            Ok(connection)
        }
    }

    fn command(&mut self, words: &[&str]) -> Result<Option<String>, String> {
        let pointers: Vec<_> = words.iter().map(|word| word.as_ptr().cast()).collect();
        let lengths: Vec<_> = words.iter().map(|word| word.len()).collect();
        // SAFETY: a context that is there, strings of these lengths; the reply is freed once.
        unsafe {
            let reply = redisCommandArgv(
                self.0.as_ptr(),
                words.len() as c_int,
                pointers.as_ptr(),
                lengths.as_ptr(),
            );
            if reply.is_null() {
                return Err(self.error().unwrap_or_default());
            }
            let text = Reply::text(reply.cast());
            freeReplyObject(reply);
            text
        }
    }
}

impl Drop for Hiredis {
    fn drop(&mut self) {
        // SAFETY: it is there, and nobody uses it any more.
        unsafe { redisFree(self.0.as_ptr()) }
    }
}
