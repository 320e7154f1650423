//! Names: getaddrinfo(3) and its like.
//!
//! The C library looks names up by calls that no hook sees, through sockets of its own. So the whole
//! call is made by a thread of the offload pool, and the fiber waits for it. It cannot be called back:
//! a look-up ends by itself, by the resolver's own time-outs.
//!
//! What belongs to the caller's thread goes with the call: `_res`, if the thread has set it up, and h_errno
//! there; errno and h_errno back. The thread that looks up asks the C library for the state of `/etc/resolv.conf`
//! as every thread does, and keeps nothing of the caller's.
//!
//! What needs nobody to be asked is answered on the spot.

mod calls;
mod state;

pub(crate) use calls::HOOKS;

use crate::call::Call;
use crate::errno::{self, Errno};
use crate::signals::mask::aside;
use state::State;

/// Makes a call on another thread, which finds there what `_res` is here.
fn elsewhere<R: Send>(call: &Call, look_up: impl FnOnce() -> R) -> Result<R, Errno> {
    struct Lent<F>(F);
    // SAFETY: the fiber waits while the other thread uses what it lends, and no third is there.
    unsafe impl<F> Send for Lent<F> {}
    impl<R, F: FnOnce() -> R> Lent<F> {
        fn call(self) -> R {
            (self.0)()
        }
    }
    let state = State::of_this_thread();
    let before = state::h_errno();
    let lent = Lent(look_up);
    call.note_suspension();
    let look_up = move || {
        let lent = lent;
        errno::set(0);
        // Not every call that fails sets it.
        state::set_h_errno(before);
        let result = match &state {
            Some(state) => state.during(|| lent.call()),
            None => lent.call(),
        };
        (result, errno::get(), state::h_errno())
    };
    let looked_up = aside(|| kapok::blocking(look_up));
    let Ok((result, errno, h_errno)) = looked_up else { return Err(Errno(libc::ENOMEM)) };
    if errno != 0 {
        call.leave_errno(errno);
    }
    state::set_h_errno(h_errno);
    Ok(result)
}
