//! What an engine counts of itself, beside what its caller can count: plain numbers in the engine,
//! copied out by the loop that owns it.

/// Counts and levels of one engine, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineStats {
    /// System calls by which the engine submitted or waited: io_uring_enter(2), epoll_wait(2) and
    /// what the other selectors ask with. Operations that are tried directly are not in it.
    pub system_calls: u64,
    /// Submissions that found the submission queue full and were kept (io_uring).
    pub backlogged: u64,
    /// Submissions that are kept now (io_uring).
    pub backlog: usize,
    /// Edges that sweeps have found lost (epoll, kqueue).
    pub lost_edges: u64,
}
