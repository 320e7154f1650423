//! Every operation of io_uring, carried out: on a ring, on a readiness engine and on a plain thread.
//!
//! One file a family, as in `src/entry`; `docs/operations.md` names the test of each operation. What
//! this machine's kernel does not have is expected to be refused, and said on the standard error.
//! Without io_uring the rest is tested all the same, unless `KAPOK_REQUIRE_URING=1`.
#![cfg(target_os = "linux")]

mod buffers;
mod cancel;
mod chains;
mod command;
mod direct;
mod encoding;
mod files;
mod futex;
mod message;
mod missing;
mod multishot;
mod open;
mod paths;
mod pipes;
mod places;
mod poll;
mod recalled;
mod sockets;
mod table;
mod timeout;
mod transfers;
mod waitid;
mod xattr;
mod zero_copy;
