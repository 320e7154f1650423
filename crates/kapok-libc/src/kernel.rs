//! System calls without the C library: no errno, no cancellation point, no hook in between.

use crate::errno::Errno;

/// Makes a system call. `Err` if the kernel answers with an error number.
///
/// # Safety
///
/// What the call named by `number` asks of its arguments.
#[inline]
pub(crate) unsafe fn call(number: libc::c_long, arguments: [usize; 6]) -> Result<usize, Errno> {
    // SAFETY: by the caller.
    let res = unsafe { kapok_engine::sys::kernel::call(number, arguments) };
    // The kernel keeps the last page of addresses for errors.
    if (-4095..0).contains(&res) { Err(Errno(-res as i32)) } else { Ok(res as usize) }
}

/// [`call`] with up to six arguments of any integer or pointer type.
macro_rules! kernel {
    ($number:expr $(, $argument:expr)*) => {{
        #[allow(unused_mut, reason = "there may be no arguments")]
        let mut arguments = [0usize; 6];
        let mut _next = 0;
        $(
            arguments[_next] = $argument as usize;
            _next += 1;
        )*
        $crate::kernel::call($number, arguments)
    }};
}

pub(crate) use kernel;
