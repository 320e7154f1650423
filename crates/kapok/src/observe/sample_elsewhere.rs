//! Where a thread's stack cannot be had by signal.

use super::collect::Sampled;
use crate::runtime::Published;

/// Nothing is known of the fiber that runs.
pub(super) fn take(_published: &Published) -> Option<Sampled> {
    None
}

/// There is nothing to install.
pub(super) fn install() {}
