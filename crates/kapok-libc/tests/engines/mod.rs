//! The engines that a test goes over: that of io_uring, and epoll.

#![allow(dead_code, reason = "not every test needs all of it")]

use kapok::{Kind, Runtime, RuntimeBuilder};

/// Those there are. A kernel without io_uring is told of; with `KAPOK_REQUIRE_URING=1` it is a failure.
pub(crate) fn there() -> Vec<(Kind, RuntimeBuilder)> {
    let is_there = |kind: Kind| match Runtime::builder().engine(kind).threads(1).build() {
        Ok(_) => true,
        Err(error) if kind == Kind::Uring => {
            let required = std::env::var("KAPOK_REQUIRE_URING").is_ok_and(|value| value == "1");
            assert!(!required, "KAPOK_REQUIRE_URING=1: {error}");
            eprintln!("skipped on io_uring: {error}");
            false
        }
        Err(error) => panic!("{kind}: {error}"),
    };
    let kinds = [Kind::Uring, Kind::Epoll].into_iter().filter(|kind| is_there(*kind));
    kinds.map(|kind| (kind, Runtime::builder().engine(kind))).collect()
}

/// Edges that loops of this process have lost: none ever is.
pub(crate) fn lost_edges() -> u64 {
    kapok::metrics().total.engine.lost_edges
}
