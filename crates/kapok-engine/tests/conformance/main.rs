//! The contract of [`Engine`](kapok_engine::Engine), tested on every engine, the simulated one
//! included: what there is not in its world is listed in [`world::NOT_SIMULATED`].
//!
//! Each test is a function of the engine's kind; [`conformance!`] makes of it one test for each
//! kind, run in a process of its own (see [`isolated`]), so a failure names the test and the
//! engine: `stream::echo::select`. What holds for all operations at all times is checked by the
//! [`driver`], through which all tests submit.
//!
//! `KAPOK_SCALE=full` makes the long loops ten times as long. With `KAPOK_REQUIRE_URING=1` a
//! machine that denies io_uring fails the suite; without, its tests say that they were skipped.

/// Makes each function a test on every kind of engine.
macro_rules! conformance {
    ($($name:ident),+ $(,)?) => {
        $(
            mod $name {
                conformance!(@on $name uring Uring);
                conformance!(@on $name epoll Epoll);
                conformance!(@on $name poll Poll);
                conformance!(@on $name select Select);
                conformance!(@on $name busy Busy);
                conformance!(@on $name sim Sim);
            }
        )+
    };
    (@on $name:ident $engine:ident $kind:ident) => {
        #[test]
        fn $engine() {
            let path = concat!(module_path!(), "::", stringify!($engine));
            crate::isolated::run(kapok_engine::Kind::$kind, path, super::$name);
        }
    };
}

mod accept_connect;
mod bell;
#[cfg(target_os = "linux")]
mod broken;
mod cancel;
mod closing;
mod contract;
mod datagram;
mod driver;
mod files;
#[cfg(target_os = "linux")]
#[path = "../../examples/deny_uring/filter.rs"]
#[allow(dead_code, reason = "the example uses the rest")]
mod filter;
mod futex;
mod isolated;
mod pipes;
mod poll;
mod pooled;
mod pressure;
mod random;
mod sharing;
mod sockets;
mod stream;
mod timers;
mod world;
